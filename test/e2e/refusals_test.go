//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ptthqd/pkg/ident"
	"ptthqd/test/testutil"
)

// wantReset reads from c until it is reset. An orderly end is not a reset.
func wantReset(t *testing.T, who string, c net.Conn, within time.Duration) {
	t.Helper()
	begun := time.Now()
	_ = c.SetReadDeadline(begun.Add(within))
	n, err := io.Copy(io.Discard, c)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s reads %d bytes, then %v, not a reset", who, n, err)
		return
	}
	t.Logf("%s was reset after %v, of %v at most", who, time.Since(begun).Round(time.Millisecond), within)
}

// connectionID is what a line of a log says of which connection it is.
var connectionID = regexp.MustCompile(`connection=(\w+)`)

// TestRefusals has a connection refused in every way. P1 sees a reset; the
// client's log says the code, the reason and who refused; all whom the connection has
// reached have a line with the same ID and code.
func TestRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t, endServer)
	w.extra["relay"] = "[limits]\npark_timeout = \"0s\"\n" // or they would be held, as the relay is young
	for _, id := range []string{"absent", "narrow", "other"} {
		key, err := ident.Generate()
		if err != nil {
			t.Fatal(err)
		}
		w.extra["relay"] += fmt.Sprintf("[[peers]]\nid = %q\nrole = \"server\"\npublic_key = %q\n", id, key.Public())
	}
	w.allowed = `"nas", "absent", "narrow:22", "unknown"`
	closed, unlisted := testutil.FreePort(t), testutil.FreePort(t)
	deaf := deafListener(t)
	socket := filepath.Join(w.dir, "no.sock")
	w.extra["nas"] = "[limits]\ndial_timeout = \"1s\"\n"
	service := func(target, client string) {
		w.extra["nas"] += fmt.Sprintf("[[services]]\ntarget = %q\nclients = [%q]\n", target, client)
	}
	service(strconv.Itoa(closed), "laptop")
	service(strconv.Itoa(deaf), "laptop")
	service("unix:"+socket, "laptop")
	service("9", "somebody-*")
	service("127.9.0.0/24:9000-9010", "laptop")

	cases := []struct {
		name           string
		server, target string
		code           int
		by             string
		reason         string // in the client's log
		whySaid        string // in the log of who refused: which rule; empty if the client is told all
	}{
		{"server not allowed by the relay", "other", "22", 403, "relay", "the relay does not allow laptop to reach :22 at other", `allowed_servers of laptop .*rule=.*relay\.toml:\d+`},
		{"target not allowed by the relay", "narrow", "23", 403, "relay", "the relay does not allow laptop to reach :23 at narrow", `not its target :23.*rule=.*relay\.toml:\d+`},
		{"server that no relay knows", "unknown", "22", 403, "relay", "the relay does not allow laptop to reach :22 at unknown", `no peer has the ID unknown`},
		{"target allowed, server not connected", "narrow", "22", 503, "relay", "server narrow is not connected to the relay", ""},
		{"server not connected", "absent", "22", 503, "relay", "server absent is not connected to the relay", ""},
		{"client not among the service's", "nas", "9", 403, "nas", "the services of this server do not let laptop reach :9", `the clients of :9 do not include laptop \(.*nas\.toml:\d+\)`},
		{"target of no service", "nas", strconv.Itoa(unlisted), 403, "nas", "the services of this server do not let laptop reach", "no service covers"},
		{"outside of the range of ports", "nas", "127.9.0.1:9011", 403, "nas", "the services of this server do not let laptop reach", "no service covers"},
		{"outside of the network", "nas", "127.9.1.1:9000", 403, "nas", "the services of this server do not let laptop reach", "no service covers"},
		{"service of no name", "nas", "nameless", 403, "nas", "the services of this server do not let laptop reach", "no service has the name nameless"},
		{"connection refused", "nas", strconv.Itoa(closed), 502, "nas", "connection refused: nothing listens there, or a firewall rejects it", ""},
		{"no such socket", "nas", "unix:" + socket, 502, "nas", "no such socket on the server", ""},
		{"no answer in time", "nas", strconv.Itoa(deaf), 504, "nas", "no answer within 1s: it is down, or a firewall drops the packets", ""},
	}
	ports := make([]int, len(cases))
	for i, c := range cases {
		ports[i] = testutil.FreePort(t)
		w.mapping(fmt.Sprintf("m%d", i), fmt.Sprintf("127.0.0.1:%d", ports[i]), c.server, c.target)
	}
	w.writeConfigs()
	w.all()

	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			source := refusedConnection(t, ports[i])
			line := w.procs["laptop"].says(t, fmt.Sprintf(`connection refused .*mapping=m%d `, i))
			id := connectionID.FindStringSubmatch(line)
			if id == nil {
				t.Fatalf("no connection ID: %s", line)
			}
			for _, part := range []string{
				"end=refused", fmt.Sprintf("code=%d", c.code), "by=" + c.by, c.reason,
				"server=" + c.server, "source=" + source,
			} {
				if !strings.Contains(line, part) {
					t.Errorf("no %s in the client's line: %s", part, line)
				}
			}
			same := fmt.Sprintf(`connection refused .*connection=%s .*code=%d `, id[1], c.code)
			lines := map[string]string{"relay": w.procs["relay"].says(t, same)}
			if c.by == "nas" {
				lines["nas"] = w.procs["nas"].says(t, same)
			}
			if !regexp.MustCompile(c.whySaid).MatchString(lines[c.by]) {
				t.Errorf("no %s in the line of %s: %s", c.whySaid, c.by, lines[c.by])
			}
		})
	}
	// Nothing of it stays.
	w.empties(t, 10*time.Second)
}

