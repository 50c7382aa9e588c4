package main

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"ptthqd/pkg/control"
	"ptthqd/test/testutil"
)

// setUpNodes prepares a script for running daemons: ports for them, and nothing of a service around
// the test.
func setUpNodes(t *testing.T, env *testscript.Env) {
	for i := 1; i <= 3; i++ {
		env.Setenv(fmt.Sprintf("PORT%d", i), strconv.Itoa(testutil.FreePort(t)))
	}
	for _, name := range []string{
		"RUNTIME_DIRECTORY", "NOTIFY_SOCKET", "JOURNAL_STREAM",
		"CREDENTIALS_DIRECTORY",
	} {
		env.Setenv(name, "")
	}
}

// patience is how long a script waits for what comes in milliseconds on an idle machine.
const patience = 20 * time.Second

func ready(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: ready SOCKET")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client := &control.Client{Socket: ts.MkAbs(args[0])}
	for {
		status, err := client.Status(ctx)
		if err == nil && status.State == "running" {
			return
		}
		if !again(ctx) {
			ts.Fatalf("the daemon at %s isn't ready: %v", args[0], err)
		}
	}
}

func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: eventually PROGRAM ARGS...")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for ts.Exec(args[0], args[1:]...) != nil {
		if !again(ctx) {
			ts.Fatalf("%v has not succeeded within %v", args, patience)
		}
	}
}

// again pauses between two tries, and tells whether there is time for another.
func again(ctx context.Context) bool {
	select {
	case <-time.After(20 * time.Millisecond):
		return true
	case <-ctx.Done():
		return false
	}
}
