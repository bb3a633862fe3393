package ledger

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/tunnel"
	"ringway/units"
)

const ef = 46 << 2

// office makes calls to a site, past the ledger alone: without a tunnel, and with a clock of its own.
type office struct {
	t         *testing.T
	ledger    *Ledger
	budgets   *Budgets
	sites     map[tunnel.PublicKey]*Account
	site      *Account // that calls go to
	now       int64
	calls     []*call
	admission tunnel.Admission
}

var (
	nearKey = tunnel.PublicKey{1}
	farKey  = tunnel.PublicKey{2}
)

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

func newOffice(t *testing.T, kbit units.BitRate) *office {
	d := &office{
		t:      t,
		ledger: New(Seed{rand.Uint64(), rand.Uint64()}),
		sites:  map[tunnel.PublicKey]*Account{nearKey: {}},
		now:    int64(time.Hour),
	}
	d.site = d.sites[nearKey]
	d.set(kbit)
	return d
}

// set gives the site a budget.
func (d *office) set(kbit units.BitRate) {
	d.admission = tunnel.Admission{
		Media: 1 << 46,
		Lines: []tunnel.AdmissionLine{{Overhead: 14}},
		Sites: []tunnel.AdmissionSite{{Key: nearKey, Rate: kbit * 1000}},
	}
	d.apply()
}

// apply sets the budgets, as an engine does.
func (d *office) apply() {
	d.t.Helper()
	require.NoError(d.t, d.admission.Check())
	d.budgets = NewBudgets(d.admission, d.budgets)
	for key, site := range d.sites {
		site.SetBudget(d.budgets.Site(key))
	}
}

func (d *office) call(size int, interval time.Duration) *call {
	c := &call{
		port:     uint16(20000 + 2*len(d.calls)),
		size:     size,
		interval: interval,
		next:     d.now + int64(rand.N(20*time.Millisecond)),
	}
	d.calls = append(d.calls, c)
	return c
}

const (
	ipG711   = 200 // bytes of an IP packet: 160 of sound in 20 ms
	ipG71110 = 120 // 80 in 10 ms
	ipG729   = 60
)

func (d *office) g711() *call { return d.call(ipG711, 20*time.Millisecond) }

func mediaPacket(port uint16, size int, rtcp bool) []byte {
	p := make([]byte, size)
	p[0], p[1], p[8], p[9] = 0x45, ef, 64, protocolUDP
	binary.BigEndian.PutUint16(p[2:], uint16(size))
	copy(p[12:], []byte{10, 66, 0, 1, 10, 66, 0, 2})
	binary.BigEndian.PutUint16(p[20:], port)
	binary.BigEndian.PutUint16(p[22:], port)
	p[28], p[29] = 0x80, 0
	if rtcp {
		p[29] = 200
	}
	return p
}

// offer asks the ledger about a packet.
func (d *office) offer(port uint16, size int, rtcp bool) bool {
	return d.offerPacket(mediaPacket(port, size, rtcp))
}

func (d *office) offerPacket(p []byte) bool {
	b := d.site.Budget()
	return b == nil || d.ledger.Admit(d.budgets, d.site, b, p, outer(len(p)), d.now)
}

// outer is the size of the packet that a packet of n bytes becomes.
func outer(n int) int { return (n+15)&^15 + tunnel.OverheadIPv4 }

