package config

import (
	"fmt"
	"strings"

	"ptthqd/pkg/wire"
)

func (p *parser) relayListen(top *section) []Listen {
	items, ok := top.texts("listen")
	if !ok {
		return []Listen{{UDP, fmt.Sprintf("[::]:%d", wire.DefaultPort)}}
	}
	if list, ok := top.values["listen"].([]any); ok && len(list) == 0 {
		p.add(top.location("listen"), "write "+keysByName["listen"].Example,
			"a relay must listen somewhere")
	}
	var list []Listen
	for _, it := range items {
		if l, ok := p.listen(it.at, UDP, it.text, "the relay's listener"); ok {
			list = append(list, l)
		}
	}
	return list
}

// listen reads the address of a listener, and reports one that overlaps an earlier listener. by
// names the listener in errors.
func (p *parser) listen(at location, kind Kind, text, by string) (Listen, bool) {
	l, hint, err := parseListen(kind, text)
	if err != nil {
		p.add(at, hint, "%s", err.Error())
		return l, false
	}
	if other, taken := p.bound.First(l); taken {
		p.add(at, "two listeners cannot have the same address",
			"%v collides with %s at %v", l, other.by, other.at.source())
		return l, false
	}
	p.bound.Add(l, use{by, at})
	return l, true
}

func (p *parser) metrics(s *section) Metrics {
	m := Metrics{AllowPublic: s.flag("allow_public", false), Hosts: p.hosts(s)}
	text, at, ok := s.required("listen")
	if !ok {
		return m
	}
	l, ok := p.listen(at, TCP, text, "the metrics' listener")
	switch {
	case !ok:
	case l.Kind != TCP:
		p.add(at, `for example "127.0.0.1:9380"`, "metrics are served over TCP")
	case !l.Loopback() && !m.AllowPublic:
		p.add(at, "listen on 127.0.0.1, or write allow_public = true",
			"%v can be reached by other hosts, and metrics have no authentication", l)
	default:
		m.Listen = l
	}
	return m
}

// hosts reads the names by which an HTTP client may ask for metrics.
func (p *parser) hosts(s *section) (names []string) {
	bad := func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(":/*", r) }
	items, _ := s.texts("hosts")
	for _, item := range items {
		if item.text == "" || strings.ContainsFunc(item.text, bad) {
			p.add(item.at, `a name alone, for example "nas.example.com"`, "%q is no host name",
				item.text)
			continue
		}
		names = append(names, strings.ToLower(strings.TrimSuffix(item.text, ".")))
	}
	return names
}
