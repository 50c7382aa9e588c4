package config

import (
	"net/netip"
	"slices"
)

// Places are listeners, each with a value, among which those are found that overlap another one, without a look at every
// one: a client may have thousands, all on one port. The zero value is empty. It may not be changed while it is read.
type Places[T any] struct {
	values []T
	named  map[Listen][]int // what has no address: Unix and Systemd
	ports  map[portKey]*port
}

type portKey struct {
	kind Kind
	port uint16
}

// port holds what is bound at one port, as indexes of values, ascending.
type port struct {
	at      map[netip.Addr][]int
	v4, all []int
}

// Add enters a listener.
func (p *Places[T]) Add(l Listen, value T) {
	i := len(p.values)
	p.values = append(p.values, value)
	addrs := l.Addrs()
	if len(addrs) == 0 {
		if p.named == nil {
			p.named = make(map[Listen][]int)
		}
		p.named[l] = append(p.named[l], i)
	}
	for _, addr := range addrs {
		key := portKey{l.Kind, addr.Port()}
		bound := p.ports[key]
		if bound == nil {
			bound = &port{at: make(map[netip.Addr][]int)}
			if p.ports == nil {
				p.ports = make(map[portKey]*port)
			}
			p.ports[key] = bound
		}
		ip := addr.Addr()
		bound.at[ip] = append(bound.at[ip], i)
		bound.all = append(bound.all, i)
		if ip.Is4() {
			bound.v4 = append(bound.v4, i)
		}
	}
}

// First returns the value of the one that was entered first of those that [Listen.Overlaps] the listener.
func (p *Places[T]) First(l Listen) (value T, found bool) {
	first := len(p.values)
	for _, list := range p.overlapping(l) {
		if len(list) > 0 {
			first = min(first, list[0])
		}
	}
	if first == len(p.values) {
		return value, false
	}
	return p.values[first], true
}

// All returns the values of all that overlap the listener, in the order in which they were entered.
func (p *Places[T]) All(l Listen) []T {
	found := slices.Concat(p.overlapping(l)...)
	slices.Sort(found)
	var values []T
	for _, i := range slices.Compact(found) {
		values = append(values, p.values[i])
	}
	return values
}

// overlapping returns lists that together hold what overlaps a listener, some of it more than once.
func (p *Places[T]) overlapping(l Listen) [][]int {
	addrs := l.Addrs()
	if len(addrs) == 0 {
		return [][]int{p.named[l]}
	}
	var lists [][]int
	for _, addr := range addrs {
		bound := p.ports[portKey{l.Kind, addr.Port()}]
		if bound == nil {
			continue
		}
		switch ip := addr.Addr(); {
		case ip == netip.IPv6Unspecified():
			lists = append(lists, bound.all)
		case ip == netip.IPv4Unspecified():
			lists = append(lists, bound.v4, bound.at[netip.IPv6Unspecified()])
		case ip.Is4():
			lists = append(lists, bound.at[ip], bound.at[netip.IPv4Unspecified()], bound.at[netip.IPv6Unspecified()])
		default:
			lists = append(lists, bound.at[ip], bound.at[netip.IPv6Unspecified()])
		}
	}
	return lists
}
