package wire_test

import (
	"bytes"
	"fmt"

	"ptthqd/pkg/wire"
)

// A client asks a relay for the ssh service of the server nas. The relay decodes the tip, and the
// inner tip, of which it forwards the bytes.
func Example() {
	var stream bytes.Buffer
	tip := &wire.Connect{Server: "nas", Inner: wire.Append(nil, &wire.Open{
		Version: wire.Version, Token: wire.Token{1}, Attempt: 1, Target: "ssh", Limit: wire.InitialWindow,
	})}
	stream.Write(wire.Append(nil, tip))

	message, err := wire.Read(&stream)
	if err != nil {
		fmt.Println(err)
		return
	}
	connect, ok := message.(*wire.Connect)
	if !ok {
		return
	}
	inner, err := wire.ParseInner(connect.Inner)
	if open, ok := inner.(*wire.Open); ok {
		fmt.Println(connect.Server, open.Target, err)
	}

	// A frame follows the tip: its header, then its data.
	stream.Write(wire.Frame{Kind: wire.FrameData, Value: 5}.Append(nil))
	stream.WriteString("hello")
	frame, n, err := wire.ParseFrame(stream.Bytes())
	data := stream.Bytes()[n : n+int(frame.Value)]
	fmt.Printf("%s %v\n", data, err)
	// Output:
	// nas ssh <nil>
	// hello <nil>
}
