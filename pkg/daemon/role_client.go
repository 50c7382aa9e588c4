package daemon

import (
	"fmt"
	"syscall"

	"ptthqd/pkg/bind"
	"ptthqd/pkg/client"
	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
	"ptthqd/pkg/host"
)

type clientRole struct{ *client.Client }

var _ role = clientRole{}

func newClientRole(d *daemon, c *config.Config) (role, error) {
	p2, err := client.New(client.Config{
		Settings:         c,
		Identity:         d.identity,
		Logger:           d.log,
		RuntimeDirectory: control.RuntimeDir(c.Path),
		Inherit:          d.inheritStreams,
		KeepSockets:      d.service.Listens(),
		Rebound:          d.keepSockets,
		Opened:           d.metrics.opened,
	})
	if err != nil {
		return nil, err
	}
	return clientRole{p2}, nil
}

func (r clientRole) Sockets() map[string][]syscall.Conn {
	kept := make(map[string][]syscall.Conn)
	for place, sockets := range r.Client.Sockets() {
		if !host.OfUnit(place) { // systemd has the sockets of its units anyway
			kept[host.FDName("stream", place)] = sockets
		}
	}
	return kept
}

func (r clientRole) Unbound() (texts []string) {
	for _, m := range r.Failing() {
		problem, _ := bind.Problem(m.Failed)
		texts = append(texts, m.Name+": "+problem)
	}
	return texts
}

func (r clientRole) Summary() string {
	now := r.Brief()
	return fmt.Sprintf("%s; %s, %s%s", linkSummary(now.Relays), plural(now.Mappings, "mapping"),
		connectionSummary(now.Connections, now.Detached), failedSummary(r.Unbound()))
}

// clientView is what a client knows.
type clientView struct {
	endView
	mappings []client.Mapping
	held     int
}

func (r clientRole) View() view {
	now := r.Snapshot()
	names := make([]string, len(now.Mappings))
	for i, m := range now.Mappings {
		names[i] = m.Name
	}
	v := &clientView{
		endView:  newEndView(now.Relays, now.Sessions, now.Counts, names),
		mappings: now.Mappings,
		held:     now.Held,
	}
	v.memory, v.limitsHit = now.Memory, now.LimitsHit
	v.linkMemory, v.linkMemoryLimit = now.LinkMemory, now.LinkMemoryLimit
	return v
}

func (v *clientView) status(s *control.Status) {
	v.endView.status(s)
	for _, m := range v.mappings {
		mapping := control.Mapping{
			Name:        m.Name,
			Listen:      m.Listen.String(),
			Server:      m.Server,
			Target:      m.Target.String(),
			Enabled:     m.Enabled,
			Connections: m.Connections,
			Source:      m.Source.String(),
		}
		if m.Failed != nil {
			mapping.Problem, mapping.Hint = bind.Problem(m.Failed)
		}
		s.Mappings = append(s.Mappings, mapping)
	}
}

func (v *clientView) measure(s *sample) {
	v.endView.measure(s)
	for _, m := range v.mappings {
		if m.Enabled {
			s.is(listenerBound, truth(len(m.Listening) > 0), m.Name, m.Listen.String())
		}
	}
	s.limits(config.RoleClient, v.limitsHit)
	s.is(connectionsHeld, float64(v.held))
}
