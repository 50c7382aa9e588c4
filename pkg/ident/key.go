// Package ident is the identity of a node: its Ed25519 key.
//
// The one idea: a node is its public key. There is no certificate authority, no name and no date to
// check. The config has the keys that it trusts, and both ends of a handshake prove that they hold
// theirs. TLS wants certificates, so each node makes one in memory, signed by itself, of which only
// the key counts.
//
//	key, err := ident.LoadPrivateKey("/etc/ptthq.key")
//	key.Public().String()                              // as it stands in the config of others
//	tlsConfig, err := ident.DialTLS(key, relayKey)     // at a client or a server
//	tlsConfig, err := ident.ListenTLS(key)             // at a relay
//	peer, err := ident.PeerKey(connectionState)        // after the handshake
//
// Keys are printed as WireGuard's: base64 of 32 bytes, the seed of the private key or the public
// key. A [PrivateKey] prints as a placeholder, however it is printed. All values may be used from
// several goroutines.
package ident

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
)

// keySize is the length of a seed and of a public key, textSize that of their base64, in bytes.
const (
	keySize  = 32
	textSize = 44
)

// encoding is strict: a key has only one printed form, so texts can be compared.
var encoding = base64.StdEncoding.Strict()

// PublicKey is a node's identity. It is comparable.
type PublicKey [keySize]byte

// ParsePublicKey parses what [PublicKey.String] prints. It refuses keys of small order, such as all
// zeros, a likely placeholder: anybody can forge their signatures, so anybody could be that node.
func ParsePublicKey(s string) (PublicKey, error) {
	b, err := decode([]byte(s))
	if err != nil {
		return PublicKey{}, fmt.Errorf("parse public key: %w", err)
	}
	k := PublicKey(b)
	if k.smallOrder() {
		return PublicKey{}, errors.New("parse public key: " +
			"no node can have this key (it proves nothing): " +
			"take what `ptthqd pubkey` prints at the other node")
	}
	return k, nil
}

// String returns the key as it stands in configs: base64, padded, 44 characters.
func (k PublicKey) String() string { return encoding.EncodeToString(k[:]) }

// MarshalText returns the bytes of [PublicKey.String]. It never fails.
func (k PublicKey) MarshalText() ([]byte, error) { return encoding.AppendEncode(nil, k[:]), nil }

// UnmarshalText parses as [ParsePublicKey] does.
func (k *PublicKey) UnmarshalText(text []byte) error {
	parsed, err := ParsePublicKey(string(text))
	if err != nil {
		return err
	}
	*k = parsed
	return nil
}

// smallOrder reports whether the key is a point whose order divides 8, in any encoding. For such a
// key, one constant signature verifies for at least an eighth of all messages, without any private
// key.
func (k PublicKey) smallOrder() bool {
	k[keySize-1] &= 0x7f // without the sign of x, on which the order does not depend
	return slices.Contains(smallOrderKeys, hex.EncodeToString(k[:]))
}

// smallOrderKeys are the y coordinates of the points of order 1, 2, 4 and 8, in 255 bits, reduced
// or not.
var smallOrderKeys = []string{
	"0000000000000000000000000000000000000000000000000000000000000000", // 0: order 4
	"0100000000000000000000000000000000000000000000000000000000000000", // 1: order 1
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", // order 8
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", // order 8
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // -1: order 2
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // p, another way to write 0
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // p + 1, another way to write 1
}

// PrivateKey is the secret of a node. It prints as a placeholder, so that no log, error or dump has
// it; only [PrivateKey.Encode] returns it. The zero value is no key: [DialTLS] and [ListenTLS]
// return an error for it, and the methods panic.
type PrivateKey struct {
	// A func, because fmt looks into anything else. It prints the fields of a struct with a
	// PrivateKey in an unexported field without calling the methods below, and follows a pointer if
	// the verb is wrong for it.
	seed func() [keySize]byte
}

// Generate makes a new random key.
func Generate() (PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("generate key: %w", err)
	}
	return fromSeed([keySize]byte(key.Seed())), nil
}

// ParsePrivateKey parses what [PrivateKey.Encode] returns, with or without white space around it.
// Its errors do not quote the text.
func ParsePrivateKey(text []byte) (PrivateKey, error) {
	text = bytes.TrimSpace(text)
	switch {
	case len(text) == 0:
		return PrivateKey{}, errors.New("parse private key: it is empty: make one with `ptthqd keygen`")
	case bytes.HasPrefix(text, []byte("-----BEGIN")):
		return PrivateKey{}, errors.New("parse private key: this is a PEM or OpenSSH file: " +
			"make a key with `ptthqd keygen`")
	}
	seed, err := decode(text)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("parse private key: %w", err)
	}
	return fromSeed(seed), nil
}

func fromSeed(seed [keySize]byte) PrivateKey {
	return PrivateKey{func() [keySize]byte { return seed }}
}

// Encode returns the base64 of the key's 32-byte seed and a newline: the content of a key file.
func (k PrivateKey) Encode() []byte {
	seed := k.seed()
	return append(encoding.AppendEncode(nil, seed[:]), '\n')
}

// Public returns the public key, by which others know this node.
func (k PrivateKey) Public() PublicKey { return PublicKey(k.signer().Public().(ed25519.PublicKey)) }

// Derive returns 32 bytes for another secret of this node, such as the key of its stateless resets.
// They depend only on the key and the label, so they are the same after a restart (HKDF with
// SHA-256, RFC 5869).
func (k PrivateKey) Derive(label string) [32]byte {
	seed := k.seed()
	b, err := hkdf.Key(sha256.New, seed[:], nil, "ptthq "+label, 32)
	if err != nil {
		panic("internal error: HKDF refuses 32 bytes: " + err.Error())
	}
	return [32]byte(b)
}

func (k PrivateKey) signer() ed25519.PrivateKey {
	seed := k.seed()
	return ed25519.NewKeyFromSeed(seed[:])
}

// redacted is how a private key prints.
const redacted = "(private key)"

// String returns a placeholder.
func (k PrivateKey) String() string { return redacted }

// Format writes a placeholder for any verb.
func (k PrivateKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue returns a placeholder.
func (k PrivateKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns a placeholder, which keeps the key out of JSON.
func (k PrivateKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// decode decodes the base64 of 32 bytes. Its error does not quote the text, which may be a private
// key.
func decode(text []byte) (key [keySize]byte, err error) {
	if len(text) != textSize {
		return key, fmt.Errorf("a key is %d characters of base64, this has %d", textSize, len(text))
	}
	var b [textSize]byte // the decoder wants room beyond the 32 bytes
	if n, err := encoding.Decode(b[:], text); err != nil || n != keySize {
		return key, fmt.Errorf("this is not the base64 of %d bytes: was it copied whole?", keySize)
	}
	return [keySize]byte(b[:keySize]), nil
}
