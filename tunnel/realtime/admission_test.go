package realtime

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/tunnel"
)

const ef = 46 << 2

// desk makes calls towards a site at the guard alone: no tunnel, a clock of the test's.
type desk struct {
	t      *testing.T
	e      *Engine
	o      *outbound
	p      *peer
	now    int64
	calls  []*call
	budget tunnel.Admission
}

// call is one flow.
type call struct {
	port     uint16
	size     int           // of the IP packet
	interval time.Duration // 0: silent
	next     int64
	rtcp     bool

	sent, passed int // since the last look
	gone         int // in a row, until now
}

func newDesk(t *testing.T, kbit uint64) *desk {
	e := newEngine(Options{Class: tunnel.Voice})
	t.Cleanup(e.limiter.Close)
	require.NoError(t, e.SetMTU(1420))
	e.shape.Store(&shape{})
	d := &desk{t: t, e: e, o: &outbound{e: e}, p: &peer{}, now: int64(time.Hour)}
	e.peers[d.p.key] = d.p
	d.set(kbit)
	return d
}

// set gives the site a budget.
func (d *desk) set(kbit uint64) {
	d.budget = tunnel.Admission{Media: 1 << 46, Lines: []tunnel.AdmissionLine{{Overhead: 14}}, Sites: []tunnel.AdmissionSite{{Key: d.p.key, Rate: kbit * 1000}}}
	require.NoError(d.t, d.e.SetAdmission(d.budget))
}

func (d *desk) call(size int, interval time.Duration) *call {
	c := &call{port: uint16(20000 + 2*len(d.calls)), size: size, interval: interval, next: d.now + int64(rand.N(20*time.Millisecond))}
	d.calls = append(d.calls, c)
	return c
}

const (
	ipG711   = 200 // bytes of an IP packet: 160 of sound in 20 ms
	ipG71110 = 120 // 80 in 10 ms
	ipG729   = 60
)

func (d *desk) g711() *call { return d.call(ipG711, 20*time.Millisecond) }

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

// offer gives the guard a packet.
func (d *desk) offer(port uint16, size int, rtcp bool) bool {
	p := mediaPacket(port, size, rtcp)
	b := d.p.budget.Load()
	return b == nil || d.o.admits(d.e.guard.Load(), b, d.p, p, padded(size, 0, 1420), d.now)
}

// pass has all calls talk for a while; beside is called every millisecond.
func (d *desk) pass(long time.Duration, beside ...func()) {
	for end := d.now + int64(long); d.now < end; d.now += int64(time.Millisecond) {
		for _, c := range d.calls {
			if c.interval == 0 || d.now < c.next {
				continue
			}
			c.next += int64(c.interval)
			c.sent++
			c.gone++
			if d.offer(c.port, c.size, c.rtcp) {
				c.passed, c.gone = c.passed+1, 0
			}
		}
		for _, f := range beside {
			f()
		}
	}
}

// look gives how many of each call's packets passed, since the last look, in percent.
func (d *desk) look() (out []int) {
	for _, c := range d.calls {
		n := 0
		if c.sent > 0 {
			n = 100 * c.passed / c.sent
		}
		out = append(out, n)
		c.sent, c.passed = 0, 0
	}
	return out
}

// holds demands that the table's sums are those of its flows.
func (d *desk) holds() {
	d.t.Helper()
	calls, control, flows, n := int64(0), int64(0), int64(0), 0
	lines := map[*line]share{}
	for i := range d.o.flows.slots {
		s := &d.o.flows.slots[i]
		if s.id == 0 {
			continue
		}
		n++
		l := lines[s.line]
		if s.control {
			control += s.cost
			l.control += s.cost
		} else {
			calls, flows = calls+s.cost, flows+1
			l.calls += s.cost
		}
		lines[s.line] = l
		require.Same(d.t, s, d.o.flows.find(s.id), "is found again")
	}
	require.Equal(d.t, []int64{calls, control, flows, int64(n)}, []int64{d.p.media.calls.Load(), d.p.media.control.Load(), d.p.media.flows.Load(), int64(d.o.flows.n)})
	for l, s := range lines {
		require.Equal(d.t, s, l.taken)
	}
}

