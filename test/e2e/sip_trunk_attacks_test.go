package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/lab"
)

// trunk2 is another trunk in the provider's network, which the test plays.
const trunk2 = "198.51.100.3"

// A phone has a call over a trunk, through NAT, while somebody on the WAN attacks it, with an address of his own and
// with the trunk's, which nothing on a WAN prevents. The call loses no packet. What he could do is measured at the
// phone; with ATTACKS_TRUNK_TABLE it is written to that file (docs/results/attacks.md).
//
//	phone-a 10.1.10.10 --- edge-a 198.51.100.2 --- 198.51.100.1 trunk: SIPp, which echoes media
//	                                           --- 198.51.100.1xx attacker
func TestLongAttacksOnACallOverATrunk(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", map[string]string{
		"sip.limits.phone": "50", "sip.servers": `[{name: trunk, address: [` + providerAt + `, ` + trunk2 + `]}]`,
	})})
	require.NoError(t, l.Host(lab.Provider).IP(t.Context(), nil, "addr add "+trunk2+"/24 dev wan-a"))
	r := &attackRange{t: t, l: l}
	place := &origin{name: "WAN", host: lab.Provider, prefix: "198.51.100."}
	e := l.Edge("a")

	signalling := listenTo(t, l.Host(lab.PhoneA))
	near, far := mediaAt(t, l.Host(lab.PhoneA), "eth0"), mediaAt(t, l.Host(lab.Provider), "wan-a")
	calls, err := l.Pair(lab.Ringway).Dial(t.Context(), 1, 20*time.Second, lab.Dialing{
		Outside: true, Ramp: 100 * time.Millisecond,
	})
	require.NoError(t, err)
	t.Cleanup(func() { tellAbout(t, l) })
	heard := func() bool { return near.Streams(25) >= 2 && far.Streams(25) >= 2 }
	require.True(t, polled(10*time.Second, heard), "no media")
	r.overhear(signalling.stop())
	other := newTrunkCall(t, l)
	r.holes = r.openHoles()
	signals, media := mapped(t, e, "10.1.10.10", providerAt+":5060"), mapped(t, e, "10.1.10.10", providerAt+":20000")

	for _, a := range []struct {
		name    string
		reaches bool
		try     func(o *outcome)
	}{
		{"RTP to the open port, own address", false, func(o *outcome) {
			o.sent = r.volley(place.address+":20000", media, rtpOf, injections)
		}},
		{"RTP to the open port, the trunk's address, another port", false, func(o *outcome) {
			o.sent = r.volley(providerAt+":20002", media, rtpOf, injections)
		}},
		{"RTP to closed ports, the trunk's address", false, func(o *outcome) {
			for port := range uint16(injections) {
				to := netip.AddrPortFrom(media.Addr(), 21000+port)
				o.sent += r.volley(providerAt+":20000", to, rtpOf, 1)
			}
		}},
		{"RTP to the open port, the trunk's address and port", true, func(o *outcome) {
			o.sent = r.volley(providerAt+":20000", media, rtpOf, injections)
			o.can = "the phone gets it as the trunk's"
		}},
		{"flood: 3,000 OPTIONS, own address", false, func(o *outcome) {
			o.sent = r.volley(place.address+":5060", signals, optionsFrom(place.address), 3000)
		}},
		{"flood: 3,000 OPTIONS, the trunk's address", true, func(o *outcome) {
			o.sent = r.volley(providerAt+":5060", signals, optionsFrom(providerAt), 3000)
			o.can = "the trunk's own messages share its limit"
		}},
		{"forged BYE with all that was overheard, own address", false, func(o *outcome) {
			bye := func(i int) []byte { return []byte(r.trunkBye(r.farDialog, i)) }
			o.sent = r.volley(place.address+":5060", signals, bye, 10)
		}},
		{"forged BYE, the trunk's address, the tags guessed", true, func(o *outcome) {
			guessed := strings.NewReplacer(";tag=caller", ";tag=guessed", ";tag=tb", ";tag=guess")
			bye := guessed.Replace(r.trunkBye(other.dialog, 0))
			o.only = "BYE sip:"
			o.sent = r.volley(trunk2+":5060", other.mapped, func(int) []byte { return []byte(bye) }, 1)
			require.Equal(t, bye, other.answers(bye, "481 Call/Transaction Does Not Exist"))
			r.settle()
			assert.True(t, other.isUp(), "a BYE with guessed tags ends nothing, nor does the answer to it")
			o.can = "the phone answers 481; the call goes on"
		}},
		{"forged BYE, the trunk's address, with all that was overheard", true, func(o *outcome) {
			bye := r.trunkBye(other.dialog, 1)
			o.only = "BYE sip:"
			o.sent = r.volley(trunk2+":5060", other.mapped, func(int) []byte { return []byte(bye) }, 1)
			require.Equal(t, bye, other.answers(bye, "200 OK"))
			o.can = "the call goes on"
			if polled(time.Second, func() bool { return !other.isUp() }) {
				o.can = "the call is ended, its holes are closed"
			}
		}},
	} {
		r.attack(a.name, place, func(*origin) *outcome {
			o := &outcome{}
			a.try(o)
			r.settle()
			return o
		})
		o := r.all[len(r.all)-1]
		assert.Equal(t, a.reaches, o.reached > 0, "%s: %d of %d reached the phone", a.name, o.reached, o.sent)
		assert.Empty(t, o.holes, a.name)
		if !a.reaches {
			assert.NotEmpty(t, o.why, "%s is counted", a.name)
		}
	}

	list := callsOf(t, e)
	require.Len(t, list, 1, "the call over the trunk")
	assert.Equal(t, "confirmed", list[0].State)
	assert.Empty(t, r.bans(), "the trunk is not banned, nor anybody whose packets do not pass")
	result, err := calls.Wait(t.Context())
	require.NoError(t, err)
	assert.Equal(t, 1, result.Completed, result.Why)
	there := echoed(t, near, far, injectedSSRC)
	r.voice = fmt.Sprintf("Of the call over the trunk, %d voice packets were sent there and came back.", there)
	noHoles(t, l)
	assert.Zero(t, callsStatus(t, e).Restarts)
	r.write(os.Getenv("ATTACKS_TRUNK_TABLE"))
}

