//go:build !unix

package session

type rawEnd struct{}

func newRawEnd(Conn) *rawEnd { return nil }

func (*rawEnd) read(func() []byte, func()) (int, error) { panic("internal error: no raw end here") }
func (*rawEnd) tryRead(func() []byte, func()) int       { panic("internal error: no raw end here") }
func (*rawEnd) tryWrite([]byte) (int, error)            { panic("internal error: no raw end here") }
func (*rawEnd) resetError() error                       { panic("internal error: no raw end here") }
func (*rawEnd) letGo()                                  { panic("internal error: no raw end here") }
func (*rawEnd) gone() error                             { panic("internal error: no raw end here") }
func (*rawEnd) awaitGone() error                        { panic("internal error: no raw end here") }
func (*rawEnd) unacknowledged() unacknowledged          { panic("internal error: no raw end here") }
