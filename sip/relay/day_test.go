package relay

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/process"
	"ringway/qos"
	"ringway/sip/abuse"
	"ringway/sip/admission"
	"ringway/sip/compact"
	"ringway/sip/dialog"
	"ringway/sip/ladder"
	"ringway/sip/terminate"
	"ringway/srtp/offer"
	"ringway/tunnel"
)

// hourly is how many calls begin in each hour of a branch's day, of about a thousand.
var hourly = [24]int{1, 1, 1, 1, 1, 2, 5, 20, 60, 100, 110, 95, 60, 80, 100, 100, 90, 60, 25, 12, 8, 5, 3, 2}

// A day of calls leaves nothing behind: no hole, no place in a budget, no leg, no entry of any table, no memory. A
// leak of 12 bytes a call is found, of 65 in the short form below. TEST_DAY_SEED repeats a day.
func TestLongADayLeavesNothing(t *testing.T) {
	onOneCore(t)
	synctest.Test(t, func(t *testing.T) {
		d := newDay(t)
		stop := d.followCalls()
		d.calls(time.Hour, 3500) // memory as a busy hour needs it
		d.settled(stop)
		before := d.heap()
		began := d.placed
		stop = d.followCalls()
		for _, n := range hourly {
			d.calls(time.Hour, float64(n)*23)
		}
		d.settled(stop)
		d.sameHeap(before, began)
		require.Greater(t, d.placed-began, 20_000)
		require.Positive(t, d.muted)
	})
}

// Two busy hours do not, either.
func TestTwoHoursLeaveNothing(t *testing.T) {
	onOneCore(t)
	synctest.Test(t, func(t *testing.T) {
		d := newDay(t)
		stop := d.followCalls()
		d.calls(30*time.Minute, 3500)
		d.settled(stop)
		before := d.heap()
		began := d.placed
		stop = d.followCalls()
		d.calls(time.Hour, 2200)
		d.calls(time.Hour, 1800)
		d.settled(stop)
		d.sameHeap(before, began)
	})
}

// A day in which the process is replaced again and again, dead in the middle of what it did or by one of another
// build, leaves nothing behind either: no call that only the journal knows, no hole of one whose end nobody read.
func TestLongADayOfReplacedProcesses(t *testing.T) {
	daysOfReplacements(t, func(d *day) {
		for _, n := range hourly {
			d.calls(time.Hour, float64(n)*23)
		}
		require.Greater(t, d.placed, 20_000)
	}, 15*time.Minute, 25)
}

// Nor does a busy hour.
func TestAnHourOfReplacedProcesses(t *testing.T) {
	daysOfReplacements(t, func(d *day) { d.calls(time.Hour, 1500) }, 2*time.Minute, 5)
}

// Nor do calls whose media is relayed: no pair, no port, no state that is kept for the next process.
func TestAnHourOfRelayedMedia(t *testing.T) {
	daysOfReplacements(t, func(d *day) { d.calls(time.Hour, 1500) }, 2*time.Minute, 5, func(s *Settings) {
		s.Media = secured(level("10.1.10.0/24", offer.Prefer), level("10.2.0.0/16", offer.Prefer)).Media
	})
}

func daysOfReplacements(
	t *testing.T, calls func(*day), every time.Duration, atLeast int, change ...func(*Settings),
) {
	onOneCore(t)
	synctest.Test(t, func(t *testing.T) {
		d := newDay(t, change...)
		d.replaces = true
		d.followCalls()
		d.calls(30*time.Minute, 3500)
		d.settled(d.reads.Load().unfollow)
		before := d.heap()
		began := d.placed
		d.followCalls()
		stop := start(func(ctx context.Context) { d.replaceNowAndThen(ctx, every) })
		calls(d)
		stop()
		d.settled(func() { d.reads.Load().unfollow() })
		d.sameHeap(before, began)
		t.Logf("%d processes died, with %d messages unread, and %d were replaced by another build; %d calls were taken over",
			d.died, d.unread.Load(), d.upgraded, d.taken)
		assert.GreaterOrEqual(t, min(d.died, d.upgraded), atLeast)
		assert.Positive(t, d.unread.Load())
		assert.Greater(t, d.taken, atLeast)
		if len(change) > 0 {
			t.Logf("%d pairs of media at most; %d were taken over", d.daemon.mostPairs, d.restored)
			assert.Greater(t, d.daemon.mostPairs, 10)
			assert.Greater(t, d.restored, atLeast)
		}
	})
}

