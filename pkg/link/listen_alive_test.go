package link

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"ptthqd/pkg/carrier"
	"ptthqd/pkg/ident"
)

func TestAlive(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket, err := carrier.New(pc, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	key, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	l := &Listener{
		Socket: socket, Identity: key,
		Admit: func(ident.PublicKey) (string, error) { return "", errors.New("nobody") },
		Serve: func(context.Context, *Link) {},
	}
	if err := l.Alive(t.Context()); err != nil {
		t.Errorf("before Run: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.Run(ctx)
	}()
	var asking sync.WaitGroup
	for range 8 {
		asking.Go(func() {
			for range 100 {
				if err := l.Alive(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	asking.Wait()
	cancel()
	<-done
	if err := l.Alive(t.Context()); err != nil {
		t.Errorf("after Run: %v", err)
	}

	// A loop that hangs answers nobody.
	l.liveness = liveness{wake: func() {}}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := l.Alive(short); err == nil {
		t.Error("a loop that hangs has answered")
	}
}
