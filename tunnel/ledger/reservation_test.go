package ledger

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/tunnel"
	"ringway/units"
)

const g711Rate = 112_800 // bit/s: 282 bytes on the wire every 20 ms

// flow identifies a call's packets.
func (d *office) flow(c *call) uint64 {
	return d.ledger.seed.Packet(mediaPacket(c.port, c.size, false))
}

// reserve asks for a place for a call.
func (d *office) reserve(c *call, rate units.BitRate) (*Reservation, State) {
	r := NewReservation(d.flow(c), d.site, rate)
	return r, d.ledger.Reserve(d.budgets, r, d.now)
}

func (d *office) mustReserve(c *call) *Reservation {
	d.t.Helper()
	r, state := d.reserve(c, g711Rate)
	require.Equal(d.t, Held, state)
	return r
}

func (c *call) hold() { c.interval = 0 }

func (d *office) resume(c *call) { c.interval, c.next = 20*time.Millisecond, d.now }

// The budget is full with nine calls, the first of which has a reservation and is silent for four seconds. A
// tenth begins: it is refused, and the first resumes at once. Without the reservation the tenth would have
// its place to the end.
func TestAReservedCallKeepsItsPlaceOnHold(t *testing.T) {
	for _, reserved := range []bool{true, false} {
		d := newOffice(t, 1120)
		for range 9 {
			d.g711()
		}
		first := d.calls[0]
		if reserved {
			d.mustReserve(first)
		}
		d.pass(5 * time.Second)
		d.look()

		first.hold()
		d.pass(4 * time.Second)
		d.look()
		tenth := d.g711()
		d.pass(time.Second)
		d.resume(first)
		d.pass(10 * time.Second)

		passed := d.look()
		want := 0
		if reserved {
			want = 100
			assert.Equal(t, LostSiteBudget, d.mustRefuse(tenth))
		}
		assert.Equal(t, want, passed[0], "the call that was on hold")
		assert.Equal(t, 100-want, passed[9], "the tenth")
		assert.Equal(t, []int{100, 100, 100, 100, 100, 100, 100, 100}, passed[1:9])
		d.holds()
	}
}

func (d *office) mustRefuse(c *call) State {
	d.t.Helper()
	_, state := d.reserve(c, g711Rate)
	require.NotEqual(d.t, Held, state)
	return state
}

// Reserved places count before the first packet comes.
func TestReservationsFillTheBudget(t *testing.T) {
	d := newOffice(t, 1120)
	var held []*Reservation
	for range 9 {
		c := d.g711()
		c.hold()
		held = append(held, d.mustReserve(c))
	}
	d.holds()
	late := d.g711()
	assert.Equal(t, LostSiteBudget, d.mustRefuse(late))
	d.pass(time.Second)
	assert.Equal(t, 0, d.look()[9])
	assert.Equal(t, tunnel.MediaStatus{
		Budget: 1_120_000, Taken: 9 * g711Rate, Flows: 9, Reserved: 9, Refused: uint64(late.sent), Refusing: true,
	}, withRefused(*d.site.Status(d.now), late.sent))

	d.pass(time.Minute) // nothing of them comes, and they keep their places
	d.look()
	for _, c := range d.calls[:9] {
		d.resume(c)
	}
	d.pass(time.Second)
	assert.Equal(t, []int{100, 100, 100, 100, 100, 100, 100, 100, 100, 0}, d.look())

	d.ledger.Release(held[4])
	d.calls[4].hold()
	d.pass(time.Second)
	d.look()
	d.pass(5 * time.Second)
	assert.Equal(t, 100, d.look()[9], "the place is free at once")
	assert.Equal(t, Released, held[4].State())
	d.holds()
}

func withRefused(s tunnel.MediaStatus, n int) tunnel.MediaStatus {
	s.Refused = uint64(n)
	return s
}

