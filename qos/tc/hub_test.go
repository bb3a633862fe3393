package tc

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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
		assert.True(t, places[h].Site == "branch-7" || places[h+1].Site == "branch-7", "%s is of another site", c)
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
	require.NoError(t, w.a.Do(func() (err error) { stats, err = Stats([]string{"wan0"}, []string{"munich", "berlin"}); return err }))
	var got []string
	for _, s := range stats {
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
}
