package sim

import (
	"io"
	"testing"
	"time"

	"ptthqd/pkg/link/linktest"
	"ptthqd/test/testutil"
)

// mebibytes is a P5 that sends a MiB for each byte that it reads.
func mebibytes(conn *testutil.Conn) {
	defer func() { _ = conn.Close() }()
	one, chunk := make([]byte, 1), make([]byte, 1<<20)
	for {
		if _, err := conn.Read(one); err != nil {
			return
		}
		if _, err := conn.Write(chunk); err != nil {
			return
		}
	}
}

// TestUnreadDownloads has 20 downloads that nobody reads use up what their client may have of the server's retained_memory.
// Another of the same client's, whose window has grown before, has at least 64 KiB a round trip; the limit is counted and
// told, once.
func TestUnreadDownloads(t *testing.T) {
	testutil.SkipRaced(t)
	inBubble(t, func(t *testing.T, w *world) {
		const roundTrip, size = 4 * hop, 4
		b := &linktest.Bottleneck{Rate: 200e6 / 8, Queue: 50 * time.Millisecond}
		w.network.Drop(b.Drop)
		w.network.Delay(b.Delay)
		w.target("127.0.0.1:9", mebibytes)
		w.relay(relayHost, nas)
		settings := w.serverConfig(w.relays(relayHost), "9 laptop")
		settings.Limits.RetainedMemory = 4 << 20
		server := w.server(settings)
		w.client(w.clientConfig(w.relays(relayHost), "source nas 9"))
		settle()

		ask := func(p1 *testutil.Conn, mebi int) {
			if _, err := p1.Write(make([]byte, mebi)); err != nil {
				t.Fatal(err)
			}
		}
		read := func(p1 *testutil.Conn, mebi int64) {
			if _, err := io.CopyN(io.Discard, p1, mebi<<20); err != nil {
				t.Fatal(err)
			}
		}
		read21 := w.connect("source")
		ask(read21, 8)
		read(read21, 8)
		for range 20 {
			unread := w.connect("source")
			ask(unread, 50)
			read(unread, 1)
		}
		time.Sleep(5 * time.Second)
		ask(read21, size)
		began := time.Now()
		read(read21, size)
		took := time.Since(began)
		t.Logf("%.2f MiB/s", size/took.Seconds())
		if most := size << 20 / (64 << 10) * roundTrip; took > most {
			t.Errorf("%d MiB took %v; at 64 KiB a round trip they take %v", size, took, most)
		}

		const limit = "retained_memory"
		now := server.Snapshot()
		if hits := now.LimitsHit[limit]; hits == 0 || hits > 21 {
			t.Errorf("limits were hit: %v", now.LimitsHit)
		}
		if short := now.Memory.Short; len(short) != 1 || short[0].Budget != limit || short[0].Peer != laptop {
			t.Errorf("short are %+v", short)
		}
		if line := w.one(nas, "connections slow: limit reached"); line["limit"] != limit || line["peer"] != laptop {
			t.Errorf("logged: %v", line)
		}
	})
}
