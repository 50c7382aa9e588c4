//go:build linux

package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"ptthqd/pkg/ident"
	"ptthqd/test/testutil"
)

// newPeer adds a client, phone, to a site that runs, which may connect at once; with a service of its own and a mapping to it.
// It returns the mapping's port and the service's connections.
func (s *site) newPeer() (port int, p5 <-chan *net.TCPConn) {
	s.t.Helper()
	const node = "phone"
	key, err := ident.Generate()
	if err == nil {
		err = ident.WritePrivateKey(s.path(node, ".key"), key, false)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.keys[node] = key
	accepted := make(chan *net.TCPConn, 10)
	target := listen(s.t, func(c net.Conn) { accepted <- c.(*net.TCPConn) }).Addr().(*net.TCPAddr).Port
	s.reload("nas", also(fmt.Sprintf("[[services]]\ntarget = \"%d\"\nclients = [\"phone\"]", target)))
	s.reload("relay", also(fmt.Sprintf("[[peers]]\nid = \"phone\"\nrole = \"client\"\npublic_key = %q\nallowed_servers = [\"n?s\"]", key.Public())))
	port = testutil.FreePort(s.t)
	s.write(node, fmt.Sprintf("role = \"client\"\nid = \"phone\"\n[[relays]]\naddress = \"127.0.0.1:%d\"\npublic_key = %q\n"+
		"[[mappings]]\nname = \"own\"\nlisten = \"127.0.0.1:%d\"\nserver = \"nas\"\ntarget = \"%d\"\n",
		s.ports["relay"], s.keys["relay"].Public(), port, target))
	s.start(node)
	return port, accepted
}

// A withdrawal is a way to take a right away.
type withdrawal struct {
	name, node string
	change     func(s *site) func(string) string
	log        string // of the node, with the connection's ID for ID
}

// TestRightsWithdrawn adds a client to a chain under traffic, and takes its right away again at each place that can, by replacing
// the file alone: its connections end within 1.5 s at all nodes, and all others go on. Those that are detached end too, at
// the nodes that run, and at one that was away within 1.5 s of its return.
func TestRightsWithdrawn(t *testing.T) {
	for _, c := range []withdrawal{
		{
			"allowed server", "relay", func(*site) func(string) string { return swap(`["n?s"]`, `["gone"]`) },
			`connection revoked peer=phone connection=ID client=phone .*allowed_before_by=\S*relay\.toml:\d+`,
		},
		{
			"key", "relay", func(s *site) func(string) string {
				return swap(s.keys["phone"].Public().String(), s.keys["stranger"].Public().String())
			},
			`connection revoked peer=phone connection=ID client=phone .*the key of its client or server was withdrawn`,
		},
		{
			"service's client", "nas", func(*site) func(string) string { return swap(`clients = ["phone"]`, `clients = ["nobody"]`) },
			`connection failed.* connection=ID .*nas\.toml:\d+`,
		},
	} {
		for _, away := range []string{"", "phone", "nas"} {
			name := c.name
			if away != "" {
				name += ", without " + away
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				promised(t, atOnce, func() map[string]time.Duration { return withdrawn(t, c, away) })
			})
		}
	}
}

// withdrawn takes a right away while a node is away, or none, and tells how long it took until each node and end of the connection
// had heard of it, from when it could.
func withdrawn(t *testing.T, c withdrawal, away string) map[string]time.Duration {
	t.Helper()
	took := make(map[string]time.Duration)
	s := &site{world: newWorld(t, endServer)}
	s.extra["relay"] = "limits.auth_penalty = \"0s\"\n" // all have one address, and a withdrawn key comes again and again
	s.writeConfigs()
	s.all()
	s.undisturbed = startTraffic(s.world, "request")
	stranger, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	s.keys["stranger"] = stranger
	port, accepted := s.newPeer()
	p1 := dialPort(t, port)
	if _, err := p1.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	p5 := <-accepted
	if _, err := io.ReadFull(p5, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	id := s.status("phone").Connections[0].ID
	if away != "" {
		s.procs[away].signal(syscall.SIGSTOP)
		at := "nas"
		if away == at {
			at = "phone"
		}
		eventually(t, 30*time.Second, "the session is detached at "+at, func() error {
			if now := s.connection(at, id); now != "detached" {
				return fmt.Errorf("it is %s", now)
			}
			return nil
		})
	}
	text, err := os.ReadFile(s.path(c.node, ".toml"))
	if err != nil {
		t.Fatal(err)
	}
	since := time.Now()
	s.write(c.node, c.change(s)(string(text)))
	ends := func(node string) {
		t.Helper()
		switch node {
		case "phone":
			took["P1"] = isReset(t, "P1", p1, since)
		case "nas":
			took["P5"] = isReset(t, "P5", p5, since)
		}
		eventually(t, 20*time.Second, "it is over at "+node, func() error {
			if now := s.connection(node, id); now != "" {
				return fmt.Errorf("it is %s", now)
			}
			return nil
		})
		took[node] = time.Since(since)
	}
	var later []string
	for _, node := range []string{"relay", "nas", "phone"} {
		if node == away || away == c.node {
			later = append(later, node)
			continue
		}
		ends(node)
	}
	if away != "" {
		since = time.Now()
		s.procs[away].signal(syscall.SIGCONT)
	}
	for _, node := range later {
		ends(node)
	}
	if away == "" {
		s.procs[c.node].says(t, strings.Replace(c.log, "ID", id, 1))
	}
	finish(s.world, s.undisturbed)
	s.end()
	return took
}

// connection is the state of a connection at a node; empty if it knows none of this ID.
func (w *world) connection(node, id string) string {
	w.t.Helper()
	for _, c := range w.status(node).Connections {
		if c.ID == id {
			return c.State
		}
	}
	return ""
}
