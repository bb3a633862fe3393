package media

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
)

// latch holds an address that one thread writes and others read. It has two places, and version says which one is
// valid: a reader never waits for a writer, which may be a thread that it keeps from running. Only two writes during
// one read can spoil it, and there are learnEvery between them; then it reads again.
type latch struct {
	version atomic.Uint32
	places  [2]struct{ high, low, rest atomic.Uint64 }
}

const latchTries = 4

func (l *latch) store(a netip.AddrPort) {
	next := l.version.Load() + 1
	p := &l.places[next%2]
	b := a.Addr().As16()
	rest := uint64(a.Port())
	if a.Addr().Is4() {
		rest |= 1 << 16
	}
	p.high.Store(binary.BigEndian.Uint64(b[:]))
	p.low.Store(binary.BigEndian.Uint64(b[8:]))
	p.rest.Store(rest)
	l.version.Store(next)
}

func (l *latch) load() netip.AddrPort {
	var b [16]byte
	var rest uint64
	for range latchTries {
		version := l.version.Load()
		p := &l.places[version%2]
		binary.BigEndian.PutUint64(b[:], p.high.Load())
		binary.BigEndian.PutUint64(b[8:], p.low.Load())
		rest = p.rest.Load()
		if l.version.Load() == version {
			break
		}
	}
	a := netip.AddrFrom16(b)
	if rest>>16 == 1 {
		a = a.Unmap()
	}
	return netip.AddrPortFrom(a, uint16(rest))
}
