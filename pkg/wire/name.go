package wire

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
)

// A Token names a session for as long as the session lives. P2 draws it at random. Only the client
// that opened the session, proved by its key, can resume it with the token.
type Token [16]byte

// ConnectionID returns the short name of the session in logs and status, eight characters, the same
// at P2, P3 and P4. It is a hash: nobody can compute the token from it.
func (t Token) ConnectionID() string {
	sum := sha256.Sum256(t[:])
	return connectionIDEncoding.EncodeToString(sum[:5])
}

var connectionIDEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").
	WithPadding(base32.NoPadding)

// String returns the connection ID, so that no log prints the token.
func (t Token) String() string { return "session " + t.ConnectionID() }

// GoString is String, for %#v.
func (t Token) GoString() string { return t.String() }

// MarshalText is String, for logs in JSON.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// An Instance names a process among all that dial with the same key. Each process draws one at
// random when it starts. The zero value means that the peer has sent none.
type Instance [8]byte

// NewInstance draws an instance at random.
func NewInstance() (instance Instance) {
	_, _ = rand.Read(instance[:]) // never fails
	return instance
}

// maxID is the longest ID of a peer, in bytes.
const maxID = 63

// CheckID returns an error that says what is wrong with a peer's ID. A valid ID has 1 to 63 of
// a-z 0-9 . _ - and begins and ends in a letter or digit.
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
			return fmt.Errorf("the ID %q begins or ends in %q; it must begin and end in a letter or digit",
				id, c)
		default:
			return fmt.Errorf("the ID %q has %q in it; only a-z 0-9 . _ - may be used", id, c)
		}
	}
	return nil
}
