package ident_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"ptthqd/pkg/ident"
)

// handshake connects the two configs over a pipe. It passes a byte each way, so that the dialling side
// reads its session ticket, or the listener's refusal.
func handshake(t *testing.T, dial, listen *tls.Config) (dialled, accepted tls.ConnectionState, dialErr, listenErr error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	near, far := net.Pipe()
	client, server := tls.Client(near, dial), tls.Server(far, listen)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer far.Close()
		listenErr = exchange(ctx, server)
	}()
	dialErr = exchange(ctx, client)
	near.Close()
	<-done
	return client.ConnectionState(), server.ConnectionState(), dialErr, listenErr
}

// exchange shakes hands, and then sends and takes a byte.
func exchange(ctx context.Context, c *tls.Conn) error {
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write([]byte{1})
		sent <- err
	}()
	_, err := io.ReadFull(c, make([]byte, 1))
	return errors.Join(err, <-sent)
}

// pair returns the configs of a node and a relay that know each other, and their keys.
func pair(t *testing.T) (dial, listen *tls.Config, node, relay ident.PrivateKey) {
	t.Helper()
	node, relay = generate(t), generate(t)
	return dialTLS(t, node, relay.Public()), listenTLS(t, relay), node, relay
}

func dialTLS(t *testing.T, k ident.PrivateKey, relay ident.PublicKey) *tls.Config {
	t.Helper()
	config, err := ident.DialTLS(k, relay)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func listenTLS(t *testing.T, k ident.PrivateKey) *tls.Config {
	t.Helper()
	config, err := ident.ListenTLS(k)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func TestBothEndsLearnTheOthersKey(t *testing.T) {
	dial, listen, node, relay := pair(t)
	dialled, accepted, dialErr, listenErr := handshake(t, dial, listen)
	if dialErr != nil || listenErr != nil {
		t.Fatalf("dial: %v, listen: %v", dialErr, listenErr)
	}
	if got, err := ident.PeerKey(dialled); err != nil || got != relay.Public() {
		t.Errorf("the dialler sees the key %v (%v), want the relay's", got, err)
	}
	if got, err := ident.PeerKey(accepted); err != nil || got != node.Public() {
		t.Errorf("the relay sees the key %v (%v), want the dialler's", got, err)
	}
	if dialled.Version != tls.VersionTLS13 || dialled.NegotiatedProtocol != "ptthq/1" {
		t.Errorf("version %x and protocol %q, want TLS 1.3 and ptthq/1", dialled.Version, dialled.NegotiatedProtocol)
	}
}

func TestRelayWithAnotherKeyIsRefused(t *testing.T) {
	_, listen, node, relay := pair(t)
	other := generate(t).Public()
	_, _, err, listenErr := handshake(t, dialTLS(t, node, other), listen)
	wrong, ok := errors.AsType[*ident.WrongKeyError](err)
	if !ok {
		t.Fatalf("dial: %v, want a WrongKeyError", err)
	}
	if !slices.Equal(wrong.Want, []ident.PublicKey{other}) || wrong.Got != relay.Public() {
		t.Errorf("want %v and got %v are not the config's and the relay's keys", wrong.Want, wrong.Got)
	}
	if !strings.Contains(err.Error(), "the relay's key is not the one in the config") {
		t.Errorf("%q does not say it in words", err)
	}
	if listenErr == nil {
		t.Error("the relay's handshake succeeded")
	}
}

func TestPeerWithoutAKeyOfOursIsRefused(t *testing.T) {
	foreign := ecdsaCertificate(t)
	relay := generate(t)
	for _, test := range []struct {
		name         string
		certificates []tls.Certificate
	}{
		{"no certificate", nil},
		{"ECDSA", []tls.Certificate{foreign}},
	} {
		t.Run("node with "+test.name, func(t *testing.T) {
			dial := dialTLS(t, generate(t), relay.Public())
			dial.Certificates = test.certificates
			_, _, dialErr, listenErr := handshake(t, dial, listenTLS(t, relay))
			if listenErr == nil || dialErr == nil {
				t.Errorf("let in (dial: %v, listen: %v)", dialErr, listenErr)
			}
		})
	}
	t.Run("relay with ECDSA", func(t *testing.T) {
		dial, listen, _, _ := pair(t)
		listen.Certificates = []tls.Certificate{foreign}
		_, _, err, _ := handshake(t, dial, listen)
		if err == nil || !strings.Contains(err.Error(), "not Ed25519") {
			t.Errorf("dial: %v, want an error about the kind of key", err)
		}
	})
}

// The signature is checked before the key is looked up: a certificate without its private key gets the
// same alert, whether the key is known or not.
func TestTheSignatureIsCheckedFirst(t *testing.T) {
	dial, listen, _, relay := pair(t)
	alert := func(certificate [][]byte) error {
		thief := dialTLS(t, generate(t), relay.Public())
		thief.Certificates[0].Certificate = certificate
		_, _, dialErr, listenErr := handshake(t, thief, listen)
		if listenErr == nil || dialErr == nil {
			t.Fatalf("let in (dial: %v, listen: %v)", dialErr, listenErr)
		}
		return dialErr
	}
	ours := alert(dial.Certificates[0].Certificate)
	if foreign := alert(dialTLS(t, generate(t), relay.Public()).Certificates[0].Certificate); ours.Error() != foreign.Error() {
		t.Errorf("one key gets %v, another %v", ours, foreign)
	}
}

// A certificate is public, and a thief could present a node's: the handshake fails without the private key.
func TestSomebodyElsesCertificateIsRefused(t *testing.T) {
	dial, listen, _, relay := pair(t)
	thief := dialTLS(t, generate(t), relay.Public())
	thief.Certificates[0].Certificate = dial.Certificates[0].Certificate
	if _, _, dialErr, listenErr := handshake(t, thief, listen); listenErr == nil || dialErr == nil {
		t.Errorf("let in (dial: %v, listen: %v)", dialErr, listenErr)
	}

	dial, listen, _, _ = pair(t)
	impostor := listenTLS(t, generate(t))
	impostor.Certificates[0].Certificate = listen.Certificates[0].Certificate
	if _, _, dialErr, _ := handshake(t, dial, impostor); dialErr == nil {
		t.Error("the dialler took an impostor for its relay")
	}
}

func TestResumedHandshakesTellTheKeyToo(t *testing.T) {
	dial, listen, node, _ := pair(t)
	for i := range 3 {
		dialled, accepted, dialErr, listenErr := handshake(t, dial, listen)
		if dialErr != nil || listenErr != nil {
			t.Fatalf("handshake %d: dial: %v, listen: %v", i, dialErr, listenErr)
		}
		if resumed := i > 0; dialled.DidResume != resumed || accepted.DidResume != resumed {
			t.Fatalf("handshake %d: resumed is %v, want %v", i, dialled.DidResume, resumed)
		}
		if got, err := ident.PeerKey(accepted); err != nil || got != node.Public() {
			t.Errorf("handshake %d: the relay sees the key %v (%v)", i, got, err)
		}
	}

	// The relay's key changes in the dialler's config: a ticket from the old one is of no use.
	moved := dialTLS(t, node, generate(t).Public())
	moved.ClientSessionCache = dial.ClientSessionCache
	if _, _, err, _ := handshake(t, moved, listen); err == nil {
		t.Error("a ticket got the dialler past the pin")
	} else if _, ok := errors.AsType[*ident.WrongKeyError](err); !ok {
		t.Errorf("dial: %v, want a WrongKeyError", err)
	}
}

// A node with a wrong clock works, since dates decide nothing.
func TestClocksDoNotMatter(t *testing.T) {
	for _, year := range []int{1970, 2000, 2106, 9999} {
		for _, skewed := range []string{"dialler", "relay"} {
			dial, listen, _, _ := pair(t)
			config := dial
			if skewed == "relay" {
				config = listen
			}
			config.Time = func() time.Time { return time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) }
			for i := range 2 {
				if _, _, dialErr, listenErr := handshake(t, dial, listen); dialErr != nil || listenErr != nil {
					t.Errorf("the %s lives in %d, handshake %d: dial: %v, listen: %v", skewed, year, i, dialErr, listenErr)
				}
			}
		}
	}
}

// Certificates that ended in 1970, or begin in 2100, are as good as any: the key counts.
func TestDatesOfCertificatesDoNotMatter(t *testing.T) {
	for _, year := range []int{1970, 2100} {
		dial, listen, _, _ := pair(t)
		for _, config := range []*tls.Config{dial, listen} {
			signer := config.Certificates[0].PrivateKey.(crypto.Signer)
			template := &x509.Certificate{
				SerialNumber: big.NewInt(1),
				NotBefore:    time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(year, 1, 2, 0, 0, 0, 0, time.UTC),
			}
			der, err := x509.CreateCertificate(nil, template, template, signer.Public(), signer)
			if err != nil {
				t.Fatal(err)
			}
			config.Certificates[0].Certificate = [][]byte{der}
		}
		for i := range 2 { // crypto/tls may resume the first or begin anew, by the dates: it is no other
			if _, _, dialErr, listenErr := handshake(t, dial, listen); dialErr != nil || listenErr != nil {
				t.Errorf("certificates of %d, handshake %d: dial: %v, listen: %v", year, i, dialErr, listenErr)
			}
		}
	}
}

func TestNoTLSWithoutAKey(t *testing.T) {
	if _, err := ident.DialTLS(ident.PrivateKey{}, ident.PublicKey{}); err == nil {
		t.Error("DialTLS takes a zero key")
	}
	if _, err := ident.ListenTLS(ident.PrivateKey{}); err == nil {
		t.Error("ListenTLS takes a zero key")
	}
}

func ecdsaCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
