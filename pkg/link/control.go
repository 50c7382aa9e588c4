package link

import (
	"log/slog"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"ptthqd/pkg/wire"
)

const (
	// messageGap is the least time between two control messages that are read, after a burst of
	// messageBurst. An honest peer sends ten a second at most. The others wait in the peer's
	// flow-control window.
	messageGap   = 50 * time.Millisecond
	messageBurst = 40
	// controlTimeout bounds how long a message waits for the peer to read its control stream.
	controlTimeout = 5 * time.Second
)

// relayEvents is what a link of a client or server reports of its relay.
type relayEvents struct {
	release   func() // called when the link is over; closes its socket
	revoked   func(l *Link, r *wire.Revoked)
	welcome   func(name string)
	contested func(*wire.Contested)
	once      struct{ confirmed, closing sync.Once }
	confirmed chan struct{} // closed at the relay's first heartbeat
	closing   chan struct{} // closed when the relay is about to go
}

// readControl takes the peer's control messages until the link is over.
func (l *Link) readControl() {
	for l.takeControl() {
	}
}

// takeControl takes one control message. It reports whether another may follow.
func (l *Link) takeControl() bool {
	l.pulse.paceReading()
	m, err := wire.Read(quicReader{l.control})
	if err != nil {
		if l.conn.Context().Err() == nil {
			l.Close(wire.CloseProtocol, "the control stream ended: "+err.Error())
		}
		return false
	}
	switch m := m.(type) {
	case *wire.Heartbeat:
		l.pulse.onHeartbeat(m)
		if l.role == roleNode {
			l.relay.once.confirmed.Do(func() { close(l.relay.confirmed) })
		}
	case *wire.Closing:
		if l.role == roleNode {
			l.relay.once.closing.Do(func() { close(l.relay.closing) })
		}
	case *wire.Revoked:
		if l.role == roleNode {
			l.pulse.readable = 0 // a relay may withdraw a thousand rights at once
			if l.relay.revoked != nil {
				l.relay.revoked(l, m)
			}
		}
	case *wire.Welcome:
		if l.role == roleNode && l.relay.welcome != nil {
			l.relay.welcome(m.Name)
		}
	case *wire.Contested:
		if l.role == roleNode && l.relay.contested != nil {
			l.relay.contested(m)
		}
	case nil: // of a later version of the protocol
	default:
		l.Close(wire.CloseProtocol, "a message that is none of the control stream's")
		return false
	}
	return true
}

// paceReading waits while the peer's messages arrive too fast. Only the reader may call it.
func (p *pulse) paceReading() {
	now := p.now()
	p.readable = max(p.readable, now).add(messageGap)
	early := p.readable.sub(now) - messageBurst*messageGap
	if early <= 0 {
		return
	}
	timer := time.NewTimer(early)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.link.Done():
	}
}

// quicReader reads the control stream. Its bytes do not count as a stream's traffic.
type quicReader struct{ stream *quic.Stream }

func (r quicReader) Read(p []byte) (int, error) { return r.stream.Read(p) }

// PeerClosing returns a channel that is closed when the relay has announced its end. It is nil at
// the relay.
func (l *Link) PeerClosing() <-chan struct{} {
	if l.relay == nil {
		return nil
	}
	return l.relay.closing
}

// SendClosing tells the peer that this relay is about to stop.
func (l *Link) SendClosing() error { return l.sendControl(&wire.Closing{}) }

// SendRevoked tells a server that client has lost the right to reach target. An empty target means
// all targets except kept. SendRevoked tells a client that it has lost rights; then target is
// empty.
func (l *Link) SendRevoked(client, target string, kept ...string) error {
	return l.sendControl(&wire.Revoked{Client: client, Target: target, Kept: kept})
}

// SendWelcome tells the peer the name by which this relay knows it.
func (l *Link) SendWelcome(name string) error { return l.sendControl(&wire.Welcome{Name: name}) }

// sendControl sends a message that the peer must get. It waits at most controlTimeout for room in
// the flow-control window, and closes the link after that.
func (l *Link) sendControl(m wire.Message) error {
	_ = l.control.SetWriteDeadline(time.Now().Add(controlTimeout))
	if _, err := l.control.Write(wire.Append(nil, m)); err != nil {
		if l.conn.Context().Err() == nil { // half of the message may have left
			l.log.Warn("the peer does not read its control stream", slog.String("peer", l.Peer()),
				slog.Any("error", err))
			l.Close(wire.CloseProtocol, "the control stream is not read")
		}
		return streamError(err)
	}
	return nil
}
