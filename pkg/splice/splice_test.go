package splice_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"ptthqd/pkg/splice"
	"ptthqd/pkg/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// half is one direction of an in-memory stream, with the semantics of a QUIC
// stream: a bounded buffer, FIN, RESET_STREAM that drops unread data, and STOP_SENDING
// that reaches an idle writer through its context.
type half struct {
	mu       sync.Mutex
	changed  sync.Cond
	buf      []byte // fixed capacity: the flow control window
	fin      bool
	reset    *wire.ResetError // as the reader sees it
	stopped  *wire.ResetError // as the writer sees it
	readEnd  bool             // the reading half is finished: EOF or reset was read, or it was cancelled
	writeEnd bool             // the writing half is finished: FIN or reset
	overdue  bool             // the reader's deadline has passed

	ctx    context.Context // the writer's
	cancel context.CancelCauseFunc
}

func newHalf(window int) *half {
	h := &half{buf: make([]byte, 0, window)}
	h.changed.L = &h.mu
	h.ctx, h.cancel = context.WithCancelCause(context.Background())
	return h
}

func (h *half) read(p []byte, consume bool) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.overdue:
			return 0, os.ErrDeadlineExceeded
		case h.reset != nil:
			h.readEnd = h.readEnd || consume
			return 0, h.reset
		case len(h.buf) > 0:
			n := copy(p, h.buf)
			if consume {
				h.buf = h.buf[:copy(h.buf, h.buf[n:])]
				h.changed.Broadcast()
			}
			return n, nil
		case h.fin:
			h.readEnd = h.readEnd || consume
			return 0, io.EOF
		}
		h.changed.Wait()
	}
}

func (h *half) setOverdue(overdue bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.overdue = overdue
	h.changed.Broadcast()
}

func (h *half) write(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(p) > 0 {
		switch {
		case h.stopped != nil:
			return n, h.stopped
		case h.writeEnd:
			return n, errors.New("write after the end")
		case len(h.buf) == cap(h.buf):
			h.changed.Wait()
			continue
		}
		m := min(len(p), cap(h.buf)-len(h.buf))
		h.buf = append(h.buf, p[:m]...)
		n, p = n+m, p[m:]
		h.changed.Broadcast()
	}
	return n, nil
}

func (h *half) closeWrite() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped != nil {
		return h.stopped
	}
	h.fin, h.writeEnd = true, true
	h.cancel(nil)
	h.changed.Broadcast()
	return nil
}

func (h *half) cancelWrite(code wire.StreamCode, remote bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.writeEnd {
		return
	}
	h.writeEnd = true
	h.reset = &wire.ResetError{Code: code, Remote: remote}
	h.stopped = &wire.ResetError{Code: code}
	h.cancel(h.stopped)
	h.changed.Broadcast()
}

func (h *half) cancelRead(code wire.StreamCode, remote bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.readEnd {
		return
	}
	h.readEnd = true
	if h.reset == nil {
		h.reset = &wire.ResetError{Code: code}
	}
	if !h.writeEnd {
		h.stopped = &wire.ResetError{Code: code, Remote: remote}
		h.cancel(h.stopped)
	}
	h.changed.Broadcast()
}

// stream is one end of an in-memory stream.
type stream struct {
	wire.Stream // nil: what a join does not use
	in, out     *half
}

// pipe is a stream with the given window in each direction. Cut it with lose.
func pipe(window int) (near, far stream) {
	a, b := newHalf(window), newHalf(window)
	return stream{in: a, out: b}, stream{in: b, out: a}
}

func (s stream) Read(p []byte) (int, error)  { return s.in.read(p, true) }
func (s stream) Peek(p []byte) (int, error)  { return s.in.read(p, false) }
func (s stream) Write(p []byte) (int, error) { return s.out.write(p) }
func (s stream) CloseWrite() error           { return s.out.closeWrite() }
func (s stream) Finish(p []byte) error {
	if _, err := s.out.write(p); err != nil {
		return err
	}
	return s.out.closeWrite()
}
func (s stream) CancelRead(code wire.StreamCode)   { s.in.cancelRead(code, true) }
func (s stream) CancelWrite(code wire.StreamCode)  { s.out.cancelWrite(code, true) }
func (s stream) Reset(code wire.StreamCode)        { s.CancelRead(code); s.CancelWrite(code) }
func (s stream) Context() context.Context          { return s.out.ctx }
func (s stream) SetReadDeadline(t time.Time) error { s.in.setOverdue(!t.IsZero()); return nil }
func (s stream) finished() (reading, writing bool) { return s.in.done(true), s.out.done(false) }

