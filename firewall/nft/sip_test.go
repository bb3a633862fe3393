package nft

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
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

// SIP over UDP goes to the relay, whichever way it takes; with its own addresses, in both families, past the strict
// reverse path check (T1) and input (T2).
func TestSIPOverUDPIsTaken(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Observe))
	for _, c := range []struct {
		what  string
		from  *netnstest.NS
		src   string
		sport int
		dst   string
		dport int
		side  string
	}{
		{"to a SIP port", r.phone, phone4, 40000, farPhone4, 5060, "lan4"},
		{"over IPv6", r.phone, phone6, 40000, farPhone6, 5060, "lan6"},
		{"to another SIP port", r.phone, phone4, 40000, farPhone4, 5092, "lan4"},
		{"from a SIP port", r.phone, phone4, 5060, farPhone4, 40000, "lan4"},
		{"to a provider", r.phone, phone4, 40000, internet4, 5060, "lan4"},
		{"to a provider over IPv6", r.phone, phone6, 40000, internet6, 5060, "lan6"},
		{"of a data network", r.pc, pc4, 40000, farPC4, 5060, "lan4"},
		{"to a server's own port", r.phone, phone4, 40000, farPBX4, 7000, "lan4"},
		{"from the voice tunnel", r.far, farPhone4, 40000, phone4, 5060, "far4"},
		{"from the voice tunnel over IPv6", r.far, farPhone6, 40000, phone6, 5060, "far6"},
		{"from a SIP port, out of the voice tunnel", r.far, farPhone4, 5060, phone4, 40000, "far4"},
		{"from the data tunnel", r.far, farPC4, 5060, phone4, 40000, "far4"},
		{"from a server's own port", r.far, farPBX4, 7000, phone4, 40000, "far4"},
	} {
		from := r.listen(c.from, c.src, c.sport)
		r.send(from, c.dst, c.dport, 0)
		d := r.expect(c.side, at(c.src, c.sport), at(c.dst, c.dport), c.what)
		from.Close()
		assert.NotZero(t, d.mark&uint32(qos.MarkRelayed), c.what)
	}
	r.nothing("each came once")
	assert.Empty(t, r.tracked(" src="+phone4+" "), "T3: what a LAN sent is not tracked")
	assert.Empty(t, r.tracked(" src="+pc4+" "))
	assert.NotEmpty(t, r.tracked(" src="+farPhone4+" "), "what a tunnel brought is")
}

// What is not SIP, is for the box, or would not be forwarded, is none of the relay's.
func TestWhatIsNotTaken(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Observe))
	for _, c := range []struct {
		what     string
		from     *netnstest.NS
		src      string
		sport    int
		dst      string
		dport    int
		counter  string
		receiver *netnstest.NS
	}{
		{"another port", r.phone, phone4, 40000, farPhone4, 40002, "", r.far},
		{"a port below 1024, from a SIP port", r.phone, phone4, 5060, farPhone4, 80, "", r.far},
		{"another port of a server", r.phone, phone4, 40010, farPBX4, 123, "", r.far},
		{"a server's port of somebody else", r.phone, phone4, 40012, farPhone4, 7000, "", r.far},
		{"to the box itself", r.phone, phone4, 40001, box4, 5060, firewall.CounterInputLANDrop, nil},
		{"to the box itself over IPv6", r.phone, phone6, 40001, box6, 5060, firewall.CounterInputLANDrop, nil},
		{"unasked from the internet", r.internet, internet6, 40003, phone6, 5060, firewall.CounterForwardDrop, nil},
		{"from a site to the internet", r.far, farPhone4, 40004, internet4, 5060, firewall.CounterHairpinWAN, nil},
		{"from a site to another", r.far, farPhone4, 40005, "10.2.99.1", 5060, firewall.CounterForwardDrop, nil},
		{"to everybody on the link", r.phone, phone4, 40006, "10.1.10.255", 5060, firewall.CounterInputLANDrop, nil},
	} {
		had := r.counters()[c.counter].Packets
		from := r.listen(c.from, c.src, c.sport)
		raw, err := from.SyscallConn()
		require.NoError(t, err)
		require.NoError(t, raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
		}))
		if c.receiver != nil {
			to := r.listen(c.receiver, c.dst, c.dport)
			r.send(from, c.dst, c.dport, 0)
			r.receive(to, c.what)
		} else {
			r.send(from, c.dst, c.dport, 0)
			r.assertCounter(c.counter, had+1, c.what)
		}
		r.nothing(c.what)
		from.Close()
	}
}

