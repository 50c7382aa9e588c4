package host

// User is the user at the other end of a Unix connection, as far as the system says.
type User struct {
	Known  bool // false if the system can't say; the fields below are then zero
	UID    int
	Groups []int
	Text   string // for the log
}

// Unmapped is the ID that the kernel returns for users and groups that this process's user
// namespace does not have.
const Unmapped = 65534
