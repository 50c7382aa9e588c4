// Package quiet handles events that come too often for a line of the log each.
//
// Peers, strangers and faults can repeat an event without end. The log must stay readable and its
// disk free, and no event may be lost from sight. There are three tools:
//
// [Repeats] sums up equal events: the first one is logged at once, the others are counted, and one
// line per window tells how many there were. Use it for faults and refusals.
//
//	var repeats quiet.Repeats
//	defer repeats.Close() // logs what is still counted
//	repeats.Warn(log, key, "connections can't be accepted", slog.Any("error", err))
//
// [Pace] bounds how many lines each peer or mapping causes; the rest are lines at level debug. Use
// it for events that differ, such as the end of each connection.
//
//	level, leftOut := pace.Level(peer, slog.LevelInfo)
//	log.Log(ctx, level, "connection ended", quiet.LeftOut(leftOut))
//
// [Hits] counts how often each limit was reached, for the metrics.
//
// The zero value of each is ready, is bounded in memory, and may be used from any goroutine.
package quiet
