package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ServiceTarget is what a service offers: one target, or a range of them of which the client names one.
//
//	22  db:5432  unix:/run/x.sock      one
//	5900-5910                          ports of the loopback
//	db:5432-5439                       ports of a host
//	192.168.1.0/24:22-23               ports of all addresses of a network; [fd00::/64]:22
//
// ServiceTargets are comparable.
type ServiceTarget struct {
	first  Target       // the only one, or the one with the lowest port; zero where there is a network
	prefix netip.Prefix // valid where there is a network, of two addresses or more
	low    uint16       // the ports; 0 for a Unix socket
	high   uint16
}

// ParseServiceTarget parses any spelling.
func ParseServiceTarget(s string) (ServiceTarget, error) {
	if err := checkText(s); err != nil {
		return ServiceTarget{}, err
	}
	if strings.HasPrefix(s, "unix:") {
		t, err := ParseTarget(s)
		return ServiceTarget{first: t}, err
	}
	if !strings.Contains(s, ":") && !isNumber(strings.Replace(s, "-", "", 1)) {
		return ServiceTarget{}, fault("write a port, host:port, unix:/path or NETWORK/BITS:PORT-PORT", "%q is no target of a service", s)
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

// parseNetwork parses what stands before the port: 192.168.1.0/24 or [fd00::/64].
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
		return ServiceTarget{}, fault(fmt.Sprintf("write %v for the network", masked), "%v has bits beyond its prefix", prefix)
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

// Single returns the target, if it is one and no range.
func (t ServiceTarget) Single() (Target, bool) {
	return t.first, !t.prefix.IsValid() && t.low == t.high
}

// Everywhere tells whether the target is all addresses of a family.
func (t ServiceTarget) Everywhere() bool { return t.prefix.IsValid() && t.prefix.Bits() == 0 }

// Covers tells whether asked is the target, or one of the range. A network covers special addresses (see [Special]) only
// where it is itself a part of them: who offers 0.0.0.0/0 offers what lies around the host, not what listens on its
// loopback in the belief that it is safe there, nor the cloud's 169.254.169.254.
func (t ServiceTarget) Covers(asked Target) bool { return t.contains(asked) && t.excludes(asked) == "" }

// contains is Covers without a look at what the address is.
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

// excludes tells why a network that contains a target doesn't cover it.
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

// networkAddr is the address by which a network is asked for a target; that of the loopback is the IPv4 one.
func (t Target) networkAddr() netip.Addr {
	if t.kind == loopback {
		return loopback4
	}
	return t.addr
}

func (t ServiceTarget) hasPort(p uint16) bool { return t.low <= p && p <= t.high }

// Service is one entry of a server's [[services]].
type Service struct {
	Name    string // may be empty; a client may ask for it instead of the target, if that is a single one
	Target  ServiceTarget
	Clients []Pattern // who may reach it; nobody if empty
	Source  Source

	// AllowLocal lets a network contain the host's own addresses, and a host's name mean this host or its link.
	AllowLocal bool
}

// Guarded tells whether the service must not lead to special addresses (see [Special]) that nobody has named: where its
// target is a network or a host's name, and it has no AllowLocal. The decision is made once more when a target is dialled,
// since only then it is known what a name means.
func (s *Service) Guarded() bool {
	network := s.Target.prefix.IsValid() && !s.Target.prefix.Addr().IsLoopback()
	return !s.AllowLocal && (network || s.Target.first.IsHostName())
}

// Bars tells why the service doesn't offer a target, although its range contains it; empty if it does. A network doesn't
// offer the addresses of the server's own host, which own knows, unless the service has AllowLocal.
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

// String returns the name, or the target if there is none.
func (s Service) String() string {
	if s.Name != "" {
		return s.Name
	}
	return s.Target.String()
}

// Services are all that a server decides by. Its methods may be called from several goroutines; what they return is
// shared and must not be changed.
type Services struct {
	all []Service
}

// NewServices makes Services of a list, which it copies. It refuses a name that is none, or that two services have, with
// an [*Error].
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
			return nil, &Error{Source: s.Source, Key: "name", Message: fmt.Sprintf("two services have the name %s", s.Name), Hint: also(other)}
		}
		named[s.Name] = s.Source
	}
	return &Services{all}, nil
}

// CheckServiceName tells what is wrong with a service's name. It has 1 to 63 letters, digits and . _ -, one letter at
// least, and begins with a letter or digit, so that it cannot be taken for any other target.
func CheckServiceName(s string) error {
	t, err := ParseTarget(s)
	if err == nil && !t.IsName() {
		err = fault("give it a letter, and no : or /", "%q is a target, not a name", s)
	}
	return err
}

// All returns the services in the config's order.
func (s *Services) All() []Service { return s.all }

// Resolve decides whether a client may reach a target, and says what to dial for it: the target itself, or what the
// service with that name offers. Without permission the target is zero. Own tells which addresses are those of the
// server's host.
func (s *Services) Resolve(client string, asked Target, own func(netip.Addr) bool) (dial Target, d Decision) {
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
	if !single { // which one of the range would that be?
		d.Allowed, d.Guarded = false, false
		d.Reason = fmt.Sprintf("%s is a range: the client must ask for one target in %v", service, service.Target)
		return Target{}, d
	}
	return target, d
}

// decide says whether a client may reach the service.
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
