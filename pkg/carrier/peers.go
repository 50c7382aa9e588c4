package carrier

import (
	"maps"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// peers is a table by remote address. Each packet is looked up in it, and it hardly ever changes. A
// look-up in an empty table, as on all good paths, costs one load.
type peers[T any] struct {
	table atomic.Pointer[map[netip.AddrPort]*T]
	mu    sync.Mutex // guards changes
}

// any reports whether the table has an entry.
func (p *peers[T]) any() bool {
	table := p.table.Load()
	return table != nil && len(*table) > 0
}

// at returns the entry of an address, or nil.
func (p *peers[T]) at(addr net.Addr) *T {
	table := p.table.Load()
	if table == nil {
		return nil
	}
	return (*table)[AddrPort(addr)]
}

// put sets the entry of an address. It reports false, and changes nothing, if the table would have
// more than most entries.
func (p *peers[T]) put(at netip.AddrPort, value *T, most int) bool {
	return p.change(func(table map[netip.AddrPort]*T) bool {
		table[at] = value
		return len(table) <= most
	})
}

// remove deletes the entry of an address if it is value: another link may have replaced it.
func (p *peers[T]) remove(at netip.AddrPort, value *T) {
	p.change(func(table map[netip.AddrPort]*T) bool {
		if table[at] != value {
			return false
		}
		delete(table, at)
		return true
	})
}

// change lets f change a copy of the table, and puts the copy in its place if f returns true. It
// returns what f returned.
func (p *peers[T]) change(f func(map[netip.AddrPort]*T) bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed := make(map[netip.AddrPort]*T)
	if table := p.table.Load(); table != nil {
		maps.Copy(changed, *table)
	}
	if !f(changed) {
		return false
	}
	if len(changed) == 0 {
		p.table.Store(nil)
	} else {
		p.table.Store(&changed)
	}
	return true
}
