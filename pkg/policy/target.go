package policy

import (
	"net/netip"
	"path"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxPath  = 107 // bytes; what a sockaddr_un of Linux holds, without the final NUL
	maxHost  = 253 // characters without the final dot (RFC 1035, section 2.3.4)
	maxLabel = 63  // characters (RFC 1035, section 2.3.4)
	maxName  = 63  // characters, as of peer IDs
)

// Target is what a client asks a server for. There are four kinds, each with one canonical text:
//
//	:22                    a port of the server's own loopback, also spelt 22, localhost:22,
//	                       127.0.0.1:22, [::1]:22
//	db.example.com:5432    a port of another host; [fd00::1]:22, 192.168.1.20:5901
//	unix:/run/x.sock       a Unix socket of the server
//	ssh                    a service's name; the server's config says what it means
//
// Targets are comparable; the zero Target is none of these, and no parser returns it.
type Target struct {
	kind kind
	text string     // host, path or name
	addr netip.Addr // of a host that is an IP address
	port uint16
}

type kind uint8

const (
	_ kind = iota
	loopback
	host
	unix
	name
)

// ParseTarget parses any spelling of a target.
func ParseTarget(s string) (Target, error) {
	if err := checkText(s); err != nil {
		return Target{}, err
	}
	if p, ok := strings.CutPrefix(s, "unix:"); ok {
		return parseUnix(p)
	}
	switch {
	case strings.Contains(s, "/"):
		return Target{}, fault("a Unix socket is written unix:/path", "%q is no target", s)
	case !strings.Contains(s, ":") && !isNumber(s):
		return parseName(s)
	}
	h, p, err := splitHostPort(s)
	if err != nil {
		return Target{}, err
	}
	n, err := parsePort(p)
	if err != nil {
		return Target{}, err
	}
	t, err := parseHost(h)
	t.port = n
	return t, err
}

// String returns the canonical text, which [ParseTarget] parses to the same Target.
func (t Target) String() string {
	switch t.kind {
	case loopback, host:
		return t.hostText() + ":" + strconv.Itoa(int(t.port))
	case unix:
		return "unix:" + t.text
	default:
		return t.text
	}
}

// hostText returns the part before the port.
func (t Target) hostText() string {
	if t.addr.Is6() {
		return "[" + t.text + "]"
	}
	return t.text
}

// IsName reports whether the target is a service's name. Only the server with the service knows
// what the name means.
func (t Target) IsName() bool { return t.kind == name }

// IsHostName reports whether the target is a port of a host whose name must be resolved.
func (t Target) IsHostName() bool { return t.kind == host && !t.addr.IsValid() }

// Host returns the host's name or address; empty for a target on the server's own host.
func (t Target) Host() string {
	if t.kind != host {
		return ""
	}
	return t.text
}

// Network returns the network for net.Dial: "tcp", or "unix" for a Unix socket. It panics for a
// service's name, as [Target.Addresses] does: [Services.Resolve] returns what a name means.
func (t Target) Network() string {
	switch t.kind {
	case loopback, host:
		return "tcp"
	case unix:
		return "unix"
	default:
		panic("internal error: a service's name cannot be dialled")
	}
}

// Addresses returns the addresses for net.Dial, to be tried in this order until one answers. A port
// of the loopback has two, since a program may listen on one family only. They are numbers and not
// the name localhost, so DNS has no say in where such a connection ends. A host name is one
// address: the dialer resolves it.
func (t Target) Addresses() []string {
	switch t.kind {
	case loopback:
		port := strconv.Itoa(int(t.port))
		return []string{"127.0.0.1:" + port, "[::1]:" + port}
	case host:
		return []string{t.String()}
	case unix:
		return []string{t.text}
	default:
		panic("internal error: a service's name cannot be dialled")
	}
}

// checkText refuses a text with characters that no target has, and that would spoil a log line.
func checkText(s string) error {
	if s == "" {
		return fault("", "it is empty")
	}
	unfit := func(r rune) bool { return !unicode.IsPrint(r) || unicode.IsSpace(r) }
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unfit) {
		return fault("", "%q has a space or an unprintable character in it", s)
	}
	return nil
}

