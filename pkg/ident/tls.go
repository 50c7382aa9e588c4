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

// alpn is the protocol in the handshake. It equals wire.ALPN, as a test asserts.
const alpn = "ptthq/1"

// WrongKeyError says that the relay has another key than the config.
type WrongKeyError struct {
	Want []PublicKey // of the config
	Got  PublicKey   // presented by the relay, which has not proved that it holds it
}

// Error names both keys and what to do.
func (e *WrongKeyError) Error() string {
	return fmt.Sprintf("the relay's key is not the one in the config: "+
		"it presented %v, the config has %s: "+
		"ask the relay's administrator for its key (`ptthqd pubkey FILE`) and its address, "+
		"and change the config only if he says so", e.Got, e.Pinned())
}

// Pinned returns the keys of the config, for people.
func (e *WrongKeyError) Pinned() string {
	want := make([]string, len(e.Want))
	for i, key := range e.Want {
		want[i] = key.String()
	}
	return strings.Join(want, " and ")
}

// DialTLS returns the TLS config with which the node that holds k dials a relay that has one of the
// given keys; there are several while the relay's key is being changed. A handshake with another
// node fails with a [*WrongKeyError] or an error of [PeerKey]. The config caches one TLS session,
// which a redial resumes, so it is for one relay only.
func DialTLS(k PrivateKey, relay ...PublicKey) (*tls.Config, error) {
	config, err := newTLS(k)
	if err != nil {
		return nil, err
	}
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	// InsecureSkipVerify leaves out the checks of names, dates and issuers, which mean nothing
	// here. It is sound for two reasons. VerifyConnection compares the key in each handshake, also
	// in resumed ones, for which VerifyPeerCertificate is not called. And crypto/tls always checks,
	// by the signature over the handshake, that the other end holds the key of its certificate.
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

// ListenTLS returns the TLS config with which the relay that holds k answers. It accepts any peer
// that proves that it holds an Ed25519 key. The caller calls [PeerKey] after each handshake, also a
// resumed one, and decides then. A decision during the handshake would come before the peer's
// signature is checked, and would tell a node that presents a key without holding it whether the
// key is known.
func ListenTLS(k PrivateKey) (*tls.Config, error) {
	config, err := newTLS(k)
	if err != nil {
		return nil, err
	}
	// A resumed handshake has the certificate of the first one, by its ticket.
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

// newTLS returns the parts that both configs have in common.
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

// selfSigned wraps k's public key in a certificate with the fields that X.509 requires. Its dates
// span all that can be written (RFC 5280, section 4.1.2.5), so that no clock, however wrong, makes
// it expire.
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
