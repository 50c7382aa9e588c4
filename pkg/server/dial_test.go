package server

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/policy"
	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
	"ptthqd/test/testutil"
)

func target(t *testing.T, text string) policy.Target {
	t.Helper()
	parsed, err := policy.ParseTarget(text)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func newTestDialer(dial dialFunc) *dialer {
	d := &dialer{dial: dial, guarded: dial}
	d.limit(16, 16)
	return d
}

func connect(t *testing.T, d *dialer, to string) (session.Conn, *session.Refusal) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := d.connect(ctx, target(t, to), false)
	if err == nil {
		t.Cleanup(func() { _ = conn.Close() })
		return conn, nil
	}
	refusal, ok := errors.AsType[*session.Refusal](err)
	if !ok {
		t.Fatalf("the error is %T: %v", err, err)
	}
	return nil, refusal
}

func failing(err error) dialFunc {
	return func(_ context.Context, network, _ string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: &net.TCPAddr{}, Err: err}
	}
}

func TestRefusals(t *testing.T) {
	connectFails := func(errno syscall.Errno) error { return os.NewSyscallError("connect", errno) }
	for _, test := range []struct {
		name, target string
		err          error
		status       wire.Status
		text         string
	}{
		{"refused", "22", connectFails(syscall.ECONNREFUSED), 502, "port 22 of the server's loopback: connection refused: nothing listens there"},
		{"refused by another host", "10.1.2.3:22", connectFails(syscall.ECONNREFUSED), 502, "10.1.2.3:22: connection refused"},
		{"no route", "10.1.2.3:22", connectFails(syscall.EHOSTUNREACH), 502, "10.1.2.3:22: no route to host"},
		{"no network", "[fd00::1]:22", connectFails(syscall.ENETUNREACH), 502, "[fd00::1]:22: network is unreachable"},
		{"forbidden", "10.1.2.3:22", connectFails(syscall.EPERM), 502, "permission denied: a firewall"},
		{"forbidden socket", "unix:/run/x.sock", connectFails(syscall.EACCES), 502, "unix:/run/x.sock: permission denied: the user"},
		{"stale socket", "unix:/run/x.sock", connectFails(syscall.ECONNREFUSED), 502, "nobody listens on it"},
		{"no socket", "unix:/run/x.sock", connectFails(syscall.ENOENT), 502, "no such socket"},
		{"no such host", "db.example:22", &net.DNSError{Name: "db.example", IsNotFound: true, Err: "no such host"}, 502, `no such host: the server's DNS does not know "db.example"`},
		{"DNS is down", "db.example:22", &net.DNSError{Name: "db.example", IsTimeout: true, Err: "i/o timeout"}, 504, "DNS did not answer"},
		{"DNS fails", "db.example:22", &net.DNSError{Name: "db.example", Err: "server misbehaving"}, 502, `can't resolve "db.example": server misbehaving`},
		{"no answer", "10.1.2.3:22", connectFails(syscall.ETIMEDOUT), 504, "no answer within 10s"},
		{"no descriptors", "22", os.NewSyscallError("socket", syscall.EMFILE), 429, "LimitNOFILE"},
		{"anything else", "22", errors.New("the cable is cut"), 502, "port 22 of the server's loopback: the cable is cut"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, refusal := connect(t, newTestDialer(failing(test.err)), test.target)
			if refusal == nil || refusal.Status != test.status || !strings.Contains(refusal.Text, test.text) {
				t.Errorf("refused with %v, want %v and %q", refusal, test.status, test.text)
			}
		})
	}
}

func TestLoopbackIsBothFamilies(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Skipf("no %s here: %v", address, err)
		}
		defer func() { _ = l.Close() }()
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, refusal := connect(t, newTestDialer(new(net.Dialer).DialContext), port); refusal != nil {
			t.Errorf("a server on %s alone: %v", address, refusal)
		}
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p5.sock")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	d := newTestDialer(new(net.Dialer).DialContext)
	if _, refusal := connect(t, d, "unix:"+path); refusal != nil {
		t.Errorf("refused: %v", refusal)
	}
	if _, refusal := connect(t, d, "unix:"+path+".other"); refusal == nil || !strings.Contains(refusal.Text, "no such socket") {
		t.Errorf("a socket that isn't there is refused with %v", refusal)
	}
}

func TestDialsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now, most := make(map[string]int), make(map[string]int)
		d := newTestDialer(func(_ context.Context, _, address string) (net.Conn, error) {
			mu.Lock()
			now[address]++
			now["all"]++
			most[address] = max(most[address], now[address])
			most["all"] = max(most["all"], now["all"])
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			now[address]--
			now["all"]--
			mu.Unlock()
			conn, _ := testutil.Pair(address)
			return conn, nil
		})
		d.limit(5, 3)
		refused := make(chan *session.Refusal, 60)
		var work sync.WaitGroup
		for range 30 {
			for _, to := range []string{"10.0.0.1:1", "10.0.0.2:1"} {
				work.Go(func() {
					_, refusal := connect(t, d, to)
					refused <- refusal
				})
			}
		}
		work.Wait()
		close(refused)
		if most["10.0.0.1:1"] != 3 || most["10.0.0.2:1"] != 3 || most["all"] != 5 {
			t.Errorf("dials at once: %v; want 3 to one target and 5 in all", most)
		}
		failed := 0
		for refusal := range refused {
			if refusal != nil {
				failed++
				if refusal.Status != wire.StatusTooMany {
					t.Errorf("without a turn: %v", refusal)
				}
			}
		}
		if failed == 0 || failed > 15 {
			t.Errorf("%d of 60 had no turn in 10 s at 5 a second, want about 10", failed)
		}
		if d.count() != 0 || len(d.busy) != 0 {
			t.Errorf("%d turns are left behind", d.count())
		}
	})
}

func TestNoAnswerEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newTestDialer(func(ctx context.Context, network, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, &net.OpError{Op: "dial", Net: network, Err: ctx.Err()}
		})
		start := time.Now()
		_, refusal := connect(t, d, "22")
		if took := time.Since(start); took != 10*time.Second || refusal == nil || refusal.Status != wire.StatusTimeout {
			t.Errorf("after %v: %v; want 504 after 10 s", took, refusal)
		}
	})
}

func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r rates
		r.limit(10)
		count := func(client string) (n int) {
			for r.allow(client) {
				n++
			}
			return n
		}
		if n := count("laptop"); n != 20 {
			t.Errorf("%d at once, want 20", n)
		}
		time.Sleep(time.Second)
		if n := count("laptop"); n != 10 {
			t.Errorf("%d after a second, want 10", n)
		}
		if n := count("desktop"); n != 20 {
			t.Errorf("%d of another client, want 20", n)
		}
		r.limit(10) // a reload that changes nothing gives no client a new burst
		if n := count("laptop"); n != 0 {
			t.Errorf("%d after a reload, want 0", n)
		}
	})
}
