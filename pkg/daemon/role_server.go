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
	p4, err := server.New(server.Config{
		Settings: c, Identity: d.identity, Logger: d.log,
		Dialled: d.metrics.dialled,
	})
	if err != nil {
		return nil, err
	}
	r := serverRole{p4, d, make(chan struct{})}
	close(r.ready) // a server has no sockets of its own
	return r, nil
}

func (r serverRole) Ready() <-chan struct{}             { return r.ready }
func (r serverRole) Sockets() map[string][]syscall.Conn { return nil }
func (r serverRole) Unbound() []string                  { return nil }

// Alive returns nil: a server has no accept loops but those of its links, and a link that hangs
// ends.
func (r serverRole) Alive(context.Context) error { return nil }

func (r serverRole) Summary() string {
	now := r.Brief()
	return fmt.Sprintf("%s; %s, %s", linkSummary(now.Relays), plural(now.Services, "service"),
		connectionSummary(now.Connections, now.Detached))
}

// serverView is what a server knows.
type serverView struct {
	endView
	services []policy.Service
	dials    int
}

func (r serverRole) View() view {
	now := r.Snapshot()
	v := &serverView{
		endView:  newEndView(now.Relays, now.Sessions, now.Counts, nil),
		services: now.Services,
		dials:    now.Dials,
	}
	v.tallies[""] = v.all // a server knows no mappings
	v.memory, v.limitsHit = now.Memory, now.LimitsHit
	v.linkMemory, v.linkMemoryLimit = now.LinkMemory, now.LinkMemoryLimit
	return v
}

func (v *serverView) status(s *control.Status) {
	v.endView.status(s)
	for _, offered := range v.services {
		service := control.Service{
			Name: offered.Name, Target: offered.Target.String(), Source: offered.Source.String(),
			Clients: []string{},
		}
		for _, p := range offered.Clients {
			service.Clients = append(service.Clients, p.String())
		}
		for _, c := range v.sessions {
			if serves(offered, c.Target) {
				service.Connections++
			}
		}
		s.Services = append(s.Services, service)
	}
}

func (v *serverView) measure(s *sample) {
	v.endView.measure(s)
	s.limits(config.RoleServer, v.limitsHit)
	s.is(connectionsDialling, float64(v.dials))
}

// serves reports whether a service covers the target of a connection. Services may overlap.
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
