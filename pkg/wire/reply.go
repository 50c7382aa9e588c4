package wire

import (
	"time"
)

// Reply answers a Connect or an Incoming. It is the first message in the other direction.
type Reply struct {
	Status Status
	Text   string // for people
	Node   string // the node that answers: NodeRelay or a server's ID
	Inner  []byte // an encoded Granted if the status is 200 or 208
}

func (*Reply) messageType() uint64 { return typeReply }

func (m *Reply) appendBody(dst []byte) []byte {
	dst = appendUint(dst, 1, uint64(m.Status))
	dst = appendString(dst, 2, clean(m.Text, MaxText))
	dst = appendString(dst, 3, m.Node)
	return appendString(dst, 4, m.Inner)
}

func (m *Reply) field(number uint64, value []byte) (bool, error) {
	switch number {
	case 1:
		return takeUint((*uint64)(&m.Status), value)
	case 2:
		return takeString(&m.Text, value, MaxText)
	case 3:
		return takeString(&m.Node, value, maxID)
	case 4:
		return takeInner(&m.Inner, value)
	}
	return false, nil
}

func (m *Reply) complete() error {
	if m.Status < 100 || m.Status > 999 {
		return malformed("status %d", uint64(m.Status))
	}
	if m.Node == "" {
		return nil
	}
	if err := CheckID(m.Node); err != nil {
		return malformed("node: %v", err)
	}
	return nil
}

// Granted is the inner part of a Reply: what P4 grants, and its offsets.
type Granted struct {
	Version       uint64
	Features      uint64
	Received      uint64        // P4 has read everything before this offset: P2 sends from here
	Acked         uint64        // P4 has delivered everything before this offset to P5
	Limit         uint64        // P4 takes bytes up to this offset
	ResumeTimeout time.Duration // for so long P4 keeps the session without a stream
	Reset         bool          // with status 208: the session ended by a reset, not in order
}

func (*Granted) messageType() uint64 { return typeGranted }

func (m *Granted) appendBody(dst []byte) []byte {
	dst = appendUint(dst, 1, m.Version)
	dst = appendUint(dst, 2, m.Features)
	dst = appendUint(dst, 8, m.Limit)
	dst = appendUint(dst, 9, millis(m.ResumeTimeout))
	dst = appendUint(dst, 10, m.Received)
	dst = appendUint(dst, 11, m.Acked)
	return appendFlag(dst, 12, m.Reset)
}

func (m *Granted) field(number uint64, value []byte) (bool, error) {
	switch number {
	case 1:
		return takeUint(&m.Version, value)
	case 2:
		return takeUint(&m.Features, value)
	case 8:
		return takeUint(&m.Limit, value)
	case 9:
		return takeDuration(&m.ResumeTimeout, value)
	case 10:
		return takeUint(&m.Received, value)
	case 11:
		return takeUint(&m.Acked, value)
	case 12:
		return takeFlag(&m.Reset, value)
	}
	return false, nil
}

func (m *Granted) complete() error { return checkOffsets(m.Acked, m.Received, m.Limit) }
