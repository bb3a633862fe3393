package advert

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/ndp"
	"github.com/stretchr/testify/assert"
)

var (
	local   = netip.MustParseAddr("fe80::211:22ff:fe33:4455")
	routerA = netip.MustParseAddr("fe80::a")
	routerB = netip.MustParseAddr("fe80::b")
	own     = netip.MustParsePrefix("2001:db8:1:10::/64")
)

func refuseOwn(p netip.Prefix) error {
	if own.Overlaps(p) {
		return errors.New("it is ours")
	}
	return nil
}

func prefix(p string, valid, preferred time.Duration) *ndp.PrefixInformation {
	n := netip.MustParsePrefix(p)
	return &ndp.PrefixInformation{
		Prefix: n.Addr(), PrefixLength: uint8(n.Bits()), OnLink: true, AutonomousAddressConfiguration: true,
		ValidLifetime: valid, PreferredLifetime: preferred,
	}
}

func advertisement(lifetime time.Duration, options ...ndp.Option) *ndp.RouterAdvertisement {
	return &ndp.RouterAdvertisement{RouterLifetime: lifetime, Options: options}
}

func texts(r Result) (list []string) {
	for _, a := range r.Addresses {
		list = append(list, a.String())
	}
	return append(list, "via "+r.Gateway.String())
}

func TestAddressesAndADefaultRouteAlone(t *testing.T) {
	var table Table
	far := prefix("2001:db8:b::/64", time.Hour, time.Hour)
	far.OnLink = false
	link := prefix("2001:db8:c::/64", time.Hour, time.Hour)
	link.AutonomousAddressConfiguration = false
	table.Hear(0, routerA.WithZone("wan0"), advertisement(30*time.Minute,
		prefix("2001:db8:a::/64", time.Hour, time.Hour), far, link,
		prefix("2001:db8:d::/48", time.Hour, time.Hour), prefix("fe80::/64", time.Hour, time.Hour),
		prefix("2001:db8:e::/64", time.Hour, 2*time.Hour), prefix("2001:db8:f::/64", 0, 0),
		&ndp.RouteInformation{Prefix: netip.MustParseAddr("2001:db8:9::"), PrefixLength: 48, RouteLifetime: time.Hour},
		ndp.NewMTU(1280),
	), refuseOwn)

	assert.Equal(t, []string{
		"2001:db8:a:0:211:22ff:fe33:4455/64", "2001:db8:b:0:211:22ff:fe33:4455/128", "via fe80::a",
	}, texts(table.Result(0, local)))
	assert.Empty(t, table.Refusals())

	table.Expire(31*time.Minute, refuseOwn)
	assert.Equal(t, "via invalid IP", texts(table.Result(31*time.Minute, local))[2], "the router is silent")
	table.Expire(61*time.Minute, refuseOwn)
	assert.Equal(t, []string{"via invalid IP"}, texts(table.Result(61*time.Minute, local)))
}

func TestWhatOverlapsIsRefusedAndSaid(t *testing.T) {
	var table Table
	table.Hear(0, routerA, advertisement(time.Hour, prefix("2001:db8:1:10::/64", time.Hour, time.Hour),
		prefix("2001:db8:a::/64", time.Hour, time.Hour),
		&ndp.RouteInformation{Prefix: netip.MustParseAddr("2001:db8:1:10::"), PrefixLength: 72, RouteLifetime: time.Hour},
		&ndp.RouteInformation{PrefixLength: 0, RouteLifetime: time.Hour}), refuseOwn)
	assert.Equal(t, []string{"2001:db8:a:0:211:22ff:fe33:4455/64", "via fe80::a"}, texts(table.Result(0, local)))
	assert.Equal(t, []string{
		"refused the prefix that router fe80::a advertises: it is ours",
		"refused the route that router fe80::a advertises: it is ours",
	}, table.Refusals())

	// It is said for as long as it would hold, and not longer.
	table.Expire(59*time.Minute, refuseOwn)
	assert.Len(t, table.Refusals(), 2)
	table.Expire(time.Hour, refuseOwn)
	assert.Empty(t, table.Refusals())
}

// A config that makes an advertised network one of ours takes the address away.
func TestANetworkThatBecomesOursIsLeft(t *testing.T) {
	var table Table
	all := func(netip.Prefix) error { return nil }
	table.Hear(0, routerA, advertisement(time.Hour, prefix("2001:db8:1:10::/64", time.Hour, time.Hour)), all)
	assert.Len(t, table.Result(0, local).Addresses, 1)
	table.Expire(0, refuseOwn)
	assert.Empty(t, table.Result(0, local).Addresses)
}

