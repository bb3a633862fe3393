package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/lab"
	"ringway/test/lab/capture"
	"ringway/test/polltest"
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
			polltest.Require(t, func() bool { return near.Streams(25) >= 2 && far.Streams(25) >= 2 },
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

			echoed(t, near, far, 0)
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

// echoed demands that each packet of media arrives, comes back and arrives again, and counts them. NAT changes
// addresses, so that packets are told by their numbers. Those of the source foreign are somebody else's.
func echoed(t *testing.T, near, far *capture.Capture, foreign uint32) int {
	t.Helper()
	numbers := func(c *capture.Capture) (out, in []string) {
		seen, err := c.Stop()
		require.NoError(t, err)
		for _, p := range seen.Packets {
			name := fmt.Sprintf("%08x %05d", p.Key.SSRC, p.Seq)
			switch {
			case p.Key.SSRC == foreign:
			case p.Outgoing:
				out = append(out, name)
			default:
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
	return len(nearOut)
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

// A phone that is registered with a PBX in the internet is called when it has sent nothing for long, though the kernel
// forgets a UDP connection after 30 s, or after 120 s where both ends went on sending. Another one, which only asked
// the PBX something, has no way in by then.
func TestLongAProviderCallsARegisteredPhone(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	registered := udpOn(t, l.Host(lab.PhoneA), fieldA+":5060")
	stranger := udpOn(t, l.Host(lab.PhoneA), fieldA+":5064")
	provider := udpOn(t, l.Host(lab.Provider), providerAt+":5060")
	f := &field{t: t, l: l, id: "outside"}

	contact := []string{"Contact: <sip:anna@" + fieldA + ">;expires=600"}
	seenAt := arrives(t, registered, provider, providerAt+":5060",
		f.text(said{by: "a", start: "REGISTER", more: contact}))
	arrives(t, provider, registered, seenAt,
		f.text(said{by: "b", start: "200 OK", of: "REGISTER", tag: "pbx", more: contact}))
	strangerAt := arrives(t, stranger, provider, providerAt+":5060",
		f.text(said{by: "a", start: "OPTIONS", callID: "s"}))
	arrives(t, provider, stranger, strangerAt,
		f.text(said{by: "b", start: "200 OK", of: "OPTIONS", callID: "s", tag: "p"}))

	// The kernel has to forget the stranger's first.
	require.True(t, polled(150*time.Second, func() bool {
		out, err := l.Edge("a").Run(within(t, 5*time.Second), "conntrack", "-L", "-p", "udp")
		require.NoError(t, err)
		return !strings.Contains(out, "sport=5064")
	}))
	invite := f.text(said{by: "b", start: "INVITE", caller: "b", callID: "in", body: audio(providerAt, 20000)})
	sendUDP(t, provider, strangerAt, strings.ReplaceAll(invite, "Call-ID: in", "Call-ID: no"))
	arrives(t, provider, registered, seenAt, invite)
	list := callsOf(t, l.Edge("a"))
	require.Len(t, list, 1, "the stranger's did not come through the box")
	assert.Equal(t, [2]string{providerAt, fieldA}, list[0].Hops)

	ok := f.text(said{by: "a", start: "200 OK", caller: "b", callID: "in", tag: "ta", body: audio(fieldA, 40000)})
	arrives(t, registered, provider, providerAt+":5060", ok)
	want := []string{
		fieldA + " . " + providerAt + " . 20000", fieldA + " . " + providerAt + " . 20001",
		providerAt + " . " + fieldA + " . 40000", providerAt + " . " + fieldA + " . 40001",
	}
	var holes []string
	polled(holeLeft, func() bool {
		holes = holesOf(t, l.Edge("a"))
		return slices.Equal(want, holes)
	})
	assert.Equal(t, want, holes)
}

const providerAt = "198.51.100.1"

func sendUDP(t *testing.T, from net.PacketConn, to, text string) {
	t.Helper()
	_, err := from.WriteTo([]byte(text), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
	require.NoError(t, err)
}

// arrives sends a message, and demands that it arrives as it is. from is what the receiver sees.
func arrives(t *testing.T, sender, receiver net.PacketConn, to, text string) (from string) {
	t.Helper()
	sendUDP(t, sender, to, text)
	require.NoError(t, receiver.SetReadDeadline(time.Now().Add(5*time.Second)))
	got := make([]byte, 1<<16)
	n, at, err := receiver.ReadFrom(got)
	require.NoError(t, err, "the message did not arrive: %s", text)
	require.Equal(t, text, string(got[:n]))
	return at.String()
}

// The WAN gets another address while phones are registered with a PBX in the internet. The connection of one is reset
// at once, so that it registers again, by the new address; of another, over UDP, it is said that calls no longer reach
// it.
func TestPhonesOfALineThatMoved(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	e := l.Edge("a")
	f := &field{t: t, l: l, id: "moved"}
	register := func(user, at string) (request, response string) {
		contact := []string{"Contact: <sip:" + user + "@" + at + ">;expires=600"}
		request = f.text(said{by: "a", start: "REGISTER", callID: user, more: contact})
		ok := said{by: "b", start: "200 OK", of: "REGISTER", callID: user, tag: "pbx", more: contact}
		response = f.text(ok)
		rename := strings.NewReplacer("sip:anna@", "sip:"+user+"@", "sip:ben@", "sip:"+user+"@")
		return rename.Replace(request), rename.Replace(response)
	}
	// overTCP has a phone register on a connection of its own, and returns that and where the PBX saw it.
	overTCP := func(port string) (phone net.Conn, seenAt string) {
		phone, pbx := connected(t, l.Host(lab.PhoneA), fieldA+":"+port, l.Host(lab.Provider), providerAt+":5060")
		request, response := register("carl", fieldA+":"+port)
		_, err := phone.Write([]byte(request))
		require.NoError(t, err)
		expectText(t, pbx, request)
		_, err = pbx.Write([]byte(response))
		require.NoError(t, err)
		expectText(t, phone, response)
		host, _, err := net.SplitHostPort(pbx.RemoteAddr().String())
		require.NoError(t, err)
		return phone, host
	}
	phone, seenAt := overTCP("40060")
	assert.Equal(t, edgeA, seenAt)
	request, response := register("dora", fieldA+":5062")
	byUDP := udpOn(t, l.Host(lab.PhoneA), fieldA+":5062")
	pbx := udpOn(t, l.Host(lab.Provider), providerAt+":5060")
	arrives(t, pbx, byUDP, arrives(t, byUDP, pbx, providerAt+":5060", request), response)

	text, err := e.Config()
	require.NoError(t, err)
	const moved = "198.51.100.7"
	require.NoError(t, e.WriteConfig([]byte(strings.ReplaceAll(string(text), edgeA+"/24", moved+"/24"))))
	_, err = e.Ringway(within(t, 10*time.Second), "reload")
	require.NoError(t, err)

	require.NoError(t, phone.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err = phone.Read(make([]byte, 1))
	require.ErrorIs(t, err, unix.ECONNRESET)
	_, seenAt = overTCP("40062")
	assert.Equal(t, moved, seenAt)

	require.True(t, polled(20*time.Second, func() bool {
		out, err := e.Ringway(within(t, 5*time.Second), "status")
		require.NoError(t, err)
		return strings.Contains(out, "registered over a line that is gone: 1.")
	}))
	out, err := e.Ringway(within(t, 5*time.Second), "phones")
	require.NoError(t, err)
	assert.Regexp(t, `(?m)^dora@\S+ +\S+ +\S+ +udp +wan0 as it was, gone `, out)
	assert.Regexp(t, `(?m)^carl@\S+ +\S+ +\S+ +tcp +wan0 +\d`, out)
}

// Who has registered is known to the process that takes the place of one that died, or is replaced: else NAT would
// forget the way by which calls come to the phone.
func TestRegistrationsOutliveTheRelay(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	e := l.Edge("a")
	f := &field{t: t, l: l, id: "known"}
	contact := []string{"Contact: <sip:dora@" + fieldA + ":5062>;expires=600"}
	rename := strings.NewReplacer("sip:anna@", "sip:dora@", "sip:ben@", "sip:dora@")
	phone, pbx := udpOn(t, l.Host(lab.PhoneA), fieldA+":5062"), udpOn(t, l.Host(lab.Provider), providerAt+":5060")
	request := rename.Replace(f.text(said{by: "a", start: "REGISTER", more: contact}))
	seenAt := arrives(t, phone, pbx, providerAt+":5060", request)
	arrives(t, pbx, phone, seenAt,
		rename.Replace(f.text(said{by: "b", start: "200 OK", of: "REGISTER", tag: "pbx", more: contact})))
	known := func() string {
		out, err := e.Ringway(within(t, 5*time.Second), "phones")
		if err != nil {
			return err.Error()
		}
		return out
	}
	assert.Contains(t, known(), "dora@")

	before := callsStatus(t, e).PID
	killProcess(t, e.Host, before)
	polltest.Require(t, func() bool { return callsStatus(t, e).PID != before && strings.Contains(known(), "dora@") },
		10*time.Second, 100*time.Millisecond, "the next process knows who has registered")
	before = callsStatus(t, e).PID
	_, err := e.Ringway(within(t, 20*time.Second), "upgrade-planes", "calls")
	require.NoError(t, err)
	assert.NotEqual(t, before, callsStatus(t, e).PID)
	assert.Contains(t, known(), "dora@")
}
