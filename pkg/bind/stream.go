package bind

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"ptthqd/pkg/config"
)

// backlog is how many connections may wait to be accepted. Go asks for somaxconn, but for only 128
// where /proc/sys cannot be read (ProcSubset=pid).
const backlog = 4096

// A Listener is a listener of connections: one socket, or two for the loopback of both families.
type Listener struct {
	Sockets []Socket[net.Listener]
	Path    string // the file of a Unix socket; otherwise empty
}

// Listen binds a TCP, Unix or systemd listener. The mode is for the file of a Unix socket.
func (b *Binder) Listen(
	ctx context.Context, at config.Listen, mode fs.FileMode,
) (*Listener, error) {
	l := new(Listener)
	var err error
	switch at.Kind {
	case config.TCP:
		l.Sockets, err = each(at, b.Streams, func(addr netip.AddrPort) (net.Listener, error) {
			return new(net.ListenConfig).Listen(ctx, network("tcp", addr), addr.String())
		})
	case config.Unix:
		err = b.listenUnix(ctx, l, at, mode)
	case config.Systemd:
		l.Sockets, err = handedOver(at, b.Streams, "listening socket", "ListenStream=")
	case config.UDP:
		panic("internal error: a listener of connections on UDP")
	}
	if err != nil {
		l.Close(false)
		return nil, err
	}
	for _, s := range l.Sockets {
		deepen(s.Socket)
	}
	return l, nil
}

// Close closes the sockets. It removes the file of a Unix socket, unless keepFile says that
// somebody else holds the socket too.
func (l *Listener) Close(keepFile bool) {
	if l.Path != "" && len(l.Sockets) > 0 && !keepFile {
		_ = os.Remove(l.Path)
	}
	for _, s := range l.Sockets {
		_ = s.Socket.Close()
	}
}

// SetMode changes the mode of a Unix socket's file. It does nothing for other listeners.
func (l *Listener) SetMode(mode fs.FileMode) error {
	if l.Path == "" {
		return nil
	}
	if err := os.Chmod(l.Path, mode); err != nil {
		return fmt.Errorf("set the mode of the socket: %w", err)
	}
	return nil
}

// SetGroup changes the group of a Unix socket's file; "" is the process's own group. It does
// nothing for other listeners.
func (l *Listener) SetGroup(group string) error {
	if l.Path == "" {
		return nil
	}
	id, err := l.groupID(group)
	if err != nil {
		return err
	}
	if err := os.Lchown(l.Path, -1, id); err != nil {
		return &Error{
			Place: l.Path,
			Err: fmt.Errorf("set the group of the socket to %s: %w",
				cmp.Or(group, "its own"), errors.Unwrap(err)),
			Hint: "the daemon must be a member of the group: SupplementaryGroups= and PrivateUsers=no " +
				"in a drop-in of its unit, then restart it",
		}
	}
	return nil
}

// groupID returns the ID of a group that is given by name or number.
func (l *Listener) groupID(group string) (int, error) {
	if group == "" {
		return os.Getegid(), nil
	}
	if id, err := strconv.Atoi(group); err == nil {
		return id, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, &Error{Place: l.Path, Err: err, Hint: "make the group, or name another as listen_group"}
	}
	id, err := strconv.Atoi(g.Gid)
	if err != nil {
		return 0, &Error{Place: l.Path, Err: err, Final: true}
	}
	return id, nil
}

func (b *Binder) listenUnix(
	ctx context.Context, l *Listener, at config.Listen, mode fs.FileMode,
) error {
	if b.Directory == "" {
		return &Error{
			Place: at.String(), Err: errors.New("there is no runtime directory"), Final: true,
			Hint: "let the service manager make one (RuntimeDirectory=), or set XDG_RUNTIME_DIR; then restart",
		}
	}
	path := filepath.Join(b.Directory, at.Addr)
	if s, ok := first(b.Streams, at.String()); ok {
		if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
			l.Path, l.Sockets = path, []Socket[net.Listener]{{s, at.String()}}
			_ = os.Lchown(path, -1, os.Getegid()) // the old config may have had a listen_group
			return l.SetMode(mode)
		}
		_ = s.Close() // the file is gone, so nobody can reach the socket
	}
	// Mostly the service manager, or the control socket, has made the directory.
	if err := os.MkdirAll(b.Directory, 0o700); err != nil {
		return &Error{
			Place: at.String(), Err: fmt.Errorf("make the runtime directory: %w", err),
			Hint: "set XDG_RUNTIME_DIR to another place",
		}
	}
	if err := removeStale(ctx, path); err != nil {
		return err
	}
	lc := net.ListenConfig{Control: bornWithMode(mode)}
	s, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return newError(at.Kind, path, err)
	}
	if u, ok := s.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // Listener.Close removes the file
	}
	l.Path, l.Sockets = path, []Socket[net.Listener]{{s, at.String()}}
	return l.SetMode(mode)
}

// removeStale removes the file of a Unix socket on which no process listens any more. It returns an
// error if the file is something else or in use.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return &Error{Place: path, Err: err}
	}
	if info.Mode().Type() != fs.ModeSocket {
		err = errors.New("there is a file that is no socket")
		return &Error{Place: path, Err: err, Hint: "move it away"}
	}
	conn, err := new(net.Dialer).DialContext(ctx, probe(), path)
	switch {
	case err == nil:
		_ = conn.Close()
		fallthrough
	case errors.Is(err, syscall.EPROTOTYPE):
		return &Error{
			Place: path, Err: errors.New("another process listens there"),
			Hint: "stop it, or choose another name",
		}
	case !errors.Is(err, syscall.ECONNREFUSED):
		err = fmt.Errorf("can't tell whether another process listens there: %w", err)
		return &Error{Place: path, Err: err}
	}
	if err := os.Remove(path); err != nil {
		return &Error{Place: path, Err: err}
	}
	return nil
}

// probe returns the network by which a dial finds out whether a process listens on a Unix socket. A
// datagram socket fails with EPROTOTYPE then, and the listener sees no connection.
func probe() string {
	if runtime.GOOS == "windows" { // no Unix datagrams
		return "unix"
	}
	return "unixgram"
}
