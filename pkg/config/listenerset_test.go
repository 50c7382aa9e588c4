package config

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Places find what Overlaps finds, one by one.
func TestListenerSetFindsWhatOverlaps(t *testing.T) {
	hosts := []string{
		"", "localhost:", "127.0.0.1:", "127.0.0.2:", "0.0.0.0:", "[::]:", "[::1]:",
		"[fe80::1%eth0]:", "192.0.2.1:",
	}
	place := rapid.Custom(func(t *rapid.T) Listen {
		switch kind := rapid.SampledFrom([]Kind{TCP, TCP, TCP, UDP, Unix, Systemd}).Draw(t,
			"kind"); kind {
		case TCP, UDP:
			text := rapid.SampledFrom(hosts).Draw(t, "host") +
				rapid.SampledFrom([]string{"2200", "2201"}).Draw(t, "port")
			l, _, err := parseListen(kind, text)
			if err != nil {
				t.Fatal(err)
			}
			return l
		default:
			return Listen{kind, rapid.SampledFrom([]string{"a", "b"}).Draw(t, "name")}
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		var places ListenerSet[int]
		entered := rapid.SliceOf(place).Draw(t, "entered")
		for i, l := range entered {
			places.Add(l, i)
		}
		asked := place.Draw(t, "asked")
		var want []int
		for i, l := range entered {
			if l.Overlaps(asked) {
				want = append(want, i)
			}
		}
		if got := places.All(asked); !slices.Equal(got, want) {
			t.Errorf("%v overlaps %v, want %v", asked, got, want)
		}
		first, found := places.First(asked)
		if found != (len(want) > 0) || found && first != want[0] {
			t.Errorf("%v overlaps %d first, %v; want %v", asked, first, found, want)
		}
	})
}

// A thousand mappings on one port are read, compared and judged in an instant.
func BenchmarkOnePort(b *testing.B) {
	text := clientHead
	for i := range 1000 {
		text += mapping(fmt.Sprintf("m%d 127.1.%d.%d:2200 nas 22", i, i/250, 1+i%250))
	}
	s := &Snapshot{Path: "ptthq.toml", Files: []File{{"ptthq.toml", []byte(text)}}}
	b.ReportAllocs()
	for b.Loop() {
		c, err := Parse(s)
		if err != nil {
			b.Fatal(err)
		}
		_ = c.Warnings()
		_ = Compare(c, c)
	}
}
