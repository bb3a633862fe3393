package nft

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/firewall"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

const ef, cs3 = 46 << 2, 24 << 2

// holes opens a hole for each "source . destination . port".
func (r *relay) holes(keys ...string) {
	r.t.Helper()
	require.NoError(r.t, owner(r.t, r.sets, "media4").Add(r.t.Context(), time.Minute, keys...))
}

func (r *relay) closeHoles(keys ...string) {
	r.t.Helper()
	require.NoError(r.t, owner(r.t, r.sets, "media4").Delete(r.t.Context(), keys...))
}

func portOf(c *net.UDPConn) int { return c.LocalAddr().(*net.UDPAddr).Port }

// assertClosed sends a datagram and waits for the rules to have dropped it.
func (r *relay) assertClosed(from *net.UDPConn, host string, port, tos int, what string) {
	r.t.Helper()
	had := r.counters()[firewall.CounterSIPClosed].Packets
	r.send(from, host, port, tos)
	r.assertCounter(firewall.CounterSIPClosed, had+1, what)
}

// assertPasses sends a datagram to a receiver that waits for it.
func (r *relay) assertPasses(from, to *net.UDPConn, tos int, what string) {
	r.t.Helper()
	at := to.LocalAddr().(*net.UDPAddr)
	r.send(from, at.IP.String(), at.Port, tos)
	r.receive(to, what)
}

// T7. `established` outlives a hole, and the rules that need one come first: the flow ends with its hole, in both
// directions, though conntrack still has it.
func TestAFlowEndsWithItsHole(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Enforce))
	phone, pbx := r.listen(r.phone, phone4, 21000), r.listen(r.far, farPBX4, 20000)
	there, back := farPBX4+" . "+phone4+" . 21000", phone4+" . "+farPBX4+" . 20000"
	r.holes(there, back)
	for range 2 {
		r.assertPasses(pbx, phone, 0, "from the PBX")
		r.assertPasses(phone, pbx, 0, "from the phone")
	}
	r.closeHoles(there, back)
	r.assertClosed(pbx, phone4, 21000, 0, "from the PBX")
	r.assertClosed(phone, farPBX4, 20000, 0, "from the phone")
	assert.NotEmpty(t, r.tracked(" sport=20000 dport=21000 "), "conntrack has the flow")

	// A provider's, behind NAT: what comes back has the phone's address again where the rules are.
	provider := r.listen(r.internet, internet4, 20002)
	there, back = internet4+" . "+phone4+" . 21000", phone4+" . "+internet4+" . 20002"
	r.holes(there, back)
	r.send(phone, internet4, 20002, 0)
	_, outside := r.payloadOf(provider, "to a provider")
	assert.Equal(t, boxWAN4, outside.Addr().String())
	answer := func() { r.send(provider, boxWAN4, int(outside.Port()), 0) }
	answer()
	r.receive(phone, "from a provider")
	r.closeHoles(there)
	had := r.counters()[firewall.CounterSIPClosed].Packets
	answer()
	r.assertCounter(firewall.CounterSIPClosed, had+1, "from a provider")
	r.assertPasses(phone, provider, 0, "the other direction has a hole of its own")
	r.closeHoles(back)
	r.assertClosed(phone, internet4, 20002, 0, "to a provider")
}