// pass has all calls talk for a while; beside is called every millisecond.
func (d *office) pass(long time.Duration, beside ...func()) {
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
func (d *office) look() (out []int) {
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

// holds demands that the sums are those of the table's flows.
func (d *office) holds() {
	d.t.Helper()
	type sums struct{ media, rtcp, flows, reserved int64 }
	want, got := map[*Account]sums{}, map[*Account]sums{}
	lines := map[*Line]share{}
	n := 0
	for i := range d.ledger.table.slots {
		e := &d.ledger.table.slots[i]
		if e.id == 0 {
			continue
		}
		n++
		s, l := want[e.site], lines[e.line]
		if e.rtcp {
			s.rtcp += e.cost
			l.rtcp += e.cost
		} else {
			s.media, s.flows = s.media+e.cost, s.flows+1
			l.media += e.cost
		}
		if e.reservation != nil {
			s.reserved++
			require.True(d.t, e.reservation.placed)
			require.GreaterOrEqual(d.t, e.cost, e.reservation.cost)
		}
		want[e.site], lines[e.line] = s, l
		require.Same(d.t, e, d.ledger.table.find(e.id), "is found again")
	}
	for _, a := range d.sites {
		if s := (sums{a.media.Load(), a.rtcp.Load(), a.flows.Load(), a.reserved.Load()}); s != (sums{}) {
			got[a] = s
		}
	}
	require.Equal(d.t, want, got)
	require.Equal(d.t, n, d.ledger.table.n)
	for l, s := range lines {
		require.Equal(d.t, s, l.taken)
	}
}

// A call of G.711 is 282 bytes on the wire, 112.8 kbit/s; 1120 kbit/s, less RTCP's part, carry nine.
func TestFlowsAreAdmittedInOrder(t *testing.T) {
	d := newOffice(t, 1120)
	for range 27 { // three times the budget
		d.g711()
		d.pass(50 * time.Millisecond)
	}
	d.pass(30 * time.Second)
	for i, passed := range d.look() {
		assert.Equal(t, map[bool]int{true: 100, false: 0}[i < 9], passed, "call %d", i)
	}
	st := d.site.Status(d.now)
	want := tunnel.MediaStatus{Budget: 1_120_000, Taken: 9 * 112_800, Flows: 9, Refused: st.Refused, Refusing: true}
	assert.Equal(t, want, *st)
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
	st = d.site.Status(d.now)
	assert.Zero(t, st.Flows, "all have ended, though no packet came after them")
	assert.Zero(t, st.Taken)
	assert.False(t, st.Refusing)
}

func TestCodecsCostWhatTheyTake(t *testing.T) {
	for _, c := range []struct {
		name         string
		size         int
		interval     time.Duration
		kbit         units.BitRate
		calls, first int // that fit; that were in at first, by the assumption
	}{
		{"G.711 20 ms", ipG711, 20 * time.Millisecond, 1120, 9, 9},
		{"G.711 10 ms", ipG71110, 10 * time.Millisecond, 1120, 6, 9}, // 202 bytes, 161.6 kbit/s
		{"G.729 20 ms", ipG729, 20 * time.Millisecond, 1120, 19, 19}, // 138 bytes, 55.2 kbit/s
		{"G.711 40 ms", 360, 40 * time.Millisecond, 1120, 12, 5},     // 442 bytes, 88.4 kbit/s
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newOffice(t, c.kbit)
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
			assert.LessOrEqual(t, d.site.media.Load(), int64(c.kbit)*1000*100/105)
			d.holds()
		})
	}
}

