package dhcp6

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var duid = &dhcpv6.DUIDUUID{UUID: [16]byte{1, 2, 3}}

func prefixOption(p string, preferred, valid time.Duration) *dhcpv6.OptIAPrefix {
	_, n, err := net.ParseCIDR(p)
	if err != nil {
		panic(err)
	}
	return &dhcpv6.OptIAPrefix{Prefix: n, PreferredLifetime: preferred, ValidLifetime: valid}
}

func delegation(t1, t2 time.Duration, options ...dhcpv6.Option) *dhcpv6.OptIAPD {
	return &dhcpv6.OptIAPD{
		IaId: iaidOf("wan0"), T1: t1, T2: t2, Options: dhcpv6.PDOptions{Options: options},
	}
}

func reply(options ...dhcpv6.Option) *dhcpv6.Message {
	m := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply}
	m.AddOption(dhcpv6.OptClientID(duid))
	server := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	m.AddOption(dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: server}))
	for _, o := range options {
		m.AddOption(o)
	}
	return m
}

func testReader() reader {
	return reader{client: duid, iaid: iaidOf("wan0"), want: Want{PrefixBits: 56, Address: true}}
}

const now = 1000 * time.Second

// sent is what arrives of a message that is sent.
func sent(t testing.TB, m *dhcpv6.Message) *dhcpv6.Message {
	t.Helper()
	got, err := dhcpv6.MessageFromBytes(m.ToBytes())
	require.NoError(t, err)
	return got
}

func TestTimes(t *testing.T) {
	const hour = time.Hour
	forever := 0xffffffff * time.Second
	for name, c := range map[string]struct {
		t1, t2, preferred, valid time.Duration
		wantT1, wantT2           time.Duration
	}{
		"of the server":           {hour, 2 * hour, 3 * hour, 4 * hour, hour, 2 * hour},
		"left to the client":      {0, 0, 2 * hour, 4 * hour, hour, 96 * time.Minute},
		"later than the lifetime": {3 * hour, 5 * hour, 2 * hour, 4 * hour, hour, 96 * time.Minute},
		"without an end":          {forever, forever, forever, forever, maxHold, maxLife * 4 / 5},
		"not preferred":           {0, 0, 0, 2 * hour, hour, 96 * time.Minute},
		"without a pause":         {time.Second, time.Second, hour, hour, minHold, minHold},
	} {
		t.Run(name, func(t *testing.T) {
			m := sent(t, reply(delegation(c.t1, c.t2, prefixOption("2001:db8:1200::/56", c.preferred, c.valid))))
			g, err := testReader().read(m, now)
			require.NoError(t, err)
			require.Len(t, g.prefixes, 1, "%v", g.refusals)
			assert.Equal(t, []time.Duration{c.wantT1, c.wantT2}, []time.Duration{g.t1, g.t2})
			assert.LessOrEqual(t, g.prefixes[0].Valid, now+maxLife)
		})
	}
}

// What a server must not delegate is refused with the reason, and what it says besides counts.
func TestRefused(t *testing.T) {
	own := netip.MustParsePrefix("2001:db8:1:10::/64")
	r := testReader()
	r.refuse = func(p netip.Prefix) error {
		if p.Overlaps(own) {
			return assert.AnError
		}
		return nil
	}
	const hour = time.Hour
	for name, c := range map[string]struct {
		option dhcpv6.Option
		want   string
	}{
		"our own":             {delegation(0, 0, prefixOption("2001:db8:1::/56", hour, hour)), assert.AnError.Error()},
		"the whole internet":  {delegation(0, 0, prefixOption("2000::/3", hour, hour)), "its length is not 32 to 64"},
		"everything":          {delegation(0, 0, &dhcpv6.OptIAPrefix{ValidLifetime: hour}), "it has no length"},
		"too small":           {delegation(0, 0, prefixOption("2001:db8:7::/80", hour, hour)), "its length"},
		"unique local":        {delegation(0, 0, prefixOption("fd00:1::/56", hour, hour)), "global unicast"},
		"multicast":           {delegation(0, 0, prefixOption("ff00::/56", hour, hour)), "global unicast"},
		"IPv4 in IPv6":        {delegation(0, 0, prefixOption("::ffff:a01:a00/120", hour, hour)), "not"},
		"preferred too long":  {delegation(0, 0, prefixOption("2001:db8:7::/56", 2*hour, hour)), "preferred for longer"},
		"T1 after T2":         {delegation(2*hour, hour, prefixOption("2001:db8:7::/56", hour, hour)), "is after T2"},
		"no prefix available": {delegation(0, 0, &dhcpv6.OptStatusCode{StatusCode: iana.StatusNoPrefixAvail, StatusMessage: "none left"}), `none left`},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := r.read(sent(t, reply(c.option)), now)
			require.NoError(t, err)
			assert.True(t, g.empty(), "%v", g.prefixes)
			require.Len(t, g.refusals, 1)
			assert.Contains(t, g.refusals[0].Error(), c.want)
		})
	}

	_, err := r.read(reply(&dhcpv6.OptStatusCode{StatusCode: iana.StatusUseMulticast}), now)
	assert.ErrorContains(t, err, "UseMulticast")
	other := reply(delegation(0, 0, prefixOption("2001:db8:7::/56", hour, hour)))
	other.UpdateOption(dhcpv6.OptClientID(&dhcpv6.DUIDUUID{}))
	_, err = r.read(other, now)
	assert.ErrorIs(t, err, errNotForUs)
}

