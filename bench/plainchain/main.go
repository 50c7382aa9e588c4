// Command plainchain is the chain to which ptthqd is compared: the same three roles, over quic-go
// with its defaults and io.Copy. It has no sessions, no policy, no reconnection and no trust: the
// relay's certificate is not checked. Use it for benchmarks only.
//
//	plainchain relay  -listen 127.0.0.1:30381
//	plainchain server -relay 127.0.0.1:30381 -target 127.0.0.1:9000
//	plainchain client -relay 127.0.0.1:30381 -listen 127.0.0.1:9001
//
// Each connection is a stream on each hop. The client sends the name of its destination, and waits
// for the server's answer before it sends anything else. Two settings differ from quic-go's
// defaults, because nothing could be measured otherwise: the number of streams at once, and a
// keep-alive.
package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

// A relay tells clients from servers by the protocol's name.
const (
	clientALPN = "plain-client"
	serverALPN = "plain-server"
)

func main() {
	fmt.Fprintln(os.Stderr, "plainchain:", run(os.Args[1:]))
	os.Exit(1)
}

// run runs a role until it fails.
func run(args []string) error {
	if len(args) == 0 {
		return errors.New("name a role: relay, server or client")
	}
	flags := flag.NewFlagSet("plainchain "+args[0], flag.ExitOnError)
	listen := flags.String("listen", "", "`ADDRESS` to listen on: UDP for the relay, TCP for the client")
	relay := flags.String("relay", "", "the relay's `ADDRESS`")
	target := flags.String("target", "", "`ADDRESS` that the server connects to")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	ctx := context.Background()
	switch args[0] {
	case "relay":
		return runRelay(ctx, *listen)
	case "server":
		return runServer(ctx, *relay, *target)
	case "client":
		return runClient(ctx, *relay, *listen)
	}
	return fmt.Errorf("there is no role %q", args[0])
}

func quicConfig() *quic.Config {
	return &quic.Config{MaxIncomingStreams: 1 << 16, KeepAlivePeriod: 10 * time.Second}
}

// runRelay joins each stream of a client to a new stream of the server that connected last.
func runRelay(ctx context.Context, address string) error {
	tlsConfig, err := serverTLS()
	if err != nil {
		return err
	}
	listener, err := quic.ListenAddr(address, tlsConfig, quicConfig())
	if err != nil {
		return err
	}
	var server atomic.Pointer[quic.Conn]
	for {
		conn, err := listener.Accept(ctx)
		if err != nil {
			return err
		}
		if conn.ConnectionState().TLS.NegotiatedProtocol == serverALPN {
			server.Store(conn)
			continue
		}
		go func() {
			err := serve(ctx, conn, func(_ stream, destination []byte) (stream, error) {
				to := server.Load()
				if to == nil {
					return nil, errors.New("no server has connected")
				}
				return openStream(ctx, to, destination)
			})
			fmt.Fprintln(os.Stderr, "plainchain:", err)
		}()
	}
}

// runServer dials the target for each stream.
func runServer(ctx context.Context, relay, target string) error {
	conn, err := dial(ctx, relay, serverALPN)
	if err != nil {
		return err
	}
	return serve(ctx, conn, func(from stream, _ []byte) (stream, error) {
		tcp, err := (&net.Dialer{}).DialContext(ctx, "tcp", target)
		if err != nil {
			return nil, err
		}
		_, err = from.Write(answer)
		return tcp.(*net.TCPConn), err
	})
}

// runClient opens a stream for each TCP connection.
func runClient(ctx context.Context, relay, address string) error {
	conn, err := dial(ctx, relay, clientALPN)
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	for {
		tcp, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			onward, err := openStream(ctx, conn, []byte("server"))
			if err == nil {
				_, err = io.ReadFull(onward, make([]byte, len(answer)))
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "plainchain:", err)
				tcp.Close()
				return
			}
			join(tcp.(*net.TCPConn), onward)
		}()
	}
}

// answer is sent by the server when it has connected to its target.
var answer = []byte{1}

// openStream opens a stream to a destination: a byte with the length of its name, and the name.
func openStream(ctx context.Context, conn *quic.Conn, destination []byte) (stream, error) {
	s, err := conn.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	_, err = s.Write(append([]byte{byte(len(destination))}, destination...))
	return quicStream{s}, err
}

func readDestination(s stream) ([]byte, error) {
	length := make([]byte, 1)
	if _, err := io.ReadFull(s, length); err != nil {
		return nil, err
	}
	destination := make([]byte, length[0])
	_, err := io.ReadFull(s, destination)
	return destination, err
}

// serve joins each stream of a connection to the stream that open returns for its destination.
func serve(
	ctx context.Context, conn *quic.Conn, open func(from stream, destination []byte) (stream, error),
) error {
	for {
		s, err := conn.AcceptStream(ctx)
		if err != nil {
			return err
		}
		go func() {
			from := quicStream{s}
			destination, err := readDestination(from)
			var onward stream
			if err == nil {
				onward, err = open(from, destination)
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "plainchain:", err)
				from.abort()
				return
			}
			join(from, onward)
		}()
	}
}

func dial(ctx context.Context, relay, alpn string) (*quic.Conn, error) {
	tlsConfig := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}}
	for patience := time.Now().Add(10 * time.Second); ; {
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		conn, err := quic.DialAddr(attempt, relay, tlsConfig, quicConfig())
		cancel()
		if err == nil || time.Now().After(patience) {
			return conn, err
		}
	}
}

// A stream is one end of a join, half-closable.
type stream interface {
	io.ReadWriter
	CloseWrite() error
}

type quicStream struct{ *quic.Stream }

func (s quicStream) CloseWrite() error { return s.Close() }

func (s quicStream) abort() {
	s.CancelRead(0)
	s.CancelWrite(0)
}

// join copies both ways until both have ended.
func join(a, b stream) {
	var both sync.WaitGroup
	both.Go(func() { copyHalf(a, b) })
	copyHalf(b, a)
	both.Wait()
	for _, s := range []stream{a, b} {
		if tcp, ok := s.(*net.TCPConn); ok {
			_ = tcp.Close()
		}
	}
}

func copyHalf(dst, src stream) {
	_, err := io.Copy(dst, src)
	if err == nil {
		err = dst.CloseWrite()
	}
	if err == nil {
		return
	}
	for _, s := range []stream{src, dst} {
		switch s := s.(type) {
		case quicStream:
			s.abort()
		case *net.TCPConn:
			_ = s.Close()
		}
	}
}

func serverTLS() (*tls.Config, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: private}},
		NextProtos:   []string{clientALPN, serverALPN},
	}, nil
}
