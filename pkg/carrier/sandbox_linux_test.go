package carrier_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unsafe"

	"ptthqd/pkg/carrier"

	"github.com/quic-go/quic-go"
	"golang.org/x/sys/unix"
)

// inSandbox names, in the environment of a test's child, what a filter refuses: a call and, for
// setsockopt, an option of IPv4 and one of IPv6.
const inSandbox = "PTTHQD_TEST_SANDBOX"

var sandboxes = map[string]struct {
	call   uint32
	v4, v6 uint32 // setsockopt's
	errno  uint32
	log    []string
	finds  bool // the path's MTU
}{
	"recvmmsg EPERM":  {call: unix.SYS_RECVMMSG, errno: uint32(unix.EPERM), log: []string{"a sandbox around this process refuses recvmmsg(2)", "operation not permitted", "SystemCallFilter="}, finds: true},
	"recvmmsg ENOSYS": {call: unix.SYS_RECVMMSG, errno: uint32(unix.ENOSYS), log: []string{"a sandbox around this process refuses recvmmsg(2)", "function not implemented"}, finds: true},
	"IP_MTU_DISCOVER": {call: unix.SYS_SETSOCKOPT, v4: unix.IP_MTU_DISCOVER, v6: unix.IPV6_MTU_DISCOVER, errno: uint32(unix.EPERM), log: []string{"refuses a socket option", "option=IP_MTU_DISCOVER", "seccomp"}},
	"IP_RECVTOS":      {call: unix.SYS_SETSOCKOPT, v4: unix.IP_RECVTOS, v6: unix.IPV6_RECVTCLASS, errno: uint32(unix.EPERM), log: []string{"refuses a socket option", "option=IP_RECVTOS"}},
	"IP_PKTINFO":      {call: unix.SYS_SETSOCKOPT, v4: unix.IP_PKTINFO, v6: unix.IPV6_RECVPKTINFO, errno: uint32(unix.ENOPROTOOPT), log: []string{"refuses a socket option", "option=IP_PKTINFO", "listen on one by name"}},
}

// A seccomp filter that refuses what makes UDP fast costs speed, and no link: the log names the
// sandbox, once for all sockets.
func TestSandbox(t *testing.T) {
	if name := os.Getenv(inSandbox); name != "" {
		talkInSandbox(t, name)
		return
	}
	for name, sandbox := range sandboxes {
		t.Run(name, func(t *testing.T) {
			child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSandbox$", "-test.v")
			child.Env = append(os.Environ(), inSandbox+"="+name)
			out, err := child.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if bytes.Contains(out, []byte("--- SKIP")) {
				t.Skipf("%s", out)
			}
			for _, want := range sandbox.log {
				if !strings.Contains(string(out), want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
			if n := strings.Count(string(out), "a sandbox around this process"); n != 1 {
				t.Errorf("said %d times:\n%s", n, out)
			}
		})
	}
}

// talkInSandbox has QUIC send packets of two sockets to a third, below a filter.
func talkInSandbox(t *testing.T, name string) {
	sandbox := sandboxes[name]
	seccomp(t, sandbox.call, sandbox.v4, sandbox.v6, sandbox.errno)
	log := slog.New(slog.NewTextHandler(os.Stdout, nil))
	open := func() (*carrier.Socket, *quic.Transport) {
		pc, err := net.ListenPacket("udp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		s, err := carrier.New(pc, log)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		transport := &quic.Transport{Conn: s.PacketConn()}
		t.Cleanup(func() { _ = transport.Close() })
		if s.FindsMTU() != sandbox.finds {
			t.Errorf("FindsMTU is %v", !sandbox.finds)
		}
		return s, transport
	}
	to, receiver := open()
	address := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(to.LocalAddr().Port())}
	past, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, _ = receiver.ReadNonQUICPacket(past, nil) // from now on quic-go keeps them
	for i := range 2 {
		_, sender := open()
		packet := fmt.Append(nil, "\x00packet ", i) // no QUIC packet: the first bits are 0
		for _, b := range [][]byte{packet, packet} {
			if _, err := sender.WriteTo(b, address); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 1500)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			n, _, err := receiver.ReadNonQUICPacket(ctx, got)
			cancel()
			if err != nil || !bytes.Equal(got[:n], b) {
				t.Fatalf("%q, %v", got[:n], err)
			}
		}
	}
	if n := to.Received(); n != 4 {
		t.Errorf("%d packets", n)
	}
}

// seccomp refuses a system call in all threads of the process, for ever. If v4 and v6 are given, it
// refuses only calls for these options, of IPv4 and of IPv6.
func seccomp(t *testing.T, call, v4, v6, errno uint32) {
	t.Helper()
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		give  = unix.BPF_RET | unix.BPF_K
		level = 16 + 8*1 // offset of the second argument in struct seccomp_data, its lower half
		name  = 16 + 8*2
	)
	filter := []unix.SockFilter{
		{Code: load},
		{Code: equal, K: call, Jf: 9},
		{Code: load, K: level},
		{Code: equal, K: unix.IPPROTO_IP, Jf: 2},
		{Code: load, K: name},
		{Code: equal, K: v4, Jt: 4, Jf: 5},
		{Code: equal, K: unix.IPPROTO_IPV6, Jf: 4},
		{Code: load, K: name},
		{Code: equal, K: v6, Jt: 1, Jf: 2},
		{Code: give, K: unix.SECCOMP_RET_ALLOW},
		{Code: give, K: unix.SECCOMP_RET_ERRNO | errno},
		{Code: give, K: unix.SECCOMP_RET_ALLOW},
	}
	if v4 == 0 {
		filter = []unix.SockFilter{
			{Code: load},
			{Code: equal, K: call, Jf: 1},
			{Code: give, K: unix.SECCOMP_RET_ERRNO | errno},
			{Code: give, K: unix.SECCOMP_RET_ALLOW},
		}
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Skip("this kernel has no PR_SET_NO_NEW_PRIVS, before Linux 3.5: ", err)
	}
	if _, _, err := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program))); err != 0 {
		t.Skip("this system lets no process filter its calls: ", err)
	}
}