func parseUnix(p string) (Target, error) {
	if !strings.HasPrefix(p, "/") {
		return Target{}, fault("write the whole path, as in unix:/run/x.sock",
			"unix:%s is not absolute", p)
	}
	p = path.Clean(p)
	if len(p) > maxPath {
		return Target{}, fault("", "the path of a Unix socket has at most %d bytes, this one %d",
			maxPath, len(p))
	}
	return Target{kind: unix, text: p}, nil
}

// parseName parses a service's name.
func parseName(s string) (Target, error) {
	hint := "a target is a port, host:port, unix:/path or the name of a service"
	if addr, err := netip.ParseAddr(s); err == nil {
		return Target{}, fault("add one, as in "+s+":22", "%v has no port", addr)
	}
	if len(s) > maxName {
		return Target{}, fault("", "the name of a service has at most %d characters, this one %d",
			maxName, len(s))
	}
	letters := 0
	for i, c := range []byte(s) {
		switch {
		case isLetter(c):
			letters++
		case '0' <= c && c <= '9':
		case strings.IndexByte("._-", c) >= 0 && i > 0:
		default:
			return Target{}, fault(hint, "the name of a service has only letters, digits and . _ - in it, "+
				"and begins with a letter or digit: %q", s)
		}
	}
	if letters == 0 {
		return Target{}, fault(hint, "the name of a service has a letter in it: %q", s)
	}
	return Target{kind: name, text: s}, nil
}

// splitHostPort splits "port", ":port", "host:port" or "[host]:port".
func splitHostPort(s string) (host, port string, err error) {
	if isNumber(s) {
		return "", s, nil
	}
	i := strings.LastIndexByte(s, ':')
	host, port = s[:i], s[i+1:]
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		if !ok || !strings.Contains(inner, ":") {
			return "", "", fault("an IPv6 address with a port is written [fd00::1]:22", "%q is no target", s)
		}
		return inner, port, nil
	}
	if strings.ContainsAny(host, ":[]") {
		return "", "", fault("an IPv6 address with a port is written [fd00::1]:22", "%q is no target", s)
	}
	return host, port, nil
}

// parseHost parses a host without its port.
func parseHost(s string) (Target, error) {
	if s == "" {
		return Target{kind: loopback}, nil
	}
	if addr, err := netip.ParseAddr(s); err == nil {
		return hostAt(addr)
	}
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if s == "localhost" {
		return Target{kind: loopback}, nil
	}
	if s == "unix" { // its canonical text would be parsed as a socket
		return Target{}, fault("a Unix socket is written unix:/path; a host of this name, unix.DOMAIN",
			"no host can be called %q here", s)
	}
	if len(s) > maxHost {
		return Target{}, fault("", "the name of a host has at most %d characters, this one %d",
			maxHost, len(s))
	}
	var last string
	for last = range strings.SplitSeq(s, ".") {
		if !isLabel(last) {
			return Target{}, fault("a name that is not ASCII is written in its xn-- form",
				"%q is not the name of a host", s)
		}
	}
	// 127.1 and 0x7f.1 are addresses to some resolvers and names to others, so they are refused.
	if _, err := strconv.ParseUint(last, 0, 64); err == nil || isNumber(last) {
		return Target{}, fault("", "%q is neither an IP address nor the name of a host", s)
	}
	return Target{kind: host, text: s}, nil
}

// hostAt returns the target of an IP address, without a port. Unspecified addresses count as the
// loopback, since a dial of them ends there.
func hostAt(addr netip.Addr) (Target, error) {
	if addr.Zone() != "" {
		return Target{}, fault("", "%v has a zone, which a target cannot have", addr)
	}
	addr = addr.Unmap()
	if addr == loopback4 || addr == loopback6 || addr.IsUnspecified() {
		return Target{kind: loopback}, nil
	}
	return Target{kind: host, text: addr.String(), addr: addr}, nil
}

var (
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopback6 = netip.IPv6Loopback()
)

// isLabel reports whether s can stand between the dots of a host name. Host names have no
// underscores, but some DNS names do, and they do no harm.
func isLabel(s string) bool {
	if s == "" || len(s) > maxLabel || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if !isLetter(c) && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '0' {
		return 0, fault("", "%q is no port: a port is a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

// isNumber reports whether s consists of digits only.
func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
