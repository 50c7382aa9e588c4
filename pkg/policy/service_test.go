package policy_test

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ptthqd/pkg/policy"
)

func serviceTarget(t rapid.TB, s string) policy.ServiceTarget {
	t.Helper()
	parsed, err := policy.ParseServiceTarget(s)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestServiceTargets(t *testing.T) {
	for _, test := range []struct {
		text, canonical string
		single          bool
		covers, not     []string
	}{
		{"22", ":22", true, []string{"22", "localhost:22", "[::1]:22"}, []string{"23", "127.0.0.2:22", "nas:22", "unix:/22", "ssh"}},
		{"localhost:5900-5900", ":5900", true, []string{"5900"}, []string{"5901"}},
		{"5900-5910", ":5900-5910", false, []string{"5900", "5905", "5910"}, []string{"5899", "5911", "db:5900"}},
		{":1-65535", ":1-65535", false, []string{"1", "65535"}, []string{"unix:/x", "db:1"}},
		{"DB:5432", "db:5432", true, []string{"db:5432", "DB.:5432"}, []string{"5432", "db:5433", "db2:5432"}},
		{"db:5432-5433", "db:5432-5433", false, []string{"db:5433"}, []string{"db:5434", "5433"}},
		{"10.0.0.1:22", "10.0.0.1:22", true, []string{"10.0.0.1:22", "[::ffff:10.0.0.1]:22"}, []string{"10.0.0.2:22"}},
		{"[fd00::1]:22", "[fd00::1]:22", true, []string{"[fd00:0::1]:22"}, []string{"[fd00::2]:22"}},
		{"unix:/run/./x", "unix:/run/x", true, []string{"unix:/run/x"}, []string{"unix:/run/y", "unix:/run/x/y", "22"}},
		{
			"192.168.1.0/24:5900-5910", "192.168.1.0/24:5900-5910", false,
			[]string{"192.168.1.0:5900", "192.168.1.255:5910", "[::ffff:192.168.1.7]:5901"},
			[]string{"192.168.2.1:5900", "192.168.1.1:5911", "5900", "db:5900", "[fd00::1]:5900", "unix:/x"},
		},
		{"[FD00::/64]:22", "[fd00::/64]:22", false, []string{"[fd00::1]:22"}, []string{"[fd00:0:0:1::1]:22", "10.0.0.1:22"}},
		{"10.0.0.1/32:22-23", "10.0.0.1:22-23", false, []string{"10.0.0.1:23"}, []string{"10.0.0.2:22"}},
		{"127.0.0.1/32:22", ":22", true, []string{"22"}, []string{"127.0.0.2:22"}},
		{"[::1/128]:22", ":22", true, []string{"22"}, nil},

		// A target on the loopback is offered only by its name.
		{"0.0.0.0/0:1-65535", "0.0.0.0/0:1-65535", false, []string{"8.8.8.8:53"}, []string{"22", "0.0.0.0:22", "127.0.0.2:22", "[::1]:22", "[fd00::1]:22"}},
		{"126.0.0.0/7:22", "126.0.0.0/7:22", false, []string{"126.0.0.1:22"}, []string{"22", "127.0.0.2:22"}},
		{"[::/0]:22", "[::/0]:22", false, []string{"[fd00::1]:22"}, []string{"22", "[::1]:22", "[::]:22", "10.0.0.1:22"}},
		{"127.0.0.0/8:22", "127.0.0.0/8:22", false, []string{"22", "127.0.0.2:22"}, []string{"128.0.0.1:22"}},
		{
			"0.0.0.0/0:80", "0.0.0.0/0:80", false,
			[]string{"10.0.0.1:80", "169.253.255.255:80"},
			[]string{"169.254.169.254:80", "224.0.0.1:80", "239.1.2.3:80", "255.255.255.255:80"},
		},
		{"169.254.0.0/15:80", "169.254.0.0/15:80", false, []string{"169.255.0.1:80"}, []string{"169.254.169.254:80"}},
		{"169.254.0.0/16:80", "169.254.0.0/16:80", false, []string{"169.254.169.254:80"}, nil},
		{"169.254.169.254:80", "169.254.169.254:80", true, []string{"169.254.169.254:80"}, nil},
		{"[::/0]:80", "[::/0]:80", false, []string{"[2001:db8::1]:80"}, []string{"[fe80::1]:80", "[ff02::1]:80"}},
		{"[fe80::/64]:80", "[fe80::/64]:80", false, []string{"[fe80::1]:80"}, nil},
		{"127.1.0.0/16:22", "127.1.0.0/16:22", false, []string{"127.1.0.1:22"}, []string{"22"}},
	} {
		parsed := serviceTarget(t, test.text)
		if parsed.String() != test.canonical {
			t.Errorf("%s is canonically %s, want %s", test.text, parsed, test.canonical)
		}
		if serviceTarget(t, test.canonical) != parsed {
			t.Errorf("%s and %s are different", test.text, test.canonical)
		}
		if _, single := parsed.Single(); single != test.single {
			t.Errorf("%s is a single target: %v, want %v", test.text, single, test.single)
		}
		for _, asked := range test.covers {
			if !parsed.Covers(target(t, asked)) {
				t.Errorf("%s does not cover %s", test.text, asked)
			}
		}
		for _, asked := range test.not {
			if parsed.Covers(target(t, asked)) {
				t.Errorf("%s covers %s", test.text, asked)
			}
		}
	}
}

func TestTextsThatAreNoServiceTarget(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "empty",
		"ssh":                    "write a port",
		"-":                      "write a port",
		"22-":                    "65535",
		"-22":                    "65535",
		"22-23-24":               "write a port",
		":22-23-24":              "65535",
		"23-22":                  "write 22-23",
		"db":                     "write a port",
		"/run/x":                 "write a port",
		"unix:x":                 "whole path",
		"192.168.1.0/24":         "write a port",
		"192.168.1.5/24:22":      "192.168.1.0/24",
		"192.168.1.0/33:22":      "no network",
		"fd00::/64:22":           "no network",
		"[fd00::]/64:22":         "no network",
		"[192.168.1.0/24]:22":    "no network",
		"[::ffff:10.0.0.0/96]:1": "no network",
		"[fd00::/64:22":          "no network",
		"db/24:22":               "no network",
		"[fe80::1%x/128]:22":     "no network",
		"127.1:22":               "neither",
	} {
		got, err := policy.ParseServiceTarget(text)
		if err == nil {
			t.Errorf("%q is taken for %q", text, got)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %q does not say %q", text, err, want)
		}
	}
}

