package conntrack

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/netnstest"
)

// What a LAN's hosts have begun by a line ends with the line; what they have by another, and what is this machine's
// own, stays.
func TestDeleteTranslated(t *testing.T) {
	ns := netnstest.New(t)
	const gone, stays, far = "198.51.100.2", "192.0.2.2", "203.0.113.9"
	for _, c := range []struct{ protocol, from, translated, port string }{
		{"udp", "10.1.20.5", gone, "4000"},
		{"tcp", "10.1.20.6", gone, "4000"},
		{"udp", "10.1.20.7", stays, "4000"},
		{"udp", gone, gone, "4001"},
	} {
		line := "-I -p " + c.protocol + " -s " + c.from + " -d " + far + " --sport " + c.port + " --dport 5060 -t 1000" +
			" -r " + far + " -q " + c.translated + " --reply-port-src 5060 --reply-port-dst " + c.port
		if c.protocol == "tcp" {
			line += " --state ESTABLISHED -u ASSURED"
		}
		ns.Run("conntrack", strings.Fields(line)...)
	}
	var n int
	require.NoError(t, ns.Do(func() (err error) {
		n, err = DeleteTranslated(netip.MustParseAddr(gone))
		return err
	}))
	assert.Equal(t, 2, n)
	left := strings.Join(list(ns), "\n")
	assert.NotContains(t, left, "src=10.1.20.5")
	assert.NotContains(t, left, "src=10.1.20.6")
	assert.Contains(t, left, "src=10.1.20.7")
	assert.Contains(t, left, "src="+gone+" dst="+far)
}
