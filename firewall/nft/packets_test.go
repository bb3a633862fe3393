package nft

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/firewall"
	"ringway/qos"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

// world is a branch with real packets. Tunnels are veth pairs here: the rules see names only.
//
//	phone .2 --10.1.10.0/24-- voice0 |      | wan0 198.51.100.2 -- .1 internet
//	pc    .2 --10.1.20.0/24-- data0  | edge | rw-voice 192.0.2.1 -- .2 far, 10.2.10.2 (and 10.2.20.3)
//	          2001:db8:1:N::/64      |      | rw-data  192.0.2.5 -- .6 far, 10.2.20.2 (and 10.2.10.3)
type world struct {
	t                              *testing.T
	edge, phone, pc, internet, far *netnstest.NS
}

const phone4, pc4, farPhone4, farPC4, internet4 = "10.1.10.2", "10.1.20.2", "10.2.10.2", "10.2.20.2", "198.51.100.1"
const phone6, farPhone6 = "2001:db8:1:10::2", "2001:db8:2:10::2"

func newWorld(t *testing.T, in firewall.Input) *world {
	w := &world{t, netnstest.New(t), netnstest.New(t), netnstest.New(t), netnstest.New(t), netnstest.New(t)}
	netnstest.Veth(t, w.edge, "voice0", w.phone, "eth0")
	netnstest.Veth(t, w.edge, "data0", w.pc, "eth0")
	netnstest.Veth(t, w.edge, "wan0", w.internet, "eth0")
	netnstest.Veth(t, w.edge, "rw-voice", w.far, "voice")
	netnstest.Veth(t, w.edge, "rw-data", w.far, "data")
	w.phone.IP(
		"addr add 10.1.10.2/24 dev eth0", "route add default via 10.1.10.1",
		"addr add 2001:db8:1:10::2/64 dev eth0 nodad", "-6 route add default via 2001:db8:1:10::1",
	)
	w.pc.IP("addr add 10.1.20.2/24 dev eth0", "route add default via 10.1.20.1")
	w.internet.IP("addr add 198.51.100.1/24 dev eth0", "route add 10.0.0.0/8 via 198.51.100.2")
	w.far.IP("addr add 192.0.2.2/30 dev voice", "addr add 192.0.2.6/30 dev data",
		"addr add 10.2.10.2/32 dev lo", "addr add 10.2.10.3/32 dev lo",
		"addr add 10.2.20.2/32 dev lo", "addr add 10.2.20.3/32 dev lo", "addr add 10.66.0.1/32 dev lo",
		"route add default via 192.0.2.1", "rule add from 10.2.20.2 lookup 100",
		"rule add from 10.2.10.3 lookup 100", "route add default via 192.0.2.5 table 100",
		"addr add 2001:db8:2:10::2/128 dev lo nodad", "addr add 2001:db8:a::2/64 dev voice nodad",
		"-6 route add default via 2001:db8:a::1")
	w.edge.IP("addr add 10.1.10.1/24 dev voice0", "addr add 10.1.20.1/24 dev data0",
		"addr add 198.51.100.2/24 dev wan0", "route add default via 198.51.100.1",
		"addr add 192.0.2.1/30 dev rw-voice", "addr add 192.0.2.5/30 dev rw-data",
		"addr add 2001:db8:1:10::1/64 dev voice0 nodad", "addr add 2001:db8:a::1/64 dev rw-voice nodad",
		"route add 10.2.0.0/16 via 192.0.2.2 dev rw-voice table 5271",
		"route add 10.2.0.0/16 via 192.0.2.6 dev rw-data table 5272",
		"-6 route add 2001:db8:2::/48 via 2001:db8:a::2 table 5271",
		"-6 route add 2001:db8:2::/48 via 2001:db8:a::2 table 5272",
		"route add throw 10.1.10.0/24 table 5271", "route add throw 10.1.20.0/24 table 5271",
		"route add throw 10.1.10.0/24 table 5272", "route add throw 10.1.20.0/24 table 5272",
		"-6 route add throw 2001:db8:1:10::/64 table 5271")
	// A tunnel has no ARP and no neighbour discovery; a veth pair would ask, with addresses that the checks
	// refuse.
	for i, l := range []struct {
		mine, theirs string
		far          []string
		near         []string
	}{
		{"rw-voice", "voice", []string{"192.0.2.2", "2001:db8:a::2"}, []string{"192.0.2.1", "2001:db8:a::1"}},
		{"rw-data", "data", []string{"192.0.2.6"}, []string{"192.0.2.5"}},
	} {
		a, b := fmt.Sprintf("02:00:00:00:%02d:01", i), fmt.Sprintf("02:00:00:00:%02d:02", i)
		edge, far := []string{"link set " + l.mine + " address " + a}, []string{"link set " + l.theirs + " address " + b}
		for j := range l.far {
			edge = append(edge, fmt.Sprintf("neigh replace %s lladdr %s dev %s nud permanent", l.far[j], b, l.mine))
			far = append(far, fmt.Sprintf("neigh replace %s lladdr %s dev %s nud permanent", l.near[j], a, l.theirs))
		}
		w.edge.IP(edge...)
		w.far.IP(far...)
	}
	for _, fam := range []string{"-4", "-6"} {
		w.edge.IP(fam+" rule add pref 5210 fwmark 0x1200/0x1e00 lookup 5271",
			fam+" rule add pref 5210 fwmark 0x1400/0x1e00 lookup 5271",
			fam+" rule add pref 5220 fwmark 0x1600/0x1e00 lookup 5272",
			fam+" rule add pref 5220 fwmark 0x1800/0x1e00 lookup 5272")
	}
	w.edge.Run(
		"sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1",
		"net.ipv4.conf.all.src_valid_mark=1", "net.ipv4.conf.all.rp_filter=1",
	)
	// What the packets carry as they leave, noted by nft(8) itself, in a table that is not Ringway's.
	loadText(t, w.edge, strings.Split(`table inet witness {
	set seen { typeof oifname . udp dport . meta mark . meta priority . ip dscp; flags dynamic; size 4096; }
	set seen6 { typeof oifname . udp dport . meta mark . meta priority . ip6 dscp; flags dynamic; size 4096; }
	chain foreign { type filter hook prerouting priority -310; udp dport 7777 meta mark set 0x80010101
	}
	chain foreign_ct { type filter hook prerouting priority -180; udp dport 7777 ct mark set 0x40020102
	}
	chain out { type filter hook postrouting priority 200;
		add @seen { oifname . udp dport . meta mark . meta priority . ip dscp }
		add @seen6 { oifname . udp dport . meta mark . meta priority . ip6 dscp }
	}
}`, "\n"))
	applyIn(t, w.edge, firewall.Want(in))
	return w
}

