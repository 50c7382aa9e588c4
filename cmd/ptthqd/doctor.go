package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
	"ptthqd/pkg/host"
	"ptthqd/pkg/ident"
)

func newDoctorCommand() *cobra.Command {
	d := new(doctor)
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what is wrong, and say what mends it",
		Long: `Look at everything that has to be well for this node to do its work, from the config's text to
the target at the other end, and say for each thing that is not what mends it.

The way to each relay is tried with a real handshake that stops before it becomes a link, so the running
daemon is not disturbed. A running client has the way of each mapping tried to its end, with
the time of each hop: the target sees a connection that is opened and closed. A server tries its targets.

Exit codes: 0 nothing fails (there may be warnings), 1 something does, 78 a fault in the config's text.`,
		Example: `  ptthqd doctor
  ptthqd doctor -c /etc/ptthq/office.toml --no-targets
  ptthqd doctor --json | jq '.checks[] | select(.result == "fail")'`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.examine(cmd.Context())
			if asJSON {
				body, err := json.MarshalIndent(d.report(), "", "  ")
				if err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), string(body))
			} else {
				d.print(cmd.OutOrStdout())
			}
			if code := d.code(); code != 0 {
				return &exitError{code, nil} // all has been said
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&d.noTargets, "no-targets", false, "make no connections to targets")
	socketFlag(cmd, &d.socket)
	return cmd
}

// The results of a check.
const (
	isOK      = "ok"
	isNote    = "note" // nothing to be mended, and good to know
	isSkipped = "skip" // it couldn't be made
	isWarning = "warn" // it works, and not as it should
	isFailure = "fail"
)

// finding is the result of one check.
type finding struct {
	Name    string          `json:"check"`             // what: config, key, relay, …
	Subject string          `json:"subject,omitempty"` // which of them: a relay's address, a mapping's name
	Result  string          `json:"result"`
	Detail  string          `json:"detail"`           // what was found
	Remedy  string          `json:"remedy,omitempty"` // what mends it
	Took    control.Seconds `json:"took,omitzero"`
	Hops    []control.Hop   `json:"hops,omitempty"` // of a mapping's or service's trace
}

// report is the answer for programs (--json).
type report struct {
	OK       bool      `json:"ok"` // nothing fails
	Failures int       `json:"failures"`
	Warnings int       `json:"warnings"`
	Checks   []finding `json:"checks"`
}

// doctor examines a node.
type doctor struct {
	socket    string // by --socket
	noTargets bool

	unit       serviceUnit
	keyMissing bool // there is no key file
	stopped    bool // the unit is there, and its daemon doesn't run

	config *config.Config    // nil if it can't be read
	key    *ident.PrivateKey // nil if it can't be read
	status *control.Status   // of the running daemon; nil if there is none to ask
	daemon *control.Client

	checks []finding
	faulty bool // the config's text is
}

// examine makes all checks, causes before their effects.
func (d *doctor) examine(ctx context.Context) {
	d.daemon, d.unit = daemonAt(d.socket), unitOf(configPath)
	status, err := d.daemon.Status(ctx)
	if err == nil {
		d.status = status
	}
	d.examineConfig()
	d.examineKey()
	if d.config != nil {
		d.examineClock()
		d.examineService(ctx)
	}
	d.examineDaemon(err)
	d.examineBuffers()
	if d.config == nil {
		return
	}
	switch d.config.Role {
	case config.RoleClient:
		d.examineRelays(ctx)
		d.examineMappings(ctx)
	case config.RoleServer:
		d.examineRelays(ctx)
		d.examineTargets(ctx)
	case config.RoleRelay:
		d.examineListeners(ctx)
	}
}

func (d *doctor) add(c finding) { d.checks = append(d.checks, c) }

