package realtime

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

// rtpPacket is 20 ms of G.711 of a call.
func rtpPacket(port, sequence uint16) []byte {
	p := mediaPacket(port, ipG711, false)
	binary.BigEndian.PutUint16(p[30:], sequence)
	binary.BigEndian.PutUint32(p[32:], 160*uint32(sequence))
	binary.BigEndian.PutUint32(p[36:], 0xabad1dea)
	return p
}

var measured = tunnel.Measured{Media: 1 << 46, Series: 100}

// series are those of an engine of the rig, while its threads' part is played.
func (r *rig) series(b *bare) (all []tunnel.SeriesStatus) {
	r.t.Helper()
	for next := 0; ; {
		var page tunnel.SeriesPage
		done := make(chan struct{})
		go func() {
			defer close(done)
			var err error
			page, err = b.Series(next)
			assert.NoError(r.t, err)
		}()
		for served := false; !served; {
			select {
			case <-done:
				served = true
			default:
				b.out.serveRequest(r.now)
				b.in.serveCopy()
				b.finishRequest()
				runtime.Gosched()
			}
		}
		all = append(all, page.Series...)
		if next = page.Next; next == 0 {
			return all
		}
	}
}

// Packets that the phone's LAN lost, that had no place in the budget, and that the line lost, each count where they
// were lost, through re-keys and with packets that arrive in another order and twice.
func TestLossesAreFoundWhereTheyAre(t *testing.T) {
	r := newRig(t)
	r.talk()
	for _, x := range []*bare{r.a, r.b} {
		require.NoError(t, x.SetMeasured(measured))
	}
	onLAN, onLine := 0, 0
	var held []byte
	const packets = 2000
	for i := range uint16(packets) {
		if i > 0 && i < packets-1 && i%50 == 7 {
			onLAN++
			continue
		}
		if i%500 == 499 { // a new session
			r.pass(2 * time.Minute)
		}
		r.a.send(rtpPacket(5000, 65000+i))
		r.a.out.batch(r.now)
		r.now += int64(20 * time.Millisecond)
		for _, m := range r.b.wire() {
			switch {
			case len(m) < 200: // of the handshake
				r.b.inject(m, r.a.at)
			case i > 0 && i < packets-1 && i%40 == 3:
				onLine++
			case i%10 == 5: // overtaken by the next one
				held = m
			default:
				r.b.inject(m, r.a.at)
				r.b.inject(m, r.a.at) // a copy
				if held != nil {
					r.b.inject(held, r.a.at)
					held = nil
				}
			}
		}
		r.settle()
		r.b.got()
	}
	require.NotZero(t, onLAN)
	require.NotZero(t, onLine)

	sent, received := r.series(r.a), r.series(r.b)
	require.Len(t, sent, 1)
	require.Len(t, received, 1)
	s, v := sent[0], received[0]
	assert.True(t, s.Out)
	assert.False(t, v.Out)
	assert.Equal(t, r.b.key.Public(), s.Site)
	assert.Equal(t, r.a.key.Public(), v.Site)
	flow := tunnel.Flow{
		Source:      netip.MustParseAddrPort("10.0.1.10:5000"),
		Destination: netip.MustParseAddrPort("10.0.2.10:5000"),
	}
	for _, x := range []tunnel.SeriesStatus{s, v} {
		assert.Equal(t, flow, x.Flow)
		assert.EqualValues(t, 0xabad1dea, x.Source)
		assert.EqualValues(t, packets, x.Expected)
		assert.Equal(t, x.Arrived, x.Passed)
		assert.Zero(t, x.Copies, "the copies were replays of messages")
		assert.Zero(t, x.Late)
	}
	assert.EqualValues(t, packets-onLAN, s.Arrived)
	assert.EqualValues(t, packets-onLAN-onLine, v.Arrived)
	assert.Empty(t, s.Dropped)
}

// What has no place in the budget was lost in this box, and it says so.
func TestLossesInThisBoxHaveTheirReason(t *testing.T) {
	r := newRig(t)
	r.talk()
	require.NoError(t, r.a.SetMeasured(measured))
	require.NoError(t, r.a.SetAdmission(tunnel.Admission{Media: 1 << 46, Lines: []tunnel.AdmissionLine{{Overhead: 14}},
		Sites: []tunnel.AdmissionSite{{Key: r.b.key.Public(), Rate: 240_000}}})) // two calls
	for i := range uint16(100) {
		for port := range uint16(3) {
			r.a.send(rtpPacket(5000+2*port, i))
			r.settle()
		}
		r.now += int64(20 * time.Millisecond)
	}
	all := r.series(r.a)
	require.Len(t, all, 3)
	slices.SortFunc(all, func(a, b tunnel.SeriesStatus) int { return int(b.Passed) - int(a.Passed) })
	for _, s := range all[:2] {
		assert.EqualValues(t, 100, s.Passed)
		assert.Empty(t, s.Dropped)
	}
	assert.EqualValues(t, 100, all[2].Arrived)
	assert.EqualValues(t, 0, all[2].Passed)
	assert.Equal(t, map[string]uint32{"over_budget": 100}, all[2].Dropped)
}

