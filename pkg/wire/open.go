package wire

import (
	"time"
)

// Open asks P4 for a new session. It is idempotent: P4 makes one session for each client and token.
type Open struct {
	Version       uint64
	Features      uint64 // bits of optional features that P2 can speak; none is defined yet
	Token         Token
	Attempt       uint64        // 1 for the first stream of the session; rises strictly
	Age           time.Duration // since the first attempt whose outcome P2 doesn't know
	Source        string        // P1's address, for logs
	Target        string        // canonical text, at most MaxTarget bytes
	Limit         uint64        // P2 takes bytes up to this offset
	ResumeTimeout time.Duration // for so long P2 asks P4 to keep the session without a stream
	Origin        []byte        // mark of a P1 on P2's host (pkg/origin); nil for none
}

func (*Open) messageType() uint64 { return typeOpen }

func (m *Open) appendBody(dst []byte) []byte {
	dst = appendUint(dst, 1, m.Version)
	dst = appendUint(dst, 2, m.Features)
	dst = appendString(dst, 3, m.Token[:])
	dst = appendUint(dst, 4, m.Attempt)
	dst = appendUint(dst, 5, millis(m.Age))
	dst = appendString(dst, 6, clean(m.Source, MaxSource))
	dst = appendString(dst, 7, m.Target)
	dst = appendUint(dst, 8, m.Limit)
	dst = appendUint(dst, 9, millis(m.ResumeTimeout))
	if len(m.Origin) == 0 {
		return dst
	}
	return appendString(dst, 14, m.Origin)
}

func (m *Open) field(number uint64, value []byte) (bool, error) {
	switch number {
	case 1:
		return takeUint(&m.Version, value)
	case 2:
		return takeUint(&m.Features, value)
	case 3:
		return takeToken(&m.Token, value)
	case 4:
		return takeUint(&m.Attempt, value)
	case 5:
		return takeDuration(&m.Age, value)
	case 6:
		return takeString(&m.Source, value, MaxSource)
	case 7:
		return takeString(&m.Target, value, MaxTarget)
	case 8:
		return takeUint(&m.Limit, value)
	case 9:
		return takeDuration(&m.ResumeTimeout, value)
	case 14:
		return takeOrigin(&m.Origin, value)
	}
	return false, nil
}

func (m *Open) complete() error { return checkSession(m.Token, m.Attempt, m.Target) }

// Resume asks P4 to carry a session on over a new stream.
type Resume struct {
	Version     uint64
	Token       Token
	Attempt     uint64
	Source      string
	Target      string
	Received    uint64 // P2 has read everything before this offset: P4 sends from here
	Acked       uint64 // P2 has delivered everything before this offset to P1
	Limit       uint64 // P2 takes bytes up to this offset
	Unconfirmed bool   // P2 has reset the session and doesn't know whether P4 has heard of it
	Probe       bool   // P2 only tests the way to P4; the token names no session
}

func (*Resume) messageType() uint64 { return typeResume }

func (m *Resume) appendBody(dst []byte) []byte {
	dst = appendUint(dst, 1, m.Version)
	dst = appendString(dst, 3, m.Token[:])
	dst = appendUint(dst, 4, m.Attempt)
	dst = appendString(dst, 6, clean(m.Source, MaxSource))
	dst = appendString(dst, 7, m.Target)
	dst = appendUint(dst, 8, m.Limit)
	dst = appendUint(dst, 10, m.Received)
	dst = appendUint(dst, 11, m.Acked)
	dst = appendFlag(dst, 12, m.Unconfirmed)
	return appendFlag(dst, 13, m.Probe)
}

func (m *Resume) field(number uint64, value []byte) (bool, error) {
	switch number {
	case 1:
		return takeUint(&m.Version, value)
	case 3:
		return takeToken(&m.Token, value)
	case 4:
		return takeUint(&m.Attempt, value)
	case 6:
		return takeString(&m.Source, value, MaxSource)
	case 7:
		return takeString(&m.Target, value, MaxTarget)
	case 8:
		return takeUint(&m.Limit, value)
	case 10:
		return takeUint(&m.Received, value)
	case 11:
		return takeUint(&m.Acked, value)
	case 12:
		return takeFlag(&m.Unconfirmed, value)
	case 13:
		return takeFlag(&m.Probe, value)
	}
	return false, nil
}

func (m *Resume) complete() error {
	if err := checkOffsets(m.Acked, m.Received, m.Limit); err != nil {
		return err
	}
	return checkSession(m.Token, m.Attempt, m.Target)
}

// checkOffsets checks acked ≤ received ≤ limit, as PROTOCOL.md, section 5, defines them.
func checkOffsets(acked, received, limit uint64) error {
	if acked > received || received > limit {
		return malformed("acked %d, received %d and limit %d are out of order", acked, received, limit)
	}
	return nil
}

// checkSession checks what both tips must have.
func checkSession(token Token, attempt uint64, target string) error {
	switch {
	case token == Token{}:
		return malformed("no token")
	case attempt == 0:
		return malformed("no attempt")
	case target == "":
		return malformed("no target")
	}
	return nil
}
