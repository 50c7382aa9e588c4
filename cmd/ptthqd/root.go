package main

import (
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"
)

// commands constructs every command below the root.
var commands = []func() *cobra.Command{
	newInitCommand,
	newKeygenCommand,
	newPubkeyCommand,
	newVersionCommand,
	newCompletionCommand,
}

// configPath is the value of -c, which all commands share.
var configPath string

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "ptthqd",
		Short: "TCP port forwarder over QUIC",
		Long: `ptthqd forwards TCP ports from one machine to another through a relay, where
neither of the two can be reached from outside. One program is the relay, the
client or the server, as its config says; see ptthqd(8) and ptthqd.toml(5).`,
		Example: `  ptthqd init relay                  on a machine that others can reach
  ptthqd init server                 on the machine whose ports are to be reached
  ptthqd init client                 on the machine that wants to reach them`,
		SilenceErrors:     true, // execute prints them
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true}, // ours is in completion.go
	}
	root.PersistentFlags().StringVarP(&configPath, "config", "c", defaultConfig(), "the config `FILE`")
	_ = root.MarkPersistentFlagFilename("config", "toml")
	root.Version, _ = buildOf()
	root.SetVersionTemplate(versionText())
	for _, newCommand := range commands {
		root.AddCommand(newCommand())
	}
	return root
}

// systemConfig is the config of the service, where the system has such a place.
const systemConfig = "/etc/ptthq.toml"

// defaultConfig is the config that is meant when -c is not given: the system's; of a plain user his own, once `ptthqd
// init` has made it.
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

// userConfig is where a plain user's own config lies, and his service reads it; empty for the superuser.
func userConfig() string {
	dir, err := os.UserConfigDir()
	if err != nil || os.Geteuid() == 0 {
		return ""
	}
	return filepath.Join(dir, "ptthq.toml")
}
