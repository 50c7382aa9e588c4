// Package origin tells a server that a connection which a client on its host has accepted
// is one that the server itself has dialled. A client marks what comes from its own host
// with
//
//	nonce (16 bytes) | the first 8 bytes of SHA-256(nonce, P1's address, the address that P1 dialled)
//
// and holds an abstract Unix socket that is named by the nonce. Such names are seen in one
// network namespace alone. So a server in which the socket's name is taken shares the
// client's namespace, and a connection of its own with these two addresses is the same one:
// there can't be two. The nonce is made anew with each process, and tells nothing of the host.
package origin

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net"
)

const (
	nonceSize = 16
	// Size is how long a mark is, in bytes.
	Size = nonceSize + 8
)

// A Place marks the connections that one process accepts. It is safe for concurrent use.
type Place struct {
	nonce  [nonceSize]byte
	holder holder
}

// New makes a Place, which marks nothing where the system has no such names.
func New() *Place {
	p := new(Place)
	_, _ = rand.Read(p.nonce[:]) // never fails
	p.holder = hold(name(p.nonce[:]))
	return p
}

// Close gives the name back.
func (p *Place) Close() { p.holder.close() }

// Mark returns the mark of an accepted connection, nil for one from another host.
func (p *Place) Mark(c net.Conn) []byte {
	from, ok := c.RemoteAddr().(*net.TCPAddr)
	at, too := c.LocalAddr().(*net.TCPAddr)
	if !ok || !too || !p.holder.held() || !SameHost(from, at) {
		return nil
	}
	return mark(p.nonce[:], from.String(), at.String())
}

// SameHost reports whether a connection's two addresses are those of one host.
func SameHost(a, b *net.TCPAddr) bool {
	return a.IP.Equal(b.IP) || a.IP.IsLoopback() && b.IP.IsLoopback()
}

// Is reports whether a mark is that of a connection of this network namespace which dialled
// to from local. It opens a socket for a moment if the addresses are the same.
func Is(m []byte, local, to string) bool {
	if len(m) != Size {
		return false
	}
	nonce := m[:nonceSize]
	return subtle.ConstantTimeCompare(m, mark(nonce, local, to)) == 1 && taken(name(nonce))
}

func mark(nonce []byte, from, at string) []byte {
	h := sha256.New()
	for _, part := range [][]byte{nonce, []byte(from), {0}, []byte(at)} {
		_, _ = h.Write(part)
	}
	m := append(make([]byte, 0, nonceSize+sha256.Size), nonce...)
	return h.Sum(m)[:Size]
}

func name(nonce []byte) string { return "@ptthqd/origin/" + hex.EncodeToString(nonce) }
