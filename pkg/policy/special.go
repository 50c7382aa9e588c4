package policy

import "net/netip"

// ownAddress is what Special returns for an address of the server's own host.
const ownAddress = "an address of the server itself"

// classes are the special addresses. A network or a host name does not mean them unless the config
// says so.
var classes = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("127.0.0.0/8"), "the server's loopback"},
	{netip.MustParsePrefix("::1/128"), "the server's loopback"},
	{netip.MustParsePrefix("0.0.0.0/32"), "the server's loopback"}, // a dial of it ends there
	{netip.MustParsePrefix("::/128"), "the server's loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "a link-local address"}, // clouds hand out credentials here
	{netip.MustParsePrefix("fe80::/10"), "a link-local address"},
	{netip.MustParsePrefix("224.0.0.0/4"), "a multicast address"},
	{netip.MustParsePrefix("ff00::/8"), "a multicast address"},
	{netip.MustParsePrefix("255.255.255.255/32"), "the broadcast address"},
}

// class returns the class of an address, and the prefix of the class; empty if it has none.
func class(addr netip.Addr) (what string, of netip.Prefix) {
	addr = addr.Unmap().WithZone("")
	for _, c := range classes {
		if c.prefix.Contains(addr) {
			return c.what, c.prefix
		}
	}
	return "", netip.Prefix{}
}

// Special returns what is special about an address, in a few words, or "". Special are addresses
// from which a firewall in front of the host keeps others away: its loopback, its own addresses,
// for which own reports true, and those of its link. The config must name such an address to offer
// it; a network or a name in the DNS is not enough.
func Special(addr netip.Addr, own func(netip.Addr) bool) string {
	if what, _ := class(addr); what != "" {
		return what
	}
	if own(addr.Unmap().WithZone("")) {
		return ownAddress
	}
	return ""
}
