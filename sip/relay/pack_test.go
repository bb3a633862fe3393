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
		b, err := json.Marshal(want)
		require.NoError(t, err)
		var got flowsRequest
		require.NoError(t, json.Unmarshal(b, &got))
		assert.Equal(t, want, got)
	}
}

// Half a request is refused, and so are places that belong to no change.
func TestChangesThatAreCut(t *testing.T) {
	whole := packed()
	b := whole.Changes[0].pack(nil)
	for n := 1; n < len(b); n++ {
		text, err := json.Marshal(packedFlows{Packed: b[:n]})
		require.NoError(t, err)
		var got flowsRequest
		assert.Error(t, json.Unmarshal(text, &got), "%d of %d bytes", n, len(b))
	}
	text, err := json.Marshal(packedFlows{Packed: b, Places: make([][]Place, 2)})
	require.NoError(t, err)
	var got flowsRequest
	assert.ErrorContains(t, json.Unmarshal(text, &got), "places of 2 changes, with 1 changes")
}

func FuzzUnpack(f *testing.F) {
	for _, c := range packed().Changes {
		f.Add(c.pack(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		u := unpacker{rest: b}
		var changes []Change
		for len(u.rest) > 0 && !u.bad {
			changes = append(changes, u.change())
		}
		if u.bad {
			return
		}
		var again []byte
		for i := range changes {
			again = changes[i].pack(again)
		}
		v := unpacker{rest: again}
		for i := range changes {
			if got := v.change(); v.bad || len(got.Open) != len(changes[i].Open) {
				t.Fatal("what was unpacked does not survive another way")
			}
		}
	})
}
