package plane

import (
	"context"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/tunnel"
)

// Reservations reach the plane, survive the daemon, and end with the plane.
func TestAPlaneKeepsReservations(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	cfg := b.config(tunnel.Voice)
	cfg.Engine = tunnel.EngineRealtime
	s, release := b.supervise(cfg)
	_, err := s.Reserve(ctx)
	require.EqualError(t, err, "plane voice is not running")
	require.NoError(t, s.Configure(ctx, device(tunnel.Voice)))

	reservation := func(port uint16) tunnel.Reservation {
		return tunnel.Reservation{Site: key(7).Public(), Rate: 112_800, Flow: tunnel.Flow{
			Source:      netip.AddrPortFrom(netip.MustParseAddr("10.1.10.20"), port),
			Destination: netip.AddrPortFrom(netip.MustParseAddr("10.2.10.31"), port),
		}}
	}
	got, err := s.Reserve(ctx, reservation(5000), reservation(5002))
	require.NoError(t, err)
	held := tunnel.ReservationStatus{Reservation: reservation(5000), State: tunnel.ReservationHeld}
	assert.Equal(t, []tunnel.ReservationStatus{held, {Reservation: reservation(5002), State: tunnel.SiteBudgetFull}}, got)

	_, err = s.Reserve(ctx, tunnel.Reservation{})
	require.ErrorContains(t, err, "not two addresses of one family")

	release()
	s, _ = b.supervise(cfg)
	require.NoError(t, s.Configure(ctx, device(tunnel.Voice)))
	got, err = s.Reservations(ctx)
	require.NoError(t, err)
	assert.Equal(t, []tunnel.ReservationStatus{held}, got, "the next daemon finds it")

	require.NoError(t, s.Release(ctx, reservation(5000).Flow))
	got, err = s.Reservations(ctx)
	require.NoError(t, err)
	assert.Empty(t, got)

	_, err = s.Reserve(ctx, reservation(5000))
	require.NoError(t, err)
	kill9(t, s)
	status(t, s)
	got, err = s.Reservations(ctx)
	require.NoError(t, err)
	assert.Empty(t, got, "a new plane has none")
}

// An engine that does not know flows says so.
func TestAnEngineWithoutReservations(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	s, _ := b.supervise(b.config(tunnel.Data))
	require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
	_, err := s.Reservations(ctx)
	require.ErrorContains(t, err, `keeps no reservations (only realtime does)`)
}
