package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// noArguments refuses arguments to a command that takes none.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("%q takes no arguments, and %q is one", cmd.CommandPath(), args[0])
}

// noOtherRole refuses a role that init does not know.
func noOtherRole(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("%q knows no role %q: use relay, server or client", cmd.CommandPath(),
		args[0])
}

// arguments demands one argument for each name.
func arguments(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return fmt.Errorf("%q wants %s: %s is missing", cmd.CommandPath(),
				strings.Join(names, " "), strings.Join(names[len(args):], " "))
		case len(args) > len(names):
			return fmt.Errorf("%q wants %s alone, and %q is one argument more", cmd.CommandPath(),
				strings.Join(names, " "), args[len(names)])
		}
		return nil
	}
}

// atMostOne allows one argument, of the given name, or none.
func atMostOne(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) <= 1 {
			return nil
		}
		return fmt.Errorf("%q takes one %s, and %q is one more", cmd.CommandPath(), name, args[1])
	}
}

// hideConfig leaves -c out of the help of a command that reads no config.
func hideConfig(cmd *cobra.Command) *cobra.Command {
	cmd.SetHelpFunc(func(c *cobra.Command, args []string) {
		flag := c.Root().PersistentFlags().Lookup("config")
		flag.Hidden = true
		defer func() { flag.Hidden = false }()
		c.Root().HelpFunc()(c, args)
	})
	return cmd
}
