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

// The effects. What is not named by a [Diff] is not touched: neither its listener nor one byte of its connections.
const (
	Added   Effect = "added"
	Removed Effect = "removed" // of a mapping also: disabled
	Changed Effect = "changed" // it stays where it is, and works in another way
	Moved   Effect = "moved"   // of a mapping: its listener is another, its connections go on
)

// Setting is a key at the top or in a table of its own that has another value, as it would stand in the file.
type Setting struct {
	Key string `json:"key"` // "log_level", "limits.links"
	Old string `json:"old"`
	New string `json:"new"`
}

// Change is one difference in a list. Old is nil for what is added, New for what is removed.
type Change[T any] struct {
	Effect Effect
	Name   string   // of a peer its ID, of a relay its address, of a service its name or target
	Keys   []string // of what is changed or moved: the keys that differ
	Old    *T
	New    *T
}

// MappingChange is a difference of the listeners of a client. A listener is known by its address, so a mapping that
// keeps its address keeps its listener, whatever else of it changes, its name too. Disabled mappings count as absent.
type MappingChange struct {
	Change[Mapping] // Removed: New is the disabled mapping, where it is still there

	// Overlaps names the mappings, itself perhaps, whose old listeners go away in this same reload and overlap the new
	// one: they must be released first, and bound again if the new one can't be.
	Overlaps []string
}

// Diff is what a reload has to change, by the table of effects. It is empty when the two mean the same, whatever
// their bytes.
type Diff struct {
	// Restart holds what can't be changed in a running process: role, id, private_key_file, a relay's listen. Where
	// there is any, nothing of the new configuration may be applied.
	Restart []Setting

	Mappings []MappingChange
	Peers    []Change[policy.Peer]
	Services []Change[policy.Service]
	Relays   []Change[Relay]
	Settings []Setting // log_level, resume_timeout, drain_timeout, include, metrics.*, limits.*
}

// Empty reports whether there is nothing to do.
func (d Diff) Empty() bool {
	return len(d.Restart) == 0 && len(d.Mappings) == 0 && len(d.Peers) == 0 && len(d.Services) == 0 && len(d.Relays) == 0 && len(d.Settings) == 0
}

// Lines tells people what changes, one line each.
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

// Compare returns what it takes to go from old to next. It is pure: it looks at nothing but the two values, and where in
// the files something stands makes no difference.
func Compare(old, next *Config) Diff {
	var d Diff
	d.Restart = settings(old, next, []setting{
		{"role", func(c *Config) string { return quoted(string(c.Role)) }},
		{"id", func(c *Config) string { return quoted(c.ID) }},
		{"private_key_file", func(c *Config) string { return quoted(c.PrivateKeyFile) }},
		{"listen", func(c *Config) string { return quoted(texts(c.Listen)...) }},
	})
	if old.Role != next.Role {
		d.Restart = d.Restart[:1] // the rest follows from it
		return d
	}
	d.Settings = settings(old, next, []setting{
		{"log_level", func(c *Config) string { return quoted(strings.ToLower(c.LogLevel.String())) }},
		{"include", includeText},
		{"resume_timeout", func(c *Config) string { return quoted(formatDuration(c.ResumeTimeout)) }},
		{"drain_timeout", func(c *Config) string { return quoted(formatDuration(c.DrainTimeout)) }},
		{"admin_group", func(c *Config) string { return quoted(c.AdminGroup) }},
		{"metrics.hosts", func(c *Config) string { return quoted(c.Metrics.Hosts...) }},
		{"metrics.listen", func(c *Config) string { return quoted(c.Metrics.Listen.String()) }},
	})
	exempt := func(c *Config) string { return set(texts(c.PenaltyExempt)) }
	d.Settings = append(d.Settings, settings(old, next, []setting{{"limits.auth_penalty_exempt", exempt}})...)
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
		field[policy.Peer]{"id", func(p policy.Peer) string { return strings.Join(p.Names(), " ") }},
		field[policy.Peer]{"role", func(p policy.Peer) string { return string(p.Role) }},
		field[policy.Peer]{"public_key", func(p policy.Peer) string { return set(texts[ident.PublicKey](p.Keys)) }},
		field[policy.Peer]{"allowed_servers", func(p policy.Peer) string { return set(texts(p.Allowed)) }})
	d.Services = compareLists(old.Services, next.Services,
		func(s policy.Service) string { return s.String() },
		field[policy.Service]{"target", func(s policy.Service) string { return s.Target.String() }},
		field[policy.Service]{"allow_local", func(s policy.Service) string { return strconv.FormatBool(s.AllowLocal) }},
		field[policy.Service]{"clients", func(s policy.Service) string { return set(texts(s.Clients)) }})
	d.Relays = compareLists(old.Relays, next.Relays,
		func(r Relay) string { return r.Address },
		field[Relay]{"public_key", func(r Relay) string { return set(texts[ident.PublicKey](r.Keys)) }})
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

// includeText tells no include key, which means the default, from one that names nothing.
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

// set makes a text of which the order of the elements is no part.
func set(values []string) string {
	slices.Sort(values)
	return strings.Join(slices.Compact(values), " ")
}

// field is a key of a table in a list, and its value in a form that can be compared.
type field[T any] struct {
	key   string
	value func(T) string
}

// compareLists compares tables that are known by a name. Of several with one name (services need not have one) the
// first is compared with the first.
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

// mappingFields are those that make a difference while it runs.
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

// compareMappings pairs the mappings that listen: first by address, then what is left by name. All of the next
// configuration's, the disabled ones too, are in all.
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
			changes = append(changes, MappingChange{Change: Change[Mapping]{Changed, m.Name, keys, was, m}})
		}
	}

	released := make(map[string]*Mapping, len(byListen)) // whose listeners go away
	for _, m := range byListen {
		released[m.Name] = m
	}
	gone := maps.Clone(released) // of those, what doesn't move
	var leaving Places[string]
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
