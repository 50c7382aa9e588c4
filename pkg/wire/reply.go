package wire

import (
	"time"
)

// Reply answers Connect and Incoming. It is the first message on the way back.
type Reply struct {
	Status Status
	Text   string // for people
	Node   string // who says it: "relay" or a server's ID
	Inner  []byte // an encoded Granted, with statuses 200 and 208
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

// Granted is the inner part of a Reply: what P4 grants, and where it stands.
type Granted struct {
	Version       uint64
	Features      uint64
	Received      uint64 // P4 has read everything before this offset
	Acked         uint64 // P4 has delivered everything before this offset to P5
	Limit         uint64 // P4 takes bytes up to this offset
	ResumeTimeout time.Duration
	Reset         bool // with 208: the session ended by a reset, not by its orderly end
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

func (m *Granted) complete() error {
	if m.Acked > m.Received || m.Received > m.Limit {
		return malformed("acked %d, received %d and limit %d are out of order", m.Acked, m.Received, m.Limit)
	}
	return nil
}
