package nft

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/firewall"
	"ringway/test/netnstest"
)

// Whoever changes our table is told of, whoever changes another is not.
func TestWatchTellsOfOurTableAlone(t *testing.T) {
	ns := netnstest.New(t)
	require.NoError(t, ns.Do(func() error { return Apply(firewall.Diff(firewall.Want(branch()), firewall.State{})) }))
	ctx, cancel := context.WithCancel(t.Context())
	ready, told, ended := make(chan struct{}), make(chan struct{}, 100), make(chan error, 1)
	go func() {
		_ = ns.Do(func() error {
			ended <- Watch(ctx, func() { close(ready) }, func() { told <- struct{}{} })
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