// Nobody listens: the rules do not match, and the packet goes on as without a relay.
func TestWithoutARelaySIPPassesUnread(t *testing.T) {
	t.Parallel()
	r := relayWorld(t, signalled(firewall.Observe))
	r.take("sip_udp")
	r.take("sip_tcp")
	for _, c := range []struct {
		what     string
		from, to *netnstest.NS
		src, dst string
	}{
		{"to a site", r.phone, r.far, phone4, farPhone4},
		{"to a site over IPv6", r.phone, r.far, phone6, farPhone6},
		{"to a provider over IPv6", r.phone, r.internet, phone6, internet6},
		{"from a site", r.far, r.phone, farPhone4, phone4},
	} {
		from, to := r.listen(c.from, c.src, 0), r.listen(c.to, c.dst, 5060)
		r.send(from, c.dst, 5060, 0)
		_, sender := r.payloadOf(to, c.what)
		assert.Equal(t, from.LocalAddr().String(), sender.String(), c.what)
		from.Close()
		to.Close()
	}
	l := r.listenTCP(r.far, farPhone4, 5060)
	_, err := r.dial(r.phone, at(phone4, 0), at(farPhone4, 5060), 0, 0)
	require.NoError(t, err)
	c, err := l.Accept()
	require.NoError(t, err)
	c.Close()
}

// A relay that hangs still has its sockets: the sets of devices take the packets away from them (T17).
func TestTheSetsDecideWhatIsTaken(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Observe))
	assert.Contains(t, r.edge.Run("nft", "list", "set", "inet", "ringway", "sip_udp"), `"voice0"`, "nft reads the names")
	phone, server := r.listen(r.phone, phone4, 5060), r.listen(r.far, farPhone4, 5060)
	r.send(phone, farPhone4, 5060, 0)
	r.expect("lan4", at(phone4, 5060), at(farPhone4, 5060), "taken")

	r.release("sip_udp")
	r.send(phone, farPhone4, 5060, 0)
	r.receive(server, "unread")
	r.send(server, phone4, 5060, 0)
	r.receive(phone, "the answer, unread")
	r.nothing("no device is in the set")
	r.listenTCP(r.far, farPhone4, 5060)
	c, err := r.dial(r.phone, at(phone4, 30000), at(farPhone4, 5060), 0, 0)
	require.NoError(t, err)
	r.accept("lan4", "TCP has a set of its own")
	c.Close()

	r.take("sip_udp")
	r.send(phone, farPhone4, 5060, 0)
	r.expect("lan4", at(phone4, 5060), at(farPhone4, 5060), "taken again")

	r.release("sip_tcp")
	direct := r.listenTCP(r.far, farPBX4, 5060)
	_, err = r.dial(r.phone, at(phone4, 30002), at(farPBX4, 5060), 0, 0)
	require.NoError(t, err)
	_, err = direct.Accept()
	require.NoError(t, err)
}

