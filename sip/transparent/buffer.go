package transparent

import (
	"sync"
	"sync/atomic"

	"ringway/sip/message"
)

// bufferSizes are those that a buffer may have. The largest holds the longest message and one byte more, by which
// message.Framer tells that it is too long.
var bufferSizes = [...]int{4 << 10, 16 << 10, message.MaxSize + 1}

// memory bounds and recycles the buffers of a relay.
type memory struct {
	limit int64
	used  atomic.Int64
	free  [len(bufferSizes)]sync.Pool // of *[]byte
}

// get gives memory of a size of bufferSizes; ok is false if the limit is reached, which does not hold for force.
func (m *memory) get(size int, force bool) (b []byte, ok bool) {
	if used := m.used.Add(int64(bufferSizes[size])); used > m.limit && !force {
		m.used.Add(-int64(bufferSizes[size]))
		return nil, false
	}
	if old, ok := m.free[size].Get().(*[]byte); ok {
		return *old, true
	}
	return make([]byte, bufferSizes[size]), true
}

// reserve counts memory that is taken elsewhere; false: the limit is reached. release gives it back.
func (m *memory) reserve(n int64) bool {
	if m.used.Add(n) > m.limit {
		m.used.Add(-n)
		return false
	}
	return true
}

func (m *memory) release(n int64) { m.used.Add(-n) }

func (m *memory) put(size int, b []byte) {
	m.used.Add(-int64(bufferSizes[size]))
	m.free[size].Put(&b)
}

// buffer holds what came on a stream and has not gone on: the start of a message. While it is empty it holds no
// memory.
type buffer struct {
	from       *memory
	b          []byte // of bufferSizes[size] bytes; nil: none
	size       int
	start, end int // of the bytes in b
}

func (b *buffer) bytes() []byte { return b.b[b.start:b.end] }
func (b *buffer) empty() bool   { return b.start == b.end }

// space gives room for at least one byte more; ok is false if there is no memory. added must follow. A buffer of the
// last size is never full: whoever judges what it holds refuses it before.
func (b *buffer) space() (room []byte, ok bool) {
	switch {
	case b.b == nil:
		if b.b, ok = b.from.get(0, false); !ok {
			return nil, false
		}
		b.size, b.start, b.end = 0, 0, 0
	case b.end < len(b.b):
	case b.start > 0:
		b.end = copy(b.b, b.bytes())
		b.start = 0
	default:
		if !b.grow(b.size+1, false) {
			return nil, false
		}
	}
	return b.b[b.end:], true
}

// grow moves the bytes to memory of another size.
func (b *buffer) grow(size int, force bool) bool {
	if size == len(bufferSizes) {
		return false
	}
	larger, ok := b.from.get(size, force)
	if !ok {
		return false
	}
	n := copy(larger, b.bytes())
	if b.b != nil {
		b.from.put(b.size, b.b)
	}
	b.b, b.size, b.start, b.end = larger, size, 0, n
	return true
}

// added takes in the first n bytes of space.
func (b *buffer) added(n int) {
	b.end += n
	b.consume(0)
}

// consume releases the first n bytes.
func (b *buffer) consume(n int) {
	b.start += n
	if b.empty() && b.b != nil {
		b.from.put(b.size, b.b)
		b.b, b.start, b.end = nil, 0, 0
	}
}

// load takes in bytes of another process, whatever the limit; it reports whether they fit.
func (b *buffer) load(bytes []byte) bool {
	if len(bytes) == 0 {
		return true
	}
	for size, n := range bufferSizes {
		if len(bytes) <= n {
			b.grow(size, true)
			b.end = copy(b.b, bytes)
			return true
		}
	}
	return false
}
