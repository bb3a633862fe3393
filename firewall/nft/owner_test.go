package nft

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/firewall"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

// dynamicSets are of each kind that calls need: holes of one address and of a network, bans, devices.
func dynamicSets() []firewall.DynamicSet {
	networks := []netip.Prefix{netip.MustParsePrefix("10.2.20.0/24"), netip.MustParsePrefix("2001:db8:2::/48")}
	return append(firewall.HoleSets("calls", 4096, 64, time.Minute, networks),
		firewall.DynamicSet{
			Name: "banned4", Owner: "abuse", Type: "ipv4_addr", MaxElements: 8, MaxLife: 24 * time.Hour,
		},
		firewall.DynamicSet{
			Name: "sip_taken", Owner: "calls", Type: "ifname", MaxElements: 16, MaxLife: 2 * time.Second,
		},
	)
}

// openRuleset opens owners in ns, for a kernel with these features.
func openRuleset(t testing.TB, ns *netnstest.NS, f ElementFeatures, sets ...firewall.DynamicSet) *Ruleset {
	t.Helper()
	r := &Ruleset{}
	require.NoError(t, ns.Do(func() error { return r.open(f, sets) }))
	t.Cleanup(r.Close)
	return r
}

// withHoles is a namespace with the branch's ruleset and its dynamic sets.
func withHoles(t testing.TB, f ElementFeatures) (*netnstest.NS, *Ruleset) {
	t.Helper()
	ns := netnstest.New(t)
	r := openRuleset(t, ns, f, dynamicSets()...)
	in := branch()
	in.Dynamic = r.Sets()
	require.NoError(
		t, ns.Do(func() error { return r.Apply(firewall.Diff(firewall.Want(in), firewall.State{})) }),
	)
	return ns, r
}

func owner(t testing.TB, r *Ruleset, name string) *SetOwner {
	t.Helper()
	o, ok := r.Set(name)
	require.True(t, ok, name)
	return o
}

// inKernel gives the elements of a set, in nft's words, with the life that they have left.
func inKernel(t testing.TB, ns *netnstest.NS, o *SetOwner) map[string]time.Duration {
	t.Helper()
	out := map[string]time.Duration{}
	require.NoError(t, ns.Do(func() error {
		c, err := open()
		if err != nil {
			return err
		}
		defer c.CloseLasting()
		set, err := c.GetSetByName(table(), o.set.Name)
		if err != nil {
			return err
		}
		list, err := c.GetSetElements(set)
		for _, e := range list {
			out[Key(e.Key).Text(o.set.Type)] = e.Expires
		}
		return err
	}))
	return out
}

// thisKernel is what the running kernel can do with elements.
func thisKernel(t testing.TB) ElementFeatures {
	t.Helper()
	ns := netnstest.New(t)
	var f ElementFeatures
	require.NoError(t, ns.Do(func() (err error) { f, err = ProbeElements(); return }))
	assert.Empty(t, ns.Run("nft", "list", "tables"), "the probe leaves nothing")
	return f
}

// kernels are what this kernel and older ones can do.
func kernels(t testing.TB) map[string]ElementFeatures {
	f := thisKernel(t)
	all := map[string]ElementFeatures{"Linux 6.1": {}}
	if f.Destroy {
		all["Linux 6.3"] = ElementFeatures{Destroy: true}
	}
	if f.Refresh {
		all["Linux 6.12"] = ElementFeatures{Destroy: true, Refresh: true}
	}
	return all
}