func network(host string) string {
	if strings.Contains(host, ":") {
		return "udp6"
	}
	return "udp4"
}

// listen opens a UDP socket in n that tells the TOS of what it receives.
func (w *world) listen(n *netnstest.NS, host string, port int) *net.UDPConn {
	w.t.Helper()
	var conn net.PacketConn
	require.NoError(w.t, n.Do(func() (err error) {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
			})
		}}
		conn, err = lc.ListenPacket(
			context.Background(), network(host), net.JoinHostPort(host, fmt.Sprint(port)),
		)
		return
	}))
	w.t.Cleanup(func() { conn.Close() })
	return conn.(*net.UDPConn)
}

func (w *world) send(from *net.UDPConn, host string, port int, tos int) {
	w.t.Helper()
	w.sendBytes(from, host, port, tos, []byte("voice"))
}

func (w *world) sendBytes(from *net.UDPConn, host string, port int, tos int, payload []byte) {
	w.t.Helper()
	raw, err := from.SyscallConn()
	require.NoError(w.t, err)
	require.NoError(w.t, raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, tos)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, tos)
	}))
	_, err = from.WriteToUDPAddrPort(payload, netip.AddrPortFrom(netip.MustParseAddr(host), uint16(port)))
	if !errors.Is(err, unix.EPERM) { // the sender's own postrouting dropped it
		require.NoError(w.t, err)
	}
}

