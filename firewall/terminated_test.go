package firewall

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
)

// terminated is the branch with media that the box terminates, and a site whose box keys are agreed with.
func terminated() Input {
	in := signalled()
	in.Classes[0].Ports = nil
	in.Terminated = Terminated{
		Ports: port(qos.UDP, 20000, 29999), PacketsPerPort: 400,
		LAN: []netip.Addr{
			netip.MustParseAddr("10.1.10.1"), netip.MustParseAddr("2001:db8:1:10::1"), netip.MustParseAddr("192.0.2.1"),
		},
		Tunnel: []netip.Addr{netip.MustParseAddr("10.1.10.1"), netip.MustParseAddr("2001:db8:1:10::1")},
	}
	in.Boxes = []netip.Addr{netip.MustParseAddr("10.2.10.1")}
	in.Signalling.Unread = false
	in.Signalling.Required = prefixes("10.1.10.0/24", "10.2.10.0/24")
	return in
}

func TestTerminatedText(t *testing.T) {
	got := strings.Join(Want(terminated()).Text(), "\n") + "\n"
	const file = "testdata/terminated.nft"
	if *rewrite {
		require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, string(want), got, "if it is meant: go test ./firewall -update")
	for _, c := range Want(terminated()).Chains {
		rulesKeepTheirPromises(t, c, uint32(qos.MarkAll))
	}
}

// Where nothing is terminated there is no rule for it, nor where the kernel cannot limit each port.
func TestWithoutTerminatedMediaNothingChanges(t *testing.T) {
	in := terminated()
	in.Terminated, in.Boxes, in.Signalling.Required = Terminated{}, nil, nil
	plain := signalled()
	plain.Classes[0].Ports, plain.Signalling.Unread = nil, false
	assert.Equal(t, Want(plain), Want(in))

	for _, lacking := range []Feature{FeatureTProxy, FeatureFlowLimit} {
		in := terminated()
		in.Missing = []Feature{lacking}
		text := strings.Join(Want(in).Text(), "\n")
		for _, word := range []string{"intercept_media", "media_take", "127.0.0.1", "media_to_lan", "media_ports"} {
			assert.NotContains(t, text, word, lacking)
		}
	}
}

// A kernel without TPROXY has nobody read calls: those that need SRTP cannot be made.
func TestRequiredCallsWaitWithoutTProxy(t *testing.T) {
	in := terminated()
	in.Missing = []Feature{FeatureTProxy}
	s := Want(in)
	assert.Contains(t, rulesOf(t, s, "forward"), "jump unread")
	assert.Contains(t, rulesOf(t, s, "unread"), "udp dport @sip_ports_udp goto signalling_waits")
	in.Signalling.Required = nil
	assert.NotContains(t, strings.Join(Want(in).Text(), "\n"), "signalling_waits")
}

// What is taken has a mark that input accepts; nobody else has that mark, and nothing is marked before TPROXY has it.
func TestMediaIsMarkedAfterTProxy(t *testing.T) {
	found := 0
	for _, c := range Want(terminated()).Chains {
		for _, r := range c.Rules {
			proxied := slices.IndexFunc(r.Exprs, func(e Expr) bool { return e.Op == "tproxy" && e.Dest != 0 })
			if proxied < 0 {
				continue
			}
			found++
			marked := slices.IndexFunc(r.Exprs, func(e Expr) bool { return e.Op == "meta" && e.Write })
			assert.Greater(t, marked, proxied, r.Text)
		}
	}
	assert.Equal(t, 4, found, "two sides, two families")
}

// Another address or another limit leaves the table as it is: its counters, limits and live holes.
func TestTerminatedMediaChangesInPlace(t *testing.T) {
	have := Want(terminated())
	in := terminated()
	in.Terminated.LAN = append(in.Terminated.LAN, netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3"))
	in.Terminated.PacketsPerPort = 500
	in.Terminated.TunnelSockets = [2]uint16{40001, 40002} // of another media process
	for _, c := range Diff(Want(in), have) {
		assert.NotContains(t, []Op{DeleteTable, AddTable, DeleteSet, AddSet, AddCounter, DeleteCounter}, c.Op, c.String())
	}
	assert.Equal(t, "meta l4proto udp tproxy ip6 to [::1]:40002 meta mark set meta mark | 0x8000 accept",
		rulesOf(t, Want(in), "media_take_tunnel6")[0])
	assert.Equal(t, rulesOf(t, have, "media_take_lan4"), rulesOf(t, Want(in), "media_take_lan4"))
	assert.NotEmpty(t, Diff(Want(in), have))
	assert.Empty(t, Diff(Want(terminated()), have))
}

// Media is accepted by the mark that it is taken with, also where no signalling is taken.
func TestTerminatedMediaIsAcceptedByItsMark(t *testing.T) {
	in := branch()
	in.Terminated = terminated().Terminated
	assert.Equal(t, "meta mark & 0x8000 == 0x8000 accept", rulesOf(t, Want(in), "input")[0])
	in.Terminated = Terminated{}
	assert.NotContains(t, rulesOf(t, Want(in), "input"), "meta mark & 0x8000 == 0x8000 accept")
}
