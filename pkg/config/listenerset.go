package config

import (
	"net/netip"
	"slices"
)

// ListenerSet holds listeners, each with a value, and finds those that overlap a given one. It does
// not look at every listener: a client may have thousands, all on one port. The zero value is
// empty. Calls of Add must not overlap other calls.
type ListenerSet[T any] struct {
	values []T
	named  map[Listen][]int // Unix and Systemd, which have no address
	ports  map[portKey]*port
}

type portKey struct {
	kind Kind
	port uint16
}

// port holds the listeners of one port, as ascending indexes of values.
type port struct {
	at      map[netip.Addr][]int
	v4, all []int
}

// Add adds a listener.
func (p *ListenerSet[T]) Add(l Listen, value T) {
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

// First returns the value of the listener that was added first among those that overlap l, as
// [Listen.Overlaps] has it.
func (p *ListenerSet[T]) First(l Listen) (value T, found bool) {
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

// All returns the values of all listeners that overlap l, in the order in which they were added.
func (p *ListenerSet[T]) All(l Listen) []T {
	found := slices.Concat(p.overlapping(l)...)
	slices.Sort(found)
	var values []T
	for _, i := range slices.Compact(found) {
		values = append(values, p.values[i])
	}
	return values
}

// overlapping returns lists that together hold all listeners that overlap l, some more than once.
func (p *ListenerSet[T]) overlapping(l Listen) [][]int {
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
			lists = append(lists, bound.at[ip],
				bound.at[netip.IPv4Unspecified()], bound.at[netip.IPv6Unspecified()])
		default:
			lists = append(lists, bound.at[ip], bound.at[netip.IPv6Unspecified()])
		}
	}
	return lists
}
