// Package policy decides whether a client may reach a target of a server.
//
// Two nodes decide, each by its own config, and each has a type. The relay asks [Relay.Allow] with
// its [[peers]]: may this client reach this server, and this target there? The server asks
// [Services.Resolve] with its [[services]]: may this client reach this target, and what is dialled
// for it? Both answer with a [Decision], which also says why. The examples show both.
//
// The one idea: a target is canonical text (see [Target]). All spellings of a target are parsed to
// one text, so the relay compares what a client asks with what a rule says, and needs to know
// nothing of the server's network.
//
// All values are immutable once they are made, so any number of goroutines may use them. The
// package reads no file, no clock and no socket.
package policy

import "fmt"

// Source is the place in the config where a rule is written. The config sets it; this package only
// passes it on.
type Source struct {
	File string
	Line int // from 1
}

// String returns "file:line", or nothing for the zero Source.
func (s Source) String() string {
	if s == (Source{}) {
		return ""
	}
	return fmt.Sprintf("%s:%d", s.File, s.Line)
}

// Decision is an answer, with its reason. Rule, Reason and Source are for this node's own log and
// for `ptthqd explain`. They must not be sent to the client: a client that may not reach a server
// does not learn from the refusal whether the server exists.
type Decision struct {
	Allowed bool
	Rule    string // the rule or service that decided, as it is written; empty if none did
	Reason  string // a few words: "laptop may reach nas", "no service covers :23"
	Source  Source // of Rule; if no rule decided, of the client's entry; zero if there is none
	Guarded bool   // the dial must not end at a special address; see [Service.Guarded]
}

// Error is a fault in the config.
type Error struct {
	Source  Source // of the faulty element; zero from parsers, which see only a string
	Key     string // the faulty key, as in the config: "id", "public_key"; empty from parsers
	Message string // what is wrong
	Hint    string // what would be right; may be empty
}

// Error returns "source: key: message; hint", without the parts that are empty.
func (e *Error) Error() string {
	text := e.Message
	if e.Key != "" {
		text = e.Key + ": " + text
	}
	if e.Source != (Source{}) {
		text = e.Source.String() + ": " + text
	}
	if e.Hint != "" {
		text += "; " + e.Hint
	}
	return text
}

// fault returns a parser's error.
func fault(hint, format string, args ...any) error {
	return &Error{Message: fmt.Sprintf(format, args...), Hint: hint}
}