// The oracle walks through the addresses of small networks.
func TestNetworksCoverTheirAddresses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "base")})
		bits := rapid.IntRange(26, 32).Draw(t, "bits")
		low := rapid.IntRange(1, 5).Draw(t, "low")
		high := rapid.IntRange(low, 6).Draw(t, "high")
		asked := netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "asked")})
		port := rapid.IntRange(1, 6).Draw(t, "port")

		first := netip.PrefixFrom(base, bits).Masked().Addr()
		want := false
		for i, addr := 0, first; i < 1<<(32-bits); i, addr = i+1, addr.Next() {
			for p := low; p <= high; p++ {
				want = want || addr == asked && p == port
			}
		}
		offered := serviceTarget(t, first.String()+"/"+strconv.Itoa(bits)+":"+strconv.Itoa(low)+"-"+strconv.Itoa(high))
		one, err := policy.ParseTarget(asked.String() + ":" + strconv.Itoa(port))
		if err != nil {
			t.Fatal(err)
		}
		if got := offered.Covers(one); got != want {
			t.Fatalf("%v covers %v: %v, want %v", offered, one, got, want)
		}
	})
}

func FuzzParseServiceTarget(f *testing.F) {
	for _, seed := range []string{"22", "5900-5910", "192.168.1.0/24:5900-5910", "[fd00::/64]:22", "unix:/run/x", "10.0.0.1/32:1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := policy.ParseServiceTarget(text)
		if err != nil {
			return
		}
		if again, err := policy.ParseServiceTarget(parsed.String()); err != nil || again != parsed {
			t.Fatalf("%q is canonically %q, and that %q (%v)", text, parsed, again, err)
		}
		if single, ok := parsed.Single(); ok && (!parsed.Covers(single) || single.String() != parsed.String()) {
			t.Fatalf("%q is the single target %q, and does not cover it", parsed, single)
		}
	})
}