// A flow with a reservation is in at once, also when a refusal was a moment ago; one without has to show that
// it goes on.
func TestAReservedFlowIsInAtOnce(t *testing.T) {
	d := newOffice(t, 600) // five
	for range 6 {
		d.g711()
	}
	d.pass(3 * time.Second) // the sixth is refused all the time
	d.calls[0].hold()
	d.calls[5].hold()
	d.pass(2500 * time.Millisecond)
	d.look()
	next := d.g711()
	d.mustReserve(next)
	d.pass(100 * time.Millisecond)
	assert.Equal(t, 100, d.look()[6])
	d.holds()
}

// A reservation for a flow that is in costs nothing more; what the flow is measured to take beyond it counts.
func TestAReservationForAFlowThatIsIn(t *testing.T) {
	d := newOffice(t, 1120)
	c := d.g711()
	d.pass(3 * time.Second)
	_, state := d.reserve(c, 50_000)
	require.Equal(t, Held, state)
	assert.EqualValues(t, g711Rate, d.site.media.Load(), "it takes more than was reserved")

	dear, state := d.reserve(c, 400_000) // a change of codec
	require.Equal(t, Held, state)
	assert.EqualValues(t, 400_000, d.site.media.Load())
	d.pass(40 * time.Second)
	assert.EqualValues(t, 400_000, d.site.media.Load(), "as reserved, whatever it takes")

	_, state = d.reserve(c, 2_000_000)
	assert.Equal(t, LostSiteBudget, state)
	assert.Equal(t, Held, dear.State(), "it stays as it was")
	assert.EqualValues(t, 400_000, d.site.media.Load())

	_, state = d.reserve(c, 120_000) // and back
	require.Equal(t, Held, state)
	assert.EqualValues(t, 120_000, d.site.media.Load())
	assert.EqualValues(t, 1, d.site.reserved.Load())
	assert.Equal(t, []int{100}, d.look())
	d.holds()
}

// A smaller budget evicts the newest, reserved or not, and says of which reservations that is true.
func TestASmallerBudgetEvictsTheNewestReservations(t *testing.T) {
	d := newOffice(t, 1120)
	var reservations []*Reservation
	for range 8 {
		reservations = append(reservations, d.mustReserve(d.g711()))
		d.pass(100 * time.Millisecond)
	}
	d.g711() // the newest has none
	d.pass(5 * time.Second)
	d.look()
	d.calls[0].hold() // silent, and the oldest
	d.set(600)        // five
	d.ledger.Settle(d.budgets, reservations, d.now)
	d.pass(time.Second)
	d.look()
	d.pass(5 * time.Second)
	assert.Equal(t, []int{0, 100, 100, 100, 100, 0, 0, 0, 0}, d.look())
	d.resume(d.calls[0])
	d.pass(time.Second)
	assert.Equal(t, []int{100, 100, 100, 100, 100, 0, 0, 0, 0}, d.look())
	for i, r := range reservations {
		want := Held
		if i >= 5 {
			want = LostSiteBudget
		}
		assert.Equal(t, want, r.State(), "reservation %d", i)
	}
	d.holds()
}

// Reservations count in the line's budget, and follow a site to another line while they are silent.
func TestReservationsCountOnTheLine(t *testing.T) {
	d := newOffice(t, 1120)
	near, far := d.site, d.addFar(1_120_000)
	var silent []*Reservation
	for range 6 {
		c := d.g711()
		c.hold()
		silent = append(silent, d.mustReserve(c))
	}
	d.site = far
	for i := range 4 {
		c := d.g711()
		c.port += 1000
		c.hold()
		r, state := d.reserve(c, g711Rate)
		if i < 3 {
			require.Equal(t, Held, state)
			silent = append(silent, r)
		} else {
			assert.Equal(t, LostLineBudget, state)
		}
	}
	d.holds()

	d.apply() // new budgets, and so new lines, with the same figures
	d.ledger.Settle(d.budgets, silent, d.now)
	d.site = near
	assert.Equal(t, LostLineBudget, d.mustRefuse(d.g711()), "the silent ones are on the new line")
	d.holds()
}

