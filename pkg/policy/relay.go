package policy

import (
	"fmt"
	"slices"
	"strings"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/wire"
)

// Role says which end of a forwarded connection a peer of the relay is.
type Role string

// The roles of a relay's peers.
const (
	RoleClient Role = "client"
	RoleServer Role = "server"
)

// Rule is one entry of a client's allowed_servers.
type Rule struct {
	Server Pattern
	Target string // canonical text of the only target that the rule allows; empty: all targets
	Source Source
}

// ParseRule parses SERVER or SERVER:TARGET, such as "nas", "build-*", "db:5432", "nas:ssh" or
// "nas:192.168.1.20:5901". The caller sets the Source.
func ParseRule(s string) (Rule, error) {
	server, target, narrowed := strings.Cut(s, ":")
	pattern, err := ParsePattern(server)
	if err != nil {
		return Rule{}, err
	}
	if !narrowed {
		return Rule{Server: pattern}, nil
	}
	t, err := ParseTarget(target)
	if err != nil {
		return Rule{}, err
	}
	return Rule{Server: pattern, Target: t.String()}, nil
}

// String returns a text that [ParseRule] parses to the same rule.
func (r Rule) String() string {
	if r.Target == "" {
		return r.Server.String()
	}
	return r.Server.String() + ":" + strings.TrimPrefix(r.Target, ":")
}

// Peer is a node that the relay admits.
type Peer struct {
	ID      string
	Others  []string // further names that count as its own: the old ones, while it is being renamed
	Role    Role
	Keys    []ident.PublicKey // one; more while its key is being changed
	Allowed []Rule            // what a client may reach; empty for a server
	Source  Source
}

// Names returns the ID and the other names.
func (p *Peer) Names() []string { return append([]string{p.ID}, p.Others...) }

// Is reports whether name is one of the peer's names.
func (p *Peer) Is(name string) bool { return p.ID == name || slices.Contains(p.Others, name) }

// Relay has the peers and rules by which a relay decides. What its methods return is shared and
// must not be changed.
type Relay struct {
	peers []*Peer
	byID  map[string]*Peer // by each of their names
	byKey map[ident.PublicKey]*Peer
}