// onOneCore has goroutines wake one after the other: waking another core at each of the millions of moments of a day
// takes far longer than what is to be done at it, and makes the order of a seed's messages a matter of chance.
func onOneCore(t *testing.T) {
	before := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
}

// day is a process with all that runs beside the core in it, and a daemon that the test plays.
type day struct {
	t       *testing.T
	seed    uint64
	daemon  *model
	fd      int // of the journal
	path    string
	running sync.WaitGroup // calls

	change     []func(*Settings)      // that make the day's settings other ones
	replaces   bool                   // the process does not live for the whole day
	reads      atomic.Pointer[reader] // nil: messages pass unread, or wait
	waiting    atomic.Bool            // they wait
	generation atomic.Int64           // changes when a process ends, and when the next one begins
	unread     atomic.Int64           // messages

	placed, others int // calls, and registrations and garbage
	messages       atomic.Int64

	mu       sync.Mutex // guards what follows
	counts   map[string]int
	records  int
	compared int // how often the daemon's holes were those of the calls
	muted    int // calls without media for an emergency call, at each look

	died, upgraded int    // processes
	taken          int    // calls that another process took over
	restored       int    // of them, those whose media is relayed
	beyond         uint64 // what processes that have ended were too full for
}

// reader is a process that reads signalling.
type reader struct {
	*core
	journal  *journal
	stop     func() // all of it
	unfollow func() // what has work as long as there are calls
}

func newDay(t *testing.T, change ...func(*Settings)) *day {
	seed := rand.Uint64()
	if s := os.Getenv("TEST_DAY_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("TEST_DAY_SEED=%d", seed)
	d := &day{t: t, seed: seed, counts: map[string]int{}, change: change}
	d.daemon = &model{rng: rand.New(rand.NewPCG(seed, 1<<40)), day: d}
	j, path := journalFile(t)
	d.fd, d.path = j.fd, path
	require.NoError(t, d.begin())
	t.Cleanup(func() { d.reads.Load().stop() })
	return d
}

// begin starts a process, which takes over what is in the journal. After an error it goes on, as the real one does.
func (d *day) begin() error {
	r := &reader{core: newCore(time.Now), journal: newJournal(d.fd), unfollow: func() {}}
	r.core.asker = newAsker(d.daemon.answer, r.flows)
	settings := daySettings()
	for _, f := range d.change {
		f(&settings)
	}
	if settings.Media != nil {
		for _, p := range d.daemon.pairs {
			settings.Media.Used = append(settings.Media.Used, p.Ends[0].Local, p.Ends[1].Local)
		}
	}
	err := r.use(settings)
	r.tracker.MaxLegs = 115 // fewer than the busiest hour has
	r.policy.ledger.MaxCalls, r.policy.phones.MaxBindings = 95, 90
	legs, readErr := r.journal.read()
	err = errors.Join(err, readErr, r.journal.clear(), r.load(legs), r.restore(d.daemon.restore(d.t)),
		r.keepOnce(r.journal)) // as server.takeOver
	d.restored += r.relayed.Len()
	d.taken += len(legs)
	stop := start(r.core.asker.run, r.expire)
	r.stop = func() { r.unfollow(); stop() }
	r.core.asker.tellAll()
	d.reads.Store(r)
	return err
}

// replaceNowAndThen has the process replaced until ctx ends: by one of another build, which goes on with what the one
// before has read, or after its death, when messages pass unread until the next one reads, and the latest changes are
// not in the journal.
func (d *day) replaceNowAndThen(ctx context.Context, every time.Duration) {
	rng := rand.New(rand.NewPCG(d.seed, 1<<43))
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(rng.ExpFloat64() * float64(every))):
		}
		orderly := rng.IntN(2) == 0
		if more := d.upgraded - d.died; more < -2 || more > 2 { // both have their part, whatever the seed
			orderly = more < 0
		}
		d.waiting.Store(orderly)
		d.generation.Add(1)
		old := d.reads.Swap(nil)
		d.beyond += old.stats().Beyond
		old.stop()
		if orderly { // as server.handleExport
			d.upgraded++
			assert.NoError(d.t, old.keepOnce(old.journal))
			old.journal.handedOver = true
		} else {
			d.died++
			if rng.IntN(2) == 0 { // amid an entry
				cut, err := compact.Encode(entry{Key: 1 << 40, About: &savedAbout{}})
				assert.NoError(d.t, err)
				_, err = unix.Write(d.fd, cut[:len(cut)-1])
				assert.NoError(d.t, err)
			}
		}
		time.Sleep(20*time.Millisecond + time.Duration(rng.Int64N(int64(300*time.Millisecond))))
		for !orderly && d.unread.Load() == 0 && ctx.Err() == nil { // the first one is away for long enough
			time.Sleep(10 * time.Millisecond)
		}
		fits := assert.NoError(d.t, d.begin(), "the next process takes over")
		d.followCalls()
		d.generation.Add(1)
		if !fits {
			return // once is enough
		}
	}
}

