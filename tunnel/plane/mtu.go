package plane

import (
	"context"

	"ringway/process"
	"ringway/tunnel"
)

// minorConfirmMTU is the first protocol in which a plane can be told to confirm what paths take. An older one does not
// probe at all.
const minorConfirmMTU = 7

type confirmMTURequest struct {
	Keys []tunnel.PublicKey `json:"keys"`
}

func (s *server) handleConfirmMTU(e Engine, m *process.Message) (process.Reply, error) {
	var r confirmMTURequest
	if err := m.Decode(&r); err != nil {
		return process.Reply{}, err
	}
	if p, ok := e.(mtuProber); ok {
		p.ConfirmMTU(r.Keys...)
	}
	return process.Reply{}, nil
}

// ConfirmMTU has the engine find out soon whether long packets to some peers still pass. It does nothing while no plane
// runs: the next one begins by finding out.
func (s *Supervisor) ConfirmMTU(ctx context.Context, keys ...tunnel.PublicKey) error {
	cur := s.current()
	if cur == nil || cur.Hello.Minor < minorConfirmMTU {
		return nil
	}
	return cur.Ask(ctx, process.Request{Type: typeConfirmMTU, Body: confirmMTURequest{Keys: keys}}, nil)
}
