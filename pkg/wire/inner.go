package wire

import (
	"errors"
	"fmt"
	"io"

	"github.com/quic-go/quic-go/quicvarint"
)

// ParseInner decodes the whole of b as the inner message of a Connect or an Incoming: an *Open or a *Resume. Its error is an
// *InnerError. The message shares no memory with b.
func ParseInner(b []byte) (Message, error) {
	m, n, err := Parse(b)
	var bad InnerError
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		bad.words = "the inner tip is truncated"
	case err != nil:
		bad.words = "the inner tip: " + err.Error()
	case n != len(b):
		bad.words = fmt.Sprintf("%d bytes follow the inner tip", len(b)-n)
	default:
		switch m.(type) {
		case *Open, *Resume:
			return m, nil
		}
		bad.words = "the inner tip is neither open nor resume"
	}
	bad.glance(b)
	return nil, &bad
}

// An InnerError says why an inner message can't be understood. It wraps ErrMalformed.
type InnerError struct {
	Version uint64 // of the message; 0 if it says none
	token   Token  // zero if there is none to be seen
	words   string
}

// ConnectionID names the session, so that logs can; it is empty where the message does not tell.
func (e *InnerError) ConnectionID() string {
	if e.token == (Token{}) {
		return ""
	}
	return e.token.ConnectionID()
}

// Status is the answer to such a message. The version is looked at before the rest.
func (e *InnerError) Status() Status {
	if e.Version > Version {
		return StatusVersion
	}
	return StatusMalformed
}

func (e *InnerError) Error() string {
	if e.Version > Version {
		return OtherVersion(e.Version)
	}
	return e.words
}

// Unwrap is ErrMalformed.
func (e *InnerError) Unwrap() error { return ErrMalformed }

// OtherVersion says, for people, that a session version is not spoken here.
func OtherVersion(version uint64) string {
	return fmt.Sprintf("version %d of the session protocol is asked for, and version %d spoken here: upgrade the older node", version, Version)
}

// glance finds what every version of an Open or Resume has in the same place: its version and its token.
func (e *InnerError) glance(b []byte) {
	kind, n, err := quicvarint.Parse(b)
	if err != nil || kind != typeOpen && kind != typeResume {
		return
	}
	_, m, err := quicvarint.Parse(b[n:])
	if err != nil {
		return
	}
	for b = b[n+m:]; ; {
		number, value, rest, err := cutField(b)
		if err != nil {
			return
		}
		b = rest
		switch number {
		case 1:
			_, _ = takeUint(&e.Version, value)
		case 3:
			_, _ = takeToken(&e.token, value)
		}
	}
}