// T18. A relay that died leaves packets untracked until the sets are empty: NAT does not translate them, and they must
// not leave. Then they are translated as ever.
func TestADeadRelayLeaksNoPrivateAddress(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Observe))
	provider := r.listen(r.internet, internet4, 5060)
	r.listenTCP(r.internet, internet4, 5060)
	phone := r.listen(r.phone, phone4, 5060)
	r.close()

	r.send(phone, internet4, 5060, 0)
	r.assertCounter(firewall.CounterInvalidWAN, 1, "UDP without a relay")
	_, err := r.dial(r.phone, at(phone4, 0), at(internet4, 5060), 0, 0)
	require.Error(t, err)
	r.assertCounter(firewall.CounterInvalidWAN, 2, "TCP without a relay")

	r.release("sip_udp")
	r.release("sip_tcp")
	r.send(phone, internet4, 5060, 0)
	_, from := r.payloadOf(provider, "unread")
	assert.Equal(t, boxWAN4, from.Addr().String(), "the first that came, and translated")
	_, err = r.dial(r.phone, at(phone4, 0), at(internet4, 5060), 0, 0)
	require.NoError(t, err)
}

// Nor does one that lives: what conntrack takes for no connection's is not translated either.
func TestTheRelaysInvalidPacketsStay(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Observe))
	r.internet.Run("nft", `table inet leak {
		counter private { }
		chain in { type filter hook prerouting priority -310; ip saddr 10.0.0.0/8 counter name private; }
	}`)
	packet := make([]byte, 40) // a segment with SYN and FIN: no connection has that
	packet[0], packet[8], packet[9] = 0x45, 64, unix.IPPROTO_TCP
	copy(packet[12:], netip.MustParseAddr(phone4).AsSlice())
	copy(packet[16:], netip.MustParseAddr(internet4).AsSlice())
	binary.BigEndian.PutUint16(packet[20:], 40000)
	binary.BigEndian.PutUint16(packet[22:], 5060)
	packet[32], packet[33] = 5<<4, 3

	require.NoError(t, r.edge.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, markToLAN); err != nil {
			return err
		}
		err = unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: netip.MustParseAddr(internet4).As4()})
		if errors.Is(err, unix.EPERM) { // dropped on the way out
			err = nil
		}
		return err
	}))
	r.assertCounter(firewall.CounterInvalidWAN, 1, "from the relay")
	assert.Contains(t, r.internet.Run("nft", "list", "counters", "table", "inet", "leak"), "packets 0 ")
}

// T4, T3. What the relay sends for a phone to a provider is translated, and the answer finds the relay, with the class
// of its connection.
func TestTheRelayBehindNAT(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Observe))
	phone, provider := r.listen(r.phone, phone4, 5060), r.listen(r.internet, internet4, 5062)
	r.send(phone, internet4, 5062, 0) // from a SIP port
	d := r.expect("lan4", at(phone4, 5060), at(internet4, 5062), "the request")

	onward := r.socket(phone4, 5060, markToLAN)
	r.sendBytes(onward, internet4, 5062, 0, []byte(d.payload))
	_, from := r.payloadOf(provider, "the request, passed on")
	assert.Equal(t, at(boxWAN4, 5060), from.String(), "translated")
	r.assertSeen("wan0", 5062, markToLAN, "1:20", "cs3")
	assert.Len(t, r.tracked(" dport=5062 "), 1)
	assert.Regexp(t, ` mark=33792 `, r.tracked(" dport=5062 ")[0], "class signalling, of a relay: 0x8400")

	// No port of a class says what the answer is: its connection does.
	r.send(provider, boxWAN4, 5060, 0)
	d = r.expect("far4", at(internet4, 5062), at(phone4, 5060), "the answer")
	assert.EqualValues(t, 0x8400, d.mark)
	back := r.socket(internet4, 5062, markToLAN)
	r.sendBytes(back, phone4, 5060, 0, []byte("answer"))
	_, from = r.payloadOf(phone, "the answer, passed on")
	assert.Equal(t, at(internet4, 5062), from.String())
	r.assertSeen("voice0", 5060, markToLAN, "2:e0", "cs3")
	assert.Len(t, r.tracked(" dport=5062 "), 1, "towards the phone nothing is tracked")
}

