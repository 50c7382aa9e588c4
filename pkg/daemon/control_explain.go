package daemon

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/server"
)

// explainTimeout is how long an explanation may take to look up the name of a host.
const explainTimeout = 3 * time.Second

// Explain returns the rule of a config that allows or refuses a connection. The targets of a server
// are judged as on the given host. The error says what is wrong with the question.
func Explain(
	c *config.Config, host *server.Host, q control.Question,
) (*control.Explanation, error) {
	target, err := policy.ParseTarget(q.Target)
	if err != nil {
		return nil, &control.Error{Message: fmt.Sprintf("target %q: %v", q.Target, err)}
	}
	if q.Client == "" || q.Server == "" {
		return nil, &control.Error{
			Message: "a client, a server and a target are needed",
			Hint:    "for example: laptop nas 22",
		}
	}
	q.Target = target.String()
	e := &control.Explanation{Question: q, Role: string(c.Role)}
	switch c.Role {
	case config.RoleRelay:
		return explainRelay(e, c)
	case config.RoleServer:
		return explainServer(e, c, host, target)
	case config.RoleClient:
		return explainClient(e, c)
	}
	panic(fmt.Sprintf("internal error: role %q", c.Role))
}

func explainRelay(e *control.Explanation, c *config.Config) (*control.Explanation, error) {
	rules, err := policy.NewRelay(c.Peers)
	if err != nil {
		return nil, err
	}
	decided(e, c, rules.Allow(e.Client, e.Server, e.Target))
	if e.Allowed {
		e.Next = fmt.Sprintf("%s must be connected, and its own [[services]] must let %s reach "+
			"%s: ask `ptthqd explain` there too", e.Server, e.Client, e.Target)
	} else {
		e.Next = fmt.Sprintf("the client is told 403, whether %s exists or not; the server isn't "+
			"asked", e.Server)
	}
	return e, nil
}

func explainServer(e *control.Explanation, c *config.Config, host *server.Host,
	target policy.Target,
) (*control.Explanation, error) {
	if e.Server != c.ID {
		return nil, &control.Error{
			Message: fmt.Sprintf("this node is the server %s, not %s", c.ID, e.Server),
			Hint:    fmt.Sprintf("ask here for %s, or there for %s", c.ID, e.Server),
		}
	}
	services, err := policy.NewServices(c.Services)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), explainTimeout)
	defer cancel()
	dial, d := host.Resolve(ctx, services, e.Client, target)
	decided(e, c, d)
	if e.Allowed {
		e.Dial = dial.String()
		e.Next = fmt.Sprintf("the relay's [[peers]] must let %s reach %s too: ask `ptthqd "+
			"explain` there", e.Client, e.Server)
	} else {
		e.Next = "the client is told 403"
	}
	return e, nil
}

// explainClient names the mapping that leads to a target. A client decides nothing.
func explainClient(e *control.Explanation, c *config.Config) (*control.Explanation, error) {
	if e.Client != c.ID {
		return nil, &control.Error{
			Message: fmt.Sprintf("this node is the client %s, not %s", c.ID, e.Client),
			Hint:    fmt.Sprintf("ask here for %s, or the relay for %s", c.ID, e.Client),
		}
	}
	e.Next = "the relay's [[peers]] and the server's [[services]] decide: ask `ptthqd explain` " +
		"there"
	e.Reason = fmt.Sprintf("no mapping leads to %s of %s", e.Target, e.Server)
	e.Source = policy.Source{File: c.Path, Line: 1}.String()
	for _, m := range c.Mappings {
		if m.Server != e.Server || m.Target.String() != e.Target {
			continue
		}
		e.Allowed = m.Enabled
		e.Rule, e.Source = m.Name, m.Source.String()
		e.Reason = fmt.Sprintf("mapping %s leads there from %s", m.Name, m.Listen)
		if m.Enabled {
			return e, nil
		}
		e.Reason += ", and is not enabled"
	}
	return e, nil
}

func decided(e *control.Explanation, c *config.Config, d policy.Decision) {
	e.Decides, e.Allowed = true, d.Allowed
	e.Rule, e.Reason = d.Rule, d.Reason
	e.Source = cmp.Or(d.Source.String(), c.Path)
}
