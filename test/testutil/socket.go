package testutil

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// givenPorts are the ports that FreePort has returned in this process.
var givenPorts sync.Map

// FreePort returns a port that is free for TCP and UDP at all addresses of this host. It is below
// those that Linux gives to outgoing connections, so that nobody gets it by chance before the test
// uses it. Each port is returned once.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := 10000 + rand.N(20000)
		if _, given := givenPorts.LoadOrStore(port, true); !given && isFree(t, port) {
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

func isFree(t testing.TB, port int) bool {
	address := fmt.Sprintf(":%d", port)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
	if err != nil {
		return false
	}
	_ = l.Close()
	c, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp", address)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// Listening serves a P5 at an address of this host until the test ends; see Accept.
func Listening(t testing.TB, network, address string, serve func(net.Conn)) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	Accept(t, l, serve)
	return l
}

// Accept accepts connections until the test ends. serve gets each in a goroutine of its own. At the
// end Accept closes the listener and the connections, and waits for all of serve to return.
func Accept(t testing.TB, l net.Listener, serve func(net.Conn)) {
	t.Helper()
	var work sync.WaitGroup
	end := make(chan struct{})
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served := make(chan struct{})
			work.Go(func() {
				defer close(served)
				serve(conn)
			})
			work.Go(func() {
				select {
				case <-served:
				case <-end:
					_ = conn.Close()
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		close(end)
		work.Wait()
	})
}