// A stranger's advertisement neither takes the default route over nor takes addresses away.
func TestAForgedAdvertisementChangesLittle(t *testing.T) {
	var table Table
	table.Hear(0, routerA, advertisement(time.Hour, prefix("2001:db8:a::/64", 24*time.Hour, 24*time.Hour)), refuseOwn)
	forged := advertisement(2*time.Hour, prefix("2001:db8:a::/64", 0, 0))
	forged.RouterSelectionPreference = ndp.High
	table.Hear(0, routerB, forged, refuseOwn)

	want := []string{"2001:db8:a:0:211:22ff:fe33:4455/64", "via fe80::a"}
	assert.Equal(t, want, texts(table.Result(0, local)))
	at := 2*time.Hour - 1 // RFC 4862, section 5.5.3
	table.Hear(time.Hour-1, routerA, advertisement(2*time.Hour), refuseOwn)
	table.Expire(at, refuseOwn)
	assert.Equal(t, want, texts(table.Result(at, local)))

	table.Hear(at, routerA, advertisement(0), refuseOwn)
	table.Hear(at, routerB, advertisement(time.Hour), refuseOwn)
	assert.Equal(t, "via fe80::b", texts(table.Result(at, local))[1], "the first router says that it is none any more")
}

// What is not preferred is left, unless there is nothing else.
func TestRenumbering(t *testing.T) {
	var table Table
	table.Hear(0, routerA, advertisement(time.Hour, prefix("2001:db8:a::/64", time.Hour, time.Hour)), refuseOwn)
	table.Hear(1, routerA, advertisement(time.Hour, prefix("2001:db8:a::/64", time.Hour, 0)), refuseOwn)
	assert.Equal(t, "2001:db8:a:0:211:22ff:fe33:4455/64", texts(table.Result(1, local))[0])
	table.Hear(2, routerA, advertisement(time.Hour, prefix("2001:db8:b::/64", time.Hour, time.Hour)), refuseOwn)
	assert.Equal(t, []string{"2001:db8:b:0:211:22ff:fe33:4455/64", "via fe80::a"}, texts(table.Result(2, local)))
}

// A cable that is plugged in elsewhere leads to other routers. Where it leads to the same ones, nothing changes.
func TestAnotherNetwork(t *testing.T) {
	var table Table
	table.Hear(1, routerA, advertisement(time.Hour, prefix("2001:db8:a::/64", time.Hour, time.Hour)), refuseOwn)
	same := []string{"2001:db8:a:0:211:22ff:fe33:4455/64", "via fe80::a"}
	table.Moved(2)
	assert.Equal(t, same, texts(table.Result(2, local)), "no router has been heard yet")
	table.Hear(3, routerA, advertisement(time.Hour, prefix("2001:db8:a::/64", time.Hour, time.Hour)), refuseOwn)
	table.Moved(2)
	assert.Equal(t, same, texts(table.Result(3, local)))

	table.Hear(5, routerB, advertisement(time.Hour, prefix("2001:db8:b::/64", time.Hour, time.Hour)), refuseOwn)
	table.Moved(4)
	assert.Equal(t, []string{"2001:db8:b:0:211:22ff:fe33:4455/64", "via fe80::b"}, texts(table.Result(5, local)))
}

func TestAFloodIsBounded(t *testing.T) {
	var table Table
	for i := range 1000 {
		p := netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 8), byte(i)}), 64)
		inside := own.Addr().As16()
		inside[8], inside[9] = byte(i>>8), byte(i)
		table.Hear(0, netip.AddrFrom16([16]byte{0xfe, 0x80, 14: byte(i >> 8), 15: byte(i)}), advertisement(time.Hour,
			prefix(p.String(), time.Hour, time.Hour),
			&ndp.RouteInformation{Prefix: netip.AddrFrom16(inside), PrefixLength: 80, RouteLifetime: time.Hour}), refuseOwn)
	}
	assert.Len(t, table.Routers, maxRouters)
	assert.Len(t, table.Prefixes, maxPrefixes)
	assert.Len(t, table.Refusals(), maxRefusals)
}

func FuzzHear(f *testing.F) {
	b, err := ndp.MarshalMessage(advertisement(time.Hour, prefix("2001:db8:1:10::/64", time.Hour, time.Hour),
		&ndp.RouteInformation{Prefix: netip.MustParseAddr("2001:db8:1:10::"), PrefixLength: 72}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ndp.ParseMessage(b)
		if err != nil {
			return
		}
		ra, ok := m.(*ndp.RouterAdvertisement)
		if !ok {
			return
		}
		var table Table
		table.Hear(0, routerA, ra, refuseOwn)
		table.Expire(0, refuseOwn)
		for _, a := range table.Result(0, local).Addresses {
			assert.False(t, own.Overlaps(a))
			assert.True(t, a.Addr().Is6() && !a.Addr().IsMulticast() && !a.Addr().IsLinkLocalUnicast())
		}
	})
}
