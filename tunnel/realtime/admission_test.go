package realtime

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/tunnel"
)

const (
	ef     = 46 << 2
	ipG711 = 200 // bytes of an IP packet: 160 of sound in 20 ms
)

func mediaPacket(port uint16, size int, rtcp bool) []byte {
	p := packet(1, 2, ef, size)
	binary.BigEndian.PutUint16(p[20:], port)
	binary.BigEndian.PutUint16(p[22:], port)
	p[28], p[29] = 0x80, 0
	if rtcp {
		p[29] = 200
	}
	return p
}

// Through the whole engine: what is refused is counted, and signalling is not touched.
func TestTheEngineRefusesCalls(t *testing.T) {
	r := newRig(t)
	r.talk()
	require.NoError(t, r.a.SetAdmission(tunnel.Admission{Media: 1 << 46, Lines: []tunnel.AdmissionLine{{Overhead: 14}},
		Sites: []tunnel.AdmissionSite{{Key: r.b.key.Public(), Rate: 600_000}}}))
	for range 100 {
		for port := range uint16(14) {
			r.a.send(mediaPacket(2*port, ipG711, false))
		}
		r.a.send(packet(1, 2, 24<<2, 1200))
		r.a.send(packet(1, 2, 0, 1200))
		for range 16 {
			r.a.out.batch(r.now)
		}
		r.now += int64(20 * time.Millisecond)
		r.settle()
	}
	assert.Len(t, r.b.got(), 100*(5+2))
	assert.Equal(t, map[string]uint64{"over_budget": 100 * 9}, r.a.drops.all())
	m := r.a.Status().Peers[0].Media
	require.NotNil(t, m)
	assert.Equal(t, tunnel.MediaStatus{Budget: 600_000, Taken: 5 * 112_800, Flows: 5, Refused: 900, Refusing: true}, *m)
	assert.Nil(t, r.b.Status().Peers[0].Media)

	// A peer that comes later has the budget that was named for it.
	require.NoError(t, r.a.Set(strings.NewReader("public_key="+r.b.key.Public().Hex()+"\nremove=true\n")))
	r.a.meet(r.b, r.b.at)
	assert.NotNil(t, r.a.Status().Peers[0].Media)
}

// reserve has engine a serve a request while it is made.
func (r *rig) serve(ask func()) {
	done := make(chan struct{})
	go func() { defer close(done); ask() }()
	for {
		select {
		case <-done:
			return
		default:
			r.a.out.serveRequest(r.now)
			r.a.finishRequest()
		}
	}
}

