package policy

import "net/netip"

// ownAddress is what Special says of an address of the server's own host.
const ownAddress = "an address of the server itself"

// classes are the addresses that a network or a name doesn't mean unless it is said.
var classes = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("127.0.0.0/8"), "the server's loopback"},
	{netip.MustParsePrefix("::1/128"), "the server's loopback"},
	{netip.MustParsePrefix("0.0.0.0/32"), "the server's loopback"}, // that is where dialling it ends
	{netip.MustParsePrefix("::/128"), "the server's loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "a link-local address"}, // where clouds hand out credentials, too
	{netip.MustParsePrefix("fe80::/10"), "a link-local address"},
	{netip.MustParsePrefix("224.0.0.0/4"), "a multicast address"},
	{netip.MustParsePrefix("ff00::/8"), "a multicast address"},
	{netip.MustParsePrefix("255.255.255.255/32"), "the broadcast address"},
}

// class returns which of the classes an address belongs to, if any.
func class(addr netip.Addr) (what string, of netip.Prefix) {
	addr = addr.Unmap().WithZone("")
	for _, c := range classes {
		if c.prefix.Contains(addr) {
			return c.what, c.prefix
		}
	}
	return "", netip.Prefix{}
}

// Special tells what is special about an address, in a few words, or nothing: what a firewall in front of the host keeps
// others away from (its loopback, its own addresses, which own knows), and what is the host's link alone. Such addresses
// must be named by who offers them; a network or a name in the DNS isn't enough.
func Special(addr netip.Addr, own func(netip.Addr) bool) string {
	if what, _ := class(addr); what != "" {
		return what
	}
	if own(addr.Unmap().WithZone("")) {
		return ownAddress
	}
	return ""
}
