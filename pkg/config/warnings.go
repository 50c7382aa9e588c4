package config

import (
	"cmp"
	"fmt"
	"os/user"
	"slices"
	"strconv"

	"ptthqd/pkg/policy"
)

// Warning is something that is legal and probably not meant.
type Warning struct {
	File    string `json:"file"`
	Line    int    `json:"line"` // from 1
	Key     string `json:"key"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// String returns "file:line: key: message; hint".
func (w Warning) String() string {
	text := fmt.Sprintf("%s:%d: %s: %s", w.File, w.Line, w.Key, w.Message)
	if w.Hint != "" {
		text += "; " + w.Hint
	}
	return text
}

// Warnings returns what is legal and probably not meant, in the order of the text.
func (c *Config) Warnings() []Warning {
	w := &warnings{config: c}
	switch c.Role {
	case RoleRelay:
		w.relay()
	case RoleServer:
		w.server()
	case RoleClient:
		w.client()
	}
	w.limits()
	w.unread()
	place := make(map[string]int, len(c.Files))
	for i, file := range c.Files {
		place[file] = i
	}
	slices.SortStableFunc(w.list, func(a, b Warning) int {
		return cmp.Or(cmp.Compare(place[a.File], place[b.File]), cmp.Compare(a.Line, b.Line))
	})
	return w.list
}

// Notes returns what is right and still worth knowing. Only `ptthqd check` prints it.
func (c *Config) Notes() []Warning {
	w := &warnings{config: c}
	for _, peer := range c.Peers {
		for _, rule := range peer.Allowed {
			if rule.Target == "" {
				continue
			}
			w.add(rule.Source, "peers.allowed_servers",
				"a client must ask for the same, a name or a port, in its mapping's target",
				"%q allows only this target by only this name: the relay doesn't know the "+
					"server's services, so a service's name and its port are two things to it", rule)
			return w.list
		}
	}
	return nil
}

type warnings struct {
	config *Config
	list   []Warning
}

func (w *warnings) add(at policy.Source, key, hint, format string, args ...any) {
	w.list = append(w.list, Warning{
		File: at.File, Line: at.Line, Key: key, Message: fmt.Sprintf(format, args...), Hint: hint,
	})
}

// top is the source of a warning about the whole configuration.
func (w *warnings) top() policy.Source { return policy.Source{File: w.config.Path, Line: 1} }

func (w *warnings) relay() {
	if len(w.config.Peers) == 0 {
		w.add(w.top(), "peers",
			"`ptthqd init client` and `ptthqd init server` print the block to paste here",
			"there are none, so nobody can connect")
	}
	reached := make(map[string]bool)
	matches := make(map[policy.Pattern]int)
	var servers []string
	named := make(map[string]string) // the IDs of servers, by each of their names
	for _, peer := range w.config.Peers {
		if peer.Role == policy.RoleServer {
			servers = append(servers, peer.Names()...)
			for _, name := range peer.Names() {
				named[name] = peer.ID
			}
		}
	}
	for _, peer := range w.config.Peers {
		if peer.Role != policy.RoleClient {
			continue
		}
		if len(peer.Allowed) == 0 {
			w.add(peer.Source, "peers.allowed_servers",
				`write, for example, allowed_servers = ["nas"]`,
				"client %q may reach no server", peer.ID)
		}
		for _, rule := range peer.Allowed {
			n, known := matches[rule.Server]
			if !known {
				for _, id := range servers {
					if rule.Server.Match(id) {
						reached[named[id]] = true
						n++
					}
				}
				matches[rule.Server] = n
			}
			if n == 0 {
				w.add(rule.Source, "peers.allowed_servers",
					didYouMean(rule.Server.String(), servers),
					"%q matches no server among the peers", rule)
			}
		}
	}
	for _, peer := range w.config.Peers {
		if peer.Role == policy.RoleServer && !reached[peer.ID] {
			w.add(peer.Source, "peers.id", "name it in some client's allowed_servers",
				"no client may reach server %q", peer.ID)
		}
	}
}

func (w *warnings) server() {
	if len(w.config.Services) == 0 {
		w.add(w.top(), "services", "add [[services]] with target and clients",
			"there are none, so nothing can be reached here")
	}
	for _, s := range w.config.Services {
		if len(s.Clients) == 0 {
			w.add(s.Source, "services.clients", `write, for example, clients = ["laptop"]`,
				"no client can reach service %q", s)
		}
		if _, single := s.Target.Single(); s.Name != "" && !single {
			w.add(s.Source, "services.name", "take it out: clients name the exact address",
				"%q is a range, which nobody can ask for by the name %q", s.Target, s.Name)
		}
		if s.Target.Everywhere() {
			w.add(s.Source, "services.target",
				`write the networks that are meant, for example "192.168.1.0/24:22"`,
				"%q is every address that this host can reach: those of its networks, and of the "+
					"Internet", s.Target)
		}
	}
}

func (w *warnings) client() {
	listening := enabled(w.config)
	if len(listening) == 0 {
		w.add(w.top(), "mappings", "add [[mappings]] with listen, server and target",
			"none is enabled, so this client listens nowhere")
	}
	var bound ListenerSet[*Mapping]
	for _, m := range listening {
		bound.Add(m.Listen, m)
	}
	for _, m := range w.config.Mappings {
		if !m.Listen.Loopback() && !m.AllowPublic {
			w.add(m.Source, "mappings.listen", "listen on 127.0.0.1, or write allow_public = true",
				"other hosts can connect to %v", m.Listen)
		}
		if m.Listen.Kind == Unix && m.ListenMode&0o222 == 0 {
			w.add(m.Source, "mappings.listen_mode", `to connect takes the right to write: "0660"`,
				"with %04o nobody can connect", m.ListenMode)
		}
		if m.ListenGroup != "" && !isGroup(m.ListenGroup) {
			w.add(m.Source, "mappings.listen_group", "`groupadd --system` makes one",
				"this host has no group %q, so the mapping can't listen", m.ListenGroup)
		}
		if m.Enabled {
			continue
		}
		for _, other := range bound.All(m.Listen) {
			w.add(m.Source, "mappings.listen", "",
				"mapping %q can't be enabled as it is: %v is that of mapping %q",
				m.Name, m.Listen, other.Name)
		}
	}
}

// isGroup reports whether this host has a group of that name, or the text is a number.
func isGroup(text string) bool {
	if _, err := strconv.ParseUint(text, 10, 31); err == nil {
		return true
	}
	_, err := user.LookupGroup(text)
	return err == nil
}

// limits warns of a limit that can't be reached because another one is lower. A limit at its
// default gets no warning: an administrator who lowers a total need not lower its parts too.
func (w *warnings) limits() {
	for _, pair := range [][2]string{
		{"handshakes_per_source", "handshakes"},
		{"auth_penalty", "auth_penalty_max"},
		{"streams_per_peer", "streams"},
		{"pending_tips", "pending_tips_total"},
		{"sessions_per_client", "sessions"},
		{"sessions_per_mapping", "sessions"},
		{"detached_per_client", "sessions_per_client"},
		{"dials_per_target", "dials"},
	} {
		part, whole := limitNamed(pair[0]), limitNamed(pair[1])
		n := part.number(&w.config.Limits)
		if keysByName["limits."+whole.name].allows(w.config.Role) && n != part.def &&
			n > whole.number(&w.config.Limits) {
			w.add(w.top(), "limits."+part.name, "raise "+whole.name+" too",
				"%s is more than %s allows: %s",
				part.text(n), whole.name, whole.text(whole.number(&w.config.Limits)))
		}
	}
}
