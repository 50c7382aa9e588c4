package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"ptthqd/pkg/wire"
)

// Kind says what a [Listen] is made of.
type Kind string

// The kinds of listeners.
const (
	TCP     Kind = "tcp"
	UDP     Kind = "udp"
	Unix    Kind = "unix"    // a socket file in the runtime directory
	Systemd Kind = "systemd" // a socket that systemd hands over, by the name in FileDescriptorName=
)

// Listen is where something listens, in canonical form: equal values are the same place.
type Listen struct {
	Kind Kind   `json:"kind"`
	Addr string `json:"addr"` // "localhost:2200", "[::]:30380"; of Unix and Systemd the name
}

// String returns the canonical text, which is parsed to the same value: "localhost:2200", the
// loopback of both families, for a mapping's "2200".
func (l Listen) String() string {
	switch l.Kind {
	case Unix, Systemd:
		return string(l.Kind) + ":" + l.Addr
	case TCP, UDP:
	}
	return l.Addr
}

// IsZero reports whether l is the zero value: nothing listens.
func (l Listen) IsZero() bool { return l == Listen{} }

// Addrs returns the addresses to bind. Unix and Systemd have none; "localhost:PORT" has the
// loopback of IPv4 and of IPv6, of which a host may lack one; others have one. "::" means both
// families.
func (l Listen) Addrs() []netip.AddrPort {
	if l.Kind != TCP && l.Kind != UDP {
		return nil
	}
	if port, ok := strings.CutPrefix(l.Addr, "localhost:"); ok {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil
		}
		return []netip.AddrPort{
			netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(n)),
			netip.AddrPortFrom(netip.IPv6Loopback(), uint16(n)),
		}
	}
	addr, err := netip.ParseAddrPort(l.Addr)
	if err != nil {
		return nil
	}
	return []netip.AddrPort{addr}
}

// Loopback reports whether only processes of this host can connect. Unix and Systemd count as such:
// of a socket that systemd hands over the administrator decides.
func (l Listen) Loopback() bool {
	for _, addr := range l.Addrs() {
		if !addr.Addr().IsLoopback() {
			return false
		}
	}
	return true
}

// Overlaps reports whether l and other can't be bound at the same time.
func (l Listen) Overlaps(other Listen) bool {
	if l == other {
		return true
	}
	if l.Kind != other.Kind || l.port() != other.port() {
		return false
	}
	for _, a := range l.Addrs() {
		for _, b := range other.Addrs() {
			if a.Addr() == b.Addr() || covers(a.Addr(), b.Addr()) || covers(b.Addr(), a.Addr()) {
				return true
			}
		}
	}
	return false
}

// port returns the port as text; for Unix and Systemd the name.
func (l Listen) port() string { return l.Addr[strings.LastIndexByte(l.Addr, ':')+1:] }

// covers reports whether a is an unspecified address that includes b. "::" is bound for both
// families.
func covers(a, b netip.Addr) bool {
	return a.IsUnspecified() && (a.Is6() || b.Is4())
}

// parseListen reads the listen key of a relay (UDP), of a mapping or of metrics (TCP). hint says
// what to write instead of a wrong one.
func parseListen(kind Kind, text string) (l Listen, hint string, err error) {
	if name, ok := strings.CutPrefix(text, "systemd:"); ok {
		return parseSystemd(name)
	}
	if name, ok := strings.CutPrefix(text, "unix:"); ok {
		return parseUnix(kind, name)
	}
	host, port, ok := "", text, false
	if i := strings.LastIndexByte(text, ':'); i >= 0 {
		host, port, ok = text[:i], text[i+1:], true
	}
	example, usual := `for example "127.0.0.1:2200"`, uint16(2200)
	if kind == UDP {
		example, usual = `for example "[::]:30380"`, wire.DefaultPort
	}
	if ip, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil &&
		!strings.Contains(text, "]:") {
		return Listen{}, fmt.Sprintf("add one: %q",
			netip.AddrPortFrom(ip, usual)), errors.New("has no port")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	switch {
	case err != nil:
		return Listen{}, example, fmt.Errorf("%q is not an address with a port", text)
	case n == 0:
		return Listen{}, "a port is a number from 1 to 65535",
			errors.New("nobody could know which port 0 became")
	}
	switch {
	case kind == UDP && host == "":
		host = "[::]" // a relay is there to be reached
	case !ok, strings.EqualFold(host, "localhost"):
		return Listen{kind, fmt.Sprintf("localhost:%d", n)}, "", nil
	case host == "", host == "*":
		return Listen{}, fmt.Sprintf(`write "%d" for this host alone, "[::]:%d" for every address`,
				n, n),
			fmt.Errorf("%q does not say on which address", text)
	}
	inner := host
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		inner = host[1 : len(host)-1]
	} else if strings.Contains(host, ":") {
		return Listen{}, fmt.Sprintf(`write "[%s]:%d"`, host, n),
			fmt.Errorf("%q: an IPv6 address stands in brackets", text)
	}
	ip, err := netip.ParseAddr(inner)
	if err != nil {
		return Listen{}, "an address of this host is needed, " +
			example, fmt.Errorf("%q is not an IP address", host)
	}
	if ip.IsMulticast() {
		return Listen{}, example, fmt.Errorf("%q is a multicast address", host)
	}
	return Listen{kind, netip.AddrPortFrom(ip.Unmap(), uint16(n)).String()}, "", nil
}

// parseSystemd checks a name as in systemd.socket(5): at most 255 printable ASCII characters, no
// ":".
func parseSystemd(name string) (Listen, string, error) {
	bad := strings.ContainsFunc(name,
		func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ':' })
	if name == "" || len(name) > 255 || bad {
		return Listen{}, `the name is that of FileDescriptorName= in the socket unit, ` +
				`for example "systemd:quic"`,
			errors.New("not a name that systemd gives a socket")
	}
	return Listen{Systemd, name}, "", nil
}

// parseUnix checks the name of a socket file. It must be a name in the runtime directory, not a
// path: the daemon removes a stale file of that name, and must not remove another program's file.
func parseUnix(kind Kind, name string) (Listen, string, error) {
	switch {
	case kind == UDP:
		return Listen{}, `for example "[::]:30380"`,
			errors.New("a relay listens on UDP, not on a Unix socket")
	case strings.Contains(name, "/"):
		return Listen{}, fmt.Sprintf(`write "unix:%s"`, name[strings.LastIndexByte(name, '/')+1:]),
			errors.New("a Unix socket is named without a path: it is made in the runtime directory")
	case name == "control.sock":
		return Listen{}, "choose another name", errors.New("control.sock is the daemon's own")
	case !isFileName(name):
		return Listen{}, `for example "unix:db.sock"`,
			errors.New("the name of a Unix socket has 1 to 64 letters, digits, '.', '_' and '-'")
	}
	return Listen{Unix, name}, "", nil
}

// isFileName reports whether s can be the name of a socket file. A leading dot is allowed, as psql
// looks for ".s.PGSQL.5432". 64 characters leave room for the directory in a socket path's 107
// bytes.
func isFileName(s string) bool {
	bad := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') &&
			!strings.ContainsRune("._-", r)
	}
	return strings.Trim(s, ".") != "" && len(s) <= 64 && !strings.ContainsFunc(s, bad)
}
