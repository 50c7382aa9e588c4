package link

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"time"

	"ptthqd/pkg/wire"
)

// An incoming is a stream of the peer, with its tip if that has arrived.
type incoming struct {
	stream *Stream
	tip    wire.Message
}

// tipAtOnce is how long Accept itself waits for a tip. A later tip is read by a goroutine.
const tipAtOnce = 2 * time.Millisecond

// Accept returns the peer's next stream with its tip. A stream without a tip delays no other
// stream: after TipTimeout it is reset. A malformed tip is answered with 400. Accept fails when the
// link is over (Err has the reason) or ctx is done. Only one goroutine may call it.
//
// A tip arrives in its stream's first packet as a rule, so Accept reads it itself. A late tip gets
// a goroutine of its own.
func (l *Link) Accept(ctx context.Context) (*Stream, wire.Message, error) {
	for {
		next := l.nextStream(ctx)
		switch {
		case l.Err() != nil:
			return nil, nil, l.Err()
		case next.tip != nil:
			return next.stream, next.tip, nil
		case ctx.Err() != nil:
			return nil, nil, context.Cause(ctx)
		case next.stream == nil:
			continue // a late tip has arrived, or its stream has failed
		}
		tip, arrived := next.stream.peekTip()
		switch {
		case !arrived:
			l.awaitTip(next.stream)
		case l.takeTip(next.stream, tip):
			return next.stream, tip.message, nil
		}
	}
}

// nextStream waits for a stream of the peer. A stream whose late tip has arrived comes with its
// tip, a new stream without. It returns nothing when a late tip has arrived or failed, or the link
// or ctx is over.
func (l *Link) nextStream(ctx context.Context) incoming {
	l.accept.mu.Lock()
	if len(l.accept.ready) > 0 {
		next := l.accept.ready[0]
		l.accept.ready = slices.Delete(l.accept.ready, 0, 1)
		l.accept.mu.Unlock()
		return next
	}
	late := l.accept.late
	if late > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		l.accept.wake = cancel
	}
	l.accept.mu.Unlock()
	if int(late) >= l.limits.PendingTips { // further streams wait in QUIC
		l.hits.hit(limitTips, slog.String("peer", l.Peer()))
		select {
		case <-ctx.Done():
		case <-l.Done():
		}
		return incoming{}
	}
	qs, err := l.conn.AcceptStream(ctx)
	if err != nil {
		return incoming{}
	}
	return incoming{stream: &Stream{stream: qs, link: l}}
}

// awaitTip has a goroutine read the stream's late tip, if the limits allow one more.
func (l *Link) awaitTip(s *Stream) {
	l.accept.mu.Lock()
	defer l.accept.mu.Unlock()
	switch {
	case l.accept.over:
	case !l.mayBeLate():
		l.hits.hit(limitAllTips, slog.String("peer", l.Peer()))
		s.refuse(wire.StatusTooMany, "too many streams have not said yet what they want")
	default:
		l.accept.late++
		l.work.Go(func() { l.readLateTip(s) })
	}
}

// A readTip is a tip, or why reading it has failed.
type readTip struct {
	message wire.Message
	err     error
}

// peekTip takes a tip if all of it arrives within tipAtOnce. Otherwise it takes nothing.
func (s *Stream) peekTip() (tip readTip, there bool) {
	_ = s.SetReadDeadline(time.Now().Add(tipAtOnce))
	// Type and length: one byte, and one or two. Longer encodings are read as late tips.
	var head [3]byte
	n := 2
	if _, err := s.stream.Peek(head[:n]); err != nil {
		return readTip{}, false
	}
	size := int(head[1])
	switch head[1] >> 6 {
	case 0:
	case 1:
		n = 3
		if _, err := s.stream.Peek(head[:n]); err != nil {
			return readTip{}, false
		}
		size = int(head[1]&0x3f)<<8 | int(head[2])
	default:
		return readTip{}, false
	}
	if head[0]>>6 != 0 || size > wire.MaxBody {
		return readTip{}, false
	}
	b := make([]byte, n+size)
	if _, err := s.stream.Peek(b); err != nil {
		return readTip{}, false
	}
	// The tip is there, so the read does not wait. It must not fail because the deadline has just
	// passed: unread bytes would be taken for data behind the tip.
	_ = s.SetReadDeadline(time.Time{})
	if _, tip.err = io.ReadFull(s.stream, b); tip.err == nil {
		tip.message, _, tip.err = wire.Parse(b)
	}
	return tip, true
}

// readLateTip reads a late tip.
func (l *Link) readLateTip(s *Stream) {
	var tip readTip
	_ = s.SetReadDeadline(time.Now().Add(l.limits.TipTimeout))
	tip.message, tip.err = wire.Read(s)
	good := l.takeTip(s, tip)
	if l.listener != nil {
		l.listener.links().tips.Add(-1)
	}
	l.accept.mu.Lock()
	defer l.accept.mu.Unlock()
	l.accept.late--
	if good {
		l.accept.ready = append(l.accept.ready, incoming{s, tip.message})
	}
	if l.accept.wake != nil {
		l.accept.wake()
	}
}

// mayBeLate counts one more late tip. It reports false if the relay's links have too many of them
// together.
func (l *Link) mayBeLate() bool {
	if l.listener == nil {
		return true
	}
	tips := &l.listener.links().tips
	if tips.Add(1) <= int64(l.limits.PendingTipsTotal) {
		return true
	}
	tips.Add(-1)
	return false
}

// takeTip reports whether a tip is valid. It answers and ends the stream if not.
func (l *Link) takeTip(s *Stream, tip readTip) bool {
	switch tip.message.(type) {
	case *wire.Control:
		l.Close(wire.CloseProtocol, "a second control stream")
		return false
	case nil:
		if tip.err == nil || errors.Is(tip.err, wire.ErrMalformed) {
			l.badTips.Do(func() {
				l.log.Warn("a stream can't be understood: the peer is of another version, or "+
					"no ptthqd (of such lines there is one a minute at most)",
					slog.String("peer", l.Peer()), slog.Any("error", tip.err))
			})
			s.refuse(wire.StatusMalformed, "the tip can't be understood")
		} else {
			l.log.Debug("no tip", slog.String("peer", l.Peer()), slog.Any("error", tip.err))
			s.Reset(wire.CodeLost)
		}
		return false
	}
	_ = s.SetReadDeadline(time.Time{})
	return true
}

// refuse answers a stream that has no valid tip, and ends it.
func (s *Stream) refuse(status wire.Status, text string) {
	_, _ = s.TryWrite(wire.Append(nil, &wire.Reply{Status: status, Text: text}))
	_ = s.CloseWrite()
	s.CancelRead(wire.CodeLost)
}
