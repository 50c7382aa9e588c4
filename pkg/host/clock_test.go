package host_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ptthqd/pkg/host"
)

func TestClockTrouble(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ptthq.key")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, c := range []struct {
		name          string
		now, written  time.Time
		says          string
		withoutAnyOne bool
	}{
		{"well", now, now.Add(-time.Hour), "", false},
		{"another host's clock", now, now.Add(10 * time.Minute), "", false},
		{
			"never set", time.Date(1970, 1, 1, 0, 5, 0, 0, time.UTC), now,
			"it shows 1970-01-01 00:05:00", false,
		},
		{"behind", now, now.AddDate(0, 0, 3), "is behind", false},
		{"no file", now, now, "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.Chtimes(file, c.written, c.written); err != nil {
				t.Fatal(err)
			}
			name := file
			if c.withoutAnyOne {
				name += ".gone"
			}
			got := host.ClockTrouble(c.now, name)
			if (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
				t.Errorf("%q, want %q", got, c.says)
			}
		})
	}
}
