//go:build !linux && !windows

package link

import (
	"errors"
	"syscall"
)

func tooLarge(err error) bool { return errors.Is(err, syscall.EMSGSIZE) }
