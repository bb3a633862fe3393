package realtime

import (
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/tunnel"
	"ringway/tunnel/datagram"
	"ringway/tunnel/series"
)

// tell has an engine of the rig look at its series and tell its peers, while its threads' part is played.
func (r *rig) tell(b *bare) {
	done := make(chan struct{})
	go func() { defer close(done); b.tell() }()
	for {
		select {
		case <-done:
			return
		default:
			b.out.serveRequest(r.now)
			b.in.serveCopy()
			b.finishRequest()
			runtime.Gosched()
		}
	}
}

// At least 99 of 100 losses are put to the right segment, by both ends, in more than 1,000 losses each: of the phone's
// LAN, in the box (over budget), on the line; through new sessions, with copies and packets that others overtake.
func TestBothEnginesFindTheSegment(t *testing.T) {
	r := newRig(t)
	r.talk()
	for _, x := range []*bare{r.a, r.b} {
		require.NoError(t, x.SetMeasured(measured))
	}
	lan, line := 0, 0
	var held []byte
	const packets = 40_000
	for i := range packets {
		last := i == packets-1
		r.now += int64(20 * time.Millisecond)
		if i%50 == 0 {
			r.tell(r.a)
			r.tell(r.b)
			r.settle()
		}
		if i%6000 == 5999 { // a new session
			r.b.mu.Lock()
			r.b.peerOf(r.a).initiated = 0
			r.b.initiateLocked(r.b.peerOf(r.a))
			r.b.mu.Unlock()
			r.settle()
		}
		if i > 0 && !last && i%33 == 7 {
			lan++
			continue
		}
		r.a.send(rtpPacket(5000, uint16(i)))
		r.a.out.batch(r.now)
		messages := r.b.wire()
		require.Len(t, messages, 1)
		switch m := messages[0]; {
		case i > 0 && !last && i%31 == 3:
			line++
		case held == nil && i%10 == 5 && !last: // overtaken by the next one
			held = m
		default:
			r.b.inject(m, r.a.at)
			r.b.inject(m, r.a.at) // a copy
			if held != nil {
				r.b.inject(held, r.a.at)
				held = nil
			}
		}
		r.b.got()
	}
	for range 4 { // the call is over
		r.now += int64(time.Second)
		r.tell(r.a)
		r.tell(r.b)
		r.settle()
	}
	require.Greater(t, lan, 1000)
	require.Greater(t, line, 1000)

	sent, received := r.series(r.a), r.series(r.b)
	require.Len(t, sent, 1)
	require.Len(t, received, 1)
	a, b := sent[0], received[0]
	assert.EqualValues(t, packets, a.Expected)
	assert.EqualValues(t, lan, a.Expected-a.Arrived)
	assert.Equal(t, a.Arrived, a.Passed)
	assert.InEpsilon(t, line, a.Line, 0.01)
	assert.LessOrEqual(t, a.Line, uint32(line))
	assert.Greater(t, a.Compared, uint32(packets*99/100))
	assert.EqualValues(t, lan+line, b.Expected-b.Arrived)
	assert.InEpsilon(t, lan, b.FarLAN, 0.01)
	assert.InEpsilon(t, line, b.Line, 0.01)
	assert.Zero(t, a.FarBox+b.FarBox+a.FarLAN)
	assert.Zero(t, r.a.drops.all()["bad_report"]+r.b.drops.all()["bad_report"])
	t.Logf("of %d lost in the LAN and %d on the line: %d on the line by the sender, %d and %d by the receiver", lan, line,
		a.Line, b.FarLAN, b.Line)
}

// A peer that does not measure is told every ten seconds that we would, while there is a call with it, and drops that.
func TestAPeerThatDoesNotMeasure(t *testing.T) {
	r := newRig(t)
	r.talk()
	require.NoError(t, r.a.SetMeasured(measured))
	for i := range 30 {
		r.now += int64(time.Second)
		if i < 15 {
			r.a.send(rtpPacket(5000, uint16(i)))
		}
		r.settle()
		r.tell(r.a)
		r.settle()
	}
	assert.EqualValues(t, 3, r.b.drops.all()["inner_malformed"])
	s := r.series(r.a)
	require.Len(t, s, 1)
	assert.Zero(t, s[0].Compared)

	r.now += int64(time.Hour)
	r.tell(r.a)
	r.settle()
	assert.EqualValues(t, 3, r.b.drops.all()["inner_malformed"], "there is no call")
	assert.Empty(t, r.a.exchange.outboxes)
}

