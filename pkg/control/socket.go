package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// SocketName is the name of the control socket in the runtime directory.
const SocketName = "control.sock"

// socketMode lets the group use the socket, whatever the umask is.
const socketMode = 0o660

// SocketPath returns the path of the control socket of the daemon that runs with a config: the
// explicit one, else the one in its runtime directory. It reads no file, so it works with a broken
// config.
func SocketPath(explicit, config string) string {
	if explicit != "" {
		return explicit
	}
	return filepath.Join(RuntimeDir(config), SocketName)
}

// RuntimeDir returns the directory for the sockets of the daemon that runs with a config: the
// service's own ($RUNTIME_DIRECTORY), else one by the path of the config:
//
//	/etc/ptthq.toml                      /run/ptthqd
//	/etc/ptthq/NAME.toml                 /run/ptthqd-NAME
//	$XDG_CONFIG_HOME/ptthq.toml          $XDG_RUNTIME_DIR/ptthqd
//	$XDG_CONFIG_HOME/ptthq/NAME.toml     $XDG_RUNTIME_DIR/ptthqd-NAME
//	any other                            ptthqd-NAME-HASH in $XDG_RUNTIME_DIR, root's in /run
//
// Without $XDG_RUNTIME_DIR, a directory of the user below the one for temporary files takes its
// place.
func RuntimeDir(config string) string {
	if dirs := os.Getenv("RUNTIME_DIRECTORY"); dirs != "" {
		first, _, _ := strings.Cut(dirs, ":")
		return first
	}
	path, err := filepath.Abs(config)
	if err != nil {
		path = filepath.Clean(config)
	}
	if name, ok := instance("/etc", path); ok {
		return filepath.Join("/run", "ptthqd"+name)
	}
	if home, err := os.UserConfigDir(); err == nil {
		if name, ok := instance(home, path); ok {
			return filepath.Join(userRuntimeDir(), "ptthqd"+name)
		}
	}
	parent := userRuntimeDir()
	if os.Geteuid() == 0 && os.Getenv("XDG_RUNTIME_DIR") == "" {
		parent = "/run"
	}
	sum := sha256.Sum256([]byte(path))
	name := strings.TrimSuffix(filepath.Base(path), ".toml")
	return filepath.Join(parent,
		"ptthqd-"+name[:min(len(name), 24)]+"-"+hex.EncodeToString(sum[:4]))
}

// instance reports whether path is ptthq.toml or ptthq/NAME.toml in dir. For the latter it returns
// "-NAME".
func instance(dir, path string) (name string, ok bool) {
	if path == filepath.Join(dir, "ptthq.toml") {
		return "", true
	}
	name, ok = strings.CutSuffix(filepath.Base(path), ".toml")
	if !ok || name == "" || filepath.Dir(path) != filepath.Join(dir, "ptthq") {
		return "", false
	}
	return "-" + name, true
}

func userRuntimeDir() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return dir
	}
	if uid := os.Geteuid(); uid > 0 {
		return filepath.Join(os.TempDir(), "ptthqd-"+strconv.Itoa(uid))
	}
	return os.TempDir()
}

// inTemporary reports whether a socket is below the directory that replaces $XDG_RUNTIME_DIR.
func inTemporary(socket string) bool {
	return os.Geteuid() > 0 &&
		strings.HasPrefix(socket,
			filepath.Join(os.TempDir(),
				"ptthqd-"+strconv.Itoa(os.Geteuid()))+string(filepath.Separator))
}

// UnitName returns the systemd unit that runs with a config; "" if there is none.
func UnitName(config string) string {
	path, err := filepath.Abs(config)
	if err != nil {
		return ""
	}
	switch name, ok := instance("/etc", path); {
	case !ok:
		return ""
	case name == "":
		return "ptthqd"
	default:
		return "ptthqd@" + name[1:]
	}
}

// maxSocketPath is the longest path of a socket in bytes. macOS has the least of the systems.
const maxSocketPath = 103

// Listen binds the control socket at path, and lets its group use it. It replaces a socket that a
// process left behind, but none that is in use. It makes a missing directory, for this user alone.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("control socket %s: the path has %d bytes, a socket's can have "+
			"%d; choose a shorter one with --socket", path, len(path), maxSocketPath)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the control socket: %w; choose another "+
			"place with --socket", err)
	}
	if err := trustDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("control socket %s: %w; choose another place with --socket, or "+
			"set XDG_RUNTIME_DIR", path, err)
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w; choose another place with --socket", err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(fmt.Errorf("control socket: %w", err), listener.Close())
	}
	return listener, nil
}

// removeStale removes a socket that is not in use. It never removes anything else.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("control socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket &&
		info.Mode().Type() != fs.ModeIrregular: // Windows has no ModeSocket
		return fmt.Errorf("control socket %s: there is a file that is no socket; move it away",
			path)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if conn, err := new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
		_ = conn.Close()
		return fmt.Errorf("control socket %s: another ptthqd is running with it; stop that "+
			"first, or choose another place with --socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}