func (d *doctor) examineConfig() {
	c, err := config.Load(configPath)
	if faults, ok := errors.AsType[config.Errors](err); ok {
		d.faulty = true
		for _, f := range faults {
			d.add(finding{
				Name: "config", Subject: fmt.Sprintf("%s:%d:%d", f.File, f.Line, f.Column),
				Result: isFailure, Detail: f.Key + ": " + f.Message, Remedy: f.Hint,
			})
		}
		return
	}
	if err != nil {
		detail, remedy, _ := strings.Cut(err.Error(), "; ")
		d.add(finding{Name: "config", Result: isFailure, Detail: detail, Remedy: remedy})
		return
	}
	d.config = c
	d.add(finding{Name: "config", Subject: c.Path, Result: isOK, Detail: outline(c)})
	for _, w := range c.Warnings() {
		d.add(finding{
			Name: "config", Subject: fmt.Sprintf("%s:%d", w.File, w.Line),
			Result: isWarning, Detail: w.Key + ": " + w.Message, Remedy: w.Hint,
		})
	}
}

// examineKey checks the key file. A plain user can't read the key of the service, and need not.
func (d *doctor) examineKey() {
	if d.config == nil {
		return
	}
	path := d.config.PrivateKeyFile
	key, err := ident.LoadPrivateKey(path)
	switch {
	case err == nil:
		d.key = &key
		d.add(finding{
			Name: "key", Subject: path, Result: isOK,
			Detail: "public key " + key.Public().String(),
		})
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 &&
		(d.status != nil || d.unit.name != "" && !d.unit.user):
		d.add(finding{
			Name: "key", Subject: path, Result: isSkipped,
			Detail: "only root may read the key of the service", Remedy: "`sudo ptthqd doctor` sees more",
		})
	default:
		d.keyMissing = errors.Is(err, fs.ErrNotExist)
		d.add(finding{Name: "key", Subject: path, Result: isFailure, Detail: err.Error()}) // with its remedy
	}
}

func (d *doctor) examineClock() {
	if trouble := host.ClockTrouble(time.Now(),
		append(slices.Clone(d.config.Files), d.config.PrivateKeyFile)...); trouble != "" {
		d.add(finding{Name: "clock", Result: isFailure, Detail: trouble, Remedy: host.ClockRemedy})
		return
	}
	d.add(finding{Name: "clock", Result: isOK, Detail: time.Now().Format(time.RFC3339)})
}

// examineDaemon checks the running daemon, and whether its config is that in the files.
func (d *doctor) examineDaemon(err error) {
	if err != nil && d.stopped {
		d.add(finding{
			Name: "daemon", Subject: d.daemon.Socket, Result: isSkipped,
			Detail: "it doesn't run; see the service above",
		})
		return
	}
	if err != nil {
		detail, remedy, _ := strings.Cut(err.Error(), "; ")
		d.add(finding{
			Name: "daemon", Subject: d.daemon.Socket, Result: isFailure, Detail: detail,
			Remedy: remedy,
		})
		return
	}
	s := d.status
	c := finding{
		Name: "daemon", Subject: d.daemon.Socket, Result: isOK,
		Detail: fmt.Sprintf("%s for %s, pid %d, version %s", s.State, span(time.Duration(s.Uptime)),
			s.PID, s.Version),
	}
	if s.State != "running" {
		c.Result = isWarning
	}
	d.add(c)
	fault := func(result, detail, remedy string) {
		d.add(finding{
			Name: "daemon", Subject: d.daemon.Socket, Result: result, Detail: detail,
			Remedy: remedy,
		})
	}
	switch r := s.Config.Reload; {
	case r != nil && !r.OK:
		fault(isFailure, "the config in the file is not in force: "+r.Error,
			"mend the file; where only a restart helps: "+d.unit.restart())
	case d.config != nil && s.Config.Hash != d.config.Hash:
		fault(isFailure, "it runs by another config than the file has",
			"`ptthqd reload`; if this is another daemon's socket, name the right one with "+
				"--socket or -c")
	}
	if d.key != nil && s.PublicKey != d.key.Public().String() {
		fault(isFailure, fmt.Sprintf("it has another key than the file: %s", s.PublicKey),
			"restart it, so that it takes the key in the file: "+d.unit.restart())
	}
	version, commit := buildOf()
	if now := fmt.Sprintf("%s (%s)", version, commit); s.Version != now {
		fault(isNote, fmt.Sprintf("it is another version than this program, which is %s", now),
			"a restart brings the new one into force")
	}
	const few = 4096
	if n := s.Process.FilesLimit; n > 0 && n < few {
		fault(isWarning, fmt.Sprintf("it may have %d files open, and each connection takes one", n),
			"raise LimitNOFILE= of the service, or ulimit -n")
	}
}

