package link

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/qlog"
	"github.com/quic-go/quic-go/qlogwriter"
)

// qlogVariable names the environment variable with a directory for qlogs, as QUIC implementations
// have it. A qlog is a large file for each connection: what each packet held and when, for tools
// such as qvis. It does not contain QUIC's keys.
const qlogVariable = "QLOGDIR"

type tracer = func(ctx context.Context, isClient bool, id quic.ConnectionID) qlogwriter.Trace

// qlogs returns the tracer of all links, or nil unless qlogVariable is set.
func qlogs(log *slog.Logger) tracer {
	dir := os.Getenv(qlogVariable)
	if dir == "" {
		return nil
	}
	qlogSaid.Do(func() {
		if err := writable(dir); err != nil {
			log.Error("no qlogs: nothing can be written to the directory of "+qlogVariable,
				slog.String("directory", dir), slog.Any("error", err))
			return
		}
		qlogWorks = true
		log.Warn("qlogs are written, which takes time and space: unset "+qlogVariable+" when "+
			"they are not needed any more", slog.String("directory", dir))
	})
	if !qlogWorks { // quic-go would end the process
		return nil
	}
	return qlog.DefaultConnectionTracer
}

var (
	qlogSaid  sync.Once // also guards qlogWorks
	qlogWorks bool
)

// writable makes a directory if it is missing, and tries to make a file in it.
func writable(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".ptthqd-*")
	if err != nil {
		return err
	}
	_ = f.Close()
	return os.Remove(filepath.Clean(f.Name()))
}