// Without a budget everything passes; a reservation that was made then has its place when there is one, by
// its age.
func TestAReservationWithoutABudget(t *testing.T) {
	d := newOffice(t, 1120)
	d.site.SetBudget(nil)
	var all []*Reservation
	for range 7 {
		c := d.g711()
		all = append(all, d.mustReserve(c))
		d.pass(20 * time.Millisecond)
	}
	d.set(600) // five
	d.ledger.Settle(d.budgets, all, d.now)
	for i, r := range all {
		want := Held
		if i >= 5 {
			want = LostSiteBudget
		}
		assert.Equal(t, want, r.State(), "reservation %d", i)
	}
	d.holds()
}

// The table is never more than half full, whatever is reserved.
func TestReservationsAreBounded(t *testing.T) {
	d := newOffice(t, 1_000) // the smallest table
	held := 0
	for port := range uint16(2000) {
		r := NewReservation(d.ledger.seed.Packet(mediaPacket(port, ipG711, false)), d.site, 1)
		switch state := d.ledger.Reserve(d.budgets, r, d.now); state {
		case Held:
			held++
		default:
			assert.Equal(t, TableFull, state)
		}
	}
	assert.Equal(t, minSlots/2, held)
	d.holds()
}

// A site that is removed loses its flows' places and reservations.
func TestARemovedSiteLosesItsReservations(t *testing.T) {
	d := newOffice(t, 1120)
	far := d.addFar(1_120_000)
	r := d.mustReserve(d.g711())
	d.site.Close()
	assert.Equal(t, LostSite, r.State())
	_, state := d.reserve(d.g711(), g711Rate)
	assert.Equal(t, LostSite, state)

	d.site, d.calls = far, nil
	d.g711()
	d.pass(30 * time.Second) // 2 slots a packet, 1024 slots
	assert.Zero(t, d.sites[nearKey].reserved.Load())
	d.holds()

	// A network that now belongs to another site takes the flow with it.
	moved := d.mustReserve(d.calls[0])
	d.site = &Account{}
	d.sites[tunnel.PublicKey{3}] = d.site
	d.site.SetBudget(d.budgets.Site(farKey))
	d.pass(100 * time.Millisecond)
	assert.Equal(t, LostSite, moved.State())
	assert.EqualValues(t, 1, d.site.flows.Load())
	d.holds()
}

// What the ledger does to a packet allocates nothing, also for flows that come, go and are refused; nor does
// a reservation.
func TestTheLedgerAllocatesNothing(t *testing.T) {
	d := newOffice(t, 1120)
	packets := make([][]byte, 40)
	reservations := make([]*Reservation, len(packets))
	for i := range packets {
		packets[i] = mediaPacket(uint16(2*i), ipG711, i%8 == 7)
		reservations[i] = NewReservation(d.ledger.seed.Packet(packets[i]), d.site, g711Rate)
	}
	budgets := [2]*Budgets{d.budgets, NewBudgets(d.admission, d.budgets)}
	n := 0
	assert.Zero(t, testing.AllocsPerRun(2000, func() {
		n++
		for i, p := range packets {
			d.ledger.Admit(d.budgets, d.site, d.site.Budget(), p, outer(len(p)), d.now)
			if n%50 == i {
				d.ledger.Reserve(d.budgets, reservations[i], d.now)
			}
			if n%50 == i+7 && reservations[i].placed {
				d.ledger.Release(reservations[i])
			}
		}
		if n%100 == 0 {
			d.budgets = budgets[n/100%2]
			d.site.SetBudget(d.budgets.Site(nearKey))
			d.ledger.Settle(d.budgets, reservations, d.now)
		}
		d.now += int64(20 * time.Millisecond)
	}))
	d.holds()
}
