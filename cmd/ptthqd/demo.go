package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"ptthqd/pkg/control"
	"ptthqd/pkg/ident"
)

func newDemoCommand() *cobra.Command {
	var stay bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Try it out: a relay, a server and a client on this machine",
		Long: `Run a relay, a server and a client on this machine, with keys and configs of their own in a
temporary directory; send data through them, both ways and checked; kill the relay in the middle of
it; and show what comes out. It takes less than half a minute, touches nothing else and leaves nothing
behind.

--stay leaves them up, to be tried with curl and other programs, until Ctrl-C.`,
		Example: `  ptthqd demo
  ptthqd demo --stay`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			err := demonstrate(ctx, cmd.OutOrStdout(), stay)
			if err != nil && ctx.Err() != nil {
				return errors.New("interrupted")
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&stay, "stay", false, "leave it up until Ctrl-C")
	return hideConfig(cmd)
}

// The ports of the demo. It uses others if they are taken.
const (
	demoRelayPort  = 30380 // UDP
	demoClientPort = 30381 // the mapping, where P1 connects
	demoServerPort = 30382 // P5
)

// demo is three processes and an end server on one machine.
type demo struct {
	out   io.Writer
	dir   string
	exe   string
	nodes map[string]*node

	relayPort, clientPort, serverPort int
}

// node is one of the processes.
type node struct {
	*exec.Cmd
	log   string // the file that it logs to
	ended chan struct{}
}