// A call of G.711 is 282 bytes on the wire, 112.8 kbit/s; 1120 kbit/s, less RTCP's part, carry nine.
func TestWhoCameFirstIsIn(t *testing.T) {
	d := newDesk(t, 1120)
	for range 27 { // three times the budget
		d.g711()
		d.pass(50 * time.Millisecond)
	}
	d.pass(30 * time.Second)
	for i, passed := range d.look() {
		assert.Equal(t, map[bool]int{true: 100, false: 0}[i < 9], passed, "call %d", i)
	}
	st := d.p.admission(d.now)
	assert.Equal(t, tunnel.MediaStatus{Budget: 1_120_000, Taken: 9 * 112_800, Flows: 9, Refused: st.Refused, Refusing: true}, *st)
	assert.Greater(t, st.Refused, uint64(18*50*30))
	d.holds()

	// The third and the fifth end: two of those that go on get in, and nobody else is touched.
	d.calls[2].interval, d.calls[4].interval = 0, 0
	d.pass(3 * time.Second)
	d.look()
	d.pass(10 * time.Second)
	in := 0
	for i, passed := range d.look() {
		switch {
		case i == 2 || i == 4:
		case i < 9:
			assert.Equal(t, 100, passed, "call %d", i)
		case passed > 0:
			assert.Equal(t, 100, passed, "call %d", i)
			in++
		}
	}
	assert.Equal(t, 2, in)
	d.holds()

	for _, c := range d.calls {
		c.interval = 0
	}
	d.now += int64(11 * time.Second)
	st = d.p.admission(d.now)
	assert.Zero(t, st.Flows, "all have ended, though no packet came after them")
	assert.Zero(t, st.Taken)
	assert.False(t, st.Refusing)
}

func TestCodecsCostWhatTheyTake(t *testing.T) {
	for _, c := range []struct {
		name         string
		size         int
		interval     time.Duration
		kbit         uint64
		calls, first int // that fit; that were in at first, by the assumption
	}{
		{"G.711 20 ms", ipG711, 20 * time.Millisecond, 1120, 9, 9},
		{"G.711 10 ms", ipG71110, 10 * time.Millisecond, 1120, 6, 9}, // 202 bytes, 161.6 kbit/s
		{"G.729 20 ms", ipG729, 20 * time.Millisecond, 1120, 19, 19}, // 138 bytes, 55.2 kbit/s
		{"G.711 40 ms", 360, 40 * time.Millisecond, 1120, 12, 5},     // 442 bytes, 88.4 kbit/s
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDesk(t, c.kbit)
			for range 3 * c.calls {
				d.call(c.size, c.interval)
			}
			d.pass(10 * time.Second)
			d.look()
			d.pass(20 * time.Second)
			in := 0
			for i, passed := range d.look() {
				if passed > 0 {
					in++
					assert.Equal(t, 100, passed, "call %d, no half of one", i)
				}
			}
			assert.Equal(t, c.calls, in)
			assert.LessOrEqual(t, d.p.media.calls.Load(), int64(c.kbit)*1000*100/105)
			d.holds()
		})
	}
}

func TestMixedCodecsFillTheBudget(t *testing.T) {
	d := newDesk(t, 1120) // 1066.6 for RTP
	for range 4 {
		d.call(ipG711, 20*time.Millisecond)   // 112.8
		d.call(ipG71110, 10*time.Millisecond) // 161.6
		d.call(ipG729, 20*time.Millisecond)   // 55.2
		d.pass(2 * time.Second)
	}
	d.look()
	d.pass(20 * time.Second)
	got := d.look()
	assert.Equal(t, []int{100, 100, 100, 100, 100, 100, 100, 100, 100}, got[:9], "989 kbit/s")
	assert.Equal(t, []int{0, 0, 100}, got[9:], "room for the small one")
	d.holds()
}

