//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
)

// A crowd is the keys of idle peers of a ptthqd relay. One process connects them all.
type crowd struct{ keys []ident.PrivateKey }

// busyTime is the time from the beginning of a link until it counts as idle and the relay has
// returned the memory of its handshake, with a margin.
const busyTime = 30 * time.Second

func newCrowd(n int) (*crowd, error) {
	c := new(crowd)
	for range n {
		key, err := ident.Generate()
		if err != nil {
			return nil, err
		}
		c.keys = append(c.keys, key)
	}
	return c, nil
}

// config returns the [[peers]] blocks that the relay includes.
func (c *crowd) config() string {
	var text strings.Builder
	for i, key := range c.keys {
		fmt.Fprintf(&text, `[[peers]]
id = "peer-%d"
role = "client"
public_key = %q
allowed_servers = ["server"]
`, i, key.Public())
	}
	return text.String()
}

// connect connects the crowd to the chain's relay. leave disconnects it.
func (b *bench) connect(ctx context.Context, c *chain, crowd *crowd) (leave func() error, err error) {
	relay, err := ident.LoadPrivateKey(filepath.Join(c.dir, "relay.key"))
	if err != nil {
		return nil, err
	}
	var keys bytes.Buffer
	for _, key := range crowd.keys {
		keys.Write(key.Encode())
	}
	keysFile := filepath.Join(c.dir, "peers.keys")
	if err := os.WriteFile(keysFile, keys.Bytes(), 0o600); err != nil {
		return nil, err
	}
	cmd := c.site.command(ctx, clientHost, b.self, "peers",
		"-relay", c.relay, "-key", relay.Public().String(), "-keys", keysFile)
	cmd.Stderr = os.Stderr
	in, out, err := converse(cmd)
	if err != nil {
		return nil, err
	}
	leave = func() error {
		_ = in.Close()
		return cmd.Wait()
	}
	line, err := out.ReadString('\n')
	if want := fmt.Sprintf("connected %d\n", len(crowd.keys)); err != nil || line != want {
		return nil, errors.Join(fmt.Errorf("connect %d peers: got %q", len(crowd.keys), line), leave())
	}
	return leave, nil
}

// runPeers is `bench peers`. It connects the peers, prints a line, and stays until its standard
// input ends.
func runPeers(args []string) error {
	flags := flag.NewFlagSet("bench peers", flag.ExitOnError)
	relay := flags.String("relay", "", "the relay's `ADDRESS`")
	keyText := flags.String("key", "", "the relay's public `KEY`")
	keysFile := flags.String("keys", "", "`FILE` with the private keys of the peers, one a line")
	_ = flags.Parse(args)
	key, err := ident.ParsePublicKey(*keyText)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(*keysFile)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var links, begin sync.WaitGroup
	defer links.Wait()
	defer begin.Wait()
	defer cancel()
	connected := 0
	room := make(chan struct{}, 16) // handshakes at once
	up := make(chan struct{}, 16)
	lines := bytes.Fields(text)
	begin.Go(func() {
		for _, line := range lines {
			identity, err := ident.ParsePrivateKey(line)
			if err != nil {
				fmt.Fprintln(os.Stderr, "bench peers:", err)
				return
			}
			select {
			case room <- struct{}{}:
			case <-ctx.Done():
				return
			}
			links.Go(func() { _ = dialer(*relay, key, identity, up).Run(ctx) })
		}
	})
	patience := time.After(2 * time.Minute)
	for connected < len(lines) {
		select {
		case <-up:
			connected++
			<-room
		case <-patience:
			return fmt.Errorf("%d of %d peers have connected", connected, len(lines))
		}
	}
	fmt.Println("connected", connected)
	_, _ = os.Stdin.Read(make([]byte, 1))
	return nil
}

// dialer returns the dialler of one peer. It sends on up when its first link is up.
func dialer(relay string, key ident.PublicKey, identity ident.PrivateKey, up chan<- struct{}) *link.Dialer {
	var once sync.Once
	return &link.Dialer{
		Address: relay, Keys: []ident.PublicKey{key}, Identity: identity,
		Serve: func(ctx context.Context, _ *link.Link) {
			once.Do(func() { up <- struct{}{} })
			<-ctx.Done()
		},
		// Hide the *net.UDPConn: link would give each of thousands large buffers that stay empty.
		ListenPacket: func(ctx context.Context) (net.PacketConn, error) {
			pc, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", "127.0.0.1:0")
			return struct{ net.PacketConn }{pc}, err
		},
		Route: func(netip.AddrPort) (netip.Addr, error) { return netip.MustParseAddr("127.0.0.1"), nil },
	}
}
