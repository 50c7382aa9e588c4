package ident

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"
)

// alpn names the protocol in the handshake: wire.ALPN, which a test compares.
const alpn = "ptthq/1"

// WrongKeyError says that the relay that answered is not the one whose key the config pins.
type WrongKeyError struct {
	Want []PublicKey // the config's
	Got  PublicKey   // the one that the other end presented; whether it also holds it was not asked any more
}

// Error names both keys and what to do.
func (e *WrongKeyError) Error() string {
	return fmt.Sprintf("the relay's key is not the one in the config: it presented %v, the config has %s: "+
		"ask the relay's administrator for its key (`ptthqd pubkey FILE`) and its address, and change the config only if he says so", e.Got, e.Pinned())
}

// Pinned are the config's keys, for people.
func (e *WrongKeyError) Pinned() string {
	want := make([]string, len(e.Want))
	for i, key := range e.Want {
		want[i] = key.String()
	}
	return strings.Join(want, " and ")
}

// DialTLS returns the TLS config with which the node that holds k dials the relay that has one of the keys: one, or
// more while the relay's key is being changed. A handshake with
// anybody else fails with a [*WrongKeyError] or one of [PeerKey]'s errors. The config caches one session, to resume
// when the link is redialled; it is for one relay alone. Several goroutines may use it.
func DialTLS(k PrivateKey, relay ...PublicKey) (*tls.Config, error) {
	config, err := newTLS(k)
	if err != nil {
		return nil, err
	}
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	// InsecureSkipVerify leaves out the checks of names, dates and issuers, which mean nothing here. It is sound
	// because VerifyConnection compares the key itself, in each handshake, resumed ones too (VerifyPeerCertificate
	// would not be asked at those), and because crypto/tls always checks that the other end holds the key in its
	// certificate, by the signature over the handshake.
	config.InsecureSkipVerify = true
	config.VerifyConnection = func(state tls.ConnectionState) error {
		got, err := PeerKey(state)
		if err != nil {
			return err
		}
		if !slices.Contains(relay, got) {
			return &WrongKeyError{Want: relay, Got: got}
		}
		return nil
	}
	return config, nil
}

// ListenTLS returns the TLS config with which the relay that holds k answers. It lets in whoever proves that it holds an
// Ed25519 key, whichever: the caller asks [PeerKey] after the handshake, resumed ones too, and decides then. TLS 1.3 would
// ask during the handshake just before the peer's signature is checked; an end there would tell anyone who presents
// a key without holding it whether the key is known.
func ListenTLS(k PrivateKey) (*tls.Config, error) {
	config, err := newTLS(k)
	if err != nil {
		return nil, err
	}
	// The ticket of a resumed handshake brings back the certificate of the handshake that it was made in.
	config.ClientAuth = tls.RequireAnyClientCert
	config.VerifyConnection = func(state tls.ConnectionState) error {
		_, err := PeerKey(state)
		return err
	}
	return config, nil
}

// PeerKey returns the key at the other end of a TLS connection.
func PeerKey(state tls.ConnectionState) (PublicKey, error) {
	if len(state.PeerCertificates) == 0 {
		return PublicKey{}, errors.New("the other end presented no key")
	}
	key, ok := state.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return PublicKey{}, fmt.Errorf("the other end presented a key of the kind %v, not Ed25519: is it ptthqd?",
			state.PeerCertificates[0].PublicKeyAlgorithm)
	}
	return PublicKey(key), nil
}

// newTLS returns what both configs have in common.
func newTLS(k PrivateKey) (*tls.Config, error) {
	if k.seed == nil {
		return nil, errors.New("make a TLS config: no private key")
	}
	certificate, err := selfSigned(k)
	if err != nil {
		return nil, fmt.Errorf("make a TLS config: %w", err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{certificate},
		NextProtos:   []string{alpn},
		MinVersion:   tls.VersionTLS13,
	}, nil
}

// selfSigned wraps k's public key in a certificate. Its dates span all that can be written, so that no clock, however
// wrong, ends it (RFC 5280, section 4.1.2.5 has the last one); the rest is what X.509 does not let one leave out.
func selfSigned(k PrivateKey) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Date(1950, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	signer := k.signer()
	der, err := x509.CreateCertificate(nil, template, template, signer.Public(), signer)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: signer}, nil
}