func TestResolve(t *testing.T) {
	clients := func(texts ...string) (list []policy.Pattern) {
		for _, text := range texts {
			list = append(list, pattern(t, text))
		}
		return list
	}
	services, err := policy.NewServices([]policy.Service{
		{Name: "ssh", Target: serviceTarget(t, "22"), Clients: clients("laptop", "ops-*"), Source: at(1)},
		{Target: serviceTarget(t, "192.168.1.0/24:5900-5910"), Clients: clients("laptop"), Source: at(2)},
		{Name: "vnc", Target: serviceTarget(t, "5900-5910"), Clients: clients("laptop"), Source: at(3)},
		{Name: "db", Target: serviceTarget(t, "unix:/run/pg"), Source: at(4)},
		{Target: serviceTarget(t, "1-1000"), Clients: clients("root"), Source: at(5)},
		{Target: serviceTarget(t, "10.0.0.0/8:22"), Clients: clients("laptop"), Source: at(6)},
		{Target: serviceTarget(t, "10.0.0.0/8:80"), Clients: clients("laptop"), AllowLocal: true, Source: at(7)},
		{Target: serviceTarget(t, "10.0.0.7:23"), Clients: clients("laptop"), Source: at(8)},
		{Target: serviceTarget(t, "0.0.0.0/0:23"), Clients: clients("laptop"), AllowLocal: true, Source: at(9)},
		{Name: "wiki", Target: serviceTarget(t, "wiki.example:80"), Clients: clients("laptop"), Source: at(10)},
		{Name: "own", Target: serviceTarget(t, "own.example:80"), Clients: clients("laptop"), AllowLocal: true, Source: at(11)},
	})
	if err != nil {
		t.Fatal(err)
	}
	own := func(addr netip.Addr) bool { return addr == netip.MustParseAddr("10.0.0.7") }
	for _, test := range []struct {
		client, asked, dial string
		want                policy.Decision
	}{
		{"laptop", "ssh", ":22", policy.Decision{Allowed: true, Rule: "ssh", Source: at(1), Reason: "laptop may reach ssh"}},
		{"ops-7", "22", ":22", policy.Decision{Allowed: true, Rule: "ssh", Source: at(1), Reason: "ops-7 may reach ssh"}},
		{"laptop", "192.168.1.20:5901", "192.168.1.20:5901", policy.Decision{Allowed: true, Rule: "192.168.1.0/24:5900-5910", Source: at(2), Guarded: true, Reason: "laptop may reach 192.168.1.0/24:5900-5910"}},
		{"laptop", "5905", ":5905", policy.Decision{Allowed: true, Rule: "vnc", Source: at(3), Reason: "laptop may reach vnc"}},
		{"root", "22", ":22", policy.Decision{Allowed: true, Rule: ":1-1000", Source: at(5), Reason: "root may reach :1-1000"}},

		{"laptop", "10.0.0.8:22", "10.0.0.8:22", policy.Decision{Allowed: true, Rule: "10.0.0.0/8:22", Source: at(6), Guarded: true, Reason: "laptop may reach 10.0.0.0/8:22"}},
		{"laptop", "10.0.0.7:80", "10.0.0.7:80", policy.Decision{Allowed: true, Rule: "10.0.0.0/8:80", Source: at(7), Reason: "laptop may reach 10.0.0.0/8:80"}},
		{"laptop", "10.0.0.7:23", "10.0.0.7:23", policy.Decision{Allowed: true, Rule: "10.0.0.7:23", Source: at(8), Reason: "laptop may reach 10.0.0.7:23"}},
		{"laptop", "wiki", "wiki.example:80", policy.Decision{Allowed: true, Rule: "wiki", Source: at(10), Guarded: true, Reason: "laptop may reach wiki"}},
		{"laptop", "own", "own.example:80", policy.Decision{Allowed: true, Rule: "own", Source: at(11), Reason: "laptop may reach own"}},

		{
			"laptop", "10.0.0.7:22", "", policy.Decision{
				Rule: "10.0.0.0/8:22", Source: at(6),
				Reason: "10.0.0.0/8:22 does not cover 10.0.0.7:22, an address of the server itself: name it as a target of its own, or write allow_local = true",
			},
		},
		{
			"laptop", "169.254.169.254:23", "", policy.Decision{
				Rule: "0.0.0.0/0:23", Source: at(9),
				Reason: "0.0.0.0/0:23 does not cover 169.254.169.254:23, a link-local address: name it as a target of its own",
			},
		},
		{"root", "ssh", "", policy.Decision{Rule: "ssh", Source: at(1), Reason: "the clients of ssh do not include root"}},
		{"phone", "22", "", policy.Decision{Rule: "ssh", Source: at(1), Reason: "the clients of ssh do not include phone"}},
		{"laptop", "db", "", policy.Decision{Rule: "db", Source: at(4), Reason: "the clients of db do not include laptop"}},
		{"laptop", "unix:/run/pg", "", policy.Decision{Rule: "db", Source: at(4), Reason: "the clients of db do not include laptop"}},
		{"laptop", "vnc", "", policy.Decision{Rule: "vnc", Source: at(3), Reason: "vnc is a range: the client must ask for one target in :5900-5910"}},
		{"phone", "vnc", "", policy.Decision{Rule: "vnc", Source: at(3), Reason: "the clients of vnc do not include phone"}},
		{"laptop", "SSH", "", policy.Decision{Reason: "no service has the name SSH"}},
		{"laptop", "192.168.1.20:22", "", policy.Decision{Reason: "no service covers 192.168.1.20:22"}},
	} {
		dial, got := services.Resolve(test.client, target(t, test.asked), own)
		if got != test.want || dial.String() != test.dial {
			t.Errorf("%s to %s: dial %q\n got %+v\nwant %+v", test.client, test.asked, dial, got, test.want)
		}
	}
	if all := services.All(); len(all) != 11 || all[0].String() != "ssh" || all[1].String() != "192.168.1.0/24:5900-5910" {
		t.Errorf("the services are %v", all)
	}
}