// receive waits for one datagram and gives its TOS octet.
func (w *world) receive(to *net.UDPConn, what string) int {
	w.t.Helper()
	buf, oob := make([]byte, 100), make([]byte, 100)
	require.NoError(w.t, to.SetReadDeadline(time.Now().Add(3*time.Second)))
	_, n, _, _, err := to.ReadMsgUDP(buf, oob)
	require.NoError(w.t, err, "%s: nothing arrived; counters %v", what, w.counters())
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	require.NoError(w.t, err)
	for _, m := range msgs {
		if m.Header.Type == unix.IP_TOS || m.Header.Type == unix.IPV6_TCLASS {
			return int(m.Data[0])
		}
	}
	w.t.Fatalf("%s: no TOS", what)
	return 0
}

func (w *world) counters() map[string]Counter {
	var out map[string]Counter
	require.NoError(w.t, w.edge.Do(func() (err error) { out, err = Counters(); return }))
	return out
}

// seen says whether a packet to port left by dev with this mark, priority (tc's words) and DSCP.
func (w *world) assertSeen(dev string, port int, mark uint32, priority, dscp string) {
	w.t.Helper()
	list := w.edge.Run("nft", "-y", "list", "table", "inet", "witness")
	if priority == "none" { // no shaped device: forwarding derived it from the TOS
		priority = "[0-9a-z:]+"
	}
	assert.Regexp(w.t, fmt.Sprintf("%q . %d . 0x%08x . %s . %s[ ,]", dev, port, mark, priority, dscp), list)
}

func (w *world) assertCounter(name string, atLeast uint64, what string) {
	w.t.Helper()
	polltest.Assert(w.t, func() bool { return w.counters()[name].Packets >= atLeast }, 10*time.Second, 5*time.Millisecond,
		"%s: counter %s is not %d", what, name, atLeast)
}

