package nft

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/firewall"
	"ringway/qos"
	"ringway/test/netnstest"
)

const edgeVoice4, edgeVoice6, edgeData4, edgeWAN4 = "10.1.10.1", "2001:db8:1:10::1", "10.1.20.1", "198.51.100.2"

// terminating is the branch whose media goes to the media process.
func terminating() firewall.Input {
	in := signalled(firewall.Observe)
	for i := range in.Classes {
		if in.Classes[i].Name == qos.Media {
			in.Classes[i].Ports = nil
		}
	}
	voice := []netip.Addr{netip.MustParseAddr(edgeVoice4), netip.MustParseAddr(edgeVoice6)}
	in.Terminated = firewall.Terminated{
		Ports: qos.PortMatch{Protocol: qos.UDP, Low: 20000, High: 20999}, PacketsPerPort: 400,
		LAN: append([]netip.Addr{netip.MustParseAddr(edgeData4)}, voice...), Tunnel: voice,
	}
	in.Boxes = []netip.Addr{netip.MustParseAddr(farPhone4)}
	return in
}

// terminator is a world with the sockets of the media process.
type terminator struct {
	*relay
	lan4, lan6, tunnel4, tunnel6 int // raw
}

func newTerminator(t *testing.T, in firewall.Input) *terminator {
	r := relayWorld(t, in)
	m := &terminator{relay: r}
	m.lan4, m.lan6 = m.raw(unix.AF_INET, qos.MarkMediaLAN), m.raw(unix.AF_INET6, qos.MarkMediaLAN)
	m.tunnel4, m.tunnel6 = m.raw(unix.AF_INET, qos.MarkMediaTunnel), m.raw(unix.AF_INET6, qos.MarkMediaTunnel)
	for side, port := range map[string]int{"lan": firewall.MediaPortLAN, "tunnel": firewall.MediaPortTunnel} {
		r.udp[side+"4"], r.udp[side+"6"] = r.socket("127.0.0.1", port, 0), r.socket("::1", port, 0)
	}
	return m
}

func (m *terminator) raw(family int, mark qos.Mark) (fd int) {
	require.NoError(m.t, m.edge.Do(func() (err error) {
		if fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark))
	}))
	m.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// emit sends a datagram with headers of its own.
