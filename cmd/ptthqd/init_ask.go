package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"ptthqd/pkg/config"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/wire"
)

const (
	defaultListen  = "[::]:30380"
	defaultService = "ssh=22"
)

// ask asks the user for what the flags have not said, if something without a good default is
// missing.
func (s *setup) ask(d *dialogue) error {
	if !s.incomplete() {
		return nil
	}
	if s.role == config.RoleRelay {
		d.one(&s.address, "Name or address by which others reach this relay", hostName(), nil)
		d.one(&s.listen, "UDP address and port to listen on", defaultListen, nil)
		return d.err
	}
	d.one(&s.id, "ID of this node", defaultID(), wire.CheckID)
	d.list(&s.relays, "Address of the relay, HOST or HOST:PORT", "", checkAddress)
	d.list(&s.relayKeys, "The relay's public key, which its init printed", "", checkKey)
	if s.role == config.RoleServer {
		d.list(&s.services, "What to offer: [NAME=]TARGET, as in ssh=22 or 192.168.1.20:5901",
			defaultService, checkService)
		d.list(&s.clients, "Which clients may reach it: IDs, * and ? match", "", checkPattern)
	} else {
		d.list(&s.mappings, "What to reach: LISTEN=SERVER:TARGET, as in 2200=nas:22", "",
			checkMapping)
	}
	return d.err
}

// incomplete reports whether something without a good default is missing.
func (s *setup) incomplete() bool {
	switch s.role {
	case config.RoleRelay:
		return s.address == ""
	case config.RoleServer:
		return len(s.relays) == 0 || len(s.relayKeys) == 0 || len(s.clients) == 0
	default:
		return len(s.relays) == 0 || len(s.relayKeys) == 0 || len(s.mappings) == 0
	}
}

// complete sets the defaults, and refuses values that make no set-up.
func (s *setup) complete() error {
	for _, text := range slices.Concat([]string{s.listen, s.address, s.id}, s.relays, s.relayKeys,
		s.services, s.clients, s.mappings) {
		if !utf8.ValidString(text) ||
			strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return usageError("%q has an unprintable character in it", text)
		}
	}
	if s.role == config.RoleRelay {
		s.listen = cmp.Or(s.listen, defaultListen)
		s.address = withPort(cmp.Or(s.address, hostName()), s.port())
		if err := checkAddress(s.address); err != nil {
			return usageError("--address: %w", err)
		}
		return nil
	}
	if s.incomplete() {
		return usageError("not all is said: it takes --relay, --relay-key and %s; on a terminal "+
			"init asks for them",
			map[config.Role]string{
				config.RoleServer: "--client",
				config.RoleClient: "--mapping",
			}[s.role])
	}
	if s.id = cmp.Or(s.id, defaultID()); s.id == "" {
		return usageError("this host's name cannot be its ID: give one with --id")
	}
	if len(s.relays) != len(s.relayKeys) {
		return usageError("there are %d of --relay and %d of --relay-key: each relay has a key "+
			"of its own", len(s.relays), len(s.relayKeys))
	}
	for i, relay := range s.relays {
		s.relays[i] = withPort(relay, wire.DefaultPort)
	}
	for _, key := range s.relayKeys {
		if err := checkKey(key); err != nil {
			return usageError("--relay-key: %w", err)
		}
	}
	for _, m := range s.mappings {
		if err := checkMapping(m); err != nil {
			return usageError("--mapping: %w", err)
		}
	}
	if s.role == config.RoleServer && len(s.services) == 0 {
		s.services = []string{defaultService}
	}
	return nil
}

// port returns the port on which the relay listens.
func (s *setup) port() int {
	port, err := strconv.ParseUint(s.listen[strings.LastIndexByte(s.listen, ':')+1:], 10, 16)
	if err != nil { // a socket of systemd's: its unit says which
		return wire.DefaultPort
	}
	return int(port)
}

// withPort adds a port to a host that has none.
func withPort(host string, port int) string {
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil && addr.Is6() {
		return fmt.Sprintf("[%v]:%d", addr, port)
	}
	if !strings.Contains(host, ":") {
		return fmt.Sprintf("%s:%d", host, port)
	}
	return host
}

