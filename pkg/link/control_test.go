package link_test

import (
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/link"
	"ptthqd/pkg/wire"
)

// A relay reads a few of the heartbeats of a peer that sends them as fast as it can.
func TestHeartbeatsAreReadAtAPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		conn, err := w.raw("10.0.0.2", w.tls(w.key))
		if err != nil {
			t.Fatal(err)
		}
		control, err := conn.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := control.Write(wire.Append(nil, &wire.Control{})); err != nil {
			t.Fatal(err)
		}
		accepted := <-w.accepted
		const flood = 4 * time.Second
		_ = control.SetWriteDeadline(time.Now().Add(flood))
		sent := 0
		for {
			sent++
			if _, err := control.Write(wire.Append(nil, &wire.Heartbeat{Seq: uint64(sent), Padding: 1500})); err != nil {
				break
			}
		}
		// What the relay has not read fills the peer's own window.
		if most := 1000; sent > most {
			t.Errorf("%d heartbeats were read in %v, want %d at most", sent, flood, most)
		}
		if accepted.Err() != nil {
			t.Errorf("the link ended: %v", accepted.Err())
		}
		_ = conn.CloseWithError(0, "")
		<-accepted.Done()
	})
}

// A node reads the relay's messages about withdrawn rights at any rate: many may come at once.
func TestManyRevocations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const all = 2000
		told := make(chan struct{}, all)
		w.dialer.OnRevoked = func(*link.Link, *wire.Revoked) { told <- struct{}{} }
		w.start()
		w.dial()
		accepted := <-w.accepted
		begun := time.Now()
		for range all {
			if err := accepted.SendRevoked("laptop", ":22"); err != nil {
				t.Fatal(err)
			}
		}
		for range all {
			<-told
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("it took %v until the peer had been told of all", took)
		}
	})
}
