package relay

import (
	"bytes"
	"io"
	"testing"

	"ptthqd/pkg/wire"
)

// pieces is a stream that is read in pieces of given sizes.
type pieces struct {
	wire.Stream // nil: only Read is used
	data        []byte
	sizes       []byte
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	size := len(p.data)
	if len(p.sizes) > 0 {
		size, p.sizes = min(size, int(p.sizes[0])+1), p.sizes[1:]
	}
	n := copy(b, p.data[:size])
	p.data = p.data[n:]
	return n, nil
}

// The bytes of a server pass unchanged, in whatever pieces they arrive. The reply is seen if they
// begin with one, and only then.
func FuzzReply(f *testing.F) {
	reply := wire.Append(nil, &wire.Reply{Status: wire.StatusOpen, Node: "nas", Inner: wire.Append(nil, &wire.Granted{Version: 1, Limit: 5})})
	f.Add(reply, []byte{})
	f.Add(append(bytes.Clone(reply), "and data"...), []byte{0, 0, 3, 1, 200})
	f.Add(reply[:10], []byte{4})
	f.Add(append(bytes.Clone(reply), reply...), []byte{2})
	f.Add(wire.Append(nil, &wire.Control{}), []byte{0})
	f.Add([]byte{6, 0x7f, 0xff, 0, 0}, []byte{0, 0, 0, 0}) // a length over every limit
	f.Fuzz(func(t *testing.T, data, sizes []byte) {
		var seen []*wire.Reply
		r := &replyReader{
			Stream: &pieces{data: bytes.Clone(data), sizes: sizes},
			seen:   func(m *wire.Reply) { seen = append(seen, m) },
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%x became %x, %v", data, got, err)
		}
		if len(r.head) > wire.MaxBody+16 {
			t.Fatalf("%d bytes are kept", len(r.head))
		}
		first, _, err := wire.Parse(data)
		want, isReply := first.(*wire.Reply)
		if isReply != (len(seen) == 1) || len(seen) > 1 {
			t.Fatalf("%x: saw %d replies; Parse: %v", data, len(seen), err)
		}
		if isReply && !bytes.Equal(wire.Append(nil, want), wire.Append(nil, seen[0])) {
			t.Fatalf("saw %+v, want %+v", seen[0], want)
		}
	})
}

// Any inner tip is parsed or refused. A parsed one is forwarded unchanged, in a message that fits.
func FuzzRequest(f *testing.F) {
	f.Add("nas", wire.Append(nil, &wire.Open{Version: 1, Token: wire.Token{1}, Attempt: 1, Source: "127.0.0.1:1", Target: ":22"}))
	f.Add("nas", wire.Append(nil, &wire.Resume{Version: 1, Token: wire.Token{1}, Attempt: 2, Target: ":22", Unconfirmed: true}))
	f.Add("nas", wire.Append(nil, &wire.Granted{}))
	f.Add("nas", []byte{3, 0})
	f.Add("nas", []byte{})
	f.Fuzz(func(t *testing.T, server string, inner []byte) {
		if len(inner) > wire.MaxInner || wire.CheckID(server) != nil {
			t.Skip("link lets no such tip through")
		}
		from := &neighbour{role: "client"}
		from.called.Store(&called{id: "laptop"})
		q, forwarded, err := parseRequest(from, &wire.Connect{Server: server, Inner: inner})
		if q.client != "laptop" || q.server != server {
			t.Fatalf("the request is %+v", q)
		}
		if err != nil {
			return
		}
		if !bytes.Equal(forwarded, inner) || q.target == "" || q.attempt == 0 || q.id == "" {
			t.Fatalf("%x was understood as %+v, to forward %x", inner, q, forwarded)
		}
		wire.Append(nil, &wire.Incoming{Client: q.client, Inner: forwarded})
	})
}
