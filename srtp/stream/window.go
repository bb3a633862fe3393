package stream

// window remembers which of the latest indices were seen (RFC 3711 section 3.3.2, which wants 64 at least).
type window struct {
	any     bool
	highest uint64
	seen    [windowSize / 64]uint64 // a ring of bits, by index
}

// windowSize is 20 s of a call, or what a video of 10 Mbit/s sends in a second: a line that fails over brings packets
// in an order of its own.
const windowSize = 1024

// fresh says whether the index was neither seen, nor is older than the window.
func (w *window) fresh(index uint64) bool {
	if !w.any || index > w.highest {
		return true
	}
	return w.highest-index < windowSize && w.seen[index/64%uint64(len(w.seen))]&(1<<(index%64)) == 0
}

// take marks a fresh index as seen.
func (w *window) take(index uint64) {
	if !w.any {
		// Everything before the first index is unseen. What is older than the window is refused all the same.
		w.any, w.highest = true, index
	}
	if index > w.highest && index-w.highest >= windowSize {
		clear(w.seen[:])
	} else {
		for next := w.highest + 1; next <= index; next++ {
			w.seen[next/64%uint64(len(w.seen))] &^= 1 << (next % 64)
		}
	}
	w.highest = max(w.highest, index)
	w.seen[index/64%uint64(len(w.seen))] |= 1 << (index % 64)
}

// restored is a window that has seen everything up to the index.
func restored(highest uint64) window {
	w := window{any: true, highest: highest}
	for i := range w.seen {
		w.seen[i] = ^uint64(0)
	}
	return w
}
