package daemon

import (
	"context"
	"fmt"
	"syscall"

	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/server"
)

type serverRole struct {
	*server.Server
	daemon *daemon
	ready  chan struct{}
}

func newServerRole(d *daemon, c *config.Config) (role, error) {
	p4, err := server.New(server.Config{Settings: c, Identity: d.identity, Logger: d.log, Dialled: d.metrics.dialled})
	if err != nil {
		return nil, err
	}
	r := serverRole{p4, d, make(chan struct{})}
	close(r.ready) // it has no sockets of its own
	return r, nil
}

func (r serverRole) Ready() <-chan struct{}             { return r.ready }
func (r serverRole) Sockets() map[string][]syscall.Conn { return nil }
func (r serverRole) Unbound() []string                  { return nil }

// Alive is nil: the server's accept loops are those of its links, and what hangs in a link ends with it.
func (r serverRole) Alive(context.Context) error { return nil }

func (r serverRole) Describe(s *control.Status) {
	now := r.Snapshot()
	s.Connections = sessions(now.Sessions)
	s.Links = links(now.Relays, s.Connections)
	for _, v := range now.Services {
		service := control.Service{Name: v.Name, Target: v.Target.String(), Source: v.Source.String(), Clients: []string{}}
		for _, p := range v.Clients {
			service.Clients = append(service.Clients, p.String())
		}
		for _, c := range s.Connections {
			if serves(v, c.Target) {
				service.Connections++
			}
		}
		s.Services = append(s.Services, service)
	}
	count(&s.Counters, now.Counts, s.Connections)
	remember(s, now.Memory)
	s.Counters.LimitsHit = now.LimitsHit
	s.Summary = fmt.Sprintf("%s; %s, %s", linkSummary(s.Links), plural(len(s.Services), "service"), connectionSummary(s.Connections))
}

// serves tells whether a service is what a connection's target means. Two that overlap both count it.
func serves(v policy.Service, target string) bool {
	asked, err := policy.ParseTarget(target)
	switch {
	case err != nil:
		return false
	case asked.IsName():
		return v.Name == asked.String()
	}
	return v.Target.Covers(asked)
}
