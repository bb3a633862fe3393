package wanted

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/firewall"
	"ringway/qos"
	"ringway/routing"
	"ringway/srtp/offer"
	"ringway/srtp/suite"
)

// encrypted is the reference with SRTP in the voice network and to munich, whose box has an identity.
func encrypted(change map[string]string) map[string]string {
	all := map[string]string{
		"sip.mode": "enforce", "sip.unread": "deny", "sip.on_failure": "closed",
		"voice[lan0.20].srtp": "require", "sites[munich].srtp": "prefer", "sip.media.packets_per_port": "300",
	}
	for k, v := range change {
		all[k] = v
	}
	return all
}

var delegated = map[string][]routing.Delegation{"wan0": {{Prefix: netip.MustParsePrefix("2001:db8:5600::/56")}}}

func TestWithoutSRTPNothingIsTerminated(t *testing.T) {
	for _, mode := range []string{"off", "observe"} {
		cfg := shipped(t, "reference.yaml", map[string]string{
			"sip.mode": mode, "sites[munich].identity": "", "sites[munich].box": "",
		})
		m, err := MediaOf(cfg, Facts{})
		require.NoError(t, err)
		assert.Nil(t, m)
		text := strings.Join(From(cfg, Facts{Queues: qos.AssumedFeatures()}).Firewall.Text(), "\n")
		for _, word := range []string{"media_ports", "boxes", "required", "5275", "127.0.0.1", "sip_waits"} {
			assert.NotContains(t, text, word, mode)
		}
	}
}

func TestWhoIsTerminated(t *testing.T) {
	cfg := shipped(t, "reference.yaml", encrypted(nil))
	m, err := MediaOf(cfg, Facts{Delegated: delegated})
	require.NoError(t, err)
	of := func(a string) offer.Place { return m.Policy.Of(netip.MustParseAddr(a)) }
	text := func(p offer.Place) []string { return []string{p.IPv4.String(), p.IPv6.String(), p.Box.String()} }

	phone := of("10.1.10.77")
	assert.Equal(t, offer.Policy{
		Level: offer.Require, Minimum: suite.AES128CMHMACSHA180, Methods: []offer.Keying{offer.SDES, offer.DTLS},
	}, phone.Policy)
	const none = "invalid IP"
	assert.Equal(t, []string{"10.1.10.1", "2001:db8:1:10::1", none}, text(phone))
	assert.Equal(t, text(phone), text(of("2001:db8:1:10::77")))
	assert.Equal(t, []string{"10.1.10.1", "2001:db8:5600:1::1", none}, text(of("2001:db8:5600:1::77")),
		"in the delegated network the box has its address there")
	assert.Equal(t, offer.Require, of("2001:db8:5600:1::77").Level)

	pbx := of("10.1.20.5")
	assert.Equal(t, offer.Off, pbx.Level)
	assert.Equal(t, []string{"10.1.20.1", "2001:db8:1:20::1", none}, text(pbx))

	for _, a := range []string{"10.2.10.9", "10.2.20.9", "2001:db8:2:10::9"} {
		assert.Equal(t, offer.Prefer, of(a).Level, a)
		assert.Equal(t, []string{"10.1.10.1", none, "10.2.10.1"}, text(of(a)), "the family of the boxes")
	}
	trunk := of("203.0.113.99")
	assert.Equal(t, offer.Off, trunk.Level)
	assert.Equal(t, []string{"10.1.10.1", "2001:db8:1:10::1", none}, text(trunk))

	assert.Equal(t, []Box{{
		Site: "munich", Identity: cfg.Sites[0].Identity,
		Own: netip.MustParseAddr("10.1.10.1"), Far: netip.MustParseAddr("10.2.10.1"),
	}}, m.Boxes)
	assert.Equal(t, "udp/20000-29999", m.Ports.String())
}