// A pause in a call is no end of it, a longer one is, and only if somebody wants the place.
func TestASilentFlowGivesItsPlaceBack(t *testing.T) {
	d := newDesk(t, 120) // one call
	talker := d.g711()
	d.pass(3 * time.Second)
	rival := d.g711()
	for range 10 { // with silence suppression: pauses of 0.7 s, then of 2.5
		talker.interval = 0
		d.pass(700 * time.Millisecond)
		talker.interval, talker.next = 20*time.Millisecond, d.now
		d.pass(time.Second)
	}
	talker.interval = 0
	d.pass(2500 * time.Millisecond)
	talker.interval, talker.next = 20*time.Millisecond, d.now
	d.pass(time.Second)
	assert.Equal(t, []int{100, 0}, d.look())

	talker.interval = 0
	d.pass(11 * time.Second)
	d.look()
	talker.interval, talker.next = 20*time.Millisecond, d.now
	d.pass(5 * time.Second)
	assert.Equal(t, []int{0, 100}, d.look(), "the place is the other's")

	rival.interval = 0
	d.pass(2100 * time.Millisecond) // what knocks finds it at once
	d.look()
	d.pass(time.Second)
	assert.Equal(t, []int{100, 0}, d.look())
	d.holds()
}

// A packet that was no call, as somebody's ping with EF, holds a place for no longer than it takes to see that: the next call loses nothing.
func TestAPacketAloneHoldsNoPlace(t *testing.T) {
	d := newDesk(t, 120) // one call
	for range 50 {       // wherever in the table it stands
		require.True(t, d.offer(40000, ipG711, false))
		d.now += int64(250 * time.Millisecond)
		d.calls = nil
		d.g711()
		d.pass(time.Second)
		assert.Equal(t, []int{100}, d.look())
		d.now += int64(11 * time.Second)
	}
}

// Nor does a ping that goes on, over IPv4 and IPv6.
func TestAPingTakesNoCallsPlace(t *testing.T) {
	d := newDesk(t, 120)
	ping4 := mediaPacket(0, 120, false)
	ping4[9] = 1
	ping6 := make([]byte, 120)
	ping6[0], ping6[6] = 0x60, 58
	ping := func(p []byte) bool {
		return d.o.admits(d.e.guard.Load(), d.p.budget.Load(), d.p, p, padded(len(p), 0, 1420), d.now)
	}
	for range 3 {
		assert.True(t, ping(ping4))
		assert.True(t, ping(ping6))
		d.pass(time.Second)
	}
	d.g711()
	for range 5 {
		assert.True(t, ping(ping4))
		d.pass(time.Second)
	}
	assert.Equal(t, []int{100}, d.look())
}

// RTCP has its part, whatever calls do, and calls theirs.
func TestRTCPHasItsOwnPart(t *testing.T) {
	d := newDesk(t, 1120)
	for range 14 {
		d.g711()
	}
	d.pass(3 * time.Second)
	for i := range 14 {
		c := d.call(120, 5*time.Second)
		c.port, c.rtcp = d.calls[i].port+1, true
	}
	d.pass(40 * time.Second)
	got := d.look()
	in := 0
	for i := range 14 {
		if got[i] > 50 {
			in++
		}
		assert.Equal(t, 100, got[14+i], "RTCP of call %d", i)
	}
	assert.Equal(t, 9, in)
	d.holds()
}

// A flow that goes mad has a quarter more than it came with, and what is free; others lose nothing.
func TestAMadFlowTakesNothingFromOthers(t *testing.T) {
	d := newDesk(t, 1120)
	for range 9 {
		d.g711()
	}
	d.pass(5 * time.Second)
	mad := d.calls[3]
	mad.interval = 2 * time.Millisecond
	d.pass(5 * time.Second)
	d.look()
	d.pass(20 * time.Second)
	for i, passed := range d.look() {
		if i == 3 {
			assert.InDelta(t, 15, passed, 2) // of 500 a second; 50 are 10 %, a quarter more, and the 3 % of the budget that were free
		} else {
			assert.Equal(t, 100, passed, "call %d", i)
		}
	}
	d.holds()
}