// The relay's packets to a site take the voice tunnel; those to a LAN go first in its queue.
func TestTheRelaysOwnPackets(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Observe))
	far, phone, pc := r.listen(r.far, farPhone4, 40100), r.listen(r.phone, phone4, 40200), r.listen(r.pc, pc4, 40300)
	r.send(r.socket(phone4, 5060, markToSite), farPhone4, 40100, 0)
	assert.Equal(t, 24<<2, r.receive(far, "to a site"))
	r.assertSeen("rw-voice", 40100, markToSite, "none", "cs3")
	r.send(r.socket(farPhone4, 5060, markToLAN), phone4, 40200, 0)
	assert.Equal(t, 24<<2, r.receive(phone, "to a phone"))
	r.assertSeen("voice0", 40200, markToLAN, "2:e0", "cs3")
	r.send(r.socket(farPhone4, 5092, markToLAN), pc4, 40300, 0)
	r.receive(pc, "to a data network")
	r.assertSeen("data0", 40300, markToLAN, "2:e0", "cs0")
	assert.Empty(t, r.tracked(" dport=40200 "))
	assert.Empty(t, r.tracked(" dport=40300 "))
	assert.Len(t, r.tracked(" dport=40100 "), 1)
}

// Whoever took the relay over has sockets that send from any address. They reach no port but those of signalling.
func TestTheRelaySendsSignallingOnly(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Enforce))
	for _, c := range []struct {
		what     string
		src, dst string
		sport    int
		mark     int
		to       *netnstest.NS
	}{
		{"media to a phone", farPhone4, phone4, 40000, markToLAN, r.phone},
		{"media to a phone, over IPv6", farPhone6, phone6, 40000, markToLAN, r.phone},
		{"to a PC", farPC4, pc4, 40000, markToLAN, r.pc},
		{"to a site", phone4, farPhone4, 40000, markToSite, r.far},
		{"to the internet", phone6, internet6, 40000, markToLAN, r.internet},
		{"as another site's PBX", farPhone4, pc4, 7000, markToLAN, r.pc},
	} {
		had := r.counters()[firewall.CounterSIPStrayed].Packets
		to := r.listen(c.to, c.dst, 0)
		_, err := r.socket(c.src, c.sport, c.mark).WriteToUDPAddrPort([]byte("x"),
			to.LocalAddr().(*net.UDPAddr).AddrPort())
		require.ErrorIs(t, err, unix.EPERM, c.what)
		r.assertCounter(firewall.CounterSIPStrayed, had+1, c.what)
		to.Close()
	}
	had := r.counters()[firewall.CounterSIPStrayed].Packets
	_, err := r.dial(r.edge, at(farPC4, 40001), at(pc4, 445), markToLAN, 0)
	require.Error(t, err, "TCP to a PC")
	assert.Greater(t, r.counters()[firewall.CounterSIPStrayed].Packets, had)
	pbx := r.listen(r.pc, pc4, 0)
	r.send(r.socket(farPBX4, 7000, markToLAN), pc4, portOf(pbx), 0)
	r.receive(pbx, "a server's own port")
}

// A datagram larger than any packet of the path arrives whole.
func TestAFragmentedMessageIsTakenWhole(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Observe))
	for side, c := range map[string]struct{ src, dst string }{"lan4": {phone4, farPhone4}, "lan6": {phone6, farPhone6}} {
		message := strings.Repeat("INVITE ", 450)
		r.sendBytes(r.listen(r.phone, c.src, 40000), c.dst, 5060, 0, []byte(message))
		assert.Equal(t, message, r.expect(side, at(c.src, 40000), at(c.dst, 5060), "3 KB").payload)
	}
}

