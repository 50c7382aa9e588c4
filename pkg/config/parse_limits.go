package config

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

func (p *parser) limits(s *section) {
	for _, k := range limitKeys {
		if _, there := s.values[k.name]; !there || !keysByName[s.full(k.name)].allows(s.role) {
			continue
		}
		at := s.location(k.name)
		n, ok := k.read(s)
		if ok && (n < k.min || n > k.max) {
			p.add(at, fmt.Sprintf("it may be from %s to %s", k.text(k.min), k.text(k.max)),
				"%s is out of range", k.text(n))
			continue
		}
		if ok {
			k.set(&p.config.Limits, n)
		}
	}
	p.penaltyExempt(s)
}

func (p *parser) penaltyExempt(s *section) {
	const key = "auth_penalty_exempt"
	if !keysByName[s.full(key)].allows(s.role) {
		return
	}
	items, _ := s.texts(key)
	for _, i := range items {
		prefix, err := parseNetwork(i.text)
		if err != nil {
			p.add(i.at, `write an IP address or a network, such as "192.0.2.7" or "192.0.2.0/24"`,
				"%q is no address and no network", i.text)
			continue
		}
		p.config.PenaltyExempt = append(p.config.PenaltyExempt, prefix)
	}
}

// parseNetwork parses a network in CIDR notation. A single address counts as a network of one.
func parseNetwork(text string) (netip.Prefix, error) {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		if a := prefix.Addr(); a.Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(a.Unmap(), prefix.Bits()-96)
		}
		return prefix.Masked(), nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, errors.New("no network")
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// read returns the value of a limit in its base unit.
func (k limitKey) read(s *section) (int64, bool) {
	switch k.kind() {
	case typeInteger:
		n, _, ok := scalar[int64](s, k.name, "an integer")
		return n, ok
	case typeDuration:
		d := s.duration(k.name, -1, time.Duration(k.min), time.Duration(k.max))
		return int64(d), d >= 0
	}
	text, at, ok := s.text(k.name)
	if !ok {
		return 0, false
	}
	size, err := parseSize(text)
	if err != nil {
		s.add(at, `write a number with a unit, such as "64KiB", "256MiB" or "1GiB"`, "%s",
			err.Error())
	}
	return int64(size), err == nil
}
