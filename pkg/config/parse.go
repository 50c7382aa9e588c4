package config

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/wire"
)

// Parse judges what was read. It reports every fault that it finds, as [Errors]; it does no I/O.
func Parse(s *Snapshot) (*Config, error) {
	p := &parser{
		faults: &faults{},
		config: &Config{Path: s.Path, Hash: s.Hash, Limits: DefaultLimits()},
		taken:  make(map[string]policy.Source),
		keys:   make(map[ident.PublicKey]holder),
	}
	for i, f := range s.Files {
		p.files = append(p.files, f.Path)
		doc := s.main
		if i > 0 || doc == nil {
			doc = parseDocument(f)
		}
		p.list = append(p.list, doc.faults...)
		if doc.tree == nil {
			continue
		}
		top := &section{faults: p.faults, file: f.Path, values: doc.tree, at: doc.index}
		if i == 0 {
			p.main(top, s)
		} else {
			p.included(top)
		}
	}
	if err := p.errors(); err != nil {
		return nil, err
	}
	p.config.Files = p.files
	p.config.dirs = slices.Sorted(maps.Keys(s.listed()))
	return p.config, nil
}

// parser builds one Config. It reads keys in the order in which they are documented.
type parser struct {
	*faults
	config *Config
	taken  map[string]policy.Source // what must be unique, "peer laptop", and where it is
	keys   map[ident.PublicKey]holder
	bound  Places[listener]
}

// holder is who has a public key already.
type holder struct {
	who string
	at  spot
}

// listener is something that will be bound.
type listener struct {
	what string
	at   spot
}

func source(at spot) policy.Source { return policy.Source{File: at.file, Line: at.line} }

// main reads the main file.
func (p *parser) main(top *section, s *Snapshot) {
	c := p.config
	top.role = p.role(top)
	c.Role = top.role
	top.checkKeys()

	if top.mayHave("id") {
		if id, at, ok := top.required("id"); ok {
			p.checkID(at, id)
			c.ID = id
		}
	}
	c.PrivateKeyFile = p.privateKeyFile(top, s)
	c.LogLevel = p.logLevel(top)
	c.Include = p.include(top)
	if group, at, ok := top.text("admin_group"); ok {
		if group == "" || group != wire.Clean(group) || strings.ContainsAny(group, " :,") {
			p.add(at, `for example "ptthqd"`, "%q is no name of a group", group)
		}
		c.AdminGroup = group
	}
	c.ResumeTimeout = top.duration("resume_timeout", DefaultResumeTimeout, time.Second, maxResume)
	c.DrainTimeout = top.duration("drain_timeout", DefaultDrainTimeout, 0, time.Hour)
	if top.mayHave("listen") {
		c.Listen = p.relayListen(top)
	}
	for _, relay := range top.subs("relays") {
		p.relay(relay)
	}
	if _, there := top.values["relays"]; !there && top.mayHave("relays") {
		top.missing("relays")
	}
	p.tables(top)
	if metrics := top.sub("metrics"); metrics != nil {
		c.Metrics = p.metrics(metrics)
	}
	if limits := top.sub("limits"); limits != nil {
		p.limits(limits)
	}
}

const maxResume = 7 * 24 * time.Hour

// included reads a file that the main one includes.
func (p *parser) included(top *section) {
	top.role = p.config.Role
	top.included = true
	top.checkKeys()
	p.tables(top)
}

// includable are the tables that an included file may have.
var includable = []string{"peers", "services", "mappings"}

func (p *parser) tables(top *section) {
	for _, s := range top.subs("peers") {
		p.peer(s)
	}
	for _, s := range top.subs("services") {
		p.service(s)
	}
	for _, s := range top.subs("mappings") {
		p.mapping(s)
	}
}

// mayHave reports whether a key can be read: it belongs to this role, or the role isn't known and the key is there.
func (s *section) mayHave(key string) bool {
	_, there := s.values[key]
	return keysByName[s.full(key)].allows(s.role) && (s.role != "" || there)
}

func (p *parser) role(top *section) Role {
	if _, there := top.values["role"]; !there {
		what := "is missing"
		if len(top.values) == 0 {
			what = "is missing: there is nothing in this file"
		}
		p.add(spot{top.file, position{1, 1}, "role"}, "write role = "+`"relay", "server" or "client"; `+"`ptthqd init` writes a whole file", "%s", what)
		return ""
	}
	text, at, ok := top.required("role")
	if !ok {
		return ""
	}
	role := Role(text)
	if !slices.Contains([]Role{RoleRelay, RoleServer, RoleClient}, role) {
		p.badChoice(at, text, []string{"relay", "server", "client"})
		return ""
	}
	return role
}

