package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode"

	"ptthqd/pkg/control"
)

// What a daemon says may hold texts of others: on a terminal they are texts.
func TestForeignTextOnATerminal(t *testing.T) {
	const text = "bad\x1b[2J\u202e\u2066\u200b\u2028news"
	var out bytes.Buffer
	status := &control.Status{
		Role: "client", ID: "laptop", Summary: text,
		Links: []control.Link{{
			Relay: "relay:30380", State: control.LinkWaiting,
			LastError: text,
		}},
		Warnings:    []control.Warning{{Text: text, Hint: text}},
		Connections: []control.Connection{{ID: "k5dvqx2a", Source: text, Target: text}},
	}
	printStatus(&out, status, time.Now())
	d := &doctor{checks: []finding{{Name: "link", Result: isFailure, Detail: text, Remedy: text}}}
	d.print(&out)
	printExplanation(&out, &control.Explanation{Reason: text}, text)
	printed := strings.ReplaceAll(out.String(), "\n", "")
	if i := strings.IndexFunc(printed, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
		t.Errorf("printed %q", printed[max(0, i-20):])
	}
	if !strings.Contains(printed, "bad [2J    news") {
		t.Errorf("printed %q", printed)
	}
}
