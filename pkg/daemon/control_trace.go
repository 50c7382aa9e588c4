package daemon

import (
	"context"
	"fmt"

	"ptthqd/pkg/control"
	"ptthqd/pkg/policy"
)

// Trace implements control.Backend.
func (d *daemon) Trace(ctx context.Context, q control.TraceQuestion) (*control.Trace, error) {
	return d.role.Trace(ctx, q)
}

// Trace tests the way of a mapping.
func (r clientRole) Trace(ctx context.Context, q control.TraceQuestion) (*control.Trace, error) {
	for _, m := range r.Snapshot().Mappings {
		if m.Name != q.Mapping {
			continue
		}
		if !m.Enabled {
			return nil, &control.Error{
				Message: fmt.Sprintf("mapping %s is not enabled", m.Name),
				Hint:    "write enabled = true",
			}
		}
		seen := r.Client.Trace(ctx, &m.Mapping)
		t := &control.Trace{Connection: seen.Connection}
		for _, hop := range seen.Hops {
			h := control.Hop{
				From: hop.From, To: hop.To, OK: hop.OK(),
				Took: control.Seconds(hop.Took),
			}
			if !h.OK {
				h.Code, h.By, h.Error = int(hop.Status), hop.By, hop.Text
			}
			t.Hops = append(t.Hops, h)
		}
		last := seen.Hops[len(seen.Hops)-1]
		t.OK = last.OK() && last.To == m.Target.String()
		return t, nil
	}
	return nil, &control.Error{
		Message: fmt.Sprintf("there is no mapping %q", q.Mapping),
		Hint:    "`ptthqd status` shows their names",
	}
}

// Trace dials a target of a service.
func (r serverRole) Trace(ctx context.Context, q control.TraceQuestion) (*control.Trace, error) {
	target, err := policy.ParseTarget(q.Target)
	if err != nil || target.IsName() {
		return nil, &control.Error{Message: fmt.Sprintf("%q is no address that can be dialled",
			q.Target), Hint: "name the target of a service, which must not be a range"}
	}
	for _, v := range r.Snapshot().Services {
		if !v.Target.Covers(target) {
			continue
		}
		h := control.Hop{From: r.daemon.loaded.Load().config.ID, To: target.String(), OK: true}
		took, refusal := r.Reach(ctx, v, target)
		if refusal != nil {
			h.OK, h.Code, h.Error = false, int(refusal.Status), refusal.Text
		}
		h.Took = control.Seconds(took)
		return &control.Trace{OK: h.OK, Hops: []control.Hop{h}}, nil
	}
	return nil, &control.Error{
		Message: fmt.Sprintf("no service has the target %s", target),
		Hint:    "nothing else is dialled, not even for a trace",
	}
}

// Trace fails: a relay opens no connections.
func (r *relayRole) Trace(context.Context, control.TraceQuestion) (*control.Trace, error) {
	return nil, &control.Error{
		Message: "a relay opens no connections",
		Hint:    "ask a client for a trace of a mapping",
	}
}
