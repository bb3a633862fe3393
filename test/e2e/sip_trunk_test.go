package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
	"ringway/test/lab/capture"
)

// A phone calls a trunk in the internet, through NAT, over UDP and over TCP. The provider sees the address of the WAN
// alone, media flows both ways, and nothing of the call stays open after it.
//
//	phone-a 10.1.10.10 --- edge-a 198.51.100.2 --- 198.51.100.1 provider: SIPp, which echoes media
func TestATrunkBehindNAT(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	for _, transport := range []string{"u1", "t1"} {
		t.Run(transport, func(t *testing.T) {
			e, p := l.Edge("a"), l.Pair(lab.Ringway)
			wan, err := capture.StartFrames(l.Host(lab.Provider).NetPath(), "wan-a")
			require.NoError(t, err)
			near, far := mediaAt(t, l.Host(lab.PhoneA), "eth0"), mediaAt(t, l.Host(lab.Provider), "wan-a")
			calls, err := p.Dial(t.Context(), 1, 1500*time.Millisecond, lab.Dialing{
				Transport: transport, Outside: true, Ramp: 100 * time.Millisecond,
			})
			require.NoError(t, err)
			require.Eventually(t, func() bool { return near.Streams(25) >= 2 && far.Streams(25) >= 2 },
				10*time.Second, 20*time.Millisecond, "no media")

			list := callsOf(t, e)
			require.Len(t, list, 1)
			assert.Equal(t, [2]string{"10.1.10.10", "198.51.100.1"}, list[0].Hops)
			assert.Equal(t, "confirmed", list[0].State)
			holes := holesSettle(t, e, 4) // RTP and RTCP, both ways
			assert.Contains(t, holes, "10.1.10.10 . 198.51.100.1 . 20000")
			result, err := calls.Wait(t.Context())
			require.NoError(t, err)
			assert.Equal(t, 1, result.Completed, result.Why)
			noHoles(t, l)

			echoed(t, near, far)
			onlyTheWANsAddress(t, wan)
			assert.Empty(t, callsStatus(t, e).NotOpen)
			assert.Empty(t, callsStatus(t, e).Refused)
		})
	}
}

// mediaAt records RTP at an interface.
func mediaAt(t *testing.T, h *lab.Host, device string) *capture.Capture {
	t.Helper()
	c, err := capture.Start(h.NetPath(), device, capture.Ports{Low: 20000, High: 22000})
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = c.Stop() })
	return c
}

// echoed demands that each packet of media arrives, comes back and arrives again. NAT changes addresses, so that
// packets are told by their numbers.
func echoed(t *testing.T, near, far *capture.Capture) {
	t.Helper()
	numbers := func(c *capture.Capture) (out, in []string) {
		seen, err := c.Stop()
		require.NoError(t, err)
		for _, p := range seen.Packets {
			name := fmt.Sprintf("%08x %05d", p.Key.SSRC, p.Seq)
			if p.Outgoing {
				out = append(out, name)
			} else {
				in = append(in, name)
			}
		}
		slices.Sort(out)
		slices.Sort(in)
		return out, in
	}
	nearOut, nearIn := numbers(near)
	farOut, farIn := numbers(far)
	assert.Greater(t, len(nearOut), 50)
	assert.Equal(t, nearOut, farIn, "to the provider")
	assert.Equal(t, farIn, farOut, "the provider echoes")
	assert.Equal(t, farOut, nearIn, "to the phone")
	t.Logf("%d voice packets there and back", len(nearOut))
}

// onlyTheWANsAddress demands that what left berlin's WAN has its address, and that the call's packets were among it.
func onlyTheWANsAddress(t *testing.T, wan *capture.Frames) {
	t.Helper()
	frames, err := wan.Stop()
	require.NoError(t, err)
	kinds := map[capture.Kind]int{}
	for _, f := range frames {
		if f.Outgoing || !f.Source.IsValid() {
			continue // what the provider sends, and what is no IP
		}
		kinds[f.Kind]++
		if f.Source.Addr().Is4() {
			assert.Equal(t, edgeA, f.Source.Addr().String(), "%s > %s, %s", f.Source, f.Destination, f.Kind)
		}
		if f.Kind == capture.RTP && f.Destination.Addr() == netip.MustParseAddr("198.51.100.1") {
			assert.EqualValues(t, expedited, f.DSCP, "class media")
		}
	}
	assert.GreaterOrEqual(t, kinds[capture.SIP], 3, "INVITE, ACK, BYE: %v", kinds)
	assert.Greater(t, kinds[capture.RTP], 50, "%v", kinds)
}
