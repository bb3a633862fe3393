package nft

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/firewall"
	"ringway/test/netnstest"
)

// Whoever changes our table is told of, whoever changes another is not.
func TestWatchTellsOfOurTableAlone(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	require.NoError(
		t,
		ns.Do(func() error {
			return (&Ruleset{}).Apply(firewall.Diff(
				firewall.Want(branch()), firewall.State{},
			))
		}),
	)
	ctx, cancel := context.WithCancel(t.Context())
	ready, told, ended := make(chan struct{}), make(chan struct{}, 100), make(chan error, 1)
	go func() {
		_ = ns.Do(func() error {
			ended <- (&Ruleset{}).Watch(ctx, func() { close(ready) }, func() { told <- struct{}{} })
			return nil
		})
	}()
	<-ready
	hears := func(line ...string) {
		t.Helper()
		ns.Run("nft", line...)
		select {
		case <-told:
		case <-time.After(20 * time.Second):
			assert.Fail(t, "not told of", "%v", line)
		}
	}
	ns.Run("nft", "add table inet theirs")
	ns.Run("nft", "add table ip ringway")
	ns.Run("nft", "add set inet theirs s { type ipv4_addr; }")
	hears("add element inet ringway sites4 { 10.77.0.0/16 }")
	assert.Empty(t, told, "one change is told once, others' not at all")
	hears("flush chain inet ringway forward")
	hears("add chain inet ringway more")
	hears("flush ruleset")
	cancel()
	require.NoError(t, <-ended)
}

// Each change of the table costs a reconciliation: at a hub with 500 sites a third of a second of processor
// time. Elements of dynamic sets, which change with every call, must cost none (T11).
func TestElementsOfDynamicSetsAreNotTold(t *testing.T) {
	t.Parallel()
	ns, r := withHoles(t, thisKernel(t))
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}, 2), make(chan error, 2)
	var changed atomic.Bool
	told, heard := make(chan bool, 100), make(chan bool, 100)
	start := func(own uint32, ignore func(string) bool, f func()) {
		_ = ns.Do(func() error {
			ended <- watch(ctx, own, ignore, func() { ready <- struct{}{} }, f)
			return nil
		})
	}
	go start(r.commit.port(), r.owned, func() { told <- changed.Load() })
	go start(0, func(string) bool { return false }, func() { heard <- true })
	<-ready
	<-ready

	o := owner(t, r, "media4")
	for i := range 50 {
		require.NoError(t, o.Add(t.Context(), time.Minute, hole(i)))
	}
	for i := range 25 {
		require.NoError(t, o.Delete(t.Context(), hole(i)))
	}
	ns.Run("nft", "add element inet ringway media4 { 10.2.20.9 . 10.1.10.2 . 5000 timeout 5s }")
	in := branch()
	in.Dynamic = r.Sets()
	assert.Empty(t, firewall.Diff(firewall.Want(in), observeIn(t, ns)))

	assert.True(t, <-heard, "a watch that ignores no set hears of them")
	inKernel(t, ns, o)
	changed.Store(true)
	ns.Run("nft", "add element inet ringway sites4 { 10.77.0.0/16 }")
	select {
	case ofTheRuleset := <-told:
		assert.True(t, ofTheRuleset, "told before the ruleset was changed")
	case <-time.After(20 * time.Second):
		assert.Fail(t, "not told of a change of the ruleset")
	}
	cancel()
	require.NoError(t, <-ended)
	require.NoError(t, <-ended)
}
