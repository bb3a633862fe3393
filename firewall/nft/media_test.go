package nft

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/firewall"
	"ringway/qos"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

// withMediaPorts is in with ports of class media, and TFTP for phones.
func withMediaPorts(in firewall.Input) firewall.Input {
	in.Classes = slices.Clone(in.Classes)
	for i, c := range in.Classes {
		switch c.Name {
		case qos.Media:
			in.Classes[i].Ports = []qos.PortMatch{{Protocol: qos.UDP, Low: 12000, High: 12999}}
		case qos.Data:
			in.Classes[i].Ports = append(slices.Clone(c.Ports), qos.PortMatch{Protocol: qos.UDP, Low: 69, High: 69})
		}
	}
	return in
}

// A PBX in a data network, whose media have ports of class media, and phones with ports of their own: whoever speaks
// first, either way, here and at a site.
func TestEitherEndOfMediaSpeaksFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withMediaPorts(branch()))
	for _, c := range []struct {
		name         string
		from         *netnstest.NS
		src          string
		sport        int
		to           *netnstest.NS
		dst          string
		dport        int
		dev          string
		mark         uint32
		there, again int // DSCP of the first packet, and of the answer, as they arrive
	}{
		{"PBX, phone here", w.pc, pc4, 12000, w.phone, phone4, 3000, "voice0", 0x200, ef, ef},
		{"phone, PBX here", w.phone, phone4, 3010, w.pc, pc4, 12010, "data0", 0x200, 0, ef},
		{"phone whose port is of the class, PBX here", w.phone, phone4, 12020, w.pc, pc4, 3020, "data0", 0x200, 0, ef},
		{"PBX, phone at a site", w.pc, pc4, 12030, w.far, farPhone4, 3030, "rw-voice", 0x1200, ef, ef},
		{"PBX at a site, phone here", w.far, "10.2.20.3", 12040, w.phone, phone4, 3040, "voice0", 0x1200, ef, ef},
		{"phone, PBX at a site", w.phone, phone4, 3050, w.far, "10.2.20.3", 12050, "rw-voice", 0x1200, ef, ef},
	} {
		from, to := w.listen(c.from, c.src, c.sport), w.listen(c.to, c.dst, c.dport)
		w.send(from, c.dst, c.dport, 0)
		assert.Equal(t, c.there, w.receive(to, c.name), c.name)
		w.assertSeen(c.dev, c.dport, c.mark, "[0-9a-z:]+", "[a-z0-9]+")
		w.send(to, c.src, c.sport, 0)
		again := c.again
		if c.from == w.pc { // DSCP is not written towards data networks
			again = 0
		}
		assert.Equal(t, again, w.receive(from, c.name+": answer"), c.name)
	}

	// No other way in: services of phones, other ports, what a PC marks, and the class towards data networks.
	before := w.counters()[firewall.CounterVoiceDataApart].Packets
	pc := w.listen(w.pc, pc4, 12060)
	w.send(pc, phone4, 80, 0)
	w.assertCounter(firewall.CounterVoiceDataApart, before+1, "from a port of media to a service of a phone")
	w.send(w.listen(w.pc, pc4, 4000), phone4, 3060, ef)
	w.assertCounter(firewall.CounterVoiceDataApart, before+2, "EF of a PC, no port of media")
	farPC := w.listen(w.far, farPC4, 3070)
	w.send(pc, farPC4, 3070, ef)
	assert.Equal(t, 0, w.receive(farPC, "between data networks"))
	w.assertSeen("rw-data", 3070, 0x1600, "none", "cs0")
}

