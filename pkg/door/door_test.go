package door_test

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/door"
)

var limits = &door.Limits{
	Handshakes: 1000, HandshakesPerSource: 8, AuthPenalty: time.Minute, AuthPenaltyMax: 10 * time.Minute, PenaltySources: 100,
}

// rest is after which a failed handshake takes no place.
const rest = time.Second + time.Millisecond

func source(text string) netip.Prefix { return door.SourceOf(netip.MustParseAddr(text)) }

// enter wants a handshake of a source to be let in, or kept out by a limit.
func enter(t *testing.T, d *door.Door, from netip.Prefix, want string) *door.Visit {
	t.Helper()
	v, limit := d.Enter(from, true, limits)
	if limit != want || (v == nil) != (want != "") {
		t.Fatalf("%v: kept out by %q, want %q", from, limit, want)
	}
	return v
}

// punish makes failures, and waits until they take no places.
func punish(t *testing.T, d *door.Door, from netip.Prefix) {
	t.Helper()
	enter(t, d, from, "").Fail(true, limits)
	time.Sleep(rest)
}

// limited reports whether a source has one handshake at a time.
func limited(t *testing.T, d *door.Door, from netip.Prefix) bool {
	t.Helper()
	first := enter(t, d, from, "")
	second, limit := d.Enter(from, true, limits)
	if second != nil {
		second.Fail(false, limits)
	}
	first.Fail(false, limits)
	time.Sleep(rest)
	return limit == door.LimitPenalty
}

func TestSourceOf(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1": "192.0.2.1/32", "::ffff:192.0.2.1": "192.0.2.1/32", "2001:db8:1:2:3::4": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64",
	} {
		if got := source(addr); got.String() != want {
			t.Errorf("%s is of %v, want %s", addr, got, want)
		}
	}
}

// Where peers were let in, failed handshakes take no places, and each peer has one more.
func TestSourcesOfPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d door.Door
		home, other := source("192.0.2.1"), source("192.0.2.2")
		for i := range 4 {
			enter(t, &d, home, "").Succeed(fmt.Sprint("peer", i))
		}
		for _, from := range []netip.Prefix{home, other} {
			for range 8 {
				enter(t, &d, from, "").Fail(false, limits)
			}
		}
		enter(t, &d, other, door.LimitSourceHandshakes)
		var visits []*door.Visit
		for range 8 + 4 {
			visits = append(visits, enter(t, &d, home, ""))
		}
		enter(t, &d, home, door.LimitSourceHandshakes)
		visits[0].Succeed("peer0")
		visits[0].Fail(true, limits) // it is over already
		enter(t, &d, home, "")
		time.Sleep(rest)
		for range 8 {
			enter(t, &d, other, "")
		}
	})
}

// A peer that moves on and on has a few sources, and pushes out those of nobody else.
func TestSourcesOfOnePeerAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d door.Door
		home := source("192.0.2.1")
		d.Seen("settled", home)
		at := func(i int) netip.Prefix { return source(fmt.Sprintf("10.0.0.%d", i)) }
		for i := range 100 {
			d.Seen("nomad", at(i))
		}
		for from, want := range map[netip.Prefix]bool{home: false, at(0): true, at(91): true, at(92): false, at(99): false} {
			punish(t, &d, from)
			if got := limited(t, &d, from); got != want {
				t.Errorf("%v: limited %v, want %v", from, got, want)
			}
		}
		d.Expel("nomad")
		if !limited(t, &d, at(99)) || limited(t, &d, home) {
			t.Error("a peer's sources outlive it, or it takes others' with it")
		}
		time.Sleep(24 * time.Hour)
		punish(t, &d, home)
		if !limited(t, &d, home) {
			t.Error("the source of a peer that was there a day ago is exempt")
		}
	})
}

func TestExempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d door.Door
		exempt := *limits
		exempt.Exempt = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::5/128")}
		for from, want := range map[string]bool{"192.0.2.7": false, "192.0.3.7": true, "2001:db8::6": false, "2001:db8:0:1::5": true} {
			v, limit := d.Enter(source(from), true, &exempt)
			if limit != "" {
				t.Fatal(limit)
			}
			v.Fail(true, &exempt)
			time.Sleep(rest)
			if got := limited(t, &d, source(from)); got != want {
				t.Errorf("%s: limited %v, want %v", from, got, want)
			}
		}
	})
}
