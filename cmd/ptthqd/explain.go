package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
	"ptthqd/pkg/daemon"
	"ptthqd/pkg/server"
)

func newExplainCommand() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "explain CLIENT SERVER TARGET",
		Short: "Tell which rule allows or refuses a connection",
		Long: `Tell which rule of this node lets CLIENT reach TARGET of SERVER, or why none does, with its
file and line. At a relay that is its [[peers]], at a server its [[services]]; both must say yes.

The config of -c is asked where -c is given, else the running daemon (--socket), else the config at
its default place.

Exit codes: 0 allowed, 1 not allowed, or nobody to ask.`,
		Example: `  ptthqd explain laptop nas 22
  ptthqd explain -c relay.toml laptop nas db.internal:5432`,
		Args:              arguments("CLIENT", "SERVER", "TARGET"),
		ValidArgsFunction: completeExplain,
		RunE: func(cmd *cobra.Command, args []string) error {
			q := control.Question{Client: args[0], Server: args[1], Target: args[2]}
			answer, by, err := explain(cmd, socket, q)
			if err != nil {
				return err
			}
			printExplanation(cmd.OutOrStdout(), answer, by)
			if answer.Decides && !answer.Allowed {
				return &exitError{exitFailed, nil}
			}
			return nil
		},
	}
	socketFlag(cmd, &socket)
	return cmd
}

// explain asks the config or the daemon, and returns which of the two it was.
func explain(cmd *cobra.Command, socket string, q control.Question) (answer *control.Explanation, by string, err error) {
	if !cmd.Flags().Changed("config") {
		answer, err = daemonAt(socket).Explain(cmd.Context(), q)
		if socket != "" || !errors.Is(err, control.ErrNotRunning) {
			return answer, "the running daemon", err
		}
	}
	c, err := config.Load(configPath)
	if err != nil {
		return nil, "", err
	}
	answer, err = daemon.Explain(c, new(server.Host), q)
	return answer, configPath, err
}

func printExplanation(w io.Writer, e *control.Explanation, by string) {
	w = cleanWriter{w}
	verdict := "not allowed"
	switch {
	case !e.Decides && e.Rule != "":
		verdict = "a client decides nothing; there is a mapping"
	case !e.Decides:
		verdict = "a client decides nothing; there is no mapping"
	case e.Allowed:
		verdict = "allowed"
	}
	fmt.Fprintf(w, "%s: %s to %s at %s, by this %s (%s)\n", verdict, e.Client, e.Target, e.Server,
		e.Role, by)
	if e.Rule != "" {
		fmt.Fprintf(w, "rule:    %s\n", e.Rule)
	}
	fmt.Fprintf(w, "because: %s\n", e.Reason)
	if e.Source != "" {
		fmt.Fprintf(w, "where:   %s\n", e.Source)
	}
	if e.Dial != "" {
		fmt.Fprintf(w, "dials:   %s\n", e.Dial)
	}
	fmt.Fprintf(w, "besides: %s\n", e.Next)
}
