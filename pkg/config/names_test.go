package config

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// A peer that is being renamed has a list of names, of which none may be another peer's.
func TestNames(t *testing.T) {
	peer := func(id, key string) string {
		return fmt.Sprintf("[[peers]]\nid = %s\nrole = \"server\"\npublic_key = %q\n", id, key)
	}
	client := clientPeer("laptop", key3, `["nas"]`)
	c := parse(t, relayHead+peer(`["storage", "nas"]`, key1)+client)
	if p := c.Peers[0]; p.ID != "storage" || !slices.Equal(p.Others, []string{"nas"}) {
		t.Errorf("the peer is %+v", p)
	}
	if w := c.Warnings(); len(w) > 0 {
		t.Errorf("warnings: %v", w)
	}
	for _, test := range []struct{ text, want string }{
		{
			peer(`["storage", "nas"]`, key1) + peer(`"nas"`, key2),
			`ptthq.toml:7:6: peers.id: peer "nas" is there already, at ptthq.toml:3`,
		},
		{peer(`["nas", "nas"]`, key1), `peer "nas" is there already`},
		{peer(`[]`, key1), "peers.id: is empty"},
		{peer(`["nas", ""]`, key1), "peers.id: is empty"},
		{peer(`["nas", "Storage"]`, key1), "peers.id: "},
		{peer(`["a", "b", "c", "d", "e", "f", "g", "h", "i"]`, key1), "9 names; 8 are the most"},
	} {
		_, err := Parse(&Snapshot{
			Path:  "ptthq.toml",
			Files: []File{{"ptthq.toml", []byte(relayHead + test.text)}},
		})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %s", test.text, err, test.want)
		}
	}
	was := parse(t, relayHead+peer(`"nas"`, key1)+client)
	both := c
	now := parse(t, relayHead+peer(`"storage"`, key1)+clientPeer("laptop", key3, `["storage"]`))
	for _, test := range []struct {
		old, next *Config
		want      []string
	}{
		{was, both, []string{"peer storage: changed (id)"}},
		{both, now, []string{
			"peer storage: changed (id)",
			"peer laptop: changed (allowed_servers)",
		}},
		{was, now, []string{
			"peer storage: added", "peer laptop: changed (allowed_servers)",
			"peer nas: removed",
		}},
	} {
		if got := describe(Compare(test.old, test.next)); !slices.Equal(got, test.want) {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}
