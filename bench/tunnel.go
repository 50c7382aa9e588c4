//go:build linux

package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The hosts of a chain. P1 runs on the client's, P5 on the server's.
const (
	clientHost = "client"
	relayHost  = "relay"
	serverHost = "server"
)

// roles has the roles in the order in which they start. A role's host has the same name.
var roles = []string{relayHost, serverHost, clientHost}

// A site is where a chain runs: this machine's loopback, or network namespaces with a wide area
// between them.
type site struct {
	within  map[string][]string // by host: the words before a command that make it run there
	address map[string]string   // by host: its address
}

var loopback = &site{address: map[string]string{
	clientHost: "127.0.0.1", relayHost: "127.0.0.1", serverHost: "127.0.0.1",
}}

func (s *site) command(ctx context.Context, host string, argv ...string) *exec.Cmd {
	argv = slices.Concat(s.within[host], argv)
	return exec.CommandContext(ctx, argv[0], argv[1:]...)
}

// A tunnel is a way from P1 to P5: a definition directory, or none for direct TCP.
type tunnel struct {
	name string
	dir  string
}

var direct = tunnel{name: "direct"}

// openTunnel reads a definition directory.
func openTunnel(dir string) (tunnel, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return tunnel{}, err
	}
	for _, role := range roles {
		if info, err := os.Stat(filepath.Join(dir, role)); err != nil || info.Mode()&0o111 == 0 {
			return tunnel{}, fmt.Errorf("tunnel %s: the definition needs an executable named %s", dir, role)
		}
	}
	return tunnel{name: filepath.Base(dir), dir: dir}, nil
}

// A chain is a running tunnel with P5 behind it.
type chain struct {
	tunnel tunnel
	site   *site
	dir    string // scratch
	logs   string // apart from dir, as a daemon watches the directory of its config
	target *process
	nodes  map[string]*process // by role; empty for direct TCP
	entry  string              // where P1 connects
	relay  string              // where the relay listens
}

// launch starts a tunnel's processes and waits until a byte comes back. extra has the text of
// files, by name, that the scratch directory has from the beginning.
func (b *bench) launch(
	ctx context.Context, s *site, t tunnel, extra map[string]string,
) (_ *chain, err error) {
	c := &chain{tunnel: t, site: s, nodes: map[string]*process{}}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	if c.dir, err = os.MkdirTemp(b.scratch, t.name+"-"); err != nil {
		return nil, err
	}
	c.logs = filepath.Join(c.dir, "logs")
	if err := os.Mkdir(c.logs, 0o700); err != nil {
		return nil, err
	}
	for name, text := range extra {
		if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	targetPort, err := c.serve(ctx, b.self)
	if err != nil {
		return nil, err
	}
	if t.dir == "" {
		c.entry = net.JoinHostPort(s.address[serverHost], targetPort)
		return c, b.awaitCarrying(ctx, c)
	}
	relayPort, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	listenPort, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	c.entry = net.JoinHostPort("127.0.0.1", listenPort)
	c.relay = net.JoinHostPort(s.address[relayHost], relayPort)
	environment := append(os.Environ(),
		"BENCH_TUNNEL="+t.dir,
		"BENCH_RELAY_ADDRESS="+s.address[relayHost],
		"BENCH_RELAY_PORT="+relayPort,
		"BENCH_TARGET_PORT="+targetPort,
		"BENCH_LISTEN_PORT="+listenPort,
		"PATH="+b.programs+":"+os.Getenv("PATH"),
	)
	if setup := filepath.Join(t.dir, "setup"); executable(setup) {
		cmd := exec.CommandContext(ctx, setup)
		cmd.Dir, cmd.Env = c.dir, environment
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("tunnel %s: setup: %w\n%s", t.name, err, out)
		}
	}
	for _, role := range roles {
		cmd := s.command(ctx, role, filepath.Join(t.dir, role))
		cmd.Dir, cmd.Env = c.dir, environment
		if c.nodes[role], err = start(t.name+"'s "+role, cmd, filepath.Join(c.logs, role)); err != nil {
			return nil, err
		}
	}
	return c, b.awaitCarrying(ctx, c)
}

func executable(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode()&0o111 != 0
}

// serve starts P5 and returns its port. In a wide area P5 listens on all addresses, as direct TCP
// comes from another host.
func (c *chain) serve(ctx context.Context, self string) (port string, err error) {
	listen := "127.0.0.1:0"
	if c.site != loopback {
		listen = "0.0.0.0:0"
	}
	cmd := c.site.command(ctx, serverHost, self, "serve", "-listen", listen)
	read, write, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer read.Close()
	cmd.Stdout = write
	c.target, err = start("P5", cmd, filepath.Join(c.logs, "target"))
	write.Close()
	if err != nil {
		return "", err
	}
	line, err := bufio.NewReader(read).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("P5 does not listen: %w\n%s", err, c.target.lastWords())
	}
	return strings.TrimSpace(line), nil
}