func TestClassOfPackets(t *testing.T) {
	t.Parallel()
	w := newWorld(t, branch())
	const ef, cs3, cs1, af31 = 46 << 2, 24 << 2, 8 << 2, 26 << 2
	for _, c := range []struct {
		name           string
		from           *netnstest.NS
		src            string
		sport          int
		to             *netnstest.NS
		dst            string
		dport, tos     int
		dev            string
		mark           uint32
		priority, dscp string
		arrives        int // TOS
	}{
		{
			"phone EF is media, ECN stays", w.phone, phone4, 16384, w.far, farPhone4, 16386, ef | 2, "rw-voice",
			0x1200, "none", "ef", ef | 2,
		},
		// nft itself shifts IPv6's DSCP wrongly here
		{
			"the same over IPv6", w.phone, phone6, 16384, w.far, farPhone6, 16388, ef | 1, "rw-voice", 0x1200,
			"none", "[a-z0-9]+", ef | 1,
		},
		{
			"phone AF31 is signalling, set to CS3", w.phone, phone4, 20000, w.far, farPhone4, 20002, af31 | 3,
			"rw-voice", 0x1400, "none", "cs3", cs3 | 3,
		},
		{
			"a class's port beats DSCP", w.phone, phone4, 30000, w.far, farPhone4, 5060, ef, "rw-voice", 0x1400,
			"none", "cs3", cs3,
		},
		{
			"a class's port as source", w.phone, phone4, 5060, w.far, farPhone4, 30100, 0, "rw-voice", 0x1400,
			"none", "cs3", cs3,
		},
		{
			"phone unmarked is data", w.phone, phone4, 20010, w.far, farPhone4, 20012, 0, "rw-data", 0x1600,
			"none", "cs0", 0,
		},
		{
			"phone CS1 is background", w.phone, phone4, 20020, w.far, farPhone4, 20022, cs1, "rw-data", 0x1800,
			"none", "cs1", cs1,
		},
		{
			"EF of a PC is not believed", w.pc, pc4, 20030, w.far, farPC4, 20032, ef | 1, "rw-data", 0x1600,
			"none", "cs0", 1,
		},
		{
			"CS1 of a PC yields", w.pc, pc4, 20040, w.far, farPC4, 20042, cs1, "rw-data", 0x1800, "none", "cs1",
			cs1,
		},
		{
			"SIP port of a PC is not believed", w.pc, pc4, 20050, w.far, farPC4, 5060, cs3, "rw-data", 0x1600,
			"none", "cs0", 0,
		},
		{
			"from the voice tunnel: EF towards phones", w.far, farPhone4, 20060, w.phone, phone4, 20062, ef | 2,
			"voice0", 0x1200, "none", "ef", ef | 2,
		},
		{
			"from the voice tunnel unmarked: media", w.far, farPhone4, 20070, w.phone, phone4, 20072, 0,
			"voice0", 0x1200, "none", "ef", ef,
		},
		{
			"from the voice tunnel CS3: signalling", w.far, farPhone4, 20080, w.phone, phone4, 20082, cs3,
			"voice0", 0x1400, "none", "cs3", cs3,
		},
		{
			"from the voice tunnel by port", w.far, farPhone4, 5060, w.phone, phone4, 20092, 0, "voice0",
			0x1400, "none", "cs3", cs3,
		},
		{
			"from the data tunnel EF is not believed", w.far, "10.2.10.3", 20100, w.phone, phone4, 20102,
			ef | 1, "voice0", 0x1600, "none", "cs0", 1,
		},
		{
			"phone EF to the internet", w.phone, phone4, 20110, w.internet, internet4, 20112, ef, "wan0", 0x200,
			"1:10", "ef", ef,
		},
		{
			"PC EF to the internet", w.pc, pc4, 20120, w.internet, internet4, 20122, ef, "wan0", 0x600, "1:30",
			"cs0", 0,
		},
		{
			"PC CS1 to the internet", w.pc, pc4, 20130, w.internet, internet4, 20132, cs1, "wan0", 0x800,
			"1:40", "cs1", cs1,
		},
		{
			"foreign mark bits stay", w.phone, phone4, 20140, w.far, farPhone4, 7777, ef, "rw-voice",
			0x80011301, "none", "ef", ef,
		},
	} {
		to := w.listen(c.to, c.dst, c.dport)
		from := w.listen(c.from, c.src, c.sport)
		w.send(from, c.dst, c.dport, c.tos)
		assert.Equal(t, c.arrives, w.receive(to, c.name), c.name)
		w.assertSeen(c.dev, c.dport, c.mark, c.priority, c.dscp)
		from.Close()
		to.Close()
	}
	track := w.edge.Run("cat", "/proc/net/nf_conntrack")
	assert.Regexp(
		t, `dport=7777 .*mark=1073873666 `, track,
		"foreign bits of the conntrack mark stay, the class is added: 0x40020302",
	)
	assert.NotContains(t, track, "helper=")
	assert.Positive(t, w.counters()["class_media"].Packets)
}

// A far end with one tunnel: its packets are told apart by ports and DSCP, whichever tunnel it is.
func TestSiteWithOneTunnel(t *testing.T) {
	t.Parallel()
	in := branch()
	in.SingleSiteNetworks = prefixes("10.2.10.0/24")
	w := newWorld(t, in)
	w.edge.Run("ip", "route", "replace", "10.2.0.0/16", "via", "192.0.2.6", "dev", "rw-data", "table", "5271")
	for i, c := range []struct{ sport, tos, arrives int }{{21000, 46 << 2, 46 << 2}, {5060, 0, 24 << 2}, {21002, 0, 0}} {
		from, to := w.listen(w.far, "10.2.10.3", c.sport), w.listen(w.phone, phone4, 21100+i)
		w.send(from, phone4, 21100+i, c.tos)
		assert.Equal(t, c.arrives, w.receive(to, "from the one tunnel"))
		w.send(to, "10.2.10.3", c.sport, 0)
		assert.Equal(t, c.arrives, w.receive(from, "the reply, unmarked"))
	}
}

