package config

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"ptthqd/pkg/config/tomlpos"
)

// section is one table of the text, read key by key. Each getter reports a wrong type as a fault,
// and returns whether there is a value to work with.
type section struct {
	*faults
	file   string
	table  string // "" at the top, "peers"
	role   Role
	values map[string]any
	at     *tomlpos.Node // of values

	included bool // the top of a file that another includes
}

// full returns the name of a key with its table: "peers.id".
func (s *section) full(key string) string {
	key = tomlpos.KeyText(key) // a quoted one matches no key of ours
	if s.table == "" {
		return key
	}
	return s.table + "." + key
}

// location returns where the value of a key stands; without a value, where its table begins.
func (s *section) location(key string) location {
	return location{s.file, s.at.Key(key).Value, s.full(key)}
}

// nameLocation returns where the name of a key stands.
func (s *section) nameLocation(key string) location {
	return location{s.file, s.at.Key(key).Name, s.full(key)}
}

// mayHave reports whether a key can be read: it belongs to this role, or the role isn't known and
// the key is there.
func (s *section) mayHave(key string) bool {
	_, there := s.values[key]
	return keysByName[s.full(key)].allows(s.role) && (s.role != "" || there)
}

// missing reports that a required key is absent.
func (s *section) missing(key string) {
	k := keysByName[s.full(key)]
	hint := "write " + k.Example
	if k.Example == "" {
		hint = "add " + k.title()
	}
	s.add(location{s.file, s.at.Value, k.Name}, hint, "is missing")
}

// typeName returns the type of a value, with an article.
func typeName(value any) string {
	switch value.(type) {
	case string:
		return "a string"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case bool:
		return "a boolean"
	case time.Time:
		return "a date"
	case []any:
		return "a list"
	case []map[string]any:
		return "a list of tables"
	}
	return "a table"
}

// mistyped reports a value of a wrong type, and shows how it should be written.
func (s *section) mistyped(at location, value any, want string) {
	k := keysByName[at.key]
	hint := "write " + cmp.Or(written(k, value), k.Example)
	n, isInteger := value.(int64)
	switch {
	case k.Type == typeDuration && isInteger:
		hint = fmt.Sprintf(`a duration is a string with a unit: write "%ds" or "%dm"`, n, n)
	case k.Type == typeDuration:
		hint = `a duration is a string with a unit, such as "30s" or "10m"`
	case k.Type == typeSize:
		hint = `a size is a string with a unit, such as "64KiB" or "256MiB"`
	case k.Type == typeTables:
		hint = fmt.Sprintf("write [[%s]]", k.Name)
	case k.Type == typeTable:
		hint = fmt.Sprintf("write [%s]", k.Name)
	}
	s.add(at, hint, "is %s, not %s", typeName(value), want)
}

// written returns the line, or the element of a list, that means what was written and has the right
// type; "" if there is none. It never repeats a public key, which might be a private one.
func written(k Key, value any) string {
	if strings.HasSuffix(k.Name, "public_key") {
		return ""
	}
	_, name, ok := strings.Cut(k.Name, ".")
	if !ok {
		name = k.Name
	}
	list, isList := value.([]any)
	if isList && len(list) == 1 {
		value = list[0]
	}
	switch value := value.(type) {
	case int64:
		if k.Type == typeString || k.Type == typeStrings {
			return fmt.Sprintf(`"%d"`, value)
		}
	case string:
		_, notInteger := strconv.ParseInt(value, 10, 64)
		switch {
		case k.Type == typeString && isList && isPrintable(value):
			return fmt.Sprintf("%s = %q", name, value)
		case k.Type == typeBoolean &&
			(value == "true" || value == "false"), k.Type == typeInteger && notInteger == nil:
			return name + " = " + value
		}
	}
	return ""
}

// isPrintable reports whether Go's quotes around s are TOML's.
func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f })
}

// scalar returns the value of a key and where it stands; false if it is absent or has another type.
func scalar[T any](s *section, key, want string) (T, location, bool) {
	at := s.location(key)
	value, ok := s.values[key]
	if !ok {
		return *new(T), at, false
	}
	typed, ok := value.(T)
	if !ok {
		s.mistyped(at, value, want)
	}
	return typed, at, ok
}

func (s *section) text(key string) (string, location, bool) {
	return scalar[string](s, key, "a string")
}

// required is text for a key that must be there and not be empty.
func (s *section) required(key string) (string, location, bool) {
	value, at, ok := s.text(key)
	if _, there := s.values[key]; !there {
		s.missing(key)
	}
	if ok && value == "" {
		s.add(at, "write "+keysByName[at.key].Example, "is empty")
		ok = false
	}
	return value, at, ok
}

func (s *section) flag(key string, byDefault bool) bool {
	if value, _, ok := scalar[bool](s, key, "a boolean"); ok {
		return value
	}
	return byDefault
}

