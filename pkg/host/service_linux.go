package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"ptthqd/pkg/wire"
)

// Service is the service manager of this process. Without one every method does nothing. Methods
// may be called from any goroutine.
type Service struct {
	notifySocket string // empty: there is no service manager

	mu        sync.Mutex
	inherited map[string][]*os.File // by FDNAME: of socket units; kept ones until they are taken
	stored    map[string]bool       // FDNAMEs of the sockets that systemd keeps for this process
}

// NewService finds the service manager in the environment, and the sockets that it hands over. It
// may be called once.
func NewService() *Service {
	s := &Service{
		notifySocket: os.Getenv("NOTIFY_SOCKET"),
		inherited:    make(map[string][]*os.File),
		stored:       make(map[string]bool),
	}
	for _, f := range activation.Files(true) {
		s.inherited[f.Name()] = append(s.inherited[f.Name()], f)
		if IsStored(f.Name()) {
			s.stored[f.Name()] = true
		}
	}
	return s
}

// notify sends a state. It ignores errors: the process could do nothing about them.
func (s *Service) notify(state string) {
	if s.notifySocket != "" {
		_, _ = sd.SdNotify(false, state)
	}
}

// Ready says that the process has started, or has ended a reload, and how it stands.
func (s *Service) Ready(status string) {
	s.notify(sd.SdNotifyReady + "\nSTATUS=" + wire.Clean(status))
}

// Status says how the process stands.
func (s *Service) Status(status string) { s.notify("STATUS=" + wire.Clean(status)) }

// Reloading says that a reload has begun. Ready ends it.
func (s *Service) Reloading() {
	s.notify(sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec())
}

// Stopping says that the process has begun to stop, and how it stands.
func (s *Service) Stopping(status string) {
	s.notify(sd.SdNotifyStopping + "\nSTATUS=" + wire.Clean(status))
}

// Extend asks for more time to start or stop, counted from now.
func (s *Service) Extend(d time.Duration) {
	s.notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()))
}

// Failed says why the process is about to end.
func (s *Service) Failed(err error) {
	state := "STATUS=" + wire.Clean(err.Error())
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		state += fmt.Sprintf("\nERRNO=%d", int(errno))
	}
	s.notify(state)
}

// Feed feeds the watchdog.
func (s *Service) Feed() { s.notify(sd.SdNotifyWatchdog) }

// Watchdog returns the time within which the watchdog must be fed; 0 if there is no watchdog.
func (s *Service) Watchdog() time.Duration {
	d, err := sd.SdWatchdogEnabled(false)
	if err != nil || s.notifySocket == "" {
		return 0
	}
	return d
}

// take returns the inherited sockets of a name, which the caller closes. Those of a socket unit are
// copies, since a reload may remove a mapping and another one add it again.
func (s *Service) take(name string) ([]*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	files := s.inherited[name]
	if IsStored(name) {
		delete(s.inherited, name)
		return files, nil
	}
	copies := make([]*os.File, 0, len(files))
	for _, f := range files {
		c, err := duplicate(f)
		if err != nil {
			closeAll(copies)
			return nil, fmt.Errorf("duplicate the inherited socket %s: %w", name, err)
		}
		copies = append(copies, c)
	}
	return copies, nil
}

// duplicate returns a copy of a file. It doesn't change the flags, which the two share.
func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var dupErr error
	err = raw.Control(func(old uintptr) {
		fd,
			dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(err, dupErr); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// Left returns the FDNAMEs of the inherited sockets that nobody has taken.
func (s *Service) Left() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.inherited))
	for name := range s.inherited {
		names = append(names, name)
	}
	return names
}

// Listens reports whether there is a service manager. It may keep sockets over a restart: a unit
// without FileDescriptorStoreMax= keeps none, and does not say so before systemd 254.
func (s *Service) Listens() bool { return s.notifySocket != "" }

// Keep has the service manager keep exactly these sockets over a restart, by FDNAME. It returns
// when the service manager has them.
func (s *Service) Keep(ctx context.Context, sockets map[string][]syscall.Conn) error {
	if !s.Listens() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var failed error
	for name := range s.stored {
		if _, wanted := sockets[name]; !wanted {
			failed = errors.Join(failed, s.send("FDSTOREREMOVE=1\nFDNAME="+name))
			delete(s.stored, name)
		}
	}
	for name, conns := range sockets {
		if s.stored[name] {
			continue
		}
		if err := s.store(name, conns); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		s.stored[name] = true
	}
	return errors.Join(failed, s.barrier(ctx))
}

// Drop has the service manager close kept sockets. It returns when others can be bound in their
// place.
func (s *Service) Drop(ctx context.Context, names []string) error {
	if !s.Listens() || len(names) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var failed error
	for _, name := range names {
		if s.stored[name] {
			failed = errors.Join(failed, s.send("FDSTOREREMOVE=1\nFDNAME="+name))
			delete(s.stored, name)
		}
	}
	return errors.Join(failed, s.barrier(ctx))
}

func (s *Service) store(name string, conns []syscall.Conn) error {
	for _, conn := range conns {
		raw, err := conn.SyscallConn()
		if err != nil {
			return fmt.Errorf("keep socket over a restart: %w", err)
		}
		var sendErr error
		if err := raw.Control(func(fd uintptr) {
			sendErr = s.send("FDSTORE=1\nFDNAME="+name,
				int(fd))
		}); err != nil {
			return fmt.Errorf("keep socket over a restart: %w", err)
		}
		if sendErr != nil {
			return sendErr
		}
	}
	return nil
}

// send sends a state with file descriptors, which go-systemd can't.
func (s *Service) send(state string, fds ...int) error {
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer func() { _ = unix.Close(socket) }()
	// x/sys/unix takes a leading @ for the abstract namespace, as NOTIFY_SOCKET has it.
	to := &unix.SockaddrUnix{Name: s.notifySocket}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(socket, []byte(state), rights, to, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}

// barrierTime is how long the service manager may take to read what was sent: 5 s, as programs that
// use libsystemd give it.
const barrierTime = 5 * time.Second

// barrier returns when the service manager has read all that was sent before. It sends the other
// end of a pipe, which the service manager then closes.
func (s *Service) barrier(ctx context.Context) error {
	reader, writer, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer reader.Close()
	err = s.send("BARRIER=1", int(writer.Fd()))
	_ = writer.Close()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(barrierTime)
	if at, ok := ctx.Deadline(); ok && at.Before(deadline) {
		deadline = at
	}
	_ = reader.SetReadDeadline(deadline)
	if _, err := reader.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the service manager has not answered within %v", barrierTime)
	}
	return nil
}
