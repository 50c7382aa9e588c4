package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"runtime"
	"syscall"
)

// Client sends requests to the daemon behind a control socket. Its errors are for people: they say
// what to do if no daemon runs. It keeps no connection, and may be used from several goroutines.
type Client struct {
	Socket string // path of the socket
	Config string // path of the daemon's config, for hints; may be empty
}

// ErrNotRunning is what an error wraps if no daemon answers at the socket.
var ErrNotRunning = errors.New("no ptthqd is running")

// maxAnswer bounds an answer, in bytes. A status with 65,536 connections has about 30 MB.
const maxAnswer = 256 << 20

// Status returns the state of the daemon.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	status := new(Status)
	return status, c.ask(ctx, http.MethodGet, PathStatus, nil, status)
}

// RawStatus returns the answer that Status decodes.
func (c *Client) RawStatus(ctx context.Context) ([]byte, error) {
	code, body, err := c.exchange(ctx, http.MethodGet, PathStatus, nil)
	if err == nil && code != http.StatusOK {
		err = unexpected(code, body)
	}
	return body, err
}

// Reload makes the daemon read its config again, waits, and returns how that went. A bad config is
// no error of Reload: see [Reload.OK].
func (c *Client) Reload(ctx context.Context) (*Reload, error) {
	code, body, err := c.exchange(ctx, http.MethodPost, PathReload, nil)
	if err != nil {
		return nil, err
	}
	done := new(Reload)
	if err := json.Unmarshal(body, done); err != nil || !done.OK && done.Error == "" ||
		done.At.IsZero() {
		return nil, unexpected(code, body)
	}
	return done, nil
}

// Explain returns the rule of the daemon that decides.
func (c *Client) Explain(ctx context.Context, q Question) (*Explanation, error) {
	values := url.Values{"client": {q.Client}, "server": {q.Server}, "target": {q.Target}}
	explanation := new(Explanation)
	return explanation, c.ask(ctx, http.MethodGet, PathExplain+"?"+values.Encode(), nil,
		explanation)
}

// Trace makes the daemon test the way of a connection. If something is wrong, that takes seconds.
func (c *Client) Trace(ctx context.Context, q TraceQuestion) (*Trace, error) {
	values := url.Values{}
	if q.Mapping != "" {
		values.Set("mapping", q.Mapping)
	}
	if q.Target != "" {
		values.Set("target", q.Target)
	}
	trace := new(Trace)
	return trace, c.ask(ctx, http.MethodPost, PathTrace+"?"+values.Encode(), nil, trace)
}

// LogLevel returns the level in force.
func (c *Client) LogLevel(ctx context.Context) (LogLevel, error) {
	var now LogLevel
	err := c.ask(ctx, http.MethodGet, PathLogLevel, nil, &now)
	return now, err
}

// SetLogLevel changes the level, and returns the level in force.
func (c *Client) SetLogLevel(ctx context.Context, level string) (LogLevel, error) {
	var now LogLevel
	err := c.ask(ctx, http.MethodPut, PathLogLevel, LogLevel{Level: level}, &now)
	return now, err
}

// ask sends a request and decodes the body of a 200.
func (c *Client) ask(ctx context.Context, method, path string, body, into any) error {
	code, got, err := c.exchange(ctx, method, path, body)
	if err != nil {
		return err
	}
	if code != http.StatusOK {
		return unexpected(code, got)
	}
	if err := json.Unmarshal(got, into); err != nil {
		return fmt.Errorf("understand the daemon's answer: %w", err)
	}
	return nil
}

// unexpected turns any other answer into an error.
func unexpected(code int, body []byte) error {
	refusal := new(Error)
	if err := json.Unmarshal(body, refusal); err == nil && refusal.Message != "" {
		refusal.forbidden = code == http.StatusForbidden
		return refusal
	}
	return fmt.Errorf("the daemon answers %d %s; is it of another version than this command?", code,
		http.StatusText(code))
}

// exchange sends a request and returns the answer.
func (c *Client) exchange(
	ctx context.Context, method, path string, body any,
) (code int, got []byte, err error) {
	if inTemporary(c.Socket) {
		if err := trustDir(filepath.Dir(c.Socket)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, nil, fmt.Errorf("what answers at %s may be no ptthqd of yours: %w", c.Socket,
				err)
		}
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.Socket)
		},
		DisableKeepAlives: true,
	}
	var sent io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		sent = bytes.NewReader(b)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://ptthqd"+path, sent)
	if err != nil {
		return 0, nil, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return 0, nil, c.explain(err)
	}
	defer response.Body.Close()
	got, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return 0, nil, fmt.Errorf("read the daemon's answer: %w", err)
	}
	return response.StatusCode, got, nil
}

// explain turns a failed connection into an error that says what to do.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nobody answers at %s; %s", ErrNotRunning, c.Socket, c.startHint())
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("you may not use %s; members of the group ptthqd may (`sudo usermod "+
			"-aG ptthqd $USER`, then log in again), and root", c.Socket)
	}
	return fmt.Errorf("ask the daemon at %s: %w", c.Socket, err)
}

// startHint says how to start the daemon of c.Config.
func (c *Client) startHint() string {
	if unit := UnitName(c.Config); unit != "" && runtime.GOOS == "linux" {
		return fmt.Sprintf("`systemctl start %s` starts it, `systemctl status %s` says why it "+
			"doesn't run", unit, unit)
	}
	if c.Config == "" {
		return "`ptthqd -c FILE` starts it"
	}
	return fmt.Sprintf("`ptthqd -c %s` starts it; if it runs with another config or socket, name "+
		"that with -c or --socket", c.Config)
}