// What has no hole, and no open port, does not pass between phones and anybody outside.
func TestWithoutAHoleUDPIsClosed(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Enforce))
	for _, c := range []struct {
		what     string
		from     *netnstest.NS
		src, dst string
	}{
		{"to a far phone", r.phone, phone4, farPhone4},
		{"to a far phone over IPv6", r.phone, phone6, farOther6},
		{"to a far PBX", r.phone, phone4, farPBX4},
		{"to a provider", r.phone, phone4, internet4},
		{"to a PC", r.phone, phone4, pc4},
		{"from a far phone", r.far, farPhone4, phone4},
		{"from a far phone over IPv6", r.far, farOther6, phone6},
		{"from a far PBX", r.far, farPBX4, phone4},
		{"from a PC", r.pc, pc4, phone4},
		{"from the internet", r.internet, internet6, phone6},
	} {
		for _, tos := range []int{0, ef} {
			r.assertClosed(r.listen(c.from, c.src, 0), c.dst, 20000, tos, c.what)
		}
	}

	// A source port alone opens nothing, be it SIP's, a class's, a server's or an allowed one.
	r.release("sip_udp")
	for _, c := range []struct {
		src  string
		port int
	}{{farPhone4, 5060}, {farPhone4, 3478}, {farPBX4, 7000}, {farPhone4, 9005}} {
		r.assertClosed(r.listen(r.far, c.src, c.port), phone4, 20000, 0, fmt.Sprint("from port ", c.port))
	}
	r.assertClosed(r.listen(r.far, farPhone6, 20000), phone6, 20000, 0, "from a network that Allow lists")
	r.assertClosed(r.listen(r.phone, phone4, 5060), farPhone4, 20000, 0, "from a phone's SIP port")
}

// What stays open without a hole: services, SIP that passes unread, what Allow lists, and the answers to it.
func TestOpenPortsNeedNoHole(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Enforce))
	r.release("sip_udp")
	for _, c := range []struct {
		what     string
		from, to *netnstest.NS
		src, dst string
		port     int
	}{
		{"a service below 1024", r.phone, r.pc, phone4, pc4, 123},
		{"a class's port", r.phone, r.far, phone4, farPhone4, 3478},
		{"a class's port in a data network", r.phone, r.far, phone4, farPC4, 3478},
		{"a class's port at a provider over IPv6", r.phone, r.internet, phone6, internet6, 3478},
		{"SIP unread", r.phone, r.far, phone4, farPhone4, 5060},
		{"SIP unread, by a port that no class has", r.phone, r.far, phone4, farPhone4, 5092},
		{"SIP unread, to a phone", r.far, r.phone, farPhone4, phone4, 5060},
		{"a server's own port, unread", r.phone, r.far, phone4, farPBX4, 7000},
		{"what Allow lists", r.phone, r.far, phone4, farPhone4, 9005},
		{"what Allow lists, with all ports", r.phone, r.far, phone6, farPhone6, 20000},
	} {
		from, to := r.listen(c.from, c.src, 0), r.listen(c.to, c.dst, c.port)
		if c.dst == farPBX4 {
			// The policy between the networks still holds for what needs no hole.
			had := r.counters()[firewall.CounterVoiceDataApart].Packets
			r.send(from, c.dst, c.port, 0)
			r.assertCounter(firewall.CounterVoiceDataApart, had+1, c.what)
			continue
		}
		for range 2 {
			r.assertPasses(from, to, 0, c.what)
			r.assertPasses(to, from, 0, c.what+": the answer")
		}
		from.Close()
		to.Close()
	}
	assert.Zero(t, r.counters()[firewall.CounterSIPClosed].Packets)
	r.assertClosed(r.listen(r.phone, phone4, 0), farPhone4, 9011, 0, "beside what Allow lists")
}

// Networks that are none of the phones', and phones of one box, are not concerned.
func TestEnforcementConcernsPhonesAlone(t *testing.T) {
	t.Parallel()
	in := signalled(firewall.Enforce)
	in.Voice = append(in.Voice, firewall.LAN{Device: "voice1", Networks: prefixes("10.1.30.0/24")})
	r := newRelay(t, in)
	second := netnstest.New(t)
	netnstest.Veth(t, r.edge, "voice1", second, "eth0")
	r.edge.Run("ip", "addr", "add", "10.1.30.1/24", "dev", "voice1")
	second.IP("addr add 10.1.30.2/24 dev eth0", "route add default via 10.1.30.1")
	r.assertPasses(r.listen(r.phone, phone4, 0), r.listen(second, "10.1.30.2", 20000), 0, "between voice LANs")
	r.assertPasses(r.listen(r.pc, pc4, 0), r.listen(r.far, farPC4, 20000), 0, "between data networks")
	_, err := r.phone.Try("ping", "-c1", "-W2", farPhone4)
	require.NoError(t, err, "no UDP")
	assert.Zero(t, r.counters()[firewall.CounterSIPClosed].Packets)
}

