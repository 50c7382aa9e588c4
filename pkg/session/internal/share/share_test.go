package share

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A user is a session that records when its turn has come.
type user struct {
	name  string
	claim Claim
	turns *turns
}

type turns struct {
	mu    sync.Mutex
	names []string
}

func (u *user) Kick() {
	u.turns.mu.Lock()
	defer u.turns.mu.Unlock()
	u.turns.names = append(u.turns.names, u.name)
}

// said returns whose turns have come since the last call. The order within one grant is that in
// which they were served.
func (t *turns) said() []string {
	synctest.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	names := t.names
	t.names = nil
	return names
}

const epoch = 250 * time.Millisecond

// join has sessions share the quota of one link and peer.
func join(links *Links, all *turns, names ...string) (users []*user) {
	for _, name := range names {
		u := &user{name: name, turns: all}
		u.claim.Join(links, "link", "nas", u)
		users = append(users, u)
	}
	return users
}

// take has a session with much in flight ask for a quarter of the first quota.
func take(u *user) bool { return u.claim.Take(64<<10, 1<<20, epoch) }

// fill has a session take all of the first quota.
func fill(u *user) {
	for range 4 {
		take(u)
	}
}

func inBubble(t *testing.T, run func(t *testing.T, links *Links, all *turns)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { run(t, &Links{Most: 8 << 20}, &turns{}) })
}

// TestTurns has sessions wait when all is taken, and serves them in order.
func TestTurns(t *testing.T) {
	inBubble(t, func(t *testing.T, links *Links, all *turns) {
		u := join(links, all, "a", "b", "c")
		for range 4 {
			if !take(u[0]) {
				t.Fatal("there is room")
			}
		}
		if take(u[1]) || take(u[2]) {
			t.Error("nothing is left")
		}
		time.Sleep(2 * epoch) // what arrives now comes too late to make the quota grow
		u[0].claim.Give(64 << 10)
		if got := all.said(); !slices.Equal(got, []string{"b"}) {
			t.Errorf("first %v", got)
		}
		if !take(u[1]) {
			t.Error("its turn has come")
		}
		u[0].claim.Give(64 << 10)
		if got := all.said(); !slices.Equal(got, []string{"c"}) {
			t.Errorf("then %v", got)
		}
	})
}

// TestLittleDoesNotWait overdraws the quota for sessions with little in flight.
func TestLittleDoesNotWait(t *testing.T) {
	inBubble(t, func(t *testing.T, links *Links, all *turns) {
		u := join(links, all, "a", "b")
		fill(u[0])
		if !u[1].claim.Take(100, 0, epoch) || !u[1].claim.Take(3000, 100, epoch) {
			t.Error("4 KiB may overdraw the quota")
		}
		if u[1].claim.Take(3000, 3100, epoch) {
			t.Error("more may not")
		}
	})
}

// TestRestedTakeTurns serves rested sessions and uploads in turns.
func TestRestedTakeTurns(t *testing.T) {
	inBubble(t, func(t *testing.T, links *Links, all *turns) {
		u := join(links, all, "up1", "up2", "rested1", "rested2")
		for range 4 {
			take(u[0]) // more than 64 KiB since it last rested
		}
		u[1].claim.burst, u[1].claim.served = 1<<20, time.Now()
		for _, w := range []*user{u[0], u[1], u[2], u[3]} {
			if take(w) {
				t.Fatal("nothing is left")
			}
		}
		time.Sleep(2 * epoch)
		var got []string
		for range 4 {
			u[0].claim.Give(64 << 10)
			got = append(got, all.said()...)
		}
		if want := []string{"rested1", "up1", "rested2", "up2"}; !slices.Equal(got, want) {
			t.Errorf("%v, not %v", got, want)
		}
	})
}

// TestGrows has a quota grow by what arrives within an epoch.
func TestGrows(t *testing.T) {
	inBubble(t, func(t *testing.T, links *Links, all *turns) {
		u := join(links, all, "a")
		sent := 0
		for range 20 {
			for take(u[0]) {
				sent += 64 << 10
			}
			time.Sleep(epoch / 10)
			u[0].claim.Give(int64(sent))
			sent = 0
		}
		if got := u[0].claim.quota.limit; got != links.Most {
			t.Errorf("the quota is %d of %d", got, links.Most)
		}
	})
}

// TestStaysSmall has a peer that takes nothing.
func TestStaysSmall(t *testing.T) {
	inBubble(t, func(t *testing.T, links *Links, all *turns) {
		u := join(links, all, "a")
		for range 20 {
			take(u[0])
			time.Sleep(epoch)
		}
		if got := u[0].claim.quota.limit; got != first {
			t.Errorf("the quota is %d", got)
		}
	})
}

// TestLeave frees what a lost stream had in flight.
func TestLeave(t *testing.T) {
	inBubble(t, func(t *testing.T, links *Links, all *turns) {
		u := join(links, all, "a", "b")
		fill(u[0])
		if take(u[1]) {
			t.Error("nothing is left")
		}
		time.Sleep(2 * epoch)
		u[0].claim.Leave(256 << 10)
		if got := all.said(); !slices.Equal(got, []string{"b"}) {
			t.Errorf("served: %v", got)
		}
		u[1].claim.Leave(0)
		if len(links.by) != 0 {
			t.Errorf("left: %v", links.by)
		}
	})
}

// TestOwnQuotas has peers and links with quotas of their own.
func TestOwnQuotas(t *testing.T) {
	inBubble(t, func(t *testing.T, links *Links, all *turns) {
		u := join(links, all, "a")
		fill(u[0])
		for i, k := range []key{{"link", "vps"}, {"link2", "nas"}} {
			other := &user{name: fmt.Sprint(i), turns: all}
			other.claim.Join(links, k.link, k.peer, other)
			if !take(other) {
				t.Errorf("%v waits for another's quota", k)
			}
		}
	})
}

// TestAsks lets sixteen sessions ask in a sweep, if anybody waits.
func TestAsks(t *testing.T) {
	inBubble(t, func(t *testing.T, links *Links, all *turns) {
		u := join(links, all, "a", "b")
		if u[0].claim.Asks(time.Now()) {
			t.Error("nobody waits")
		}
		fill(u[0])
		take(u[1])
		n := 0
		for range 100 {
			if u[0].claim.Asks(time.Now()) {
				n++
			}
		}
		if n != asks || !u[0].claim.Scarce() {
			t.Errorf("%d ask; scarce: %v", n, u[0].claim.Scarce())
		}
		time.Sleep(time.Second)
		if !u[0].claim.Asks(time.Now()) {
			t.Error("the next sweep asks too")
		}
	})
}

// TestNoQuota has a claim that has joined none.
func TestNoQuota(t *testing.T) {
	var c Claim
	c.Overdraw(1 << 40)
	if !c.Take(1<<40, 1<<40, epoch) || c.Scarce() || c.Asks(time.Now()) {
		t.Error("it is bounded")
	}
	c.Give(1 << 40)
	c.Forget()
	c.Leave(1)
}
