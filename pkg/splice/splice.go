// Package splice copies both ways between two half-closable streams: what a
// relay does with the bytes of a connection once it has decided about it.
//
// The one idea: the two directions are independent, and whatever ends a half of
// one stream ends the half of the other stream that it feeds, in the same way.
//
//	read EOF            → End on the other side
//	read a reset        → CancelWrite on the other side, with its code
//	reader over there
//	has stopped reading → CancelRead on this side, with its code, even while
//	                      this side is idle
//
// A [Join] owns both streams from the moment that it runs: when it says that it is done,
// both halves of both streams are finished, so that QUIC frees them and
// returns their credit.
//
//	var join splice.Join
//	var work sync.WaitGroup
//	go show(&join.Forth, &join.Back)   // counters, live
//	join.Run(ctx, fromClient, toServer, work.Go, func(end splice.End) { … })
//
// An idle join holds no buffer: buffers come from a pool when there is data,
// and go back before a direction waits for more. One that has long been idle, and is told so by [Flow.Rest], takes half of
// the stack as well.
package splice

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"ptthqd/pkg/wire"
)

// bufferSize is what one copy moves at most. 64 to 128 KiB were measured as
// good as 256; the smaller leaves more of a stalled join in QUIC's hands, whose flow
// control can push back on it.
const bufferSize = 64 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// Join copies between two streams, a and b. The zero value is ready, for one Run.
type Join struct {
	Forth Flow // a → b
	Back  Flow // b → a

	spawn   func(func())
	done    func(End)
	release func()       // of obey
	running atomic.Int32 // directions

	mu  sync.Mutex
	end End
}

// Flow is one direction of a join. Its methods may be called while it runs, from
// any goroutine.
type Flow struct {
	bytes   atomic.Uint64
	writing atomic.Bool
	drained atomic.Bool // src has come to its regular end and dst has taken everything

	// Here, and not on the stack of who waits for days.
	src, dst         wire.Stream
	srcSide, dstSide Side
	reverse          *Flow
	readErr          error // why it has come to its end; io.EOF mostly
	writeErr         error
	release          func() // of attend
	begun, resting   atomic.Bool

	peek  [1]byte  // what Peek fills; here so that waiting allocates nothing
	last  [24]byte // what came with the end
	lasts int      // how much that is
}

// Bytes is how many bytes the far stream has taken.
func (f *Flow) Bytes() uint64 { return f.bytes.Load() }

// Writing tells whether the flow is inside a Write of the far stream at this
// moment. If it is, with the same Bytes, at two moments, then the far stream has
// taken less than one buffer of it between them.
func (f *Flow) Writing() bool { return f.writing.Load() }

// Rest is for a flow that has long been idle, and is likely to be for long yet: it goes on in a fresh goroutine. Copying has
// made its stack twice as large as waiting needs. It does nothing to a flow that isn't running.
func (f *Flow) Rest() {
	if f.begun.Load() && f.resting.CompareAndSwap(false, true) {
		_ = f.src.SetReadDeadline(longAgo)
	}
}

// longAgo is a deadline that has passed: it wakes who waits.
var longAgo = time.Unix(1, 0) //nolint:forbidigo // before all times, of a bubble too

// Side says who ended a join.
type Side uint8

// The sides of a join.
const (
	Nobody  Side = iota // both directions came to their regular end
	A                   // stream a, or its connection
	B                   // stream b, or its connection
	Context             // the context given to Run
)

// End is how a join ended: its first reset in time, as later ones are echoes.
type End struct {
	By    Side
	Cause error // nil if By is Nobody; else mostly a *wire.ResetError
}

// Run copies until both directions have ended and then calls done. When ctx is done, it
// resets both streams with the code of the [wire.ResetError] that is the context's cause,
// or with [wire.CodeLost] without one. One direction is in the caller's goroutine, the other is in one that spawn starts, a
// [sync.WaitGroup]'s Go; but neither for ever: Run may return before the end, when all is in goroutines that spawn has
// started, of which the last one calls done.
func (j *Join) Run(ctx context.Context, a, b wire.Stream, spawn func(func()), done func(End)) {
	j.begin(ctx, a, b, spawn, done)
	spawn(func() { j.copy(&j.Forth) })
	j.copy(&j.Back)
}

// A join is idle for days, on two stacks. They shrink to 4 KiB if no more than 1.2 KiB of them is in use while it waits
// (the runtime halves a stack of which less than a quarter is used, and counts 800 bytes of its own), and are of 2 KiB after a
// rest, so what else has to be done is done in functions that return before.

