package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version and commit are set by the Makefile, with -ldflags -X.
var version, commit string

func newVersionCommand() *cobra.Command {
	return hideConfig(&cobra.Command{
		Use:   "version",
		Short: "Print the version and the commit",
		Args:  noArguments,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprint(cmd.OutOrStdout(), versionText())
		},
	})
}

func versionText() string {
	version, commit := buildOf()
	return fmt.Sprintf("ptthqd %s, commit %s, %s, %s/%s\n", version, commit, runtime.Version(),
		runtime.GOOS, runtime.GOARCH)
}

// buildOf returns the version and the commit of this program: from the Makefile, else from what Go
// notes for `go install` and `go build`.
func buildOf() (ofVersion, ofCommit string) {
	ofVersion, ofCommit = version, commit
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return cmp.Or(ofVersion, "unknown"), cmp.Or(ofCommit, "unknown")
	}
	noted := make(map[string]string)
	for _, setting := range info.Settings {
		noted[setting.Key] = setting.Value
	}
	revision := noted["vcs.revision"]
	revision = revision[:min(12, len(revision))]
	if noted["vcs.modified"] == "true" {
		revision += "-dirty"
	}
	return cmp.Or(ofVersion, info.Main.Version, "unknown"), cmp.Or(ofCommit, revision, "unknown")
}