// reader is the process that reads a message; nil: it passes unread.
func (d *day) reader() *reader {
	for {
		r := d.reads.Load()
		if r != nil || !d.waiting.Load() {
			return r
		}
		time.Sleep(time.Millisecond) // in the sockets
	}
}

// start runs tasks until stop is called.
func start(tasks ...func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, task := range tasks {
		running.Go(func() { task(ctx) })
	}
	return func() { cancel(); running.Wait() }
}

// followCalls runs what has work as long as there are calls.
func (d *day) followCalls() (stop func()) {
	r := d.reads.Load()
	r.unfollow = start(func(ctx context.Context) { d.compare(ctx, r.core) },
		func(ctx context.Context) { r.handOver(ctx, d.take) },
		func(ctx context.Context) { r.keep(ctx, r.journal, func(err error) { assert.NoError(d.t, err) }) })
	return r.unfollow
}

// daySettings are those of a branch whose line to the far site does not carry all calls of the busiest hour.
func daySettings() Settings {
	return narrow(func(s *Settings) {
		l := abuse.Defaults()
		l.MaxSources, l.MaxUsers, l.MaxCalls = 300, 150, 130
		s.Servers = []netip.Addr{dayPBX.Addr(), dayFarPBX.Addr(), dayTrunk.Addr()}
		s.AbuseLimits, s.Privacy, s.EmergencyNumbers = &l, "mask", []string{"112"}
		s.Budgets.Lines[0] = admission.PlanLine{Name: "wan0", Line: qos.Line{Uplink: 20 * qos.Mbit}, Local: 5 * qos.Mbit}
		s.Budgets.Sites[0].Rate = 3500 * qos.Kbit
	})
}

func (d *day) count(what string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counts[what]++
}

// calls places calls for a time, so many in an hour, with registrations and garbage beside them.
func (d *day) calls(length time.Duration, perHour float64) {
	end := time.Now().Add(length)
	rng := rand.New(rand.NewPCG(d.seed, uint64(d.placed)+1<<41))
	for {
		time.Sleep(time.Duration(rng.ExpFloat64() * float64(time.Hour) / (perHour + 500)))
		if !time.Now().Before(end) {
			return
		}
		if x := rng.Float64() * (perHour + 500); x < perHour {
			d.placed++
			c := d.newCall(d.placed)
			d.running.Go(c.run)
			continue
		}
		d.others++
		n := d.others
		own := rand.New(rand.NewPCG(d.seed, uint64(n)+1<<42))
		d.running.Go(func() {
			if own.IntN(3) > 0 {
				d.register(own, n)
				return
			}
			d.garbage(own, n)
		})
	}
}

