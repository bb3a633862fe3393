package calls

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/dialog"
	"ringway/sip/relay"
	"ringway/sip/terminate"
	"ringway/srtp/offer"
	"ringway/srtp/sdes"
)

// relaying is a branch that relays media: towards the LAN of the phones, the sites and the internet.
func relaying() *branch {
	b := newBranch()
	w := b.world
	addr := netip.MustParseAddr
	w.relayed = relayedBy(&relay.Media{First: 20000, Last: 29999, Places: terminate.Places{
		{Place: offer.Place{IPv4: addr("10.1.10.1")}}, {Place: offer.Place{IPv4: addr("198.51.100.7")}},
		{Place: offer.Place{IPv4: addr("10.9.0.1"), Box: addr("10.9.0.2")}},
	}})
	b.follow(w)
	return b
}

// Flows of relayed media are known, so that media which was seen keeps its call alive, and open no hole.
func TestRelayedMediaNeedsNoHole(t *testing.T) {
	b := relaying()
	open := []dialog.Flow{
		asked("10.2.20.5", "10.9.0.1:20002"), flow("10.9.0.2", "10.9.0.1:20000"), flow("10.9.0.1", "10.9.0.2:41000"),
		flow("10.1.10.9", "10.1.10.1:20000"), flow("10.1.10.1", "10.1.10.9:4000"),
	}
	require.NoError(t, b.change(t.Context(), []relay.Change{{Hops: phoneAndPBX, Open: open}}, false))
	flows, holes, refused := b.state()
	assert.Equal(t, len(open), flows)
	assert.Zero(t, holes)
	assert.Empty(t, refused)
	seen := b.seen(func(yield func(from, to netip.AddrPort)) {
		yield(netip.MustParseAddrPort("10.1.10.9:4000"), netip.MustParseAddrPort("10.1.10.1:20000"))
	})
	assert.Equal(t, []dialog.Flow{flow("10.1.10.9", "10.1.10.1:20000")}, seen)

	for _, f := range []dialog.Flow{
		flow("10.1.10.9", "10.1.10.1:5060"), flow("10.1.10.9", "10.1.10.1:30000"), // not of media
		flow("10.1.10.1", "10.9.0.1:20000"), flow("198.51.100.9", "10.1.10.1:20000"),
	} {
		require.NoError(t, b.change(t.Context(), []relay.Change{{Hops: phoneAndPBX, Open: []dialog.Flow{f}}}, false))
	}
	now, _, refused := b.state()
	assert.Equal(t, flows, now)
	assert.Equal(t, map[string]uint64{refusedAddress: 3, refusedNetwork: 1}, refused)
}

// A process that was taken over cannot have media sent just anywhere, nor take it at any port.
func TestWhichPairsMayBe(t *testing.T) {
	end := func(hop, local, remote, rtcp string) terminate.End {
		e := terminate.End{Hop: netip.MustParseAddr(hop)}
		e.Local = netip.MustParseAddrPort(local)
		if remote != "" {
			e.Remote = netip.MustParseAddrPort(remote)
		}
		if rtcp != "" {
			e.RemoteRTCP = netip.MustParseAddrPort(rtcp)
		}
		return e
	}
	phone := end("10.1.10.9", "10.1.10.1:20000", "10.1.10.9:4000", "10.1.10.9:4001")
	far := end("10.2.20.5", "10.9.0.1:20000", "10.9.0.2:41000", "10.9.0.2:41001")
	trunk := end("203.0.113.9", "198.51.100.7:20000", "203.0.113.10:9000", "")
	for _, c := range []struct {
		name string
		ends [2]terminate.End
		why  string
	}{
		{"phone and site", [2]terminate.End{phone, far}, ""},
		{"nothing known of one end", [2]terminate.End{phone, end("10.2.20.5", "10.9.0.1:20000", "", "")}, ""},
		{"phone and trunk", [2]terminate.End{phone, trunk}, ""},
		{"another site", [2]terminate.End{phone, end("10.2.20.5", "10.9.0.1:20000", "10.3.10.7:4000", "")}, ""},
		{"the internet, in a call with a site",
			[2]terminate.End{phone, end("10.2.20.5", "10.9.0.1:20000", "203.0.113.10:9000", "")}, refusedNetwork},
		{"RTCP elsewhere",
			[2]terminate.End{phone, end("10.2.20.5", "10.9.0.1:20000", "10.9.0.2:41000", "203.0.113.10:9000")}, refusedNetwork},
		{"a service", [2]terminate.End{phone, end("10.2.20.5", "10.9.0.1:20000", "10.9.0.2:53", "")}, refusedPort},
		{"the box itself",
			[2]terminate.End{phone, end("10.2.20.5", "10.9.0.1:20000", "10.1.10.1:20000", "")}, refusedAddress},
		{"another address of the box",
			[2]terminate.End{phone, end("10.2.20.5", "10.1.20.1:20000", "10.9.0.2:41000", "")}, refusedAddress},
		{"a port that is not media's",
			[2]terminate.End{end("10.1.10.9", "10.1.10.1:5060", "10.1.10.9:4000", ""), far}, refusedAddress},
		{"an odd port",
			[2]terminate.End{end("10.1.10.9", "10.1.10.1:20001", "10.1.10.9:4000", ""), far}, refusedAddress},
		{"another family",
			[2]terminate.End{phone, end("10.2.20.5", "10.9.0.1:20000", "[2001:db8:2:10::9]:4000", "")}, refusedAddress},
		{"nobody's network",
			[2]terminate.End{phone, end("10.2.20.5", "10.9.0.1:20000", "192.168.7.7:4000", "")}, refusedAddress},
	} {
		b := relaying()
		p := &terminate.Pair{ID: 7, Ends: c.ends}
		got := b.allowed([]terminate.Change{{ID: 7, Pair: p}, {ID: 8}})
		want := []terminate.Change{{ID: 7, Pair: p}, {ID: 8}}
		refused := map[string]uint64{}
		if c.why != "" {
			want[0].Pair, refused[c.why] = nil, 1
		}
		assert.Equal(t, want, got, c.name)
		_, _, counted := b.state()
		assert.Equal(t, refused, counted, c.name)
	}
}

// The media plane gets the pairs, and afterwards their keys are overwritten; without a media plane, the relay is told.
func TestTheMediaPlaneGetsPairs(t *testing.T) {
	b := relaying()
	c := &Calls{holes: b.holes, places: newPlaces(nil, nil)}
	key := sdes.Key{Master: []byte("master"), Salt: []byte("salt")}
	p := &terminate.Pair{ID: 7}
	for i, local := range []string{"10.1.10.1:20000", "10.9.0.1:20000"} {
		p.Ends[i].Local = netip.MustParseAddrPort(local)
	}
	p.Ends[0].Send.Keys = []sdes.Key{key}
	changes := []relay.Change{{Media: []terminate.Change{{ID: 7, Pair: p}}}}
	require.ErrorContains(t, c.change(t.Context(), changes, false), "no media plane")
	assert.Equal(t, make([]byte, 6), key.Master)

	copy(key.Master, "master")
	var got string
	failed := errors.New("it is busy")
	c.o.Media = func(_ context.Context, all []terminate.Change, whole bool) error {
		got = string(all[0].Pair.Ends[0].Send.Keys[0].Master)
		assert.True(t, whole)
		return failed
	}
	require.ErrorIs(t, c.change(t.Context(), changes, true), failed)
	assert.Equal(t, "master", got)
	assert.Equal(t, make([]byte, 6), key.Master)
	c.o.Media = nil
	require.NoError(t, c.change(t.Context(), nil, true))
}
