package link

import (
	"strings"
	"testing"
	"unicode"

	"github.com/quic-go/quic-go"
)

// Any host that answers at a relay's address can close a connection with a text, without being
// authenticated. The text reaches logs and terminals, so it must be clean.
func TestForeignTextIsClean(t *testing.T) {
	const text = "come\x1b[2J\x1b]0;owned\a \u202egnp.exe\u2066\u200b\u2028 on"
	d := &Dialer{Address: "relay.example.com:30380"}
	transport := &quic.TransportError{Remote: true, ErrorCode: quic.InternalError, ErrorMessage: text}
	application := &quic.ApplicationError{Remote: true, ErrorCode: 99, ErrorMessage: text}
	for name, said := range map[string]string{
		"a dial, transport":   d.explain(transport).words,
		"a dial, application": d.explain(application).words,
		"a link, transport":   linkError(transport).Error(),
		"a link, application": linkError(application).Error(),
	} {
		if !strings.Contains(said, "come [2J") || strings.ContainsFunc(said, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%s: %q", name, said)
		}
	}
}
