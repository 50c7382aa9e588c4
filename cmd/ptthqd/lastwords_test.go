package main

import (
	"os"
	"path/filepath"
	"testing"
)

// An unread is a stderr that nobody reads.
type unread struct{ end chan struct{} }

func (u unread) Write(p []byte) (int, error) {
	<-u.end
	return len(p), nil
}

// A daemon that can't run ends also where nobody reads why.
func TestLastWordsThatNobodyReads(t *testing.T) {
	config := filepath.Join(t.TempDir(), "bad.toml")
	if err := os.WriteFile(config, []byte("lisen = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	stderr := unread{make(chan struct{})}
	defer close(stderr.end)
	if code := execute([]string{"-c", config}, nil, stderr, stderr); code != exitConfig {
		t.Errorf("exit code %d", code)
	}
}
