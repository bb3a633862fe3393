package nft

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/firewall"
	"ringway/test/netnstest"
)

// Chains of others that may drop packets are found by their policy or by what their rules do, also in chains that they
// jump to; those that only count, mark or accept are not, nor is Ringway's own table.
func TestOtherChains(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	require.NoError(t, ns.Do(func() error {
		return (&Ruleset{}).Apply(firewall.Diff(firewall.Want(branch()), firewall.State{}))
	}))
	others := func() (said []string) {
		require.NoError(t, ns.Do(func() error {
			chains, err := Others()
			for _, c := range chains {
				said = append(said, fmt.Sprintf("%s: %s %d %s %v", c.Subject(), c.Hook, c.Priority, c.Policy, c.Rest))
			}
			return err
		}))
		return said
	}
	require.Empty(t, others())

	for _, c := range []struct{ hook, rule, want string }{
		{"filter hook forward priority 0; policy drop;", "accept", "forward 0 drop true"},
		{"filter hook input priority -5; policy drop;", "tcp dport 22 accept", "input -5 drop true"},
		{"filter hook output priority 10; policy accept;", "reject", "output 10 accept true"},
		{"filter hook prerouting priority -300;", "counter log drop", "prerouting -300 accept true"},
		{"filter hook forward priority 0;", "ct state invalid drop", "forward 0 accept false"},
		{"filter hook forward priority 0;", "ct state vmap { invalid : drop, new : accept }", "forward 0 accept false"},
		{"filter hook forward priority 0;", "meta l4proto vmap { tcp : jump d }", "forward 0 accept false"},
		{"filter hook forward priority 0;", "meta mark 1 jump d", "forward 0 accept false"},
		{"filter hook forward priority 0;", "goto d", "forward 0 accept true"},
		{"filter hook forward priority 0;", "meta mark 7 queue num 0", "forward 0 accept false"},
		{"filter hook forward priority 0;", "counter accept", ""},
		{"filter hook forward priority 0;", "meta mark set 1", ""},
		{"nat hook postrouting priority 100;", "masquerade", ""},
	} {
		for _, family := range []string{"ip", "ip6", "inet"} {
			_, err := ns.Try("nft", fmt.Sprintf("table %s theirs {\n chain d {\n drop\n }\n chain c {\n type %s\n %s\n }\n}",
				family, c.hook, c.rule))
			if err != nil && strings.Contains(c.rule, "queue") {
				continue // this kernel has no queues to programs
			}
			require.NoError(t, err)
			var want []string
			if c.want != "" {
				want = []string{"table " + family + " theirs chain c: " + c.want}
			}
			assert.Equal(t, want, others(), "%s: %s %s", family, c.hook, c.rule)
			ns.Run("nft", "delete", "table", family, "theirs")
		}
	}
	if _, err := ns.Try("iptables-nft", "-P", "FORWARD", "DROP"); err == nil {
		assert.Equal(t, []string{"table ip filter chain FORWARD: forward 0 drop true"}, others())
		ns.Run("iptables-nft", "-P", "FORWARD", "ACCEPT")
		ns.Run("iptables-nft", "-A", "FORWARD", "-j", "REJECT")
		assert.Equal(t, []string{"table ip filter chain FORWARD: forward 0 accept true"}, others())
	}
}

// A change of another table is told; elements of sets, which change all the time, and our own table are not.
func TestOtherTablesAreWatched(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	require.NoError(t, ns.Do(func() error {
		return (&Ruleset{}).Apply(firewall.Diff(firewall.Want(branch()), firewall.State{}))
	}))
	ns.Run("nft", "add table ip theirs; add set ip theirs s { type ipv4_addr; }")
	ctx, cancel := context.WithCancel(t.Context())
	ready, told, ended := make(chan struct{}), make(chan struct{}, 100), make(chan error, 1)
	go func() {
		_ = ns.Do(func() error {
			ended <- WatchOthers(ctx, func() { close(ready) }, func() { told <- struct{}{} })
			return nil
		})
	}()
	<-ready
	ns.Run("nft", "add element ip theirs s { 192.0.2.1 }")
	ns.Run("nft", "add element inet ringway sites4 { 10.77.0.0/16 }")
	ns.Run("nft", "add chain inet ringway more")
	for _, line := range []string{
		"add chain ip theirs c { type filter hook forward priority 0; policy drop; }", "delete table ip theirs",
	} {
		assert.Empty(t, told)
		ns.Run("nft", line)
		select {
		case <-told:
		case <-time.After(20 * time.Second):
			assert.Fail(t, "not told of", "%v", line)
		}
	}
	cancel()
	require.NoError(t, <-ended)
}
