package main

import (
	"strings"
	"testing"
	"time"

	"ptthqd/pkg/control"
)

// TestStatusNamesLimits prints a status of a daemon whose limits were hit.
func TestStatusNamesLimits(t *testing.T) {
	var out strings.Builder
	printStatus(&out, &control.Status{
		Role: "server", ID: "nas",
		Counters: control.Counters{LimitsHit: map[string]uint64{
			"sessions_per_client": 2,
			"retained_memory":     16,
		}},
	}, time.Now())
	const want = "connections that a limit has kept out or made wait, since the start: retained_memory 16, sessions_per_client 2\n"
	if !strings.Contains(out.String(), want) {
		t.Errorf("status lacks %q:\n%s", want, out.String())
	}
}
