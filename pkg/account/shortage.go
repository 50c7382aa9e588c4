package account

import (
	"log/slog"
	"time"

	"ptthqd/pkg/session"
)

// LogShortage logs that a peer has used up its share of a memory budget, or has r count it, if that was logged lately.
func LogShortage(log *slog.Logger, r *Repeats, s session.Shortage) {
	tell := func(more ...any) {
		log.Warn("connections slow: limit reached", append([]any{
			slog.String("limit", s.Budget), slog.String("peer", s.Peer), slog.Int64("held", s.Held), slog.Int64("free", s.Free),
		}, more...)...)
	}
	if r.Event([2]string{s.Budget, s.Peer}, func(more int, in time.Duration) {
		tell(slog.Int("more", more), slog.Duration("in", in))
	}) {
		tell()
	}
}
