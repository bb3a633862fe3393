package datagram

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

// TrialTime is how long packets that arrive at an address which was left do not bring peers back to it. A peer that
// has heard of the new address sends there by then; one that has not still sends to the old one, which is taken
// again: what was lost by a line that delivers nothing is this long.
const TrialTime = 500 * time.Millisecond

// Left holds the addresses of this machine that an engine has stopped sending from. An engine answers a peer from where
// the peer's last packet arrived. Without this, a packet that is on its way would undo the choice of a new address.
// The zero Left holds none. It is safe for concurrent use; Has allocates nothing.
type Left struct{ now atomic.Pointer[left] }

type left struct {
	addresses []netip.Addr
	until     int64 // of the engine's clock, in ns
}

// Set replaces the addresses.
func (l *Left) Set(addresses []netip.Addr, until int64) {
	l.now.Store(&left{slices.Clone(addresses), until})
}

// Has reports whether a was left, and is not to be sent from yet.
func (l *Left) Has(a netip.Addr, now int64) bool {
	s := l.now.Load()
	return s != nil && now < s.until && slices.Contains(s.addresses, a)
}
