package wire_test

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"

	"ptthqd/pkg/wire"
)

// FuzzMessage: Parse and Read agree on every input, take what they took again
// after encoding it, and fail only in the ways that they promise.
func FuzzMessage(f *testing.F) {
	for _, value := range examples {
		if m, ok := value.(wire.Message); ok {
			f.Add(wire.Append(nil, m))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if inner, err := wire.ParseInner(b); inner == nil && !errors.Is(err, wire.ErrMalformed) {
			t.Fatalf("ParseInner: %v", err)
		}
		parsed, n, err := wire.Parse(b)
		r := bytes.NewReader(b)
		read, readErr := wire.Read(r)
		if err != nil {
			if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, wire.ErrMalformed) {
				t.Fatalf("Parse: %v", err)
			}
			if errors.Is(err, wire.ErrMalformed) != errors.Is(readErr, wire.ErrMalformed) || readErr == nil {
				t.Fatalf("Parse says %v, Read %v", err, readErr)
			}
			if parsed != nil || read != nil || n != 0 {
				t.Fatalf("a message beside an error")
			}
			return
		}
		if readErr != nil || !reflect.DeepEqual(read, parsed) || len(b)-r.Len() != n {
			t.Fatalf("Parse says %+v (%d bytes), Read %+v (%d bytes), %v", parsed, n, read, len(b)-r.Len(), readErr)
		}
		if parsed == nil {
			return // an unknown link message
		}
		again, _, err := wire.Parse(wire.Append(nil, parsed))
		if err != nil || !reflect.DeepEqual(again, parsed) {
			t.Fatalf("%+v became %+v, %v", parsed, again, err)
		}
	})
}

// FuzzFrame: what ParseFrame takes, it takes again after encoding it, and it
// asks for more bytes only while a header can still go on.
func FuzzFrame(f *testing.F) {
	for _, value := range examples {
		frames, ok := value.([]framed)
		if !ok {
			continue
		}
		for _, frame := range frames {
			f.Add(frame.header.Append(nil))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, n, err := wire.ParseFrame(b)
		switch {
		case errors.Is(err, io.ErrUnexpectedEOF):
			if len(b) >= wire.MaxFrameHeader {
				t.Fatalf("wants more than %d bytes", len(b))
			}
			return
		case err != nil:
			if !errors.Is(err, wire.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if n < frame.Len() || n > wire.MaxFrameHeader {
			t.Fatalf("%d bytes for %+v", n, frame)
		}
		again, m, err := wire.ParseFrame(frame.Append(nil))
		if err != nil || again != frame || m != frame.Len() {
			t.Fatalf("%+v became %+v, %d, %v", frame, again, m, err)
		}
	})
}