// A reply has the class of the request, whatever its own DSCP says, through LAN and tunnel.
func TestConntrackRemembers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, branch())
	phone, far := w.listen(w.phone, phone4, 16000), w.listen(w.far, farPhone4, 16002)
	w.send(far, phone4, 16000, 46<<2)
	w.receive(phone, "request")
	w.send(phone, farPhone4, 16002, 0)
	assert.Equal(t, 46<<2, w.receive(far, "unmarked reply of a phone to EF"))
	w.assertSeen("rw-voice", 16002, 0x1200, "none", "ef")
	// The same flow, now marked as signalling: each packet is judged by itself before memory is asked.
	w.send(phone, farPhone4, 16002, 24<<2)
	assert.Equal(t, 24<<2, w.receive(far, "the same flow with CS3"))
	w.assertSeen("rw-voice", 16002, 0x1400, "none", "cs3")
}

// Ciphertext keeps its mark and gets the tunnel's DSCP and queue; a peer in the map its own.
func TestCiphertext(t *testing.T) {
	t.Parallel()
	w := newWorld(t, branch())
	w.internet.Run("ip", "addr", "add", "203.0.113.2/32", "dev", "lo")
	mark := func(c *net.UDPConn, m int) {
		raw, err := c.SyscallConn()
		require.NoError(t, err)
		require.NoError(
			t,
			raw.Control(func(fd uintptr) {
				require.NoError(
					t, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, m),
				)
			}),
		)
	}
	tc := func(line string) { w.edge.Run("tc", strings.Fields(line)...) }
	// Neighbour discovery of the box's own, on any of its devices, is data: it would be counted, in the
	// queues and in the classes.
	w.edge.Run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
	tc("qdisc add dev wan0 root handle 1: htb default 99")
	queues := []string{"1:10", "1:20", "1:30", "1:40", "1:99", "1:110"}
	for _, q := range queues {
		tc("class add dev wan0 parent 1: classid " + q + " htb rate 10mbit")
	}
	voice, data := w.listen(w.edge, "198.51.100.2", 51820), w.listen(w.edge, "198.51.100.2", 51821)
	mark(voice, 0x2000)
	mark(data, 0x4000)
	for _, c := range []struct {
		name           string
		from           *net.UDPConn
		dst            string
		port, tos      int
		mark           uint32
		priority, dscp string
		arrives        int
	}{
		{"voice, as the kernel engine sends it", voice, internet4, 41000, 2, 0x2000, "1:10", "ef", 46<<2 | 2},
		{
			"voice, as wireguard-go sends it, and media marked apart", voice, internet4, 41006, 46<<2 | 1,
			0x2000, "1:10", "ef", 46<<2 | 1,
		},
		{
			"voice, signalling marked apart", voice, internet4, 41001, 24<<2 | 2, 0x2000, "1:20", "cs3",
			24<<2 | 2,
		},
		{"voice, with what no class has", voice, internet4, 41007, 26 << 2, 0x2000, "1:10", "ef", 46 << 2},
		{"voice, with background's", voice, internet4, 41008, 8 << 2, 0x2000, "1:10", "ef", 46 << 2},
		{"data, DSCP wiped", data, internet4, 41002, 46<<2 | 1, 0x4000, "1:30", "cs0", 1},
		{"data, with signalling's", data, internet4, 41009, 24 << 2, 0x4000, "1:30", "cs0", 0},
		{"data, background marked apart", data, internet4, 41003, 8 << 2, 0x4000, "1:40", "cs1", 8 << 2},
		{
			"a peer with a queue of its own", voice, "203.0.113.2", 51820, 46 << 2, 0x2000, "1:110", "ef",
			46 << 2,
		},
	} {
		to := w.listen(w.internet, c.dst, c.port)
		w.send(c.from, c.dst, c.port, c.tos)
		assert.Equal(t, c.arrives, w.receive(to, c.name), c.name)
		w.assertSeen("wan0", c.port, c.mark, c.priority, c.dscp)
	}
	// And the shaper agrees. What has no class (1:99) is ARP.
	stats := w.edge.Run("tc", "-s", "class", "show", "dev", "wan0")
	for q, n := range map[string]int{"1:10": 4, "1:20": 1, "1:30": 2, "1:40": 1, "1:110": 1} {
		assert.Regexp(t, fmt.Sprintf(`class htb %s root [^\n]*\n Sent \d+ bytes %d pkt`, q, n), stats)
	}
	// The peer roams: only elements change, and the queue follows. Without such peers no map is asked.
	roamed := branch()
	roamed.Peers[0].Endpoint = netip.MustParseAddrPort("198.51.100.1:41005")
	for _, c := range applyIn(t, w.edge, firewall.Want(roamed)) {
		assert.Contains(t, []firewall.Op{firewall.AddElements, firewall.DeleteElements}, c.Op)
	}
	send := func(queue string) {
		t.Helper()
		to := w.listen(w.internet, internet4, 41005)
		defer to.Close()
		w.send(voice, internet4, 41005, 46<<2)
		w.receive(to, "roamed")
		w.assertSeen("wan0", 41005, 0x2000, queue, "ef")
	}
	send("1:110")
	roamed.Peers = nil
	applyIn(t, w.edge, firewall.Want(roamed))
	assert.NotContains(t, w.edge.Run("nft", "list", "table", "inet", "ringway"), "prio_")
	send("1:10")
	// What comes in to the listen ports is let in; another port is not.
	in := w.listen(w.internet, internet4, 42000)
	before := w.counters()
	// whoever sent it could write any DSCP: nothing looks at it
	for _, tos := range []int{0, 46 << 2, 24<<2 | 3, 8 << 2} {
		w.send(in, "198.51.100.2", 51820, tos)
		assert.Equal(t, tos, w.receive(voice, "ciphertext in"))
	}
	for _, c := range qos.ClassNames {
		assert.Equal(
			t, before[firewall.ClassCounter(c)], w.counters()[firewall.ClassCounter(c)],
			"ciphertext is put into class %s", c,
		)
	}
	assert.NotRegexp(
		t, "(sport|dport)=5182[01] ", w.edge.Run("cat", "/proc/net/nf_conntrack"), "ciphertext is not tracked",
	)
	w.send(in, "198.51.100.2", 9999, 0)
	w.assertCounter(firewall.CounterInputWANDrop, 1, "a port that nobody serves")
}

