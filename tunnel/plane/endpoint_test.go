package plane

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/tunnel"
)

// A daemon that has just started does not know what its predecessor wanted. A peer with a session stays where
// it is, unless the address in the configuration means something new: then it is told, once.
func TestAnEndpointThatIsNewsIsToldByTheNextDaemon(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	s, release := b.supervise(b.config(tunnel.Data))
	d := device(tunnel.Data)
	require.NoError(t, s.Configure(ctx, d))
	peer, roamed := d.Peers[0].PublicKey, netip.MustParseAddrPort("198.51.100.77:4242")
	err := tellEngine(s, fmt.Sprintf("public_key=%s\nendpoint=%s\nlast_handshake_time_sec=%d\n",
		peer.Hex(), roamed, time.Now().Unix()))
	require.NoError(t, err)
	at := func() netip.AddrPort {
		for _, p := range status(t, s).Peers {
			if p.PublicKey == peer {
				return p.Endpoint
			}
		}
		return netip.AddrPort{}
	}
	next := func() { release(); s, release = b.supervise(b.config(tunnel.Data)) }

	next()
	d = device(tunnel.Data)
	require.NoError(t, s.Configure(ctx, d))
	assert.Equal(t, roamed, at())

	next()
	d.Peers[0].Endpoint, d.Peers[0].EndpointRevision = netip.MustParseAddrPort("203.0.113.3:51820"), 1
	require.NoError(t, s.Configure(ctx, d))
	assert.Equal(t, d.Peers[0].Endpoint, at())
	sets := status(t, s).Drops["sets"]
	require.NoError(t, s.Configure(ctx, d))
	assert.Equal(t, sets, status(t, s).Drops["sets"], "once")
	err = tellEngine(s, fmt.Sprintf("public_key=%s\nendpoint=%s\n", peer.Hex(), roamed))
	require.NoError(t, err)
	require.NoError(t, s.Configure(ctx, d))
	assert.Equal(t, roamed, at(), "a peer that roams stays where it is")
	d.Peers = slices.Clone(d.Peers)
	d.Peers[0].EndpointRevision++
	require.NoError(t, s.Configure(ctx, d))
	assert.Equal(t, d.Peers[0].Endpoint, at(), "but for one that is silent there")

	next()
	d = device(tunnel.Data)
	d.Settings.ListenPort++ // needs a new plane
	d.Peers[0].Endpoint, d.Peers[0].EndpointRevision = netip.MustParseAddrPort("203.0.113.4:51820"), 1
	require.NoError(t, s.Configure(ctx, d))
	assert.Equal(t, d.Peers[0].Endpoint, at())
	kill9(t, s)
	assert.Equal(t, d.Peers[0].Endpoint, at())
}
