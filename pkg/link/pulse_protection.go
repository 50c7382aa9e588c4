package link

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"ptthqd/pkg/parity"
)

// A protection is what a link does against loss: it sends parity, or uses the peer's, or both. The
// pulse owns it and calls its methods under its lock. The socket knows the peer by address.
type protection struct {
	sent     atomic.Uint64 // parity datagrams
	restored atomic.Uint64 // packets of the peer

	watch        parity.Watch
	peerRestored uint64           // packets of this end that the peer has restored
	at           netip.AddrPort   // the peer's address in the socket's tables
	maker        *parity.Maker    // nil while the peer gets no parity
	restorer     *parity.Restorer // nil while the peer sends none
	useful       bool             // the restorer has restored a packet
}

// review looks at the link's losses if a look is due. It reports whether the peer must hear at once
// that parity begins, or that its parity has restored a packet for the first time.
func (p *protection) review(l *Link, stats *quic.ConnectionStats, now time.Time) (news bool) {
	p.follow(l)
	if now.Sub(p.watch.Seen().At) < parity.LookEvery {
		return false
	}
	if !p.useful && p.restored.Load() > 0 {
		p.useful, news = true, true
	}
	state := p.watch.Look(parity.Sample{
		At:       now,
		MinRTT:   stats.MinRTT,
		RTT:      stats.SmoothedRTT,
		Sent:     stats.PacketsSent,
		Lost:     stats.PacketsLost,
		Restored: p.peerRestored,
	})
	switch {
	case state == parity.Off:
		p.stopMaking(l)
	case p.maker == nil:
		p.at = l.RemoteAddr()
		maker := l.socket.NewMaker(&p.sent)
		if l.socket.SendParity(p.at, maker) {
			p.maker = maker
			news = true
		}
	}
	if p.maker != nil {
		p.maker.Pause(state == parity.Paused)
	}
	return news
}

// onHeartbeat handles what a heartbeat of the peer says: whether the peer sends parity, and how
// many packets it has restored.
func (p *protection) onHeartbeat(l *Link, sends bool, restored uint64) {
	p.follow(l)
	p.peerRestored = restored
	switch {
	case !sends:
		p.stopRestoring(l)
	case p.restorer == nil:
		p.at = l.RemoteAddr()
		r := l.socket.NewRestorer(&p.restored)
		if l.socket.TakeParity(p.at, r) {
			p.restorer = r
		}
	}
}

// follow moves the parity to the peer's new address. Packets to the old address prove nothing of
// the new path.
func (p *protection) follow(l *Link) {
	if p.maker == nil && p.restorer == nil {
		return
	}
	at := l.RemoteAddr()
	if at == p.at {
		return
	}
	if p.maker != nil {
		l.socket.StopParity(p.at, p.maker)
		p.maker.Reset()
		l.socket.SendParity(at, p.maker)
	}
	if p.restorer != nil {
		l.socket.DropParity(p.at, p.restorer)
		l.socket.TakeParity(at, p.restorer)
	}
	p.at = at
}

func (p *protection) stopMaking(l *Link) {
	if p.maker != nil {
		l.socket.StopParity(p.at, p.maker)
		p.maker = nil
	}
}

func (p *protection) stopRestoring(l *Link) {
	if p.restorer != nil {
		l.socket.DropParity(p.at, p.restorer)
		p.restorer = nil
	}
}

// stop removes the parity from the socket's tables.
func (p *protection) stop(l *Link) {
	p.stopMaking(l)
	p.stopRestoring(l)
}
