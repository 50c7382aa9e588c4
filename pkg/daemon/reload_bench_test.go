package daemon_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"ptthqd/pkg/control"
	"ptthqd/pkg/ident"
	"ptthqd/test/testutil"
)

// figures are times, reported by percentiles.
type figures []time.Duration

func (f figures) report(b *testing.B, what string) {
	b.Helper()
	slices.Sort(f)
	for _, p := range []int{50, 99} {
		b.ReportMetric(float64(f[(len(f)-1)*p/100])/float64(time.Millisecond), fmt.Sprintf("ms-%s-p%d", what, p))
	}
}

// BenchmarkFileToForce replaces the file again and again, in one step or in place. It measures the
// time until the daemon, which watches the file, runs by it, and the same with `ptthqd reload`.
func BenchmarkFileToForce(b *testing.B) {
	for _, c := range []struct {
		name    string
		command bool
		write   func(s *site, name, text string)
	}{
		{"replaced", false, (*site).write},
		{"rewritten", false, func(s *site, name, text string) {
			if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
				s.t.Fatal(err)
			}
		}},
		{"command", true, (*site).write},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := newSite(b)
			s.key("relay")
			port := testutil.FreePort(b)
			s.write("relay.toml", relayConfig(port, ""))
			p := s.start("relay")
			var took figures
			for i := 0; b.Loop(); i++ {
				id := fmt.Sprint("n", i)
				begun := time.Now()
				c.write(s, "relay.toml", relayConfig(port, peer(id, keyA)))
				if c.command {
					if done, err := p.Reload(b.Context()); err != nil || !done.OK {
						b.Fatalf("%+v, %v", done, err)
					}
				}
				there := p.hasPeer(id)
				now := p.until("it is in force", func(s *control.Status) bool { // the peer is there before the record of the reload is
					return there(s) && s.Config.Reload != nil && s.Config.Reload.At.After(begun)
				})
				took = append(took, now.Config.Reload.At.Sub(begun))
			}
			took.report(b, "to-force")
		})
	}
}

// BenchmarkReload changes one thing among many. It measures the time from reading to being in
// force, and the allocations on the way.
func BenchmarkReload(b *testing.B) {
	for _, c := range []struct {
		name string
		text func(s *site) (name string, text func(change int) string)
	}{
		{"10000 peers", manyPeers},
		{"1000 mappings", func(s *site) (string, func(int) string) { return manyMappings(s, func(i int) int { return 20000 + i }) }},
		{"1000 mappings on one port", func(s *site) (string, func(int) string) { return manyMappings(s, func(int) int { return 20000 }) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := newSite(b)
			name, text := c.text(s)
			s.write(name+".toml", text(0))
			p := s.start(name)
			b.ReportAllocs()
			var took figures
			for i := 1; b.Loop(); i++ {
				s.write(name+".toml", text(i))
				done, err := p.Reload(b.Context())
				if err != nil || !done.OK || len(done.Changes) != 1 {
					b.Fatalf("%+v, %v", done, err)
				}
				took = append(took, time.Duration(done.Took))
			}
			took.report(b, "took")
			_ = p.end()
		})
	}
}

// manyPeers is a relay's config in which one peer of many comes and goes.
func manyPeers(s *site) (string, func(int) string) {
	s.key("relay")
	var all strings.Builder
	all.WriteString(relayConfig(testutil.FreePort(s.t), ""))
	for i := range 10000 {
		k, err := ident.Generate()
		if err != nil {
			s.t.Fatal(err)
		}
		all.WriteString(peer(fmt.Sprintf("node-%05d", i), k.Public().String()))
	}
	text := all.String()
	return "relay", func(change int) string {
		if change%2 == 0 {
			return text
		}
		return text + peer("one-more", keyA)
	}
}

// manyMappings is a client's config with many mappings, each at an address of its own. One of them
// changes its target.
func manyMappings(s *site, portOf func(i int) int) (string, func(int) string) {
	s.key("client")
	var all strings.Builder
	all.WriteString("role = \"client\"\nid = \"laptop\"\ndrain_timeout = \"0s\"\n[[relays]]\naddress = \"127.0.0.1:9\"\npublic_key = \"" + keyA + "\"\n")
	port := testutil.FreePort(s.t)
	for i := range 999 {
		fmt.Fprintf(&all, "[[mappings]]\nname = \"m%d\"\nlisten = \"127.1.%d.%d:%d\"\nserver = \"nas\"\ntarget = \"22\"\n", i, i/250, 1+i%250, portOf(i))
	}
	text := all.String()
	return "client", func(change int) string {
		return text + fmt.Sprintf("[[mappings]]\nname = \"changing\"\nlisten = \"127.0.0.1:%d\"\nserver = \"nas\"\ntarget = \"%d\"\n", port, 22+change%2)
	}
}