// What older kernels cannot do in one step is done in several; the result is the same.
func TestElementsComeAndGo(t *testing.T) {
	t.Parallel()
	for name, f := range kernels(t) {
		t.Run(name, func(t *testing.T) {
			ns, r := withHoles(t, f)
			ctx := t.Context()
			for _, c := range []struct{ set, a, b string }{
				{"media4", "10.2.20.2 . 10.1.10.2 . 16384", "10.2.20.2 . 10.1.10.2 . 16385"},
				{
					"media6", "2001:db8:2:20::2 . 2001:db8:1:10::2 . 16384",
					"2001:db8:2:20::2 . 2001:db8:1:10::2 . 16385",
				},
				{"media4_24", "10.2.20.0 . 10.1.10.2 . 16384", "10.2.20.0 . 10.1.10.2 . 16385"},
				{"media6_48", "2001:db8:2:: . 2001:db8:1:10::2 . 16384", "2001:db8:2:: . 2001:db8:1:10::2 . 16385"},
				{"banned4", "192.0.2.66", "192.0.2.67"},
				{"sip_taken", "voice0", "wan0"},
			} {
				o := owner(t, r, c.set)
				life := o.set.MaxLife
				require.NoError(t, o.Add(ctx, life/2, c.a, c.b), c.set)
				require.Len(t, inKernel(t, ns, o), 2, c.set)

				// Again, which is a longer life for one of them, and the same for the other.
				require.NoError(t, o.Add(ctx, life, c.a), c.set)
				require.NoError(t, o.Refresh(ctx, life/2, c.b), c.set)
				there := inKernel(t, ns, o)
				require.Len(t, there, 2, c.set)
				var longest time.Duration
				for _, left := range there {
					longest = max(longest, left)
				}
				assert.Greater(t, longest, life*3/4, c.set)

				require.NoError(t, o.Delete(ctx, c.a), c.set)
				assert.Len(t, inKernel(t, ns, o), 1, c.set)
				require.NoError(t, o.Delete(ctx, c.a, c.b), "%s: one of the two is gone already", c.set)
				assert.Empty(t, inKernel(t, ns, o), c.set)

				s := o.Status()
				assert.Zero(t, s.Elements)
				assert.Zero(t, s.Unsent)
				assert.Equal(t, SetCounters{Added: 2, Refreshed: 2, Deleted: 2}, s.Counters, c.set)
				assert.Empty(t, s.Error)
			}
		})
	}
}

// A refresh with the life that the element has already starts that life again. The kernel does not do that
// by itself.
func TestRefreshWithTheSameLife(t *testing.T) {
	t.Parallel()
	for name, f := range kernels(t) {
		t.Run(name, func(t *testing.T) {
			ns, r := withHoles(t, f)
			o := owner(t, r, "media4")
			const hole = "10.2.20.2 . 10.1.10.2 . 16384"
			const life = 500 * time.Millisecond
			require.NoError(t, o.Add(t.Context(), life, hole))
			for end := time.Now().Add(2 * life); time.Now().Before(end); {
				require.NoError(t, o.Refresh(t.Context(), life, hole))
			}
			assert.Contains(t, inKernel(t, ns, o), hole)

			gone := func() bool { return o.Status().Elements == 0 && len(inKernel(t, ns, o)) == 0 }
			polltest.Require(t, gone, 5*time.Second, 10*time.Millisecond)
			assert.ErrorIs(t, o.Refresh(t.Context(), life, hole), ErrExpired)
			assert.Empty(t, inKernel(t, ns, o), "what expired is not refreshed")
		})
	}
}