// Ports that change with each packet: no admitted call loses by it, nothing grows, and a new call gets the place that is free.
func TestAFloodOfFlowsShutsNobodyOut(t *testing.T) {
	for _, flood := range []int{1, 10} { // packets a millisecond
		t.Run(fmt.Sprintf("%d000 a second", flood), func(t *testing.T) {
			d := newDesk(t, 1120)
			for range 8 {
				d.g711()
			}
			d.pass(3 * time.Second)
			d.look()
			port := 0
			mad := func() {
				for range flood {
					port++
					p := mediaPacket(uint16(port), ipG711, false)
					binary.BigEndian.PutUint16(p[14:], uint16(port>>16)+0x4000)
					d.o.admits(d.e.guard.Load(), d.p.budget.Load(), d.p, p, 208, d.now)
				}
			}
			d.pass(5*time.Second, mad)
			slots := len(d.o.flows.slots)
			assert.LessOrEqual(t, d.o.flows.n, 10)
			c := d.g711()
			d.pass(2*time.Second, mad)
			assert.Zero(t, c.gone, "the last %d of %d packets of the new call did not pass", c.gone, c.sent)
			d.pass(3*time.Second, mad)
			got := d.look()
			assert.Equal(t, []int{100, 100, 100, 100, 100, 100, 100, 100}, got[:8])
			t.Logf("%d %% of the new call's first five seconds passed", got[8])
			assert.Greater(t, got[8], 60)
			assert.Len(t, d.o.flows.slots, slots)
			d.holds()
		})
	}
}

// A smaller budget (another WAN, a reload) puts out the newest; a larger one lets in.
func TestBudgetsChange(t *testing.T) {
	d := newDesk(t, 1120)
	for range 12 {
		d.g711()
		d.pass(50 * time.Millisecond)
	}
	d.pass(5 * time.Second)
	d.set(600) // five
	d.pass(time.Second)
	d.look()
	d.pass(20 * time.Second)
	assert.Equal(t, []int{100, 100, 100, 100, 100, 0, 0, 0, 0, 0, 0, 0}, d.look())
	d.holds()
	d.set(20_000) // a larger table, too
	before := len(d.o.flows.slots)
	d.pass(time.Second)
	assert.Greater(t, len(d.o.flows.slots), before)
	d.look()
	d.pass(20 * time.Second)
	assert.Equal(t, []int{100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100}, d.look())
	d.holds()
	require.NoError(t, d.e.SetAdmission(tunnel.Admission{}))
	assert.Nil(t, d.p.admission(d.now))
	require.Error(t, d.e.SetAdmission(tunnel.Admission{Media: 1, Sites: []tunnel.AdmissionSite{{}}}))
}

// At an over-subscribed hub each site's budget may be free, and the line full.
func TestTheLineBoundsAllSites(t *testing.T) {
	d := newDesk(t, 1120)
	far := &peer{}
	far.key[0] = 1
	d.e.peers[far.key] = far
	d.budget.Lines[0].Rate = 1_120_000
	d.budget.Sites = append(d.budget.Sites, tunnel.AdmissionSite{Key: far.key, Rate: 1_120_000})
	require.NoError(t, d.e.SetAdmission(d.budget))
	near := d.p
	for range 6 {
		d.g711()
	}
	d.pass(5 * time.Second)
	assert.Equal(t, []int{100, 100, 100, 100, 100, 100}, d.look())
	d.p = far
	old := d.calls
	d.calls = nil
	both := func() { // the first site's calls go on
		d.p = near
		for _, c := range old {
			if d.now >= c.next {
				c.next += int64(c.interval)
				assert.True(t, d.offer(c.port, c.size, false))
			}
		}
		d.p = far
	}
	for _, c := range old {
		c.next = d.now
	}
	for range 6 {
		c := d.g711()
		c.port += 1000
		d.pass(100*time.Millisecond, both)
	}
	d.pass(time.Second, both)
	d.look()
	d.pass(10*time.Second, both)
	assert.Equal(t, []int{100, 100, 100, 0, 0, 0}, d.look())
	assert.True(t, far.admission(d.now).LineFull)
	assert.False(t, near.admission(d.now).Refusing)
	assert.EqualValues(t, 1_120_000, far.admission(d.now).LineBudget)
}

