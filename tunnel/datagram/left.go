package datagram

import (
	"net/netip"
	"slices"
	"sync/atomic"
)

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
