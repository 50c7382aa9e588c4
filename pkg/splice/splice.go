// Package splice copies both ways between two streams, as a relay does once it has decided about a
// connection.
//
// The one idea: the two directions are independent, and whatever ends a half of one stream ends the
// half of the other stream that it feeds, in the same way.
//
//	a read returns EOF       → Finish on the other stream
//	a read returns a reset   → CancelWrite on the other stream, with the same code
//	the reader of the other
//	stream stops reading     → CancelRead on this stream, with the same code, even while idle
//
// A [Join] is used once. Its two [Flow]s show how much has passed, also while it runs:
//
//	var join splice.Join
//	var work sync.WaitGroup
//	join.Run(ctx, fromClient, toServer, work.Go, func(end splice.End) {
//		log(join.Forth.Bytes(), join.Back.Bytes(), end.By, end.Cause)
//	})
//	work.Wait()
//
// Run takes over both streams: when it returns, both halves of both streams are finished, so that
// QUIC frees them and returns their credit. To end a join early, cancel ctx.
//
// Most joins are idle for days. An idle join holds no buffer: buffers come from a pool when there
// is data, and go back before a direction waits for more.
package splice

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"ptthqd/pkg/wire"
)

// bufferSize is how many bytes one read and write move at most. Sizes from 64 to 256 KiB were
// equally fast. With the smallest, more of a stalled join stays in QUIC, whose flow control then
// pushes back.
const bufferSize = 64 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// Join copies between two streams, a and b. The zero value is ready, for one Run.
type Join struct {
	Forth Flow // a → b
	Back  Flow // b → a

	mu  sync.Mutex
	end End
}

// Flow is one direction of a join. Its methods may be called at any time, from any goroutine.
type Flow struct {
	bytes   atomic.Uint64
	writing atomic.Bool
	drained atomic.Bool // src has ended in order and dst has taken everything

	src, dst         wire.Stream
	srcSide, dstSide Side
	reverse          *Flow
	readErr          error // why reading has ended; io.EOF if it ended in order
	writeErr         error

	peek  [1]byte  // filled by Peek
	last  [24]byte // the last bytes, if few have come together with the end
	lasts int      // how many
}

// Bytes returns how many bytes the far stream has taken.
func (f *Flow) Bytes() uint64 { return f.bytes.Load() }

// Writing reports whether the flow is inside a Write of the far stream. A flow that is so at two
// moments, with the same Bytes, has been stuck in between.
func (f *Flow) Writing() bool { return f.writing.Load() }

// Side says what ended a join.
type Side uint8

// The sides of a join.
const (
	Nobody  Side = iota // both directions ended in order
	A                   // stream a, or its connection
	B                   // stream b, or its connection
	Context             // the context given to Run
)

// End is how a join ended: the first reset in time, since later ones are echoes of it.
type End struct {
	By    Side
	Cause error // nil if By is Nobody; otherwise mostly a *wire.ResetError
}

// Run copies until both directions have ended, and returns how. When ctx is done, it resets both
// streams with the code of the [wire.ResetError] that is the context's cause, or with
// [wire.CodeLost].
func (j *Join) Run(ctx context.Context, a, b wire.Stream) End {
	j.Forth.src, j.Forth.srcSide, j.Forth.dst, j.Forth.dstSide, j.Forth.reverse = a, A, b, B, &j.Back
	j.Back.src, j.Back.srcSide, j.Back.dst, j.Back.dstSide, j.Back.reverse = b, B, a, A, &j.Forth
	release := j.obey(ctx)
	var back sync.WaitGroup
	back.Go(func() { j.copy(&j.Back) })
	j.copy(&j.Forth)
	back.Wait()
	release()
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.end
}

// obey resets both streams when ctx is done. After release has returned it does so no more.
func (j *Join) obey(ctx context.Context) (release func()) {
	return watch(ctx, func() {
		cause := context.Cause(ctx)
		j.ended(Context, cause)
		j.Forth.src.Reset(code(cause))
		j.Forth.dst.Reset(code(cause))
	})
}

