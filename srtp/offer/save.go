package offer

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"unsafe"
)

// A call is saved field by field, whatever fields it has: one that was left out here could have the next process use a
// key again from the start. So the form is that of one build. Another one, whose calls look different, refuses it.
//
// What is saved has all keys of the call. It is for the memory of another process, and never for a file.

// given are the fields of a call that are not saved, since Load is given them.
var given = map[string]bool{"config": true, "places": true}

// form names what a call looks like in this build.
var form = func() [8]byte {
	h := sha256.New()
	seen := map[reflect.Type]bool{}
	var describe func(t reflect.Type)
	describe = func(t reflect.Type) {
		_, _ = fmt.Fprintf(h, "%s %s;", t, t.Kind())
		if seen[t] || marshals(t) {
			return
		}
		seen[t] = true
		switch t.Kind() {
		case reflect.Map:
			describe(t.Key())
			describe(t.Elem())
		case reflect.Pointer, reflect.Slice, reflect.Array:
			describe(t.Elem())
		case reflect.Struct:
			for i := range t.NumField() {
				if t == reflect.TypeFor[Call]() && given[t.Field(i).Name] {
					continue
				}
				_, _ = fmt.Fprintf(h, "%s:", t.Field(i).Name)
				describe(t.Field(i).Type)
			}
		}
	}
	describe(reflect.TypeFor[Call]())
	return [8]byte(h.Sum(nil))
}()

// Save is the call as bytes, keys included, for Load in a process of the same build.
func (c *Call) Save() []byte {
	b := slices.Clone(form[:])
	for f := range c.fields {
		b = save(b, f)
	}
	return b
}

// Load is NewCall for a call that an earlier process has saved. claim is called for each port that it holds. saved
// is the caller's to overwrite.
func Load(config Config, caller, callee Place, saved []byte, claim func(netip.AddrPort)) (*Call, error) {
	if len(saved) < len(form) || [8]byte(saved) != form {
		return nil, errors.New("load a call: another build has saved it")
	}
	c := NewCall(config, caller, callee)
	l := loader{rest: saved[len(form):]}
	for f := range c.fields {
		l.load(f)
	}
	if l.bad || len(l.rest) > 0 || c.branches == nil || c.ports == nil {
		return nil, errors.New("load a call: it ends early, or late")
	}
	for _, b := range c.branches {
		if b == nil {
			return nil, errors.New("load a call: a branch is missing")
		}
	}
	for a := range c.ports {
		claim(a)
	}
	return c, nil
}

// fields calls f with each field that is saved, until it returns false.
func (c *Call) fields(f func(reflect.Value) bool) {
	v := reflect.ValueOf(c).Elem()
	for i := range v.NumField() {
		if !given[v.Type().Field(i).Name] && !f(open(v.Field(i))) {
			return
		}
	}
}

// marshals says whether a type has a form of its own: of addresses, a part is not to be looked into.
func marshals(t reflect.Type) bool {
	return t.Implements(reflect.TypeFor[encoding.BinaryMarshaler]())
}

// open is a field that may be read and written, whatever its name. The struct that it is in is addressable.
func open(v reflect.Value) reflect.Value {
	return reflect.NewAt(v.Type(), unsafe.Pointer(v.UnsafeAddr())).Elem()
}

func save(b []byte, v reflect.Value) []byte {
	if marshals(v.Type()) {
		text, _ := v.Interface().(encoding.BinaryMarshaler).MarshalBinary() // of addresses, which never fails
		return append(binary.AppendUvarint(b, uint64(len(text))), text...)
	}
	switch v.Kind() {
	case reflect.Bool:
		if v.Bool() {
			return append(b, 1)
		}
		return append(b, 0)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return binary.AppendVarint(b, v.Int())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return binary.AppendUvarint(b, v.Uint())
	case reflect.String:
		return append(binary.AppendUvarint(b, uint64(v.Len())), v.String()...)
	case reflect.Pointer:
		if v.IsNil() {
			return append(b, 0)
		}
		return save(append(b, 1), v.Elem())
	case reflect.Array, reflect.Slice:
		if v.Kind() == reflect.Slice {
			b = binary.AppendUvarint(b, length(v))
		}
		for i := range v.Len() {
			b = save(b, v.Index(i))
		}
		return b
	case reflect.Map:
		b = binary.AppendUvarint(b, length(v))
		for key, element := range v.Seq2() {
			b = save(save(b, key), element)
		}
		return b
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Field(i)
			if f.CanAddr() {
				f = open(f)
			}
			b = save(b, f)
		}
		return b
	}
	panic("a call has a field of a kind that cannot be saved: " + v.Type().String())
}

// length is that of a slice or a map, and one more than that: 0 is nil.
func length(v reflect.Value) uint64 {
	if v.IsNil() {
		return 0
	}
	return uint64(v.Len()) + 1
}

type loader struct {
	rest []byte
	bad  bool
}

func (l *loader) load(v reflect.Value) {
	if marshals(v.Type()) {
		err := v.Addr().Interface().(encoding.BinaryUnmarshaler).UnmarshalBinary(l.take(l.uint()))
		l.bad = l.bad || err != nil
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(l.flag())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, used := binary.Varint(l.rest)
		if used <= 0 || v.OverflowInt(n) {
			l.fail()
			return
		}
		l.rest = l.rest[used:]
		v.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if n := l.uint(); v.OverflowUint(n) {
			l.fail()
		} else {
			v.SetUint(n)
		}
	case reflect.String:
		v.SetString(string(l.take(l.uint())))
	case reflect.Pointer:
		if l.flag() {
			v.Set(reflect.New(v.Type().Elem()))
			l.load(v.Elem())
		}
	case reflect.Array:
		for i := range v.Len() {
			l.load(v.Index(i))
		}
	case reflect.Slice:
		if n, some := l.length(); some {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				l.load(v.Index(i))
			}
		}
	case reflect.Map:
		if n, some := l.length(); some {
			v.Set(reflect.MakeMap(v.Type()))
			for range n {
				key, element := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
				l.load(key)
				l.load(element)
				v.SetMapIndex(key, element)
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			l.load(open(v.Field(i)))
		}
	default:
		l.fail()
	}
}

func (l *loader) fail() { l.bad, l.rest = true, nil }

func (l *loader) uint() uint64 {
	n, used := binary.Uvarint(l.rest)
	if used <= 0 {
		l.fail()
		return 0
	}
	l.rest = l.rest[used:]
	return n
}

// length reads what length has written. Each element takes a byte at least: none can be claimed that is not there.
func (l *loader) length() (n int, some bool) {
	x := l.uint()
	if x == 0 {
		return 0, false
	}
	if x-1 > uint64(len(l.rest)) {
		l.fail()
		return 0, false
	}
	return int(x - 1), true
}

func (l *loader) flag() bool {
	b := l.take(1)
	return len(b) == 1 && b[0] == 1
}

// take gives the next n bytes; none once it is bad.
func (l *loader) take(n uint64) []byte {
	if n > uint64(len(l.rest)) {
		l.fail()
		return nil
	}
	b := l.rest[:n]
	l.rest = l.rest[n:]
	return b
}