func TestWhatIsDropped(t *testing.T) {
	t.Parallel()
	w := newWorld(t, branch())
	// Routes as if the daemon's rules were gone: site networks would leave on the WAN.
	lost := func() {
		for _, pref := range []string{"5210", "5210", "5220", "5220"} {
			w.edge.Run("ip", "rule", "del", "pref", pref)
		}
	}
	for _, c := range []struct {
		name    string
		from    *netnstest.NS
		src     string
		dst     string
		dport   int
		counter string
		before  func()
	}{
		{"a PC to a phone", w.pc, pc4, phone4, 8080, firewall.CounterVoiceDataApart, nil},
		{"a phone to a PC's odd port", w.phone, phone4, pc4, 8080, firewall.CounterVoiceDataApart, nil},
		{"a PC to a far phone", w.pc, pc4, farPhone4, 80, firewall.CounterVoiceDataApart, nil},
		{"a far PC to a phone", w.far, "10.2.20.3", phone4, 80, firewall.CounterVoiceDataApart, nil},
		{"a site to the internet", w.far, farPhone4, internet4, 53, firewall.CounterHairpinWAN, nil},
		{"the internet to a LAN", w.internet, internet4, pc4, 80, firewall.CounterForwardDrop, nil},
		{"a site to the box", w.far, farPhone4, "10.1.10.1", 22, firewall.CounterInputTunnelDrop, nil},
		{"a PC to the box", w.pc, pc4, "10.1.20.1", 22, firewall.CounterInputLANDrop, nil},
		{
			"a phone with a false address", w.phone, "10.1.20.99", farPhone4, 5060, firewall.CounterSpoofLAN,
			func() { w.phone.Run("ip", "addr", "add", "10.1.20.99/32", "dev", "lo") },
		},
		{"an address no site has", w.far, "10.66.0.1", phone4, 5060, firewall.CounterSpoofTunnel, nil},
		{
			"a site's address from the WAN", w.internet, farPhone4, "198.51.100.2", 51820,
			firewall.CounterSpoofWAN,
			func() { w.internet.Run("ip", "addr", "add", farPhone4+"/32", "dev", "lo") },
		},
		{
			"our own address from the WAN", w.internet, phone4, "198.51.100.2", 51820, firewall.CounterSpoofWAN,
			func() { w.internet.Run("ip", "addr", "add", phone4+"/32", "dev", "lo") },
		},
		{"a phone to a site, tunnels gone", w.phone, phone4, farPhone4, 5060, firewall.CounterLeakWAN, lost},
		{"the box to a site, tunnels gone", w.edge, "10.1.10.1", farPhone4, 5060, firewall.CounterLeakWAN, nil},
	} {
		if c.before != nil {
			c.before()
		}
		had := w.counters()[c.counter].Packets
		w.send(w.listen(c.from, c.src, 0), c.dst, c.dport, 0)
		w.assertCounter(c.counter, had+1, c.name)
	}
}