func TestBannedAddresses(t *testing.T) {
	t.Parallel()
	r := newRelay(t, signalled(firewall.Observe))
	r.phone.Run("ip", "addr", "add", "10.1.10.3/24", "dev", "eth0")
	l := r.listenTCP(r.far, farPhone4, 5060)
	for _, banned := range []string{phone4, phone6} {
		set, key := firewall.Ban(netip.MustParseAddr(banned))
		require.NoError(t, owner(t, r.sets, set).Add(t.Context(), time.Minute, key))
	}
	r.send(r.listen(r.phone, phone4, 40000), farPhone4, 5060, 0)
	r.assertCounter(firewall.CounterSIPBanned, 1, "IPv4")
	r.send(r.listen(r.phone, phone6, 40000), farPhone6, 5060, 0)
	r.assertCounter(firewall.CounterSIPBanned, 2, "IPv6")
	_, err := r.dial(r.phone, at(phone4, 0), at(farPhone4, 5060), 0, 0)
	require.Error(t, err)
	assert.Greater(t, r.counters()[firewall.CounterSIPBanned].Packets, uint64(2), "TCP")

	r.send(r.listen(r.phone, "10.1.10.3", 40000), farPhone4, 5060, 0)
	r.expect("lan4", "10.1.10.3:40000", at(farPhone4, 5060), "the phone beside it")
	r.nothing("of the banned ones")

	// It holds without a relay, and for SIP alone.
	r.release("sip_udp")
	r.release("sip_tcp")
	had := r.counters()[firewall.CounterSIPBanned].Packets
	to := r.listen(r.far, farPhone4, 40002)
	phone := r.listen(r.phone, phone4, 40004)
	r.send(phone, farPhone4, 5060, 0)
	r.assertCounter(firewall.CounterSIPBanned, had+1, "unread")
	r.send(phone, farPhone4, 40002, 0)
	r.receive(to, "no SIP")
	set, key := firewall.Ban(netip.MustParseAddr(phone4))
	require.NoError(t, owner(t, r.sets, set).Delete(t.Context(), key))
	_, err = r.dial(r.phone, at(phone4, 0), at(farPhone4, 5060), 0, 0)
	require.NoError(t, err)
	_, err = l.Accept()
	require.NoError(t, err)
}

// One phone cannot fill the buffer that all phones share, and a PBX may send more than a phone.
func TestFloodsAreLimited(t *testing.T) {
	t.Parallel()
	in := signalled(firewall.Observe)
	in.Signalling.LANLimit = firewall.MessageLimit{Rate: 5, Burst: 20}
	in.Signalling.FarLimit = firewall.MessageLimit{Rate: 5, Burst: 100}
	r := newRelay(t, in)
	r.phone.Run("ip", "addr", "add", "10.1.10.3/24", "dev", "eth0")
	received := func(side string) (n int) {
		for {
			if _, ok := r.got(side, 200*time.Millisecond); !ok {
				return n
			}
			n++
		}
	}
	for _, c := range []struct {
		from       *netnstest.NS
		src, dst   string
		side       string
		burst, all int
	}{
		{r.phone, phone4, farPhone4, "lan4", 20, 60},
		{r.phone, phone6, farPhone6, "lan6", 20, 60},
		{r.far, farPhone4, phone4, "far4", 100, 150},
		{r.far, farPhone6, phone6, "far6", 100, 150},
	} {
		before, began := r.counters()[firewall.CounterSIPFlood].Packets, time.Now()
		from := r.listen(c.from, c.src, 40000)
		for range c.all {
			r.send(from, c.dst, 5060, 0)
		}
		n := received(c.side)
		assert.GreaterOrEqual(t, n, c.burst, c.src)
		assert.LessOrEqual(t, n, c.burst+1+int(5*time.Since(began).Seconds()), c.src)
		assert.EqualValues(t, c.all-n, r.counters()[firewall.CounterSIPFlood].Packets-before, c.src)
		from.Close()
	}
	r.send(r.listen(r.phone, "10.1.10.3", 40000), farPhone4, 5060, 0)
	r.expect("lan4", "10.1.10.3:40000", at(farPhone4, 5060), "the phone beside it")

	// A server in a LAN has a far one's limit.
	in.Signalling.Servers[0].Address = netip.MustParseAddr(pc4)
	applyIn(t, r.edge, firewall.Want(in))
	from := r.listen(r.pc, pc4, 40000)
	for range 60 {
		r.send(from, farPC4, 5060, 0)
	}
	assert.Equal(t, 60, received("lan4"))
}