// take is the daemon where it is handed records.
func (d *day) take(_ context.Context, r process.Request) error {
	var sent reportsRequest
	if err := compact.Decode(r.Attached, &sent); !assert.NoError(d.t, err, "reports and records") {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.records += len(sent.Records)
	return nil
}

// settled waits until the last timers have ended, and requires that nothing is left.
func (d *day) settled(stop func()) {
	d.running.Wait()
	time.Sleep(30 * time.Minute) // 10 minutes without anything, or a session timer
	stop()
	r := d.reads.Load()
	assert.Zero(d.t, r.stats().Calls)
	time.Sleep(49 * time.Hour)                         // what is remembered of sources for a day, after bans of a day
	for r.handOverOnce(context.Background(), d.take) { // what was reported since
	}
	synctest.Wait()
}

// heap requires that every table is empty, and gives the bytes that are in use.
func (d *day) heap() uint64 {
	r := d.reads.Load()
	t, c, j := d.t, r.core, r.journal
	j.mu.Lock()
	legs, err := newJournal(d.fd).read()
	require.NoError(t, err)
	assert.Empty(t, legs, "in the journal")
	assert.Empty(t, j.keys)
	assert.Zero(t, j.live)
	j.spoiled = true
	require.NoError(t, c.keepOnce(j))
	st, err := os.Stat(d.path)
	require.NoError(t, err)
	assert.Zero(t, st.Size(), "bytes of the journal")
	j.mu.Unlock()

	c.mu.Lock()
	assert.Zero(t, len(c.known), "known")
	assert.Zero(t, len(c.dirty), "dirty")
	assert.Zero(t, len(c.policy.muted), "muted")
	assert.Zero(t, len(c.reports), "reports")
	assert.Zero(t, len(c.records), "records")
	assert.LessOrEqual(t, len(c.ended), maxEnded)
	assert.LessOrEqual(t, c.ladder.Size(), ladder.Defaults().Total)
	for _, id := range c.ladder.Calls() {
		c.ladder.Forget(id)
	}
	assert.Zero(t, c.ladder.Size(), "bytes of messages")
	assert.Zero(t, c.ladder.Len())
	c.ended, c.first = nil, 0
	for name, table := range map[string]any{
		"tracker": c.tracker, "ledger": c.policy.ledger, "phones": c.policy.phones, "watch": c.policy.watch,
		"refusals": &c.policy.refusals, "relayed": c.relayed, "ports": c.ports,
	} {
		assert.Empty(t, remains(name, reflect.ValueOf(table)))
	}
	for _, b := range c.policy.ledger.Budgets() {
		assert.Zero(t, b.Places, b.Where)
		assert.Zero(t, b.Taken, b.Where)
	}
	assert.Empty(t, c.places())
	c.mu.Unlock()

	a := c.asker
	a.mu.Lock()
	assert.Zero(t, len(a.queue)+len(a.closing), "changes for the daemon")
	assert.False(t, a.all)
	a.mu.Unlock()
	assert.Zero(t, len(d.daemon.open), "holes")
	assert.Zero(t, len(d.daemon.places), "places")
	assert.Zero(t, len(d.daemon.pairs), "pairs")
	assert.Zero(t, len(d.daemon.keeper.calls), "calls for the next process")

	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// maxGrowth is what maps that have become larger, and what Go keeps of goroutines that have ended, may take: 80 to 180
// KiB were seen, in two hours as in three days.
const maxGrowth = 256 << 10

func (d *day) sameHeap(before uint64, began int) {
	after := d.heap()
	n := d.placed - began
	d.t.Logf("%d calls, %d registrations and strays, %d messages, %d legs recorded",
		d.placed, d.others, d.messages.Load(), d.records)
	d.t.Logf("%d requests to the daemon, %d of them failed, %d the whole", d.daemon.requests, d.daemon.failed,
		d.daemon.wholes)
	d.t.Logf("holes compared %d times, %d at most, muted calls seen %d times", d.compared, d.daemon.most, d.muted)
	for _, what := range slices.Sorted(maps.Keys(d.counts)) {
		d.t.Logf("%6d %s", d.counts[what], what)
	}
	s := d.reads.Load().stats()
	s.Beyond += d.beyond
	d.t.Logf("beyond the bounds %d, refused %v, unread %v", s.Beyond, s.Refused, s.Unread)
	d.t.Logf("heap %d bytes before, %d after %d calls: %+.1f a call", before, after, n,
		(float64(after)-float64(before))/float64(n))
	assert.Less(d.t, int64(after)-int64(before), int64(maxGrowth), "bytes of the heap")
	assert.Positive(d.t, s.Beyond)
	assert.Greater(d.t, d.compared, 100)
	assert.Greater(d.t, d.records, n/2)
}

// compare looks now and then whether the daemon has just those holes open that calls need, while nothing is on its
// way.
func (d *day) compare(ctx context.Context, c *core) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(9*time.Second + 17*time.Microsecond):
		}
		a := c.asker
		if !a.asking.TryLock() {
			continue
		}
		c.mu.Lock()
		a.mu.Lock()
		d.muted += len(c.policy.muted)
		quiet := len(a.queue)+len(a.closing)+len(c.policy.muted) == 0 && !a.all
		if quiet && !d.t.Failed() {
			needed := map[dialog.Flow]bool{}
			c.tracker.Legs(func(l *dialog.Leg) {
				for _, f := range l.Flows() {
					needed[f] = true
				}
			})
			assert.Equal(d.t, needed, d.daemon.open, "holes at %s", time.Now())
			assert.Len(d.t, d.daemon.places, len(c.places()))
			pairs := map[uint64]*terminate.Pair{}
			for _, p := range c.relayed.Whole() {
				pairs[p.ID] = p.Pair
			}
			assert.Equal(d.t, pairs, d.daemon.pairs, "pairs at %s", time.Now())
			assert.Len(d.t, d.daemon.keeper.calls, c.relayed.Len())
			d.compared++
		}
		a.mu.Unlock()
		c.mu.Unlock()
		a.asking.Unlock()
	}
}

