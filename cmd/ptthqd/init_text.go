package main

import (
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"ptthqd/pkg/config"
	"ptthqd/pkg/ident"
)

// config returns the text of the config, with comments that say what can be added.
func (s *setup) config(path string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s of a %s. Each key is described in ptthqd.toml(5).\n", filepath.Base(path),
		s.role)
	b.WriteString("# `ptthqd check` tells what is wrong with this file. A running daemon takes " +
		"an edit at once, and keeps what it has if\n# the edit is wrong. No secret belongs in " +
		"here: the private key lies in a file of its own.\n\n")
	fmt.Fprintf(&b, "role = %q\n", s.role)
	switch s.role {
	case config.RoleRelay:
		s.writeRelay(&b)
	case config.RoleServer:
		s.writeNode(&b)
		s.writeServices(&b)
	case config.RoleClient:
		s.writeNode(&b)
		s.writeMappings(&b)
	}
	return b.String()
}

func (s *setup) writeRelay(b *strings.Builder) {
	fmt.Fprintf(b, "listen = [%q]    # UDP\n", s.listen)
	b.WriteString(`
# Who may connect: what "ptthqd init" printed at each client and server.

# [[peers]]
# id              = "laptop"
# role            = "client"
# public_key      = "..."
# allowed_servers = ["nas", "build-*", "db:5432"]   # * and ? match; ":TARGET" narrows it to a target

# [[peers]]
# id         = "nas"
# role       = "server"
# public_key = "..."
`)
}

func (s *setup) writeNode(b *strings.Builder) {
	fmt.Fprintf(b, "id   = %q    # as the relay's [[peers]] has it\n", s.id)
	for i, relay := range s.relays {
		b.WriteString("\n" + relayBlock(relay, s.relayKeys[i]))
	}
}

func (s *setup) writeServices(b *strings.Builder) {
	b.WriteString("\n# What clients may reach, and which clients. What is not listed cannot be " +
		"reached, whatever the relay says.\n")
	for _, service := range s.services {
		b.WriteString("\n[[services]]\n")
		name, target := splitService(service)
		if name != "" {
			fmt.Fprintf(b, "name    = %q    # a client asks for this or for the target\n", name)
		}
		fmt.Fprintf(b, "target  = %q\nclients = %s\n", target, quoteList(s.clients))
	}
}

func (s *setup) writeMappings(b *strings.Builder) {
	b.WriteString("\n# Where to listen, and where that leads.\n")
	for _, mapping := range s.mappings {
		listen, server, target, _ := splitMapping(mapping)
		fmt.Fprintf(b, "\n[[mappings]]\nlisten = %q\nserver = %q\ntarget = %q\n", listen, server,
			target)
	}
}

// nextSteps returns what init prints at its end: what to do at the other node and here.
func (s *setup) nextSteps(path string, key ident.PublicKey, written *config.Config) string {
	var b strings.Builder
	switch s.role {
	case config.RoleRelay:
		fmt.Fprintf(&b, "Open UDP port %d to this host, in its firewall and on the way to it.\n\n",
			s.port())
		b.WriteString("Every client and server needs this in its config; `ptthqd init` asks for " +
			"it there:\n\n")
		b.WriteString(relayBlock(s.address, key.String()))
		fmt.Fprintf(&b, "\nEach of them prints a [[peers]] block in its turn: paste it into %s.\n",
			path)
	case config.RoleServer:
		b.WriteString("Paste this into the relay's config:\n\n")
		fmt.Fprintf(&b, "[[peers]]\nid         = %q\nrole       = %q\npublic_key = %q\n", s.id,
			s.role, key)
	case config.RoleClient:
		b.WriteString("Paste this into the relay's config:\n\n")
		fmt.Fprintf(&b, "[[peers]]\nid              = %q\nrole            = %q\npublic_key      "+
			"= %q\nallowed_servers = %s\n",
			s.id, s.role, key, quoteList(allowed(written.Mappings)))
		fmt.Fprintf(&b, "\nThe servers decide for themselves: each must have %q among the clients "+
			"of the service.\n", s.id)
	}
	fmt.Fprintf(&b, "\nThen start it here: %s\n", startCommand(path))
	return b.String()
}

// relayBlock returns the [[relays]] block of a config.
func relayBlock(address, key string) string {
	value := strconv.Quote(key)
	if strings.Contains(key, ",") { // it is being changed
		value = "[" + strings.ReplaceAll(value, ",", `", "`) + "]"
	}
	return fmt.Sprintf("[[relays]]\naddress    = %q\npublic_key = %s\n", address, value)
}

// allowed returns the rules at the relay that let all mappings work. They name servers without
// targets: each server narrows that by its services, and another mapping needs no edit at the
// relay.
func allowed(mappings []config.Mapping) []string {
	var rules []string
	for _, m := range mappings {
		rules = append(rules, m.Server)
	}
	slices.Sort(rules)
	return slices.Compact(rules)
}

// startCommand returns the command that starts the daemon: through the unit of this config, if any.
func startCommand(path string) string {
	dir, name := filepath.Split(path)
	switch {
	case runtime.GOOS != "linux":
	case path == systemConfig:
		return "systemctl enable --now ptthqd"
	case dir == "/etc/ptthq/" && filepath.Ext(name) == ".toml":
		return "systemctl enable --now ptthqd@" + strings.TrimSuffix(name, ".toml")
	case path == userConfig():
		return "systemctl --user enable --now ptthqd"
	}
	return "ptthqd -c " + path
}

// quoteList writes a list of strings as TOML does. They are printable, so Go's quotes are TOML's.
func quoteList(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = fmt.Sprintf("%q", s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}