func (h *half) done(reading bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if reading {
		return h.readEnd
	}
	return h.writeEnd
}

// lose ends the stream as the death of its link does, for the given end.
func (s stream) lose() {
	s.in.cancelWrite(wire.CodeLost, false)
	s.out.cancelRead(wire.CodeLost, false)
}

// joined is a join under test: client and server are the outer ends.
type joined struct {
	t              *testing.T
	client, server stream // held by the test
	a, b           stream // held by the join
	join           splice.Join
	abort          context.CancelCauseFunc
	result         chan splice.End
}

func start(t *testing.T, window int) *joined {
	t.Helper()
	j := &joined{t: t, result: make(chan splice.End, 1)}
	j.client, j.a = pipe(window)
	j.b, j.server = pipe(window)
	ctx, abort := context.WithCancelCause(context.Background())
	j.abort = abort
	go func() { j.result <- j.join.Run(ctx, j.a, j.b) }()
	return j
}

// end waits for the join and checks that it finished all four halves.
func (j *joined) end() splice.End {
	j.t.Helper()
	end := <-j.result
	for name, s := range map[string]stream{"a": j.a, "b": j.b} {
		if reading, writing := s.finished(); !reading || !writing {
			j.t.Errorf("stream %s was left unfinished: reading ended %v, writing ended %v", name, reading, writing)
		}
	}
	j.abort(nil)
	return end
}

func wantReset(t *testing.T, what string, err error, want wire.StreamCode) {
	t.Helper()
	if reset, ok := errors.AsType[*wire.ResetError](err); !ok || reset.Code != want {
		t.Errorf("%s: %v, want a reset with code %v", what, err, want)
	}
}

