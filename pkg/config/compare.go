package config

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/policy"
)

// Effect is what a reload has to do about one thing.
type Effect string

// The effects. A reload doesn't touch what is not in a [Diff]: neither its listener nor its
// connections.
const (
	Added   Effect = "added"
	Removed Effect = "removed" // of a mapping also: disabled
	Changed Effect = "changed" // it keeps its place and works in another way
	Moved   Effect = "moved"   // of a mapping: the listener is another, the connections go on
)

// Setting is a key at the top, or in a table that is no list, whose value differs. Old and New are
// as they stand in the file.
type Setting struct {
	Key string `json:"key"` // "log_level", "limits.links"
	Old string `json:"old"`
	New string `json:"new"`
}

// Change is one difference in a list. Old is nil for an added element, New for a removed one.
type Change[T any] struct {
	Effect Effect
	Name   string   // of a peer its ID, of a relay its address, of a service its name or target
	Keys   []string // of what is changed or moved: the keys that differ
	Old    *T
	New    *T
}

// MappingChange is a difference of a client's listeners. A listener is identified by its address: a
// mapping that keeps its address keeps its listener, even under another name. Disabled mappings
// count as absent.
type MappingChange struct {
	Change[Mapping] // if Removed, New is the mapping if it is still there and disabled

	// Overlaps names the mappings whose old listeners go away in the same reload and overlap the
	// new one; the mapping itself may be among them. The old listeners must be released first, and
	// be bound again if the new one can't be bound.
	Overlaps []string
}

// Diff is what a reload has to change. It is empty if the two configurations mean the same.
type Diff struct {
	// Restart holds what can't be changed in a running process: role, id, private_key_file, a
	// relay's listen. If it isn't empty, nothing of the new configuration may be applied.
	Restart []Setting

	Mappings []MappingChange
	Peers    []Change[policy.Peer]
	Services []Change[policy.Service]
	Relays   []Change[Relay]
	Settings []Setting // all other keys: log_level, include, metrics.*, limits.*, ...
}

// Empty reports whether there is nothing to do.
func (d Diff) Empty() bool {
	return len(d.Restart) == 0 && len(d.Settings) == 0 && len(d.Mappings) == 0 &&
		len(d.Peers) == 0 && len(d.Services) == 0 && len(d.Relays) == 0
}

// Lines returns a line for people for each change.
func (d Diff) Lines() []string {
	var lines []string
	for _, s := range slices.Concat(d.Restart, d.Settings) {
		lines = append(lines, fmt.Sprintf("%s: %s, was %s", s.Key, s.New, s.Old))
	}
	for _, m := range d.Mappings {
		lines = append(lines, m.line("mapping"))
	}
	for _, c := range d.Peers {
		lines = append(lines, c.line("peer"))
	}
	for _, c := range d.Services {
		lines = append(lines, c.line("service"))
	}
	for _, c := range d.Relays {
		lines = append(lines, c.line("relay"))
	}
	return lines
}

func (c Change[T]) line(what string) string {
	text := fmt.Sprintf("%s %s: %s", what, c.Name, c.Effect)
	if len(c.Keys) > 0 {
		text += " (" + strings.Join(c.Keys, ", ") + ")"
	}
	return text
}

