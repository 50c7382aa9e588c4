package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"ptthqd/pkg/control"
)

func newReloadCommand() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have the daemon read its config again, and wait for it",
		Long: `Have the running daemon read its config again. It is in force when this returns with 0, and what
has changed is printed. Otherwise nothing at all has changed, and the reason is printed.

Where the private key in its file is another one than that in force, the config is taken over, and it
fails all the same: only a restart takes the key over.

Exit codes: 0 done, 1 a fault of the host, or a change that takes a restart, 78 a fault in
the config's text.`,
		Example: `  ptthqd reload
  ptthqd reload -c /etc/ptthq/office.toml`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			done, err := daemonAt(socket).Reload(cmd.Context())
			if err != nil {
				return err
			}
			if !done.OK {
				return notReloaded(cmd, done)
			}
			out := cleanWriter{cmd.OutOrStdout()}
			for _, warning := range done.Warnings {
				fmt.Fprintln(out, "warning:", warning)
			}
			for _, change := range done.Changes {
				fmt.Fprintln(out, change)
			}
			for _, change := range done.Already {
				fmt.Fprintln(out, change)
			}
			switch {
			case len(done.Already) > 0:
				fmt.Fprintln(out, "the daemon had noticed by itself just before")
			case len(done.Changes) == 0 && done.Restart == "":
				fmt.Fprintln(out, "nothing has changed")
			}
			fmt.Fprintf(out, "in force, in %v\n",
				time.Duration(done.Took).Round(100*time.Microsecond))
			if done.Restart != "" {
				return errors.New(done.Restart)
			}
			return nil
		},
	}
	socketFlag(cmd, &socket)
	return cmd
}

// notReloaded prints why a reload has failed, each fault of the config on a line of its own.
func notReloaded(cmd *cobra.Command, done *control.Reload) error {
	out := cleanWriter{cmd.ErrOrStderr()}
	for _, f := range done.Faults {
		fmt.Fprintln(out, f)
	}
	if len(done.Faults) > 0 {
		fmt.Fprintln(out,
			"ptthqd: nothing has changed: the daemon goes on with the config that it has")
		return &exitError{exitConfig, nil}
	}
	then := ""
	if done.Retrying {
		then = ", and tries again every few seconds"
	}
	return fmt.Errorf("%s; nothing has changed: the daemon goes on with the config that it has%s",
		done.Error, then)
}

// daemonAt returns a client of the running daemon that the flags name.
func daemonAt(socket string) *control.Client {
	return &control.Client{Socket: control.SocketPath(socket, configPath), Config: configPath}
}
