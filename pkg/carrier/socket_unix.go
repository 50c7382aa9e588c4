//go:build !linux && !windows

package carrier

import (
	"errors"
	"syscall"
)

func tooLarge(err error) bool { return errors.Is(err, syscall.EMSGSIZE) }
