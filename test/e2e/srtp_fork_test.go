package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
	"ringway/test/polltest"
)

// Two phones of the far branch answer with early media, one after the other, and the second one takes the call: whoever
// has answered last is heard and hears, under keys of his own between the boxes, and nothing is left of the other.
func TestReKeyedFork(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, Identities: true, EdgeConfig: rekeying("off", nil)})
	t.Cleanup(func() { tellAboutMedia(t, l) })
	channelsUp(t, l)
	f := &field{t: t, l: l, id: "fork", ends: map[string]net.PacketConn{
		"a": udpOn(t, l.Host(lab.PhoneA), fieldA+":5060"), "b": udpOn(t, l.Host(lab.PhoneB), fieldB+":5060"),
	}}
	caller := udpOn(t, l.Host(lab.PhoneA), fieldA+":40000")
	first, second := udpOn(t, l.Host(lab.PhoneB), fieldB+":7000"), udpOn(t, l.Host(lab.PhoneB), fieldB+":7100")

	toB := f.passReKeyed(said{by: "a", start: "INVITE", body: audio(fieldA, 40000)})
	toA := f.passReKeyed(said{by: "b", start: "183 Session Progress", tag: "tx", body: audio(fieldB, 7000)})
	f.heardBothWays(caller, first, toA, toB, 1)
	toA = f.passReKeyed(said{by: "b", start: "183 Session Progress", tag: "ty", body: audio(fieldB, 7100)})
	f.heardBothWays(caller, second, toA, toB, 2)
	toA = f.passReKeyed(said{by: "b", start: "200 OK", tag: "ty", body: audio(fieldB, 7100)})
	f.passReKeyed(said{by: "a", start: "ACK", tag: "ty", branch: "fork-1-ACK"})
	f.heardBothWays(caller, second, toA, toB, 3)
	agreed := func(legs int) {
		t.Helper()
		for _, side := range []string{"a", "b"} {
			polltest.Require(t, func() bool {
				_, k := rekeyedOf(t, l.Edge(side))
				return len(k.Sites) == 1 && k.Sites[0].Legs == legs && k.Sites[0].Sending == legs
			}, 5*time.Second, 50*time.Millisecond, "edge-%s: %d legs in its key channel", side, legs)
		}
	}
	agreed(1)
	f.passReKeyed(said{by: "a", start: "BYE", cseq: 90, tag: "ty"})
	f.passReKeyed(said{by: "b", start: "200 OK", of: "BYE", cseq: 90, tag: "ty"})
	agreed(0)
}

// passReKeyed sends a message to the other end, and returns the address that media is to be sent to by what arrives.
func (f *field) passReKeyed(m said) (media netip.AddrPort) {
	f.t.Helper()
	by, to := m.by, map[string]string{"a": "b", "b": "a"}[m.by]
	text := f.text(m)
	_, err := f.ends[by].WriteTo([]byte(text), f.ends[to].LocalAddr())
	require.NoError(f.t, err)
	require.NoError(f.t, f.ends[to].SetReadDeadline(time.Now().Add(5*time.Second)))
	got := make([]byte, 1<<16)
	n, _, err := f.ends[to].ReadFrom(got)
	require.NoError(f.t, err, "the message did not arrive: %s", text)
	var at netip.Addr
	for line := range strings.Lines(string(got[:n])) {
		line = strings.TrimSpace(line)
		var port uint16
		if address, is := strings.CutPrefix(line, "c=IN IP4 "); is {
			at = netip.MustParseAddr(address)
		} else if _, err := fmt.Sscanf(line, "m=audio %d ", &port); err == nil {
			media = netip.AddrPortFrom(at, port)
		}
	}
	return netip.AddrPortFrom(at, media.Port())
}

// heardBothWays demands that RTP of caller and callee comes to the other one. Packets of each stage have a number of
// their own.
func (f *field) heardBothWays(caller, callee net.PacketConn, toA, toB netip.AddrPort, stage byte) {
	f.t.Helper()
	for _, way := range []struct {
		what     string
		from, to net.PacketConn
		by       netip.AddrPort
	}{{"the callee", caller, callee, toA}, {"the caller", callee, caller, toB}} {
		p := make([]byte, 172)
		p[0], p[1], p[8], p[11] = 0x80, 8, stage, way.what[len(way.what)-1]
		got := make([]byte, 2048)
		number := byte(0)
		heard := polled(5*time.Second, func() bool {
			number++
			p[3] = number
			_, err := way.from.WriteTo(p, net.UDPAddrFromAddrPort(way.by))
			require.NoError(f.t, err)
			require.NoError(f.t, way.to.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
			for {
				n, from, err := way.to.ReadFrom(got)
				if err != nil {
					return false
				}
				if n == len(p) && got[8] == stage && got[11] == p[11] {
					assert.Contains(f.t, []string{toA.String(), toB.String()}, from.String())
					return true
				}
			}
		})
		require.True(f.t, heard, "stage %d: %s hears nothing", stage, way.what)
	}
}
