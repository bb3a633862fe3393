package plane

import (
	"context"
	"fmt"

	"ringway/tunnel"
)

// Handshake has the plane that serves in runDir make new sessions with peers now, with all where none is named: a re-key on demand,
// for measurements. The protocol allows one in five seconds with a peer; the plane leaves out what comes earlier. It needs no
// supervisor, and changes none.
func Handshake(ctx context.Context, runDir string, class tunnel.Class, keys ...tunnel.PublicKey) error {
	k, err := dialPlane(controlPath(runDir, class), func(message) {})
	if err != nil {
		return fmt.Errorf("have plane %s shake hands: %w", class, err)
	}
	defer k.close()
	r, err := k.call(ctx, message{Type: typeHandshake, Keys: keys})
	closeFDs(r.files...)
	if err != nil {
		return fmt.Errorf("have plane %s shake hands: %w", class, err)
	}
	return nil
}
