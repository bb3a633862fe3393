package relay

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/dialog"
)

// packed is a request with all that one can have.
func packed() flowsRequest {
	a, b := netip.MustParseAddr("10.1.10.9"), netip.MustParseAddr("2001:db8::1")
	return flowsRequest{Whole: true, Changes: []Change{
		{
			Hops: [2]netip.Addr{a, b}, Via: []netip.Addr{b},
			Open:  []dialog.Flow{{Asked: a, To: netip.MustParseAddrPort("[2001:db8::2]:4000"), RTCP: true}},
			Close: []dialog.Flow{{From: b, To: netip.MustParseAddrPort("10.1.10.9:65535")}},
		},
		{Places: []Place{{Release: true}}},
		{Hops: [2]netip.Addr{b, a}, Close: []dialog.Flow{{From: a, To: netip.MustParseAddrPort("10.1.10.9:1")}}},
	}}
}

// What crosses the control socket reads as what was written.
func TestChangesSurviveTheirEncoding(t *testing.T) {
	for _, want := range []flowsRequest{packed(), {}, {Whole: true}, {Changes: packed().Changes[:1]}} {
		head, packed := want.pack()
		b, err := json.Marshal(head)
		require.NoError(t, err)
		var back flowsHead
		require.NoError(t, json.Unmarshal(b, &back))
		got, err := unpack(back, packed)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
}

// Half a request is refused, and so are places that belong to no change.
func TestChangesThatAreCut(t *testing.T) {
	whole := packed()
	b := whole.Changes[0].pack(nil)
	for n := 1; n < len(b); n++ {
		_, err := unpack(flowsHead{}, b[:n])
		assert.Error(t, err, "%d of %d bytes", n, len(b))
	}
	_, err := unpack(flowsHead{Places: make([][]Place, 2)}, b)
	assert.ErrorContains(t, err, "places of 2 changes, with 1 changes")
	_, err = unpack(flowsHead{}, make([]byte, 5*(maxChanges+1)))
	assert.ErrorContains(t, err, "more than")
}

func FuzzUnpack(f *testing.F) {
	for _, c := range packed().Changes {
		f.Add(c.pack(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := unpack(flowsHead{}, b)
		if err != nil {
			return
		}
		head, packed := r.pack()
		again, err := unpack(head, packed)
		require.NoError(t, err)
		assert.Equal(t, r, again)
	})
}