// volley sends datagrams from an address that may be another's to edge-a.
func (r *attackRange) volley(from string, to netip.AddrPort, payload func(i int) []byte, n int) (sent int) {
	r.t.Helper()
	src := netip.MustParseAddrPort(from)
	packets := make([][]byte, n)
	for i := range packets {
		packets[i] = ip4(unix.IPPROTO_UDP, src.Addr(), to.Addr(), udp4(src, to, payload(i)))
	}
	r.raw(lab.Provider, to.Addr(), packets...)
	return n
}

// mapped is where NAT has what a host sends to an address outside.
func mapped(t *testing.T, e *lab.Edge, from, to string) netip.AddrPort {
	t.Helper()
	at := netip.MustParseAddrPort(to)
	out, err := e.Run(within(t, 5*time.Second), "conntrack", "-L", "-p", "udp", "-d", at.Addr().String())
	require.NoError(t, err)
	found := regexp.MustCompile(fmt.Sprintf(`src=%s dst=%s sport=\d+ dport=%d .*src=%s dst=(\S+) sport=%d dport=(\d+)`,
		from, at.Addr(), at.Port(), at.Addr(), at.Port())).FindStringSubmatch(out)
	require.Len(t, found, 3, out)
	return netip.MustParseAddrPort(found[1] + ":" + found[2])
}

func optionsFrom(address string) func(i int) []byte {
	return func(i int) []byte {
		return []byte(request("OPTIONS", "eve", address, edgeA, fmt.Sprintf("flood%d", i), 1))
	}
}

// trunkBye is a BYE of a dialog, as its far end would send it.
func (r *attackRange) trunkBye(dialog []string, i int) string {
	return sip("", append([]string{
		"BYE sip:" + mark + "@" + edgeA + " SIP/2.0",
		fmt.Sprintf("Via: SIP/2.0/UDP %s:5060;branch=z9hG4bK%s%d", trunk2, mark, i),
	}, append(dialog[:3:3], fmt.Sprintf("CSeq: %d BYE", 90+i), "Max-Forwards: 70")...)...)
}

// trunkCall is a call between a phone and the other trunk, message by message.
type trunkCall struct {
	t      *testing.T
	l      *lab.Lab
	phone  net.PacketConn
	mapped netip.AddrPort // of the phone's signalling, at the WAN
	dialog []string       // as the trunk sends it
}

func newTrunkCall(t *testing.T, l *lab.Lab) *trunkCall {
	t.Helper()
	c := &trunkCall{t: t, l: l, phone: udpOn(t, l.Host(lab.PhoneA), fieldA+":5062")}
	trunk := udpOn(t, l.Host(lab.Provider), trunk2+":5060")
	f := &field{t: t, l: l, id: "other"}
	const to = trunk2 + ":5060"
	seenAt := arrives(t, c.phone, trunk, to, f.text(said{by: "a", start: "INVITE", body: audio(fieldA, 40000)}))
	c.mapped = netip.MustParseAddrPort(seenAt)
	arrives(t, trunk, c.phone, seenAt, f.text(said{by: "b", start: "200 OK", tag: "tb", body: audio(trunk2, 7000)}))
	arrives(t, c.phone, trunk, to, f.text(said{by: "a", start: "ACK", tag: "tb", branch: "ack"}))
	c.dialog = []string{
		"From: <sip:ben@" + fieldB + ">;tag=tb", "To: <sip:anna@" + fieldA + ">;tag=caller", "Call-ID: other",
	}
	require.True(t, c.isUp())
	return c
}

// isUp reports whether the box follows the call.
func (c *trunkCall) isUp() bool {
	c.t.Helper()
	for _, x := range callsOf(c.t, c.l.Edge("a")) {
		if x.CallID == "other" {
			return x.State == "confirmed"
		}
	}
	return false
}

// answers has the phone answer a request that came, and is what came.
func (c *trunkCall) answers(request, status string) (came string) {
	c.t.Helper()
	polled(5*time.Second, func() bool { came = waiting(c.t, c.phone); return came != "" })
	_, fields, _ := strings.Cut(request, "\r\n")
	fields, _, _ = strings.Cut(fields, "\r\nMax-Forwards")
	sendUDP(c.t, c.phone, trunk2+":5060", sip("", append([]string{"SIP/2.0 " + status},
		strings.Split(fields, "\r\n")...)...))
	return came
}
