package engine

import (
	"context"

	"ringway/tunnel"
)

// mtuProber is an engine that finds out how long packets to peers may be.
type mtuProber interface {
	ConfirmMTU(ctx context.Context, keys ...tunnel.PublicKey) error
}

// ConfirmMTU has the engine find out soon whether long packets to some peers still pass. One that does not probe is
// left alone.
func (h *Holder) ConfirmMTU(ctx context.Context, keys ...tunnel.PublicKey) error {
	e, _ := h.current()
	if p, ok := e.(mtuProber); ok {
		return p.ConfirmMTU(ctx, keys...)
	}
	return nil
}
