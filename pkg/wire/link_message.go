package wire

import (
	"github.com/quic-go/quic-go/quicvarint"
)

// Control says that a stream carries link messages.
type Control struct {
	Instance Instance // of the process that dials
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

// Heartbeat is sent each way on the control stream. Its encoding is 32 bytes or
// more, so that a restarted relay answers it with a stateless reset.
type Heartbeat struct {
	Seq  uint64 // counts this end's heartbeats, from 1
	Echo uint64 // the Seq of the peer's last heartbeat, 0 if none yet

	Parity   bool   // this end sends parity on this link
	Restored uint64 // packets that this end has restored from the peer's parity on this link

	Padding int // bytes of padding beyond what it always has; not read
}

func (*Heartbeat) messageType() uint64 { return typeHeartbeat }

func (m *Heartbeat) appendBody(dst []byte) []byte {
	dst = appendUint(dst, 1, m.Seq)
	dst = appendUint(dst, 2, m.Echo)
	// With its two bytes of header the padding alone makes up 32 bytes.
	padding := 30 + m.Padding
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

// Closing says that this relay is about to go: resume elsewhere.
type Closing struct{}

func (*Closing) messageType() uint64                { return typeClosing }
func (*Closing) appendBody(dst []byte) []byte       { return dst }
func (*Closing) field(uint64, []byte) (bool, error) { return false, nil }
func (*Closing) complete() error                    { return nil }

// Revoked tells a server to end Client's sessions to Target (all if empty, but
// for those to Kept) that were last carried by this relay.
type Revoked struct {
	Client string
	Target string
	Kept   []string // see FitsKept
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
	maxKeptSize = MaxBody - MaxTarget - 2*maxID // leaves room for the other fields
)

// FitsKept reports whether a Revoked can say that sessions to these targets
// are kept: they take 3,458 bytes at most, with their lengths.
func FitsKept(targets []string) bool {
	return len(targets) <= maxKept && listSize(targets) <= maxKeptSize
}

// Welcome tells a peer by which name this relay knows it: at the link's beginning, and when that changes.
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

// Contested tells a node that another process with its key has come to this relay, and was turned away.
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
