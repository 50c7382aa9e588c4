package config

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"ptthqd/pkg/config/tomlpos"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/wire"
)

// Parse turns a snapshot into a [Config]. It reports all faults of the text together, as [Errors].
// It does no I/O.
func Parse(s *Snapshot) (*Config, error) {
	p := &parser{
		faults: &faults{},
		config: &Config{Path: s.Path, Hash: s.Hash, Limits: DefaultLimits()},
		first:  make(map[string]policy.Source),
		keys:   make(map[ident.PublicKey]use),
	}
	for i, f := range s.Files {
		p.files = append(p.files, f.Path)
		doc := s.main
		if i > 0 || doc == nil {
			doc = parseDocument(f)
		}
		p.list = append(p.list, doc.faults...)
		if doc.tree == nil {
			continue
		}
		top := &section{faults: p.faults, file: f.Path, values: doc.tree, at: doc.root}
		if i == 0 {
			p.main(top, s)
		} else {
			p.included(top)
		}
	}
	if err := p.errors(); err != nil {
		return nil, err
	}
	p.config.Files = p.files
	p.config.dirs = slices.Sorted(maps.Keys(s.listed()))
	return p.config, nil
}

// parser builds one Config. It reads keys in the order in which they are documented: those at the
// top (parse_top.go), then each table in a file of its own (parse_peers.go, parse_mappings.go,
// ...).
type parser struct {
	*faults
	config *Config

	// What must be unique, and where it was used first.
	first map[string]policy.Source // by kind and name: "peer laptop"
	keys  map[ident.PublicKey]use
	bound ListenerSet[use]
}

// use is the first use of something that must be unique.
type use struct {
	by string // in words: `peer "laptop"`
	at location
}

// main reads the main file.
func (p *parser) main(top *section, s *Snapshot) {
	c := p.config
	top.role = p.role(top)
	c.Role = top.role
	top.checkKeys()

	if top.mayHave("id") {
		if id, at, ok := top.required("id"); ok {
			p.checkID(at, id)
			c.ID = id
		}
	}
	c.PrivateKeyFile = p.privateKeyFile(top, s)
	c.LogLevel = p.logLevel(top)
	c.Include = p.include(top)
	if group, at, ok := top.text("admin_group"); ok {
		if group == "" || group != wire.Clean(group) || strings.ContainsAny(group, " :,") {
			p.add(at, `for example "ptthqd"`, "%q is no name of a group", group)
		}
		c.AdminGroup = group
	}
	c.ResumeTimeout = top.duration("resume_timeout", DefaultResumeTimeout, time.Second, maxResume)
	c.DrainTimeout = top.duration("drain_timeout", DefaultDrainTimeout, 0, time.Hour)
	c.AdaptProcessors = top.flag("adapt_processors", true)
	if top.mayHave("listen") {
		c.Listen = p.relayListen(top)
	}
	for _, relay := range top.subs("relays") {
		p.relay(relay)
	}
	if _, there := top.values["relays"]; !there && top.mayHave("relays") {
		top.missing("relays")
	}
	p.tables(top)
	if metrics := top.sub("metrics"); metrics != nil {
		c.Metrics = p.metrics(metrics)
	}
	if limits := top.sub("limits"); limits != nil {
		p.limits(limits)
	}
}

const maxResume = 7 * 24 * time.Hour

// included reads a file that the main file includes.
func (p *parser) included(top *section) {
	top.role = p.config.Role
	top.included = true
	top.checkKeys()
	p.tables(top)
}

// includable are the tables that an included file may have.
var includable = []string{"peers", "services", "mappings"}

func (p *parser) tables(top *section) {
	for _, s := range top.subs("peers") {
		p.peer(s)
	}
	for _, s := range top.subs("services") {
		p.service(s)
	}
	for _, s := range top.subs("mappings") {
		p.mapping(s)
	}
}

func (p *parser) role(top *section) Role {
	if _, there := top.values["role"]; !there {
		message := "is missing"
		if len(top.values) == 0 {
			message = "is missing: there is nothing in this file"
		}
		p.add(location{top.file, tomlpos.Position{Line: 1, Column: 1}, "role"},
			`write role = "relay", "server" or "client"; `+"`ptthqd init` writes a whole file",
			"%s", message)
		return ""
	}
	text, at, ok := top.required("role")
	if !ok {
		return ""
	}
	if choices := []string{"relay", "server", "client"}; !slices.Contains(choices, text) {
		p.badChoice(at, text, choices)
		return ""
	}
	return Role(text)
}

// badChoice reports a value that is none of the allowed ones.
func (p *parser) badChoice(at location, text string, allowed []string) {
	hint := "write " + oneOf(allowed)
	if near := didYouMean(text, allowed); near != "" {
		hint = near
	}
	p.add(at, hint, "%q is not allowed here", text)
}

// judge reports the error of another package's parser, with its hint.
func (p *parser) judge(at location, err error) {
	if fault := (*policy.Error)(nil); errors.As(err, &fault) {
		p.add(at, fault.Hint, "%s", fault.Message)
		return
	}
	p.add(at, "", "%s", err.Error())
}

// once returns true for the first use of a name, and reports any other. kind is "peer", "service",
// ...
func (p *parser) once(at location, kind, name string) bool {
	if first, ok := p.first[kind+" "+name]; ok {
		p.add(at, "change one of the two, or take it out", "%s %q is there already, at %v", kind,
			name, first)
		return false
	}
	p.first[kind+" "+name] = at.source()
	return true
}

func (p *parser) checkID(at location, id string) bool {
	if err := wire.CheckID(id); err != nil {
		p.judge(at, err)
		return false
	}
	return true
}
