package appliance

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"

	"ringway/appliance/endpoint"
	"ringway/debounce"
	"ringway/tunnel"
)

// A plane that is started again has no session. A site that dials in is not found in the config, and one that
// roamed is not where the config says: the plane must be told where each was last heard.
func TestAPlaneThatStartsAgainIsToldWhereItsPeersWereHeard(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	d := &Daemon{log: log, roamed: debounce.New(roaming)}
	d.endpoints = endpoint.Load(filepath.Join(t.TempDir(), "endpoints.json"), log)
	dialsIn := tunnel.Site{Name: "munich", PublicKey: tunnel.PublicKey{1}}
	at, _ := d.endpoints.Tell(tunnel.Voice, dialsIn)
	assert.False(t, at.IsValid())

	plane := d.planeConfig(tunnel.Voice)
	heard := netip.MustParseAddrPort("192.0.2.77:40000")
	plane.OnEndpoints(map[tunnel.PublicKey]netip.AddrPort{dialsIn.PublicKey: heard})

	dev := tunnel.Device{Class: tunnel.Voice, Peers: []tunnel.Peer{{PublicKey: dialsIn.PublicKey}}}
	assert.Equal(t, heard, plane.Latest(dev).Peers[0].Endpoint)
}