// badChoice reports a value that is none of those allowed.
func (p *parser) badChoice(at spot, text string, allowed []string) {
	hint := "write " + oneOf(allowed)
	if near := didYouMean(text, allowed); near != "" {
		hint = near
	}
	p.add(at, hint, "%q is not allowed here", text)
}

// judge reports the error of a parser at a lower floor, with its hint.
func (p *parser) judge(at spot, err error) {
	if fault := (*policy.Error)(nil); errors.As(err, &fault) {
		p.add(at, fault.Hint, "%s", fault.Message)
		return
	}
	p.add(at, "", "%s", err.Error())
}

// once reports a second use of what must be unique. It returns false then.
func (p *parser) once(at spot, what, name string) bool {
	if first, ok := p.taken[what+" "+name]; ok {
		p.add(at, "change one of the two, or take it out", "%s %q is there already, at %v", what, name, first)
		return false
	}
	p.taken[what+" "+name] = source(at)
	return true
}

func (p *parser) checkID(at spot, id string) bool {
	if err := wire.CheckID(id); err != nil {
		p.judge(at, err)
		return false
	}
	return true
}

func (p *parser) privateKeyFile(top *section, s *Snapshot) string {
	name, at, ok := top.text("private_key_file")
	switch {
	case ok && name == "":
		p.add(at, `write the path of the file, for example "/etc/ptthq.key"`, "is empty")
	case ok && filepath.IsAbs(name):
		return filepath.Clean(name)
	case ok:
		return filepath.Join(filepath.Dir(s.Path), name)
	case s.Credential != "":
		return s.Credential
	}
	return KeyFileOf(s.Path)
}

// KeyFileOf returns the file with the private key that belongs to the config at path, unless that names another one. It is
// also what systemd makes the service's credential of.
func KeyFileOf(path string) string { return strings.TrimSuffix(path, ".toml") + ".key" }

func (p *parser) logLevel(top *section) slog.Level {
	text, at, ok := top.text("log_level")
	if !ok {
		return slog.LevelInfo
	}
	levels := []string{"debug", "info", "warn", "error"}
	i := slices.Index(levels, text)
	if i < 0 {
		p.badChoice(at, text, levels)
		return slog.LevelInfo
	}
	return []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}[i]
}

func (p *parser) include(top *section) []string {
	items, ok := top.texts("include")
	if !ok {
		return nil
	}
	patterns := []string{}
	for _, it := range items {
		if err := checkPattern(it.text); err != nil {
			p.add(it.at, `write a pattern such as "ptthq.d/*.toml"`, "%s", err.Error())
			continue
		}
		patterns = append(patterns, it.text)
	}
	return patterns
}

func (p *parser) relayListen(top *section) []Listen {
	items, ok := top.texts("listen")
	if !ok {
		return []Listen{{UDP, fmt.Sprintf("[::]:%d", wire.DefaultPort)}}
	}
	if list, ok := top.values["listen"].([]any); ok && len(list) == 0 {
		p.add(top.spot("listen"), "write "+keysByName["listen"].Example, "a relay must listen somewhere")
	}
	var list []Listen
	for _, it := range items {
		if l, ok := p.listen(it.at, UDP, it.text, "the relay's listener"); ok {
			list = append(list, l)
		}
	}
	return list
}

// listen reads a listen address, and reports one that collides with another.
func (p *parser) listen(at spot, kind Kind, text, what string) (Listen, bool) {
	l, hint, err := parseListen(kind, text)
	if err != nil {
		p.add(at, hint, "%s", err.Error())
		return l, false
	}
	if other, taken := p.bound.First(l); taken {
		p.add(at, "two listeners cannot have the same address", "%v collides with %s at %v", l, other.what, source(other.at))
		return l, false
	}
	p.bound.Add(l, listener{what, at})
	return l, true
}

func (p *parser) metrics(s *section) Metrics {
	m := Metrics{AllowPublic: s.flag("allow_public", false), Hosts: p.hosts(s)}
	text, at, ok := s.required("listen")
	if !ok {
		return m
	}
	l, ok := p.listen(at, TCP, text, "the metrics' listener")
	switch {
	case !ok:
	case l.Kind != TCP:
		p.add(at, `for example "127.0.0.1:9380"`, "metrics are served over TCP")
	case !l.Loopback() && !m.AllowPublic:
		p.add(at, "listen on 127.0.0.1, or write allow_public = true", "%v can be reached by other hosts, and metrics have no authentication", l)
	default:
		m.Listen = l
	}
	return m
}