// Packets that wait for a session pass when it comes, or are lost here when none does.
func TestPacketsThatWaitForASessionAreCounted(t *testing.T) {
	r := newRig(t)
	require.NoError(t, r.a.SetMeasured(measured))
	r.a.send(rtpPacket(5000, 1))
	r.settle()
	require.Len(t, r.b.got(), 1)
	s := r.series(r.a)
	require.Len(t, s, 1)
	assert.EqualValues(t, 1, s[0].Passed)

	other := newRig(t)
	require.NoError(t, other.a.SetMeasured(measured))
	other.b.drop = func() { other.b.wire() }
	other.a.send(rtpPacket(5000, 1))
	other.a.take()
	other.now += int64(stagedFor) + 1
	other.a.out.sendStaged(other.now)
	s = other.series(other.a)
	require.Len(t, s, 1)
	assert.EqualValues(t, 0, s[0].Passed)
	assert.Equal(t, map[string]uint32{"no_session": 1}, s[0].Dropped)
}

// Only media is counted, and only as long as it is to be. What was counted stays through a change that needs no more
// space.
func TestWhatIsMeasured(t *testing.T) {
	r := newRig(t)
	r.talk()
	send := func(p []byte) {
		r.a.send(p)
		r.settle()
		require.Len(t, r.b.got(), 1)
	}
	send(rtpPacket(5000, 1))
	assert.Empty(t, r.series(r.a))

	require.EqualError(t, r.a.SetMeasured(tunnel.Measured{Media: 1, Series: 8193}),
		"measure 8193 series of media (allowed 0-8192)")
	require.NoError(t, r.a.SetMeasured(measured))
	data := rtpPacket(5000, 2)
	data[1] = 0
	send(data)
	send(mediaPacket(5001, ipG711, true))
	assert.Empty(t, r.series(r.a))
	send(rtpPacket(5000, 3))
	require.NoError(t, r.a.SetMeasured(tunnel.Measured{Media: 1<<46 | 1<<34, Series: 10}))
	send(rtpPacket(5000, 4))
	s := r.series(r.a)
	require.Len(t, s, 1)
	assert.EqualValues(t, 2, s[0].Passed)

	require.NoError(t, r.a.SetMeasured(tunnel.Measured{}))
	send(rtpPacket(5000, 5))
	assert.Empty(t, r.series(r.a))
	_, err := r.a.Series(-1)
	require.EqualError(t, err, "series from position -1 (allowed 0 and more)")
}

// Many series come in several parts, each once.
func TestSeriesComeInParts(t *testing.T) {
	r := newRig(t)
	r.talk()
	for _, x := range []*bare{r.a, r.b} {
		require.NoError(t, x.SetMeasured(tunnel.Measured{Media: 1 << 46, Series: 1000}))
	}
	const calls = 700
	for port := range uint16(calls) {
		r.a.send(rtpPacket(5000+port, 1))
		r.b.send(reversed(rtpPacket(5000+port, 1)))
		r.settle()
		r.a.got()
		r.b.got()
	}
	seen := map[uint16]int{}
	out := 0
	for _, s := range r.series(r.a) {
		seen[s.Flow.Source.Port()]++
		if s.Out {
			out++
		}
	}
	assert.Equal(t, calls, out)
	assert.Len(t, seen, calls)
	for port, n := range seen {
		assert.Equal(t, 2, n, port)
	}
}

// reversed is a packet the other way.
func reversed(p []byte) []byte {
	for i := range 4 {
		p[12+i], p[16+i] = p[16+i], p[12+i]
	}
	return p
}

// Counting allocates nothing, in either direction.
func TestMeasuringAllocatesNothing(t *testing.T) {
	r := newRig(t)
	r.talk()
	for _, x := range []*bare{r.a, r.b} {
		require.NoError(t, x.SetMeasured(measured))
	}
	p := append(make([]byte, vnetHeader), rtpPacket(5000, 0)...)
	var buf [2048]byte
	n := uint16(0)
	assert.Zero(t, testing.AllocsPerRun(3000, func() {
		n += 1 + n%7
		binary.BigEndian.PutUint16(p[vnetHeader+30:], n)
		_, _ = unix.Write(r.a.host, p)
		r.a.out.batch(r.now)
		r.b.in.receive(r.b.udp[0], r.now)
		_, _ = unix.Read(r.b.host, buf[:])
		r.now += int64(20 * time.Millisecond)
	}))
	assert.NotEmpty(t, r.series(r.b))
}