// refusedConnection is a P1 that is refused. It returns P1's address.
func refusedConnection(t *testing.T, port int) string {
	t.Helper()
	p1, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if errors.Is(err, syscall.ECONNRESET) {
		return "" // the reset has come before the connection was looked at
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p1.Close() }()
	// The error of a reset is told once: to whoever asks first.
	if _, err := io.WriteString(p1, "too early"); !errors.Is(err, syscall.ECONNRESET) {
		wantReset(t, "P1", p1, 45*time.Second)
	}
	return p1.LocalAddr().String()
}

// deafListener returns a port of the loopback whose listener takes no more
// connections: its queue is full, and the kernel drops what else comes.
func deafListener(t *testing.T) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	at, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := at.(*syscall.SockaddrInet4).Port
	for range 10 {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 300*time.Millisecond)
		if err != nil {
			return port
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Fatal("the listener's queue doesn't fill")
	return 0
}

// TestTooMany runs into the limits of the server and of the relay.
func TestTooMany(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ node, limit, reason string }{
		{"nas", "sessions_per_client = 2", "the client has as many sessions at the server as the limit allows"},
		{"relay", "opens_per_second = 1", "more than 1 requests a second"},
	} {
		t.Run(c.node, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, endServer)
			w.extra[c.node] = "[limits]\n" + c.limit + "\n"
			w.writeConfigs()
			w.all()
			w.empties(t, 5*time.Second)
			refused := false
			for i := 0; i < 50 && !refused; i++ { // the first that is refused has a line of its own everywhere
				p1, err := w.dial()
				if err == nil {
					t.Cleanup(func() { _ = p1.Close() })
					_, _ = p1.Write(append(request{kind: kindEcho}.bytes(), 'x'))
					_, err = p1.Read(make([]byte, 1))
				}
				refused = err != nil
			}
			line := w.procs["laptop"].says(t, `connection refused .*code=429 reason="`+c.reason+`.*" by=`+c.node)
			id := connectionID.FindStringSubmatch(line)[1]
			for _, name := range []string{"relay", c.node} {
				w.procs[name].says(t, "connection refused .*connection="+id+" .*code=429")
			}
		})
	}
}

// TestUnresolvable has targets whose names can't be resolved by the server's DNS.
func TestUnresolvable(t *testing.T) {
	t.Parallel()
	requires(t, os.Geteuid() == 0, "a resolv.conf of its own needs root, for a mount namespace")
	requires(t, exec.Command("unshare", "-m", "true").Run() == nil, "mount namespaces are not to be had here")
	dns, err := net.ListenPacket("udp", "127.53.53.53:53")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dns.Close() })
	go func() {
		q := make([]byte, 512)
		for {
			n, from, err := dns.ReadFrom(q)
			if err != nil {
				return
			}
			if n < 12 || strings.Contains(string(q[:n]), "silent") {
				continue
			}
			// The question is sent back as the answer: no such name (RFC 1035, section 4.1.1).
			q[2], q[3] = q[2]|0x80, 0x83
			_, _ = dns.WriteTo(q[:n], from)
		}
	}()

	w := newWorld(t, endServer)
	resolv := w.path("nas", ".resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 127.53.53.53\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.prefix["nas"] = []string{"unshare", "-m", "sh", "-c", "mount --bind " + resolv + ` /etc/resolv.conf && exec "$0" "$@"`}
	w.extra["nas"] = "[limits]\ndial_timeout = \"1s\"\n"
	missing, silent := w.forward("missing.example.com:80"), w.forward("silent.example.com:80")
	w.all()
	refusedConnection(t, missing)
	w.procs["laptop"].says(t, `connection refused .*target=missing\.example\.com:80 .*code=502 reason="missing\.example\.com:80: no such host: the server's DNS does not know .*" by=nas`)
	refusedConnection(t, silent)
	w.procs["laptop"].says(t, `connection refused .*target=silent\.example\.com:80 .*code=504 reason="silent\.example\.com:80: the server's DNS did not answer .*" by=nas`)
}

