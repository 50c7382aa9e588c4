package wire

// Connect is P2's request to P3: connect me to Server, and forward Inner, which
// is an encoded Open or Resume.
type Connect struct {
	Server string
	Inner  []byte
	Hold   bool // P2 has no other relay to ask: an open may wait for its server's link
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

// Incoming is P3's request to P4: Client wants to connect, and sends Inner.
type Incoming struct {
	Client string
	Inner  []byte
	Others []string // other names of Client, while it is being renamed: what it has under them is its own
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

// Names are all by which the client is understood, the one that it goes by first.
func (m *Incoming) Names() []string { return append([]string{m.Client}, m.Others...) }
