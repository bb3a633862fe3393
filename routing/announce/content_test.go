package announce

import (
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/ndp"
	"github.com/stretchr/testify/assert"
)

const now = 1000 * time.Second

// told is what an advertisement says of a network: preferred and valid lifetime.
func told(ra *ndp.RouterAdvertisement) map[string][2]time.Duration {
	all := map[string][2]time.Duration{}
	for _, o := range ra.Options {
		if p, ok := o.(*ndp.PrefixInformation); ok {
			all[p.Prefix.String()] = [2]time.Duration{p.PreferredLifetime, p.ValidLifetime}
		}
	}
	return all
}

func TestAdvertisement(t *testing.T) {
	first, second := netip.MustParsePrefix("2001:db8:5600:1::/64"), netip.MustParsePrefix("2001:db8:7700:1::/64")
	dns := []netip.Addr{netip.MustParseAddr("2001:db8:ff::53")}
	c, known := Content{DNS: dns, Prefixes: []Prefix{{first, now + 24*time.Hour, now + 48*time.Hour}}}, Known{}

	ra := c.Advertisement(now, known)
	assert.Equal(t, routerLife, ra.RouterLifetime)
	assert.Equal(t, map[string][2]time.Duration{"2001:db8:5600:1::": {preferredLife, validLife}}, told(ra))
	assert.Contains(t, ra.Options, &ndp.RecursiveDNSServer{Lifetime: routerLife, Servers: dns})

	// Never for longer than the provider said.
	c.Prefixes[0].Preferred, c.Prefixes[0].Valid = now+10*time.Minute, now+20*time.Minute
	ra = c.Advertisement(now, known)
	assert.Equal(t, [2]time.Duration{10 * time.Minute, 20 * time.Minute}, told(ra)[first.Addr().String()])

	// The old one is deprecated, also once it is not ours any more, for as long as hosts can have it.
	c.Prefixes = []Prefix{{second, now + time.Hour, now + time.Hour}}
	ra = c.Advertisement(now, known)
	assert.Equal(t, [2]time.Duration{0, validLife}, told(ra)[first.Addr().String()])
	assert.Equal(t, preferredLife, told(ra)[second.Addr().String()][0])
	assert.NotContains(t, told(c.Advertisement(now+validLife, known)), first.Addr().String())

	// Without a network that is preferred this machine is no router.
	ra = Content{}.Advertisement(now, known)
	assert.Zero(t, ra.RouterLifetime)
	assert.Equal(t, time.Duration(0), told(ra)[second.Addr().String()][0])
	c.Prefixes = []Prefix{{second, now, now + time.Hour}}
	assert.Zero(t, c.Advertisement(now, known).RouterLifetime)

	c.Prefixes = append(c.Prefixes, Prefix{first, NoEnd, NoEnd})
	ra = c.Advertisement(now, known)
	assert.Equal(t, [2]time.Duration{preferredLife, validLife}, told(ra)[first.Addr().String()])
	assert.Equal(t, routerLife, ra.RouterLifetime)
}

func TestWhatIsKnownIsBounded(t *testing.T) {
	known := Known{}
	for i := range 100 {
		a := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i)})
		c := Content{Prefixes: []Prefix{{netip.PrefixFrom(a, 64), now + time.Hour, now + time.Hour}}}
		c.Advertisement(now+time.Duration(i)*time.Second, known)
	}
	assert.LessOrEqual(t, len(known), maxGone+1)
}