// briefHold makes a client reset P1 early when it has no link.
const briefHold = "[limits]\nhold_timeout = \"1s\"\n"

// TestNoRelay resets P1, after a while, when no relay can be reached, and says
// what may be the matter.
func TestNoRelay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, endServer)
	w.extra["laptop"] = briefHold
	w.writeConfigs()
	w.start("laptop").says(t, "no answer over UDP to ") // a dial has failed
	p1 := w.mustDial()
	began := time.Now()
	wantReset(t, "P1", p1, 10*time.Second)
	if took := time.Since(began); took < 900*time.Millisecond {
		t.Errorf("reset after %v", took)
	}
	w.procs["laptop"].says(t, `mapping=main .*end="no link to a relay" code=503 reason="no relay connected within 1s: .*no answer over UDP to 127\.0\.0\.1:\d+; UDP may be blocked on the way, or the relay is not running`)
}

// TestUnknownKeys has nodes whose key the relay doesn't know. They get no link,
// both logs say what to do, and once it is done the chain carries.
func TestUnknownKeys(t *testing.T) {
	t.Parallel()
	for _, node := range []string{"laptop", "nas"} {
		t.Run(node, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, endServer)
			w.extra["relay"] = "[limits]\npark_timeout = \"0s\"\n" // a young relay would hold P1
			w.extra["laptop"] = briefHold
			w.writeConfigs()
			known := w.keys[node]
			stranger, err := ident.Generate()
			if err != nil {
				t.Fatal(err)
			}
			if err := ident.WritePrivateKey(w.path(node, ".key"), stranger, true); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"relay", "nas", "laptop"} {
				w.start(name)
			}
			key := regexp.QuoteMeta(stranger.Public().String())
			w.procs[node].says(t, "the relay at .* does not know this node's key, "+key+": have its administrator add it as public_key of one of the \\[\\[peers\\]\\] there")
			w.procs["relay"].says(t, key+" belongs to no peer; if it should, add it to a \\[\\[peers\\]\\] of this relay")
			w.wantNoLink(t, node)
			if strings.Contains(w.procs["relay"].output(), known.Public().String()) {
				t.Error("the relay has seen another key")
			}
			// What the advice says.
			w.keys[node] = stranger
			w.writeConfigs()
			w.carries(40 * time.Second)
		})
	}
}

// TestWrongRelayKey has nodes that expect another relay key than the relay has.
func TestWrongRelayKey(t *testing.T) {
	t.Parallel()
	for _, node := range []string{"laptop", "nas"} {
		t.Run(node, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, endServer)
			w.extra["relay"] = "[limits]\npark_timeout = \"0s\"\n" // a young relay would hold P1
			w.extra["laptop"] = briefHold
			w.writeConfigs()
			other, err := ident.Generate()
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(w.path(node, ".toml"))
			if err != nil {
				t.Fatal(err)
			}
			right := w.keys["relay"].Public().String()
			w.write(node, strings.ReplaceAll(string(text), right, other.Public().String()))
			for _, name := range []string{"relay", "nas", "laptop"} {
				w.start(name)
			}
			w.procs[node].says(t, "the relay at .* presented the key "+regexp.QuoteMeta(right)+
				", the config pins "+regexp.QuoteMeta(other.Public().String())+": ask the relay's administrator for its key")
			w.wantNoLink(t, node)
			w.writeConfigs()
			w.carries(40 * time.Second)
		})
	}
}

