package link

import (
	"context"
	"fmt"
	"sync"

	"github.com/quic-go/quic-go"
)

// A liveness lets a watchdog ask an accept loop whether it still runs.
type liveness struct {
	mu     sync.Mutex
	asked  []chan struct{}    // each is closed when the loop comes by
	wake   context.CancelFunc // makes the loop come by; nil before it runs
	closed bool               // the loop has ended
}

// Alive returns nil once the accept loop has answered, and an error if ctx is done first. Before
// and after Run it returns nil.
func (l *Listener) Alive(ctx context.Context) error {
	answered := l.liveness.ask()
	select {
	case <-answered:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the accept loop of %v does not answer: %w", l.Socket.LocalAddr(),
			context.Cause(ctx))
	}
}

// ask returns a channel that is closed when the loop has answered.
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

// arm begins a round of the loop, which wake ends.
func (p *liveness) arm(wake context.CancelFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wake = wake
	if len(p.asked) > 0 { // since the last round
		wake()
	}
}

// answer answers all questions at the end of a round. closed marks the last round.
func (p *liveness) answer(closed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, answered := range p.asked {
		close(answered)
	}
	p.asked, p.closed = nil, closed
}

// accept returns the next connection, and answers questions meanwhile.
func (p *liveness) accept(ctx context.Context, listener *quic.Listener) (*quic.Conn, error) {
	for {
		round, wake := context.WithCancel(ctx)
		p.arm(wake)
		conn, err := listener.Accept(round)
		woken := round.Err() != nil && ctx.Err() == nil
		wake()
		p.answer(err != nil && !woken)
		if err == nil || !woken {
			return conn, err
		}
	}
}