func TestServicesThatCannotBe(t *testing.T) {
	ssh := policy.Service{Name: "ssh", Target: serviceTarget(t, "22"), Source: at(1)}
	for name, want := range map[string]string{
		"ssh":     "relay.toml:2: name: two services have the name ssh; the other one is at relay.toml:1",
		"22":      `relay.toml:2: name: "22" is a target, not a name; give it a letter, and no : or /`,
		"a/b":     `relay.toml:2: name: "a/b" is no target; a Unix socket is written unix:/path`,
		"unix:/x": `relay.toml:2: name: "unix:/x" is a target, not a name; give it a letter, and no : or /`,
	} {
		_, err := policy.NewServices([]policy.Service{ssh, {Name: name, Target: serviceTarget(t, "23"), Source: at(2)}})
		if _, ok := errors.AsType[*policy.Error](err); !ok || err.Error() != want {
			t.Errorf("%q: error %v, want %q", name, err, want)
		}
	}
}

// All spellings of an address are equally special.
func TestSpecialAddresses(t *testing.T) {
	own := func(addr netip.Addr) bool { return addr == netip.MustParseAddr("10.0.0.7") }
	for text, want := range map[string]string{
		"10.0.0.8": "", "2001:db8::1": "", "172.17.0.1": "", "fd00::1": "",
		"127.0.1.1": "loopback", "::1": "loopback", "::ffff:127.0.0.1": "loopback", "0.0.0.0": "loopback", "::": "loopback",
		"169.254.169.254": "link-local", "::ffff:169.254.169.254": "link-local", "fe80::1": "link-local", "fe80::1%eth0": "link-local",
		"224.0.0.251": "multicast", "ff02::1%eth0": "multicast", "255.255.255.255": "broadcast",
		"10.0.0.7": "server itself", "::ffff:10.0.0.7": "server itself",
	} {
		got := policy.Special(netip.MustParseAddr(text), own)
		if (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s is %q, want %q", text, got, want)
		}
	}
}
