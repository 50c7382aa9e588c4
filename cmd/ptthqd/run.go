package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"ptthqd/pkg/daemon"
	"ptthqd/pkg/host"
)

// runFlags are the flags of `ptthqd run`, and of `ptthqd` without a command.
type runFlags struct {
	socket string
	format string
}

func (f *runFlags) add(cmd *cobra.Command) {
	socketFlag(cmd, &f.socket)
	cmd.Flags().StringVar(&f.format, "log-format", host.LogAuto,
		"how to log, as `FORMAT`: auto (to the journal where stderr is connected to it, else "+
			"text), text, json")
	_ = cmd.RegisterFlagCompletionFunc("log-format",
		cobra.FixedCompletions([]string{host.LogAuto, host.LogText, host.LogJSON},
			cobra.ShellCompDirectiveNoFileComp))
}

func (f *runFlags) run(cmd *cobra.Command, _ []string) error {
	switch f.format {
	case host.LogAuto, host.LogText, host.LogJSON:
	default:
		return usageError("there is no log format %q: use %s, %s or %s", f.format, host.LogAuto,
			host.LogText, host.LogJSON)
	}
	version, commit := buildOf()
	err := daemon.Run(cmd.Context(), daemon.Options{
		Config:    configPath,
		Socket:    f.socket,
		LogFormat: f.format,
		Version:   fmt.Sprintf("%s (%s)", version, commit),
		Stderr:    cmd.ErrOrStderr(),

		OwnProcess: true,
	})
	if logged, ok := errors.AsType[*daemon.LoggedError](err); ok {
		return &exitError{exitCode(logged.Err), nil}
	}
	return err
}

func newRunCommand() *cobra.Command {
	f := new(runFlags)
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon (what ptthqd without a command does)",
		Long: `Run the relay, client or server that the config describes, in the foreground, until
SIGTERM or SIGINT; a second one cuts running connections off. The config is watched and reloaded when it
changes; SIGHUP and ` + "`ptthqd reload`" + ` reload it at once.

Exit codes: 0 stopped as asked, 1 a fault of the host (an address in use, a file that may not
be read), 78 a fault in the config's text.`,
		Example: `  ptthqd -c relay.toml
  ptthqd run -c client.toml --log-format=json`,
		Args: noArguments,
		RunE: f.run,
	}
	f.add(cmd)
	return cmd
}

// socketFlag adds --socket.
func socketFlag(cmd *cobra.Command, into *string) {
	cmd.Flags().StringVar(into, "socket", "",
		"the control socket's `PATH` (default: follows from the config's path)")
	_ = cmd.MarkFlagFilename("socket")
}