func TestASiteThatIsNoRingway(t *testing.T) {
	noRingway := map[string]string{"sites[munich].identity": "", "sites[munich].box": ""}
	cfg := shipped(t, "reference.yaml", encrypted(noRingway))
	m, err := MediaOf(cfg, Facts{})
	require.NoError(t, err)
	p := m.Policy.Of(netip.MustParseAddr("10.2.10.9"))
	assert.False(t, p.Box.IsValid())
	assert.True(t, p.IPv4.IsValid() && p.IPv6.IsValid())
	assert.Empty(t, m.Boxes)
	assert.NotContains(t, strings.Join(From(cfg, Facts{Queues: qos.AssumedFeatures()}).Firewall.Text(), "\n"), "boxes")
}

// The firewall has the addresses that calls are told of, and no others.
func TestTheFirewallHasTheMediaAddresses(t *testing.T) {
	cfg := shipped(t, "reference.yaml", encrypted(nil))
	f := Facts{
		Queues: qos.AssumedFeatures(), Delegated: delegated, MediaSockets: [2][2]uint16{{41001, 41002}, {41003, 0}},
	}
	w := From(cfg, f).Firewall
	assert.Equal(t, "10.1.10.1 10.1.20.1", set(t, w, "media_lan4"))
	assert.Equal(t, "2001:db8:1:10::1 2001:db8:1:20::1 2001:db8:5600:1::1 2001:db8:5600:2::1", set(t, w, "media_lan6"))
	assert.Equal(t, "10.1.10.1", set(t, w, "media_tunnel4"))
	assert.Equal(t, "2001:db8:1:10::1", set(t, w, "media_tunnel6"), "sites do not know the delegated networks")
	assert.Equal(t, "20000-29999", set(t, w, "media_ports"))
	assert.Equal(t, "10.2.10.1", set(t, w, "boxes4"))
	assert.Equal(t, "10.1.10.0/24", set(t, w, "required4"), "munich only prefers it")
	assert.Contains(t, strings.Join(w.Text(), "\n"), "limit rate 300/second burst 75 packets")
	assert.Equal(t, w, Firewall(cfg, f), "also when a site roams")
	for _, at := range []string{"127.0.0.1:41001", "[::1]:41002", "127.0.0.1:41003", "[::1]:5274"} {
		assert.Contains(t, strings.Join(w.Text(), "\n"), " to "+at+" ")
	}

	m, err := MediaOf(cfg, f)
	require.NoError(t, err)
	for _, name := range []string{"media_lan4", "media_lan6", "media_tunnel4", "media_tunnel6"} {
		for _, a := range strings.Fields(set(t, w, name)) {
			assert.True(t, m.Policy.Local(netip.MustParseAddr(a)), a)
		}
	}

	both := shipped(t, "reference.yaml", encrypted(map[string]string{"sites[munich].srtp": "require"}))
	assert.Equal(t, "10.1.10.0/24 10.2.10.0/24 10.2.20.0/24", set(t, From(both, f).Firewall, "required4"))
}

// What a kernel lacks leaves nothing terminated: who prefers SRTP has calls without, who requires it has none.
func TestMediaNeedsTheKernelsFeatures(t *testing.T) {
	cfg := shipped(t, "reference.yaml", encrypted(nil))
	for _, lacking := range firewall.ForTerminated() {
		f := Facts{Queues: qos.AssumedFeatures(), FirewallMissing: []firewall.Feature{lacking}}
		m, err := MediaOf(cfg, f)
		require.NoError(t, err)
		assert.Equal(t, []firewall.Feature{lacking}, m.Missing)
		assert.Zero(t, m.Ports)
		assert.Equal(t, offer.Require, m.Policy.Of(netip.MustParseAddr("10.1.10.77")).Level)
		assert.Equal(t, offer.Off, m.Policy.Of(netip.MustParseAddr("10.2.10.9")).Level)
		assert.NotContains(t, strings.Join(From(cfg, f).Firewall.Text(), "\n"), "media_take", lacking)
	}
}
