package appliance

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"

	"ringway/appliance/config"
	"ringway/appliance/endpoint"
	"ringway/routing"
)

func TestFamiliesOfTheWANs(t *testing.T) {
	wan := func(u routing.Upstream) config.WAN { return config.WAN{Upstream: u} }
	static := func(prefix string) config.WAN {
		return wan(routing.Upstream{Addresses: []netip.Prefix{netip.MustParsePrefix(prefix)}})
	}
	for want, wans := range map[endpoint.Families][]config.WAN{
		{IPv4: true, MaybeIPv6: true}: {wan(routing.Upstream{Interface: "wan0", DHCP: true})},
		{MaybeIPv6: true}:             {wan(routing.Upstream{Interface: "wan0", DHCP6: true})},
		{IPv6: true}:                  {static("2001:db8::2/64")},
		{IPv4: true, IPv6: true}:      {static("203.0.113.2/24"), static("2001:db8::2/64")},
	} {
		assert.Equal(t, want, families(&config.Config{WANs: wans}))
	}
}