// Compare returns what it takes to go from old to next. It is pure, and ignores where in the files
// something stands.
func Compare(old, next *Config) Diff {
	var d Diff
	d.Restart = settings(old, next, []setting{
		{"role", func(c *Config) string { return quoted(string(c.Role)) }},
		{"id", func(c *Config) string { return quoted(c.ID) }},
		{"private_key_file", func(c *Config) string { return quoted(c.PrivateKeyFile) }},
		{"listen", func(c *Config) string { return quoted(texts(c.Listen)...) }},
	})
	if old.Role != next.Role {
		d.Restart = d.Restart[:1] // the other differences follow from the role
		return d
	}
	d.Settings = settings(old, next, []setting{
		{"log_level", logLevelText},
		{"include", includeText},
		{
			"resume_timeout",
			func(c *Config) string { return quoted(formatDuration(c.ResumeTimeout)) },
		},
		{"drain_timeout", func(c *Config) string { return quoted(formatDuration(c.DrainTimeout)) }},
		{"adapt_processors", func(c *Config) string { return strconv.FormatBool(c.AdaptProcessors) }},
		{"admin_group", func(c *Config) string { return quoted(c.AdminGroup) }},
		{"metrics.hosts", func(c *Config) string { return quoted(c.Metrics.Hosts...) }},
		{"metrics.listen", func(c *Config) string { return quoted(c.Metrics.Listen.String()) }},
	})
	exempt := func(c *Config) string { return set(texts(c.PenaltyExempt)) }
	d.Settings = append(d.Settings,
		settings(old, next, []setting{{"limits.auth_penalty_exempt", exempt}})...)
	for _, k := range limitKeys {
		if was, is := k.number(&old.Limits), k.number(&next.Limits); was != is {
			d.Settings = append(d.Settings, Setting{"limits." + k.name, k.text(was), k.text(is)})
		}
	}
	d.Mappings = compareMappings(enabled(old), enabled(next), next.Mappings)
	renamed := make(map[string]string)
	for _, p := range next.Peers {
		for _, name := range p.Others {
			renamed[name] = p.ID
		}
	}
	d.Peers = compareLists(old.Peers, next.Peers,
		func(p policy.Peer) string { return cmp.Or(renamed[p.ID], p.ID) },
		field[policy.Peer]{
			"id",
			func(p policy.Peer) string { return strings.Join(p.Names(), " ") },
		},
		field[policy.Peer]{"role", func(p policy.Peer) string { return string(p.Role) }},
		field[policy.Peer]{
			"public_key",
			func(p policy.Peer) string { return set(texts[ident.PublicKey](p.Keys)) },
		},
		field[policy.Peer]{
			"allowed_servers",
			func(p policy.Peer) string { return set(texts(p.Allowed)) },
		})
	d.Services = compareLists(old.Services, next.Services,
		func(s policy.Service) string { return s.String() },
		field[policy.Service]{"target", func(s policy.Service) string { return s.Target.String() }},
		field[policy.Service]{
			"allow_local",
			func(s policy.Service) string { return strconv.FormatBool(s.AllowLocal) },
		},
		field[policy.Service]{
			"clients",
			func(s policy.Service) string { return set(texts(s.Clients)) },
		})
	d.Relays = compareLists(old.Relays, next.Relays,
		func(r Relay) string { return r.Address },
		field[Relay]{
			"public_key",
			func(r Relay) string { return set(texts[ident.PublicKey](r.Keys)) },
		})
	return d
}

type setting struct {
	key   string
	value func(*Config) string
}

func settings(old, next *Config, list []setting) []Setting {
	var differ []Setting
	for _, s := range list {
		if was, is := s.value(old), s.value(next); was != is {
			differ = append(differ, Setting{s.key, was, is})
		}
	}
	return differ
}

func quoted(values ...string) string {
	list := make([]string, len(values))
	for i, v := range values {
		list[i] = strconv.Quote(v)
	}
	return strings.Join(list, ", ")
}

func logLevelText(c *Config) string { return quoted(strings.ToLower(c.LogLevel.String())) }

// includeText returns the include key as text. No key (nil) means the default, an empty list no
// files.
func includeText(c *Config) string {
	if c.Include == nil {
		return "(default)"
	}
	return "[" + quoted(c.Include...) + "]"
}

func texts[T fmt.Stringer](values []T) []string {
	list := make([]string, len(values))
	for i, v := range values {
		list[i] = v.String()
	}
	return list
}

// set returns a text that does not depend on the order of the values.
func set(values []string) string {
	slices.Sort(values)
	return strings.Join(slices.Compact(values), " ")
}

// field is a key of a table in a list, with its value in comparable form.
type field[T any] struct {
	key   string
	value func(T) string
}

