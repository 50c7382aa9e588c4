package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"ptthqd/pkg/config"
	"ptthqd/pkg/ident"
)

func newCheckCommand() *cobra.Command {
	var noKey bool
	cmd := &cobra.Command{
		Use:   "check [FILE... | -]",
		Short: "Check the config, as the daemon would read it",
		Long: `Check the config in FILE, or that of -c, with all that it includes: as the daemon would
read it, and without starting anything. Faults are printed with file, line, column and
key; what is legal and surely not meant is warned of. The private key is looked at too,
and the public one printed. "-" is standard input. A FILE that another config includes is
checked as a part of that: the config of -c, or the one beside the file's directory (ptthq.toml
for ptthq.d).

Exit codes: 0 the daemon would take it, 1 a file can't be read, 78 a fault in the text.`,
		Example: `  ptthqd check
  ptthqd check --no-key relay.toml client.toml
  ptthqd check /etc/ptthq.d/laptop.toml
  sed s/:80/:443/ client.toml | ptthqd check --no-key -`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{configPath}
			}
			var worst error
			for _, path := range args {
				err := check(cmd, path, !noKey)
				if err == nil {
					continue
				}
				if len(args) == 1 {
					return err
				}
				fmt.Fprintln(cmd.ErrOrStderr(), err)
				if worst == nil || exitCode(err) == exitConfig {
					worst = &exitError{exitCode(err), nil} // all has been said
				}
			}
			return worst
		},
		ValidArgsFunction: func(
			*cobra.Command, []string, string,
		) ([]string, cobra.ShellCompDirective) {
			return []string{"toml"}, cobra.ShellCompDirectiveFilterFileExt
		},
	}
	cmd.Flags().BoolVar(&noKey, "no-key", false, "don't look at the private key")
	return cmd
}

func check(cmd *cobra.Command, path string, withKey bool) error {
	w := cmd.OutOrStdout()
	if main := includerOf(path); main != "" {
		fmt.Fprintf(w, "note: %s is a part of %s, which is checked\n", path, main)
		path = main
	}
	c, err := load(path, cmd.InOrStdin())
	if err != nil {
		return err
	}
	for _, warning := range c.Warnings() {
		fmt.Fprintln(w, "warning:", warning)
	}
	for _, note := range c.Notes() {
		fmt.Fprintln(w, "note:", note)
	}
	if withKey {
		key, err := ident.LoadPrivateKey(c.PrivateKeyFile)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "public key: %v\n", key.Public())
	}
	fmt.Fprintf(w, "%s: ok, %s\n", path, outline(c))
	return nil
}

// standardInput stands for a config on standard input.
const standardInput = "-"

func load(path string, stdin io.Reader) (*config.Config, error) {
	if path != standardInput {
		return config.Load(path)
	}
	snapshot, err := config.ReadFrom("stdin", stdin)
	if err != nil {
		return nil, err
	}
	return config.Parse(snapshot)
}

// includerOf returns the config that includes a file; "" if none does.
func includerOf(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	dir := filepath.Dir(path)
	candidates := []string{configPath}
	if base, ok := strings.CutSuffix(dir, ".d"); ok {
		candidates = append(candidates, base+".toml")
	}
	for _, main := range candidates {
		snapshot, err := config.ReadFiles(main)
		if err != nil {
			continue
		}
		for _, part := range snapshot.Files[1:] {
			if same, err := os.Stat(part.Path); err == nil && os.SameFile(info, same) {
				return main
			}
		}
	}
	return ""
}

// outline sums a config up in a line: "client laptop: 1 relay, 2 mappings".
func outline(c *config.Config) string {
	switch c.Role {
	case config.RoleRelay:
		return fmt.Sprintf("relay: %s", count(len(c.Peers), "peer"))
	case config.RoleServer:
		return fmt.Sprintf("server %s: %s, %s", c.ID, count(len(c.Relays), "relay"),
			count(len(c.Services), "service"))
	case config.RoleClient:
		return fmt.Sprintf("client %s: %s, %s", c.ID, count(len(c.Relays), "relay"),
			count(len(c.Mappings), "mapping"))
	}
	return string(c.Role)
}

// count returns a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
