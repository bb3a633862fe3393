package nft

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/firewall"
	"ringway/firewall/conntrack"
	"ringway/test/polltest"
)

// branchWithHoles is the branch of packets_test.go with its dynamic sets.
func branchWithHoles(t *testing.T) (*world, *Ruleset, firewall.Input) {
	w := newWorld(t, branch())
	r := openRuleset(t, w.edge, thisKernel(t), dynamicSets()...)
	in := branch()
	in.Dynamic = r.Sets()
	changes := firewall.Diff(firewall.Want(in), observeIn(t, w.edge))
	require.NoError(t, w.edge.Do(func() error { return r.Apply(changes) }))
	return w, r, in
}

// A hole lets a PBX in a data network, here the far site's, send media to a phone; it closes when its life
// ends.
func TestAHoleOpensAndCloses(t *testing.T) {
	t.Parallel()
	w, r, _ := branchWithHoles(t)
	for _, c := range []struct {
		set, key string
		from     string
		port     int
	}{
		{"media4", "10.2.20.3 . 10.1.10.2 . 21000", "10.2.20.3", 21000},
		{"media4_24", "10.2.20.0 . 10.1.10.2 . 21102", "10.2.20.3", 21102},
	} {
		phone := w.listen(w.phone, phone4, c.port)
		pbx := func() *net.UDPConn { return w.listen(w.far, c.from, 0) } // a flow of its own each time
		apart := w.counters()["voice_data_apart"].Packets
		w.send(pbx(), phone4, c.port, 0)
		w.assertCounter("voice_data_apart", apart+1, "no hole yet")

		o := owner(t, r, c.set)
		require.NoError(t, o.Add(t.Context(), 30*time.Second, c.key))
		w.send(pbx(), phone4, c.port, 0)
		w.receive(phone, "through the hole of "+c.set)
		beside := w.listen(w.phone, phone4, c.port+8)
		w.send(pbx(), phone4, c.port+8, 0)
		w.assertCounter("voice_data_apart", apart+2, "another port")
		beside.Close()

		require.NoError(t, o.Refresh(t.Context(), 200*time.Millisecond, c.key))
		polltest.Assert(t, func() bool {
			w.send(pbx(), phone4, c.port, 0)
			return w.counters()["voice_data_apart"].Packets >= apart+5
		}, 10*time.Second, 20*time.Millisecond, "the hole of %s closes with its life", c.set)
		phone.Close()
	}

	// What must never be forwarded is not, whatever hole there is.
	o := owner(t, r, "media4")
	require.NoError(
		t,
		o.Add(t.Context(), time.Minute, "198.51.100.1 . 10.2.20.3 . 21000", "10.2.20.3 . 198.51.100.1 . 21000"),
	)
	hairpin := w.counters()["hairpin_wan"].Packets
	w.send(w.listen(w.far, "10.2.20.3", 0), internet4, 21000, 0)
	w.assertCounter("hairpin_wan", hairpin+1, "from a tunnel to the WAN")
}

// The table is replaced again and again while holes are opened: no packet of an open hole is lost, and no
// hole, and each keeps the life that it had.
func TestAReplacedTableKeepsItsHoles(t *testing.T) {
	t.Parallel()
	w, r, in := branchWithHoles(t)
	o := owner(t, r, "media4")
	const port = 21000
	require.NoError(t, o.Add(t.Context(), time.Minute, fmt.Sprintf("10.2.20.3 . 10.1.10.2 . %d", port)))

	// One way only: conntrack sees no answer, so each packet needs the hole.
	phone, pbx := w.listen(w.phone, phone4, port), w.listen(w.far, "10.2.20.3", 20000)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sent, sending := make(chan int, 1), time.NewTicker(time.Millisecond)
	defer sending.Stop()
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			<-sending.C
			_, _ = pbx.WriteToUDPAddrPort(
				[]byte("voice"), netip.AddrPortFrom(netip.MustParseAddr(phone4), port),
			)
		}
		sent <- n
	}()
	var received atomic.Int64
	go func() {
		buf := make([]byte, 100)
		for {
			if _, err := phone.Read(buf); err != nil {
				return
			}
			received.Add(1)
		}
	}()

	added := make(chan int, 1)
	go func() {
		i := 0
		for ; ctx.Err() == nil && i < 4000; i++ {
			_ = o.Add(context.Background(), time.Minute, hole(i))
		}
		added <- i
	}()

	for range 20 {
		remake(t, w.edge, r, in)
	}
	cancel()
	opened, packets := <-added, <-sent
	polltest.Assert(t, func() bool { return int(received.Load()) == packets }, 5*time.Second, 5*time.Millisecond,
		"%d of %d packets arrived; counters %v", received.Load(), packets, w.counters())

	s := o.Status()
	there := inKernel(t, w.edge, o)
	assert.Len(t, there, opened+1)
	assert.Equal(t, opened+1, s.Elements)
	assert.Zero(t, s.Unsent)
	assert.Greater(t, s.Counters.Restored, uint64(20))
	t.Logf("%d packets, %d holes, %d put into 20 new tables", packets, opened, s.Counters.Restored)

	o.mu.Lock()
	defer o.mu.Unlock()
	for k, e := range o.elements.elements {
		text := k.Text(o.set.Type)
		assert.InDelta(t, time.Until(e.deadline).Seconds(), there[text].Seconds(), 1, text)
	}
}

// `established` outlives a hole: the flow that passed through it goes on until its conntrack entry is
// deleted (T7).
func TestAFlowEndsWithItsConntrackEntry(t *testing.T) {
	t.Parallel()
	w, r, _ := branchWithHoles(t)
	const port = 21000
	o := owner(t, r, "media4")
	there, back := "10.2.20.3 . 10.1.10.2 . 21000", "10.1.10.2 . 10.2.20.3 . 20000"
	require.NoError(t, o.Add(t.Context(), time.Minute, there, back))
	phone, pbx := w.listen(w.phone, phone4, port), w.listen(w.far, "10.2.20.3", 20000)
	w.send(pbx, phone4, port, 0)
	w.receive(phone, "from the PBX")
	w.send(phone, "10.2.20.3", 20000, 0)
	w.receive(pbx, "from the phone")

	require.NoError(t, o.Delete(t.Context(), there, back))
	w.send(pbx, phone4, port, 0)
	w.receive(phone, "the hole is closed, the connection is not")

	apart := w.counters()["voice_data_apart"].Packets
	require.NoError(t, w.edge.Do(func() error {
		n, err := conntrack.Delete(conntrack.Tuple{
			Protocol: unix.IPPROTO_UDP, Source: netip.MustParsePrefix("10.2.20.3/32"),
			Destination: netip.MustParseAddr(phone4), Port: port,
		})
		assert.Equal(t, 1, n)
		return err
	}))
	w.send(pbx, phone4, port, 0)
	w.assertCounter("voice_data_apart", apart+1, "the flow of a call that has ended")
}