// Junk of a peer is counted, and more of it than is read as well. Neither allocates, and calls go on.
func TestReportsOfAPeerAreBounded(t *testing.T) {
	r := newRig(t)
	r.talk()
	require.NoError(t, r.b.SetMeasured(measured))
	send := func(report []byte) {
		r.a.mu.Lock()
		r.a.sendReportLocked(r.a.peerOf(r.b), report)
		r.a.mu.Unlock()
		r.b.in.receive(r.b.udp[0], r.now)
	}
	send(append(series.NewReport(nil), 0xff, 1, 2))
	r.b.hearReports()
	assert.EqualValues(t, 1, r.b.drops.all()["bad_report"])
	for range reportRingSize + 5 {
		send(series.NewReport(nil))
	}
	assert.EqualValues(t, 6, r.b.drops.all()["bad_report"])
	assert.Zero(t, testing.AllocsPerRun(100, func() { r.b.in.receive(r.b.udp[0], r.now) }))
	r.b.hearReports()
	r.talk()
	assert.EqualValues(t, 6, r.b.drops.all()["bad_report"])
	assert.Empty(t, r.b.drops.all()["inner_malformed"])
}

// More calls than fit into one report are told in several, each whole, and their memory goes with them.
func TestManyCallsAreTold(t *testing.T) {
	r := newRig(t)
	r.talk()
	const calls = 60
	for _, x := range []*bare{r.a, r.b} {
		require.NoError(t, x.SetMeasured(measured))
	}
	for i := range uint16(400) {
		r.now += int64(20 * time.Millisecond)
		for port := range uint16(calls) {
			if i%8 != 3 || port%2 == 0 {
				r.a.send(rtpPacket(5000+port, i))
			}
			r.a.out.batch(r.now)
			if i%10 == 9 && port == 4 {
				r.b.wire()
			}
			r.b.in.receive(r.b.udp[0], r.now)
			r.b.got()
		}
		if i%50 == 49 {
			r.tell(r.a)
			r.tell(r.b)
			r.settle()
		}
	}
	line := uint32(0)
	for _, s := range r.series(r.a) {
		assert.GreaterOrEqual(t, s.Compared, uint32(192), s.Flow)
		if line += s.Line; s.Line > 0 {
			assert.EqualValues(t, 5004, s.Flow.Source.Port())
		}
	}
	assert.Positive(t, line)
	for _, s := range r.series(r.b) {
		if s.Flow.Source.Port()%2 == 1 {
			assert.InDelta(t, float64(s.Compared)/8, float64(s.FarLAN), 2)
		} else {
			assert.Zero(t, s.FarLAN)
		}
	}
	require.NoError(t, r.a.SetMeasured(tunnel.Measured{}))
	r.tell(r.a)
}

// What is lost behind the far box is known from what the far phone reports.
func TestTheFarLANIsKnownFromRTCP(t *testing.T) {
	r := newRig(t)
	r.talk()
	for _, x := range []*bare{r.a, r.b} {
		require.NoError(t, x.SetMeasured(measured))
	}
	lost, lostBefore := uint32(0), uint32(0)
	const packets = 4000
	for i := range uint32(packets) {
		r.now += int64(20 * time.Millisecond)
		r.a.send(rtpPacket(5000, uint16(i)))
		r.a.out.batch(r.now)
		if i%31 == 3 {
			lostBefore++
			r.b.wire()
		}
		r.b.in.receive(r.b.udp[0], r.now)
		if got := r.b.got(); len(got) == 1 && i%33 == 5 {
			lost++
		}
		if i%50 == 49 {
			r.tell(r.a)
			r.tell(r.b)
			r.settle()
		}
		if i%250 == 249 {
			report := reversed(mediaPacket(5001, 60, true))
			report[28], report[29], report[30], report[31] = 0x81, 201, 0, 7
			binary.BigEndian.PutUint32(report[36:], 0xabad1dea)
			binary.BigEndian.PutUint32(report[40:], lost+lostBefore)
			binary.BigEndian.PutUint32(report[44:], i)
			r.b.send(report)
			r.settle()
			require.Len(t, r.a.got(), 1)
		}
	}
	s := r.series(r.a)
	require.Len(t, s, 1)
	assert.InDelta(t, float64(lost)*3500/packets, float64(s[0].FarLAN), 8, "between the first report and the last but one")
	assert.Greater(t, s[0].Line, uint32(100))
	assert.Zero(t, s[0].FarBox)
}