// freePort finds a port that is free for both TCP and UDP at the moment.
func freePort(ctx context.Context) (string, error) {
	var config net.ListenConfig
	for range 100 {
		tcp, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		port := tcp.Addr().(*net.TCPAddr).Port
		udp, err := config.ListenPacket(ctx, "udp", fmt.Sprintf("127.0.0.1:%d", port))
		tcp.Close()
		if err == nil {
			udp.Close()
			return strconv.Itoa(port), nil
		}
	}
	return "", errors.New("no port is free for both TCP and UDP")
}

// awaitCarrying waits until a byte comes back through the tunnel.
func (b *bench) awaitCarrying(ctx context.Context, c *chain) error {
	var last error
	for patience := time.Now().Add(30 * time.Second); time.Now().Before(patience); {
		for _, node := range c.nodes {
			if err := node.gone(); err != nil {
				return err
			}
		}
		if _, last = b.load(ctx, c, load{mode: "probe"}); last == nil {
			return nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	var words strings.Builder
	for _, role := range roles {
		if node := c.nodes[role]; node != nil {
			fmt.Fprintf(&words, "\n%s says:\n%s", node.name, node.lastWords())
		}
	}
	return fmt.Errorf("tunnel %s does not carry: %w%s", c.tunnel.name, last, words.String())
}

// load runs the load generator through the chain.
func (b *bench) load(ctx context.Context, c *chain, l load) (figures, error) {
	l.to = c.entry
	cmd := c.site.command(ctx, clientHost, append([]string{b.self}, l.args()...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return figures{}, fmt.Errorf("bench load %s through %s: %w", l.mode, c.tunnel.name, err)
	}
	return readFigures(out, l.mode, c.tunnel.name)
}

func readFigures(out []byte, mode, name string) (f figures, err error) {
	if err := json.Unmarshal(out, &f); err != nil {
		return f, fmt.Errorf("bench load %s through %s: %w", mode, name, err)
	}
	if f.Error != "" {
		return f, fmt.Errorf("%s through %s: %d failures, the first: %s", mode, name, f.Failures, f.Error)
	}
	return f, nil
}

// begin runs the load generator through the chain until it prints a line and waits. finish lets it
// go on and returns its figures.
func (b *bench) begin(
	ctx context.Context, c *chain, l load, want string,
) (finish func() (figures, error), err error) {
	l.to = c.entry
	cmd := c.site.command(ctx, clientHost, append([]string{b.self}, l.args()...)...)
	cmd.Stderr = os.Stderr
	in, out, err := converse(cmd)
	if err != nil {
		return nil, err
	}
	line, err := out.ReadString('\n')
	finish = func() (figures, error) {
		_ = in.Close()
		rest := []byte(line)
		if !strings.HasPrefix(line, "{") { // figures come at once if it could not begin
			rest, err = out.ReadBytes('\n')
		}
		if waited := cmd.Wait(); err == nil {
			err = waited
		}
		if err != nil {
			return figures{}, fmt.Errorf("bench load %s through %s: %w", l.mode, c.tunnel.name, err)
		}
		return readFigures(rest, l.mode, c.tunnel.name)
	}
	if line != want+"\n" {
		_, err := finish()
		return nil, cmp.Or(err, fmt.Errorf("bench load %s through %s: it says %q", l.mode, c.tunnel.name, line))
	}
	return finish, nil
}

// hold opens connections through the chain and holds them. release ends them, and returns an error
// if one has died.
func (b *bench) hold(ctx context.Context, c *chain, count int) (release func() error, err error) {
	l := load{mode: "hold", count: count, atOnce: 16}
	finish, err := b.begin(ctx, c, l, fmt.Sprintf("holding %d", count))
	if err != nil {
		return nil, err
	}
	return func() error {
		_, err := finish()
		return err
	}, nil
}

// cpu returns the processor time of each role so far, in seconds.
func (c *chain) cpu() map[string]float64 {
	all := map[string]float64{}
	for role, node := range c.nodes {
		all[role] = node.cpu()
	}
	return all
}

// memory returns the resident set of each role, in KiB.
func (c *chain) memory() map[string]float64 {
	all := map[string]float64{}
	for role, node := range c.nodes {
		all[role] = node.memory()
	}
	return all
}

// stop ends the chain, P1's side first.
func (c *chain) stop() {
	for _, role := range slices.Backward(roles) {
		if node := c.nodes[role]; node != nil {
			node.stop()
		}
	}
	if c.target != nil {
		c.target.stop()
	}
	_ = os.RemoveAll(c.dir)
}

// pause waits, unless ctx is done first.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
