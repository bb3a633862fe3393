package admission

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/sip/dialog"
	"ringway/sip/sdp"
	"ringway/tunnel"
)

// relay has the box relay the sound of the latest message, from and to 198.51.100.9 and 10.9.0.1: neither is in a
// network of this branch.
func (s *script) relay(st *dialog.Step, near string) {
	s.t.Helper()
	require.Len(s.t, st.Exchanges, 1)
	l := dialog.Line{SRTP: [2]int{10, 30}} // WireGuard pads to 16: 20 would cost no more than 10
	if near != "" {
		l.Box[0] = netip.MustParseAddrPort(near)
	}
	l.Box[1] = netip.MustParseAddrPort("10.9.0.1:20002")
	var d sdp.Description
	require.True(s.t, d.Read([]byte("v=0\r\nm=audio 20002 RTP/AVP 0\r\n")))
	s.tr.Relay(s.now, st, &st.Exchanges[0], &d, []dialog.Line{l})
}

// What a budget carries of relayed media is what goes between the box and the far end, with what SRTP adds there.
func TestRelayedMediaTakesWhatIsBeyondTheBox(t *testing.T) {
	s := play(t, testWorld(4))
	s.edit = func(st *dialog.Step) { s.relay(st, "") }
	cost := func(srtp qos.ByteCount) qos.BitRate { return qos.Budget{Envelope: envelope, SRTP: srtp}.Call(qos.G711) }
	require.Greater(t, cost(30), cost(qos.SRTPTag))
	s.says("A>P INVITE a c=10.1.10.10:5004")
	assert.Equal(t, cost(30), s.ledger.Budgets()[s.out("branch-2")].Taken)

	s.edit = func(st *dialog.Step) { s.relay(st, "198.51.100.9:20000") }
	s.says("P>A 200 INVITE a b c=10.2.10.5:6000")
	taken := map[string]qos.BitRate{}
	for _, b := range s.ledger.Budgets() {
		if b.Taken > 0 {
			taken[b.Site] = b.Taken
		}
	}
	assert.Equal(t, map[string]qos.BitRate{"branch-2": cost(30)}, taken, "between phone and box nothing is charged")
	flow := tunnel.Flow{
		Source: netip.MustParseAddrPort("10.9.0.1:20002"), Destination: netip.MustParseAddrPort("10.2.10.5:6000"),
	}
	require.Len(t, s.engine.held, 1)
	assert.Contains(t, s.engine.held, flow, "the packets that the tunnel sees")

	// Where the called party is registered does not matter to the side of the caller.
	s = play(t, testWorld(4))
	s.callee, s.edit = hosts["V"], func(st *dialog.Step) { s.relay(st, "") }
	s.says("A>P INVITE a c=10.1.10.10:5004")
	assert.Equal(t, cost(30), s.ledger.Budgets()[s.out("branch-3")].Taken)
	assert.Zero(t, s.ledger.Budgets()[s.out("branch-2")].Taken)
}

// out is the place of what is sent to a site among the budgets.
func (s *script) out(site string) int {
	for i, b := range s.ledger.Budgets() {
		if b.Site == site && !b.Inbound {
			return i
		}
	}
	s.t.Fatal("no budget of " + site)
	return 0
}
