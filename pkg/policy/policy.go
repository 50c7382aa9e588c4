// Package policy answers "may this client reach that server and target?". It holds pure values: it reads no file, no
// clock and no socket, and each value is immutable once it is made, so that any number of goroutines may ask it.
//
// There are two questions at two places, and each has a type. The relay asks [Relay.Allow] with its [[peers]]: may this
// client reach this server, and this target there? The server asks [Services.Resolve] with its [[services]]: may this
// client reach this target, and what is to be dialled for it?
//
// The one idea: a target is canonical text (see [Target]). All spellings of a target are parsed to one, so that the relay
// can compare what a client asks with what a rule says without knowing anything of the server's network.
package policy

import "fmt"

// Source is where a rule is written, for those who must change it. The config sets it; here it is only handed on.
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

// Decision is the answer to a question, and why. Rule, Reason and Source are for this node's own log and for `ptthqd
// explain`. They must not be sent to the one who asked: who may not reach a server is not to learn from the refusal
// whether it exists.
type Decision struct {
	Allowed bool
	Rule    string // the rule or service that decided, as it is written; empty where none did
	Reason  string // a few words: "laptop may reach nas", "no service covers :23"
	Source  Source // of that rule; where none decided, of the client's entry, or zero where there is none
	Guarded bool   // what is allowed must not turn out to be a special address; see [Service.Guarded]
}

// Error is a fault in what an administrator wrote.
type Error struct {
	Source  Source // which element is at fault; zero from the parsers, who see a string only
	Key     string // which key of it, as in the config: "id", "public_key"; empty from the parsers
	Message string // what is wrong
	Hint    string // what would be right; may be empty
}

// Error returns "source: key: message; hint", without what is empty.
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

// fault makes a parser's error.
func fault(hint, format string, args ...any) error {
	return &Error{Message: fmt.Sprintf(format, args...), Hint: hint}
}