// hosts reads the names by which metrics may be asked for.
func (p *parser) hosts(s *section) (names []string) {
	items, _ := s.texts("hosts")
	for _, item := range items {
		if item.text == "" || strings.ContainsFunc(item.text, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(":/*", r) }) {
			p.add(item.at, `a name alone, for example "nas.example.com"`, "%q is no host name", item.text)
			continue
		}
		names = append(names, strings.ToLower(strings.TrimSuffix(item.text, ".")))
	}
	return names
}

func (p *parser) limits(s *section) {
	for _, k := range limitKeys {
		if _, there := s.values[k.name]; !there || !keysByName[s.full(k.name)].allows(s.role) {
			continue
		}
		at := s.spot(k.name)
		n, ok := k.read(s)
		if ok && (n < k.min || n > k.max) {
			p.add(at, fmt.Sprintf("it may be from %s to %s", k.text(k.min), k.text(k.max)), "%s is out of range", k.text(n))
			continue
		}
		if ok {
			k.set(&p.config.Limits, n)
		}
	}
	p.penaltyExempt(s)
}

func (p *parser) penaltyExempt(s *section) {
	const key = "auth_penalty_exempt"
	if !keysByName[s.full(key)].allows(s.role) {
		return
	}
	items, _ := s.texts(key)
	for _, i := range items {
		prefix, err := parseNetwork(i.text)
		if err != nil {
			p.add(i.at, `write an IP address or a network, such as "192.0.2.7" or "192.0.2.0/24"`, "%q is no address and no network", i.text)
			continue
		}
		p.config.PenaltyExempt = append(p.config.PenaltyExempt, prefix)
	}
}

// parseNetwork parses a network in CIDR notation, or an address, which is a network of one.
func parseNetwork(text string) (netip.Prefix, error) {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		if a := prefix.Addr(); a.Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(a.Unmap(), prefix.Bits()-96)
		}
		return prefix.Masked(), nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, errors.New("no network")
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// read returns the value of a limit in its base unit.
func (k limitKey) read(s *section) (int64, bool) {
	switch k.kind() {
	case typeInteger:
		n, _, ok := scalar[int64](s, k.name, "an integer")
		return n, ok
	case typeDuration:
		d := s.duration(k.name, -1, time.Duration(k.min), time.Duration(k.max))
		return int64(d), d >= 0
	}
	text, at, ok := s.text(k.name)
	if !ok {
		return 0, false
	}
	size, err := parseSize(text)
	if err != nil {
		s.add(at, `write a number with a unit, such as "64KiB", "256MiB" or "1GiB"`, "%s", err.Error())
	}
	return int64(size), err == nil
}

type publicKey struct {
	key ident.PublicKey
	at  spot
}

// publicKeys reads a public_key. Its value is never repeated in an error: it might be a private one.
func (p *parser) publicKeys(s *section) []publicKey {
	if _, there := s.values["public_key"]; !there {
		s.missing("public_key")
		return nil
	}
	items, _ := s.texts("public_key")
	if list, ok := s.values["public_key"].([]any); ok && len(list) == 0 {
		p.add(s.spot("public_key"), "", "is an empty list")
	}
	var keys []publicKey
	for _, it := range items {
		key, err := ident.ParsePublicKey(it.text)
		if err != nil {
			p.add(it.at, "write what `ptthqd pubkey` prints at that node", "is not a public key (44 characters of base64)")
			continue
		}
		keys = append(keys, publicKey{key, it.at})
	}
	return keys
}

// own reports a key that somebody else has.
func (p *parser) own(at spot, who string, key ident.PublicKey, hint string) {
	if first, ok := p.keys[key]; ok {
		p.add(at, hint, "%s has this key already, at %v", first.who, source(first.at))
		return
	}
	p.keys[key] = holder{who, at}
}

