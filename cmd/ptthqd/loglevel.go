package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"ptthqd/pkg/control"
)

// logLevels are the levels of the log.
var logLevels = []string{"debug", "info", "warn", "error"}

func newLogLevelCommand() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "log-level [debug|info|warn|error]",
		Short: "Show or change how much the running daemon logs",
		Long: `Print the least severe messages that the running daemon logs, after changing that if a level is
given. It holds until the daemon ends, or a reload changes log_level in the config.`,
		Example: `  ptthqd log-level
  sudo ptthqd log-level debug`,
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: logLevels,
		RunE: func(cmd *cobra.Command, args []string) error {
			client := daemonAt(socket)
			ask := client.LogLevel
			if len(args) == 1 {
				ask = func(ctx context.Context) (control.LogLevel,
					error,
				) {
					return client.SetLogLevel(ctx, args[0])
				}
			}
			now, err := ask(cmd.Context())
			if err == nil {
				fmt.Fprintln(cleanWriter{cmd.OutOrStdout()}, now.Level)
			}
			return err
		},
	}
	socketFlag(cmd, &socket)
	return cmd
}
