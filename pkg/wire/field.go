package wire

import (
	"bytes"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/quic-go/quic-go/quicvarint"
)

// A field is number (varint), length (varint), value. The append functions leave out a field whose
// value is zero or empty. The take functions decode a value. Their first result is always true, for
// a known number: a message's field method returns both results as its own.

// cutField splits a body behind its first field.
func cutField(body []byte) (number uint64, value, rest []byte, err error) {
	number, n, err := quicvarint.Parse(body)
	if err != nil {
		return 0, nil, nil, malformed("a field's number is truncated")
	}
	body = body[n:]
	length, n, err := quicvarint.Parse(body)
	if err != nil {
		return 0, nil, nil, malformed("the length of field %d is truncated", number)
	}
	body = body[n:]
	if length > uint64(len(body)) {
		return 0, nil, nil, malformed("field %d has %d bytes, %d are left", number, length, len(body))
	}
	return number, body[:length], body[length:], nil
}

func appendUint(dst []byte, number, value uint64) []byte {
	if value == 0 {
		return dst
	}
	dst = quicvarint.Append(dst, number)
	dst = quicvarint.Append(dst, uint64(quicvarint.Len(value)))
	return quicvarint.Append(dst, value)
}

func appendFlag(dst []byte, number uint64, flag bool) []byte {
	if !flag {
		return dst
	}
	return appendUint(dst, number, 1)
}

func appendString[T string | []byte](dst []byte, number uint64, value T) []byte {
	if len(value) == 0 {
		return dst
	}
	dst = quicvarint.Append(dst, number)
	dst = quicvarint.Append(dst, uint64(len(value)))
	return append(dst, value...)
}

func takeUint(into *uint64, value []byte) (bool, error) {
	v, n, err := quicvarint.Parse(value)
	if err != nil || n != len(value) {
		return true, malformed("not an integer")
	}
	*into = v
	return true, nil
}

func takeFlag(into *bool, value []byte) (bool, error) {
	var v uint64
	if _, err := takeUint(&v, value); err != nil || v > 1 {
		return true, malformed("not 0 or 1")
	}
	*into = v == 1
	return true, nil
}

func takeDuration(into *time.Duration, value []byte) (bool, error) {
	var v uint64
	_, err := takeUint(&v, value)
	*into = duration(v)
	return true, err
}

// takeString takes UTF-8 of at most the given number of bytes, without control characters: texts of
// a peer go to terminals and logs.
func takeString(into *string, value []byte, most int) (bool, error) {
	if len(value) > most {
		return true, malformed("%d bytes; %d is the most", len(value), most)
	}
	if !utf8.Valid(value) {
		return true, malformed("not UTF-8")
	}
	if bytes.ContainsFunc(value, unicode.IsControl) {
		return true, malformed("a control character")
	}
	*into = Clean(string(value))
	return true, nil
}

func takeInner(into *[]byte, value []byte) (bool, error) {
	if len(value) > MaxInner {
		return true, malformed("an inner message of %d bytes; %d is the most", len(value), MaxInner)
	}
	if len(value) > 0 { // an empty field means none, as an absent one
		*into = value
	}
	return true, nil
}

func takeOrigin(into *[]byte, value []byte) (bool, error) {
	if len(value) > MaxOrigin {
		return true, malformed("an origin of %d bytes; %d is the most", len(value), MaxOrigin)
	}
	if len(value) > 0 {
		*into = bytes.Clone(value)
	}
	return true, nil
}

func takeToken(into *Token, value []byte) (bool, error) {
	if len(value) != len(into) {
		return true, malformed("a token of %d bytes", len(value))
	}
	copy(into[:], value)
	return true, nil
}

// appendList appends a field of strings, each behind its length.
func appendList(dst []byte, number uint64, list []string) []byte {
	if len(list) == 0 {
		return dst
	}
	dst = quicvarint.Append(dst, number)
	dst = quicvarint.Append(dst, uint64(listSize(list)))
	for _, text := range list {
		dst = quicvarint.Append(dst, uint64(len(text)))
		dst = append(dst, text...)
	}
	return dst
}

// listSize returns the length of the value that appendList writes, in bytes.
func listSize(list []string) (n int) {
	for _, text := range list {
		n += quicvarint.Len(uint64(len(text))) + len(text)
	}
	return n
}

// takeList takes 1 to most strings of at most longest bytes each.
func takeList(into *[]string, value []byte, most, longest int) (bool, error) {
	if len(value) == 0 {
		return true, malformed("an empty list")
	}
	var list []string
	for len(value) > 0 {
		length, n, err := quicvarint.Parse(value)
		if err != nil || length > uint64(len(value)-n) {
			return true, malformed("a list is truncated")
		}
		if len(list) >= most {
			return true, malformed("more than %d in a list", most)
		}
		var text string
		if _, err := takeString(&text, value[n:n+int(length)], longest); err != nil {
			return true, err
		}
		list = append(list, text)
		value = value[n+int(length):]
	}
	*into = list
	return true, nil
}

// millis encodes a duration: whole milliseconds, 0 for a negative one.
func millis(d time.Duration) uint64 { return uint64(max(d, 0) / time.Millisecond) }

// duration decodes milliseconds, at most 100 years: a time.Duration holds no more than 292.
func duration(ms uint64) time.Duration {
	const most = 100 * 365 * 24 * time.Hour
	return time.Duration(min(ms, uint64(most/time.Millisecond))) * time.Millisecond
}