// Observe blocks nothing: what is above the limit of its source is forwarded unread.
func TestAFloodPassesUnreadWhereNothingIsBlocked(t *testing.T) {
	t.Parallel()
	in := signalled(firewall.Observe)
	in.Signalling.LANLimit = firewall.MessageLimit{Rate: 1, Burst: 5}
	r := newRelay(t, in)
	far := r.listen(r.far, farPhone4, 5060)
	from := r.listen(r.phone, phone4, 40000)
	for range 20 {
		r.send(from, farPhone4, 5060, 0)
	}
	flood := int(r.counters()[firewall.CounterSIPFlood].Packets)
	assert.GreaterOrEqual(t, flood, 10)
	for range flood {
		r.receive(far, "unread")
	}
}

// Of TCP, connections are counted and not their segments: TCP itself waits for a slow reader.
func TestNewConnectionsAreLimited(t *testing.T) {
	t.Parallel()
	in := signalled(firewall.Enforce)
	in.Signalling.LANLimit = firewall.MessageLimit{Rate: 1, Burst: 3}
	r := newRelay(t, in)
	r.echo(r.far, farPhone4, 5060)
	first, err := r.dial(r.phone, at(phone4, 0), at(farPhone4, 5060), 0, 0)
	require.NoError(t, err)
	r.pass(r.accept("lan4", "the first"), markToSite)
	r.assertEchoes(first, 256<<10, "many segments")
	require.Zero(t, r.counters()[firewall.CounterSIPFlood].Packets)

	for range 3 {
		_, err := r.dial(r.phone, at(phone4, 0), at(farPhone4, 5060), 0, 0)
		require.NoError(t, err, "it tries again after a second")
	}
	assert.NotZero(t, r.counters()[firewall.CounterSIPFlood].Packets)
}

// Each of the rules is the plan's, in what the adapter reads back: one that lacks its tproxy or socket is another one.
func TestTProxyAndSocketAreReadBack(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	want := firewall.Want(signalled(firewall.Enforce))
	applyIn(t, ns, want)
	require.Empty(t, firewall.Diff(want, observeIn(t, ns)))
	chains := []string{
		"signalling", "signalling_opening", "signalling_tcp", "signalling_limit_lan", "untracked", "sip_errors",
		"no_hole", "answer_to_voice",
	}
	for _, chain := range chains {
		c := chainNamed(t, want, chain)
		for i := range c.Rules {
			for _, op := range []string{"tproxy", "socket", "fib", "ct", "dynset"} {
				spoiled := firewall.Want(signalled(firewall.Enforce))
				rule := &chainNamed(t, spoiled, chain).Rules[i]
				at := slices.IndexFunc(rule.Exprs, func(e firewall.Expr) bool { return e.Op == op })
				if at < 0 {
					continue
				}
				rule.Exprs = slices.Delete(slices.Clone(rule.Exprs), at, at+1)
				assert.NotEmpty(t, firewall.Diff(spoiled, observeIn(t, ns)), "%s without its %s", rule.Text, op)
			}
		}
	}
	for _, harm := range []string{
		"add rule inet ringway signalling meta l4proto udp tproxy to :9999",
		"add rule inet ringway signalling meta l4proto udp tproxy ip to 127.0.0.1:5271",
		"add rule inet ringway signalling socket wildcard 0 accept",
		"add rule inet ringway signalling fib saddr type local drop",
		"add rule inet ringway forward ct original ip saddr 10.0.0.1 accept",
		"add rule inet ringway forward rt mtu > 1000 accept",
	} {
		ns.Run("nft", harm)
		require.NotEmpty(t, applyIn(t, ns, want), harm)
		assert.Empty(t, firewall.Diff(want, observeIn(t, ns)), harm)
	}
}

func chainNamed(t *testing.T, s firewall.State, name string) *firewall.Chain {
	t.Helper()
	i := slices.IndexFunc(s.Chains, func(c firewall.Chain) bool { return c.Name == name })
	require.GreaterOrEqual(t, i, 0, name)
	return &s.Chains[i]
}
