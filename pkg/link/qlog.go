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

// qlogVariable is where QUIC implementations look for a directory to write qlogs into, one file for each connection: what
// each packet held and when, for tools such as qvis. They are large; QUIC's keys are not in them.
const qlogVariable = "QLOGDIR"

type tracer = func(ctx context.Context, isClient bool, id quic.ConnectionID) qlogwriter.Trace

// qlogs is the tracer of all links, nil where nobody asks for qlogs.
func qlogs(log *slog.Logger) tracer {
	dir := os.Getenv(qlogVariable)
	if dir == "" {
		return nil
	}
	qlogSaid.Do(func() {
		if err := writable(dir); err != nil {
			log.Error("no qlogs: nothing can be written to the directory of "+qlogVariable, slog.String("directory", dir), slog.Any("error", err))
			return
		}
		qlogWorks = true
		log.Warn("qlogs are written, which takes time and space: unset "+qlogVariable+" when they are not needed any more", slog.String("directory", dir))
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

// writable makes a directory, if it is not there, and finds out whether files can be made in it.
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