func TestCopiesBothWaysAndHalfCloses(t *testing.T) {
	j := start(t, 3000)
	up, down := randomBytes(300_000), randomBytes(200_000)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := j.client.Write(up); err != nil {
			t.Error(err)
		}
		if err := j.client.CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	// The server speaks only after the client's end has reached it: the way back
	// must have stayed open.
	if got, err := io.ReadAll(j.server); err != nil || !bytes.Equal(got, up) {
		t.Errorf("the server read %d bytes, %v; want the %d that the client sent", len(got), err, len(up))
	}
	wg.Go(func() {
		if _, err := j.server.Write(down); err != nil {
			t.Error(err)
		}
		if err := j.server.CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	if got, err := io.ReadAll(j.client); err != nil || !bytes.Equal(got, down) {
		t.Errorf("the client read %d bytes, %v; want the %d that the server sent", len(got), err, len(down))
	}
	wg.Wait()
	if end := j.end(); end.By != splice.Nobody || end.Cause != nil {
		t.Errorf("a regular end was reported as %+v", end)
	}
	if forth, back := j.join.Forth.Bytes(), j.join.Back.Bytes(); forth != uint64(len(up)) || back != uint64(len(down)) {
		t.Errorf("counted %d and %d bytes, want %d and %d", forth, back, len(up), len(down))
	}
}

// Each case ends a running, idle join in one way. It has what each outer end must see, and which
// side must be named.
func TestEnds(t *testing.T) {
	const odd wire.StreamCode = 77 // codes are passed on, known or not
	for name, c := range map[string]struct {
		do         func(j *joined)
		clientRead any // a code, io.EOF, or nil for "still open"
		serverRead any
		clientStop any // what the client's writing half hears: a code or nil
		serverStop any
		by         splice.Side
	}{
		"the client resets both halves": {
			do:         func(j *joined) { j.client.CancelRead(odd); j.client.CancelWrite(odd) },
			serverRead: odd, serverStop: odd, by: splice.A,
		},
		"the server resets both halves": {
			do:         func(j *joined) { j.server.CancelWrite(wire.CodeRevoked); j.server.CancelRead(wire.CodeRevoked) },
			clientRead: wire.CodeRevoked, clientStop: wire.CodeRevoked, by: splice.B,
		},
		"the client's link is lost": {
			do:         func(j *joined) { j.a.lose() },
			serverRead: wire.CodeLost, serverStop: wire.CodeLost, by: splice.A,
		},
		"the server's link is lost": {
			do:         func(j *joined) { j.b.lose() },
			clientRead: wire.CodeLost, clientStop: wire.CodeLost, by: splice.B,
		},
		"aborted with a code": {
			do:         func(j *joined) { j.abort(&wire.ResetError{Code: wire.CodeClosing}) },
			clientRead: wire.CodeClosing, clientStop: wire.CodeClosing,
			serverRead: wire.CodeClosing, serverStop: wire.CodeClosing, by: splice.Context,
		},
		"aborted without a code": {
			do:         func(j *joined) { j.abort(errors.New("shut down")) },
			clientRead: wire.CodeLost, clientStop: wire.CodeLost,
			serverRead: wire.CodeLost, serverStop: wire.CodeLost, by: splice.Context,
		},
		"the server stops reading, then both end": {
			do: func(j *joined) {
				j.server.CancelRead(odd)
				synctest.Wait()
				_ = j.server.CloseWrite()
			},
			clientRead: io.EOF, clientStop: odd, serverRead: odd, by: splice.B,
		},
		"the client stops reading, then both end": {
			do: func(j *joined) {
				j.client.CancelRead(odd)
				synctest.Wait()
				_ = j.client.CloseWrite()
			},
			serverRead: io.EOF, serverStop: odd, clientRead: odd, by: splice.A,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j := start(t, 100)
				if _, err := j.client.Write([]byte("hello")); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(j.server, make([]byte, 5)); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				c.do(j)
				if end := j.end(); end.By != c.by || end.Cause == nil {
					t.Errorf("ended %+v, want by %v", end, c.by)
				}
				check := func(what string, err error, want any) {
					t.Helper()
					switch want := want.(type) {
					case wire.StreamCode:
						wantReset(t, what, err, want)
					case error:
						if !errors.Is(err, want) {
							t.Errorf("%s: %v, want %v", what, err, want)
						}
					}
				}
				if c.clientRead != nil {
					_, err := j.client.Read(make([]byte, 1))
					check("the client reads", err, c.clientRead)
				}
				if c.serverRead != nil {
					_, err := j.server.Read(make([]byte, 1))
					check("the server reads", err, c.serverRead)
				}
				if c.clientStop != nil {
					_, err := j.client.Write([]byte{1})
					check("the client writes", err, c.clientStop)
				}
				if c.serverStop != nil {
					_, err := j.server.Write([]byte{1})
					check("the server writes", err, c.serverStop)
				}
			})
		})
	}
}

// A direction that is stuck in a Write ends like an idle one.
func TestEndsWhileWriting(t *testing.T) {
	for name, do := range map[string]func(j *joined){
		"the reader stops": func(j *joined) { j.server.CancelRead(wire.CodeRevoked); _ = j.server.CloseWrite() },
		"the writer resets": func(j *joined) {
			j.client.CancelWrite(wire.CodeRevoked)
			j.client.CancelRead(wire.CodeRevoked)
			// A reader that doesn't read learns it by its own writing half.
			<-j.server.Context().Done()
			j.server.CancelRead(wire.CodeRevoked)
		},
		"the writer's link is lost": func(j *joined) { j.a.lose() },
		"the reader's link is lost": func(j *joined) { j.b.lose() },
		"the join is aborted":       func(j *joined) { j.abort(&wire.ResetError{Code: wire.CodeRevoked}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j := start(t, 100)
				var wg sync.WaitGroup
				wg.Go(func() {
					if _, err := j.client.Write(make([]byte, 1000)); err == nil {
						t.Error("the client wrote more than fits")
					}
				})
				synctest.Wait()
				if !j.join.Forth.Writing() || j.join.Back.Writing() {
					t.Errorf("writing forth %v, back %v; want true, false", j.join.Forth.Writing(), j.join.Back.Writing())
				}
				do(j)
				j.end()
				wg.Wait()
				if j.join.Forth.Writing() {
					t.Error("still writing after the end")
				}
			})
		})
	}
}