// compareLists compares tables by name. Tables with equal names (a service need not have one) are
// paired in order.
func compareLists[T any](old, next []T, name func(T) string, fields ...field[T]) []Change[T] {
	var changes []Change[T]
	before := make(map[string][]*T, len(old))
	for i := range old {
		n := name(old[i])
		before[n] = append(before[n], &old[i])
	}
	for i := range next {
		n := name(next[i])
		c := Change[T]{Effect: Added, Name: n, New: &next[i]}
		if was := before[n]; len(was) > 0 {
			before[n] = was[1:]
			c.Effect, c.Old, c.Keys = Changed, was[0], differing(*was[0], next[i], fields)
			if len(c.Keys) == 0 {
				continue
			}
		}
		changes = append(changes, c)
	}
	for i := range old {
		n := name(old[i])
		if left := before[n]; len(left) > 0 && left[0] == &old[i] {
			before[n] = left[1:]
			changes = append(changes, Change[T]{Effect: Removed, Name: n, Old: &old[i]})
		}
	}
	return changes
}

func differing[T any](a, b T, fields []field[T]) []string {
	var keys []string
	for _, f := range fields {
		if f.value(a) != f.value(b) {
			keys = append(keys, f.key)
		}
	}
	return keys
}

func enabled(c *Config) []*Mapping {
	var list []*Mapping
	for i := range c.Mappings {
		if c.Mappings[i].Enabled {
			list = append(list, &c.Mappings[i])
		}
	}
	return list
}

// mappingFields are the fields that matter to a running mapping.
var mappingFields = []field[Mapping]{
	{"name", func(m Mapping) string { return m.Name }},
	{"listen", func(m Mapping) string { return m.Listen.String() }},
	{"listen_mode", func(m Mapping) string { return m.ListenMode.String() }},
	{"listen_group", func(m Mapping) string { return m.ListenGroup }},
	{"server", func(m Mapping) string { return m.Server }},
	{"target", func(m Mapping) string { return m.Target.String() }},
	{"on_remove", func(m Mapping) string { return m.OnRemove }},
	{"resume_timeout", func(m Mapping) string { return m.ResumeTimeout.String() }},
}

// compareMappings pairs enabled mappings: first by address, then the rest by name. all holds the
// next configuration's mappings, also the disabled ones.
func compareMappings(old, next []*Mapping, all []Mapping) []MappingChange {
	byListen := make(map[Listen]*Mapping, len(old))
	for _, m := range old {
		byListen[m.Listen] = m
	}
	var changes []MappingChange
	var unpaired []*Mapping
	for _, m := range next {
		was := byListen[m.Listen]
		if was == nil {
			unpaired = append(unpaired, m)
			continue
		}
		delete(byListen, m.Listen)
		if keys := differing(*was, *m, mappingFields); len(keys) > 0 {
			changes = append(changes,
				MappingChange{Change: Change[Mapping]{Changed, m.Name, keys, was, m}})
		}
	}

	released := make(map[string]*Mapping, len(byListen)) // mappings whose listeners go away
	for _, m := range byListen {
		released[m.Name] = m
	}
	gone := maps.Clone(released) // of those, the mappings that don't move
	var leaving ListenerSet[string]
	for _, m := range old {
		if released[m.Name] == m {
			leaving.Add(m.Listen, m.Name)
		}
	}
	for _, m := range unpaired {
		c := MappingChange{Change: Change[Mapping]{Effect: Added, Name: m.Name, New: m}}
		if was := gone[m.Name]; was != nil {
			delete(gone, m.Name)
			c.Effect, c.Old, c.Keys = Moved, was, differing(*was, *m, mappingFields)
		}
		c.Overlaps = leaving.All(m.Listen)
		changes = append(changes, c)
	}
	disabled := make(map[string]*Mapping)
	for i := range all {
		if m := &all[i]; !m.Enabled {
			disabled[m.Name] = m
		}
	}
	for _, m := range old {
		if gone[m.Name] != m {
			continue
		}
		c := MappingChange{Change: Change[Mapping]{Effect: Removed, Name: m.Name, Old: m}}
		if still := disabled[m.Name]; still != nil {
			c.New, c.Keys = still, []string{"enabled"}
		}
		changes = append(changes, c)
	}
	return changes
}
