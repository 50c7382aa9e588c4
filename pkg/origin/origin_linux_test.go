package origin_test

import (
	"bytes"
	"net"
	"testing"

	"ptthqd/pkg/origin"
)

// pair returns the two ends of a TCP connection.
func pair(t *testing.T, address string) (dialled, accepted net.Conn) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	dialled, err = new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dialled.Close(); _ = accepted.Close() })
	return dialled, accepted
}

func is(m []byte, c net.Conn) bool {
	return origin.Is(m, c.LocalAddr().String(), c.RemoteAddr().String())
}

func TestMark(t *testing.T) {
	place := origin.New()
	for _, at := range []string{"127.0.0.1:0", "127.0.0.2:0", "0.0.0.0:0"} {
		dialled, accepted := pair(t, at)
		other, _ := pair(t, at)
		m := place.Mark(accepted)
		if !is(m, dialled) {
			t.Errorf("%s: the connection isn't known by its mark %x", at, m)
		}
		if is(m, other) || is(m, accepted) || is(nil, dialled) || is(m[1:], dialled) || is(append(bytes.Clone(m), 0), dialled) {
			t.Errorf("%s: known by another mark", at)
		}
	}
	dialled, accepted := pair(t, "127.0.0.1:0")
	m := place.Mark(accepted)
	place.Close()
	if is(m, dialled) { // as in another network namespace, where a connection may have the same addresses
		t.Error("the mark of another network namespace")
	}
	if other := origin.New().Mark(accepted); bytes.Equal(other[:16], m[:16]) {
		t.Error("two processes have one nonce")
	}
}

func TestOtherHosts(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"127.0.0.1", "127.0.0.1", true},
		{"127.0.0.1", "127.0.0.2", true},
		{"192.168.1.5", "192.168.1.5", true},
		{"192.168.1.5", "192.168.1.6", false},
		{"::1", "::1", true},
	} {
		if got := origin.SameHost(&net.TCPAddr{IP: net.ParseIP(c.a)}, &net.TCPAddr{IP: net.ParseIP(c.b)}); got != c.same {
			t.Errorf("%s and %s: %v", c.a, c.b, got)
		}
	}
}
