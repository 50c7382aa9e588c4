//go:build linux

package e2e

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"ptthqd/test/testutil"
)

// A netcat starts nc, with files at its two ends.
type netcat struct{ program, dir string }

// start starts nc with a file of some bytes at its input. It returns the file's checksum and the
// name of the file that gets the output.
func (n *netcat) start(t *testing.T, name string, size uint64, args ...string) (cmd *exec.Cmd, sum, received string) {
	t.Helper()
	cmd = exec.Command(n.program, append([]string{"-N"}, args...)...)
	sum = writePattern(t, filepath.Join(n.dir, name+".in"), 6, size)
	in, err := os.Open(filepath.Join(n.dir, name+".in"))
	if err != nil {
		t.Fatal(err)
	}
	received = filepath.Join(n.dir, name+".out")
	out, err := os.Create(received)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout = in, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	_ = out.Close()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, sum, received
}

func (n *netcat) finish(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %v", cmd.Args, err)
	}
}

// answer is how many bytes sums sends behind the sum.
const answer = 8 << 20

// sums is P5: it answers with the sum of all that P1 says, and a lot more behind the sum. That can
// only come after P1's half has been closed.
func sums(c net.Conn) {
	defer func() { _ = c.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, c); err != nil {
		return
	}
	_, _ = fmt.Fprintf(c, "%x", sum.Sum(nil))
	_ = send(c, 7, answer)
}

// TestNetcat has nc send a file, close its half, and go on reading.
func TestNetcat(t *testing.T) {
	t.Parallel()
	nc := &netcat{need(t, "nc", "netcat-openbsd"), t.TempDir()}
	summing := listen(t, sums)
	// P5 closes its half first, and sees all that comes after that.
	heard := make(chan string, 1)
	hanging := listen(t, func(c net.Conn) {
		defer func() { _ = c.Close() }()
		sum := sha256.New()
		_, _ = io.WriteString(c, "bye")
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(sum, c)
		heard <- fmt.Sprintf("%x", sum.Sum(nil))
	})
	both := testutil.FreePort(t)
	w := newWorld(t, endServer)
	summingPort := w.forward(strconv.Itoa(summing.Addr().(*net.TCPAddr).Port))
	hangingPort := w.forward(strconv.Itoa(hanging.Addr().(*net.TCPAddr).Port))
	bothPort := w.forward(strconv.Itoa(both))
	w.all()

	for _, size := range []uint64{0, 8, 8 << 20} {
		t.Run(fmt.Sprintf("P1 ends first after %d bytes", size), func(t *testing.T) {
			p1, up, received := nc.start(t, "first", size, "127.0.0.1", strconv.Itoa(summingPort))
			nc.finish(t, p1)
			want := writePattern(t, filepath.Join(nc.dir, "want"), 7, answer)
			got, err := os.ReadFile(received)
			if err != nil {
				t.Fatal(err)
			}
			const hex = 2 * sha256.Size
			if len(got) != hex+answer {
				t.Fatalf("P1 has got %d bytes of %d", len(got), hex+answer)
			}
			if string(got[:hex]) != up {
				t.Error("P5 has got something else than P1 has sent")
			}
			if more := fmt.Sprintf("%x", sha256.Sum256(got[hex:])); more != want {
				t.Error("P1 has got something else than P5 has sent")
			}
		})
	}
	t.Run("P5 ends first", func(t *testing.T) {
		p1, up, received := nc.start(t, "second", 8<<20, "127.0.0.1", strconv.Itoa(hangingPort))
		nc.finish(t, p1)
		if got, _ := os.ReadFile(received); string(got) != "bye" {
			t.Errorf("P1 has got %q", got)
		}
		if sum := <-heard; sum != up {
			t.Error("P5 has got something else than P1 has sent")
		}
	})
	// An nc that listens goes when its peer has closed its half, even with something left to say.
	t.Run("nc at both ends", func(t *testing.T) {
		p5, down, receivedUp := nc.start(t, "p5", 1<<10, "-l", "127.0.0.1", strconv.Itoa(both))
		eventually(t, 10*time.Second, "nc listens", func() error { return listens(both) })
		p1, up, receivedDown := nc.start(t, "p1", 8<<20, "127.0.0.1", strconv.Itoa(bothPort))
		nc.finish(t, p1)
		nc.finish(t, p5)
		if checksum(t, receivedUp) != up {
			t.Error("P5 has got something else than P1 has sent")
		}
		if checksum(t, receivedDown) != down {
			t.Error("P1 has got something else than P5 has sent")
		}
	})
}