// An element that expired in the kernel before it was deleted takes no other one's deletion with it.
func TestDeletionIsIdempotent(t *testing.T) {
	t.Parallel()
	for name, f := range kernels(t) {
		t.Run(name, func(t *testing.T) {
			ns, r := withHoles(t, f)
			o := owner(t, r, "banned4")
			require.NoError(t, o.Add(t.Context(), time.Hour, "192.0.2.1", "192.0.2.2", "192.0.2.3"))
			ns.Run("nft", "delete element inet ringway banned4 { 192.0.2.2 }")
			require.NoError(t, o.Delete(t.Context(), "192.0.2.1", "192.0.2.2"))
			assert.Len(t, inKernel(t, ns, o), 1)
			require.NoError(t, o.Clear(t.Context()))
			assert.Empty(t, inKernel(t, ns, o))
		})
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	ns, r := withHoles(t, thisKernel(t))
	o := owner(t, r, "banned4")
	ctx := t.Context()
	address := func(i int) string { return fmt.Sprintf("192.0.2.%d", i) }
	for i := range 7 {
		require.NoError(t, o.Add(ctx, time.Hour, address(i)))
	}
	assert.False(t, o.Status().Full)

	err := o.Add(ctx, time.Hour, address(7), address(8))
	assert.ErrorIs(t, err, ErrFull)
	assert.EqualError(t, err, "add 192.0.2.7, 192.0.2.8 to set banned4 of abuse: the set is full (8 elements)")
	assert.Len(t, inKernel(t, ns, o), 7, "all of a call's elements, or none")

	require.NoError(t, o.Add(ctx, 100*time.Millisecond, address(0), address(7)), "one of them is there")
	s := o.Status()
	assert.True(t, s.Full)
	assert.NotNil(t, s.FullAt)
	assert.EqualValues(t, 2, s.Counters.RefusedFull)

	// A place that an expired element leaves is found when it is needed.
	polltest.Require(
		t, func() bool { return o.Add(ctx, time.Hour, address(9), address(10)) == nil }, 5*time.Second,
		time.Millisecond,
	)
	assert.Len(t, inKernel(t, ns, o), 8)
	assert.EqualValues(t, 2, o.Status().Counters.Expired)
}

func TestWhatIsRefused(t *testing.T) {
	t.Parallel()
	ns, r := withHoles(t, thisKernel(t))
	ctx := t.Context()
	for _, c := range []struct {
		set  string
		life time.Duration
		key  string
		text string
	}{
		{
			"media4", time.Second, "10.2.20.2 . 10.1.10.2",
			`refused: element of set media4 of calls: "10.2.20.2 . 10.1.10.2" is not of type ipv4_addr . ipv4_addr . inet_service`,
		},
		{
			"media4", time.Second, "10.2.20.0/24 . 10.1.10.2 . 16384",
			`refused: element of set media4 of calls: "10.2.20.0/24" is not of type ipv4_addr`,
		},
		{
			"media4", time.Second, "2001:db8::1 . 10.1.10.2 . 16384",
			`refused: element of set media4 of calls: "2001:db8::1" is not of type ipv4_addr`,
		},
		{
			"sip_taken", time.Minute, "voice0",
			`add voice0 to set sip_taken of calls: refused: a life of 1m0s (allowed: 1ms to 2s)`,
		},
		{
			"sip_taken", time.Second, "a-name-that-is-too-long",
			`refused: element of set sip_taken of calls: "a-name-that-is-too-long" is not of type ifname`,
		},
	} {
		o := owner(t, r, c.set)
		assert.EqualError(t, o.Add(ctx, c.life, c.key), c.text)
		assert.Empty(t, inKernel(t, ns, o))
		assert.EqualValues(t, 1, o.Status().Counters.RefusedInvalid)
		o.counters = SetCounters{}
	}

	// Elements of a stranger, which are known to the kernel alone, take all places but one.
	o := owner(t, r, "banned4")
	var strange []string
	for i := range o.set.Declaration().Size - 1 {
		strange = append(strange, fmt.Sprintf("192.0.2.%d", i))
	}
	ns.Run("nft", "add element inet ringway banned4 { "+strings.Join(strange, ", ")+" }")
	err := o.Add(ctx, time.Minute, "203.0.113.1", "203.0.113.2")
	assert.ErrorIs(t, err, ErrRefused)
	assert.Len(t, inKernel(t, ns, o), len(strange)+1, "the other one is in")
	assert.EqualValues(t, 1, o.Status().Counters.RefusedKernel)
	assert.Equal(t, 1, o.Status().Elements)
}

// What several sets have to change goes to the kernel in one transaction: no packet meets a state between.
func TestOneTransactionForAllSets(t *testing.T) {
	t.Parallel()
	ns, r := withHoles(t, thisKernel(t))
	network, exact := owner(t, r, "media4_24"), owner(t, r, "media4")
	to := netip.MustParseAddrPort("10.1.10.2:16384")
	wide := []Key{HoleKey(netip.MustParsePrefix("10.2.20.0/24"), to)}
	require.NoError(t, network.AddKeys(t.Context(), time.Minute, wide))
	assert.Contains(t, inKernel(t, ns, network), "10.2.20.0 . 10.1.10.2 . 16384")

	sent := r.commit.socket.seq
	network.DropKeys(wide)
	require.NoError(t, exact.AddKeys(t.Context(), time.Minute, []Key{HoleKey(netip.MustParsePrefix("10.2.20.3/32"), to)}))
	assert.Contains(t, inKernel(t, ns, exact), "10.2.20.3 . 10.1.10.2 . 16384")
	assert.Empty(t, inKernel(t, ns, network))
	r.commit.Lock()
	defer r.commit.Unlock()
	assert.EqualValues(t, 4, r.commit.socket.seq-sent, "a beginning, two changes, an end")
}

// Where there is no table the elements wait for it.
func TestElementsBeforeTheTable(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	r := openRuleset(t, ns, thisKernel(t), dynamicSets()...)
	o := owner(t, r, "media4")
	const hole = "10.2.20.2 . 10.1.10.2 . 16384"
	assert.ErrorIs(t, o.Add(t.Context(), time.Minute, hole), ErrPending)
	assert.EqualValues(t, 1, o.Status().Counters.NoTable)

	in := branch()
	in.Dynamic = r.Sets()
	require.NoError(
		t, ns.Do(func() error { return r.Apply(firewall.Diff(firewall.Want(in), firewall.State{})) }),
	)
	assert.Contains(t, inKernel(t, ns, o), hole)

	ns.Run("nft", "flush ruleset")
	require.NoError(
		t, ns.Do(func() error { return r.Apply(firewall.Diff(firewall.Want(in), firewall.State{})) }),
	)
	assert.Contains(t, inKernel(t, ns, o), hole, "somebody flushed the ruleset")
	assert.EqualValues(t, 2, o.Status().Counters.Restored)
}

// The next process takes over what this one left, with its remaining life.
func TestElementsOutliveTheProcess(t *testing.T) {
	t.Parallel()
	ns, r := withHoles(t, thisKernel(t))
	require.NoError(t, owner(t, r, "media4").Add(t.Context(), 30*time.Second, "10.2.20.2 . 10.1.10.2 . 16384"))
	require.NoError(
		t,
		owner(t, r, "media6_48").Add(t.Context(), 30*time.Second, "2001:db8:2:: . 2001:db8:1:10::2 . 1024"),
	)
	last := owner(t, r, "media4")
	r.Close()
	assert.ErrorIs(
		t, last.Add(t.Context(), time.Second, "10.2.20.2 . 10.1.10.2 . 16385"), ErrPending, "its owner is gone",
	)

	next := openRuleset(t, ns, thisKernel(t), dynamicSets()...)
	in := branch()
	in.Dynamic = next.Sets()
	assert.Empty(t, firewall.Diff(firewall.Want(in), observeIn(t, ns)), "elements are no difference")
	assert.EqualValues(t, 1, owner(t, next, "media4").Status().Counters.Adopted)
	adopted := owner(t, next, "media4").Elements()
	require.Len(t, adopted, 1)
	assert.WithinDuration(t, time.Now().Add(30*time.Second), adopted["10.2.20.2 . 10.1.10.2 . 16384"], 5*time.Second)

	remake(t, ns, next, in)
	for _, set := range []string{"media4", "media6_48"} {
		there := inKernel(t, ns, owner(t, next, set))
		require.Len(t, there, 1, set)
		for _, left := range there {
			assert.InDelta(t, 30, left.Seconds(), 5, set)
		}
	}
}

// remake replaces the table in one transaction, as if a set had changed its type.
func remake(t testing.TB, ns *netnstest.NS, r *Ruleset, in firewall.Input) {
	t.Helper()
	changes := append(
		[]firewall.Change{{Op: firewall.DeleteTable}}, firewall.Diff(firewall.Want(in), firewall.State{})...,
	)
	require.NoError(t, ns.Do(func() error { return r.Apply(changes) }))
}

// A caller that cannot wait goes on; what it asked for follows.
func TestCallersDoNotWaitForTheKernel(t *testing.T) {
	t.Parallel()
	ns, r := withHoles(t, thisKernel(t))
	o := owner(t, r, "media4")
	const hole = "10.2.20.2 . 10.1.10.2 . 16384"

	r.commit.Lock() // as while a large table is loaded
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	before := time.Now()
	err := o.Add(ctx, time.Minute, hole)
	assert.Less(t, time.Since(before), time.Second)
	assert.EqualError(t, err, "add "+hole+" in set media4 of calls: the kernel does not have the change yet")
	assert.Empty(t, inKernel(t, ns, o))
	s := o.Status()
	assert.EqualValues(t, 1, s.Counters.Late)
	assert.Equal(t, 1, s.Unsent)
	r.commit.Unlock()

	polltest.Assert(t, func() bool { return len(inKernel(t, ns, o)) == 1 }, 5*time.Second, time.Millisecond)
}

// hole is the i-th of many holes.
func hole(i int) string {
	return fmt.Sprintf("10.2.20.2 . 10.1.%d.2 . %d", i>>14, 10000+i&(1<<14-1))
}
