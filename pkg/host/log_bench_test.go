package host

import (
	"io"
	"log/slog"
	"testing"
	"time"
)

// BenchmarkLine is the line that each connection has at its end.
func BenchmarkLine(b *testing.B) {
	log, err := OpenLog(LogText, io.Discard, slog.LevelInfo, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer log.queue.close(time.Minute)
	b.ReportAllocs()
	for b.Loop() {
		log.LogAttrs(b.Context(), slog.LevelInfo, "connection ended",
			slog.String("role", "client"), slog.String("connection",
				"k5dvqx2a"), slog.String("mapping", "nas-ssh"),
			slog.String("client", "laptop"), slog.String("source",
				"127.0.0.1:50000"), slog.String("server", "nas"),
			slog.String("target", ":22"), slog.String("relay",
				"relay.example.com:30380"), slog.String("end", "closed"),
			slog.Uint64("code", 200), slog.Duration("duration", 1234*time.Millisecond),
			slog.Int64("bytes_up", 123456), slog.Int64("bytes_down", 654321), slog.Int("resumes",
				0))
	}
}
