package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// The bounds of the log's queue.
const (
	chunkBytes = 64 << 10        // what one write takes of text or JSON, as much as a pipe holds
	lastLines  = time.Second     // how long the end of the process waits for the lines that are left
	logStuck   = 5 * time.Second // a write that takes longer is told in the status
)

// queueBytes is what may wait for the writer, about 8,000 lines; beyond it lines are dropped. As much may be with the writer.
// Tests have less.
var queueBytes = 2 << 20

// msgMissing is a message with a MESSAGE_ID. It stands where the lines are missing.
const msgMissing = "lines of the log are missing"

// A line is a line of the log on its way to the writer.
type line struct {
	text *bytes.Buffer // of the pool texts
	at   time.Time

	// For the journal, whose text is a datagram.
	priority byte
	message  [2]int // where the message with its fields begins and ends in text, to be written to stderr if the journal fails
}

// A lineSink writes lines, one call at a time. It may block for as long as nobody reads, and returns how many lines it could not
// write, and why. It keeps none of them.
type lineSink interface {
	write(lines []line) (lost int, err error)
	close() // after the last write
}

// A logQueue stands between those who log and the sink: put never blocks. What finds no room is dropped and counted, and once
// the sink takes lines again a line tells how many are missing at that place.
type logQueue struct {
	sink    lineSink
	missing slog.Handler // formats the line about missing ones, and has it written at once
	dropped atomic.Uint64
	busy    atomic.Int64 // since when the sink has been writing, in ns since began; 0 while it is not
	began   time.Time
	failure atomic.Pointer[error] // of the last write, nil if that went well

	mu     sync.Mutex
	change sync.Cond // of what follows
	lines  []line
	bytes  int // of lines
	behind int // lines dropped behind lines
	since  time.Time
	closed bool

	ended chan struct{} // closed when run has returned
}

// newLogQueue makes a queue and its goroutine, which close ends. handler makes a handler of what puts a line.
func newLogQueue(sink lineSink, handler func(put func(line) error) slog.Handler) *logQueue {
	q := &logQueue{sink: sink, began: time.Now(), ended: make(chan struct{})}
	q.change.L = &q.mu
	q.missing = handler(func(l line) error {
		_, err := q.write([]line{l})
		return err
	})
	go q.run()
	return q
}

// put has a line written, or drops it. Once one is dropped all are until the sink has taken those before it, so that there is one gap.
func (q *logQueue) put(l line) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.behind > 0 || len(q.lines) > 0 && q.bytes+l.text.Len() > queueBytes {
		if q.behind == 0 {
			q.since = l.at
		}
		q.behind++
		q.dropped.Add(1)
		texts.Put(l.text)
		return nil
	}
	q.lines = append(q.lines, l)
	q.bytes += l.text.Len()
	if len(q.lines) == 1 {
		q.change.Signal()
	}
	return nil
}

// take waits for lines, and returns them with how many were dropped behind them, and since when. It returns false at the end.
func (q *logQueue) take(reuse []line) (lines []line, behind int, since time.Time, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.lines) == 0 && !q.closed {
		q.change.Wait()
	}
	lines, behind, since = q.lines, q.behind, q.since
	q.lines, q.bytes, q.behind = reuse[:0], 0, 0
	return lines, behind, since, len(lines) > 0
}

// run writes until the queue is closed and empty.
func (q *logQueue) run() {
	defer close(q.ended)
	defer q.sink.close()
	var spare []line
	gap := 0 // lines that are missing and not told of yet
	var since time.Time
	var reason error
	for {
		lines, behind, dropped, ok := q.take(spare)
		if !ok {
			return
		}
		gap = q.tell(gap, since, reason)
		lost, err := q.write(lines)
		q.dropped.Add(uint64(lost))
		if gap == 0 {
			reason, since = err, dropped
			if lost > 0 {
				since = lines[len(lines)-lost].at
			}
		}
		gap = q.tell(gap+lost+behind, since, reason)
		for i := range lines {
			texts.Put(lines[i].text)
		}
		clear(lines)
		spare = lines
		if cap(spare) > 1024 {
			spare = nil // a burst is over
		}
	}
}

// tell writes that lines are missing. It returns how many are still to be told of.
func (q *logQueue) tell(gap int, since time.Time, reason error) int {
	if gap == 0 {
		return 0
	}
	r := slog.NewRecord(time.Now(), slog.LevelWarn, msgMissing, 0)
	r.Add("lines", gap, "since", since, "reason", "the log was not read for a while")
	if reason != nil {
		r.Add("error", reason)
	}
	if q.missing.Handle(context.Background(), r) != nil {
		return gap
	}
	return 0
}

// write has the sink write.
func (q *logQueue) write(lines []line) (lost int, err error) {
	q.busy.Store(max(1, int64(time.Since(q.began))))
	defer q.busy.Store(0)
	lost, err = q.sink.write(lines)
	if err == nil {
		q.failure.Store(nil)
	} else {
		q.failure.Store(&err)
	}
	return lost, err
}

// trouble says why no lines are written at the moment; it is empty while all is well.
func (q *logQueue) trouble() string {
	if since := q.busy.Load(); since > 0 {
		if stuck := time.Since(q.began) - time.Duration(since); stuck > logStuck {
			return fmt.Sprintf("nobody has read the log for %v", stuck.Round(time.Second))
		}
	}
	if err := q.failure.Load(); err != nil {
		return fmt.Sprintf("the log can't be written: %v", *err)
	}
	return ""
}

// close waits until what was put is written, but no longer than patience. A writer that hangs then is left behind.
func (q *logQueue) close(patience time.Duration) {
	q.mu.Lock()
	q.closed = true
	q.change.Signal()
	q.mu.Unlock()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-q.ended:
	case <-timeout.C:
	}
}

// A writerSink writes lines of text, many at once.
type writerSink struct {
	w     io.Writer
	chunk bytes.Buffer
	torn  bool // what was written last has ended within a line
}

func (s *writerSink) write(lines []line) (lost int, err error) {
	for i := 0; i < len(lines); {
		s.chunk.Reset()
		if s.torn {
			s.chunk.WriteByte('\n')
		}
		begin := s.chunk.Len()
		first := i
		for ; i < len(lines) && (i == first || s.chunk.Len()+lines[i].text.Len() <= chunkBytes); i++ {
			s.chunk.Write(lines[i].text.Bytes())
		}
		n, writeErr := s.w.Write(s.chunk.Bytes())
		if n > 0 {
			s.torn = s.chunk.Bytes()[n-1] != '\n'
		}
		if writeErr != nil {
			err = writeErr
			lost += bytes.Count(s.chunk.Bytes()[max(n, begin):], []byte("\n"))
		}
	}
	return lost, err
}

func (s *writerSink) close() {}
