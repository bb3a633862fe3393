package dhcp

import (
	"net"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func ack(t testing.TB, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	p, err := dhcpv4.New(append([]dhcpv4.Modifier{
		dhcpv4.WithMessageType(dhcpv4.MessageTypeAck),
		dhcpv4.WithYourIP(net.IPv4(198, 51, 100, 30)),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(198, 51, 100, 1))),
		dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
		dhcpv4.WithLeaseTime(3600),
		dhcpv4.WithOption(dhcpv4.OptRouter(net.IPv4(198, 51, 100, 1))),
	}, mods...)...)
	require.NoError(t, err)
	return p
}

func TestLeaseTimes(t *testing.T) {
	given := time.Unix(1_800_000_000, 0)
	noEnd := []dhcpv4.Modifier{dhcpv4.WithLeaseTime(0xffffffff)}
	option := func(o dhcpv4.Option) []dhcpv4.Modifier { return []dhcpv4.Modifier{dhcpv4.WithOption(o)} }
	const t1, t2 = 30 * time.Minute, 52*time.Minute + 30*time.Second
	for name, c := range map[string]struct {
		mods                    []dhcpv4.Modifier
		duration, renew, rebind time.Duration
	}{
		"defaults of RFC 2131": {nil, time.Hour, t1, t2},
		"times of the server": {
			append(option(dhcpv4.OptRenewTimeValue(time.Minute)), option(dhcpv4.OptRebindingTimeValue(2*time.Minute))...),
			time.Hour, time.Minute, 2 * time.Minute,
		},
		"T1 of a second": {option(dhcpv4.OptRenewTimeValue(time.Second)), time.Hour, 30 * time.Second, t2},
		"a lease of a minute, T1 of a second": {
			append(option(dhcpv4.OptRenewTimeValue(time.Second)), dhcpv4.WithLeaseTime(60)),
			time.Minute, 30 * time.Second, 52*time.Second + 500*time.Millisecond,
		},
		"T1 after the end": {option(dhcpv4.OptRenewTimeValue(2 * time.Hour)), time.Hour, t1, t2},
		"without an end":   {noEnd, 24 * time.Hour, 12 * time.Hour, 21 * time.Hour},
		"without a router": {[]dhcpv4.Modifier{dhcpv4.WithoutOption(dhcpv4.OptionRouter)}, time.Hour, t1, t2},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := leaseOf("wan0", ack(t, c.mods...), given, maxHold)
			require.NoError(t, err)
			assert.Equal(t, []time.Duration{c.duration, c.renew, c.rebind}, []time.Duration{l.Duration, l.Renew, l.Rebind})
			assert.Equal(t, given.Add(c.duration), l.Expiry)
			assert.Equal(t, "198.51.100.30/24", l.Address.String())
		})
	}
}

func FuzzLease(f *testing.F) {
	f.Add(ack(f).ToBytes())
	f.Add([]byte{2, 1, 6, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		l, err := leaseOf("wan0", p, time.Now(), maxHold)
		if err != nil {
			return
		}
		assert.True(t, l.Address.IsValid() && usable(l.Address.Addr()) && l.Address.Bits() > 0)
		assert.True(t, 0 < l.Renew && l.Renew < l.Rebind && l.Rebind < l.Duration && l.Duration <= maxHold, "%v", l)
		for _, g := range append(l.Gateways, l.DNS...) {
			assert.True(t, usable(g))
		}
	})
}
