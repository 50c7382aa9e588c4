package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var flagName = regexp.MustCompile(`(?m)^ +(?:-(\w), )?--([a-z-]+)`)

// TestManualHasEveryCommand holds ptthqd(8) to the program: each command and each flag is in it,
// and no other command; the synopsis has each command.
func TestManualHasEveryCommand(t *testing.T) {
	text, err := os.ReadFile("man/ptthqd.8")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	_, described, _ := strings.Cut(page, ".Sh COMMANDS\n")
	described, _, _ = strings.Cut(described, "\n.Sh ")

	named := make(map[string]bool)
	var visit func(command *cobra.Command)
	visit = func(command *cobra.Command) {
		for _, c := range command.Commands() {
			if c.Hidden || c.Name() == "help" {
				continue
			}
			named[c.Name()] = true
			if !strings.Contains(described, " "+c.Name()) {
				t.Errorf("ptthqd(8) does not describe %q", c.CommandPath())
			}
			visit(c)
		}
		for _, flag := range flagName.FindAllStringSubmatch(command.LocalFlags().FlagUsages(), -1) {
			short, long := flag[1], flag[2]
			if long != "help" && long != "version" && !strings.Contains(page, "Fl -"+long) &&
				(short == "" || !strings.Contains(page, "Fl "+short)) {
				t.Errorf("ptthqd(8) does not describe --%s of %q", long, command.CommandPath())
			}
		}
	}
	visit(newRootCommand())

	_, synopsis, _ := strings.Cut(page, ".Sh SYNOPSIS\n")
	synopsis, _, _ = strings.Cut(synopsis, "\n.Sh ")
	for _, c := range newRootCommand().Commands() {
		if c.Name() != "help" &&
			!regexp.MustCompile(`(?m)^\.(Cm|Op Cm) `+c.Name()+`\b`).MatchString(synopsis) {
			t.Errorf("the synopsis of ptthqd(8) lacks %s", c.Name())
		}
	}

	for line := range strings.Lines(described) {
		if item, ok := strings.CutPrefix(line, ".It Cm "); ok && !named[strings.Fields(item)[0]] {
			t.Errorf("ptthqd(8) describes %q, which there is not", strings.TrimSpace(item))
		}
	}
}