func emit(fd int, from, to string, protocol byte) error {
	src, dst := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	udp := binary.BigEndian.AppendUint16(nil, src.Port())
	udp = binary.BigEndian.AppendUint16(udp, dst.Port())
	udp = binary.BigEndian.AppendUint16(udp, 8+5)
	udp = append(udp, 0, 0)
	udp = append(udp, "voice"...)
	if src.Addr().Is4() {
		h := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0}
		h = append(append(h, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
		return unix.Sendto(fd, append(h, udp...), 0, &unix.SockaddrInet4{Addr: dst.Addr().As4()})
	}
	pseudo := append(append(src.Addr().AsSlice(), dst.Addr().AsSlice()...), 0, 0, 0, byte(len(udp)), 0, 0, 0, protocol)
	sum := uint32(0)
	for b := append(append(pseudo, udp...), 0); len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], ^uint16(sum))
	h := []byte{0x60, 0, 0, 0, 0, byte(len(udp)), protocol, 64}
	h = append(append(h, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	return unix.Sendto(fd, append(h, udp...), 0, &unix.SockaddrInet6{Addr: dst.Addr().As16()})
}

// Media for the box goes to the socket of the side that it arrives on, though both sides have one address.
func TestTerminatedMediaIsTaken(t *testing.T) {
	t.Parallel()
	m := newTerminator(t, terminating())
	for _, c := range []struct {
		what  string
		from  *netnstest.NS
		src   string
		dst   string
		dport int
		side  string
	}{
		{"of a phone", m.phone, phone4, edgeVoice4, 20000, "lan4"},
		{"of a phone over IPv6", m.phone, phone6, edgeVoice6, 20999, "lan6"},
		{"of a PBX in a data network", m.pc, pc4, edgeData4, 20001, "lan4"},
		{"of a PBX, to the voice network's address", m.pc, pc4, edgeVoice4, 20002, "lan4"},
		{"of a site", m.far, farPhone4, edgeVoice4, 20000, "tunnel4"},
		{"of a site over IPv6", m.far, farPhone6, edgeVoice6, 20000, "tunnel6"},
		{"of a site's data network", m.far, farPC4, edgeVoice4, 20003, "tunnel4"},
	} {
		from := m.listen(c.from, c.src, 40000)
		m.send(from, c.dst, c.dport, 46<<2)
		d := m.expect(c.side, at(c.src, 40000), at(c.dst, c.dport), c.what)
		from.Close()
		assert.NotZero(t, d.mark&uint32(qos.MarkRelayed), c.what)
	}
	m.nothing("each came once")
	assert.Empty(t, m.tracked(" sport=40000 "), "two legs may have one pair of addresses and ports")
}

func TestWhatIsNoTerminatedMedia(t *testing.T) {
	t.Parallel()
	m := newTerminator(t, terminating())
	for _, c := range []struct {
		what    string
		from    *netnstest.NS
		src     string
		dst     string
		dport   int
		counter string
	}{
		{"below the ports", m.phone, phone4, edgeVoice4, 19999, firewall.CounterInputLANDrop},
		{"above the ports", m.phone, phone4, edgeVoice4, 21000, firewall.CounterInputLANDrop},
		{"the ports of the sockets", m.phone, phone4, edgeVoice4, firewall.MediaPortLAN, firewall.CounterInputLANDrop},
		{"from the internet", m.internet, internet4, edgeVoice4, 20000, firewall.CounterMediaStrayed},
		{"to the WAN's address", m.internet, internet4, edgeWAN4, 20000, firewall.CounterInputWANDrop},
		{"of a site, to an address that is not for sites", m.far, farPhone4, edgeData4, 20000, firewall.CounterMediaStrayed},
		{"with a forged source", m.phone, farPhone4, edgeVoice4, 20000, firewall.CounterSpoofLAN},
	} {
		had := m.counters()[c.counter].Packets
		if c.src == farPhone4 && c.from == m.phone {
			m.phone.Run("ip", "addr", "add", farPhone4+"/32", "dev", "lo")
		}
		from := m.listen(c.from, c.src, 40000)
		m.send(from, c.dst, c.dport, 0)
		m.assertCounter(c.counter, had+1, c.what)
		from.Close()
	}
	m.nothing("none of them")

	// With nobody there, it is not the box's own either.
	had := m.counters()[firewall.CounterMediaStrayed].Packets
	m.close()
	phone := m.listen(m.phone, phone4, 40000)
	m.send(phone, edgeVoice4, 20000, 0)
	m.assertCounter(firewall.CounterMediaStrayed, had+1, "without a media process")
}

// One port's flood is dropped before the socket that all calls share.
func TestAPortOfMediaIsLimited(t *testing.T) {
	t.Parallel()
	in := terminating()
	in.Terminated.PacketsPerPort = 50
	m := newTerminator(t, in)
	phone := m.listen(m.phone, phone4, 40000)
	const all, burst = 500, 25
	began := time.Now()
	for range all {
		m.send(phone, edgeVoice4, 20000, 0)
	}
	passed := int(time.Since(began).Seconds()*50) + burst + 1
	flood := m.counters()[firewall.CounterMediaFlood].Packets
	assert.GreaterOrEqual(t, int(flood), all-passed)
	m.send(phone, edgeVoice4, 20002, 0)
	taken := 0
	for {
		d := m.take1("lan4")
		if d.to.Port() == 20002 {
			break
		}
		taken++
	}
	assert.EqualValues(t, all-int(flood), taken, "another port's packet came after what the first one may have")
}

func (m *terminator) take1(side string) taken {
	m.t.Helper()
	d, ok := m.got(side, 3*time.Second)
	require.True(m.t, ok, "counters %v", m.counters())
	return d
}

// Whoever fills the set of ports has nothing taken without a limit.
func TestAFullSetOfPortsTakesNothing(t *testing.T) {
	t.Parallel()
	in := terminating()
	in.Terminated.Ports.High = 20063
	m := newTerminator(t, in)
	phone := m.listen(m.phone, phone4, 40000)
	m.send(phone, edgeVoice4, 20000, 0)
	m.expect("lan4", at(phone4, 40000), at(edgeVoice4, 20000), "before")
	var all []string
	for n := range 4095 {
		all = append(all, fmt.Sprintf("192.0.2.1 . %d timeout 1h", n+1))
	}
	m.edge.Run("nft", "add", "element", "inet", "ringway", "media_rate4", "{ "+strings.Join(all, ", ")+" }")
	m.send(phone, edgeVoice4, 20002, 0)
	m.assertCounter(firewall.CounterMediaFlood, 1, "there is no place for this port")
	m.send(phone, edgeVoice4, 20000, 0)
	m.expect("lan4", at(phone4, 40000), at(edgeVoice4, 20000), "a port that has one")
	m.nothing("the other port's")
}

// What the media process sends has its class and its way by the mark of its socket.
func TestTheMediaProcessSends(t *testing.T) {
	t.Parallel()
	m := newTerminator(t, terminating())
	for _, c := range []struct {
		what           string
		socket         int
		src            string
		sport          int
		to             *netnstest.NS
		dst            string
		dport          int
		dev            string
		mark           qos.Mark
		priority, dscp string
	}{
		{"to a phone", m.lan4, edgeVoice4, 20000, m.phone, phone4, 41000, "voice0", qos.MarkMediaLAN, "2:e0", "ef"},
		{"to a phone over IPv6", m.lan6, edgeVoice6, 20000, m.phone, phone6, 41001, "voice0", qos.MarkMediaLAN, "2:e0", ""},
		{"to a PBX", m.lan4, edgeData4, 20002, m.pc, pc4, 41002, "data0", qos.MarkMediaLAN, "2:e0", "cs0"},
		{"to a site", m.tunnel4, edgeVoice4, 20000, m.far, farPhone4, 41003, "rw-voice", qos.MarkMediaTunnel, "none", "ef"},
		{"to a site over IPv6", m.tunnel6, edgeVoice6, 20000, m.far, farPhone6, 41004, "rw-voice", qos.MarkMediaTunnel, "none", ""},
		{"to a trunk", m.lan4, edgeVoice4, 20004, m.internet, internet4, 41005, "wan0", qos.MarkMediaLAN, "1:10", "ef"},
	} {
		to := m.listen(c.to, c.dst, c.dport)
		require.NoError(t, emit(c.socket, at(c.src, c.sport), at(c.dst, c.dport), unix.IPPROTO_UDP), c.what)
		text, from := m.payloadOf(to, c.what)
		assert.Equal(t, "voice", text, c.what)
		if c.to == m.internet {
			assert.Equal(t, at(edgeWAN4, c.sport), from.String(), "a private address stays inside")
			m.send(to, from.Addr().String(), int(from.Port()), 0)
			m.expect("lan4", at(c.dst, c.dport), at(c.src, c.sport), "the trunk's answer")
		} else {
			assert.Equal(t, at(c.src, c.sport), from.String(), c.what)
			assert.Empty(t, m.tracked(fmt.Sprintf(" dport=%d ", c.dport)), c.what)
		}
		if c.dscp != "" { // nft itself shifts IPv6's DSCP wrongly
			m.assertSeen(c.dev, c.dport, uint32(c.mark), c.priority, c.dscp)
		}
	}
}

// Whoever took the media process over has raw sockets, which may claim any source.
func TestTheMediaProcessSendsMediaOnly(t *testing.T) {
	t.Parallel()
	m := newTerminator(t, terminating())
	for _, c := range []struct {
		what     string
		socket   int
		src      string
		sport    int
		dst      string
		protocol byte
	}{
		{"as another phone", m.lan4, "10.1.10.9", 20000, phone4, unix.IPPROTO_UDP},
		{"as a site's phone", m.lan4, farPhone4, 20000, phone4, unix.IPPROTO_UDP},
		{"as another phone over IPv6", m.lan6, "2001:db8:1:10::9", 20000, phone6, unix.IPPROTO_UDP},
		{"from a port below", m.lan4, edgeVoice4, 19999, phone4, unix.IPPROTO_UDP},
		{"from SIP's port", m.lan4, edgeVoice4, 5060, phone4, unix.IPPROTO_UDP},
		{"from a port above", m.tunnel4, edgeVoice4, 21000, farPhone4, unix.IPPROTO_UDP},
		{"TCP", m.lan4, edgeVoice4, 20000, phone4, unix.IPPROTO_TCP},
		{"to a site as a phone", m.tunnel4, phone4, 20000, farPhone4, unix.IPPROTO_UDP},
		{"to a site, from an address that is not for sites", m.tunnel4, edgeData4, 20000, farPhone4, unix.IPPROTO_UDP},
		{"to a phone by the tunnels' socket", m.tunnel4, edgeVoice4, 20000, phone4, unix.IPPROTO_UDP},
		{"to the internet by the tunnels' socket", m.tunnel4, edgeVoice4, 20000, internet4, unix.IPPROTO_UDP},
		{"to the internet as the WAN", m.lan4, edgeWAN4, 20000, internet4, unix.IPPROTO_UDP},
		{"to the internet as a phone", m.lan4, phone4, 20000, internet4, unix.IPPROTO_UDP},
		{"to a site by the LANs' socket", m.lan4, edgeVoice4, 20000, farPhone4, unix.IPPROTO_UDP},
	} {
		had := m.counters()[firewall.CounterMediaForeign].Packets
		assert.ErrorIs(t, emit(c.socket, at(c.src, c.sport), at(c.dst, 41000), c.protocol), unix.EPERM, c.what)
		m.assertCounter(firewall.CounterMediaForeign, had+1, c.what)
	}
}

// The boxes of sites reach the key channel, and nobody else does; what the daemon sends there is signalling.
func TestTheKeyChannelIsBetweenBoxes(t *testing.T) {
	t.Parallel()
	m := newTerminator(t, terminating())
	own := m.listenTCP(m.edge, edgeVoice4, firewall.KeyChannelPort)
	c, err := m.dial(m.far, at(farPhone4, 0), at(edgeVoice4, firewall.KeyChannelPort), 0, 0)
	require.NoError(t, err, "a box")
	c.Close()
	accepted, err := own.Accept()
	require.NoError(t, err)
	accepted.Close()
	for what, from := range map[string]struct {
		ns      *netnstest.NS
		address string
		counter string
	}{
		"a phone of the site": {m.far, "10.2.10.3", firewall.CounterInputTunnelDrop},
		"a phone here":        {m.phone, phone4, firewall.CounterInputLANDrop},
	} {
		_, err = m.dial(from.ns, at(from.address, 0), at(edgeVoice4, firewall.KeyChannelPort), 0, 0)
		assert.Error(t, err, what)
		assert.NotZero(t, m.counters()[from.counter].Packets, what)
	}

	far := m.listenTCP(m.far, farPhone4, firewall.KeyChannelPort)
	c, err = m.dial(m.edge, at(edgeVoice4, 0), at(farPhone4, firewall.KeyChannelPort), markToSite, 0)
	require.NoError(t, err, "to a box")
	c.Close()
	accepted, err = far.Accept()
	require.NoError(t, err)
	assert.Equal(t, edgeVoice4, accepted.RemoteAddr().(*net.TCPAddr).IP.String())
	accepted.Close()
	other := m.listenTCP(m.far, "10.2.10.3", firewall.KeyChannelPort)
	_, err = m.dial(m.edge, at(edgeVoice4, 0), other.Addr().String(), markToSite, 0)
	assert.Error(t, err, "to who is no box")
}

// Where SRTP is required, SIP that nobody reads waits; it goes on as soon as somebody does. Other phones' passes.
func TestRequiredSIPDoesNotPassUnread(t *testing.T) {
	t.Parallel()
	in := terminating()
	in.Signalling.Required = prefixes("10.1.10.0/24", "2001:db8:2:10::/64")
	r := relayWorld(t, in)
	phone, far := r.listen(r.phone, phone4, 5060), r.listen(r.far, farPhone4, 5060)
	phone6s, far6s := r.listen(r.phone, phone6, 5060), r.listen(r.far, farPhone6, 5060)
	pc, farPC := r.listen(r.pc, pc4, 5060), r.listen(r.far, farPC4, 5060)
	for n, c := range []struct {
		what string
		from *net.UDPConn
		to   string
	}{
		{"from a phone", phone, farPhone4}, {"to a phone", far, phone4},
		{"to a site that requires it", phone6s, farPhone6}, {"from such a site", far6s, phone6},
	} {
		r.send(c.from, c.to, 5060, 0)
		r.assertCounter(firewall.CounterSIPWaits, uint64(n+1), c.what)
	}
	r.send(pc, farPC4, 5060, 0)
	text, _ := r.payloadOf(farPC, "of networks where it is not required")
	assert.Equal(t, "voice", text)

	r.listenTCP(r.far, farPhone4, 5060)
	_, err := r.dial(r.phone, at(phone4, 0), at(farPhone4, 5060), 0, 0)
	assert.Error(t, err, "TCP")
	assert.Empty(t, r.tracked("tcp "), "not even its first packet went on")
	set, key := firewall.Bypass(netip.MustParseAddrPort(at(farPhone4, 5060)))
	require.NoError(t, owner(t, r.sets, set).Add(t.Context(), 20*time.Second, key))
	_, err = r.dial(r.phone, at(phone4, 0), at(farPhone4, 5060), 0, 0)
	assert.Error(t, err, "TCP that bypasses the relay")
	assert.Empty(t, r.tracked("tcp "))

	r.open()
	r.take("sip_udp")
	r.send(phone, farPhone4, 5060, 0)
	r.expect("lan4", at(phone4, 5060), at(farPhone4, 5060), "read")
}

// Where SRTP is required, phones of two voice networks have no media past the box either, whatever they agreed unread.
func TestRequiredMediaDoesNotPassBetweenVoiceNetworks(t *testing.T) {
	t.Parallel()
	in := signalled(firewall.Enforce)
	in.Voice = append(in.Voice, firewall.LAN{Device: "voice1", Networks: prefixes("10.1.30.0/24")})
	in.Signalling.Required = prefixes("10.1.30.0/24")
	r := newRelay(t, in)
	second := netnstest.New(t)
	netnstest.Veth(t, r.edge, "voice1", second, "eth0")
	r.edge.Run("ip", "addr", "add", "10.1.30.1/24", "dev", "voice1")
	second.Run("ip", "addr", "add", "10.1.30.2/24", "dev", "eth0")
	second.Run("ip", "route", "add", "default", "via", "10.1.30.1")
	a, b := r.listen(r.phone, phone4, 21000), r.listen(second, "10.1.30.2", 21002)
	r.assertClosed(a, "10.1.30.2", 21002, 46<<2, "to a phone that needs SRTP")
	r.assertClosed(b, phone4, 21000, 46<<2, "from it")

	in.Signalling.Required = nil
	applyIn(t, r.edge, firewall.Want(in))
	r.assertPasses(a, b, 0, "where it is not required")
}
