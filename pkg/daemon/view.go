package daemon

import (
	"ptthqd/pkg/control"
	"ptthqd/pkg/ledger"
	"ptthqd/pkg/session"
	"ptthqd/pkg/uplink"
	"ptthqd/pkg/wire"
)

// view is what a role knows at one moment, with the sums over it. It has two printers: one for the
// status, one for Prometheus.
type view interface {
	status(s *control.Status)
	measure(s *sample)
}

// granted reports whether a server has opened the connection.
func granted(s wire.Status) bool { return 200 <= s && s < 300 }

// endView is what a client or server knows of its links and connections.
type endView struct {
	links    []uplink.State
	over     map[string]int // connections over each relay, by its address
	sessions []session.Info
	all      *tally
	tallies  map[string]*tally // by mapping; at a server "" alone
	memory   session.Memory

	linkMemory, linkMemoryLimit int64
	limitsHit                   map[string]uint64
}

// tally counts connections: what the ledger has of those that have ended, and those that run.
type tally struct {
	ledger.Tally
	states map[session.State]int // how many run, by state
	opened uint64
}

// newEndView adds the running sessions to the counts of the ended ones. mappings are the names in
// the config; other names, of mappings that are gone, come from the counts and the sessions.
func newEndView(links []uplink.State, sessions []session.Info, counts ledger.Counts,
	mappings []string,
) endView {
	v := endView{
		links:    links,
		over:     make(map[string]int),
		sessions: sessions,
		all:      newTally(counts.Tally),
		tallies:  make(map[string]*tally),
	}
	for name, ended := range counts.Mappings {
		v.tallies[name] = newTally(ended)
	}
	mapping := func(name string) *tally {
		if v.tallies[name] == nil {
			v.tallies[name] = newTally(ledger.Tally{})
		}
		return v.tallies[name]
	}
	for _, name := range mappings {
		mapping(name)
	}
	for _, s := range sessions {
		v.all.add(s)
		mapping(s.Mapping).add(s)
		if s.State != session.Detached {
			v.over[s.Relay]++
		}
	}
	return v
}

func newTally(ended ledger.Tally) *tally {
	t := &tally{Tally: ended, states: make(map[session.State]int)}
	for status, n := range ended.Status {
		if granted(status) {
			t.opened += n
		}
	}
	return t
}

func (t *tally) add(s session.Info) {
	t.states[s.State]++
	if s.State != session.Opening {
		t.opened++
	}
	t.Up += uint64(max(s.Up, 0))
	t.Down += uint64(max(s.Down, 0))
	t.Resumes += uint64(max(s.Resumes, 0))
}
