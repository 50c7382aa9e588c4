package config

import (
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Every key has its words, its example is accepted, and its default is what Parse makes of its
// absence.
func TestKeys(t *testing.T) {
	seen := make(map[string]bool)
	for _, k := range Keys() {
		if seen[k.Name] {
			t.Errorf("%s is there twice", k.Name)
		}
		seen[k.Name] = true
		if table := k.Table(); table != "" && !seen[table] {
			t.Errorf("%s stands before its table", k.Name)
		}
		if !strings.HasSuffix(k.Doc, ".") || k.Type == "" {
			t.Errorf("%s is not described", k.Name)
		}
		name := k.Name[strings.LastIndexByte(k.Name, '.')+1:]
		if table := k.Type == typeTable || k.Type == typeTables; !table &&
			!strings.HasPrefix(k.Example, name+" = ") {
			t.Errorf("%s: the example is %q", k.Name, k.Example)
		}
	}
}

// What is written in full, with every key at its default, means the same as what leaves them out.
func TestDefaults(t *testing.T) {
	for role, head := range map[Role]string{
		RoleRelay: relayHead, RoleServer: serverHead,
		RoleClient: clientHead,
	} {
		plain := parse(t, head)
		top, limits := "", "[limits]\n"
		for _, k := range Keys() {
			switch line := k.Name + " = " + k.Default + "\n"; {
			case k.Default == "" || !k.allows(role):
			case k.Table() == "":
				top += line
			case k.Table() == "limits":
				limits += strings.TrimPrefix(line, "limits.")
			}
		}
		full := parse(t, top+head+limits)
		if d := Compare(plain, full); !d.Empty() {
			t.Errorf("%s: %v", role, d.Lines())
		}
		if plain.Limits != DefaultLimits() {
			t.Errorf("%s: the limits are not the defaults", role)
		}
		for _, w := range plain.Warnings() {
			if strings.HasPrefix(w.Key, "limits") {
				t.Errorf("%s: %v", role, w)
			}
		}
	}
	m := parse(t, clientHead+"[[mappings]]\nlisten = \"2200\"\nserver = \"nas\"\ntarget = \"22\"\n").Mappings[0]
	if m.Name != "localhost:2200" || !m.Enabled || m.ListenMode != DefaultListenMode ||
		m.OnRemove != OnRemoveKeep || m.ResumeTimeout != DefaultResumeTimeout {
		t.Errorf("%+v", m)
	}
}

// Every field of Limits has exactly one key, of its type and like its name.
func TestLimits(t *testing.T) {
	fields := reflect.TypeFor[Limits]()
	if fields.NumField() != len(limitKeys) {
		t.Errorf("%d fields, %d keys", fields.NumField(), len(limitKeys))
	}
	word := regexp.MustCompile("[A-Z][a-z]+")
	for _, k := range limitKeys {
		var l Limits
		k.set(&l, k.def)
		changed := 0
		for i := range fields.NumField() {
			f := reflect.ValueOf(l).Field(i)
			if f.IsZero() {
				continue
			}
			changed++
			name := strings.ToLower(strings.Join(word.FindAllString(fields.Field(i).Name, -1), "_"))
			if name != k.name {
				t.Errorf("limits.%s sets %s", k.name, fields.Field(i).Name)
			}
			if f.Int() != k.def || k.number(&l) != k.def {
				t.Errorf("limits.%s: %v is not %d", k.name, f, k.def)
			}
		}
		if changed != 1 {
			t.Errorf("limits.%s sets %d fields", k.name, changed)
		}
		if k.def < k.min || k.def > k.max {
			t.Errorf("limits.%s: the default %d is not from %d to %d", k.name, k.def, k.min, k.max)
		}
	}
}

func TestSizesAndDurations(t *testing.T) {
	for text, want := range map[string]Size{
		"0B": 0, "1B": 1, "64KiB": 65536, "3 MiB": 3 << 20,
		"1536KiB": 1536 << 10, "2GiB": 2 << 30,
	} {
		got, err := parseSize(text)
		if err != nil || got != want {
			t.Errorf("%q is %d, %v", text, got, err)
		}
		if again, err := parseSize(got.String()); err != nil || again != want {
			t.Errorf("%q becomes %q: %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "5", "MiB", "-1MiB", "1.5MiB", "1MB",
		"9223372036854775807GiB", "1e3KiB",
	} {
		if size, err := parseSize(text); err == nil {
			t.Errorf("%q is %d", text, size)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0s", time.Second: "1s", 90 * time.Second: "1m30s", 10 * time.Minute: "10m", time.Hour: "1h", 100 * time.Minute: "1h40m",
		20 * time.Second: "20s", 10 * time.Hour: "10h", time.Hour +
			time.Second: "1h0m1s", 1500 * time.Millisecond: "1.5s",
	} {
		if got := formatDuration(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}