// hostName returns the name of this host; "localhost" if it has none.
func hostName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	return name
}

// defaultID returns the first label of the host's name, if that is a valid ID.
func defaultID() string {
	label, _, _ := strings.Cut(strings.ToLower(hostName()), ".")
	if wire.CheckID(label) != nil {
		return ""
	}
	return label
}

// splitMapping splits LISTEN=SERVER:TARGET.
func splitMapping(s string) (listen, server, target string, ok bool) {
	listen, to, listens := strings.Cut(s, "=")
	server, target, aims := strings.Cut(to, ":")
	return listen, server, target, listens && aims
}

// splitService splits [NAME=]TARGET. The text before the sign may also be the beginning of a path.
func splitService(s string) (name, target string) {
	if name, target, ok := strings.Cut(s, "="); ok && !strings.Contains(name, ":") {
		return name, target
	}
	return "", s
}

func checkAddress(s string) error {
	t, err := policy.ParseTarget(withPort(s, wire.DefaultPort))
	if err == nil && (t.IsName() || t.Network() != "tcp") {
		err = fmt.Errorf("%q is not HOST or HOST:PORT", s)
	}
	return err
}

// checkKey checks a relay's public key, or several with commas between them.
func checkKey(s string) error {
	for key := range strings.SplitSeq(s, ",") {
		if _, err := ident.ParsePublicKey(key); err != nil {
			return err
		}
	}
	return nil
}

func checkService(s string) error {
	name, target := splitService(s)
	if name != "" {
		if err := policy.CheckServiceName(name); err != nil {
			return err
		}
	}
	_, err := policy.ParseServiceTarget(target)
	return err
}

func checkPattern(s string) error {
	_, err := policy.ParsePattern(s)
	return err
}

func checkMapping(s string) error {
	_, server, target, ok := splitMapping(s)
	if !ok {
		return fmt.Errorf("%q is not LISTEN=SERVER:TARGET, as in 2200=nas:22", s)
	}
	if err := wire.CheckID(server); err != nil {
		return err
	}
	_, err := policy.ParseTarget(target)
	return err
}

// dialogue asks the user. It keeps its first error, which ends it.
type dialogue struct {
	in  *bufio.Reader
	out io.Writer
	err error
}

func newDialogue(in io.Reader, out io.Writer) *dialogue {
	return &dialogue{in: bufio.NewReader(in), out: out}
}

// one asks for a value that is not set yet, until check accepts it. check may be nil.
func (d *dialogue) one(value *string, question, byDefault string, check func(string) error) {
	for *value == "" && d.err == nil {
		answer := d.answer(question, byDefault)
		if check != nil && d.err == nil {
			if err := check(answer); err != nil {
				fmt.Fprintf(d.out, "  %v\n", err)
				continue
			}
		}
		*value = answer
	}
}

// list asks for values with spaces or commas between them, if none is set yet, until check accepts
// all.
func (d *dialogue) list(values *[]string, question, byDefault string, check func(string) error) {
	if len(*values) > 0 {
		return
	}
	split := func(s string) []string {
		return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
	}
	var answer string
	d.one(&answer, question, byDefault, func(s string) error {
		for _, value := range split(s) {
			if err := check(value); err != nil {
				return err
			}
		}
		return nil
	})
	*values = split(answer)
}

// answer asks once. An empty answer means the default; without a default, answer asks again.
func (d *dialogue) answer(question, byDefault string) string {
	for {
		fmt.Fprint(d.out, question)
		if byDefault != "" {
			fmt.Fprintf(d.out, " [%s]", byDefault)
		}
		fmt.Fprint(d.out, ": ")
		line, err := d.in.ReadString('\n')
		if err != nil {
			d.err = errors.New("the questions were not answered: nothing was written")
			return ""
		}
		if answer := cmp.Or(strings.TrimSpace(line), byDefault); answer != "" {
			return answer
		}
	}
}
