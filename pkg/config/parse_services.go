package config

import (
	"strings"

	"ptthqd/pkg/policy"
)

func (p *parser) service(s *section) {
	service := policy.Service{
		Source:     policy.Source{File: s.file, Line: s.at.Value.Line},
		AllowLocal: s.flag("allow_local", false),
	}
	if name, at, ok := s.text("name"); ok {
		if err := policy.CheckServiceName(name); strings.ContainsAny(name, ":/") {
			p.add(at, `for example name = "ssh"`,
				`the name of a service has neither ":" nor "/" in it: %q`, name)
		} else if err != nil {
			p.judge(at, err)
		} else if p.once(at, "service", name) {
			service.Name = name
		}
	}
	if text, at, ok := s.required("target"); ok {
		target, err := policy.ParseServiceTarget(text)
		if err != nil {
			p.judge(at, err)
		}
		service.Target = target
	}
	clients, _ := s.texts("clients")
	for _, it := range clients {
		pattern, err := policy.ParsePattern(it.text)
		if err != nil {
			p.judge(it.at, err)
			continue
		}
		service.Clients = append(service.Clients, pattern)
	}
	p.config.Services = append(p.config.Services, service)
}
