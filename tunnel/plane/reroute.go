package plane

import (
	"context"

	"ringway/process"
	"ringway/tunnel"
)

// minorReroute is the first protocol in which a plane can be told to leave addresses. An older one finds out by itself:
// its packets from an address that is gone fail, and it then has the kernel choose.
const minorReroute = 6

func (s *server) handleReroute(e Engine, m *process.Message) (process.Reply, error) {
	var r tunnel.Reroute
	if err := m.Decode(&r); err != nil {
		return process.Reply{}, err
	}
	e.Reroute(r)
	return process.Reply{}, nil
}

// Reroute has the engine choose again which of our addresses it sends from. It does nothing while no plane runs: the
// next one begins without an address.
func (s *Supervisor) Reroute(ctx context.Context, r tunnel.Reroute) error {
	cur := s.current()
	if cur == nil || cur.Hello.Minor < minorReroute {
		return nil
	}
	return cur.Ask(ctx, process.Request{Type: typeReroute, Body: r}, nil)
}
