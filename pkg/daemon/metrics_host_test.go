package daemon_test

import (
	"fmt"
	"net/http"
	"os"
	"testing"

	"ptthqd/test/testutil"
)

// A web page whose name leads to this host reads no metrics through a browser.
func TestMetricsForAnotherHost(t *testing.T) {
	s := newSite(t)
	s.key("relay")
	port := testutil.FreePort(t)
	s.write("relay.toml", relayConfig(testutil.FreePort(t), fmt.Sprintf("[metrics]\nlisten = \"127.0.0.1:%d\"\nhosts = [\"NAS.example.com\"]\n", port)))
	s.start("relay")
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for host, code := range map[string]int{
		fmt.Sprintf("127.0.0.1:%d", port): http.StatusOK,
		"localhost":                       http.StatusOK,
		"[::1]:80":                        http.StatusOK,
		"[::1]":                           http.StatusOK,
		own + ":9380":                     http.StatusOK,
		"nas.example.com.:9380":           http.StatusOK,
		"evil.example":                    http.StatusMisdirectedRequest,
		"evil.example:9380":               http.StatusMisdirectedRequest,
		"127.0.0.1.evil.example":          http.StatusMisdirectedRequest,
	} {
		for _, path := range []string{"/metrics", "/healthz", "/readyz"} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host, r.Close = host, true
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = answer.Body.Close()
			if answer.StatusCode != code {
				t.Errorf("%s of %s: %d", path, host, answer.StatusCode)
			}
		}
	}
}
