package realtime

// window is the replay window of a session (RFC 6479). Package replay of wireguard-go has one that can only take a
// counter; this one can be asked before a message is opened, so that what arrived already costs no decryption, and it
// knows of each counter whether another message has come: with copies of voice (copies.go) one more is no replay.
// The zero window is empty. It belongs to the inbound thread.
type window struct {
	last  uint64 // the highest counter that was taken
	seen  [windowBlocks]uint64
	again [2][windowBlocks]uint64 // by the path that is used, and elsewhere
}

const (
	windowBlocks = 128 // a power of two
	// windowSize is how far back counters are known: a block less than all, since the newest one is not full.
	windowSize = (windowBlocks - 1) * 64
)

// has reports whether a counter is not to be taken: a message with it was, or it is older than the window.
func (w *window) has(counter uint64) bool {
	if counter > w.last {
		return false
	}
	return w.last-counter > windowSize || w.seen[counter/64%windowBlocks]>>(counter%64)&1 != 0
}

// take takes the counter of an authentic message. ok is false for one that has says.
func (w *window) take(counter uint64) (ok bool) {
	if w.has(counter) {
		return false
	}
	if counter > w.last {
		for n := min(counter/64-w.last/64, windowBlocks); n > 0; n-- {
			block := (counter/64 - n + 1) % windowBlocks
			w.seen[block], w.again[0][block], w.again[1][block] = 0, 0, 0
		}
		w.last = counter
	}
	w.seen[counter/64%windowBlocks] |= 1 << (counter % 64)
	return true
}

// takeAgain takes the counter of a second message, by the path that is used or elsewhere: what arrives by one of them
// does not count for the other. ok is false if no message was taken with it, or a second one was, too.
func (w *window) takeAgain(counter uint64, used bool) (ok bool) {
	again := &w.again[1]
	if used {
		again = &w.again[0]
	}
	block, bit := counter/64%windowBlocks, uint64(1)<<(counter%64)
	if counter > w.last || w.last-counter > windowSize || w.seen[block]&bit == 0 || again[block]&bit != 0 {
		return false
	}
	again[block] |= bit
	return true
}