// What has to go through: services between voice and data, local internet with masquerade, pings.
func TestWhatPasses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, branch())
	for _, c := range []struct {
		name     string
		from, to *netnstest.NS
		src, dst string
		port     int
	}{
		{"a phone asks a time server on the data network", w.phone, w.pc, phone4, pc4, 123},
		{"a server on the data network calls a phone", w.pc, w.phone, pc4, phone4, 5060},
		{"a phone registers at a far server on a data network", w.phone, w.far, phone4, farPC4, 5060},
		{"bulk between data networks", w.pc, w.far, pc4, farPC4, 5201},
	} {
		from, to := w.listen(c.from, c.src, 0), w.listen(c.to, c.dst, c.port)
		w.send(from, c.dst, c.port, 0)
		w.receive(to, c.name)
		w.send(to, c.src, from.LocalAddr().(*net.UDPAddr).Port, 0)
		w.receive(from, c.name+": reply")
	}
	for _, p := range []struct {
		from     *netnstest.NS
		src, dst string
	}{{w.phone, phone4, farPhone4}, {w.pc, pc4, farPC4}, {w.phone, phone4, "10.1.10.1"}, {w.pc, pc4, internet4},
		{w.far, farPhone4, phone4},
		{w.far, farPC4, pc4}, {w.internet, internet4, "198.51.100.2"}, {w.phone, phone6, farPhone6}} {
		_, err := p.from.Try("ping", "-c1", "-W2", "-I", p.src, p.dst)
		assert.NoError(t, err, "%s to %s; %v", p.src, p.dst, w.counters())
	}
	pc, out := w.listen(w.pc, pc4, 0), w.listen(w.internet, internet4, 5300)
	w.send(pc, internet4, 5300, 0)
	buf := make([]byte, 10)
	require.NoError(t, out.SetReadDeadline(time.Now().Add(3*time.Second)))
	_, from, err := out.ReadFromUDPAddrPort(buf)
	require.NoError(t, err)
	assert.Equal(t, "198.51.100.2", from.Addr().String(), "masqueraded")
	w.send(out, "198.51.100.2", int(from.Port()), 0)
	w.receive(pc, "reply from the internet")

	var refused net.Conn
	require.NoError(t, w.pc.Do(func() (err error) {
		refused, err = (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(pc4)}}).Dial("udp", internet4+":5301")
		return err
	}))
	defer refused.Close()
	_, err = refused.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, refused.SetReadDeadline(time.Now().Add(3*time.Second)))
	_, err = refused.Read(buf)
	assert.ErrorIs(t, err, unix.ECONNREFUSED, "an ICMP error about a flow of the WAN arrives")
}