func (p *parser) peer(s *section) {
	peer := policy.Peer{Source: policy.Source{File: s.file, Line: s.at.value.line}}
	id := p.names(s, &peer)
	if text, at, ok := s.required("role"); ok {
		switch text {
		case "client", "server":
			peer.Role = policy.Role(text)
		case "relay":
			p.add(at, `write "client" or "server"`, "a relay is no peer of a relay")
		default:
			p.badChoice(at, text, []string{"client", "server"})
		}
	}
	for _, k := range p.publicKeys(s) {
		p.own(k.at, fmt.Sprintf("peer %q", id), k.key, "each peer has a key of its own, made with `ptthqd keygen`")
		peer.Keys = append(peer.Keys, k.key)
	}
	items, _ := s.texts("allowed_servers")
	if _, there := s.values["allowed_servers"]; there && peer.Role == policy.RoleServer {
		p.add(s.spotOfName("allowed_servers"), "", "belongs to a peer with the role client, and this is a server")
	}
	for _, it := range items {
		rule, err := policy.ParseRule(it.text)
		if err != nil {
			p.judge(it.at, err)
			continue
		}
		rule.Source = source(it.at)
		peer.Allowed = append(peer.Allowed, rule)
	}
	p.config.Peers = append(p.config.Peers, peer)
}

// names reads the id of a peer, and returns the first.
func (p *parser) names(s *section, peer *policy.Peer) (id string) {
	if _, there := s.values["id"]; !there {
		s.missing("id")
	}
	items, ok := s.texts("id")
	switch {
	case ok && len(items) == 0:
		p.add(s.spot("id"), "write "+keysByName["peers.id"].Example, "is empty")
	case len(items) > wire.MaxNames:
		p.add(s.spot("id"), "take out those by which nobody calls the peer any more", "%d names; %d are the most", len(items), wire.MaxNames)
	}
	for i, it := range items {
		if i == 0 {
			id = it.text
		}
		switch {
		case it.text == "":
			p.add(it.at, "write "+keysByName["peers.id"].Example, "is empty")
		case !p.checkID(it.at, it.text) || !p.once(it.at, "peer", it.text):
		case i == 0:
			peer.ID = it.text
		default:
			peer.Others = append(peer.Others, it.text)
		}
	}
	return id
}

func (p *parser) relay(s *section) {
	r := Relay{Source: policy.Source{File: s.file, Line: s.at.value.line}}
	if text, at, ok := s.required("address"); ok {
		address, hint, err := parseAddress(text)
		if err != nil {
			p.add(at, hint, "%s", err.Error())
		} else if p.once(at, "relay", address) {
			r.Address = address
		}
	}
	for _, k := range p.publicKeys(s) {
		r.Keys = append(r.Keys, k.key)
		p.own(k.at, fmt.Sprintf("relay %q", r.Address), k.key,
			"a relay keeps one link of each node, so list each relay once; each has a key of its own")
	}
	p.config.Relays = append(p.config.Relays, r)
}

// parseAddress reads the address of a relay: a host name or an IP address, and a port unless it is the usual one.
func parseAddress(text string) (address, hint string, err error) {
	const example = `for example "relay.example.com:30380"`
	host, port := text, strconv.Itoa(wire.DefaultPort)
	switch ip, err := netip.ParseAddr(text); {
	case err == nil:
		host = ip.String()
	case strings.HasSuffix(text, "]"):
	case strings.Contains(text, "://"):
		return "", example, errors.New("is a URL, not a host and a port")
	case strings.Contains(text, ":"):
		i := strings.LastIndexByte(text, ':')
		host, port = text[:i], text[i+1:]
		if strings.Contains(host, ":") && !strings.HasPrefix(host, "[") {
			return "", `an IPv6 address stands in brackets, for example "[2001:db8::1]:30380"`, fmt.Errorf("%q is not a host and a port", text)
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", "a port is a number from 1 to 65535, " + example, fmt.Errorf("%q is not a port", port)
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		host = strings.TrimSuffix(inner, "]")
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.IsUnspecified() || ip.IsMulticast() {
			return "", example, fmt.Errorf("%v is not the address of a host", ip)
		}
		return netip.AddrPortFrom(ip.Unmap(), uint16(n)).String(), "", nil
	}
	if !isHostName(host) {
		return "", example, fmt.Errorf("%q is neither a host name nor an IP address", host)
	}
	return fmt.Sprintf("%s:%d", strings.ToLower(host), n), "", nil
}

// isHostName checks labels as RFC 1123 section 2.1 has them, with the underscore that people use.
func isHostName(name string) bool {
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > 253 {
		return false
	}
	numeric := true
	for label := range strings.SplitSeq(name, ".") {
		bad := func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
		}
		if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") || strings.ContainsFunc(label, bad) {
			return false
		}
		_, err := strconv.ParseUint(label, 10, 64)
		numeric = numeric && err == nil
	}
	return !numeric // "10.0.0.300" is a mistyped address
}