// What is no media passes, and what has no ports is one flow.
func TestFlowsAreToldApart(t *testing.T) {
	v6 := func(port byte, next byte) []byte {
		p := make([]byte, 100)
		p[0], p[5], p[6] = 0x60, 60, next
		p[8], p[24], p[41] = 0xfd, 0xfd, port
		return p
	}
	options := func(port uint16) []byte {
		p := mediaPacket(1, 100, false)
		p[0] = 0x46
		binary.BigEndian.PutUint16(p[24:], port)
		return p
	}
	fragment := func(port uint16, offset byte) []byte {
		p := mediaPacket(port, 100, false)
		p[7] = offset
		return p
	}
	same := [][2][]byte{{mediaPacket(7, 100, false), mediaPacket(7, 200, true)}, {v6(1, 17), v6(1, 17)}, {v6(1, 44), v6(2, 44)}, {fragment(1, 9), fragment(2, 18)}, {options(5), options(5)}}
	for _, c := range same {
		assert.Equal(t, flowID(c[0]), flowID(c[1]))
	}
	for _, c := range [][2][]byte{{mediaPacket(7, 100, false), mediaPacket(8, 100, false)}, {v6(1, 17), v6(2, 17)}, {options(5), options(6)}, {v6(1, 17), v6(1, 44)}} {
		assert.NotEqual(t, flowID(c[0]), flowID(c[1]))
	}
	for n := range 60 { // cut short anywhere
		for _, p := range [][]byte{mediaPacket(1, 60, true), v6(1, 17)[:60], options(1)[:60]} {
			if n >= 20 && p[0]>>4 == 4 || n >= 40 {
				flowID(p[:n])
				isControl(p[:n])
			}
		}
	}
}

// The bounds that docs/architecture.md names.
func TestTheTableIsBounded(t *testing.T) {
	assert.Equal(t, flowsLeast, len(newFlows(600_000).slots))
	assert.Equal(t, flowsMost, len(newFlows(1<<40).slots))
	assert.LessOrEqual(t, flowsMost*int(unsafe.Sizeof(flow{})), 1536<<10)
	assert.LessOrEqual(t, flowsLeast*int(unsafe.Sizeof(flow{})), 96<<10)
	assert.LessOrEqual(t, int(unsafe.Sizeof(flows{})), 25<<10)
}

// Through the whole engine: what is refused is counted, and signalling is not touched.
func TestTheEngineRefusesCalls(t *testing.T) {
	r := newRig(t)
	r.talk()
	require.NoError(t, r.a.SetAdmission(tunnel.Admission{Media: 1 << 46, Lines: []tunnel.AdmissionLine{{Overhead: 14}},
		Sites: []tunnel.AdmissionSite{{Key: r.b.key.Public(), Rate: 600_000}}}))
	sent := 0
	for range 100 {
		for port := range uint16(14) {
			r.a.send(mediaPacket(2*port, ipG711, false))
		}
		r.a.send(packet(1, 2, 24<<2, 1200))
		r.a.send(packet(1, 2, 0, 1200))
		for range 16 {
			r.a.out.batch(r.now)
		}
		sent += 16
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

func BenchmarkAdmission(b *testing.B) {
	for _, n := range []int{10, 2000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			e := newEngine(Options{Class: tunnel.Voice})
			defer e.limiter.Close()
			p := &peer{}
			e.peers[p.key] = p
			if err := e.SetAdmission(tunnel.Admission{Media: 1 << 46, Lines: []tunnel.AdmissionLine{{Overhead: 14}}, Sites: []tunnel.AdmissionSite{{Key: p.key, Rate: 1e9}}}); err != nil {
				b.Fatal(err)
			}
			o, now := &outbound{e: e}, int64(time.Hour)
			packets := make([][]byte, n)
			for i := range packets {
				packets[i] = mediaPacket(uint16(2*i), ipG711, false)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if !o.admits(e.guard.Load(), p.budget.Load(), p, packets[i%n], 208, now) {
					b.Fatal("refused")
				}
				now += int64(20*time.Millisecond) / int64(n)
			}
		})
	}
}