// copy runs one direction until it ends. Then src's reading and dst's writing half are finished.
func (j *Join) copy(f *Flow) {
	release := j.attend(f)
	f.pump()
	release() // before End, which may end the watched context
	j.finish(f)
}

// attend watches dst's context: it ends the flow when dst's reader is gone, even while src is idle.
func (j *Join) attend(f *Flow) (release func()) {
	gone := f.dst.Context()
	return watch(gone, func() {
		cause := context.Cause(gone)
		j.ended(f.dstSide, cause)
		f.src.CancelRead(code(cause))
		// If the whole connection of dst is gone, the reverse direction notices when it reads, but
		// not while it blocks in a Write.
		if connectionLost(cause) && !f.reverse.drained.Load() {
			f.src.CancelWrite(code(cause))
		}
	})
}

// finish ends the two halves of a flow in the way in which copying has ended.
func (j *Join) finish(f *Flow) {
	if errors.Is(f.readErr, io.EOF) && f.writeErr == nil {
		f.drained.Store(true)
		if f.writeErr = f.dst.Finish(f.last[:f.lasts]); f.writeErr == nil {
			f.bytes.Add(uint64(f.lasts))
			return
		}
	}
	cause, side := f.readErr, f.srcSide
	if f.writeErr != nil {
		cause, side = f.writeErr, f.dstSide
	}
	j.ended(side, cause)
	f.src.CancelRead(code(cause))
	f.dst.CancelWrite(code(cause))
}

// pump copies until src ends or dst fails. Last bytes that come together with src's end stay in
// f.last if they fit: finish sends them with the end, in one packet.
func (f *Flow) pump() {
	for f.readErr == nil && f.writeErr == nil {
		// idle: most joins wait here, without a buffer.
		if _, err := f.src.Peek(f.peek[:]); err != nil {
			// QUIC forgets a stream only when its end is read. Peek is not enough.
			if _, f.readErr = f.src.Read(f.peek[:]); f.readErr == nil {
				f.readErr = err
			}
			return
		}
		f.move()
	}
}

// move copies what has arrived from src, at most bufferSize.
func (f *Flow) move() {
	buffer := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buffer)
	n, err := f.src.Read(buffer[:])
	f.readErr = err
	switch {
	case n == 0:
		return
	case n <= len(f.last) && errors.Is(err, io.EOF):
		f.lasts = copy(f.last[:], buffer[:n])
		return
	}
	f.writing.Store(true)
	n, f.writeErr = f.dst.Write(buffer[:n])
	f.writing.Store(false)
	f.bytes.Add(uint64(n))
}

// ended records why the join ended. The first reason counts.
func (j *Join) ended(by Side, cause error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.end.By == Nobody {
		j.end = End{By: by, Cause: cause}
	}
}

// watch calls f in a goroutine once ctx is done. After release has returned, f will not begin, and
// has ended if it had begun.
func watch(ctx context.Context, f func()) (release func()) {
	var running sync.WaitGroup
	running.Add(1)
	after := func() {
		defer running.Done()
		f()
	}
	var stop func() bool
	// A stream's context has an AfterFunc that allocates no further context.
	if direct, ok := ctx.(interface{ AfterFunc(f func()) func() bool }); ok {
		stop = direct.AfterFunc(after)
	} else {
		stop = context.AfterFunc(ctx, after)
	}
	return func() {
		if !stop() {
			running.Wait()
		}
	}
}

// connectionLost reports whether a stream ended because its connection was lost, rather than
// because the peer has stopped reading.
func connectionLost(cause error) bool {
	r, ok := errors.AsType[*wire.ResetError](cause)
	return !ok || !r.Remote
}

// code returns the stream code that tells the other side of an error.
func code(err error) wire.StreamCode {
	if r, ok := errors.AsType[*wire.ResetError](err); ok {
		return r.Code
	}
	return wire.CodeLost
}