func (p *parser) service(s *section) {
	service := policy.Service{
		Source:     policy.Source{File: s.file, Line: s.at.value.line},
		AllowLocal: s.flag("allow_local", false),
	}
	if name, at, ok := s.text("name"); ok {
		if err := policy.CheckServiceName(name); strings.ContainsAny(name, ":/") {
			p.add(at, `for example name = "ssh"`, `the name of a service has neither ":" nor "/" in it: %q`, name)
		} else if err != nil {
			p.judge(at, err)
		} else if p.once(at, "service", name) {
			service.Name = name
		}
	}
	if text, at, ok := s.required("target"); ok {
		target, err := policy.ParseServiceTarget(text)
		if err != nil {
			p.judge(at, err)
		}
		service.Target = target
	}
	clients, _ := s.texts("clients")
	for _, it := range clients {
		pattern, err := policy.ParsePattern(it.text)
		if err != nil {
			p.judge(it.at, err)
			continue
		}
		service.Clients = append(service.Clients, pattern)
	}
	p.config.Services = append(p.config.Services, service)
}

func (p *parser) mapping(s *section) {
	m := Mapping{
		Source:        policy.Source{File: s.file, Line: s.at.value.line},
		Enabled:       s.flag("enabled", true),
		AllowPublic:   s.flag("allow_public", false),
		ListenMode:    DefaultListenMode,
		OnRemove:      OnRemoveKeep,
		ResumeTimeout: s.duration("resume_timeout", p.config.ResumeTimeout, time.Second, maxResume),
	}
	name, nameAt, named := s.text("name")
	if text, at, ok := s.required("listen"); ok {
		m.Listen = p.mappingListen(at, text, name, m.Enabled)
	}
	if !named {
		name, nameAt = m.Listen.String(), s.spot("listen")
	}
	switch {
	case named && !isMappingName(name):
		p.add(nameAt, `for example name = "nas-ssh"`, "the name of a mapping has 1 to %d printable ASCII characters, without spaces or quotes", maxMappingName)
	case name != "" && p.once(nameAt, "mapping", name):
		m.Name = name
	}
	if text, at, ok := s.text("listen_group"); ok {
		m.ListenGroup = text
		switch {
		case text == "" || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == ':' || r == '/' || r > '~' }):
			p.add(at, `write its name or number, for example "database"`, "%q is no group", text)
		case m.Listen.Kind != Unix && m.Listen.Addr != "":
			p.add(s.spotOfName("listen_group"), "take it out", "only a Unix socket has a group, and this listens on %v", m.Listen)
		}
	}
	if text, at, ok := s.text("listen_mode"); ok {
		mode, err := strconv.ParseUint(text, 8, 32)
		if err != nil || mode > 0o777 {
			p.add(at, `write permissions in octal, for example "0660"`, "%q is not allowed here", text)
		}
		m.ListenMode = fs.FileMode(mode) & fs.ModePerm
		if !m.Listen.IsZero() && m.Listen.Kind != Unix {
			p.add(s.spotOfName("listen_mode"), "take it out", "only a Unix socket has permissions, and this listens on %v", m.Listen)
		}
	}
	if text, at, ok := s.required("server"); ok && p.checkID(at, text) {
		m.Server = text
	}
	if text, at, ok := s.required("target"); ok {
		target, err := policy.ParseTarget(text)
		if err != nil {
			p.judge(at, err)
		}
		m.Target = target
	}
	if text, at, ok := s.text("on_remove"); ok {
		if choices := []string{OnRemoveKeep, OnRemoveClose}; !slices.Contains(choices, text) {
			p.badChoice(at, text, choices)
		}
		m.OnRemove = text
	}
	p.config.Mappings = append(p.config.Mappings, m)
}

// mappingListen reads the listener of a mapping. One that is disabled is not bound, so it collides with nothing.
func (p *parser) mappingListen(at spot, text, name string, enabled bool) Listen {
	if !enabled {
		l, hint, err := parseListen(TCP, text)
		if err != nil {
			p.add(at, hint, "%s", err.Error())
		}
		return l
	}
	if name == "" {
		name = text
	}
	l, _ := p.listen(at, TCP, text, fmt.Sprintf("mapping %q", name))
	return l
}

const maxMappingName = 64

// isMappingName keeps names to what can stand in a log line and in a metric's label as it is.
func isMappingName(name string) bool {
	bad := func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"'`\\", r) }
	return name != "" && len(name) <= maxMappingName && !strings.ContainsFunc(name, bad)
}
