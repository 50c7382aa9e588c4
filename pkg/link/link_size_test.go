package link

import (
	"testing"
	"unsafe"
)

// An idle link is mostly QUIC's; what it is of ours fits into an object of 768 bytes. The next size that Go has is 896.
func TestLinkIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(Link{}); size > 768 {
		t.Errorf("a Link takes %d bytes", size)
	}
}
