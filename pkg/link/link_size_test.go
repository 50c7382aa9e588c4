package link

import (
	"testing"
	"unsafe"
)

// Most memory of an idle link is QUIC's. A Link fits into an object of 768 bytes; the next size of
// Go's allocator is 896.
func TestLinkIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(Link{}); size > 768 {
		t.Errorf("a Link takes %d bytes", size)
	}
}
