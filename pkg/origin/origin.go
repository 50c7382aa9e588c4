// Package origin lets a server recognise a connection that it has dialled itself, when a client on
// the same host has accepted that connection and asks for it to be forwarded: a loop.
//
// The client marks each connection that comes from its own host with
//
//	nonce (16 bytes) | the first 8 bytes of SHA-256(nonce, P1's address, the address that P1 dialled)
//
// and holds an abstract Unix socket whose name is the nonce. Such names exist in one network
// namespace. A server that finds the name taken is in the client's namespace. If it has a
// connection with these two addresses, that is the marked one, since there cannot be two.
//
//	place := origin.New()                // once per client
//	defer place.Close()
//	mark := place.Mark(accepted)         // goes to the server in the tip
//	loop := origin.Is(mark, local, to)   // at the server, for each connection that it has dialled
//
// Each process has a nonce of its own, which says nothing about the host.
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
	// Size is the length of a mark in bytes.
	Size = nonceSize + 8
)

// A Place marks the connections that one process accepts. Several goroutines may use it.
type Place struct {
	nonce  [nonceSize]byte
	holder holder
}

// New makes a Place. On a system without abstract Unix sockets it marks nothing.
func New() *Place {
	p := new(Place)
	_, _ = rand.Read(p.nonce[:]) // never fails
	p.holder = hold(name(p.nonce[:]))
	return p
}

// Close releases the name.
func (p *Place) Close() { p.holder.close() }

// Mark returns the mark of an accepted connection, or nil for a connection from another host.
func (p *Place) Mark(c net.Conn) []byte {
	from, ok := c.RemoteAddr().(*net.TCPAddr)
	at, too := c.LocalAddr().(*net.TCPAddr)
	if !ok || !too || !p.holder.held() || !SameHost(from, at) {
		return nil
	}
	return mark(p.nonce[:], from.String(), at.String())
}

// SameHost reports whether the two addresses of a connection belong to one host.
func SameHost(a, b *net.TCPAddr) bool {
	return a.IP.Equal(b.IP) || a.IP.IsLoopback() && b.IP.IsLoopback()
}

// Is reports whether a mark belongs to the connection from local to the address to, in this network
// namespace. If the addresses match, it opens a socket for a moment.
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
