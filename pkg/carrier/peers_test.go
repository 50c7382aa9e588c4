package carrier

import (
	"net"
	"net/netip"
	"testing"
)

func TestPeersTable(t *testing.T) {
	var table peers[int]
	one, two := new(int), new(int)
	a, b := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("[2001:db8::1]:2")
	at := func(ap netip.AddrPort) *int { return table.at(net.UDPAddrFromAddrPort(ap)) }
	if !table.put(a, one, 1) || table.put(b, two, 1) || at(a) != one || at(b) != nil {
		t.Error("the bound is not kept")
	}
	if !table.put(a, two, 1) || at(a) != two {
		t.Error("a newer value does not replace the older one")
	}
	table.remove(a, one)
	if at(a) != two {
		t.Error("the older value's owner has removed the newer one")
	}
	table.remove(a, two)
	if at(a) != nil || table.table.Load() != nil {
		t.Error("the table is not empty")
	}
}
