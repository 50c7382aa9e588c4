package relay_test

import (
	"fmt"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/relay"
	"ptthqd/pkg/wire"
)

// A client that is refused as fast as it can ask gets few answers a second, after a burst. Its
// further requests wait.
func TestRefusedRequestsCost(t *testing.T) {
	for name, ask := range map[string]struct {
		server string
		inner  []byte
	}{
		"not allowed": {"db", open(1, ":22")},
		"malformed":   {"nas", []byte{9, 1, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, relay.Limits{OpensPerSecond: 100}, "laptop may nas", "nas", "db")
				laptop := w.client("laptop")
				const flood = 10 * time.Second
				begun := time.Now()
				answered := 0
				var mu sync.Mutex
				var asking sync.WaitGroup
				for range 20 {
					asking.Go(func() {
						for time.Since(begun) < flood {
							s := laptop.connect(ask.server, ask.inner, "")
							if _, err := wire.Read(s); err == nil {
								mu.Lock()
								answered++
								mu.Unlock()
							}
							s.Reset(wire.CodeLost)
						}
					})
				}
				asking.Wait()
				// 200 tokens of the burst and 100 a second, ten for each.
				if answered > 200 {
					t.Errorf("%d refusals in %v, want 200 at most", answered, flood)
				}
				if w.relay.Snapshot().Counters.LimitsHit["opens_per_second"] == 0 {
					t.Error("the limit is not counted")
				}
			})
		})
	}
}

// A server is told of a withdrawn right that a client has used, however many other rights the
// client has used since.
func TestRightsAreNotFlushed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, "laptop may nas", "nas")
		nas := w.server("nas", echo)
		laptop := w.client("laptop")
		laptop.joined("nas", open(1, ":22")).Reset(wire.CodeLost)
		for i := range 3000 {
			laptop.joined("nas", open(2, fmt.Sprintf(":%d", 1000+i))).Reset(wire.CodeLost)
			time.Sleep(10 * time.Millisecond)
		}
		w.relay.Apply(w.policy("laptop may nas:80", "nas"), relay.Limits{})
		time.Sleep(time.Second)
		// One message, with what is still allowed. Older servers do not know Kept and end all.
		if told, want := nas.told(), []wire.Revoked{{Client: "laptop", Kept: []string{":80"}}}; !reflect.DeepEqual(told, want) {
			t.Errorf("nas was told %d things, and not that laptop may only reach :80", len(told))
		}
		w.relay.Apply(w.policy("laptop may", "nas"), relay.Limits{})
		time.Sleep(time.Second)
		if told := nas.told(); len(told) != 2 || told[1].Kept != nil {
			t.Errorf("nas was told %+v at last", told[1:])
		}
	})
}