func TestSegmentsFitTheTunnel(t *testing.T) {
	t.Parallel()
	w := newWorld(t, branch())
	var l net.Listener
	require.NoError(t, w.far.Do(func() (err error) { l, err = net.Listen("tcp4", farPC4+":5201"); return }))
	defer l.Close()
	size := make(chan int, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			size <- 0
			return
		}
		defer c.Close()
		raw, _ := c.(*net.TCPConn).SyscallConn()
		raw.Control(func(fd uintptr) {
			n, _ := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG)
			size <- n
		})
	}()
	var mine int
	require.NoError(t, w.pc.Do(func() error {
		c, err := net.DialTimeout("tcp4", farPC4+":5201", 3*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(func(fd uintptr) { mine, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) })
	}))
	// TCP takes 12 bytes of its 1380 for timestamps; the devices themselves would allow 1448.
	assert.Equal(t, 1368, <-size, "from the far side to here")
	assert.Equal(t, 1368, mine, "from here to the far side")
}

// A change touches what differs, and nothing else: counters and handles stay.
func TestReloadTouchesOnlyTheDifference(t *testing.T) {
	t.Parallel()
	w := newWorld(t, branch())
	w.send(w.listen(w.pc, pc4, 0), phone4, 8080, 0)
	w.assertCounter(firewall.CounterVoiceDataApart, 1, "before")
	before := observeIn(t, w.edge)

	in := branch()
	in.SiteDataNetworks = append(in.SiteDataNetworks, prefixes("10.3.20.0/24")...)
	changes := applyIn(t, w.edge, firewall.Want(in))
	for _, c := range changes {
		assert.Contains(
			t, []firewall.Op{firewall.FlushSet, firewall.AddElements}, c.Op, "a new site is elements only",
		)
	}
	in.Tunnels[0].MTU = 1280
	in.Classes[0].Ports = append(in.Classes[0].Ports, branch().Classes[1].Ports[0])
	changes = applyIn(t, w.edge, firewall.Want(in))
	for _, c := range changes {
		if c.Op == firewall.AddRule || c.Op == firewall.InsertRule || c.Op == firewall.DeleteRule {
			assert.Contains(t, []string{
				"segments", "trusted", "from_voice_tunnel", "media_to_voice", "from_data_lan", "services", "calls",
			}, c.Name)
		}
	}
	after := observeIn(t, w.edge)
	assert.Empty(t, firewall.Diff(firewall.Want(in), after))
	handles := func(s firewall.State, chain string) (out []uint64) {
		for _, c := range s.Chains {
			for _, r := range c.Rules {
				if c.Name == chain {
					out = append(out, r.Handle)
				}
			}
		}
		return
	}
	assert.Equal(t, handles(before, "forward"), handles(after, "forward"))
	assert.EqualValues(t, 1, w.counters()[firewall.CounterVoiceDataApart].Packets, "counters survive")

	changes = applyIn(t, w.edge, firewall.State{})
	assert.Len(t, changes, 1)
	assert.Equal(
		t, "table inet witness\n", w.edge.Run("nft", "list", "tables"),
		"stop leaves nothing, and what is not ours",
	)
}

func TestProbe(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	var missing []firewall.Feature
	require.NoError(t, ns.Do(func() (err error) { missing, err = Probe(); return }))
	assert.Empty(t, missing)
	assert.Empty(t, ns.Run("nft", "list", "ruleset"), "nothing is left behind")
}
