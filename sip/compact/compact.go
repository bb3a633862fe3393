// Package compact is the binary form (CBOR, RFC 8949) of what the relay of signalling tells itself and the daemon with
// each call: it takes a fraction of the time and room that JSON takes. Fields have the names of their JSON form, or
// numbers; either end ignores those that it does not know.
package compact

import (
	"bytes"

	"github.com/fxamacker/cbor/v2"
)

// Raw is a value as it was encoded.
type Raw = cbor.RawMessage

var (
	encoding = must(cbor.EncOptions{Time: cbor.TimeRFC3339Nano}.UserBufferEncMode())
	// Strings may be any bytes: a Call-ID with one that is no UTF-8, or that was cut in the middle of a character, must
	// not cost the calls behind it in the journal, nor block the records behind it.
	decoding = must(cbor.DecOptions{
		MaxArrayElements: 1 << 16, MaxMapPairs: 1 << 12, MaxNestedLevels: 16, UTF8: cbor.UTF8DecodeInvalid,
	}.DecMode())
)

func must[T any](mode T, err error) T {
	if err != nil {
		panic(err)
	}
	return mode
}

// Append encodes v behind what is in b.
func Append(b *bytes.Buffer, v any) error { return encoding.MarshalToBuffer(v, b) }

// Encode is the form of v.
func Encode(v any) ([]byte, error) {
	var b bytes.Buffer
	err := Append(&b, v)
	return b.Bytes(), err
}

// Decode reads a value that is all of b. It accepts any bytes.
func Decode(b []byte, v any) error { return decoding.Unmarshal(b, v) }

// First reads the first value of b, and gives what follows it (a sequence, RFC 8742).
func First(b []byte, v any) (rest []byte, err error) { return decoding.UnmarshalFirst(b, v) }
