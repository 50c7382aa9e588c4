package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/coreos/go-systemd/v22/activation"
	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"ptthqd/pkg/wire"
)

// service is the service manager, as far as there is one: without it every method does nothing. Its methods may be called
// from any goroutine.
type service struct {
	notifySocket string // empty: nobody listens

	mu        sync.Mutex
	inherited map[string][]*os.File // by FDNAME: sockets of socket units, and of those kept what nobody has taken yet
	stored    map[string]bool       // FDNAMEs of what systemd keeps for us
}

func newService() *service {
	s := &service{
		notifySocket: os.Getenv("NOTIFY_SOCKET"),
		inherited:    make(map[string][]*os.File),
		stored:       make(map[string]bool),
	}
	for _, f := range activation.Files(true) {
		s.inherited[f.Name()] = append(s.inherited[f.Name()], f)
		if isStoreName(f.Name()) {
			s.stored[f.Name()] = true
		}
	}
	return s
}

// notify sends a state. That it can't be sent is nothing that the daemon could act on.
func (s *service) notify(state string) {
	if s.notifySocket != "" {
		_, _ = sd.SdNotify(false, state)
	}
}

func (s *service) ready(status string)  { s.notify(sd.SdNotifyReady + "\nSTATUS=" + wire.Clean(status)) }
func (s *service) status(status string) { s.notify("STATUS=" + wire.Clean(status)) }

// reloading tells that the config is being exchanged; ready ends it.
func (s *service) reloading() {
	s.notify(sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec())
}

func (s *service) stopping(status string) {
	s.notify(sd.SdNotifyStopping + "\nSTATUS=" + wire.Clean(status))
}

// extend asks for so much more time to start or stop, from now on.
func (s *service) extend(d time.Duration) {
	s.notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()))
}

// failed tells why the process is about to end.
func (s *service) failed(err error) {
	state := "STATUS=" + wire.Clean(err.Error())
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		state += fmt.Sprintf("\nERRNO=%d", int(errno))
	}
	s.notify(state)
}

func (s *service) feed() { s.notify(sd.SdNotifyWatchdog) }

// watchdog is within which time the service manager wants to be fed; 0 is never.
func (s *service) watchdog() time.Duration {
	d, err := sd.SdWatchdogEnabled(false)
	if err != nil || s.notifySocket == "" {
		return 0
	}
	return d
}

// take hands over what was inherited under a name; the caller closes it. The sockets of a socket unit stay here as well: a
// mapping that one reload removes, another may add again.
func (s *service) take(name string) ([]*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	files := s.inherited[name]
	if isStoreName(name) {
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

// duplicate opens a file once more, without a change to its flags, which both share.
func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var dupErr error
	err = raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, dupErr); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// left are the names of what nobody has taken.
func (s *service) left() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.inherited))
	for name := range s.inherited {
		names = append(names, name)
	}
	return names
}

// keeps tells whether sockets may be kept over a restart. A unit without FileDescriptorStoreMax= keeps none, and does not
// say so before systemd 254.
func (s *service) keeps() bool { return s.listens() }

// listens tells whether anybody is told.
func (s *service) listens() bool { return s.notifySocket != "" }

// keep makes what is kept over a restart exactly these sockets, by FDNAME. It returns when the service manager has them.
func (s *service) keep(ctx context.Context, sockets map[string][]syscall.Conn) error {
	if !s.keeps() {
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

// drop has the service manager let go of sockets before something else is bound in their place.
func (s *service) drop(ctx context.Context, names []string) error {
	if !s.keeps() || len(names) == 0 {
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

func (s *service) store(name string, conns []syscall.Conn) error {
	for _, conn := range conns {
		raw, err := conn.SyscallConn()
		if err != nil {
			return fmt.Errorf("keep socket over a restart: %w", err)
		}
		var sendErr error
		if err := raw.Control(func(fd uintptr) { sendErr = s.send("FDSTORE=1\nFDNAME="+name, int(fd)) }); err != nil {
			return fmt.Errorf("keep socket over a restart: %w", err)
		}
		if sendErr != nil {
			return sendErr
		}
	}
	return nil
}

// send sends a state with file descriptors, which go-systemd doesn't.
func (s *service) send(state string, fds ...int) error {
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer func() { _ = unix.Close(socket) }()
	// An @ in front is the abstract namespace, for x/sys/unix too.
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

// barrierTime is how long the service manager may take to have read what was sent. libsystemd's users give it 5 s.
const barrierTime = 5 * time.Second

// barrier returns when the service manager has read all that was sent before: it then closes the pipe's other end.
func (s *service) barrier(ctx context.Context) error {
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

// raiseFileLimit raises the limit of open files to the hard one and returns what it is then; 0 if it can't be told.
// Go does so too since 1.19, for itself and not for programs that it starts; here it is done to be told.
func raiseFileLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	if limit.Cur < limit.Max {
		raised := unix.Rlimit{Cur: limit.Max, Max: limit.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err == nil {
			return raised.Cur
		}
	}
	return limit.Cur
}

// openFiles counts this process's file descriptors; 0 if it can't be told.
func openFiles() int {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return 0
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return 0
	}
	return len(names) - 1 // without dir
}

// caller tells who is at the other end of a Unix connection, for the log. With PrivateUsers= the IDs of others than
// root and the service's own user are not mapped, and come as 65534.
func caller(conn net.Conn) person {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return nobody
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return nobody
	}
	who := nobody
	_ = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return
		}
		who.uid, who.groups = int(cred.Uid), append(peerGroups(int(fd)), int(cred.Gid))
		who.text = fmt.Sprintf("uid %d, pid %d", cred.Uid, cred.Pid)
		if cred.Uid == unmapped {
			who.text = fmt.Sprintf("group member, pid %d", cred.Pid)
		}
	})
	return who
}

// nobody is who asks if the kernel doesn't tell, as it always does.
var nobody = person{known: true, uid: unmapped}

// peerGroups are the supplementary groups of who has connected.
func peerGroups(fd int) []int {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		if errno == unix.ERANGE && int(size) > len(groups)*4 {
			groups = make([]uint32, size/4)
			continue
		}
		if errno != 0 {
			return nil // before Linux 4.13
		}
		ids := make([]int, size/4)
		for i := range ids {
			ids[i] = int(groups[i])
		}
		return ids
	}
}