// A reservation through the whole engine: a call keeps its place while it is on hold, and gives it back when
// it is released.
func TestTheEngineKeepsReservations(t *testing.T) {
	r := newRig(t)
	r.talk()
	require.NoError(t, r.a.SetAdmission(tunnel.Admission{Media: 1 << 46, Lines: []tunnel.AdmissionLine{{Overhead: 14}},
		Sites: []tunnel.AdmissionSite{{Key: r.b.key.Public(), Rate: 240_000}}})) // two calls
	assert.Nil(t, r.a.Status().Reservations)

	reservation := func(port uint16) tunnel.Reservation {
		return tunnel.Reservation{Site: r.b.key.Public(), Rate: 112_800, Flow: tunnel.Flow{
			Source:      netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, 10}), port),
			Destination: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 2, 10}), port),
		}}
	}
	reserve := func(v tunnel.Reservation) (state tunnel.ReservationState) {
		r.serve(func() {
			var err error
			state, err = r.a.Reserve(v)
			assert.NoError(t, err)
		})
		return state
	}
	arrives := func(port uint16) bool {
		r.a.send(mediaPacket(port, ipG711, false))
		r.settle()
		return len(r.b.got()) == 1
	}

	assert.Equal(t, tunnel.ReservationHeld, reserve(reservation(5000)))
	r.now += int64(time.Second)
	assert.Equal(t, tunnel.ReservationHeld, reserve(reservation(5002)))
	assert.Equal(t, tunnel.SiteBudgetFull, reserve(reservation(5004)))
	stranger := reservation(5006)
	stranger.Site = tunnel.PublicKey{9}
	assert.Equal(t, tunnel.SiteUnknown, reserve(stranger))
	_, err := r.a.Reserve(tunnel.Reservation{Rate: 1})
	require.EqualError(t, err, "reserve for invalid AddrPort to invalid AddrPort: not two addresses of one family")

	require.True(t, arrives(5000))
	r.now += int64(60 * time.Second) // on hold
	assert.False(t, arrives(5004), "no place for a third call")
	assert.True(t, arrives(5000))
	assert.True(t, arrives(5002))

	// A smaller budget: the newest goes.
	r.serve(func() {
		assert.NoError(t, r.a.SetAdmission(tunnel.Admission{Media: 1 << 46, Lines: []tunnel.AdmissionLine{{Overhead: 14}},
			Sites: []tunnel.AdmissionSite{{Key: r.b.key.Public(), Rate: 120_000}}}))
	})
	r.now += int64(20 * time.Millisecond)
	assert.True(t, arrives(5000))
	assert.False(t, arrives(5002))
	assert.Equal(t, []tunnel.ReservationStatus{
		{Reservation: reservation(5000), State: tunnel.ReservationHeld},
		{Reservation: reservation(5002), State: tunnel.SiteBudgetFull},
	}, r.a.Reservations())
	assert.Equal(t, &tunnel.ReservationCounts{
		Held:    1,
		Refused: map[tunnel.ReservationState]uint64{tunnel.SiteBudgetFull: 1, tunnel.SiteUnknown: 1},
		Lost:    map[tunnel.ReservationState]uint64{tunnel.SiteBudgetFull: 1},
	}, r.a.Status().Reservations)

	for _, port := range []uint16{5000, 5002} {
		r.serve(func() {
			known, err := r.a.Release(reservation(port).Flow)
			assert.NoError(t, err)
			assert.True(t, known)
		})
	}
	known, err := r.a.Release(reservation(5000).Flow)
	require.NoError(t, err)
	assert.False(t, known)
	assert.Empty(t, r.a.Reservations())
	assert.Equal(t, tunnel.ReservationHeld, reserve(reservation(5004)), "the place is free at once")

	// A site that is removed takes its reservations with it.
	require.NoError(t, r.a.Set(strings.NewReader("public_key="+r.b.key.Public().Hex()+"\nremove=true\n")))
	assert.Equal(t, []tunnel.ReservationStatus{{Reservation: reservation(5004), State: tunnel.SiteUnknown}},
		r.a.Reservations())
}

// Reservations of several callers, on an engine whose threads run, and which ends meanwhile.
func TestReservationsOnARunningEngine(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	e := a.E.(*Engine)
	admission := tunnel.Admission{
		Media: 1 << 46,
		Lines: []tunnel.AdmissionLine{{Overhead: 14}},
		Sites: []tunnel.AdmissionSite{{Key: b.Key.Public(), Rate: 10_000_000}},
	}
	require.NoError(t, e.SetAdmission(admission))
	site := b.Key.Public()
	reservation := func(caller, call int) tunnel.Reservation {
		return tunnel.Reservation{Site: site, Rate: 100_000, Flow: tunnel.Flow{
			Source:      netip.AddrPortFrom(netip.MustParseAddr("10.66.0.1"), uint16(10000+caller)),
			Destination: netip.AddrPortFrom(netip.MustParseAddr("10.66.0.2"), uint16(10000+call)),
		}}
	}

	const callers, calls = 4, 50
	began := time.Now()
	var all sync.WaitGroup
	for caller := range callers {
		all.Go(func() {
			for call := range calls {
				state, err := e.Reserve(reservation(caller, call))
				assert.NoError(t, err)
				assert.Equal(t, tunnel.ReservationHeld, state)
				if call%5 > 0 {
					known, err := e.Release(reservation(caller, call).Flow)
					assert.NoError(t, err)
					assert.True(t, known)
				}
			}
		})
	}
	require.NoError(t, e.SetAdmission(admission))
	all.Wait()
	t.Logf("%v a request", time.Since(began)/(callers*calls*9/5))
	assert.Equal(t, callers*calls/5, e.Status().Reservations.Held)
	media := e.Status().Peers[0].Media
	assert.Equal(t, callers*calls/5, media.Reserved)
	assert.EqualValues(t, callers*calls/5*100_000, media.Taken)

	all.Go(func() {
		for call := 0; ; call++ {
			if _, err := e.Reserve(reservation(9, call%100)); err != nil {
				assert.ErrorIs(t, err, errEnded)
				return
			}
		}
	})
	require.NoError(t, e.Close())
	_, err := e.Reserve(reservation(9, 0))
	require.ErrorIs(t, err, errEnded, "its peers are gone because it ended")
	all.Wait()
}