// What the ends tell each other goes as signalling, not as media: calls that take all of the voice budget would lose
// packets for it.
func TestReportsAreNotMedia(t *testing.T) {
	r := newRig(t)
	r.talk()
	marks := []tunnel.OuterMark{{Inner: dscpOfReports, Outer: 24}}
	require.NoError(t, r.a.SetOuter(tunnel.Outer{TOS: 46 << 2, Marks: marks}))
	require.NoError(t, r.a.SetMeasured(measured))
	r.a.send(rtpPacket(5000, 1))
	r.settle()
	r.now += int64(time.Second)
	r.tell(r.a)

	buf, oob := make([]byte, 2048), make([]byte, datagram.ControlSize)
	_, n, _, _, err := unix.Recvmsg(r.b.udp[0], buf, oob, unix.MSG_DONTWAIT)
	require.NoError(t, err, "a report was sent")
	controls, err := unix.ParseSocketControlMessage(oob[:n])
	require.NoError(t, err)
	tos := -1
	for _, c := range controls {
		if c.Header.Level == unix.IPPROTO_IP && c.Header.Type == unix.IP_TOS {
			tos = int(c.Data[0])
		}
	}
	assert.Equal(t, 24<<2, tos)
}

// carry lets everything that is on its way to an engine arrive, some time later.
func (r *rig) carry(to *bare, from *bare, way time.Duration) {
	messages := to.wire()
	r.now += int64(way)
	for _, m := range messages {
		to.inject(m, from.at)
	}
	to.hearReports()
	to.got()
}

// A line of 80 ms each way is known as that to both ends, in the second after the first packet, and so is the mean of
// one that is not the same both ways.
func TestBothEnginesKnowTheDelay(t *testing.T) {
	for _, x := range []struct{ there, back time.Duration }{
		{80 * time.Millisecond, 80 * time.Millisecond}, {150 * time.Millisecond, 10 * time.Millisecond},
	} {
		r := newRig(t)
		r.talk()
		for _, b := range []*bare{r.a, r.b} {
			require.NoError(t, b.SetMeasured(measured))
		}
		for i := range uint16(8) {
			for n := range uint16(20) {
				r.a.send(rtpPacket(5000, 20*i+n))
				r.a.out.batch(r.now)
				r.b.send(reversed(rtpPacket(5000, 20*i+n)))
				r.b.out.batch(r.now)
			}
			r.tell(r.a)
			r.carry(r.b, r.a, x.there)
			r.now += int64(400 * time.Millisecond)
			r.tell(r.b)
			r.carry(r.a, r.b, x.back)
			r.now += int64(400 * time.Millisecond)
			if i == 1 {
				assert.Equal(t, x.there+x.back, r.a.Status().Peers[0].RoundTrip)
			}
		}
		want := (x.there + x.back) / 2
		for _, b := range []*bare{r.a, r.b} {
			assert.Equal(t, 2*want, b.Status().Peers[0].RoundTrip)
			all := r.series(b)
			require.Len(t, all, 2)
			for _, s := range all {
				assert.Equal(t, want, s.Delay, "out %v", s.Out)
			}
			assert.Empty(t, b.drops.all()["bad_report"])
		}
	}
}

// An end of an older release sends reports without times: no delay is known.
func TestAnOlderEndTellsNoDelay(t *testing.T) {
	r := newRig(t)
	r.talk()
	require.NoError(t, r.a.SetMeasured(measured))
	for i := range uint16(300) {
		r.now += int64(20 * time.Millisecond)
		r.a.send(rtpPacket(5000, i))
		r.settle()
		if i%50 == 49 {
			r.b.mu.Lock()
			r.b.sendReportLocked(r.b.peerOf(r.a), series.NewReport(nil))
			r.b.mu.Unlock()
			r.settle()
			r.tell(r.a)
			r.settle()
		}
	}
	assert.Zero(t, r.a.Status().Peers[0].RoundTrip)
	s := r.series(r.a)
	require.Len(t, s, 1)
	assert.Zero(t, s[0].Delay)
	assert.Zero(t, r.a.drops.all()["bad_report"])
}
