package calls

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/dialog"
	"ringway/sip/relay"
	"ringway/tunnel"
)

// dayCall is a call as the relay tells the daemon of it.
type dayCall struct {
	change relay.Change // what it has open; Close is empty
	place  relay.Place
}

// dayOfChanges is what a relay tells the daemon in a day, and the daemon's tables.
type dayOfChanges struct {
	*branch
	t      *testing.T
	rng    *rand.Rand
	engine *fakeEngine
	places *places
	needed map[dialog.Flow]int // by the calls
	calls  []*dayCall
	ports  int
}

// A day of changes, with full sets, refused elements, engines that fail and other configs, leaves no flow, no hole, no
// place and no memory, and at each moment the tables agree with one another. TEST_DAY_SEED repeats a day.
func TestADayOfChangesLeavesNothing(t *testing.T) {
	synctest.Test(t, testADayOfChangesLeavesNothing)
}

func testADayOfChangesLeavesNothing(t *testing.T) {
	seed := rand.Uint64()
	if s := os.Getenv("TEST_DAY_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("TEST_DAY_SEED=%d", seed)
	engine := &fakeEngine{held: map[tunnel.Flow]tunnel.Reservation{}, keeper: 1}
	d := &dayOfChanges{branch: newBranch(), t: t, rng: rand.New(rand.NewPCG(seed, 0)), engine: engine,
		places: newPlaces(engine, slog.New(slog.DiscardHandler)), needed: map[dialog.Flow]int{}}
	for _, s := range d.sets { // all of them live as long as the day
		s.elements = map[string]time.Duration{}
	}

	d.run(2_000)
	before := d.end()
	d.run(20_000)
	after := d.end()
	t.Logf("heap %d bytes before, %d after 20000 calls; refused %v", before, after, d.refused)
	assert.Less(t, int64(after)-int64(before), int64(256<<10), "bytes of the heap")
}

// run has so many calls begin, and others change and end meanwhile.
func (d *dayOfChanges) run(calls int) {
	for calls > 0 {
		time.Sleep(time.Duration(d.rng.Int64N(int64(4 * time.Second))))
		switch x := d.rng.IntN(1000); {
		case x < 330 && len(d.calls) < 150:
			calls--
			d.begin()
		case x < 500 && len(d.calls) > 0:
			d.move(d.calls[d.rng.IntN(len(d.calls))])
		case x < 900 && len(d.calls) > 0:
			d.hangUp(d.rng.IntN(len(d.calls)))
		case x < 905:
			d.tellAll()
		case x < 915:
			_ = d.refresh()
		case x < 920: // a set without room, for some changes
			for _, s := range d.sets {
				s.full = !s.full && d.rng.IntN(4) == 0
			}
		case x < 925: // one element that the kernel refuses
			for _, s := range d.sets {
				if s.refuses = ""; d.rng.IntN(3) == 0 {
					s.refuses = fmt.Sprintf("10.2.10.7 . 10.1.10.%d . 4000", 2+d.rng.IntN(40))
				}
			}
		case x < 928: // another config: without the last site, or with it again
			w := newBranch().world
			w.sites = w.sites[:1+d.rng.IntN(2)]
			d.follow(w)
			d.tellAll()
		case x < 940:
			d.engine.fails = !d.engine.fails && d.rng.IntN(2) == 0
			d.engine.full = !d.engine.full && d.rng.IntN(2) == 0
			if d.rng.IntN(4) == 0 { // another plane, which has nothing
				d.engine.keeper++
				clear(d.engine.held)
			}
		case x < 960:
			d.agree()
		}
	}
}

// address is one of a phone here, of one that must not have a hole now and then, or of a far one.
func (d *dayOfChanges) address(far bool) netip.Addr {
	switch x := d.rng.IntN(100); {
	case x < 2:
		return netip.MustParseAddr("10.1.10.1") // the box
	case x < 4:
		return netip.MustParseAddr("192.168.7.7")
	case far && x < 70:
		return netip.AddrFrom4([4]byte{10, 2, 10, byte(2 + d.rng.IntN(40))})
	case far && x < 80:
		return netip.AddrFrom4([4]byte{10, 3, 10, byte(2 + d.rng.IntN(40))})
	case far:
		return netip.AddrFrom4([4]byte{203, 0, 113, byte(2 + d.rng.IntN(40))})
	}
	return netip.AddrFrom4([4]byte{10, 1, 10, byte(2 + d.rng.IntN(40))})
}

func (d *dayOfChanges) begin() {
	here, there := d.address(false), d.address(true)
	c := &dayCall{change: relay.Change{Hops: [2]netip.Addr{here, there}}}
	to := netip.AddrPortFrom(here, d.port())
	control := netip.AddrPortFrom(here, to.Port()+1)
	c.change.Open = []dialog.Flow{dialog.FlowAsked(there, to, false), dialog.FlowAsked(there, control, true)}
	d.calls = append(d.calls, c)
	d.ports++
	c.place = place(uint16(1024+d.ports%60000), false)
	d.tell(c, c.change.Open, nil, []relay.Place{c.place})
	d.move(c)
}

// port is one of few, so that calls share flows.
func (d *dayOfChanges) port() uint16 {
	return uint16([]int{1022, 4000, 4000, 4002, 4004, 5000}[d.rng.IntN(6)])
}

// move has a call other flows: an answer, or a port that moves.
func (d *dayOfChanges) move(c *dayCall) {
	here, there := c.change.Hops[0], c.change.Hops[1]
	a, b := netip.AddrPortFrom(here, d.port()), netip.AddrPortFrom(there, d.port())
	before := c.change.Open
	c.change.Open = []dialog.Flow{dialog.NewFlow(there, a, false), dialog.NewFlow(here, b, false)}
	d.tell(c, c.change.Open, before, nil)
}

func (d *dayOfChanges) hangUp(i int) {
	c := d.calls[i]
	d.calls[i] = d.calls[len(d.calls)-1]
	d.calls = d.calls[:len(d.calls)-1]
	before := c.change.Open
	c.change.Open = nil
	c.place.Release = true
	d.tell(c, nil, before, []relay.Place{c.place})
}

// tell has the daemon know of what a call opens and of what none needs any more. If it fails, it is told everything.
func (d *dayOfChanges) tell(c *dayCall, open, closed []dialog.Flow, places []relay.Place) {
	for _, f := range open {
		d.needed[f]++
	}
	change := relay.Change{Hops: c.change.Hops, Open: open, Places: places}
	for _, f := range closed {
		if d.needed[f]--; d.needed[f] == 0 {
			delete(d.needed, f)
			change.Close = append(change.Close, f)
		}
	}
	changes := []relay.Change{change}
	d.places.change(changes, false)
	d.places.tell(d.t.Context())
	if d.change(d.t.Context(), changes, false) != nil {
		d.tellAll()
	}
}

// tellAll tells the daemon everything. If that fails, the next change may be the end of what it does not know.
func (d *dayOfChanges) tellAll() {
	var all []relay.Change
	for _, c := range d.calls {
		change := c.change
		change.Places = []relay.Place{c.place}
		all = append(all, change)
	}
	_ = d.change(d.t.Context(), all, true)
	d.places.change(all, true)
	d.places.tell(d.t.Context())
}

// agree requires that the tables agree with each other, and have no flow that no call needs.
func (d *dayOfChanges) agree() {
	open, phones := map[key]int{}, map[netip.Addr]int{}
	for f, keys := range d.flows {
		require.Positive(d.t, d.needed[f], "%v is open", f)
		for _, k := range keys {
			open[k]++
		}
	}
	require.Len(d.t, d.open, len(open))
	for k, h := range d.open {
		require.Equal(d.t, open[k], h.flows, "flows of %v", k)
		phones[h.phone]++
	}
	require.Equal(d.t, phones, d.phones)
	elements := 0
	for _, s := range d.sets {
		elements += len(s.elements)
	}
	require.Equal(d.t, len(open), elements, "elements of the sets")
	require.Len(d.t, d.places.held, len(d.calls))
}

// end ends all calls, and requires that nothing is left. It gives the bytes that are in use.
func (d *dayOfChanges) end() uint64 {
	d.agree()
	for len(d.calls) > 0 {
		d.hangUp(0)
	}
	d.engine.fails, d.engine.full = false, false
	d.places.tell(d.t.Context())
	assert.Empty(d.t, d.flows)
	assert.Empty(d.t, d.open)
	assert.Empty(d.t, d.phones)
	assert.Empty(d.t, d.needed)
	assert.Empty(d.t, d.places.held)
	assert.Empty(d.t, d.places.queue)
	assert.Empty(d.t, d.engine.held)
	for name, s := range d.sets {
		assert.Empty(d.t, s.keys(), name)
		s.full, s.refuses = false, ""
	}

	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
