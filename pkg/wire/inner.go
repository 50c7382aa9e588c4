package wire

import (
	"errors"
	"fmt"
	"io"

	"github.com/quic-go/quic-go/quicvarint"
)

// ParseInner decodes all of b as the inner tip of a Connect or an Incoming: an *Open or a *Resume.
// The error is an *InnerError. The message shares no memory with b.
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

// An InnerError says why an inner tip can't be decoded. It wraps ErrMalformed.
type InnerError struct {
	Version uint64 // of the session protocol, as the tip says; 0 if the tip says none
	token   Token  // zero if the tip has none
	words   string
}

// ConnectionID returns the connection ID of the session, for logs; empty if the tip has no token.
func (e *InnerError) ConnectionID() string {
	if e.token == (Token{}) {
		return ""
	}
	return e.token.ConnectionID()
}

// Status returns the answer to the tip: StatusVersion for a later version, else StatusMalformed.
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

// Unwrap returns ErrMalformed.
func (e *InnerError) Unwrap() error { return ErrMalformed }

// OtherVersion returns a text for people: the peer asks for a session version that this node lacks.
func OtherVersion(version uint64) string {
	return fmt.Sprintf("version %d of the session protocol is asked for, "+
		"and version %d spoken here: upgrade the older node", version, Version)
}

// glance finds the version and the token: every version of Open and Resume has them in fields 1
// and 3.
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
