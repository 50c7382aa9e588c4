package daemon_test

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"ptthqd/pkg/control"
	"ptthqd/test/testutil"
)

// squat takes a port of 127.0.0.1, for TCP or UDP, until the function is called.
func squat(t *testing.T, network string, port int) (leave func()) {
	t.Helper()
	address := fmt.Sprintf("127.0.0.1:%d", port)
	if network == "udp" {
		c, err := net.ListenPacket(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return func() { _ = c.Close() }
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return func() { _ = l.Close() }
}

// warns reports whether a warning of the status has all the parts in its text or hint.
func warns(now *control.Status, parts ...string) bool {
	for _, w := range now.Warnings {
		all := true
		for _, part := range parts {
			all = all && strings.Contains(w.Text+" / "+w.Hint, part)
		}
		if all {
			return true
		}
	}
	return false
}

// A client with a mapping whose port is in use stays up, tells of it everywhere, and binds the port
// when it is free.
func TestMappingThatCannotListen(t *testing.T) {
	s := newSite(t)
	s.key("client")
	bad, good, page := testutil.FreePort(t), testutil.FreePort(t), testutil.FreePort(t)
	leave := squat(t, "tcp", bad)
	metrics := fmt.Sprintf("127.0.0.1:%d", page)
	s.write("client.toml", fmt.Sprintf("role = \"client\"\nid = \"laptop\"\n[[relays]]\naddress = \"127.0.0.1:9\"\npublic_key = %q\n"+
		"[metrics]\nlisten = %q\n[[mappings]]\nname = \"bad\"\nlisten = \"127.0.0.1:%d\"\nserver = \"nas\"\ntarget = \"22\"\n"+
		"[[mappings]]\nname = \"good\"\nlisten = \"127.0.0.1:%d\"\nserver = \"nas\"\ntarget = \"22\"\n", keyA, metrics, bad, good))
	p := s.start("client")

	now, err := p.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	problem := fmt.Sprintf("failed: listen on 127.0.0.1:%d: bind: address already in use, retrying", bad)
	if m := now.Mappings[0]; m.Problem != problem || !strings.Contains(m.Hint, "another process listens there") {
		t.Errorf("the mapping stands as %+v", m)
	}
	if m := now.Mappings[1]; m.Problem != "" {
		t.Errorf("the other one stands as %+v", m)
	}
	if !warns(now, "mapping bad: "+problem, "another process listens there") || !strings.Contains(now.Summary, "bad: "+problem) {
		t.Errorf("it warns of %+v in %q", now.Warnings, now.Summary)
	}
	listener := func(mapping string, port, value int) string {
		return fmt.Sprintf(`ptthqd_listener_bound\{listener="127.0.0.1:%d",mapping="%s"\} %d`, port, mapping, value)
	}
	_, exposed := get(t, metrics, "/metrics")
	has(t, exposed, listener("bad", bad, 0), listener("good", good, 1), "ptthqd_ready 0")
	if code, body := get(t, metrics, "/readyz"); code != 503 || body != "bad: "+problem+"\n" {
		t.Errorf("/readyz: %d %q", code, body)
	}
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", good)); err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}

	leave()
	now = p.until("it listens", func(now *control.Status) bool { return now.Mappings[0].Problem == "" })
	if warns(now, "mapping bad") || strings.Contains(now.Summary, "failed") {
		t.Errorf("it warns of %+v in %q", now.Warnings, now.Summary)
	}
	_, exposed = get(t, metrics, "/metrics")
	has(t, exposed, listener("bad", bad, 1), "ptthqd_ready 1")
	if code, body := get(t, metrics, "/readyz"); code != 200 {
		t.Errorf("/readyz: %d %q", code, body)
	}
}

// A relay starts if it can listen at one place, and takes links at the other places when they can
// be bound.
func TestRelayThatCannotListenEverywhere(t *testing.T) {
	s := newSite(t)
	public := s.key("relay")
	bad, good, page := testutil.FreePort(t), testutil.FreePort(t), testutil.FreePort(t)
	leave := squat(t, "udp", bad)
	leaveMetrics := squat(t, "tcp", page)
	metrics := fmt.Sprintf("127.0.0.1:%d", page)
	s.write("relay.toml", fmt.Sprintf("role = \"relay\"\nlisten = [\"127.0.0.1:%d\", \"127.0.0.1:%d\"]\n[metrics]\nlisten = %q\n%s",
		bad, good, metrics, peer("a", s.key("a"))+peer("b", s.key("b"))))
	p := s.start("relay")

	now, err := p.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	problem := fmt.Sprintf("failed: listen on UDP 127.0.0.1:%d: bind: address already in use, retrying", bad)
	if len(now.Listeners) != 2 || now.Listeners[0].Problem != "" || now.Listeners[1].Problem != problem || now.Listeners[1].Address != "" {
		t.Errorf("the listeners stand as %+v", now.Listeners)
	}
	if !warns(now, problem, "another process listens there") || !strings.Contains(now.Summary, problem) {
		t.Errorf("it warns of %+v in %q", now.Warnings, now.Summary)
	}
	if told := fmt.Sprintf("metrics: failed: listen on %s: bind: address already in use, retrying", metrics); !warns(now, told) || !strings.Contains(now.Summary, told) {
		t.Errorf("it warns of %+v in %q", now.Warnings, now.Summary)
	}
	s.dialAs("a", good, public)
	p.until("a peer is connected", connected("a"))

	leave()
	leaveMetrics()
	s.dialAs("b", bad, public)
	now = p.until("a peer is connected at the other place", connected("b"))
	if len(now.Listeners) != 2 || now.Listeners[1].Problem != "" {
		t.Errorf("the listeners stand as %+v", now.Listeners)
	}
	p.until("metrics are served", func(now *control.Status) bool { return !warns(now, "metrics: failed") })
	_, exposed := get(t, metrics, "/metrics")
	has(t, exposed, fmt.Sprintf(`ptthqd_listener_bound\{listener="127.0.0.1:%d",mapping=""\} 1`, bad), "ptthqd_ready 1")
}

// A relay that can listen nowhere does not start, and says why for each place.
func TestRelayThatCanListenNowhere(t *testing.T) {
	s := newSite(t)
	s.key("relay")
	one, two := testutil.FreePort(t), testutil.FreePort(t)
	squat(t, "udp", one)
	squat(t, "udp", two)
	s.write("relay.toml", fmt.Sprintf("role = \"relay\"\nlisten = [\"127.0.0.1:%d\", \"127.0.0.1:%d\"]\n", one, two))
	p := s.begin("relay")
	<-p.done
	for _, port := range []int{one, two} {
		if want := fmt.Sprintf("listen on UDP 127.0.0.1:%d: bind: address already in use: another process", port); p.err == nil || !strings.Contains(p.err.Error(), want) {
			t.Errorf("it ends with %v, want %q", p.err, want)
		}
	}
}

// A reload that fails for a fault of the host changes nothing, and is tried again by itself. The
// log says once that it failed.
func TestFaultOfTheHostIsTriedAgain(t *testing.T) {
	s := newSite(t)
	s.key("client")
	first, second := testutil.FreePort(t), testutil.FreePort(t)
	leave := squat(t, "tcp", second)
	write := func(port int) {
		s.write("client.toml", fmt.Sprintf("role = \"client\"\nid = \"laptop\"\n[[relays]]\naddress = \"127.0.0.1:9\"\npublic_key = %q\n"+
			"[[mappings]]\nname = \"m\"\nlisten = \"127.0.0.1:%d\"\nserver = \"nas\"\ntarget = \"22\"\n", keyA, port))
	}
	write(first)
	p := s.start("client")
	write(second)
	done, err := p.Reload(t.Context())
	if err != nil || done.OK || done.Cause != control.CauseHost || !done.Retrying {
		t.Fatalf("%+v, %v", done, err)
	}
	now := p.until("the old one is in force", func(now *control.Status) bool { return now.Mappings[0].Listen == fmt.Sprintf("127.0.0.1:%d", first) })
	if !warns(now, "the config in the file is not in force", "by itself") {
		t.Errorf("it warns of %+v", now.Warnings)
	}
	leave()
	now = p.until("the new one is in force", func(now *control.Status) bool { return now.Mappings[0].Listen == fmt.Sprintf("127.0.0.1:%d", second) })
	if r := now.Config.Reload; !r.OK || r.Trigger != "retry" || now.Counters.BadReload != 1 {
		t.Errorf("%+v, %d failed", r, now.Counters.BadReload)
	}
	if lines := strings.Count(p.log.String(), "config not reloaded"); lines != 1 {
		t.Errorf("%d lines about the failure, want one", lines)
	}
}

// The daemon doesn't repeat a try that would close a listener in use.
func TestWhatInterruptsIsNotTriedAgain(t *testing.T) {
	s := newSite(t)
	s.key("client")
	port := testutil.FreePort(t)
	write := func(listen string) {
		s.write("client.toml", fmt.Sprintf("role = \"client\"\nid = \"laptop\"\n[[relays]]\naddress = \"127.0.0.1:9\"\npublic_key = %q\n"+
			"[[mappings]]\nname = \"m\"\nlisten = %q\nserver = \"nas\"\ntarget = \"22\"\n", keyA, fmt.Sprintf(listen, port)))
	}
	write("127.0.0.1:%d")
	p := s.start("client")
	other, err := net.Listen("tcp", fmt.Sprintf("127.0.0.2:%d", port)) // in the way of 0.0.0.0
	if err != nil {
		t.Skipf("this host has no 127.0.0.2 (ifconfig lo0 alias 127.0.0.2): %v", err)
	}
	defer func() { _ = other.Close() }()
	write("0.0.0.0:%d")
	done, err := p.Reload(t.Context())
	if err != nil || done.OK || done.Cause != control.CauseHost || done.Retrying {
		t.Fatalf("%+v, %v", done, err)
	}
	now, err := p.Status(t.Context())
	if err != nil || !warns(now, "the config in the file is not in force", "not tried again by itself") {
		t.Errorf("it warns of %+v, %v", now.Warnings, err)
	}
}
