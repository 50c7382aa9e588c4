package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"ptthqd/pkg/config"
	"ptthqd/pkg/ident"
)

func newInitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Write a first config and a private key",
		Long: `Write a first config and a private key, and print what to do next: the block to
paste at the other end, and for a relay the UDP port to open. On a terminal, init
asks for what its flags do not say. It overwrites no key and no config with
anything in it. A plain user gets a config of his own, which his own service
reads: ptthq.toml in $XDG_CONFIG_HOME, or ~/.config.

Begin with the relay: the others want its public key.`,
		Example: `  ptthqd init relay --address relay.example.com
  ptthqd init server --relay relay.example.com --relay-key KEY --service ssh=22 --client laptop
  ptthqd init client --relay relay.example.com --relay-key KEY --mapping 2200=nas:22`,
		Args: noOtherRole,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageError("which one: relay, server or client?")
		},
	}
	cmd.AddCommand(newInitRelayCommand(), newInitServerCommand(), newInitClientCommand())
	return cmd
}

func newInitRelayCommand() *cobra.Command {
	s := &setup{role: config.RoleRelay}
	cmd := &cobra.Command{
		Use:   "relay",
		Short: "Set up the node that the others connect to",
		Long: `Set up the relay: the one node that must be reachable, on one UDP port. It knows
clients and servers by the [[peers]] that their init prints.`,
		Example: `  ptthqd init relay
  ptthqd init relay --address relay.example.com
  ptthqd init relay --address 203.0.113.7:443 --listen '[::]:443'`,
		Args: noArguments,
		RunE: s.run,
	}
	cmd.Flags().StringVar(&s.listen, "listen", "",
		"the UDP `ADDRESS:PORT` to listen on (default \"[::]:30380\")")
	cmd.Flags().StringVar(&s.address, "address", "",
		"the `HOST[:PORT]` by which others reach this relay, for the block that it prints "+
			"(default: this host's name)")
	return cmd
}

func newInitServerCommand() *cobra.Command {
	s := &setup{role: config.RoleServer}
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Set up a node whose ports are to be reached",
		Long: `Set up a server: the node whose ports, or whose neighbours' ports, clients reach
through the relay. It needs no open port.`,
		Example: `  ptthqd init server --relay relay.example.com --relay-key KEY --client laptop
  ptthqd init server --id nas --relay relay.example.com --relay-key KEY \
      --service ssh=22 --service 192.168.1.0/24:5900-5910 --client laptop --client 'ops-*'`,
		Args: noArguments,
		RunE: s.run,
	}
	s.nodeFlags(cmd)
	cmd.Flags().StringArrayVar(&s.services, "service", nil,
		"offer `[NAME=]TARGET`: a port of this host, host:port, unix:/path, "+
			"NETWORK/BITS:PORT-PORT; may be repeated (default ssh=22)")
	cmd.Flags().StringArrayVar(&s.clients, "client", nil,
		"the `ID` of a client that may reach the services, * and ? match; may be repeated")
	return cmd
}

func newInitClientCommand() *cobra.Command {
	s := &setup{role: config.RoleClient}
	cmd := &cobra.Command{
		Use:   "client",
		Short: "Set up a node that reaches the ports of others",
		Long: `Set up a client: the node on whose local ports programs connect to reach those of
a server. It needs no open port.`,
		Example: `  ptthqd init client --relay relay.example.com --relay-key KEY --mapping 2200=nas:22
  ptthqd init client --id laptop --relay relay.example.com --relay-key KEY \
      --mapping 2200=nas:ssh --mapping '[::1]:5901=nas:192.168.1.20:5901' --mapping unix:pg.sock=db:5432`,
		Args: noArguments,
		RunE: s.run,
	}
	s.nodeFlags(cmd)
	cmd.Flags().StringArrayVar(&s.mappings, "mapping", nil,
		"listen on a port, address:port or unix:NAME, and forward to a server's target, as "+
			"`LISTEN=SERVER:TARGET`; may be repeated")
	return cmd
}

