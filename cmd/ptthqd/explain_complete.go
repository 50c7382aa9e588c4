package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
	"ptthqd/pkg/policy"
)

// completionTime is how long completion waits for the running daemon.
const completionTime = time.Second

// vocabulary has the arguments that make sense for one node: IDs of clients and servers, and
// targets.
type vocabulary struct{ clients, servers, targets []string }

// completeExplain completes the arguments of explain with what the node knows.
func completeExplain(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	v := vocabularyOf(cmd)
	var words []string
	switch len(args) {
	case 0:
		words = v.clients
	case 1:
		words = v.servers
	case 2:
		words = v.targets
	}
	words = slices.DeleteFunc(words, func(w string) bool {
		return w == "" || !strings.HasPrefix(w, begun) || strings.ContainsAny(w, "*?")
	})
	slices.Sort(words)
	return slices.Compact(words), cobra.ShellCompDirectiveNoFileComp
}

func vocabularyOf(cmd *cobra.Command) vocabulary {
	if !cmd.Flags().Changed("config") {
		socket, _ := cmd.Flags().GetString("socket")
		ctx, cancel := context.WithTimeout(context.Background(), completionTime)
		defer cancel()
		if s, err := daemonAt(socket).Status(ctx); err == nil {
			return vocabularyOfStatus(s)
		}
	}
	c, err := config.Load(configPath)
	if err != nil {
		return vocabulary{}
	}
	return vocabularyOfConfig(c)
}

func vocabularyOfStatus(s *control.Status) (v vocabulary) {
	for _, p := range s.Peers {
		names := append([]string{p.ID}, p.OtherNames...)
		if p.Role == string(policy.RoleClient) {
			v.clients = append(v.clients, names...)
		} else {
			v.servers = append(v.servers, names...)
		}
	}
	for _, service := range s.Services {
		v.clients = append(v.clients, service.Clients...)
		v.servers = append(v.servers, s.ID)
		v.targets = append(v.targets, service.Name, service.Target)
	}
	for _, m := range s.Mappings {
		v.clients = append(v.clients, s.ID)
		v.servers = append(v.servers, m.Server)
		v.targets = append(v.targets, m.Target)
	}
	return v
}

func vocabularyOfConfig(c *config.Config) (v vocabulary) {
	for _, p := range c.Peers {
		if p.Role == policy.RoleClient {
			v.clients = append(v.clients, p.Names()...)
		} else {
			v.servers = append(v.servers, p.Names()...)
		}
	}
	for _, service := range c.Services {
		for _, client := range service.Clients {
			v.clients = append(v.clients, client.String())
		}
		v.servers = append(v.servers, c.ID)
		v.targets = append(v.targets, service.Name, service.Target.String())
	}
	for _, m := range c.Mappings {
		v.clients = append(v.clients, c.ID)
		v.servers = append(v.servers, m.Server)
		v.targets = append(v.targets, m.Target.String())
	}
	return v
}
