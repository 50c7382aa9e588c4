package host

import (
	"fmt"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PeerOf returns the user at the other end of a Unix connection. With PrivateUsers= the kernel
// returns [Unmapped] for all users but root and the service's own.
func PeerOf(conn net.Conn) User {
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
		who.UID, who.Groups = int(cred.Uid), append(peerGroups(int(fd)), int(cred.Gid))
		who.Text = fmt.Sprintf("uid %d, pid %d", cred.Uid, cred.Pid)
		if cred.Uid == Unmapped {
			who.Text = fmt.Sprintf("group member, pid %d", cred.Pid)
		}
	})
	return who
}

// nobody is the user if the kernel does not say. In practice it always does.
var nobody = User{Known: true, UID: Unmapped}

// peerGroups returns the supplementary groups of the user at the other end of a Unix connection.
func peerGroups(fd int) []int {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET,
			unix.SO_PEERGROUPS,
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
