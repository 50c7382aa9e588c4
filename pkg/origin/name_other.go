//go:build !linux

package origin

type holder struct{}

func hold(string) holder { return holder{} }

func (holder) held() bool { return false }
func (holder) close()     {}

func taken(string) bool { return false }
