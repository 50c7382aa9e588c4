package ident_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"ptthqd/pkg/ident"
)

func generate(t testing.TB) ident.PrivateKey {
	t.Helper()
	key, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestKeysSurviveTheirPrintedForm(t *testing.T) {
	key := generate(t)
	text := key.Encode()
	if len(text) != 45 || text[44] != '\n' {
		t.Fatalf("a key file has %d bytes, want 44 characters and a newline", len(text))
	}
	again, err := ident.ParsePrivateKey(append([]byte(" \n"), text...))
	if err != nil {
		t.Fatal(err)
	}
	if again.Public() != key.Public() {
		t.Error("the private key is another one after Encode and ParsePrivateKey")
	}

	public, err := ident.ParsePublicKey(key.Public().String())
	if err != nil {
		t.Fatal(err)
	}
	if public != key.Public() {
		t.Error("the public key is another one after String and ParsePublicKey")
	}
	text, err = key.Public().MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	var unmarshalled ident.PublicKey
	if err := unmarshalled.UnmarshalText(text); err != nil {
		t.Fatal(err)
	}
	if unmarshalled != key.Public() {
		t.Error("the public key is another one after MarshalText and UnmarshalText")
	}
}

// The first test vector of RFC 8032, section 7.1: the printed form is the seed, as for every other Ed25519 tool.
func TestPublicKeyOfAKnownSeed(t *testing.T) {
	seed, _ := hex.DecodeString("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
	public, _ := hex.DecodeString("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
	key, err := ident.ParsePrivateKey([]byte(base64.StdEncoding.EncodeToString(seed)))
	if err != nil {
		t.Fatal(err)
	}
	if got := key.Public(); got != ident.PublicKey(public) {
		t.Errorf("public key %x, want %x", got[:], public)
	}
}

func TestBadKeysAreRefusedWithoutQuotingThem(t *testing.T) {
	const secret = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="
	for _, test := range []struct{ name, text, want string }{
		{"empty", "", "empty"},
		{"blank", " \n", "empty"},
		{"short", secret[:40], "this has 40"},
		{"long", secret + secret, "this has 88"},
		{"no padding", secret[:43], "this has 43"},
		{"another alphabet", strings.ReplaceAll(secret, "/", "_"), "copied whole"},
		{"spare bits set", secret[:42] + "B=", "copied whole"},
		{"a newline within", secret[:20] + "\n" + secret[20:43], "copied whole"},
		{"too few bytes", secret[:40] + "AA==", "copied whole"},
		{"PEM", "-----BEGIN OPENSSH PRIVATE KEY-----\n" + secret, "PEM"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := ident.ParsePrivateKey([]byte(test.text))
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q does not say %q", err, test.want)
			}
			if strings.Contains(err.Error(), secret[:16]) {
				t.Errorf("error %q quotes the key", err)
			}
			if _, err := ident.ParsePublicKey(test.text); err == nil {
				t.Error("accepted as a public key")
			}
		})
	}
}

// A key of small order in a config would admit everybody: a signature that needs no private key verifies
// for some messages. The test shows that danger, and that the parser refuses such keys.
func TestPublicKeysThatProveNothingAreRefused(t *testing.T) {
	forged := make([]byte, ed25519.SignatureSize) // S = 0, and R, the identity
	forged[0] = 1
	for _, text := range []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0000000000000000000000000000000000000000000000000000000000000080",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	} {
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		forgeries := 0
		for i := range 256 {
			if ed25519.Verify(b, []byte{byte(i)}, forged) {
				forgeries++
			}
		}
		if forgeries == 0 {
			t.Errorf("%s: no forgery verifies: why is it refused?", text)
		}
		if _, err := ident.ParsePublicKey(ident.PublicKey(b).String()); err == nil {
			t.Errorf("%s: accepted", text)
		}
	}
}

func TestPrivateKeyNeverPrints(t *testing.T) {
	key := generate(t)
	secret := strings.TrimSpace(string(key.Encode()))
	raw, err := base64.StdEncoding.DecodeString(secret)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	holder := struct {
		Name string
		Key  ident.PrivateKey
		key  ident.PrivateKey // fmt cannot call the methods of this one
	}{"nas", key, key}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb, key)
		fmt.Fprintf(&out, verb, &key)
		fmt.Fprintf(&out, verb, holder)
		fmt.Fprintf(&out, verb, []ident.PrivateKey{key})
	}
	fmt.Fprint(&out, key.String(), holder.key.String())
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(handler).Info("started", "key", key, "holder", holder)
	}
	if err := json.NewEncoder(&out).Encode(holder); err != nil {
		t.Fatal(err)
	}
	for _, leak := range []string{
		secret, string(raw), hex.EncodeToString(raw), strings.ToUpper(hex.EncodeToString(raw)),
		strings.Trim(fmt.Sprint(raw), "[]"), strings.Trim(fmt.Sprintf("%#v", raw), "[]byte{}"),
	} {
		if bytes.Contains(out.Bytes(), []byte(leak)) {
			t.Errorf("the private key leaks as %q", leak)
		}
	}
}

func TestDerivedSecretsAreStableAndApart(t *testing.T) {
	key := generate(t)
	again, err := ident.ParsePrivateKey(key.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if key.Derive("stateless reset") != again.Derive("stateless reset") {
		t.Error("the same key and label derive different secrets")
	}
	if key.Derive("stateless reset") == key.Derive("token") {
		t.Error("two labels derive one secret")
	}
	if key.Derive("token") == generate(t).Derive("token") {
		t.Error("two keys derive one secret")
	}
}

func FuzzParsePublicKey(f *testing.F) {
	f.Add("11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
	f.Fuzz(func(t *testing.T, text string) {
		key, err := ident.ParsePublicKey(text)
		if err == nil && key.String() != text {
			t.Errorf("%q is accepted as a spelling of %v", text, key)
		}
	})
}

func FuzzParsePrivateKey(f *testing.F) {
	f.Add([]byte("nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := ident.ParsePrivateKey(text)
		if err == nil && !bytes.Equal(bytes.TrimSpace(key.Encode()), bytes.TrimSpace(text)) {
			t.Errorf("%q is accepted, but the key prints otherwise", text)
		}
	})
}
