package relay

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// A pair of peers whose connections hold up others must wait, for longer each time. Other pairs
// need not.
func TestStallersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s stallers
		p := pair{"mallory", "nas"}
		var waits []time.Duration
		for range 9 {
			s.note(p, time.Now())
			waits = append(waits, s.left(p))
			time.Sleep(5 * time.Minute)
		}
		if want := "[0s 10s 20s 40s 1m20s 2m40s 5m20s 10m0s 10m0s]"; fmt.Sprint(waits) != want {
			t.Errorf("waits %v, want %v", waits, want)
		}
		if left := s.left(p); left != 5*time.Minute {
			t.Errorf("%v are left", left)
		}
		if left := s.left(pair{"laptop", "nas"}); left != 0 {
			t.Errorf("another waits %v", left)
		}
		time.Sleep(time.Hour)
		s.note(p, time.Now())
		if left := s.left(p); left != 0 {
			t.Errorf("after an hour it waits %v", left)
		}
	})
}

// A peer that holds up a link must wait only if a third peer has connections over that link.
func TestBystanders(t *testing.T) {
	laptop, phone, nas := new(neighbour), new(neighbour), new(neighbour)
	r := &Relay{table: newTable()}
	enter := func(c *connection) {
		r.table.overLocked(c.from, c)
		if c.to != nil {
			r.table.overLocked(c.to, c)
		}
	}
	enter(&connection{from: laptop, to: nas})
	enter(&connection{from: laptop, to: nas})
	enter(&connection{from: laptop}) // on its way
	if r.bystanders(laptop, nas) || r.bystanders(nas, laptop) {
		t.Error("two peers have a bystander among themselves")
	}
	enter(&connection{from: phone, to: nas})
	if !r.bystanders(nas, laptop) || !r.bystanders(nas, phone) {
		t.Error("each of two clients of a server is no bystander of the other")
	}
	if r.bystanders(laptop, nas) {
		t.Error("who is not on a link is a bystander of it")
	}
}
