package relay

// Brief is how a relay stands in a few numbers. It takes less time than a Snapshot when there are
// many connections.
type Brief struct {
	Peers       int // that the policy knows
	Connected   int // of those, the ones with a live link
	Connections int
}

// Brief returns how the relay stands.
func (r *Relay) Brief() Brief {
	b := Brief{Connections: r.Count()}
	for _, p := range r.rules.Load().policy.Peers() {
		b.Peers++
		if r.links.get(p.ID) != nil {
			b.Connected++
		}
	}
	return b
}
