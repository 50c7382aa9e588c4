package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"ptthqd/pkg/policy"
	"ptthqd/pkg/wire"
)

func (p *parser) relay(s *section) {
	r := Relay{Source: policy.Source{File: s.file, Line: s.at.Value.Line}}
	if text, at, ok := s.required("address"); ok {
		address, hint, err := parseAddress(text)
		if err != nil {
			p.add(at, hint, "%s", err.Error())
		} else if p.once(at, "relay", address) {
			r.Address = address
		}
	}
	for _, k := range p.publicKeys(s) {
		r.Keys = append(r.Keys, k.key)
		p.own(k.at, fmt.Sprintf("relay %q", r.Address), k.key,
			"a relay keeps one link of each node, so list each relay once; "+
				"each has a key of its own")
	}
	p.config.Relays = append(p.config.Relays, r)
}

// parseAddress reads the address of a relay: a host name or an IP address, and a port unless it is
// the default one. hint says what to write instead of a wrong one.
func parseAddress(text string) (address, hint string, err error) {
	const example = `for example "relay.example.com:30380"`
	host, port := text, strconv.Itoa(wire.DefaultPort)
	switch ip, err := netip.ParseAddr(text); {
	case err == nil:
		host = ip.String()
	case strings.HasSuffix(text, "]"):
	case strings.Contains(text, "://"):
		return "", example, errors.New("is a URL, not a host and a port")
	case strings.Contains(text, ":"):
		i := strings.LastIndexByte(text, ':')
		host, port = text[:i], text[i+1:]
		if strings.Contains(host, ":") && !strings.HasPrefix(host, "[") {
			return "", `an IPv6 address stands in brackets, for example "[2001:db8::1]:30380"`,
				fmt.Errorf("%q is not a host and a port", text)
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", "a port is a number from 1 to 65535, " + example,
			fmt.Errorf("%q is not a port", port)
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		host = strings.TrimSuffix(inner, "]")
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.IsUnspecified() || ip.IsMulticast() {
			return "", example, fmt.Errorf("%v is not the address of a host", ip)
		}
		return netip.AddrPortFrom(ip.Unmap(), uint16(n)).String(), "", nil
	}
	if !isHostName(host) {
		return "", example, fmt.Errorf("%q is neither a host name nor an IP address", host)
	}
	return fmt.Sprintf("%s:%d", strings.ToLower(host), n), "", nil
}

// isHostName reports whether name has labels as in RFC 1123 section 2.1. Underscores, which that
// forbids, are allowed: people use them.
func isHostName(name string) bool {
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > 253 {
		return false
	}
	numeric := true
	for label := range strings.SplitSeq(name, ".") {
		bad := func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') &&
				r != '-' && r != '_'
		}
		if label == "" || len(label) > 63 || strings.Trim(label, "-") != label ||
			strings.ContainsFunc(label, bad) {
			return false
		}
		_, err := strconv.ParseUint(label, 10, 64)
		numeric = numeric && err == nil
	}
	return !numeric // "10.0.0.300" is a mistyped address
}
