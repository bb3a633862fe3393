package conntrack

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What has an end in a network goes, whichever end and direction, and however NAT translated it; all else stays.
func TestFlushRemovesWhatEndsInANetwork(t *testing.T) {
	ns := filled(t)
	// Of a host behind NAT: the answers come to another address.
	ns.Run("conntrack", strings.Fields("-I -p udp -s 10.5.0.2 -d 203.0.113.9 --sport 5000 --dport 53 -t 1000 "+
		"--src-nat 198.51.100.2")...)
	networks := []netip.Prefix{
		netip.MustParsePrefix("10.2.21.0/24"), netip.MustParsePrefix("198.51.100.0/24"),
		netip.MustParsePrefix("2001:db8:1::3/128"),
	}
	var want []string
	for _, line := range list(ns) {
		gone := strings.Contains(line, "10.2.21.9") || strings.Contains(line, "198.51.100.2") ||
			strings.Contains(line, "2001:db8:1::3 ")
		if !gone {
			want = append(want, line)
		}
	}
	require.Len(t, want, 15-3)

	var n int
	require.NoError(t, ns.Do(func() (err error) { n, err = Flush(networks); return }))
	assert.Equal(t, 3, n)
	assert.Equal(t, want, list(ns))
	require.NoError(t, ns.Do(func() (err error) { n, err = Flush(networks); return }))
	assert.Zero(t, n)
}