// nodeFlags are the flags of clients and servers.
func (s *setup) nodeFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.id, "id", "",
		"this node's `ID`, as the relay's config has it (default: this host's name)")
	cmd.Flags().StringArrayVar(&s.relays, "relay", nil,
		"the relay's `HOST[:PORT]` (the port is 30380 by default); may be repeated")
	cmd.Flags().StringArrayVar(&s.relayKeys, "relay-key", nil,
		"the relay's public `KEY`, one for each --relay, in the same order; KEY,KEY while it is "+
			"being changed")
}

// setup has the values from flags and answers.
type setup struct {
	role config.Role

	listen  string // relay
	address string

	id        string // server and client
	relays    []string
	relayKeys []string

	services []string // server
	clients  []string

	mappings []string // client
}

// run sets up the node. If it fails, nothing has changed: it checks all before it writes the first
// file.
func (s *setup) run(cmd *cobra.Command, _ []string) error {
	path := configPath
	if own := userConfig(); own != "" && !cmd.Flags().Changed("config") {
		path = own
	}
	if err := checkUnused(path); err != nil {
		return err
	}
	if stdin, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(stdin.Fd())) {
		if err := s.ask(newDialogue(stdin, cmd.ErrOrStderr())); err != nil {
			return err
		}
	}
	if err := s.complete(); err != nil {
		return err
	}
	text := s.config(path)
	parsed, err := parse(path, text)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the config's directory: %w", err)
	}
	key, isNew, err := provideKey(parsed.PrivateKeyFile)
	if err != nil {
		return err
	}
	if err := writeConfig(path, text); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if isNew {
		fmt.Fprintf(out,
			"Wrote the private key %s. It stays on this host; nobody needs it elsewhere.\n", parsed.PrivateKeyFile)
	} else {
		fmt.Fprintf(out, "Took the private key that was there, %s.\n", parsed.PrivateKeyFile)
	}
	fmt.Fprintf(out, "Wrote the config %s.\n\n", path)
	_, err = fmt.Fprint(out, s.nextSteps(path, key.Public(), parsed))
	return err
}

// checkUnused returns an error if the config at path has anything but comments in it. A package
// brings one of comments, which is there to be replaced.
func checkUnused(path string) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read config: %w", err)
	}
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return fmt.Errorf("%s is there already, and init overwrites nothing: edit it, or "+
				"name another file with -c", path)
		}
	}
	return nil
}

// parse checks the text before it is written. Its errors have no positions: the user has set flags,
// and has written no file.
func parse(path, text string) (*config.Config, error) {
	dir, err := os.MkdirTemp("", "ptthqd-init-")
	if err != nil {
		return nil, fmt.Errorf("check the config: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // an own file in the temporary directory: nobody can do more about it
	draft := filepath.Join(dir, filepath.Base(path))
	if err := os.WriteFile(draft, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("check the config: %w", err)
	}
	snapshot, err := config.ReadFiles(draft)
	if err != nil {
		return nil, err
	}
	snapshot.Path = path
	parsed, err := config.Parse(snapshot)
	if faults, ok := errors.AsType[config.Errors](err); ok {
		var lines []string
		for _, fault := range faults {
			line := fault.Key + ": " + fault.Message
			if fault.Hint != "" {
				line += "; " + fault.Hint
			}
			lines = append(lines, line)
		}
		return nil, usageError("%s", strings.Join(lines, "\n"))
	}
	return parsed, err
}

// provideKey returns the key at path, and makes one if there is none.
func provideKey(path string) (key ident.PrivateKey, isNew bool, err error) {
	key, err = ident.LoadPrivateKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, false, err
	}
	if key, err = ident.Generate(); err != nil {
		return key, false, err
	}
	return key, true, ident.WritePrivateKey(path, key, false)
}

// writeConfig puts the config in its place in one step. Everybody may read it, whatever the umask
// is: the service's user must, and there is no secret in it.
func writeConfig(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write config: %w", err)
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write config: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}
