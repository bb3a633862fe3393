package realtime

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/enginetest"
	"ringway/test/polltest"
)

// hole has packets to a box that may not be divided and are longer than a length in bytes vanish, as before a link in
// the middle whose ICMP is lost; IPv6's never may.
func hole(b *enginetest.Box, length, payload string) {
	b.NS.Run("nft", "add table netdev middle; "+
		"add chain netdev middle in { type filter hook ingress device wire0 priority 0; }; "+
		"flush chain netdev middle in; "+
		"add rule netdev middle in ip length > "+length+" ip frag-off & 0x4000 != 0 drop; "+
		"add rule netdev middle in ip6 length > "+payload+" drop")
}

// Two engines find what passes between them on real lines, in both families, each in its own direction: a link that
// takes 1400 bytes to one end and 1300 to the other. A packet inside that keeps to that arrives; IPv6's longer do not.
func TestLongWhatALineTakesIsFound(t *testing.T) {
	for _, end := range []string{"192.0.2.2:51820", "[2001:db8::2]:51820"} {
		t.Run(end, func(t *testing.T) {
			a, b := enginetest.Wire(t, makeEngine)
			for _, x := range []*enginetest.Box{a, b} {
				x.Open(0, 0, wide)
				x.Start(wide)
			}
			hole(b, "1400", "1360")
			hole(a, "1300", "1260")
			a.Set(a.Peer(b, end))
			b.Set(b.Peer(a, ""))
			require.NoError(t, a.Ping("10.66.0.2"))
			found := func(x *enginetest.Box) int { return x.E.Status().Peers[0].PathMTU }
			began := time.Now()
			for _, x := range []*enginetest.Box{a, b} {
				require.NoError(t, x.E.(*Engine).SetProbeMTU(1500))
			}
			polltest.Require(t, func() bool { return found(a) != 0 && found(b) != 0 }, 20*time.Second, 20*time.Millisecond)
			t.Logf("found in %s", time.Since(began).Round(10*time.Millisecond))
			assert.Equal(t, 1392, found(a))
			assert.Equal(t, 1296, found(b))

			if end[0] == '[' {
				assert.Error(t, a.Ping("10.66.0.2", "-c", "1", "-W", "1", "-s", "1392"), "a hole it is")
			}
			assert.NoError(t, a.Ping("10.66.0.2", "-s", "1180"), "1208 bytes inside, 1288 outside")
		})
	}
}
