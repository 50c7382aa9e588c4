package config

import (
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"ptthqd/pkg/policy"
)

func (p *parser) mapping(s *section) {
	m := Mapping{
		Source:        policy.Source{File: s.file, Line: s.at.Value.Line},
		Enabled:       s.flag("enabled", true),
		AllowPublic:   s.flag("allow_public", false),
		ListenMode:    DefaultListenMode,
		OnRemove:      OnRemoveKeep,
		ResumeTimeout: s.duration("resume_timeout", p.config.ResumeTimeout, time.Second, maxResume),
	}
	name, nameAt, named := s.text("name")
	if text, at, ok := s.required("listen"); ok {
		m.Listen = p.mappingListen(at, text, name, m.Enabled)
	}
	if !named {
		name, nameAt = m.Listen.String(), s.location("listen")
	}
	switch {
	case named && !isMappingName(name):
		p.add(nameAt, `for example name = "nas-ssh"`, "the name of a mapping has "+
			"1 to %d printable ASCII characters, without spaces or quotes", maxMappingName)
	case name != "" && p.once(nameAt, "mapping", name):
		m.Name = name
	}
	if text, at, ok := s.text("listen_group"); ok {
		m.ListenGroup = text
		switch {
		case text == "" || strings.ContainsFunc(text, badInGroup):
			p.add(at, `write its name or number, for example "database"`, "%q is no group", text)
		case m.Listen.Kind != Unix && m.Listen.Addr != "":
			p.add(s.nameLocation("listen_group"), "take it out",
				"only a Unix socket has a group, and this listens on %v", m.Listen)
		}
	}
	if text, at, ok := s.text("listen_mode"); ok {
		mode, err := strconv.ParseUint(text, 8, 32)
		if err != nil || mode > 0o777 {
			p.add(at, `write permissions in octal, for example "0660"`, "%q is not allowed here",
				text)
		}
		m.ListenMode = fs.FileMode(mode) & fs.ModePerm
		if !m.Listen.IsZero() && m.Listen.Kind != Unix {
			p.add(s.nameLocation("listen_mode"), "take it out",
				"only a Unix socket has permissions, and this listens on %v", m.Listen)
		}
	}
	if text, at, ok := s.required("server"); ok && p.checkID(at, text) {
		m.Server = text
	}
	if text, at, ok := s.required("target"); ok {
		target, err := policy.ParseTarget(text)
		if err != nil {
			p.judge(at, err)
		}
		m.Target = target
	}
	if text, at, ok := s.text("on_remove"); ok {
		if choices := []string{OnRemoveKeep, OnRemoveClose}; !slices.Contains(choices, text) {
			p.badChoice(at, text, choices)
		}
		m.OnRemove = text
	}
	p.config.Mappings = append(p.config.Mappings, m)
}

// badInGroup reports whether the name of a group can't have the character.
func badInGroup(r rune) bool { return r <= ' ' || r == ':' || r == '/' || r > '~' }

// mappingListen reads the listener of a mapping. A disabled mapping is not bound, so it collides
// with nothing.
func (p *parser) mappingListen(at location, text, name string, enabled bool) Listen {
	if !enabled {
		l, hint, err := parseListen(TCP, text)
		if err != nil {
			p.add(at, hint, "%s", err.Error())
		}
		return l
	}
	if name == "" {
		name = text
	}
	l, _ := p.listen(at, TCP, text, fmt.Sprintf("mapping %q", name))
	return l
}

const maxMappingName = 64

// isMappingName reports whether a name can stand as it is in a log line and in a metric's label.
func isMappingName(name string) bool {
	bad := func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"'`\\", r) }
	return name != "" && len(name) <= maxMappingName && !strings.ContainsFunc(name, bad)
}
