// Command ptthqd forwards TCP ports over QUIC. One program is relay, client or server, as its
// config says. Each command has a file with its constructor; the function commands lists them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"ptthqd/pkg/config"
)

// The exit codes; 0 means success.
const (
	exitFailed = 1  // also for faults of the host: an address in use, a permission, a disk
	exitUsage  = 2  // the command line is wrong
	exitConfig = 78 // the config's text is wrong (EX_CONFIG of sysexits.h): systemd does not restart on it
)

func main() {
	os.Exit(execute(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// execute runs the command that args name, and returns its exit code.
func execute(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	// A failure before this hook is one of the command line. After it, the commands decide.
	begun := false
	root.PersistentPreRun = func(*cobra.Command, []string) { begun = true }

	command, err := root.ExecuteContextC(context.Background())
	if err == nil {
		return 0
	}
	if !begun {
		err = &exitError{exitUsage, err}
	}
	code := exitCode(err)
	var text string
	switch {
	case err.Error() == "": // the command has said it all
		return code
	case code == exitUsage:
		text = fmt.Sprintf("ptthqd: %v\nSee `%s --help`.\n", err, command.CommandPath())
	case code == exitConfig:
		text = cleanLines(err.Error()) + "\n" // file:line:column at the beginning of the line, where editors look for it
	default:
		text = fmt.Sprintf("ptthqd: %s\n", cleanLines(err.Error()))
	}
	said := make(chan struct{})
	go func() {
		defer close(said)
		_, _ = io.WriteString(stderr, text)
	}()
	var enough <-chan time.Time // a command may wait for its reader
	if name := command.Name(); name == "ptthqd" || name == "run" {
		enough = time.After(lastWords) // the daemon waits for no reader of its log
	}
	select {
	case <-said:
	case <-enough:
	}
	return code
}

// lastWords is how long a failed daemon waits for the reader of its last message.
const lastWords = time.Second

// exitError is an error with an exit code. Without an error in it, nothing more is printed.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usageError is the error of a command whose flags or arguments make no sense together.
func usageError(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

func exitCode(err error) int {
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.code
	}
	if _, ok := errors.AsType[config.Errors](err); ok {
		return exitConfig
	}
	return exitFailed
}
