package policy_test

import (
	"slices"
	"strings"
	"testing"

	"ptthqd/pkg/policy"
)

func target(t testing.TB, s string) policy.Target {
	t.Helper()
	parsed, err := policy.ParseTarget(s)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestTargetsHaveOneCanonicalText(t *testing.T) {
	for _, test := range []struct {
		canonical string
		spellings []string
	}{
		{":22", []string{
			"22", ":22", "localhost:22", "LocalHost.:22", "127.0.0.1:22", "[::1]:22", "[0:0:0:0:0:0:0:1]:22",
			"[::ffff:127.0.0.1]:22", "[::ffff:7f00:1]:22", "0.0.0.0:22", "[::]:22", "[::ffff:0.0.0.0]:22",
		}},
		{":65535", []string{"65535"}},
		{"127.0.0.2:53", []string{"127.0.0.2:53", "[::ffff:127.0.0.2]:53"}},
		{"192.168.1.20:5901", []string{"192.168.1.20:5901", "[::ffff:192.168.1.20]:5901"}},
		{"[fd00::1]:22", []string{"[fd00::1]:22", "[FD00:0:0::0001]:22"}},
		{"db.example.com:5432", []string{"db.example.com:5432", "DB.Example.COM:5432", "db.example.com.:5432"}},
		{"db:5432", []string{"db:5432", "DB:5432"}},
		{"_pg._tcp.x:1", []string{"_pg._tcp.x:1"}},
		{"7zip:80", []string{"7zip:80"}},
		{"1.2.3.4.5a:80", []string{"1.2.3.4.5a:80"}},
		{"unix:/run/x.sock", []string{"unix:/run/x.sock", "unix://run/./y/../x.sock", "unix:/run/x.sock/"}},
		{"unix:/run/a:b", []string{"unix:/run/a:b"}},
		{"ssh", []string{"ssh"}},
		{"SSH", []string{"SSH"}}, // services are told apart by case, as in the config
		{"3d-print.er_1", []string{"3d-print.er_1"}},
	} {
		for _, spelling := range test.spellings {
			if got := target(t, spelling).String(); got != test.canonical {
				t.Errorf("%q is canonically %q, want %q", spelling, got, test.canonical)
			}
			if target(t, spelling) != target(t, test.canonical) {
				t.Errorf("%q and %q are different targets", spelling, test.canonical)
			}
		}
	}
}

func TestTextsThatAreNoTarget(t *testing.T) {
	for text, want := range map[string]string{
		"":                      "empty",
		"0":                     "from 1 to 65535",
		"022":                   "from 1 to 65535",
		"65536":                 "from 1 to 65535",
		"99999999999999999999":  "from 1 to 65535",
		"+22":                   "service",
		"db:":                   "from 1 to 65535",
		"db:ssh":                "from 1 to 65535",
		"db:+22":                "from 1 to 65535",
		"db:-1":                 "from 1 to 65535",
		":":                     "from 1 to 65535",
		"::1":                   "[fd00::1]:22",
		"::1:22":                "[fd00::1]:22",
		"fd00::1:22":            "[fd00::1]:22",
		"[::1]":                 "[fd00::1]:22",
		"[::1:22":               "[fd00::1]:22",
		"[db]:22":               "[fd00::1]:22",
		"[127.0.0.1]:22":        "[fd00::1]:22",
		"[]:22":                 "[fd00::1]:22",
		"a]:22":                 "[fd00::1]:22",
		"[[::1]]:22":            "not the name of a host",
		"[fe80::1%eth0]:22":     "zone",
		"192.168.1.20":          "has no port",
		"127.1:22":              "neither an IP address",
		"999.1.1.1:22":          "neither an IP address",
		"0x7f000001:22":         "neither an IP address",
		"2130706433.:22":        "neither an IP address",
		"-x:22":                 "not the name of a host",
		"x-:22":                 "not the name of a host",
		"a..b:22":               "not the name of a host",
		".:22":                  "not the name of a host",
		"*:22":                  "not the name of a host",
		"bücher.de:22":          "xn--",
		"a b:22":                "unprintable",
		"ssh\n":                 "unprintable",
		"db\x00:22":             "unprintable",
		"\xff:22":               "unprintable",
		"unix:run/x.sock":       "whole path",
		"unix:":                 "whole path",
		"unix:@abstract":        "whole path",
		"unix:/a\x00b":          "unprintable",
		"/run/x.sock":           "unix:/path",
		"192.168.1.0/24:22":     "unix:/path",
		"12.34":                 "a letter",
		"-ssh":                  "begins with",
		"s*h":                   "letters, digits",
		strings.Repeat("a", 64): "at most 63",
		host(254) + ":22":       "at most 253",
		"unix:/" + host(107):    "at most 107",
		strings.Repeat("a", 64) + ".example.com:22": "not the name of a host",
	} {
		got, err := policy.ParseTarget(text)
		if err == nil {
			t.Errorf("%q is taken for %q", text, got)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %q does not say %q", text, err, want)
		}
	}
	if _, err := policy.ParseTarget(host(253) + ":22"); err != nil {
		t.Errorf("the longest name of a host is refused: %v", err)
	}
	if _, err := policy.ParseTarget("unix:/" + host(106)); err != nil {
		t.Errorf("the longest path is refused: %v", err)
	}
}

// host returns a host's name of n characters.
func host(n int) string { return strings.Repeat("abc.", n/4) + strings.Repeat("x", n%4) }

func TestWhatIsDialled(t *testing.T) {
	for _, test := range []struct {
		target, network string
		addresses       []string
	}{
		{"22", "tcp", []string{"127.0.0.1:22", "[::1]:22"}},
		{"db:5432", "tcp", []string{"db:5432"}},
		{"[fd00::1]:22", "tcp", []string{"[fd00::1]:22"}},
		{"unix:/run/x.sock", "unix", []string{"/run/x.sock"}},
	} {
		got := target(t, test.target)
		if got.IsName() {
			t.Errorf("%v is taken for a name", got)
		}
		if got.Network() != test.network || !slices.Equal(got.Addresses(), test.addresses) {
			t.Errorf("%v is dialled as %s %v, want %s %v", got, got.Network(), got.Addresses(), test.network, test.addresses)
		}
	}
	if !target(t, "ssh").IsName() {
		t.Error("ssh is not taken for a name")
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{"22", "[::1]:22", "db.example.com:5432", "unix:/run/../x", "ssh", "[::ffff:1.2.3.4]:1", "LOCALHOST.:9"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := policy.ParseTarget(text)
		if err != nil {
			return
		}
		again, err := policy.ParseTarget(parsed.String())
		if err != nil {
			t.Fatalf("%q is canonically %q, which is no target: %v", text, parsed, err)
		}
		if again != parsed || again.String() != parsed.String() {
			t.Fatalf("%q is canonically %q, and that %q", text, parsed, again)
		}
		if len(parsed.String()) > 300 {
			t.Fatalf("%d bytes of canonical text", len(parsed.String()))
		}
		if !parsed.IsName() && len(parsed.Addresses()) == 0 {
			t.Fatalf("%q has no address", parsed)
		}
		// A single target is one that a service may offer, in the same words.
		if offered, err := policy.ParseServiceTarget(parsed.String()); !parsed.IsName() {
			if err != nil {
				t.Fatalf("no service can offer %q: %v", parsed, err)
			}
			if single, ok := offered.Single(); !ok || single != parsed || !offered.Covers(parsed) || offered.String() != parsed.String() {
				t.Fatalf("a service that offers %q offers %q", parsed, offered)
			}
		}
	})
}
