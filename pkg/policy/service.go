package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ServiceTarget is what a service offers: one target, or a range from which the client names one.
//
//	22  db:5432  unix:/run/x.sock      one
//	5900-5910                          ports of the loopback
//	db:5432-5439                       ports of a host
//	192.168.1.0/24:22-23               ports of all addresses of a network; [fd00::/64]:22
//
// ServiceTargets are comparable.
type ServiceTarget struct {
	first  Target       // the only target, or the one with the lowest port; zero for a network
	prefix netip.Prefix // valid for a network, which has two addresses or more
	low    uint16       // the ports; 0 for a Unix socket
	high   uint16
}

// ParseServiceTarget parses any spelling of a service's target.
func ParseServiceTarget(s string) (ServiceTarget, error) {
	if err := checkText(s); err != nil {
		return ServiceTarget{}, err
	}
	if strings.HasPrefix(s, "unix:") {
		t, err := ParseTarget(s)
		return ServiceTarget{first: t}, err
	}
	if !strings.Contains(s, ":") && !isNumber(strings.Replace(s, "-", "", 1)) {
		return ServiceTarget{}, fault("write a port, host:port, unix:/path or NETWORK/BITS:PORT-PORT",
			"%q is no target of a service", s)
	}
	head, ports := "", s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		head, ports = s[:i], s[i+1:]
	}
	low, high, err := parsePorts(ports)
	if err != nil {
		return ServiceTarget{}, err
	}
	if strings.Contains(head, "/") {
		return parseNetwork(head, low, high)
	}
	t, err := ParseTarget(head + ":" + strconv.Itoa(int(low)))
	return ServiceTarget{first: t, low: low, high: high}, err
}

// parsePorts parses PORT or PORT-PORT.
func parsePorts(s string) (low, high uint16, err error) {
	first, last, isRange := strings.Cut(s, "-")
	if low, err = parsePort(first); err != nil || !isRange {
		return low, low, err
	}
	if high, err = parsePort(last); err != nil {
		return 0, 0, err
	}
	if low > high {
		return 0, 0, fault(fmt.Sprintf("write %d-%d", high, low), "the ports %s run backwards", s)
	}
	return low, high, nil
}

// parseNetwork parses the part before the port: 192.168.1.0/24 or [fd00::/64].
func parseNetwork(s string, low, high uint16) (ServiceTarget, error) {
	inner, bracketed := strings.CutPrefix(s, "[")
	if bracketed {
		inner, bracketed = strings.CutSuffix(inner, "]")
	}
	prefix, err := netip.ParsePrefix(inner)
	if err != nil || bracketed != prefix.Addr().Is6() || prefix.Addr().Is4In6() {
		return ServiceTarget{}, fault("write 192.168.1.0/24:22 or [fd00::/64]:22", "%q is no network", s)
	}
	if masked := prefix.Masked(); masked != prefix {
		return ServiceTarget{}, fault(fmt.Sprintf("write %v for the network", masked),
			"%v has bits beyond its prefix", prefix)
	}
	if prefix.IsSingleIP() {
		t, err := hostAt(prefix.Addr())
		t.port = low
		return ServiceTarget{first: t, low: low, high: high}, err
	}
	return ServiceTarget{prefix: prefix, low: low, high: high}, nil
}

// String returns the canonical text.
func (t ServiceTarget) String() string {
	if t.first.kind == unix {
		return t.first.String()
	}
	head := t.first.hostText()
	if t.prefix.IsValid() {
		head = t.prefix.String()
		if t.prefix.Addr().Is6() {
			head = "[" + head + "]"
		}
	}
	text := head + ":" + strconv.Itoa(int(t.low))
	if t.high > t.low {
		text += "-" + strconv.Itoa(int(t.high))
	}
	return text
}

// Single returns the target, and whether it is a single one and no range.
func (t ServiceTarget) Single() (Target, bool) {
	return t.first, !t.prefix.IsValid() && t.low == t.high
}

// Everywhere reports whether the target is all addresses of a family.
func (t ServiceTarget) Everywhere() bool { return t.prefix.IsValid() && t.prefix.Bits() == 0 }

// Covers reports whether asked is the target, or one of the range. A network covers a special
// address (see [Special]) only if it lies within that class of addresses: 0.0.0.0/0 offers what
// lies around the host, but not what listens on the host's loopback, nor the cloud's
// 169.254.169.254.
func (t ServiceTarget) Covers(asked Target) bool {
	return t.contains(asked) && t.excludes(asked) == ""
}

// contains is Covers for any address, special ones too.
func (t ServiceTarget) contains(asked Target) bool {
	if t.prefix.IsValid() {
		addr := asked.networkAddr()
		return addr.IsValid() && t.prefix.Contains(addr) && t.hasPort(asked.port)
	}
	if !t.hasPort(asked.port) {
		return false
	}
	asked.port = t.first.port
	return asked == t.first
}

// excludes returns why a network that contains a target does not cover it; empty if it does.
func (t ServiceTarget) excludes(asked Target) string {
	if !t.prefix.IsValid() {
		return ""
	}
	what, of := class(asked.networkAddr())
	if what == "" || of.Contains(t.prefix.Addr()) && of.Bits() <= t.prefix.Bits() {
		return ""
	}
	return what
}

