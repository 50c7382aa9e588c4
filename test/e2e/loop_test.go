//go:build linux

package e2e

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"ptthqd/pkg/control"
	"ptthqd/pkg/wire"
	"ptthqd/test/testutil"
)

// loop adds mappings in a circle, each of which leads to the listener of the next one. It returns the port of the first.
func (w *world) loop(length int) int {
	w.t.Helper()
	ports := make([]int, length)
	for i := range ports {
		ports[i] = testutil.FreePort(w.t)
	}
	for i, port := range ports {
		target := fmt.Sprintf(":%d", ports[(i+1)%length])
		w.mapping(fmt.Sprintf("loop%d", i), fmt.Sprintf("127.0.0.1:%d", port), "nas", target[1:])
		w.extra["nas"] += fmt.Sprintf("[[services]]\ntarget = %q\nclients = [\"laptop\"]\n", target[1:])
	}
	return ports[0]
}

// idOf waits until a node tells of a connection with a code, and returns its ID.
func idOf(t *testing.T, w *world, node string, code wire.Status) (id string) {
	t.Helper()
	eventually(t, 20*time.Second, fmt.Sprintf("a connection ends with %d", code), func() error {
		for _, e := range w.procs[node].entries(t) {
			if e.code == float64(code) {
				id = e.id
				return nil
			}
		}
		return fmt.Errorf("%s tells of none", node)
	})
	return id
}

// TestLoops lets mappings lead to themselves, by one step and by two: the connection that has come back is refused, with
// the reason, and nothing is left.
func TestLoops(t *testing.T) {
	t.Parallel()
	for length := 1; length <= 2; length++ {
		t.Run(fmt.Sprint(length), func(t *testing.T) {
			w := newWorld(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
			port := w.loop(length)
			w.writeConfigs()
			for _, node := range []string{"relay", "nas", "laptop"} {
				w.start(node, logJSON)
			}
			serverConnected(t, w)
			refusedConnection(t, port)
			idOf(t, w, "laptop", wire.StatusLoop)
			w.procs["laptop"].says(t, `the mapping leads to itself: the client on this host listens where the server dials`)
			eventually(t, 20*time.Second, "all is unwound", func() error {
				for _, node := range []string{"laptop", "nas"} {
					if left := w.status(node).Connections; len(left) > 0 {
						return fmt.Errorf("%s has %+v", node, left)
					}
				}
				return nil
			})
			asked := &control.Client{Socket: filepath.Join(w.path("laptop", ".run"), "control.sock")}
			ways, err := asked.Trace(t.Context(), control.TraceQuestion{Mapping: "loop0"})
			if err != nil {
				t.Fatal(err)
			}
			if last := ways.Hops[len(ways.Hops)-1]; last.Code != int(wire.StatusLoop) {
				t.Errorf("the doctor is told %+v", last)
			}
			if made := len(w.procs["laptop"].entries(t)); made > 4*(length+1) {
				t.Errorf("%d connections were made", made)
			}
		})
	}
}

// TestChainIsNoLoop lets a mapping lead to the listener of another one, and that to a target.
func TestChainIsNoLoop(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	first, second := testutil.FreePort(t), w.ports["mapping"]
	w.mapping("first", fmt.Sprintf("127.0.0.1:%d", first), "nas", fmt.Sprint(second))
	w.extra["nas"] += fmt.Sprintf("[[services]]\ntarget = \"%d\"\nclients = [\"laptop\"]\n", second)
	w.writeConfigs()
	for _, node := range []string{"relay", "nas", "laptop"} {
		w.start(node)
	}
	serverConnected(t, w)
	for range 20 {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", first))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, "hello")
		if err := hears(c, "hello"); err != nil {
			t.Error(err)
		}
		_ = c.Close()
	}
}
