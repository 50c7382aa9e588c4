package wire

import (
	"io"

	"github.com/quic-go/quic-go/quicvarint"
)

// A FrameKind says what a frame carries besides its acknowledgement and limit.
type FrameKind uint8

// The frame kinds.
const (
	FrameNone  FrameKind = 0 // nothing: a bare acknowledgement
	FrameData  FrameKind = 1 // Value bytes of data follow the header
	FrameFin   FrameKind = 2 // the end of this direction; occupies one offset
	FrameReset FrameKind = 3 // the session ends at once; Value is a code for logs
	FramePing  FrameKind = 4 // the other end answers with a pong at once
	FramePong  FrameKind = 5
	FrameYield FrameKind = 6 // the sender gives back Value bytes of the limit that it has

	lastFrameKind = FrameYield
)

// MaxFrameData is the most data that one frame carries, in bytes.
const MaxFrameData = 1 << 20

// MaxFrameHeader is the longest encoding of a Frame, in bytes. A sender keeps so much room in front
// of its data, so that header and data leave in one write.
const MaxFrameHeader = 1 + 3*8

// A Frame is the header of a session frame. The first byte is the kind, with one bit each that says
// whether acked and limit follow; a value of 0 is not sent.
type Frame struct {
	Kind  FrameKind
	Acked uint64 // increase of the offset up to which the sender has delivered
	Limit uint64 // increase of the offset up to which the sender takes bytes
	Value uint64 // bytes of data, code of a reset, or bytes that a yield gives back
}

const (
	frameHasAcked = 0x80
	frameHasLimit = 0x40
	frameKindMask = 0x3f
)

func (k FrameKind) hasValue() bool {
	return k == FrameData || k == FrameReset || k == FrameYield
}

// Len returns the length of the header's encoding in bytes, without the data.
func (f Frame) Len() int {
	n := 1
	if f.Acked != 0 {
		n += quicvarint.Len(f.Acked)
	}
	if f.Limit != 0 {
		n += quicvarint.Len(f.Limit)
	}
	if f.Kind.hasValue() {
		n += quicvarint.Len(f.Value)
	}
	return n
}

// Append appends the encoding of the header to dst, without the data.
func (f Frame) Append(dst []byte) []byte {
	first := byte(f.Kind)
	if f.Acked != 0 {
		first |= frameHasAcked
	}
	if f.Limit != 0 {
		first |= frameHasLimit
	}
	dst = append(dst, first)
	if f.Acked != 0 {
		dst = quicvarint.Append(dst, f.Acked)
	}
	if f.Limit != 0 {
		dst = quicvarint.Append(dst, f.Limit)
	}
	if f.Kind.hasValue() {
		dst = quicvarint.Append(dst, f.Value)
	}
	return dst
}

// ParseFrame decodes the frame header at the beginning of b and returns the number of bytes it has
// read. The error is io.ErrUnexpectedEOF if b ends too early, which needs b to be shorter than
// MaxFrameHeader; any other error wraps ErrMalformed.
func ParseFrame(b []byte) (f Frame, n int, err error) {
	if len(b) == 0 {
		return Frame{}, 0, io.ErrUnexpectedEOF
	}
	f.Kind = FrameKind(b[0] & frameKindMask)
	if f.Kind > lastFrameKind {
		return Frame{}, 0, malformed("frame kind %d is unknown", f.Kind)
	}
	n = 1
	take := func(into *uint64) bool {
		v, m, err := quicvarint.Parse(b[n:])
		if err != nil {
			return false
		}
		*into = v
		n += m
		return true
	}
	if b[0]&frameHasAcked != 0 && !take(&f.Acked) ||
		b[0]&frameHasLimit != 0 && !take(&f.Limit) ||
		f.Kind.hasValue() && !take(&f.Value) {
		return Frame{}, 0, io.ErrUnexpectedEOF
	}
	if f.Kind == FrameData && (f.Value == 0 || f.Value > MaxFrameData) {
		return Frame{}, 0, malformed("a data frame of %d bytes", f.Value)
	}
	return f, n, nil
}
