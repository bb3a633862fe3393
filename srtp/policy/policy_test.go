package policy

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/offer"
	"ringway/srtp/suite"
)

func place(level offer.Level, local string) (p offer.Place) {
	p.Level, p.Minimum = level, suite.AEADAES128GCM
	if a := netip.MustParseAddr(local); a.Is4() {
		p.IPv4 = a
	} else {
		p.IPv6 = a
	}
	return p
}

func network(prefix string, level offer.Level, local string) Network {
	return Network{netip.MustParsePrefix(prefix), place(level, local)}
}

func table(t *testing.T) *Table {
	all, err := New([]Network{
		network("10.2.0.0/16", offer.Off, "10.1.10.1"),
		network("10.2.10.0/24", offer.Require, "10.1.10.2"),
		network("10.2.10.7/32", offer.Prefer, "10.1.10.3"),
		network("10.2.10.0/24", offer.Prefer, "10.1.10.4"), // given twice
		network("2001:db8:2::/48", offer.Prefer, "2001:db8:1::1"),
		network("2001:db8:2:10::/64", offer.Require, "2001:db8:1::2"),
	}, place(offer.Off, "10.1.10.9"))
	require.NoError(t, err)
	return all
}

func TestTheLongestPrefixCounts(t *testing.T) {
	all := table(t)
	for address, local := range map[string]string{
		"10.2.99.1": "10.1.10.1", "10.2.10.1": "10.1.10.2", "10.2.10.7": "10.1.10.3", "::ffff:10.2.10.7": "10.1.10.3",
		"203.0.113.1": "10.1.10.9", "2001:db8:9::1": "10.1.10.9", "2001:db8:2::1": "2001:db8:1::1",
		"2001:db8:2:10::1": "2001:db8:1::2",
	} {
		got := all.Of(netip.MustParseAddr(address))
		if want := netip.MustParseAddr(local); want.Is4() {
			assert.Equal(t, want, got.IPv4, address)
		} else {
			assert.Equal(t, want, got.IPv6, address)
		}
	}
	assert.Equal(t, "10.1.10.9", all.Of(netip.Addr{}).IPv4.String())
	assert.Equal(t, offer.Off, (&Table{}).Of(netip.MustParseAddr("10.2.10.1")).Level, "nothing is needed anywhere")
}

func TestOneEndIsEnough(t *testing.T) {
	all := table(t)
	a, off := netip.MustParseAddr("10.2.10.1"), netip.MustParseAddr("10.2.99.1")
	assert.True(t, all.Terminates(a, off))
	assert.True(t, all.Terminates(off, a))
	assert.False(t, all.Terminates(off, off))
	assert.False(t, all.Terminates(off, netip.MustParseAddr("203.0.113.1")))
	assert.True(t, all.Anywhere())

	none, err := New([]Network{network("10.2.0.0/16", offer.Off, "10.1.10.1")}, offer.Place{})
	require.NoError(t, err)
	assert.False(t, none.Anywhere())
	everywhere, err := New(nil, place(offer.Prefer, "10.1.10.1"))
	require.NoError(t, err)
	assert.True(t, everywhere.Anywhere())
}

func TestLocalAddresses(t *testing.T) {
	all := table(t)
	for _, a := range []string{"10.1.10.1", "10.1.10.9", "2001:db8:1::2", "::ffff:10.1.10.9"} {
		assert.True(t, all.Local(netip.MustParseAddr(a)), a)
	}
	assert.False(t, all.Local(netip.MustParseAddr("10.2.10.1")))
	assert.False(t, all.Local(netip.Addr{}), "a place without an address is not everywhere")
}

func TestAnotherProcessHasTheSame(t *testing.T) {
	all := table(t)
	text, err := json.Marshal(all)
	require.NoError(t, err)
	var got Table
	require.NoError(t, json.Unmarshal(text, &got))
	assert.Equal(t, *all, got)
	assert.Error(t, json.Unmarshal([]byte(`{"networks": [{"prefix": "", "place": {}}]}`), &got))
	assert.Equal(t, *all, got, "what cannot be read changes nothing")
}

// Whoever takes the first of All that holds an address finds what Of says.
func TestAllInTheOrderOfLookUp(t *testing.T) {
	all := table(t)
	for _, text := range []string{
		"10.2.99.1", "10.2.10.1", "10.2.10.7", "203.0.113.1", "2001:db8:9::1", "2001:db8:2:10::1",
	} {
		a := netip.MustParseAddr(text)
		for _, n := range all.All() {
			if n.Prefix.Contains(a) {
				assert.Equal(t, all.Of(a), n.Place, text)
				break
			}
		}
	}
	assert.Len(t, all.All(), 7, "five networks, and two for what is elsewhere")
}

func TestWhatIsNotANetwork(t *testing.T) {
	_, err := New([]Network{{}}, offer.Place{})
	assert.ErrorContains(t, err, "not a network")
}