// The first reason counts: a client that resets makes the server reset too, and
// that echo is not the reason.
func TestFirstReasonWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := start(t, 100)
		j.client.CancelWrite(wire.CodeRevoked)
		synctest.Wait()
		j.server.CancelWrite(wire.CodeLost)
		j.server.CancelRead(wire.CodeLost)
		end := j.end()
		wantReset(t, "the end", end.Cause, wire.CodeRevoked)
		if end.By != splice.A {
			t.Errorf("ended by %v, want by a", end.By)
		}
	})
}

func TestAbortedBeforeItBegins(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(&wire.ResetError{Code: wire.CodeClosing})
	client, a := pipe(10)
	b, _ := pipe(10)
	var join splice.Join
	if end := join.Run(ctx, a, b); end.By != splice.Context {
		t.Errorf("ended by %v, want by the context", end.By)
	}
	_, err := client.Read(make([]byte, 1))
	wantReset(t, "the client reads", err, wire.CodeClosing)
}

// Both ends read and write at random and end at random moments; whatever happens, the
// join ends and finishes everything, and what arrives is a prefix of what was sent.
func TestRandomEnds(t *testing.T) {
	for seed := range uint64(300) {
		synctest.Test(t, func(t *testing.T) {
			j := start(t, 500)
			sent := randomBytes(50_000)
			var wg sync.WaitGroup
			for i, s := range []stream{j.client, j.server} {
				rnd := rand.New(rand.NewPCG(seed, uint64(i)))
				writeUntil, readUntil := rnd.IntN(len(sent)+1), rnd.IntN(2*len(sent))
				fin := rnd.IntN(2) == 0
				pause := time.Duration(rnd.IntN(1000))
				wg.Go(func() {
					_, _ = s.Write(sent[:writeUntil])
					time.Sleep(pause)
					if !fin || s.CloseWrite() != nil {
						s.CancelWrite(wire.CodeLost)
					}
				})
				wg.Go(func() {
					got, err := io.ReadAll(io.LimitReader(s, int64(readUntil)))
					if !bytes.HasPrefix(sent, got) {
						t.Errorf("seed %d: bytes arrived that were never sent", seed)
					}
					time.Sleep(pause)
					if err == nil {
						s.CancelRead(wire.CodeLost)
					}
				})
			}
			wg.Wait()
			j.end()
		})
	}
}

// Copying allocates nothing: neither the waiting nor the moving.
func TestCopyAllocatesNothing(t *testing.T) {
	j := start(t, 1<<20)
	chunk, got := make([]byte, 100_000), make([]byte, 100_000)
	server := io.Reader(j.server) // once, as that allocates
	turn := func() {
		if _, err := j.client.Write(chunk); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(server, got); err != nil {
			t.Fatal(err)
		}
	}
	turn() // fills the pool
	if n := testing.AllocsPerRun(200, turn); n >= 1 {
		t.Errorf("%v allocations for each copy, want none", n)
	}
	j.abort(nil)
	j.end()
}

func BenchmarkJoin(b *testing.B) {
	client, x := pipe(1 << 20)
	y, server := pipe(1 << 20)
	var join splice.Join
	var wg sync.WaitGroup
	wg.Go(func() { join.Run(context.Background(), x, y) })
	wg.Go(func() {
		got := make([]byte, 64<<10)
		for {
			if _, err := server.Read(got); err != nil {
				_ = server.CloseWrite()
				return
			}
		}
	})
	chunk := make([]byte, 64<<10)
	b.SetBytes(int64(len(chunk)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	_ = client.CloseWrite()
	_, _ = io.Copy(io.Discard, client)
	wg.Wait()
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rnd := rand.New(rand.NewPCG(uint64(n), 1))
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}