func TestMerge(t *testing.T) {
	p := func(s string, preferred, valid time.Duration) Prefix {
		return Prefix{netip.MustParsePrefix(s), preferred, valid}
	}
	const day = 24 * time.Hour
	old := Lease{Interface: "wan0", Server: []byte{1}, Prefixes: []Prefix{p("2001:db8:1100::/56", now+day, now+2*day)}}
	names := func(l Lease) string { return strings.Join(l.names(), " ") }

	l := merge(old, granted{server: []byte{2}, prefixes: []Prefix{p("2001:db8:2200::/56", now+day, now+day)}}, now)
	assert.Equal(t, "2001:db8:2200::/56 2001:db8:1100::/56", names(l), "the new one first")
	assert.Equal(t, p("2001:db8:1100::/56", now, now+goneLife), l.Prefixes[1], "replaced silently")

	l = merge(old, granted{prefixes: []Prefix{
		p("2001:db8:2200::/56", now+day, now+day), p("2001:db8:1100::/56", 0, 0),
	}}, now)
	assert.Equal(t, "2001:db8:2200::/56", names(l), "taken away")

	l = merge(old, granted{addresses: []Address{{netip.MustParseAddr("2001:db8::1"), now + day}}}, now)
	assert.Equal(t, old.Prefixes, l.Prefixes, "not mentioned")

	l = merge(old, granted{prefixes: []Prefix{p("2001:db8:1100::/56", 0, 0)}}, now)
	assert.True(t, l.Empty())
	assert.Equal(t, now+goneLife, old.abandoned(now).Expiry())
	assert.Empty(t, old.abandoned(now).Server)
}

// The pause doubles up to its bound, each time with a tenth of jitter (RFC 8415, section 15).
func TestRetransmission(t *testing.T) {
	x := exchange{c: &Client{}, kind: dhcpv6.MessageTypeSolicit}
	for range 100 {
		first := x.next(0, soliciting)
		assert.GreaterOrEqual(t, first, time.Second, "a first solicitation must not come early (section 18.2.1)")
		assert.LessOrEqual(t, first, 1100*time.Millisecond)
		last := first
		for range 20 {
			d := x.next(last, soliciting)
			if last < 1500*time.Second {
				assert.InDelta(t, 2*last, d, float64(last)/10+1)
			}
			assert.LessOrEqual(t, d, 3960*time.Second)
			last = d
		}
		assert.Greater(t, last, 3200*time.Second)
	}
}

func FuzzReply(f *testing.F) {
	f.Add(reply(delegation(0, 0, prefixOption("2001:db8:1200::/56", time.Hour, time.Hour))).ToBytes())
	f.Add(reply(&dhcpv6.OptIANA{IaId: iaidOf("wan0"), Options: dhcpv6.IdentityOptions{Options: dhcpv6.Options{
		&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP("2001:db8::1"), ValidLifetime: time.Hour},
	}}}).ToBytes())
	f.Add([]byte{7, 1, 2, 3, 0, 1, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := dhcpv6.MessageFromBytes(b)
		if err != nil {
			return
		}
		g, err := testReader().read(m, now)
		if err != nil {
			return
		}
		assert.True(t, minHold <= g.t1 && g.t1 <= g.t2 && g.t2 <= maxLife && g.t1 <= maxHold, "%v %v", g.t1, g.t2)
		l := merge(Lease{}, g, now)
		assert.LessOrEqual(t, len(l.Prefixes), maxPrefixes)
		for _, p := range l.Prefixes {
			assert.True(t, global.Contains(p.Prefix.Addr()) && p.Prefix == p.Prefix.Masked())
			assert.True(t, minBits <= p.Prefix.Bits() && p.Prefix.Bits() <= maxBits)
			assert.True(t, now <= p.Preferred && p.Preferred <= p.Valid && p.Valid <= now+maxLife)
		}
		for _, a := range l.Addresses {
			assert.True(t, usable(a.Address) && a.Valid > now)
		}
	})
}