// With a set of devices it is enforced only while the set's owner says so: one that is gone blocks nobody's calls.
func TestEnforcementEndsWithItsOwner(t *testing.T) {
	t.Parallel()
	in := signalled(firewall.Enforce)
	in.Dynamic = append(in.Dynamic, firewall.EnforcedSet("calls", 16, time.Minute))
	r := newRelay(t, in)
	enforced := owner(t, r.sets, firewall.SetEnforced)
	phone, far := r.listen(r.phone, phone4, 21000), r.listen(r.far, farPhone4, 20000)
	r.assertPasses(phone, far, 0, "nobody enforces yet")

	require.NoError(t, enforced.Add(t.Context(), time.Minute, "voice0"))
	r.assertClosed(phone, farPhone4, 20000, 0, "from a phone")
	r.assertClosed(far, phone4, 21000, 0, "to a phone")
	require.NoError(t, enforced.Refresh(t.Context(), 100*time.Millisecond, "voice0"))
	polltest.Assert(t, func() bool {
		r.send(phone, farPhone4, 20000, 0)
		require.NoError(t, far.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
		_, err := far.Read(make([]byte, 100))
		return err == nil
	}, 5*time.Second, 10*time.Millisecond, "its life is over")
}

// With Unread, what voice networks mark as media passes as it would without SIP, and so do the answers.
func TestMarkedMediaPassesUnread(t *testing.T) {
	t.Parallel()
	in := signalled(firewall.Enforce)
	in.Signalling.Unread = true
	r := newRelay(t, in)
	phone, far := r.listen(r.phone, phone4, 21000), r.listen(r.far, farPhone4, 20000)
	r.assertClosed(phone, farPhone4, 20000, 0, "unmarked")
	r.assertClosed(far, phone4, 21000, 0, "unmarked, of a far phone")
	r.assertPasses(phone, far, ef, "EF")
	r.assertPasses(far, phone, 0, "the answer, unmarked")
	r.assertClosed(phone, farPhone4, 20000, cs3, "marked as something else")

	second, third := r.listen(r.phone, phone4, 21002), r.listen(r.far, farPhone4, 20002)
	r.assertPasses(third, second, ef, "EF of a far phone")
	r.assertPasses(second, third, 0, "the answer of a phone, unmarked")
	r.assertPasses(r.listen(r.phone, phone6, 0), r.listen(r.far, farOther6, 20006), ef, "EF over IPv6")
	r.assertPasses(r.listen(r.far, farOther6, 0), r.listen(r.phone, phone6, 21006), ef, "EF of a far phone over IPv6")

	provider := r.listen(r.internet, internet4, 20004)
	r.assertPasses(phone, provider, ef, "EF to a provider")
	r.send(provider, boxWAN4, portOf(phone), 0)
	r.receive(phone, "the answer of a provider")

	r.assertClosed(r.listen(r.far, farPBX4, 0), phone4, 21000, ef, "EF of a data network")
	r.assertClosed(r.listen(r.pc, pc4, 0), phone4, 21000, ef, "EF of a PC")
	r.assertClosed(r.listen(r.internet, internet6, 0), phone6, 21000, ef, "EF of the internet")
}

// Where it is only observed, nothing is blocked that passed before.
func TestObservedMediaPasses(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Observe))
	r.assertPasses(r.listen(r.phone, phone4, 0), r.listen(r.far, farPhone4, 20000), 0, "to a far phone")
	r.assertPasses(r.listen(r.far, farPhone4, 0), r.listen(r.phone, phone4, 20000), 0, "from a far phone")
	r.assertPasses(r.listen(r.phone, phone4, 0), r.listen(r.internet, internet4, 20000), 0, "to a provider")
	pbx, phone := r.listen(r.far, farPBX4, 0), r.listen(r.phone, phone4, 21000)
	r.send(pbx, phone4, 21000, 0)
	r.assertCounter(firewall.CounterVoiceDataApart, 1, "by the policy, as ever")
	r.holes(farPBX4 + " . " + phone4 + " . 21000")
	r.assertPasses(pbx, phone, 0, "and holes open")
	assert.Zero(t, r.counters()[firewall.CounterSIPClosed].Packets)
}

