package tc

import (
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/qos"
	"ringway/test/netnstest"
)

// hub has that many sites, whose lines together are far above its own.
func hub(sites int) qos.Input {
	in := input(qos.Gbit)
	for i := range sites {
		in.Sites = append(in.Sites, qos.Site{Name: fmt.Sprintf("branch-%d", i), Downlink: 20 * qos.Mbit})
	}
	return in
}

func TestOneSiteOf500(t *testing.T) {
	a, _ := pair(t)
	in := hub(500)
	reconcile(t, a, qos.Want(in))
	assert.Empty(t, reconcile(t, a, qos.Want(in)), "applied twice")
	require.Len(t, observe(t, a).Links[0].Classes, 1+5*501)

	in.Sites[7].Downlink = 30 * qos.Mbit
	var names []string
	for _, s := range in.Sites {
		names = append(names, s.Name)
	}
	places := qos.Places(names)
	changes := reconcile(t, a, qos.Want(in))
	assert.Len(t, changes, 5+4, "its class, its leaves, their bounds")
	for _, c := range changes {
		assert.Equal(t, qos.ChangeOp, c.Op, "%s: in place", c)
		h := qos.Handle(0)
		if c.Class != nil {
			h = c.Class.Handle
		} else {
			h = c.Qdisc.Parent
		}
		assert.True(
			t, places[h].Site == "branch-7" || places[h+1].Site == "branch-7", "%s is of another site", c,
		)
	}

	in.Sites = slices.Delete(in.Sites, 7, 8)
	for _, c := range reconcile(t, a, qos.Want(in)) {
		assert.Equal(t, qos.DeleteOp, c.Op, "%s", c)
	}
	assert.Empty(t, reconcile(t, a, qos.Want(in)))
}

func TestStatsNameSites(t *testing.T) {
	w := newWAN(t, 20*qos.Mbit)
	w.in.Sites = []qos.Site{{Name: "munich"}, {Name: "berlin", Downlink: 5 * qos.Mbit}}
	reconcile(t, w.a, qos.Want(w.in))
	for _, p := range qos.SitePriorities(w.in) {
		c := w.dialPriority(p.ClassID, 4000, nil)
		_, err := c.Write(make([]byte, 100))
		require.NoError(t, err)
	}
	var stats []qos.QueueStats
	require.NoError(
		t,
		w.a.Do(func() (err error) {
			stats, err = Stats(
				[]string{"wan0"}, []string{"munich", "berlin"},
			)
			return err
		}),
	)
	var got []string
	for _, s := range stats {
		if s.Site == qos.Local {
			s.SentPackets = 0 // the box's own neighbour discovery may be there
		}
		got = append(got, fmt.Sprintf("%s %s %d", s.Site, s.Class, s.SentPackets))
	}
	assert.Equal(t, []string{
		"local media 0", "local signalling 0", "local data 0", "local background 0",
		"berlin media 1", "berlin signalling 1", "berlin data 1", "berlin background 1",
		"munich media 1", "munich signalling 1", "munich data 1", "munich background 1",
	}, got)
}

// What a hub of 500 sites costs: everything from nothing, and one site's rate. The target is 3 s and 50 ms.
func BenchmarkHub(b *testing.B) {
	in := hub(500)
	want := qos.Want(in)
	b.Run("first", func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			ns := netnstest.New(b)
			netnstest.Veth(b, ns, "wan0", netnstest.New(b), "wan0")
			b.StartTimer()
			reconcile(b, ns, want)
		}
	})
	b.Run("one site", func(b *testing.B) {
		ns := netnstest.New(b)
		netnstest.Veth(b, ns, "wan0", netnstest.New(b), "wan0")
		reconcile(b, ns, want)
		changed := in
		changed.Sites = slices.Clone(in.Sites)
		b.ResetTimer()
		for i := range b.N {
			changed.Sites[7].Downlink = qos.BitRate(10+i%2) * qos.Mbit
			require.Len(b, reconcile(b, ns, qos.Want(changed)), 9)
		}
	})
	b.Run("nothing", func(b *testing.B) {
		ns := netnstest.New(b)
		netnstest.Veth(b, ns, "wan0", netnstest.New(b), "wan0")
		reconcile(b, ns, want)
		b.ResetTimer()
		for range b.N {
			require.Empty(b, reconcile(b, ns, qos.Want(in)))
		}
	})
	b.Run("counters", func(b *testing.B) { // once a second while there are calls
		ns := netnstest.New(b)
		netnstest.Veth(b, ns, "wan0", netnstest.New(b), "wan0")
		reconcile(b, ns, want)
		var sites []string
		for _, s := range in.Sites {
			sites = append(sites, s.Name)
		}
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			require.NoError(b, ns.Do(func() error {
				stats, err := Stats([]string{"wan0"}, sites)
				require.Len(b, stats, 4*(len(sites)+1))
				return err
			}))
		}
	})
}