// model is what a daemon knows: the flows that are open, and the places in budgets.
type model struct {
	rng    *rand.Rand
	day    *day
	open   map[dialog.Flow]bool
	places map[tunnel.Flow]bool
	pairs  map[uint64]*terminate.Pair
	keeper keeper // the Supervisor's

	requests, failed, wholes, most, mostPairs int
}

// restore is what the next process is given of calls whose media is relayed.
func (m *model) restore(t *testing.T) (all []terminate.Saved) {
	for _, packed := range m.keeper.batches() {
		u := unpacker{rest: packed}
		all = append(all, u.saved()...)
		assert.False(t, u.bad)
	}
	return all
}

var errBusy = errors.New("the daemon is busy")

// answer plays the daemon for one request. Now and then it is slow, or fails before, amid or after the change.
func (m *model) answer(ctx context.Context, r flowsRequest) error {
	m.requests++
	var err error
	r.Changes, err = unpackChanges(packChanges(nil, r.Changes)) // as they cross the control connection
	assert.NoError(m.day.t, err)
	if r.Whole {
		m.wholes++
	}
	fault := m.rng.IntN(400)
	if fault < 12 {
		time.Sleep(time.Duration(m.rng.Int64N(int64(40 * time.Millisecond))))
	}
	switch fault {
	case 0:
		m.failed++
		return errBusy
	case 1:
		m.failed++
		m.apply(flowsRequest{Whole: r.Whole, Changes: r.Changes[:len(r.Changes)/2]})
		return errBusy
	case 2:
		m.failed++
		m.apply(r)
		<-ctx.Done()
		return ctx.Err()
	}
	m.apply(r)
	return nil
}

func (m *model) apply(r flowsRequest) {
	if r.Whole || m.open == nil {
		m.open, m.places = map[dialog.Flow]bool{}, map[tunnel.Flow]bool{}
		m.pairs = map[uint64]*terminate.Pair{}
	}
	m.keeper.take(r.Changes, r.Whole)
	for _, c := range r.Changes {
		for _, f := range c.Open {
			m.open[f] = true
		}
		for _, f := range c.Close {
			delete(m.open, f)
		}
		for _, p := range c.Places {
			if p.Release {
				delete(m.places, p.Reserve.Flow)
			} else {
				m.places[p.Reserve.Flow] = true
			}
		}
		for _, p := range c.Media {
			if p.Pair == nil {
				delete(m.pairs, p.ID)
			} else {
				m.pairs[p.ID] = p.Pair
			}
		}
	}
	m.mostPairs = max(m.mostPairs, len(m.pairs))
	m.most = max(m.most, len(m.open))
}

// remains are the maps, lists and slices below a pointer to a struct that are not empty, by their names.
func remains(path string, v reflect.Value) (all []string) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() && v.Elem().Kind() == reflect.Struct {
			return remains(path, v.Elem())
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[list.List]() {
			if n := v.FieldByName("len").Int(); n > 0 {
				all = append(all, fmt.Sprintf("%s: %d", path, n))
			}
			return all
		}
		for i := range v.NumField() {
			switch name := v.Type().Field(i).Name; name {
			case "world", "limits", "scratch", "hash", "places", "config", "sdp": // settings, and room for work
			default:
				all = append(all, remains(path+"."+name, v.Field(i))...)
			}
		}
	case reflect.Map, reflect.Slice:
		if n := v.Len(); n > 0 {
			all = append(all, fmt.Sprintf("%s: %d", path, n))
		}
	}
	return all
}
