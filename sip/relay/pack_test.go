package relay

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/dialog"
	"ringway/tunnel"
)

// packed are changes with all that they can have.
func packed() []Change {
	a, b := netip.MustParseAddr("10.1.10.9"), netip.MustParseAddr("2001:db8::1")
	return []Change{
		{
			Hops: [2]netip.Addr{a, b}, Via: []netip.Addr{b},
			Open:  []dialog.Flow{dialog.FlowAsked(a, netip.MustParseAddrPort("[2001:db8::2]:4000"), true)},
			Close: []dialog.Flow{dialog.NewFlow(b, netip.MustParseAddrPort("10.1.10.9:65535"), false)},
		},
		{Places: []Place{{Release: true}, {Reserve: tunnel.Reservation{
			Flow: tunnel.Flow{
				Source:      netip.MustParseAddrPort("10.1.10.9:4000"),
				Destination: netip.MustParseAddrPort("[2001:db8::2]:4002"),
			},
			Site: tunnel.PublicKey{1, 31: 2}, Rate: 1 << 40,
		}}}},
		{Hops: [2]netip.Addr{b, a}, Close: []dialog.Flow{dialog.NewFlow(a, netip.MustParseAddrPort("10.1.10.9:1"), false)}},
	}
}

// What crosses to the daemon reads as what was written.
func TestChangesSurviveTheirEncoding(t *testing.T) {
	for _, want := range [][]Change{packed(), nil, packed()[:1]} {
		got, err := unpackChanges(packChanges(nil, want))
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
}

// Half a request is refused.
func TestChangesThatAreCut(t *testing.T) {
	for _, c := range packed() {
		b := c.pack(nil)
		for n := 1; n < len(b); n++ {
			_, err := unpackChanges(b[:n])
			assert.Error(t, err, "%d of %d bytes", n, len(b))
		}
	}
	_, err := unpackChanges(make([]byte, 6*(maxChanges+1)))
	assert.ErrorContains(t, err, "more than")
}

func FuzzUnpack(f *testing.F) {
	for _, c := range packed() {
		f.Add(c.pack(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		changes, err := unpackChanges(b)
		if err != nil {
			return
		}
		again, err := unpackChanges(packChanges(nil, changes))
		require.NoError(t, err)
		assert.Equal(t, changes, again)
	})
}