func (s *section) duration(key string, byDefault, least, most time.Duration) time.Duration {
	text, at, ok := s.text(key)
	if !ok {
		return byDefault
	}
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		s.add(at, `write a number with a unit, such as "500ms", "30s", "10m" or "1h30m"`,
			"%q is not a duration", text)
	case d < least || d > most:
		s.add(at, fmt.Sprintf("it may be from %q to %q", formatDuration(least),
			formatDuration(most)), "%q is out of range", text)
	default:
		return d
	}
	return byDefault
}

// formatDuration writes a duration without units that are zero: "10m" where String has "10m0s".
func formatDuration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// item is an element of a list, and where it stands.
type item struct {
	text string
	at   location
}

// texts returns the elements of a list of strings. A single string counts as a list of one.
func (s *section) texts(key string) ([]item, bool) {
	value, ok := s.values[key]
	if !ok {
		return nil, false
	}
	at := s.location(key)
	if text, ok := value.(string); ok {
		return []item{{text, at}}, true
	}
	list, ok := value.([]any)
	if !ok {
		s.mistyped(at, value, "a string or a list of strings")
		return nil, false
	}
	items := make([]item, 0, len(list))
	for i, elem := range list {
		at.Position = s.at.Key(key).Elem(i).Value
		text, ok := elem.(string)
		if !ok {
			s.mistyped(at, elem, "a string")
			continue
		}
		items = append(items, item{text, at})
	}
	return items, true
}

// sub returns the table under a key; nil if it is absent or not for this role.
func (s *section) sub(key string) *section {
	value, at, ok := scalar[map[string]any](s, key, "a table")
	if !ok || !keysByName[at.key].allows(s.role) {
		return nil
	}
	return s.within(key, value, s.at.Key(key))
}

// subs returns the tables of a list; none if the key is absent or not for this role.
func (s *section) subs(key string) []*section {
	value, ok := s.values[key]
	if !ok || !keysByName[key].allows(s.role) {
		return nil
	}
	var list []*section
	at := s.location(key)
	switch value := value.(type) {
	case []map[string]any:
		for i, table := range value {
			list = append(list, s.within(key, table, s.at.Key(key).Elem(i)))
		}
	case []any:
		for i, elem := range value {
			table, ok := elem.(map[string]any)
			if !ok {
				at.Position = s.at.Key(key).Elem(i).Value
				s.mistyped(at, elem, "a table")
				continue
			}
			list = append(list, s.within(key, table, s.at.Key(key).Elem(i)))
		}
	default:
		s.mistyped(at, value, "a list of tables")
	}
	return list
}

func (s *section) within(key string, values map[string]any, at *tomlpos.Node) *section {
	inner := &section{
		faults: s.faults, file: s.file, table: key, role: s.role, values: values,
		at: at,
	}
	inner.checkKeys()
	return inner
}

// checkKeys reports keys that don't belong here: unknown ones, and those of another table or role.
func (s *section) checkKeys() {
	for _, key := range slices.Sorted(maps.Keys(s.values)) {
		k, known := keysByName[s.full(key)]
		switch {
		case !known:
			s.add(s.nameLocation(key), s.suggest(key), "there is no such key")
		case s.included && !slices.Contains(includable, key):
			s.add(s.nameLocation(key), "move it to the main file",
				"an included file has only [[peers]], [[services]] and [[mappings]]")
		case !k.allows(s.role):
			s.add(s.nameLocation(key), "", "belongs to %s, and this is a %s", roles(k.Roles),
				s.role)
		}
	}
}

// suggest returns a hint at the key that an unknown one was probably meant to be.
func (s *section) suggest(key string) string {
	here := keysOf(s.table, s.role)
	if s.included {
		here = slices.DeleteFunc(here,
			func(k string) bool { return !slices.Contains(includable, k) })
	}
	if key == "private_key" {
		return "a private key stands in a file of its own, which private_key_file names"
	}
	if hint := didYouMean(key, here); hint != "" {
		return hint
	}
	for _, k := range keys {
		if table := k.Table(); table != s.table && k.allows(s.role) &&
			k.Name == strings.TrimPrefix(table+"."+key, ".") {
			if table == "" {
				return "it belongs to the top of the file, before the first [table]"
			}
			return "it belongs to " + keysByName[table].title()
		}
	}
	slices.Sort(here)
	return "the keys here are " + strings.Join(here, ", ")
}

// title returns a key as it is written: role, [metrics], [[peers]].
func (k Key) title() string {
	switch k.Type {
	case typeTables:
		return "[[" + k.Name + "]]"
	case typeTable:
		return "[" + k.Name + "]"
	}
	return k.Name
}

// roles lists roles in words: "role server", "the roles client and server".
func roles(list []Role) string {
	words := make([]string, len(list))
	for i, r := range list {
		words[i] = string(r)
	}
	if len(words) == 1 {
		return "role " + words[0]
	}
	return "the roles " + strings.Join(words, " and ")
}