// sockets opens one for each site's queue of a class.
func (w *wan) sockets(class qos.ClassName, port int) map[string]*net.UDPConn {
	out := map[string]*net.UDPConn{}
	for i, s := range w.in.Sites {
		for _, p := range qos.SitePriorities(w.in) {
			if p.Site == s.Name && p.Class == class {
				out[s.Name] = w.dialPriority(p.ClassID, port+i, nil)
			}
		}
	}
	return out
}

// floodAll sends full packets to all of the sockets in turn, at 60 Mbit/s together, until the flag is set.
func floodAll(t testing.TB, conns map[string]*net.UDPConn, wg *sync.WaitGroup, stop *atomic.Bool) {
	var list []*net.UDPConn
	for _, c := range conns {
		raw, err := c.SyscallConn()
		require.NoError(t, err)
		require.NoError(
			t,
			raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(
					int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20,
				)
			}),
		)
		list = append(list, c)
	}
	wg.Go(func() {
		buf := make([]byte, 1400)
		for i := 0; !stop.Load(); i++ {
			if _, err := list[i%len(list)].Write(buf); err != nil && !refused(err) {
				return
			}
			if i%11 == 10 {
				pace(2 * time.Millisecond)
			}
		}
	})
}

// All sites of a hub send at once, far more than its line takes, data and signalling and background: calls
// go first, and the line's rate is not exceeded, nor any site's.
func TestCallsGoFirstAtAHub(t *testing.T) {
	w := newWAN(t, 20*qos.Mbit)
	for i := range 40 {
		w.in.Sites = append(w.in.Sites, qos.Site{Name: fmt.Sprintf("branch-%d", i), Downlink: 4 * qos.Mbit})
	}
	reconcile(t, w.a, qos.Want(w.in))
	var wg sync.WaitGroup
	var end atomic.Bool
	floodAll(t, w.sockets(qos.Data, 10000), &wg, &end)
	floodAll(t, w.sockets(qos.Background, 11000), &wg, &end)
	pace(200 * time.Millisecond) // what each may send at once is sent
	stop := w.capture()
	const n = 200
	calls := w.sockets(qos.Media, mediaPort)
	var talking sync.WaitGroup
	for _, s := range w.in.Sites[:10] {
		talking.Go(func() { talk(t, calls[s.Name], n/10, 100*time.Millisecond) })
	}
	talking.Wait()
	end.Store(true)
	wg.Wait()
	frames := stop()
	assertWirePackets(t, frames)
	var d []time.Duration
	bytes := map[uint16]int{}
	for _, f := range frames {
		if f.port >= mediaPort && f.port < mediaPort+40 {
			d = append(d, time.Duration(f.at.UnixNano()-int64(binary.BigEndian.Uint64(f.payload[8:]))))
		}
		if f.port >= 10000 {
			bytes[f.port%1000] += w.wire(f)
		}
	}
	slices.Sort(d)
	require.Len(t, d, n, "no packet of a call is lost")
	t.Logf(
		"calls to ten of 40 sites, all of which are flooded: p50 %s, p95 %s, max %s", d[n/2], d[n*95/100],
		d[n-1],
	)
	assert.Less(t, d[n*95/100], 8*time.Millisecond)
	got := w.throughput(frames)
	t.Logf(
		"%.2f Mbit/s of %s; in 20 ms at most %.0f bytes too much", got/1e6, w.in.WANs[0].Shaped(),
		w.worst(frames, 20*time.Millisecond),
	)
	assert.InDelta(t, float64(w.in.WANs[0].Shaped()), got, 0.06*float64(w.in.WANs[0].Shaped()))
	assert.Less(t, w.worst(frames, 20*time.Millisecond), 12*1542.0)
	least, most := math.MaxInt, 0
	for _, b := range bytes {
		least, most = min(least, b), max(most, b)
	}
	assert.Len(t, bytes, 40)
	assert.Less(t, most, 2*least, "the sites share what the calls leave: %v", bytes)
}