// wantNoLink checks that a node has no link, by what everybody knows, and that
// P1 is not served.
func (w *world) wantNoLink(t *testing.T, node string) {
	t.Helper()
	for _, l := range w.status(node).Links {
		if l.State == "connected" || l.LastError == "" {
			t.Errorf("the status of %s: %+v", node, l)
		}
	}
	for _, p := range w.status("relay").Peers {
		if p.ID == node && p.Connected {
			t.Errorf("the status of the relay: %+v", p)
		}
	}
	for name, said := range map[string]string{node: "link up", "relay": "link up peer=" + node} {
		if strings.Contains(w.procs[name].output(), said) {
			t.Errorf("%s has said %q", name, said)
		}
	}
	p1, err := w.dial()
	if errors.Is(err, syscall.ECONNRESET) {
		return // so soon that connect has seen it
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p1.Close() }()
	wantReset(t, "P1", p1, 10*time.Second)
}

// TestAddresses goes through every kind of listener and target.
func TestAddresses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, endServer)
	at := func(network, address string) string {
		return testutil.Listening(t, network, address, endServer).Addr().String()
	}
	port := func(address string) string {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		return port
	}
	dir := t.TempDir()
	socket := at("unix", filepath.Join(dir, "p5.sock"))
	only6 := port(at("tcp6", "[::1]:0"))
	second := at("tcp4", "127.0.0.2:0")
	inRange := at("tcp4", "127.3.4.5:0")
	everywhere := port(at("tcp", ":0"))
	host, _ := os.Hostname()

	low, _ := strconv.Atoi(port(inRange))
	services := fmt.Sprintf("[[services]]\nname = \"by-name\"\ntarget = \"unix:%s\"\nclients = [\"laptop\"]\n", socket)
	for _, target := range []string{
		only6, second, fmt.Sprintf("127.3.4.0/24:%d-%d", low-5, low+5), host + ":" + everywhere, "127.0.0.1:" + everywhere,
	} {
		services += fmt.Sprintf("[[services]]\ntarget = %q\nclients = [\"l?pt*\"]\nallow_local = true\n", target)
	}
	w.extra["nas"] = services

	tcp4 := func() (network, listen string) { return "tcp", fmt.Sprintf("127.0.0.1:%d", testutil.FreePort(t)) }
	tcp6 := func() (network, listen string) { return "tcp", fmt.Sprintf("[::1]:%d", testutil.FreePort(t)) }
	both := func() (network, listen string) { return "tcp", fmt.Sprintf("localhost:%d", testutil.FreePort(t)) }
	unix := func() (network, listen string) { return "unix", "unix:p2" }
	bare := func() (network, listen string) { return "tcp", strconv.Itoa(testutil.FreePort(t)) }
	cases := []struct {
		name   string
		listen func() (network, listen string)
		target string
	}{
		{"IPv4 to a port that listens on IPv6 alone", tcp4, only6},
		{"IPv6 to a host and port", tcp6, second},
		{"a name to a network and range of ports", both, inRange},
		{"a Unix socket to a Unix socket", unix, "unix:" + socket},
		{"a bare port to a service's name", bare, "by-name"},
		{"IPv4 to the name of a host", tcp4, host + ":" + everywhere},
		{"IPv6 to another spelling of the loopback", tcp6, "localhost:" + everywhere},
	}
	listens := make([][2]string, len(cases))
	for i, c := range cases {
		network, listen := c.listen()
		w.mapping(fmt.Sprintf("m%d", i), listen, "nas", c.target)
		switch {
		case network == "unix":
			listen = filepath.Join(w.path("laptop", ".run"), strings.TrimPrefix(listen, "unix:"))
		case !strings.Contains(listen, ":"):
			listen = "127.0.0.1:" + listen
		}
		listens[i] = [2]string{network, listen}
	}
	w.hosts["relay"] = "[::1]" // and the links go over IPv6
	w.writeConfigs()
	w.all()
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if strings.HasPrefix(c.target, host+":") {
				if _, err := net.LookupHost(host); err != nil {
					t.Skipf("this host's own name doesn't resolve; to have this tested: add it to /etc/hosts: %v", err)
				}
			}
			p1, err := net.Dial(listens[i][0], listens[i][1])
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = p1.Close() }()
			_ = p1.SetDeadline(time.Now().Add(10 * time.Second))
			if err := exchange(p1, 1<<20, 1<<20, nil); err != nil {
				t.Error(err)
			}
		})
	}
	if info, err := os.Stat(filepath.Join(w.path("laptop", ".run"), "p2")); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the mapping's socket: %v, %v", info, err)
	}
}