//go:noinline
func (j *Join) begin(ctx context.Context, a, b wire.Stream, spawn func(func()), done func(End)) {
	j.Forth.src, j.Forth.srcSide, j.Forth.dst, j.Forth.dstSide, j.Forth.reverse = a, A, b, B, &j.Back
	j.Back.src, j.Back.srcSide, j.Back.dst, j.Back.dstSide, j.Back.reverse = b, B, a, A, &j.Forth
	j.spawn, j.done = spawn, done
	j.running.Store(2)
	j.Forth.release, j.Back.release = j.attend(&j.Forth), j.attend(&j.Back)
	j.release = j.obey(ctx)
	j.Forth.begun.Store(true)
	j.Back.begun.Store(true)
}

// obey has both streams reset when ctx is done. It is over when the function that it returns has returned.
func (j *Join) obey(ctx context.Context) (release func()) {
	return watch(ctx, func() {
		cause := context.Cause(ctx)
		j.ended(Context, cause)
		j.Forth.src.Reset(code(cause))
		j.Forth.dst.Reset(code(cause))
	})
}

// copy moves one direction until it ends, and leaves src's reading and dst's
// writing half finished. It returns before that if the direction rests.
func (j *Join) copy(f *Flow) {
	f.pump()
	j.pumped(f)
}

// pumped goes on when pump has returned.
//
//go:noinline
func (j *Join) pumped(f *Flow) {
	if f.resting.Load() && errors.Is(f.readErr, os.ErrDeadlineExceeded) {
		_ = f.src.SetReadDeadline(time.Time{})
		f.readErr = nil
		f.resting.Store(false)
		j.spawn(func() { j.copy(f) })
		return
	}
	f.release() // before End, which may end the context that is watched
	j.finish(f)
	if j.running.Add(-1) == 0 {
		j.release()
		j.mu.Lock()
		end := j.end
		j.mu.Unlock()
		j.done(end)
	}
}

// attend notices a reader that is gone even when src says nothing for hours.
func (j *Join) attend(f *Flow) (release func()) {
	gone := f.dst.Context()
	return watch(gone, func() {
		cause := context.Cause(gone)
		j.ended(f.dstSide, cause)
		f.src.CancelRead(code(cause))
		// With its connection dst's other half is gone as well. The reverse direction
		// notices when it reads, but not while it waits in a Write.
		if connectionLost(cause) && !f.reverse.drained.Load() {
			f.src.CancelWrite(code(cause))
		}
	})
}

// finish ends both halves as the copying has ended.
func (j *Join) finish(f *Flow) {
	if errors.Is(f.readErr, io.EOF) && f.writeErr == nil {
		f.drained.Store(true)
		if f.writeErr = f.dst.End(f.last[:f.lasts]); f.writeErr == nil {
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

// pump copies until src ends or dst fails. The last bytes, which have come with src's regular end, it leaves in f.last, if
// there is room for them.
func (f *Flow) pump() {
	for f.readErr == nil && f.writeErr == nil {
		if _, err := f.src.Peek(f.peek[:]); err != nil {
			if f.resting.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
				f.readErr = err
				return
			}
			// Only reading the end makes QUIC forget a stream; peeking at it does not.
			if _, f.readErr = f.src.Read(f.peek[:]); f.readErr == nil {
				f.readErr = err
			}
			return
		}
		f.move()
	}
}

// move copies what src has buffered, at most one buffer of it.
//
//go:noinline
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

// ended records the first reason.
func (j *Join) ended(by Side, cause error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.end.By == Nobody {
		j.end = End{By: by, Cause: cause}
	}
}

// watch calls f in a goroutine once ctx is done, unless it is released first; in the other case to release it is to wait for f.
func watch(ctx context.Context, f func()) (release func()) {
	var running sync.WaitGroup
	running.Add(1)
	after := func() {
		defer running.Done()
		f()
	}
	var stop func() bool
	if direct, ok := ctx.(interface{ AfterFunc(f func()) func() bool }); ok { // it spares a context of package context's own
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

// connectionLost tells a stream that has lost its connection from one whose peer has stopped reading.
func connectionLost(cause error) bool {
	r, ok := errors.AsType[*wire.ResetError](cause)
	return !ok || !r.Remote
}

// code is what to pass on of an error: the peer's own code, or that the stream is lost.
func code(err error) wire.StreamCode {
	if r, ok := errors.AsType[*wire.ResetError](err); ok {
		return r.Code
	}
	return wire.CodeLost
}
