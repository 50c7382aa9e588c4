package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
)

// commands constructs every command below the root.
var commands = []func() *cobra.Command{
	newRunCommand,
	newInitCommand,
	newCheckCommand,
	newReloadCommand,
	newStatusCommand,
	newExplainCommand,
	newLogLevelCommand,
	newDoctorCommand,
	newDemoCommand,
	newKeygenCommand,
	newPubkeyCommand,
	newVersionCommand,
	newCompletionCommand,
}

// configPath is the value of -c, which all commands share.
var configPath string

func newRootCommand() *cobra.Command {
	daemon := new(runFlags)
	root := &cobra.Command{
		Use:   "ptthqd",
		Short: "TCP port forwarder over QUIC",
		Long: `ptthqd forwards TCP ports from one machine to another through a relay, where
neither of the two can be reached from outside. One program is the relay, the
client or the server, as its config says; see ptthqd(8) and ptthqd.toml(5).`,
		Example: `  ptthqd init relay                  on a machine that others can reach
  ptthqd init server                 on the machine whose ports are to be reached
  ptthqd init client                 on the machine that wants to reach them`,
		Args:                       noCommand,
		RunE:                       daemon.run, // as `ptthqd run`
		SilenceErrors:              true,       // execute prints them
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2,
		CompletionOptions:          cobra.CompletionOptions{DisableDefaultCmd: true}, // ours is in completion.go
	}
	daemon.add(root)
	root.PersistentFlags().StringVarP(&configPath, "config", "c", defaultConfig(),
		"the config `FILE`")
	_ = root.MarkPersistentFlagFilename("config", "toml")
	root.Version, _ = buildOf()
	root.SetVersionTemplate(versionText())
	for _, newCommand := range commands {
		root.AddCommand(newCommand())
	}
	return root
}

// noCommand refuses an argument that looks like a command and is none.
func noCommand(root *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q for %q", args[0], root.CommandPath())
	if meant := root.SuggestionsFor(args[0]); len(meant) > 0 {
		text += "\n\nDid you mean this?\n\t" + strings.Join(meant, "\n\t") + "\n"
	}
	return errors.New(text)
}

// systemConfig is the config of the system's service; "" if the system has no place for one.
const systemConfig = "/etc/ptthq.toml"

// defaultConfig returns the config to use without -c: the system's; for a plain user the user's
// own, once `ptthqd init` has made it.
func defaultConfig() string {
	own := userConfig()
	if own == "" {
		return systemConfig
	}
	if _, err := os.Stat(own); err != nil && runtime.GOOS != "windows" {
		return systemConfig
	}
	return own
}

// userConfig returns the path of a plain user's own config, which the user's service reads; "" for
// the superuser.
func userConfig() string {
	dir, err := os.UserConfigDir()
	if err != nil || os.Geteuid() == 0 {
		return ""
	}
	return filepath.Join(dir, "ptthq.toml")
}
