package link

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

// mostProtected is for how many peers of a Socket parity is made, and of how many it is used, which takes 100 KiB each.
const mostProtected = 512

// protection is what a link does against loss: it sends parity, or uses the peer's, or both. It belongs to the link's pulse,
// under whose lock its methods are called, and tells the socket what to do, where the peer goes by its address.
type protection struct {
	sent     atomic.Uint64 // parity datagrams
	restored atomic.Uint64 // packets of the peer

	watch        lossWatch
	peerRestored uint64 // of this end's packets
	at           netip.AddrPort
	maker        *parityMaker // nil while the peer gets no parity
	restorer     *restorer    // nil while it sends none
	useful       bool         // it has restored something
}

// look takes a look at the link's losses, if it is time for one. It tells whether there is something that the peer has to hear at once:
// that parity comes, or that its own has been of use for the first time.
func (p *protection) look(l *Link, stats *quic.ConnectionStats, now time.Time) (news bool) {
	p.follow(l)
	if now.Sub(p.watch.seen.at) < lossEvery {
		return false
	}
	if !p.useful && p.restored.Load() > 0 {
		p.useful, news = true, true
	}
	state := p.watch.look(lossSample{
		at:       now,
		minRTT:   stats.MinRTT,
		rtt:      stats.SmoothedRTT,
		sent:     stats.PacketsSent,
		lost:     stats.PacketsLost,
		restored: p.peerRestored,
	})
	switch {
	case state == parityOff:
		p.stopMaking(l)
	case p.maker == nil:
		p.at = l.RemoteAddr()
		maker := newParityMaker(&p.sent, &l.socket.paritySent)
		if l.socket.makers.put(p.at, maker, mostProtected) {
			p.maker = maker
			news = true
		}
	}
	if p.maker != nil {
		p.maker.pause(state == parityPaused)
	}
	return news
}

// heard takes what the peer says in a heartbeat: whether it sends parity, and how many packets it has restored.
func (p *protection) heard(l *Link, parity bool, restored uint64) {
	p.follow(l)
	p.peerRestored = restored
	switch {
	case !parity:
		p.stopRestoring(l)
	case p.restorer == nil:
		p.at = l.RemoteAddr()
		r := newRestorer(&p.restored, &l.socket.restored)
		if l.socket.restorers.put(p.at, r, mostProtected) {
			p.restorer = r
		}
	}
}

// follow goes with the peer to its new address. What was sent to the old one proves nothing of the new path.
func (p *protection) follow(l *Link) {
	if p.maker == nil && p.restorer == nil {
		return
	}
	at := l.RemoteAddr()
	if at == p.at {
		return
	}
	if p.maker != nil {
		l.socket.makers.remove(p.at, p.maker)
		p.maker.reset()
		l.socket.makers.put(at, p.maker, mostProtected)
	}
	if p.restorer != nil {
		l.socket.restorers.remove(p.at, p.restorer)
		l.socket.restorers.put(at, p.restorer, mostProtected)
	}
	p.at = at
}

func (p *protection) stopMaking(l *Link) {
	if p.maker != nil {
		l.socket.makers.remove(p.at, p.maker)
		p.maker = nil
	}
}

func (p *protection) stopRestoring(l *Link) {
	if p.restorer != nil {
		l.socket.restorers.remove(p.at, p.restorer)
		p.restorer = nil
	}
}

// stop leaves nothing behind in the socket's tables.
func (p *protection) stop(l *Link) {
	p.stopMaking(l)
	p.stopRestoring(l)
}