// NewRelay makes a Relay of the peers, which it copies. Its error is an [*Error]: two peers have
// the same name or key, or an ID, role or rule is not valid.
func NewRelay(peers []Peer) (*Relay, error) {
	r := &Relay{
		byID:  make(map[string]*Peer, len(peers)),
		byKey: make(map[ident.PublicKey]*Peer, len(peers)),
	}
	for _, peer := range peers {
		p := &peer
		p.Keys, p.Others = slices.Clone(p.Keys), slices.Clone(p.Others)
		p.Allowed = slices.Clone(p.Allowed)
		if err := r.add(p); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *Relay) add(p *Peer) error {
	if err := r.name(p); err != nil {
		return err
	}
	if p.Role != RoleClient && p.Role != RoleServer {
		return &Error{
			Source: p.Source, Key: "role", Hint: `write "client" or "server"`,
			Message: fmt.Sprintf("%q is no role of a peer", string(p.Role)),
		}
	}
	if p.Role != RoleClient && len(p.Allowed) > 0 {
		return &Error{
			Source: p.Source, Key: "allowed_servers", Hint: "give them to the client",
			Message: p.ID + " is a server, and reaches no other",
		}
	}
	if len(p.Keys) == 0 {
		return &Error{
			Source: p.Source, Key: "public_key", Hint: "`ptthqd pubkey` prints it there",
			Message: p.ID + " has no key",
		}
	}
	for _, key := range p.Keys {
		if other, ok := r.byKey[key]; ok {
			message := fmt.Sprintf("%s and %s have the same key", other.ID, p.ID)
			if other == p {
				message = p.ID + " has the same key twice"
			}
			return &Error{
				Source: p.Source, Key: "public_key", Hint: "each node has a key of its own",
				Message: message,
			}
		}
		r.byKey[key] = p
	}
	r.peers = append(r.peers, p)
	return nil
}

// name adds a peer under each of its names, which no other peer may have.
func (r *Relay) name(p *Peer) error {
	names := p.Names()
	if len(names) > wire.MaxNames {
		return &Error{
			Source: p.Source, Key: "id", Hint: fmt.Sprintf("%d are the most", wire.MaxNames),
			Message: fmt.Sprintf("%s has %d names", p.ID, len(names)),
		}
	}
	for _, name := range names {
		if err := wire.CheckID(name); err != nil {
			return &Error{Source: p.Source, Key: "id", Message: err.Error()}
		}
		switch other, ok := r.byID[name]; {
		case other == p:
			return &Error{Source: p.Source, Key: "id", Message: fmt.Sprintf("%s is named twice", name)}
		case ok:
			return &Error{
				Source: p.Source, Key: "id", Hint: also(other.Source),
				Message: "two peers have the ID " + name,
			}
		}
		r.byID[name] = p
	}
	return nil
}

// also returns a hint that names the place of the other of two that collide.
func also(s Source) string {
	if s == (Source{}) {
		return ""
	}
	return "the other one is at " + s.String()
}

// PeerByKey returns the peer that has a key.
func (r *Relay) PeerByKey(key ident.PublicKey) (Peer, bool) { return found(r.byKey[key]) }

// Peer returns the peer that has a name.
func (r *Relay) Peer(name string) (Peer, bool) { return found(r.byID[name]) }

func found(p *Peer) (Peer, bool) {
	if p == nil {
		return Peer{}, false
	}
	return *p, true
}

// Peers returns all peers in the config's order.
func (r *Relay) Peers() []Peer {
	peers := make([]Peer, len(r.peers))
	for i, p := range r.peers {
		peers[i] = *p
	}
	return peers
}

// Allow decides whether a client may reach a target of a server. The target is compared as text, so
// a target that is not canonical matches only rules without a target. The answer does not depend on
// whether the server is connected, nor on which of their names client and server are given by: a
// rule with one of a server's names means the server.
func (r *Relay) Allow(client, server, target string) Decision {
	c, ok := r.byID[client]
	if !ok {
		return Decision{Reason: "no peer has the ID " + client}
	}
	if c.Role != RoleClient {
		return Decision{Reason: client + " is a server, not a client", Source: c.Source}
	}
	d := Decision{
		Reason: fmt.Sprintf("no allowed_servers of %s name %s", client, server), Source: c.Source,
	}
	for _, rule := range c.Allowed {
		if !r.means(rule, server) {
			continue
		}
		if rule.Target == "" || rule.Target == target {
			return r.allowedBy(rule, client, server)
		}
		if d.Rule == "" {
			d = Decision{
				Rule: rule.String(), Source: rule.Source,
				Reason: fmt.Sprintf("%s may reach %s, but not its target %s", client, server, target),
			}
		}
	}
	return d
}

// Targets returns which targets of a server a client may reach: all, or the listed ones.
func (r *Relay) Targets(client, server string) (all bool, targets []string) {
	c := r.byID[client]
	if c == nil {
		return false, nil
	}
	for _, rule := range c.Allowed {
		switch {
		case !r.Allow(client, server, rule.Target).Allowed || !r.means(rule, server):
		case rule.Target == "":
			return true, nil
		case !slices.Contains(targets, rule.Target):
			targets = append(targets, rule.Target)
		}
	}
	return false, targets
}

// means reports whether a rule names the server that has this name, by any of its names.
func (r *Relay) means(rule Rule, server string) bool {
	if s := r.byID[server]; s != nil {
		return slices.ContainsFunc(s.Names(), rule.Server.Match)
	}
	return rule.Server.Match(server)
}

// allowedBy returns the decision of a rule that matches: yes, if there is such a server at all.
func (r *Relay) allowedBy(rule Rule, client, server string) Decision {
	d := Decision{Rule: rule.String(), Source: rule.Source}
	switch s, ok := r.byID[server]; {
	case !ok:
		d.Reason = "no peer has the ID " + server
	case s.Role != RoleServer:
		d.Reason, d.Source = server+" is a client, not a server", s.Source
	default:
		d.Allowed, d.Reason = true, client+" may reach "+server
	}
	return d
}
