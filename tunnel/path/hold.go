package path

import (
	"slices"

	"ringway/tunnel"
)

// Hold is what follows, for a while, from a move of a far end with several addresses: what was on its way does not lead
// back to the path that was left. It never changes, so that threads share it. Nil holds nothing.
type Hold struct {
	from      Path
	until     int64 // ns of the engine's clock
	listed    []Path
	leadUntil int64 // 0: the far end leads
}

// NewHold is what follows from a move. leads is whether this end stays where it has moved to when both move at the same
// time; it is so at one end of two. Without a lead each would follow the other forever.
func NewHold(now int64, from Path, listed []Path, leads bool) *Hold {
	h := &Hold{from: from, until: now + int64(tunnel.TrialTime), listed: slices.Clone(listed)}
	if leads {
		h.leadUntil = now + int64(LeadTime)
	}
	return h
}

// Follow is by which path to send to a far end that is sent to by used, when something authentic arrives by another
// one. heard is whether that ends a silence. It allocates nothing.
func (h *Hold) Follow(now int64, used, arrived Path) (to Path, heard bool) {
	switch {
	case h == nil || now >= h.until:
		return arrived, true
	case arrived == h.from:
		return used, false // it was on its way, or the far end has yet to hear that we have left
	case now < h.leadUntil && slices.Contains(h.listed, arrived):
		return used, true
	case arrived.Source == h.from.Source && used.Source != h.from.Source:
		return Path{used.Source, arrived.Remote}, true // the address that was left stays left
	}
	return arrived, true
}
