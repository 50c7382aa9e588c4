package link

import (
	"context"
	"fmt"
	"sync"

	"github.com/quic-go/quic-go"
)

// liveness are questions to an accept loop whether it is still there.
type liveness struct {
	mu     sync.Mutex
	asked  []chan struct{} // each is closed when the loop comes by
	wake   context.CancelFunc
	closed bool // the loop has ended
}

// Alive returns once the accept loop has answered, with an error if ctx is done first. A watchdog asks it now and then.
// Before Run, and after it, there is no loop, and nothing wrong with that.
func (l *Listener) Alive(ctx context.Context) error {
	answered := l.liveness.ask()
	select {
	case <-answered:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the accept loop of %v does not answer: %w", l.Socket.LocalAddr(), context.Cause(ctx))
	}
}

func (p *liveness) ask() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	answered := make(chan struct{})
	if p.wake == nil || p.closed {
		close(answered)
		return answered
	}
	p.asked = append(p.asked, answered)
	p.wake()
	return answered
}

// arm begins a turn of the loop, which wake ends.
func (p *liveness) arm(wake context.CancelFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wake = wake
	if len(p.asked) > 0 { // between two turns
		wake()
	}
}

// answer ends a turn; the last one if closed.
func (p *liveness) answer(closed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, answered := range p.asked {
		close(answered)
	}
	p.asked, p.closed = nil, closed
}

// accept is one accepted connection, and answers liveness meanwhile.
func (p *liveness) accept(ctx context.Context, listener *quic.Listener) (*quic.Conn, error) {
	for {
		turn, wake := context.WithCancel(ctx)
		p.arm(wake)
		conn, err := listener.Accept(turn)
		woken := turn.Err() != nil && ctx.Err() == nil
		wake()
		p.answer(err != nil && !woken)
		if err == nil || !woken {
			return conn, err
		}
	}
}
