package origin

import (
	"errors"

	"golang.org/x/sys/unix"
)

// A holder holds a name by a socket that is bound to it and does not listen.
type holder struct{ fd int } // 0 for none

func hold(name string) holder {
	fd, err := bind(name)
	if err != nil {
		return holder{}
	}
	return holder{fd}
}

func (h holder) held() bool { return h.fd > 0 }

func (h holder) close() {
	if h.held() {
		_ = unix.Close(h.fd)
	}
}

// taken reports whether a process holds a name.
func taken(name string) bool {
	fd, err := bind(name)
	if err == nil {
		_ = unix.Close(fd)
	}
	return errors.Is(err, unix.EADDRINUSE)
}

func bind(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		_ = unix.Close(fd)
		return 0, err
	}
	return fd, nil
}