// A connection rises to media with the first packet that a voice network marks, and stays there. What a PC marks raises
// nothing, and signalling, which may borrow the line, is for what a voice network began.
func TestAConnectionRisesToMedia(t *testing.T) {
	t.Parallel()
	in := withMediaPorts(branch())
	w := newWorld(t, in)

	phone, far := w.listen(w.phone, phone4, 5000), w.listen(w.far, farPhone4, 5002)
	pass := func(from, to *net.UDPConn, tos int) int {
		t.Helper()
		a := netip.MustParseAddrPort(to.LocalAddr().String())
		w.send(from, a.Addr().String(), int(a.Port()), tos)
		return w.receive(to, to.LocalAddr().String())
	}
	require.Equal(t, 0, pass(phone, far, 0), "the first packet is unmarked")
	require.Equal(t, ef, pass(phone, far, ef))
	assert.Equal(t, ef, pass(phone, far, 0), "what is not marked later is the connection's")
	assert.Equal(t, cs3, pass(phone, far, cs3), "a packet is judged by its own mark")
	assert.Equal(t, ef, pass(phone, far, 0), "and lowers nothing")
	w.assertSeen("rw-voice", 5002, 0x1200, "none", "ef")

	// The end that marks nothing speaks first, through the data tunnel; the far one marks.
	phone, far = w.listen(w.phone, phone4, 5010), w.listen(w.far, farPhone4, 5012)
	require.Equal(t, 0, pass(phone, far, 0))
	require.Equal(t, ef, pass(far, phone, ef))
	assert.Equal(t, ef, pass(phone, far, 0), "half of a call was media")

	// A PC cannot raise anything by itself, and media that it began follows the phone.
	pc := w.listen(w.pc, pc4, 5020)
	farPC := w.listen(w.far, farPC4, 5022)
	for range 3 {
		assert.Equal(t, 0, pass(pc, farPC, ef))
	}
	pc, phone = w.listen(w.pc, pc4, 5060), w.listen(w.phone, phone4, 5060)
	require.Equal(t, 0, pass(pc, phone, ef), "a PC began")
	require.Equal(t, cs3, pass(phone, pc, cs3), "a phone answers with signalling, whose mark is left as it is there")
	assert.Equal(t, 0, pass(pc, phone, 0), "a PC's connection does not become signalling")

	// What a voice network began does.
	phone, internet := w.listen(w.phone, phone4, 5030), w.listen(w.internet, internet4, 5032)
	require.Equal(t, 0, pass(phone, internet, 0))
	require.Equal(t, cs3, pass(phone, internet, cs3))
	assert.Equal(t, cs3, pass(phone, internet, 0))
}

// TFTP (RFC 1350): the answer comes from a port of the server's choice. Only to who asked, where he asked from.
func TestTFTPAnswersReachPhones(t *testing.T) {
	t.Parallel()
	enforced := withMediaPorts(signalled(firewall.Enforce))
	for name, in := range map[string]firewall.Input{"off": withMediaPorts(branch()), "enforced": enforced} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, in)
			dropped := firewall.CounterVoiceDataApart
			if in.Signalling.Mode == firewall.Enforce {
				dropped = firewall.CounterSIPClosed
			}
			for i, c := range []struct {
				ns   *netnstest.NS
				host string
			}{{w.pc, pc4}, {w.far, farPC4}} {
				ask, data := w.listen(c.ns, c.host, 69), w.listen(c.ns, c.host, 40000)
				phone := w.listen(w.phone, phone4, 2000+i)
				n := w.counters()[dropped].Packets
				w.send(data, phone4, 2000+i, 0)
				w.assertCounter(dropped, n+1, "nobody asked")
				w.send(phone, c.host, 69, 0)
				w.receive(ask, "request")
				for range 3 {
					w.send(data, phone4, 2000+i, 0)
					assert.Equal(t, 0, w.receive(phone, "data from another port"))
					w.send(phone, c.host, 40000, 0)
					w.receive(data, "acknowledgement")
				}
				n = w.counters()[dropped].Packets
				w.listen(w.phone, phone4, 2010+i)
				w.send(data, phone4, 2010+i, 0)
				w.assertCounter(dropped, n+1, "another port of the phone")
			}
			n := w.counters()[dropped].Packets
			w.send(w.listen(w.far, "10.2.20.3", 40000), phone4, 2000, 0)
			w.assertCounter(dropped, n+1, "another server")
			list := w.edge.Run("nft", "list", "set", "inet", "ringway", "tftp4")
			assert.Contains(t, list, "10.1.20.2 . 10.1.10.2 . 2000 expires")
		})
	}
}

// rtp is a packet of G.711: version 2, a payload type, and who sends it.
func rtp(ssrc uint32) []byte {
	b := make([]byte, 172)
	b[0], b[8], b[9], b[10], b[11] = 0x80, byte(ssrc>>24), byte(ssrc>>16), byte(ssrc>>8), byte(ssrc)
	return b
}

