package wire

import (
	"github.com/quic-go/quic-go/quicvarint"
)

// Control is the tip of a link's control stream, which carries link messages in both directions.
type Control struct {
	Instance Instance // of the dialler's process
}

func (*Control) messageType() uint64 { return typeControl }

func (m *Control) appendBody(dst []byte) []byte {
	if m.Instance == (Instance{}) {
		return dst
	}
	return appendString(dst, 1, m.Instance[:])
}

func (m *Control) field(number uint64, value []byte) (bool, error) {
	if number != 1 {
		return false, nil
	}
	if len(value) != len(m.Instance) {
		return true, malformed("an instance of %d bytes", len(value))
	}
	copy(m.Instance[:], value)
	return true, nil
}

func (*Control) complete() error { return nil }

// Heartbeat shows each end of a link that the other lives. Its encoding has at least 32 bytes, so
// that a restarted relay, which does not know the link, answers the packet with a stateless reset.
type Heartbeat struct {
	Seq  uint64 // number of this heartbeat among the sender's, from 1
	Echo uint64 // Seq of the last heartbeat from the other end; 0 if none has arrived

	Parity   bool   // the sender sends parity on this link
	Restored uint64 // packets that the sender has restored from the other end's parity on this link

	Padding int // bytes of padding beyond the 30 that every heartbeat has; decoding leaves it 0
}

func (*Heartbeat) messageType() uint64 { return typeHeartbeat }

func (m *Heartbeat) appendBody(dst []byte) []byte {
	dst = appendUint(dst, 1, m.Seq)
	dst = appendUint(dst, 2, m.Echo)
	padding := 30 + m.Padding // with the two bytes of its header at least 32
	dst = quicvarint.Append(dst, 3)
	dst = quicvarint.Append(dst, uint64(padding))
	dst = append(dst, make([]byte, padding)...)
	dst = appendFlag(dst, 4, m.Parity)
	return appendUint(dst, 5, m.Restored)
}

func (m *Heartbeat) field(number uint64, value []byte) (bool, error) {
	switch number {
	case 1:
		return takeUint(&m.Seq, value)
	case 2:
		return takeUint(&m.Echo, value)
	case 3:
		return true, nil
	case 4:
		return takeFlag(&m.Parity, value)
	case 5:
		return takeUint(&m.Restored, value)
	}
	return false, nil
}

func (*Heartbeat) complete() error { return nil }

// Closing says that the relay is about to stop. The peer resumes its sessions over another relay.
type Closing struct{}

func (*Closing) messageType() uint64                { return typeClosing }
func (*Closing) appendBody(dst []byte) []byte       { return dst }
func (*Closing) field(uint64, []byte) (bool, error) { return false, nil }
func (*Closing) complete() error                    { return nil }

// Revoked tells a server that the relay has withdrawn a client's right to a target. The server ends
// those of the client's sessions to the target that this relay carried last.
type Revoked struct {
	Client string
	Target string   // empty for all targets except those in Kept
	Kept   []string // at most as many as FitsKept allows
}

func (*Revoked) messageType() uint64 { return typeRevoked }

func (m *Revoked) appendBody(dst []byte) []byte {
	dst = appendString(dst, 1, m.Client)
	dst = appendString(dst, 2, m.Target)
	return appendList(dst, 3, m.Kept)
}

func (m *Revoked) field(number uint64, value []byte) (bool, error) {
	switch number {
	case 1:
		return takeString(&m.Client, value, maxID)
	case 2:
		return takeString(&m.Target, value, MaxTarget)
	case 3:
		return takeList(&m.Kept, value, maxKept, MaxTarget)
	}
	return false, nil
}

func (m *Revoked) complete() error {
	if err := CheckID(m.Client); err != nil {
		return malformed("client: %v", err)
	}
	return nil
}

const (
	maxKept     = 1024
	maxKeptSize = MaxBody - MaxTarget - 2*maxID // 3,458 bytes; the rest is for the other fields
)

// FitsKept reports whether a Revoked has room for these targets in Kept.
func FitsKept(targets []string) bool {
	return len(targets) <= maxKept && listSize(targets) <= maxKeptSize
}

// Welcome tells a peer the ID by which the relay knows it. The relay sends it at the beginning of a
// link and when the ID changes.
type Welcome struct {
	Name string
}

func (*Welcome) messageType() uint64            { return typeWelcome }
func (m *Welcome) appendBody(dst []byte) []byte { return appendString(dst, 1, m.Name) }

func (m *Welcome) field(number uint64, value []byte) (bool, error) {
	if number != 1 {
		return false, nil
	}
	return takeString(&m.Name, value, maxID)
}

func (m *Welcome) complete() error {
	if err := CheckID(m.Name); err != nil {
		return malformed("name: %v", err)
	}
	return nil
}

// Contested tells a node that the relay has turned away another process with the node's key.
type Contested struct {
	From string // the address of the other process
}

func (*Contested) messageType() uint64 { return typeContested }

func (m *Contested) appendBody(dst []byte) []byte {
	return appendString(dst, 1, clean(m.From, MaxSource))
}

func (m *Contested) field(number uint64, value []byte) (bool, error) {
	if number != 1 {
		return false, nil
	}
	return takeString(&m.From, value, MaxSource)
}

func (*Contested) complete() error { return nil }