func TestMixedCodecsFillTheBudget(t *testing.T) {
	d := newOffice(t, 1120) // 1066.6 for RTP
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
	d := newOffice(t, 120) // one call
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

// A packet that was no call, as somebody's ping with EF, holds a place for no longer than it takes to see
// that: the next call loses nothing.
func TestAPacketAloneHoldsNoPlace(t *testing.T) {
	d := newOffice(t, 120) // one call
	for range 50 {         // wherever in the table it stands
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
	d := newOffice(t, 120)
	ping4 := mediaPacket(0, 120, false)
	ping4[9] = 1
	ping6 := make([]byte, 120)
	ping6[0], ping6[6] = 0x60, 58
	ping := d.offerPacket
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
	d := newOffice(t, 1120)
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

// A flow that misbehaves has a quarter more than it came with, and what is free; others lose nothing.
func TestAMisbehavingFlowTakesNothingFromOthers(t *testing.T) {
	d := newOffice(t, 1120)
	for range 9 {
		d.g711()
	}
	d.pass(5 * time.Second)
	misbehaving := d.calls[3]
	misbehaving.interval = 2 * time.Millisecond
	d.pass(5 * time.Second)
	d.look()
	d.pass(20 * time.Second)
	for i, passed := range d.look() {
		if i == 3 {
			// Of 500 a second: 50 are 10 %, a quarter more, and the 3 % of the budget that were free.
			assert.InDelta(t, 15, passed, 2)
		} else {
			assert.Equal(t, 100, passed, "call %d", i)
		}
	}
	d.holds()
}

// Ports that change with each packet: no admitted call loses by it, nothing grows, and a new call gets the
// place that is free.
func TestAFloodOfFlowsShutsNobodyOut(t *testing.T) {
	for _, flood := range []int{1, 10} { // packets a millisecond
		t.Run(fmt.Sprintf("%d000 a second", flood), func(t *testing.T) {
			d := newOffice(t, 1120)
			for range 8 {
				d.g711()
			}
			d.pass(3 * time.Second)
			d.look()
			port := 0
			misbehaving := func() {
				for range flood {
					port++
					p := mediaPacket(uint16(port), ipG711, false)
					binary.BigEndian.PutUint16(p[14:], uint16(port>>16)+0x4000)
					d.offerPacket(p)
				}
			}
			d.pass(5*time.Second, misbehaving)
			slots := len(d.ledger.table.slots)
			assert.LessOrEqual(t, d.ledger.table.n, 10)
			c := d.g711()
			d.pass(2*time.Second, misbehaving)
			assert.Zero(t, c.gone, "the last %d of %d packets of the new call did not pass", c.gone, c.sent)
			d.pass(3*time.Second, misbehaving)
			got := d.look()
			assert.Equal(t, []int{100, 100, 100, 100, 100, 100, 100, 100}, got[:8])
			t.Logf("%d %% of the new call's first five seconds passed", got[8])
			assert.Greater(t, got[8], 60)
			assert.Len(t, d.ledger.table.slots, slots)
			d.holds()
		})
	}
}

// A smaller budget (another WAN, a reload) puts out the newest; a larger one lets in.
func TestBudgetsChange(t *testing.T) {
	d := newOffice(t, 1120)
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
	before := len(d.ledger.table.slots)
	d.pass(time.Second)
	assert.Greater(t, len(d.ledger.table.slots), before)
	d.look()
	d.pass(20 * time.Second)
	assert.Equal(t, []int{100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100}, d.look())
	d.holds()
	d.site.SetBudget(nil)
	assert.Nil(t, d.site.Status(d.now))
}

// addFar adds another site behind the same line, which then has a bound.
func (d *office) addFar(line units.BitRate) *Account {
	far := &Account{}
	d.sites[farKey] = far
	d.admission.Lines[0].Rate = line
	d.admission.Sites = append(d.admission.Sites, tunnel.AdmissionSite{Key: farKey, Rate: 1_120_000})
	d.apply()
	return far
}

// At an over-subscribed hub each site's budget may be free, and the line full.
func TestTheLineBoundsAllSites(t *testing.T) {
	d := newOffice(t, 1120)
	near, far := d.site, d.addFar(1_120_000)
	for range 6 {
		d.g711()
	}
	d.pass(5 * time.Second)
	assert.Equal(t, []int{100, 100, 100, 100, 100, 100}, d.look())
	d.site = far
	old := d.calls
	d.calls = nil
	both := func() { // the first site's calls go on
		d.site = near
		for _, c := range old {
			if d.now >= c.next {
				c.next += int64(c.interval)
				assert.True(t, d.offer(c.port, c.size, false))
			}
		}
		d.site = far
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
	assert.True(t, far.Status(d.now).LineFull)
	assert.False(t, near.Status(d.now).Refusing)
	assert.EqualValues(t, 1_120_000, far.Status(d.now).LineBudget)
}

// The bounds that docs/admission.md names.
func TestTheTableIsBounded(t *testing.T) {
	assert.Len(t, newTable(600_000).slots, minSlots)
	assert.Len(t, newTable(1<<40).slots, maxSlots)
	assert.LessOrEqual(t, maxSlots*int(unsafe.Sizeof(entry{})), 1536<<10)
	assert.LessOrEqual(t, minSlots*int(unsafe.Sizeof(entry{})), 96<<10)
	assert.LessOrEqual(t, int(unsafe.Sizeof(Ledger{})), 25<<10)
}

// BenchmarkAdmission is what the ledger costs a packet.
func BenchmarkAdmission(b *testing.B) {
	for _, n := range []int{10, 2000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			budgets := NewBudgets(tunnel.Admission{
				Media: 1 << 46,
				Lines: []tunnel.AdmissionLine{{Overhead: 14}},
				Sites: []tunnel.AdmissionSite{{Key: nearKey, Rate: 1e9}},
			}, nil)
			site := &Account{}
			site.SetBudget(budgets.Site(nearKey))
			l, now := New(Seed{rand.Uint64(), rand.Uint64()}), int64(time.Hour)
			packets := make([][]byte, n)
			for i := range packets {
				packets[i] = mediaPacket(uint16(2*i), ipG711, false)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if !l.Admit(budgets, site, site.Budget(), packets[i%n], outer(ipG711), now) {
					b.Fatal("refused")
				}
				now += int64(20*time.Millisecond) / int64(n)
			}
		})
	}
}