func demonstrate(ctx context.Context, out io.Writer, stay bool) (err error) {
	d := &demo{out: out, nodes: make(map[string]*node)}
	if d.exe, err = os.Executable(); err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "ptthqd-demo-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()
	endServer, err := d.listen(ctx)
	if err != nil {
		return err
	}
	var serving sync.WaitGroup
	serving.Go(func() { serveDemo(endServer) })
	defer serving.Wait()
	defer endServer.Close()

	d.say("Five programs on this machine, as they would be on three:")
	d.say("")
	d.say("  P1, a TCP client:   this command")
	d.say("  P2, ptthqd client:  listens on TCP 127.0.0.1:%d for P1", d.clientPort)
	d.say("  P3, ptthqd relay:   listens on UDP 127.0.0.1:%d for P2 and P4", d.relayPort)
	d.say("  P4, ptthqd server:  listens nowhere, connects to the relay and to P5")
	d.say("  P5, a TCP server:   this command, on TCP 127.0.0.1:%d", d.serverPort)
	d.say("")
	d.say("  P1 --TCP--> P2 ==QUIC==> P3 <==QUIC== P4 --TCP--> P5")
	d.say("")
	if err := d.writeConfigs(); err != nil {
		return err
	}
	defer d.stop()
	for _, role := range []string{"relay", "server", "client"} {
		if err := d.start(ctx, role); err != nil {
			return err
		}
	}
	if err := d.awaitLinks(ctx); err != nil {
		return err
	}
	d.say("All three are up, with keys, configs and logs in %s.", d.dir)
	if err := d.show(ctx); err != nil {
		return err
	}
	if stay {
		d.invite(ctx)
	}
	return nil
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

// listen binds the port of P5, and finds two free ports for the others.
func (d *demo) listen(ctx context.Context) (net.Listener, error) {
	var lc net.ListenConfig
	for _, port := range []string{strconv.Itoa(demoRelayPort), "0"} {
		conn, err := lc.ListenPacket(ctx, "udp", "127.0.0.1:"+port)
		if err == nil {
			d.relayPort = conn.LocalAddr().(*net.UDPAddr).Port
			_ = conn.Close()
			break
		}
	}
	find := func(preferred int) (l net.Listener, err error) {
		for _, port := range []string{strconv.Itoa(preferred), "0"} {
			if l, err = lc.Listen(ctx, "tcp", "127.0.0.1:"+port); err == nil {
				return l, nil
			}
		}
		return nil, fmt.Errorf("find a free port: %w", err)
	}
	p2, err := find(demoClientPort)
	if err != nil {
		return nil, err
	}
	d.clientPort = p2.Addr().(*net.TCPAddr).Port
	p5, err := find(demoServerPort)
	_ = p2.Close()
	if err != nil {
		return nil, err
	}
	d.serverPort = p5.Addr().(*net.TCPAddr).Port
	return p5, nil
}

func (d *demo) writeConfigs() error {
	public := make(map[string]ident.PublicKey)
	for _, role := range []string{"relay", "server", "client"} {
		key, err := ident.Generate()
		if err != nil {
			return err
		}
		if err := ident.WritePrivateKey(d.path(role, ".key"), key, false); err != nil {
			return err
		}
		public[role] = key.Public()
	}
	toRelay := fmt.Sprintf("\n[[relays]]\naddress    = \"127.0.0.1:%d\"\npublic_key = %q\n",
		d.relayPort, public["relay"])
	for role, text := range map[string]string{
		"relay": fmt.Sprintf("role   = \"relay\"\nlisten = [\"127.0.0.1:%d\"]\n", d.relayPort) +
			fmt.Sprintf("\n[[peers]]\nid              = \"laptop\"\nrole            = \"client\"\npublic_key      = %q\nallowed_servers = [\"nas\"]\n", public["client"]) +
			fmt.Sprintf("\n[[peers]]\nid         = \"nas\"\nrole       = \"server\"\npublic_key = %q\n", public["server"]),
		"server": "role = \"server\"\nid   = \"nas\"\n" + toRelay +
			fmt.Sprintf("\n[[services]]\nname    = \"demo\"\ntarget  = \"%d\"\nclients = "+
				"[\"laptop\"]\n", d.serverPort),
		"client": "role = \"client\"\nid   = \"laptop\"\n" + toRelay +
			fmt.Sprintf("\n[[mappings]]\nname   = \"demo\"\nlisten = \"127.0.0.1:%d\"\nserver = "+
				"\"nas\"\ntarget = \"%d\"\n", d.clientPort, d.serverPort),
	} {
		if err := os.WriteFile(d.path(role, ".toml"), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) path(role, suffix string) string { return filepath.Join(d.dir, role+suffix) }

// client returns a client of a node's control socket.
func (d *demo) client(role string) *control.Client {
	return &control.Client{Socket: d.path(role, ".sock"), Config: d.path(role, ".toml")}
}

// start runs a node and returns when it is ready. A node outlives ctx: stop ends it.
func (d *demo) start(ctx context.Context, role string) error {
	n := &node{
		Cmd: exec.CommandContext(context.WithoutCancel(ctx), d.exe, "run", "-c",
			d.path(role, ".toml"), "--socket", d.path(role, ".sock"), "--log-format=text"),
		log: d.path(role, ".log"), ended: make(chan struct{}),
	}
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	n.Stderr = log
	if err := n.Start(); err != nil {
		return fmt.Errorf("start the %s: %w", role, err)
	}
	d.nodes[role] = n
	go n.await()
	return d.await(ctx, role, func(s *control.Status) bool { return s.State == "running" })
}

func (n *node) await() {
	_ = n.Wait() // how it ended is in its log
	close(n.ended)
}

const (
	demoPatience = 10 * time.Second
	demoPoll     = 20 * time.Millisecond
)

// await asks a node for its status until that is as wanted.
func (d *demo) await(ctx context.Context, role string, wanted func(*control.Status) bool) error {
	ctx, cancel := context.WithTimeout(ctx, demoPatience)
	defer cancel()
	tick := time.NewTicker(demoPoll)
	defer tick.Stop()
	n := d.nodes[role]
	for {
		if s, err := d.client(role).Status(ctx); err == nil && s.PID == n.Process.Pid && wanted(s) {
			return nil
		}
		select {
		case <-tick.C:
		case <-n.ended:
			said, _ := os.ReadFile(n.log)
			return fmt.Errorf("the %s has ended; its log:\n%s", role, said)
		case <-ctx.Done():
			return fmt.Errorf("the %s isn't ready after %v: %w", role, demoPatience, ctx.Err())
		}
	}
}

func (d *demo) awaitLinks(ctx context.Context) error {
	for _, role := range []string{"server", "client"} {
		if err := d.await(ctx, role,
			func(s *control.Status) bool { return s.Links[0].State == control.LinkConnected }); err != nil {
			return err
		}
	}
	return nil
}

// stop ends the nodes: with SIGTERM, and after a while with SIGKILL.
func (d *demo) stop() {
	for _, n := range d.nodes {
		if n.Process.Signal(syscall.SIGTERM) != nil { // Windows has none
			_ = n.Process.Kill()
		}
	}
	for _, n := range d.nodes {
		select {
		case <-n.ended:
		case <-time.After(demoPatience):
			_ = n.Process.Kill()
			<-n.ended
		}
	}
}

// The sizes and counts of the measurements.
const (
	demoRoundTrips = 300
	demoSample     = 32 << 20        // bytes of the transfer that measures throughput
	demoLength     = 4 * time.Second // of the transfer that the relay is killed in
	demoMost       = 1 << 30         // bytes of that
)

// show sends data through the chain.
func (d *demo) show(ctx context.Context) error {
	mapping := fmt.Sprintf("127.0.0.1:%d", d.clientPort)

	d.say("\n1. Small messages there and back")
	trips, err := roundTrips(ctx, mapping, demoRoundTrips)
	if err != nil {
		return err
	}
	slices.Sort(trips)
	d.say("   %d round trips over one connection: half within %v, 99 of 100 within %v", len(trips),
		trips[len(trips)/2].Round(10*time.Microsecond), trips[len(trips)*99/100].Round(10*time.Microsecond))

	d.say("\n2. %s up and as much down, at once, over two connections", size(demoSample))
	sample, err := transferBoth(ctx, mapping, demoSample, nil)
	if err != nil {
		return err
	}
	d.say("   %s", sample)

	amount := min(demoMost, int64(demoSample*(demoLength.Seconds()/sample.took.Seconds())))
	d.say("\n3. %s up and as much down; and in the middle of it the relay is killed (SIGKILL)",
		size(uint64(amount)))
	result, err := transferBoth(ctx, mapping, amount, d.killRelay)
	if err != nil {
		return err
	}
	d.say("   %s", result)
	d.say("   Longest gap between two bytes: %v. Nothing was lost: to P1 and P5 it was a pause.",
		result.gap.Round(time.Millisecond))
	return nil
}

// killRelay shows the relay's table, kills the relay, and starts it again.
func (d *demo) killRelay(ctx context.Context) error {
	s, err := d.client("relay").Status(ctx)
	if err != nil {
		return err
	}
	d.say("   What the relay knows of the two connections:")
	var table bytes.Buffer
	printConnections(&table, s, time.Now())
	for line := range strings.Lines(table.String()) {
		fmt.Fprint(d.out, "   "+line)
	}
	d.say("")
	relay := d.nodes["relay"]
	if err := relay.Process.Kill(); err != nil {
		return fmt.Errorf("kill the relay: %w", err)
	}
	<-relay.ended
	d.say("   The relay is dead. Starting another ...")
	if err := d.start(ctx, "relay"); err != nil {
		return err
	}
	d.say("   It is up, and knows nothing of before; the client and the server connect, and go on.")
	return nil
}

// invite says what to try, and leaves the demo running until ctx is done.
func (d *demo) invite(ctx context.Context) {
	d.say("\nIt stays up until Ctrl-C. In another terminal:")
	d.say("")
	d.say("  curl http://127.0.0.1:%d/", d.clientPort)
	d.say("  head -c 100M /dev/zero | curl -T - http://127.0.0.1:%d/ | sha256sum", d.clientPort)
	d.say("  %s status --watch --socket %s", d.exe, d.path("relay", ".sock"))
	d.say("  %s explain laptop nas %d --socket %s", d.exe, d.serverPort, d.path("server", ".sock"))
	d.say("  tail -f %s      # each connection has one ID in all three", d.path("*", ".log"))
	d.say("")
	d.say("The configs are in %s: change one and see it taken over, or add a mapping of your own:",
		d.dir)
	d.say(`a [[mappings]] in client.toml and a [[services]] with clients = ["laptop"] in ` +
		"server.toml, say to port 22 for ssh.")
	<-ctx.Done()
}