// networkAddr returns the address that a network must contain to offer the target. For the loopback
// it is 127.0.0.1.
func (t Target) networkAddr() netip.Addr {
	if t.kind == loopback {
		return loopback4
	}
	return t.addr
}

func (t ServiceTarget) hasPort(p uint16) bool { return t.low <= p && p <= t.high }

// Service is one entry of a server's [[services]].
type Service struct {
	Name    string // may be empty; a client may ask for it instead of a single target
	Target  ServiceTarget
	Clients []Pattern // the clients that may reach it
	Source  Source

	// AllowLocal lets a network contain the host's own addresses, and a host name mean this host or
	// an address of its link.
	AllowLocal bool
}

// Guarded reports whether the service must not lead to special addresses (see [Special]): its
// target is a network or a host name, and AllowLocal is not set. The dialer checks again, since the
// address of a name is known only then.
func (s *Service) Guarded() bool {
	network := s.Target.prefix.IsValid() && !s.Target.prefix.Addr().IsLoopback()
	return !s.AllowLocal && (network || s.Target.first.IsHostName())
}

// Bars returns why the service does not offer a target that its range contains; empty if it does. A
// network does not offer addresses of the server's own host, for which own reports true, unless
// AllowLocal is set.
func (s *Service) Bars(asked Target, own func(netip.Addr) bool) string {
	what := s.Target.excludes(asked)
	if what == "" && s.Guarded() && asked.addr.IsValid() && own(asked.addr) {
		what = ownAddress
	}
	if what == "" {
		return ""
	}
	hint := "name it as a target of its own"
	if what == ownAddress {
		hint += ", or write allow_local = true"
	}
	return fmt.Sprintf("%v does not cover %v, %s: %s", s.Target, asked, what, hint)
}

// String returns the name, or the target of a service without a name.
func (s Service) String() string {
	if s.Name != "" {
		return s.Name
	}
	return s.Target.String()
}

// Services are the rules by which a server decides. What its methods return is shared and must not
// be changed.
type Services struct {
	all []Service
}

// NewServices makes Services of a list, which it copies. Its error is an [*Error]: a name is not
// valid, or two services have it.
func NewServices(services []Service) (*Services, error) {
	named := make(map[string]Source, len(services))
	all := slices.Clone(services)
	for i := range all {
		s := &all[i]
		s.Clients = slices.Clone(s.Clients)
		if s.Name == "" {
			continue
		}
		if err := CheckServiceName(s.Name); err != nil {
			return nil, &Error{Source: s.Source, Key: "name", Message: err.Error()}
		}
		if other, ok := named[s.Name]; ok {
			return nil, &Error{
				Source: s.Source, Key: "name", Hint: also(other),
				Message: fmt.Sprintf("two services have the name %s", s.Name),
			}
		}
		named[s.Name] = s.Source
	}
	return &Services{all}, nil
}

// CheckServiceName returns an error if a service's name is not valid. A name has 1 to 63 letters,
// digits and . _ -, at least one letter, and begins with a letter or digit: it looks like no other
// target.
func CheckServiceName(s string) error {
	t, err := ParseTarget(s)
	if err == nil && !t.IsName() {
		err = fault("give it a letter, and no : or /", "%q is a target, not a name", s)
	}
	return err
}

// All returns the services in the config's order.
func (s *Services) All() []Service { return s.all }

// Resolve decides whether a client may reach a target, and returns what to dial for it: the target
// itself, or the one that the service with that name offers; zero if the client may not. own
// reports whether an address is one of the server's host.
func (s *Services) Resolve(
	client string, asked Target, own func(netip.Addr) bool,
) (dial Target, d Decision) {
	if asked.IsName() {
		return s.resolveName(client, asked)
	}
	d = Decision{Reason: "no service covers " + asked.String()}
	for i := range s.all {
		service := &s.all[i]
		if !service.Target.contains(asked) {
			continue
		}
		decision := service.decide(client)
		if decision.Allowed {
			why := service.Bars(asked, own)
			if why == "" {
				return asked, decision
			}
			decision.Allowed, decision.Reason, decision.Guarded = false, why, false
		}
		if d.Rule == "" {
			d = decision
		}
	}
	return Target{}, d
}

func (s *Services) resolveName(client string, asked Target) (dial Target, d Decision) {
	i := slices.IndexFunc(s.all, func(s Service) bool { return s.Name == asked.text })
	if i < 0 {
		return Target{}, Decision{Reason: "no service has the name " + asked.text}
	}
	service := &s.all[i]
	d = service.decide(client)
	if !d.Allowed {
		return Target{}, d
	}
	target, single := service.Target.Single()
	if !single { // the name does not say which one of the range
		d.Allowed, d.Guarded = false, false
		d.Reason = fmt.Sprintf("%s is a range: the client must ask for one target in %v",
			service, service.Target)
		return Target{}, d
	}
	return target, d
}

// decide decides whether a client may reach the service.
func (s *Service) decide(client string) Decision {
	d := Decision{Rule: s.String(), Source: s.Source}
	d.Allowed = slices.ContainsFunc(s.Clients, func(p Pattern) bool { return p.Match(client) })
	if d.Allowed {
		d.Reason, d.Guarded = client+" may reach "+d.Rule, s.Guarded()
	} else {
		d.Reason = fmt.Sprintf("the clients of %s do not include %s", d.Rule, client)
	}
	return d
}
