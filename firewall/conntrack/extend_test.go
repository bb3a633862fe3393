package conntrack

import (
	"net/netip"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A connection that is kept has that life from now on; the others have what they had, and one that is gone is said to
// be.
func TestAConnectionIsKept(t *testing.T) {
	ns := filled(t)
	lives := regexp.MustCompile(`(?m)^udp +17 (\d+) src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)`)
	kept := func() (all map[string]int) {
		all = map[string]int{}
		for _, family := range []string{"ipv4", "ipv6"} {
			for _, m := range lives.FindAllStringSubmatch(ns.Run("conntrack", "-L", "-f", family), -1) {
				n, err := strconv.Atoi(m[1])
				require.NoError(t, err)
				if n > 3000 {
					all[m[2]+" "+m[3]+" "+m[4]+" "+m[5]] = n
				}
			}
		}
		return all
	}
	require.Empty(t, kept())
	for _, c := range [][2]string{
		{"10.2.20.2:30000", "10.1.10.2:16384"}, {"[2001:db8:2::2]:30000", "[2001:db8:1::2]:16384"},
	} {
		from, to := netip.MustParseAddrPort(c[0]), netip.MustParseAddrPort(c[1])
		require.NoError(t, ns.Do(func() error { return ExtendUDP(from, to, time.Hour) }))
	}
	all := kept()
	assert.Len(t, all, 2)
	assert.InDelta(t, 3600, all["10.2.20.2 10.1.10.2 30000 16384"], 10)
	assert.InDelta(t, 3600, all["2001:db8:2::2 2001:db8:1::2 30000 16384"], 10)

	gone := netip.MustParseAddrPort("10.9.9.9:1")
	assert.ErrorIs(t, ns.Do(func() error { return ExtendUDP(gone, gone, time.Hour) }), ErrGone)
}

// A connection of TCP is found by its first packet alone: by no other port, and not as one of UDP.
func TestAConnectionIsFound(t *testing.T) {
	ns := filled(t)
	find := func(from, to string) error {
		return ns.Do(func() error { return FindTCP(netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)) })
	}
	assert.NoError(t, find("10.2.20.2:30000", "10.1.10.2:16384"))
	assert.NoError(t, find("[2001:db8:2::2]:30000", "[2001:db8:1::2]:16384"))
	assert.ErrorIs(t, find("10.2.20.2:30001", "10.1.10.2:16384"), ErrGone)
	assert.ErrorIs(t, find("10.2.20.2:30002", "10.1.10.2:16384"), ErrGone, "it is one of UDP")
	assert.ErrorIs(t, find("[2001:db8:9::9]:1", "[2001:db8:9::9]:1"), ErrGone)
}

// Each connection is seen from the side that began it, and from the other one once that has answered.
func TestEachConnectionIsSeen(t *testing.T) {
	ns := filled(t)
	seen := map[string]bool{}
	require.NoError(t, ns.Do(func() error {
		return EachUDP(func(from, to netip.AddrPort) { seen[from.String()+" "+to.String()] = true })
	}))
	assert.True(t, seen["10.2.20.2:30000 10.1.10.2:16384"])
	assert.True(t, seen["[2001:db8:2::2]:30002 [2001:db8:1::2]:16384"])
	assert.Len(t, seen, 12, "of UDP alone")
}
