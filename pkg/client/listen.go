package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"ptthqd/pkg/config"
)

// backlog is how many connections may wait to be accepted. Go asks for
// somaxconn, but where /proc/sys can't be read (ProcSubset=pid) for 128 only.
const backlog = 4096

// A listener is a place where P1 connects, and the mapping that it leads to at
// the moment. It holds one socket, or two for the loopback of both families.
type listener struct {
	at      config.Listen
	path    string // the file of a Unix socket
	sockets []socket
	mapping atomic.Pointer[config.Mapping]
	gate    gate // the connections through this listener

	cut     chan struct{} // closed when its connections are to end with it
	stop    context.CancelFunc
	accepts sync.WaitGroup // the accept loops
}

// A socket is one of a listener's, under the name by which it can be inherited:
// "127.0.0.1:2200", "unix:NAME", "systemd:NAME".
type socket struct {
	net.Listener
	name  string
	probe chan chan struct{} // what is in it, the accept loop closes; see Client.Alive
}

func newSocket(l net.Listener, name string) socket {
	return socket{l, name, make(chan chan struct{}, 1)}
}

// A binder binds listeners: anew, or from what the process has inherited.
type binder struct {
	directory string // of Unix sockets
	inherit   func(name string) []net.Listener
}

// bind makes the listener of a mapping.
func (b *binder) bind(ctx context.Context, m *config.Mapping) (*listener, error) {
	l := &listener{at: m.Listen, cut: make(chan struct{})}
	l.mapping.Store(m)
	var err error
	switch m.Listen.Kind {
	case config.TCP:
		err = b.bindTCP(ctx, l)
	case config.Unix:
		err = b.bindUnix(ctx, l, m.ListenMode)
	case config.Systemd:
		err = b.bindSystemd(l)
	case config.UDP:
		panic("internal error: a mapping that listens on UDP")
	}
	if err != nil {
		l.close(false)
		return nil, fmt.Errorf("mapping %s: %w", m.Name, err)
	}
	for _, s := range l.sockets {
		deepen(s.Listener)
	}
	return l, nil
}

// take moves inherited sockets of a name into l.
func (b *binder) take(l *listener, name string) bool {
	if b.inherit == nil {
		return false
	}
	inherited := b.inherit(name)
	for _, s := range inherited {
		l.sockets = append(l.sockets, newSocket(s, name))
	}
	return len(inherited) > 0
}

func (b *binder) bindTCP(ctx context.Context, l *listener) error {
	var missing error // a family of the loopback that this host doesn't have
	addrs := l.at.Addrs()
	for _, addr := range addrs {
		if b.take(l, addr.String()) {
			continue
		}
		s, err := new(net.ListenConfig).Listen(ctx, network(addr), addr.String())
		switch {
		case err == nil:
			l.sockets = append(l.sockets, newSocket(s, addr.String()))
		case len(addrs) > 1 && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)):
			missing = err
		default:
			return bindError(addr.String(), err)
		}
	}
	if len(l.sockets) == 0 {
		return bindError(l.at.String(), missing)
	}
	return nil
}

// network makes net.Listen bind exactly the address: with "tcp", 0.0.0.0 would
// be both families.
func network(addr netip.AddrPort) string {
	switch {
	case addr.Addr().Is4():
		return "tcp4"
	case addr.Addr().IsUnspecified():
		return "tcp"
	}
	return "tcp6"
}

func (b *binder) bindUnix(ctx context.Context, l *listener, mode fs.FileMode) error {
	if b.directory == "" {
		return fmt.Errorf("listen on %s: there is no runtime directory: let the service manager make one (RuntimeDirectory=), or set XDG_RUNTIME_DIR", l.at)
	}
	l.path = filepath.Join(b.directory, l.at.Addr)
	if b.take(l, l.at.String()) {
		if info, err := os.Lstat(l.path); err == nil && info.Mode().Type() == fs.ModeSocket {
			return chmod(l.path, mode)
		}
		// The socket outlived its file: nobody can find it any more.
		for _, s := range l.sockets {
			_ = s.Close()
		}
		l.sockets = nil
	}
	// The service manager has made it, or the control socket has, unless that is elsewhere.
	if err := os.MkdirAll(b.directory, 0o700); err != nil {
		l.path = ""
		return fmt.Errorf("listen on %s: make the runtime directory: %w; set XDG_RUNTIME_DIR to another place", l.at, err)
	}
	if err := removeStale(ctx, l.path); err != nil {
		path := l.path
		l.path = "" // it is somebody else's
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	lc := net.ListenConfig{Control: bornWithMode(mode)}
	s, err := lc.Listen(ctx, "unix", l.path)
	if err != nil {
		return bindError(l.path, err)
	}
	if u, ok := s.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // the listener decides
	}
	l.sockets = append(l.sockets, newSocket(s, l.at.String()))
	return chmod(l.path, mode)
}

// removeStale removes the file of a Unix socket on which nobody listens any more.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file that is no socket: move it away")
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
		return errors.New("another process listens there: stop it, or choose another name")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("can't tell whether another process listens there: %w", err)
	}
	return os.Remove(path)
}

func chmod(path string, mode fs.FileMode) error {
	if err := os.Chmod(path, mode); err != nil {
		return fmt.Errorf("set the mode of the socket: %w", err)
	}
	return nil
}

func (b *binder) bindSystemd(l *listener) error {
	if !b.take(l, l.at.String()) {
		return fmt.Errorf("listen on %s: the service manager has handed over no such socket: a socket unit must have FileDescriptorName=%s, ListenStream= and Service=, and be started before this service",
			l.at, l.at.Addr)
	}
	return nil
}

// bindError says what to do about a listener that can't be bound.
func bindError(place string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = ": another process listens there (ss -ltnp shows which): stop it, or choose another address"
	case errors.Is(err, syscall.EACCES):
		hint = ": ports below 1024 need a right that the service doesn't have by default: see privileged-ports.conf among its examples, or choose another port"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = ": no interface of this host has the address"
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err // its address is in our text already
	}
	return fmt.Errorf("listen on %s: %w%s", place, err, hint)
}

// close closes the sockets, and removes the file of a Unix socket unless keep
// says that somebody else still holds the socket.
func (l *listener) close(keep bool) {
	if l.path != "" && len(l.sockets) > 0 && !keep {
		_ = os.Remove(l.path)
	}
	for _, s := range l.sockets {
		_ = s.Close()
	}
}
