package ledger_test

import (
	"log/slog"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/ledger"
	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
	"ptthqd/test/testutil"
)

func newLedger() (*ledger.Ledger, *testutil.Log) {
	b := new(testutil.Log)
	return &ledger.Ledger{Role: "client", Logger: slog.New(slog.NewJSONHandler(b, nil))}, b
}

var info = session.Info{
	ID: "pnz2prfn", Mapping: "nas-ssh", Server: "nas", Source: "127.0.0.1:50000", Target: ":22",
	Relay: "relay.example.com:30380", Up: 10, Down: 20, Resumes: 1,
}

func TestLine(t *testing.T) {
	l, b := newLedger()
	l.Record(&session.Summary{Info: info, Status: wire.StatusOpen, Outcome: session.OutcomeClosed, Duration: time.Second})
	lines := b.Lines(t)
	if len(lines) != 1 {
		t.Fatalf("%d lines, want one: %v", len(lines), lines)
	}
	delete(lines[0], "time")
	want := map[string]any{
		"level": "INFO", "msg": "connection ended", "role": "client", "connection": "pnz2prfn", "mapping": "nas-ssh",
		"server": "nas", "source": "127.0.0.1:50000", "target": ":22", "relay": "relay.example.com:30380",
		"end": "closed", "code": 200.0, "duration": 1e9, "bytes_up": 10.0, "bytes_down": 20.0, "resumes": 1.0,
	}
	for key, value := range want {
		if lines[0][key] != value {
			t.Errorf("%s=%v, want %v", key, lines[0][key], value)
		}
	}
	if len(lines[0]) != len(want) {
		t.Errorf("the line has %v, want the keys of %v", lines[0], want)
	}
}

func TestLevels(t *testing.T) {
	for _, test := range []struct {
		end            session.Outcome
		level, message string
	}{
		{session.OutcomeClosed, "INFO", "connection ended"},
		{session.OutcomeResetByP1, "INFO", "connection ended"},
		{session.OutcomeResetByP5, "INFO", "connection ended"},
		{session.OutcomeStopped, "INFO", "connection ended"},
		{session.OutcomeRemoved, "INFO", "connection ended"},
		{session.OutcomeExpired, "WARN", "connection failed"},
		{session.OutcomeRevoked, "WARN", "connection failed"},
		{session.OutcomeRestarted, "WARN", "connection failed"},
		{session.OutcomeProtocol, "WARN", "connection failed"},
		{session.OutcomeRefused, "WARN", "connection refused"},
		{session.OutcomeUnattached, "WARN", "connection refused"},
	} {
		t.Run(string(test.end), func(t *testing.T) {
			l, b := newLedger()
			defer l.Close()
			l.Record(&session.Summary{Info: info, Outcome: test.end})
			if lines := b.Lines(t); len(lines) != 1 || lines[0]["level"] != test.level || lines[0]["msg"] != test.message {
				t.Errorf("logged %v, want one line %s %q", lines, test.level, test.message)
			}
		})
	}
}

func refused(target string) *session.Summary {
	i := info
	i.Target = target
	return &session.Summary{Info: i, Status: wire.StatusRefused, Text: "connection refused", Node: "nas", Outcome: session.OutcomeRefused}
}

func TestANightOfRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, b := newLedger()
		total := 0
		for end := time.Now().Add(8 * time.Hour); time.Now().Before(end); time.Sleep(3 * time.Second) {
			l.Record(refused(":22"))
			total++
		}
		l.Close()
		lines := b.Lines(t)
		if len(lines) > 20 {
			t.Errorf("%d lines for a night, want 20 at most", len(lines))
		}
		told := 0.0
		for i, line := range lines {
			if i == 0 {
				told++
				continue
			}
			told += line["more"].(float64)
		}
		if int(told) != total {
			t.Errorf("the lines tell of %v refusals, there were %d", told, total)
		}
		if got := l.Counts().Status[wire.StatusRefused]; int(got) != total {
			t.Errorf("%d were counted, want %d", got, total)
		}
	})
}

func TestUnlikeRefusalsAreToldApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, b := newLedger()
		defer l.Close()
		l.Record(refused(":22"))
		l.Record(refused(":23"))
		l.Record(refused(":22"))
		if n := len(b.Lines(t)); n != 2 {
			t.Errorf("%d lines, want 2", n)
		}
		time.Sleep(2 * time.Hour) // the window of :22 ends with one more, then one without
		l.Record(refused(":22"))
		if n := len(b.Lines(t)); n != 4 {
			t.Errorf("%d lines after two hours, want 4", n)
		}
	})
}

// A client that opens and closes as fast as it can does not fill the log, and takes no lines from others.
func TestConnectionsInALoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, b := newLedger()
		defer l.Close()
		record := func(client string) {
			l.Record(&session.Summary{Info: session.Info{Client: client}, Status: wire.StatusOpen, Outcome: session.OutcomeClosed})
		}
		for range 10_000 {
			record("mallory")
		}
		record("laptop")
		if n := len(b.Lines(t)); n != 2001 {
			t.Errorf("%d lines", n)
		}
		time.Sleep(time.Second)
		record("mallory")
		lines := b.Lines(t)
		if last := lines[len(lines)-1]; last["left_out"] != 8000.0 {
			t.Errorf("the last line is %v", last)
		}
		if n := l.Counts().Ends[session.OutcomeClosed]; n != 10_002 {
			t.Errorf("%d were counted", n)
		}
	})
}

func TestWhatStrangersMakeUpIsBounded(t *testing.T) {
	l, b := newLedger()
	for i := range 5000 {
		l.Record(refused(":" + strconv.Itoa(i)))
	}
	l.Close()
	if n := len(b.Lines(t)); n > 1100 {
		t.Errorf("%d lines for 5000 made-up targets, want about a thousand at most", n)
	}
}

func TestCounts(t *testing.T) {
	l, _ := newLedger()
	defer l.Close()
	l.Record(&session.Summary{Info: info, Status: wire.StatusOpen, Outcome: session.OutcomeClosed})
	l.Record(&session.Summary{Info: info, Status: wire.StatusOpen, Outcome: session.OutcomeExpired})
	c := l.Counts()
	if c.Status[wire.StatusOpen] != 2 || c.Ends[session.OutcomeExpired] != 1 || c.Up != 20 || c.Down != 40 || c.Resumes != 2 {
		t.Errorf("counted %+v", c)
	}
	if of := c.Mappings["nas-ssh"]; len(c.Mappings) != 1 || of.Status[wire.StatusOpen] != 2 || of.Up != 20 {
		t.Errorf("counted for the mappings %+v", c.Mappings)
	}
	c.Status[wire.StatusOpen] = 99
	if l.Counts().Status[wire.StatusOpen] != 2 {
		t.Error("the counts that were handed out are the ledger's own")
	}
}
