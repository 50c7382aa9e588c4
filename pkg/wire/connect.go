package wire

// Connect asks P3 to connect P2 to a server and to forward the inner tip.
type Connect struct {
	Server string
	Inner  []byte // an encoded Open or Resume
	Hold   bool   // P2 has no other relay to ask: P3 may let an open wait for the server's link
}

func (*Connect) messageType() uint64 { return typeConnect }

func (m *Connect) appendBody(dst []byte) []byte {
	dst = appendString(dst, 1, m.Server)
	dst = appendString(dst, 2, m.Inner)
	return appendFlag(dst, 3, m.Hold)
}

func (m *Connect) field(number uint64, value []byte) (bool, error) {
	switch number {
	case 1:
		return takeString(&m.Server, value, maxID)
	case 2:
		return takeInner(&m.Inner, value)
	case 3:
		return takeFlag(&m.Hold, value)
	}
	return false, nil
}

func (m *Connect) complete() error {
	if err := CheckID(m.Server); err != nil {
		return malformed("server: %v", err)
	}
	return nil
}

// Incoming tells P4 that a client wants to connect, and forwards its inner tip.
type Incoming struct {
	Client string
	Inner  []byte
	Others []string // the client's other names during a rename; it owns their sessions
}

func (*Incoming) messageType() uint64 { return typeIncoming }

func (m *Incoming) appendBody(dst []byte) []byte {
	dst = appendString(dst, 1, m.Client)
	dst = appendString(dst, 2, m.Inner)
	return appendList(dst, 3, m.Others)
}

func (m *Incoming) field(number uint64, value []byte) (bool, error) {
	switch number {
	case 1:
		return takeString(&m.Client, value, maxID)
	case 2:
		return takeInner(&m.Inner, value)
	case 3:
		return takeList(&m.Others, value, MaxNames-1, maxID)
	}
	return false, nil
}

func (m *Incoming) complete() error {
	for _, id := range m.Names() {
		if err := CheckID(id); err != nil {
			return malformed("client: %v", err)
		}
	}
	return nil
}

// Names returns all names of the client, its present ID first.
func (m *Incoming) Names() []string { return append([]string{m.Client}, m.Others...) }
