package link

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"ptthqd/pkg/wire"
)

// up notes a new link.
func (d *Dialer) up(link *Link) {
	d.mu.Lock()
	d.peer = link.RemoteAddr()
	d.state = State{Address: d.Address, Link: link, Since: link.since, Contested: d.contested}
	d.mu.Unlock()
	attrs := []any{slog.Any("remote", link.RemoteAddr())}
	if failed := d.outage.end(); failed > 0 {
		attrs = append(attrs, slog.Int("failed_dials", failed))
	}
	d.logLink("link up", attrs...)
}

// logLink logs that a link comes or goes. Beyond a rate such lines have LevelDebug.
func (d *Dialer) logLink(msg string, attrs ...any) { d.logLinkAt(slog.LevelInfo, msg, attrs...) }

func (d *Dialer) logLinkAt(level slog.Level, msg string, attrs ...any) {
	if !d.logRate.Allow() {
		level = slog.LevelDebug
	}
	d.log.Log(context.Background(), level, msg, attrs...)
}

// down notes the end of a link that no newer link has replaced.
func (d *Dialer) down(link *Link) {
	err := link.Err()
	stats := link.Stats()
	d.roundTrip = max(stats.RTT, stats.AppRTT)
	closed, _ := errors.AsType[*ClosedError](err)
	switch {
	case time.Since(link.since) >= shortLived:
		d.shortLinks = 0
	case closed != nil && closed.Remote:
		d.shortLinks++
	default: // the relay has crashed or the path is bad: dial at once
		d.shortLinks = 1
	}
	now := State{
		Address: d.Address, Since: time.Now(), LastError: err.Error(), Reason: link.Reason(),
	}
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		now.Contested = d.contested
		d.state = now
	}()
	if closed != nil && closed.Code == wire.CloseContested && closed.Remote &&
		!link.replaced.Load() {
		d.noteRival()
	}
	if closed == nil || closed.Code != wire.CloseSuperseded || !closed.Remote ||
		link.replaced.Load() {
		d.logLinkAt(link.endLevel(), "link down", slog.Any("reason", err))
		if time.Since(link.since) > supersededMax {
			d.rivalPause = 0
		}
		return
	}
	d.rivalPause = min(max(2*d.rivalPause, supersededMin), supersededMax)
	d.noteRival()
	d.notBefore = now.Since.Add(d.rivalPause + rand.N(d.rivalPause/10))
	now.NextDial = d.notBefore
	now.LastError = contestedWords
	d.log.Error(contestedWords,
		slog.Any("public_key", d.Identity.Public()), slog.Any("reason", err),
		slog.Duration("pause", d.rivalPause))
}

const contestedWords = "another node holds this node's key: the relay gave its link preference " +
	"over ours. " + contestedHint

// failed notes a failed dial. Only few of them are logged.
func (d *Dialer) failed(f failure, next time.Time) {
	d.tally.failed(f.reason)
	d.mu.Lock()
	d.state.Attempts++
	d.state.LastError, d.state.Reason = f.words, f.reason
	d.state.NextDial = next
	d.mu.Unlock()
	if n, worth := d.outage.add(f); worth {
		level, msg, attrs := slog.LevelWarn, "no link to the relay", []any{
			slog.String("error", f.words), slog.Int("failed_dials", n),
		}
		if f.reason == DialContested {
			level, msg = slog.LevelError, f.words
			attrs[0] = slog.Any("public_key", d.Identity.Public())
		}
		d.log.Log(context.Background(), level, msg, attrs...)
	}
	if f.reason == DialUnknownKey && d.OnRefused != nil {
		d.OnRefused()
	}
}

// An outage sums up the failed dials between two links. The log gets the first failure, maxOthers
// failures of another kind, and one after 1 and 10 minutes and 1, 2, 4 ... hours.
type outage struct {
	since  time.Time
	count  int
	logged time.Duration // time from since to the last line
	words  string        // of the last line
	others int           // lines so far because the words have changed
}

// maxOthers bounds the lines of an outage that are due to other words.
const maxOthers = 5

// add counts a failure. It returns the number of failures so far, and whether this one is to be
// logged.
func (o *outage) add(f failure) (count int, worth bool) {
	o.count++
	if o.count == 1 {
		o.since, o.words = time.Now(), f.words
		return 1, true
	}
	after := time.Since(o.since)
	for _, step := range []time.Duration{time.Minute, 10 * time.Minute, time.Hour} {
		worth = worth || o.logged < step && after >= step
	}
	worth = worth || o.logged >= time.Hour && after >= 2*o.logged
	if f.words != o.words && o.others < maxOthers {
		o.others++
		worth = true
	}
	if worth {
		o.words = f.words
		o.logged = after
	}
	return o.count, worth
}

// end returns the number of failures and begins anew.
func (o *outage) end() int {
	n := o.count
	*o = outage{}
	return n
}