// A site gets no more than its line carries, calls to it go first there too, and what it cannot take others do.
func TestTimedASiteIsHeldToItsDownlink(t *testing.T) {
	w := newWAN(t, 20*qos.Mbit)
	w.in.Sites = []qos.Site{{Name: "small", Downlink: 2 * qos.Mbit}}
	reconcile(t, w.a, qos.Want(w.in))
	var wg sync.WaitGroup
	var end atomic.Bool
	floodAll(t, w.sockets(qos.Data, 10000), &wg, &end)
	flood(w.dial(qos.Data, 9002, superPackets), &wg, &end)
	stop := w.capture()
	const n = 100
	talk(t, w.sockets(qos.Media, mediaPort)["small"], n, 20*time.Millisecond)
	end.Store(true)
	wg.Wait()
	frames := settled(t, stop())
	var site []frame
	for _, f := range frames {
		if f.port == 10000 || f.port == mediaPort {
			site = append(site, f)
		}
	}
	ceil := float64(w.in.WANs[0].Ceiling(w.in.Sites[0]))
	got := w.throughput(site)
	d := delays(frames)
	t.Logf(
		"%.0f kbit/s to a site of %.0f, %.2f Mbit/s in all; calls p50 %s, p95 %s", got/1e3, ceil/1e3,
		w.throughput(frames)/1e6, d[len(d)/2], d[len(d)*95/100],
	)
	assert.InDelta(t, ceil, got, 0.05*ceil)
	assert.InDelta(t, float64(w.in.WANs[0].Shaped()), w.throughput(frames), 0.05*float64(w.in.WANs[0].Shaped()))
	assert.Less(t, d[len(d)*95/100], 8*time.Millisecond)
}

// A misbehaving phone, or somebody who forges EF, gets the budget of the site and no more; what is no call has
// at least its floor.
func TestTimedACallsBudgetIsPolicedBySite(t *testing.T) {
	w := newWAN(t, 20*qos.Mbit)
	w.in.Sites = []qos.Site{{Name: "hub"}}
	reconcile(t, w.a, qos.Want(w.in))
	var wg sync.WaitGroup
	var end atomic.Bool
	floodAll(t, w.sockets(qos.Media, mediaPort), &wg, &end)
	floodAll(t, w.sockets(qos.Data, 10000), &wg, &end)
	stop := w.capture()
	pace(1200 * time.Millisecond)
	end.Store(true)
	wg.Wait()
	frames := settled(t, stop())
	by := map[uint16][]frame{}
	for _, f := range frames {
		by[f.port] = append(by[f.port], f)
	}
	total := float64(w.in.WANs[0].Shaped())
	media, data := w.throughput(by[mediaPort]), w.throughput(by[10000])
	t.Logf("media %.2f, data %.2f of %.2f Mbit/s", media/1e6, data/1e6, total/1e6)
	assert.InDelta(t, 0.3*total, media, 0.02*total, "the budget")
	assert.InDelta(t, 0.7*total, data, 0.04*total, "all that it leaves")
}

// A site's rate is changed over and over, a third comes and goes: no packet to another site is lost or
// waits for it, and none to the site itself is lost.
func TestAnotherSitesChangeLosesNothing(t *testing.T) {
	w := newWAN(t, 20*qos.Mbit)
	w.in.Sites = []qos.Site{
		{Name: "steady", Downlink: 4 * qos.Mbit}, {Name: "changing", Downlink: 2 * qos.Mbit},
	}
	reconcile(t, w.a, qos.Want(w.in))
	const n = 300
	stop := w.capture()
	var wg sync.WaitGroup
	sent := map[string]int{}
	for _, class := range []qos.ClassName{qos.Media, qos.Data} {
		for name, c := range w.sockets(class, 9100) {
			sent[name] += n
			wg.Go(func() { talk(t, c, n, 5*time.Millisecond) })
		}
	}
	for i := range 40 {
		in := w.in
		in.Sites = slices.Clone(w.in.Sites)
		in.Sites[1].Downlink = qos.BitRate(2+i%3) * qos.Mbit
		if i%2 == 1 {
			in.Sites = append(in.Sites, qos.Site{Name: "third", Downlink: 3 * qos.Mbit})
		}
		reconcile(t, w.a, qos.Want(in))
		pace(20 * time.Millisecond)
	}
	wg.Wait()
	got := map[string]int{}
	for _, f := range stop() {
		if f.port >= 9100 && f.port < 9110 {
			got[w.in.Sites[f.port-9100].Name]++
		}
	}
	assert.Equal(t, sent, got)
}