// wantedBuffer is the size of a UDP socket's buffers, each way, for which pkg/carrier asks.
const wantedBuffer = 8 << 20

// examineBuffers checks the buffers of the daemon's sockets. Without a daemon the probes of relays
// report theirs.
func (d *doctor) examineBuffers() {
	if d.status == nil {
		return
	}
	seen := func(subject string, bytes int) {
		if bytes > 0 {
			d.add(bufferCheck(subject, bytes))
		}
	}
	for _, l := range d.status.Listeners {
		seen(l.Listen, l.ReceiveBuffer)
	}
	for _, l := range d.status.Links {
		if l.Socket != nil {
			seen(l.Relay, l.Socket.ReceiveBuffer)
		}
	}
}

func bufferCheck(subject string, bytes int) finding {
	c := finding{
		Name: "buffer", Subject: subject, Result: isOK,
		Detail: fmt.Sprintf("UDP receive buffer of %s", size(uint64(bytes))),
	}
	if bytes < wantedBuffer {
		c.Result = isWarning
		c.Detail += fmt.Sprintf(", smaller than the %s that fast links need: packets are lost in "+
			"bursts", size(wantedBuffer))
		c.Remedy = "`sysctl -w net.core.rmem_max=16777216 net.core.wmem_max=16777216`, and the " +
			"same in /etc/sysctl.d; then restart the daemon. A relay can use ptthqd.socket " +
			"instead"
	}
	return c
}

// at makes checks at the same time, and adds their findings in order.
func (d *doctor) at(n int, examine func(i int) []finding) {
	found := make([][]finding, n)
	var work sync.WaitGroup
	places := make(chan struct{}, 8)
	for i := range n {
		work.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			found[i] = examine(i)
		})
	}
	work.Wait()
	d.checks = append(d.checks, slices.Concat(found...)...)
}

func (d *doctor) report() report {
	r := report{Checks: d.checks}
	for _, c := range d.checks {
		switch c.Result {
		case isFailure:
			r.Failures++
		case isWarning:
			r.Warnings++
		}
	}
	r.OK = r.Failures == 0
	return r
}

func (d *doctor) code() int {
	switch r := d.report(); {
	case d.faulty:
		return exitConfig
	case !r.OK:
		return exitFailed
	}
	return 0
}

// print writes the findings for people.
func (d *doctor) print(w io.Writer) {
	w = cleanWriter{w}
	for _, c := range d.checks {
		mark := map[string]string{
			isOK: "ok", isNote: "note", isSkipped: "skip", isWarning: "WARN",
			isFailure: "FAIL",
		}[c.Result]
		fmt.Fprintf(w, "%-4s  %-9s %s\n", mark, c.Name,
			strings.TrimPrefix(c.Subject+": "+c.Detail, ": "))
		if c.Remedy != "" {
			fmt.Fprintf(w, "      %-9s > %s\n", "", c.Remedy)
		}
	}
	switch r := d.report(); {
	case r.Failures+r.Warnings == 0:
		fmt.Fprintln(w, "\nNothing is wrong.")
	default:
		fmt.Fprintf(w, "\n%s, %s.\n", count(r.Failures, "failure"), count(r.Warnings, "warning"))
	}
}