// What has a hole is media, however it is marked and whatever its connection was before.
func TestMediaIsKnownByItsHole(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Observe))
	key := func(from, to string, port int) string { return fmt.Sprintf("%s . %s . %d", from, to, port) }
	for _, c := range []struct {
		what     string
		from, to *netnstest.NS
		src, dst string
		tos      int
		device   string
		mark     uint32
		arrives  int
	}{
		{"of a phone, unmarked", r.phone, r.far, phone4, farPhone4, 0, "rw-voice", 0x1200, ef},
		{"of a phone, marked as signalling", r.phone, r.far, phone4, farPhone4, cs3, "rw-voice", 0x1200, ef},
		{"of a phone to a far data network", r.phone, r.far, phone4, farPBX4, 0, "rw-voice", 0x1200, ef},
		{"of a PC", r.pc, r.far, pc4, farPhone4, 0, "rw-voice", 0x1200, ef},
		{"from the voice tunnel, marked as signalling", r.far, r.phone, farPBX4, phone4, cs3, "voice0", 0x1200, ef},
		// A class of the voice tunnel would be a martian's.
		{"from the data tunnel", r.far, r.phone, farPC4, phone4, ef, "voice0", 0x1600, 0},
	} {
		from, to := r.listen(c.from, c.src, 0), r.listen(c.to, c.dst, 0)
		r.holes(key(c.src, c.dst, portOf(to)))
		r.send(from, c.dst, portOf(to), c.tos)
		assert.Equal(t, c.arrives, r.receive(to, c.what), c.what)
		r.assertSeen(c.device, portOf(to), c.mark, "[0-9a-z:]+", "[a-z0-9]+")
		from.Close()
		to.Close()
	}

	// A provider: the connection was data before the hole, and what comes back matches none.
	phone, provider := r.listen(r.phone, phone4, 21000), r.listen(r.internet, internet4, 20000)
	r.assertPasses(phone, provider, 0, "before the hole")
	r.assertSeen("wan0", 20000, 0x600, "1:30", "cs0")
	r.holes(key(phone4, internet4, 20000))
	r.assertPasses(phone, provider, 0, "with a hole")
	r.assertSeen("wan0", 20000, 0x200, "1:10", "ef")
	r.send(provider, boxWAN4, 21000, 0)
	assert.Equal(t, ef, r.receive(phone, "the answer"))
	r.assertSeen("voice0", 21000, 0x200, "2:e0", "ef")
}

// A site with one tunnel only: both tables lead to it, so that its media may have a class of the voice tunnel.
func TestMediaOfASiteWithOneTunnelIsKnownByItsHole(t *testing.T) {
	t.Parallel()
	in := signalled(firewall.Enforce)
	in.SingleSiteNetworks = prefixes("10.2.20.2/32")
	r := newRelay(t, in)
	r.edge.Run("ip", "route", "add", "10.2.20.2/32", "via", "192.0.2.6", "dev", "rw-data", "table", "5271")
	pbx, phone := r.listen(r.far, farPC4, 0), r.listen(r.phone, phone4, 21000)
	r.holes(farPC4 + " . " + phone4 + " . 21000")
	r.send(pbx, phone4, 21000, 0)
	assert.Equal(t, ef, r.receive(phone, "from the one tunnel"))
	r.assertSeen("voice0", 21000, 0x1200, "2:e0", "ef")
}
