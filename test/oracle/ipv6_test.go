package oracle

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
	"ringway/test/polltest"
)

// The same without IPv4. A device that is taken down loses its addresses of IPv6, and the routes of every
// table with them, which IPv4's keep; all come back, and packets pass.
func TestWhatIsBrokenIsRepairedWithoutIPv4(t *testing.T) {
	t.Parallel()
	l, err := lab.New(within(t, time.Minute),
		lab.Options{Binary: ringway, Helper: helper, WAN: wanRate, Underlay: lab.IPv6, Overlay: lab.IPv6})
	require.NoError(t, err)
	t.Cleanup(l.Close)
	edge, p := l.Host(lab.EdgeA), l.Pair(lab.Ringway)
	const (
		address = "2001:db8:a::2/64"
		gateway = "default via 2001:db8:a::1 dev wan0"
		phones  = "2001:db8:2:10::/64 dev rw-voice"
	)
	for _, c := range []struct {
		name, breakIt string
		wants         [][2]string
	}{
		{"the WAN's address", "ip addr del " + address + " dev wan0", [][2]string{{"ip -6 addr show dev wan0", address}, {"ip -6 route", gateway}}},
		{"the default route", "ip -6 route del default", [][2]string{{"ip -6 route", gateway}}},
		{"the WAN taken down and up", "ip link set wan0 down; ip link set wan0 up", [][2]string{{"ip -6 addr show dev wan0", address}, {"ip -6 route", gateway}}},
		{"a LAN taken down and up", "ip link set voice0 down; ip link set voice0 up", [][2]string{{"ip -6 addr show dev voice0", "2001:db8:1:10::1/64"}}},
		{"a tunnel taken down", "ip link set rw-voice down", [][2]string{{"ip -o link show dev rw-voice", ",UP"}, {"ip -6 route show table 5271", phones}}},
		{"all rules", "ip -6 rule flush; ip -6 rule add pref 32766 lookup main", [][2]string{{"ip -6 rule", "5210:	from all fwmark 0x1200/0x1e00 lookup 5271"}}},
		{"an element of a set", "nft delete element inet ringway sites6 '{ 2001:db8:2:10::/64 }'", [][2]string{{"nft list set inet ringway sites6", "2001:db8:2:10::/64"}}},
		{"where a site is", "nft flush map inet ringway prio_media6", [][2]string{{"nft list map inet ringway prio_media6", p.WANAddress("b") + " . 51820 :"}}},
	} {
		sh(t, edge, c.breakIt)
		broken := time.Now()
		for _, w := range c.wants {
			polltest.Require(t, func() bool {
				out, err := edge.Run(t.Context(), "sh", "-c", w[0])
				return err == nil && strings.Contains(out, w[1])
			}, patience, 10*time.Millisecond, "%s is not repaired: no %s", c.name, w[1])
		}
		repaired := time.Since(broken)
		reaches(t, l.Host(lab.PhoneA), p.Address(lab.PhoneB))
		reaches(t, l.Host(lab.PCB), p.Address(lab.PCA))
		t.Logf("%s: repaired within %s, packets pass after %s", c.name, repaired.Round(time.Millisecond),
			time.Since(broken).Round(time.Millisecond))
	}
	out := sh(t, edge, ringway+" plan "+configFile)
	assert.Equal(t, 4, strings.Count(out, "# nothing to change"), "%s", out)
}
