package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/wire"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ptthqd": main})
}

// TestScripts runs what a user would type. Beside testscript's commands and conditions there are:
//
//	fails CODE PROGRAM ARGS...    like "! exec", and the exit code is this one
//	ready SOCKET                  wait until the daemon at that control socket runs
//	eventually PROGRAM ARGS...    like "exec", again and again until it succeeds
//	$KEY, $KEY2                   two public keys
//	$PORT1, $PORT2, $PORT3        ports of 127.0.0.1 that were free, for TCP and UDP
//	[root]                        the tests run as the superuser
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("KEY", "m5ZbHNo2w1bOBuJ5rWBgPSCA4jHW2Xn2iWVvYtDmZzo=")
			env.Setenv("KEY2", "9tQxVAhV2wH7b3xGqJmC2UzZBDBQsUoaDPRKkhd8nlg=")
			setUpNodes(t, env)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"fails": fails,
			"ready": ready, "eventually": eventually,
		},
		Condition: func(condition string) (bool, error) {
			if condition == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", condition)
		},
	})
}

func fails(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: fails CODE PROGRAM ARGS...")
	}
	code, err := strconv.Atoi(args[0])
	ts.Check(err)
	exit, ok := errors.AsType[*exec.ExitError](ts.Exec(args[1], args[2:]...))
	if !ok {
		ts.Fatalf("%v succeeded, want exit code %d", args[1:], code)
	}
	if exit.ExitCode() != code {
		ts.Fatalf("%v: exit code %d, want %d", args[1:], exit.ExitCode(), code)
	}
}

// The two packages know nothing of each other: the TLS configs and the protocol must have one name
// for it.
func TestHandshakesNameTheProtocol(t *testing.T) {
	key, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	dial, err := ident.DialTLS(key, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	listen, err := ident.ListenTLS(key)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{wire.ALPN}; !slices.Equal(dial.NextProtos, want) ||
		!slices.Equal(listen.NextProtos, want) {
		t.Errorf("dialling %v, listening %v, want %v", dial.NextProtos, listen.NextProtos, want)
	}
}