// Flows in class data that look like media are counted, each with its two ends: what is forwarded, and what is dropped.
func TestMediaInClassDataIsNoted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, branch())
	flows := func() (out map[firewall.MediaFlow]MediaFlow) {
		var all []MediaFlow
		require.NoError(t, w.edge.Do(func() (err error) { all, err = MediaFlows(); return }))
		out = map[firewall.MediaFlow]MediaFlow{}
		for _, f := range all {
			if f.Dropped || out[f.MediaFlow].Packets == 0 { // what is dropped is in class data, too
				out[f.MediaFlow] = f
			}
		}
		return out
	}
	flow := func(from string, sport uint16, to string, dport uint16, ssrc uint32) firewall.MediaFlow {
		return firewall.MediaFlow{
			From: netip.AddrPortFrom(netip.MustParseAddr(from), sport),
			To:   netip.AddrPortFrom(netip.MustParseAddr(to), dport), SSRC: ssrc,
		}
	}
	assert.Empty(t, flows())

	phone := w.listen(w.phone, phone4, 6000)
	far, pc, internet := w.listen(w.far, farPhone4, 6002), w.listen(w.pc, pc4, 6004), w.listen(w.internet, internet4, 6006)
	for range 3 {
		w.sendBytes(phone, farPhone4, 6002, 0, rtp(0xc0ffee01))
		w.receive(far, "unmarked RTP to a site")
	}
	w.sendBytes(phone, pc4, 6004, 0, rtp(0xc0ffee02))
	w.sendBytes(phone, internet4, 6006, 0, rtp(0xc0ffee03))
	w.receive(internet, "unmarked RTP to the internet")
	// Not these: marked, too short, of another version, STUN, from data networks to the internet.
	w.sendBytes(phone, internet4, 6006, ef, rtp(5))
	w.sendBytes(phone, farPhone4, 6002, 0, rtp(5)[:12])
	w.sendBytes(phone, farPhone4, 6002, 0, append([]byte{0x40}, rtp(5)[1:]...))
	w.sendBytes(phone, farPhone4, 6002, 0, append([]byte{0x00, 0x01}, rtp(5)[2:]...))
	w.sendBytes(phone, farPhone4, 6002, 0, slices.Concat(rtp(5), rtp(5)))
	w.sendBytes(pc, internet4, 6006, 0, rtp(5))

	phone6s := w.listen(w.phone, phone6, 6010)
	far6s := w.listen(w.far, farPhone6, 6012)
	w.sendBytes(phone6s, farPhone6, 6012, 0, rtp(0xc0ffee06))
	w.receive(far6s, "the same over IPv6")

	want := map[firewall.MediaFlow]MediaFlow{}
	for _, f := range []MediaFlow{
		{flow(phone4, 6000, farPhone4, 6002, 0xc0ffee01), false, 3},
		{flow(phone4, 6000, pc4, 6004, 0xc0ffee02), true, 1},
		{flow(phone4, 6000, internet4, 6006, 0xc0ffee03), false, 1},
		{flow(phone6, 6010, farPhone6, 6012, 0xc0ffee06), false, 1},
	} {
		want[f.MediaFlow] = f
	}
	polltest.Assert(t, func() bool { return len(flows()) >= len(want) }, 3*time.Second, 5*time.Millisecond, "no flows")
	assert.Equal(t, want, flows())
	assert.Empty(t, firewall.Diff(firewall.Want(branch()), observeIn(t, w.edge)), "what is noted is no change")
	assert.NotEmpty(t, strings.TrimSpace(w.edge.Run("nft", "list", "set", "inet", "ringway", "media_unmarked6")))
	w.edge.Run("nft", "add", "element", "inet", "ringway", "media_unmarked4",
		"{ 192.0.2.1 . 192.0.2.2 . 1 . 2 . 3, 192.0.2.1 . 192.0.2.2 . 1 . 2 . 4 }")
	assert.Contains(t, w.edge.Run("nft", "list", "table", "inet", "ringway"), "192.0.2.1 . 192.0.2.2 . 1 . 2 . 0x00000003",
		"nft lists several")
}

// A site where phones and PCs share a network: voice and data networks reach it and are reached from it, at any port.
func TestAFlatSite(t *testing.T) {
	t.Parallel()
	in := branch()
	in.SiteDataNetworks = nil
	in.SiteFlatNetworks = prefixes("10.2.20.0/24")
	in.SingleSiteNetworks = in.SiteFlatNetworks
	w := newWorld(t, in)
	for i, c := range []struct {
		from *netnstest.NS
		src  string
		to   *netnstest.NS
		dst  string
	}{
		{w.phone, phone4, w.far, farPC4}, {w.pc, pc4, w.far, farPC4},
		{w.far, farPC4, w.phone, phone4}, {w.far, farPC4, w.pc, pc4},
	} {
		from, to := w.listen(c.from, c.src, 7000+i), w.listen(c.to, c.dst, 7010+i)
		w.send(from, c.dst, 7010+i, 0)
		w.receive(to, c.src+" to "+c.dst)
	}
	assert.Zero(t, w.counters()[firewall.CounterVoiceDataApart].Packets)
}
