//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ptthqd/test/testutil"
)

// QLOGDIR has each connection write a qlog; where it can't be written, the daemon says so and goes on.
func TestQlog(t *testing.T) {
	t.Parallel()
	w := newWorld(t, endServer)
	dir := t.TempDir()
	notThere := filepath.Join(w.path("laptop", ".key"), "qlogs") // below a file
	for node, qlogs := range map[string]string{"relay": filepath.Join(dir, "made"), "nas": dir, "laptop": notThere} {
		w.prefix[node] = []string{"env", "QLOGDIR=" + qlogs}
	}
	w.all()
	w.procs["laptop"].says(t, "ERROR no qlogs: nothing can be written to the directory of QLOGDIR")
	w.procs["relay"].says(t, "WARN +qlogs are written")
	w.procs["nas"].stop(t)
	w.procs["relay"].stop(t)
	for pattern, most := range map[string]int{filepath.Join(dir, "made", "*_server.sqlog"): 2, filepath.Join(dir, "*_client.sqlog"): 1} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) < 1 || len(files) > most+1 {
			t.Errorf("%s: %v, %v", pattern, files, err)
			continue
		}
		text, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(text, []byte("packet_sent")) {
			t.Errorf("%s has no packets", files[0])
		}
		for record := range bytes.SplitSeq(text, []byte{0x1e}) {
			if record = bytes.TrimSpace(record); len(record) > 0 && !json.Valid(record) {
				t.Errorf("%s: %s", files[0], record)
				break
			}
		}
		if bytes.Contains(text, []byte("hello")) {
			t.Errorf("%s has what was forwarded", files[0])
		}
	}
}

// Profiles are at the control socket, and nowhere else.
func TestProfiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t, endServer)
	port := testutil.FreePort(t)
	w.extra["relay"] = fmt.Sprintf("[metrics]\nlisten = \"127.0.0.1:%d\"\n", port)
	w.writeConfigs()
	w.start("relay")
	socket := filepath.Join(w.path("relay", ".run"), "control.sock")
	get := func(network, address, path string) (int, string) {
		t.Helper()
		c, err := net.Dial(network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: ptthqd\r\nConnection: close\r\n\r\n", path)
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = answer.Body.Close() }()
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(body)
	}
	for path, has := range map[string]string{
		"/debug/pprof/goroutine?debug=2": "ptthqd/pkg/daemon",
		"/debug/pprof/heap?debug=1":      "heap profile",
		"/debug/pprof/profile?seconds=1": "",
		"/debug/pprof/cmdline":           "ptthqd",
		"/debug/pprof/mutex?debug=1":     "",
	} {
		if code, body := get("unix", socket, path); code != http.StatusOK || len(body) == 0 || !strings.Contains(body, has) {
			t.Errorf("%s: %d, %d bytes without %q", path, code, len(body), has)
		}
	}
	answer, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/heap", port))
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	if answer.StatusCode != http.StatusNotFound {
		t.Errorf("profiles are served beside the metrics: %d", answer.StatusCode)
	}
}
