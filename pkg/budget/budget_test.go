package budget

import (
	"testing"
	"time"
)

// TestShares has peers take of a budget of 1,000 bytes, and give back.
func TestShares(t *testing.T) {
	type step struct {
		peer string
		take int64 // negative: give
		ok   bool
	}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"half for one", []step{{"a", 500, true}, {"a", 1, false}}},
		{"not more than half at once", []step{{"a", 501, false}}},
		{"then half of the rest", []step{{"a", 500, true}, {"b", 250, true}, {"b", 1, false}, {"c", 125, true}, {"c", 1, false}}},
		{"what comes back is for all", []step{{"a", 500, true}, {"b", 250, true}, {"a", -200, true}, {"b", 101, false}, {"b", 100, true}, {"a", 26, false}, {"a", 25, true}}},
		{"two end with a third each", []step{
			{"a", 500, true}, {"b", 250, true}, {"a", -100, true}, {"b", 50, true}, {"a", -67, true}, {"b", 33, true}, {"a", 1, false}, {"b", 1, false},
		}},
		{"nothing is always to be had", []step{{"a", 500, true}, {"a", 0, true}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := New("memory", 1000)
			shares, held := make(map[string]*Share), make(map[string]int64)
			for i, s := range c.steps {
				if shares[s.peer] == nil {
					shares[s.peer] = b.Share(s.peer)
				}
				h, ok := shares[s.peer], true
				if s.take < 0 {
					h.Give(-s.take)
				} else {
					ok = h.Take(s.take)
				}
				if ok != s.ok {
					t.Fatalf("step %d, %+v: %v", i, s, ok)
				}
				if ok {
					held[s.peer] += s.take
				}
				sum := int64(0)
				for peer, n := range held {
					sum += n
					if shares[peer].used != n {
						t.Errorf("step %d: %s holds %d, not %d", i, peer, shares[peer].used, n)
					}
				}
				if used, _ := b.State(); used != sum {
					t.Errorf("step %d: %d are used, not %d", i, used, sum)
				}
			}
			for peer, h := range shares {
				h.Give(held[peer])
				h.Release()
			}
			if used, _ := b.State(); used != 0 || len(b.shares) != 0 {
				t.Errorf("left: %d bytes, %v", used, b.shares)
			}
		})
	}
}

// TestShortages tells of a peer while it is refused, and for a minute more.
func TestShortages(t *testing.T) {
	b := New("memory", 1000)
	at := time.Now()
	for _, peer := range []string{"a", "b"} {
		h := b.Share(peer)
		defer h.Release()
		if !h.Take(100) {
			t.Fatal(peer)
		}
		if s, begins := h.Refuse(at); !begins || s.Peer != peer || s.Held != 100 {
			t.Errorf("first: %+v, %v", s, begins)
		}
		if _, begins := h.Refuse(at.Add(ShortFor)); begins {
			t.Error("it began twice")
		}
	}
	if all := b.Shortages(at.Add(2 * ShortFor)); len(all) != 2 || all[0] != (Shortage{"memory", "a", 100, 800}) {
		t.Errorf("short are %+v", all)
	}
	if all := b.Shortages(at.Add(2*ShortFor + 1)); len(all) != 0 {
		t.Errorf("still short are %+v", all)
	}
	if _, begins := b.shares["a"].Refuse(at.Add(2*ShortFor + 1)); !begins {
		t.Error("it doesn't begin again")
	}
}
