package config

import (
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
)

func (p *parser) privateKeyFile(top *section, s *Snapshot) string {
	name, at, ok := top.text("private_key_file")
	switch {
	case ok && name == "":
		p.add(at, `write the path of the file, for example "/etc/ptthq.key"`, "is empty")
	case ok && filepath.IsAbs(name):
		return filepath.Clean(name)
	case ok:
		return filepath.Join(filepath.Dir(s.Path), name)
	case s.Credential != "":
		return s.Credential
	}
	return KeyFileOf(s.Path)
}

// KeyFileOf returns the file of the private key for a configuration that names none: NAME.key
// beside NAME.toml. systemd makes the service's credential of the same file.
func KeyFileOf(path string) string { return strings.TrimSuffix(path, ".toml") + ".key" }

func (p *parser) logLevel(top *section) slog.Level {
	text, at, ok := top.text("log_level")
	if !ok {
		return slog.LevelInfo
	}
	levels := []string{"debug", "info", "warn", "error"}
	i := slices.Index(levels, text)
	if i < 0 {
		p.badChoice(at, text, levels)
		return slog.LevelInfo
	}
	return []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}[i]
}

func (p *parser) include(top *section) []string {
	items, ok := top.texts("include")
	if !ok {
		return nil
	}
	patterns := []string{}
	for _, it := range items {
		if err := checkPattern(it.text); err != nil {
			p.add(it.at, `write a pattern such as "ptthq.d/*.toml"`, "%s", err.Error())
			continue
		}
		patterns = append(patterns, it.text)
	}
	return patterns
}
