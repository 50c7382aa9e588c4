package wire

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
)

// A Token names a session, for as long as it lives. P2 draws it at random; who
// has it still needs the client's key to use it.
type Token [16]byte

// ConnectionID is the short name of the session, the same at P2, P3 and P4, for
// logs, status and people. The token can't be learnt from it.
func (t Token) ConnectionID() string {
	sum := sha256.Sum256(t[:])
	return connectionIDEncoding.EncodeToString(sum[:5])
}

var connectionIDEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// String names the session without giving the token away.
func (t Token) String() string { return "session " + t.ConnectionID() }

// GoString is String, so that %#v gives nothing away either.
func (t Token) GoString() string { return t.String() }

// MarshalText is String, for logs in JSON.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// An Instance tells the processes apart that dial with one key. Each takes one at random when it starts. The zero value
// is none.
type Instance [8]byte

// NewInstance makes the instance of a process.
func NewInstance() (instance Instance) {
	_, _ = rand.Read(instance[:]) // never fails
	return instance
}

const maxID = 63

// CheckID tells what is wrong with a peer's ID: it has 1 to 63 of a-z 0-9 . _ -,
// and begins and ends in a letter or digit.
func CheckID(id string) error {
	if id == "" {
		return errors.New("the ID is empty")
	}
	if len(id) > maxID {
		return fmt.Errorf("the ID has %d characters; %d is the most", len(id), maxID)
	}
	for i := range len(id) {
		c := id[i]
		edge := i == 0 || i == len(id)-1
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case (c == '.' || c == '_' || c == '-') && !edge:
		case strings.IndexByte("._-", c) >= 0:
			return fmt.Errorf("the ID %q begins or ends in %q; it must begin and end in a letter or digit", id, c)
		default:
			return fmt.Errorf("the ID %q has %q in it; only a-z 0-9 . _ - may be used", id, c)
		}
	}
	return nil
}
