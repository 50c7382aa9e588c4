package carrier

import (
	"errors"

	"golang.org/x/sys/windows"
)

func tooLarge(err error) bool { return errors.Is(err, windows.WSAEMSGSIZE) }
