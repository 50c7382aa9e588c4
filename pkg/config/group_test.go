package config

import (
	"strings"
	"testing"
)

func TestListenGroup(t *testing.T) {
	c := parse(t, clientHead+mapping("a unix:x nas 22",
		`listen_group = "0"`)+mapping("b unix:y nas 22", `listen_group = "no-such-group-here"`))
	if c.Mappings[0].ListenGroup != "0" || c.Mappings[1].ListenGroup != "no-such-group-here" {
		t.Errorf("%+v", c.Mappings)
	}
	var found []string
	for _, w := range c.Warnings() {
		found = append(found, w.String())
	}
	if text := strings.Join(found, "\n"); !strings.Contains(text,
		`mappings.listen_group: this host has no group "no-such-group-here"`) ||
		strings.Count(text, "listen_group") != 1 {
		t.Errorf("warned of\n%s", text)
	}
	for text, want := range map[string]string{
		mapping("a 2200 nas 22", `listen_group = "0"`):     "only a Unix socket has a group",
		mapping("a unix:x nas 22", `listen_group = "a b"`): `"a b" is no group`,
	} {
		s := newSnapshot("x.toml")
		s.Files = []File{{"x.toml", []byte(clientHead + text)}}
		if _, err := Parse(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
