package oracle

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/qos"
	"ringway/test/lab"
	"ringway/test/lab/capture"
	"ringway/test/polltest"
)

// What a burst of packets is: enough to stand out from keepalives and handshakes, few enough to fit any queue.
const burst = 20

// dscp by name, as the config has it.
var dscp = map[string]int{"DF": 0, "CS1": 8, "AF31": 26, "CS3": 24, "CS5": 40, "EF": 46}

// A packet's class decides its queue on the WAN and the mark that the provider sees. Which class it has is
// decided by where it comes from, its DSCP (believed from phones alone) and its port. The voice tunnel's
// engine, realtime, marks what it encrypts by the class inside; what is in the data tunnel is marked as the
// tunnel is, for its engine sees whole devices.
var classes = []struct {
	from           string
	dscp           string
	port           int
	site, internet qos.ClassName // the queue, by where it goes
	siteMark, mark string        // the DSCP on the wire
}{
	{lab.PhoneA, "EF", 20000, qos.Media, qos.Media, "EF", "EF"},
	{lab.PhoneA, "CS3", 20002, qos.Signalling, qos.Signalling, "CS3", "CS3"},
	{lab.PhoneA, "AF31", 20004, qos.Signalling, qos.Signalling, "CS3", "CS3"},
	{lab.PhoneA, "DF", 5060, qos.Signalling, qos.Signalling, "CS3", "CS3"},
	{lab.PhoneA, "DF", 20006, qos.Data, qos.Data, "DF", "DF"},
	{lab.PhoneA, "EF", 123, qos.Data, qos.Data, "DF", "DF"}, // NTP is data, whatever the phone says
	{lab.PhoneA, "CS1", 20008, qos.Data, qos.Background, "DF", "CS1"},
	{lab.PCA, "EF", 20000, qos.Data, qos.Data, "DF", "DF"}, // nobody believes a PC
	{lab.PCA, "CS3", 20002, qos.Data, qos.Data, "DF", "DF"},
	{lab.PCA, "DF", 5060, qos.Data, qos.Data, "DF", "DF"},
	{lab.PCA, "DF", 20004, qos.Data, qos.Data, "DF", "DF"},
	{lab.PCA, "CS1", 20006, qos.Data, qos.Background, "DF", "CS1"}, // a packet may ask for less
}

func TestPacketsAreSeenInTheirClass(t *testing.T) {
	t.Parallel()
	l := branches(t)
	edge := l.Host(lab.EdgeA)
	for _, family := range []string{"4", "6"} {
		t.Run("IPv"+family, func(t *testing.T) {
			for i, c := range classes {
				site := map[string]string{lab.PhoneA + "4": "10.2.10.10", lab.PCA + "4": "10.2.20.10",
					lab.PhoneA + "6": "2001:db8:2:10::10", lab.PCA + "6": "2001:db8:2:20::10"}[c.from+family]
				name := fmt.Sprintf("%s %s port %d", c.from, c.dscp, c.port)
				own := socket(t, l.Host(c.from), 30000+i) // a flow of its own: a class is remembered with its flow
				check := func(to string, class qos.Place, mark string, ours func(capture.Frame) bool) {
					t.Helper()
					before := queues(t, edge)
					wan, err := capture.StartFrames(netPath(edge), "wan0")
					require.NoError(t, err)
					sendFrom(t, own, to, c.port, dscp[c.dscp])
					after := before
					polltest.Require(t, func() bool {
						after = queues(t, edge)
						return after[class]-before[class] >= burst
					}, patience, 20*time.Millisecond, "%s to %s: not in class %v", name, to, class)
					for other, n := range after {
						if other != class {
							assert.Less(t, n-before[other], burst/2, "%s to %s: seen in class %v, wanted %v", name, to, other, class)
						}
					}
					frames, err := wan.Stop()
					require.NoError(t, err)
					seen := map[int]int{}
					for _, f := range frames {
						if f.Outgoing && ours(f) {
							seen[int(f.DSCP)]++
						}
					}
					assert.GreaterOrEqual(t, seen[dscp[mark]], burst, "%s to %s: DSCP on the WAN %v, wanted %s", name, to,
						seen, mark)
					delete(seen, dscp[mark])
					for _, n := range seen {
						assert.Less(t, n, burst/2, "%s to %s: DSCP on the WAN", name, to)
					}
				}
				check(site, qos.Place{Site: "munich", Class: c.site}, c.siteMark, func(f capture.Frame) bool {
					return f.Kind == capture.WireGuard && f.Type == 4 && f.Destination.Addr() == netip.MustParseAddr(addressB)
				})
				if family == "4" { // the provider of the shipped pair has IPv4 alone
					check("203.0.113.1", qos.Place{Site: qos.Local, Class: c.internet}, c.mark, func(f capture.Frame) bool {
						return f.Destination == netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), uint16(c.port))
					})
				}
			}
		})
	}
}

// What the internet answers is held on the LAN where it goes; what comes out of a tunnel is not.
func TestWhatComesInFromTheInternetIsHeldOnTheLAN(t *testing.T) {
	t.Parallel()
	l := branches(t)
	edge, pc := l.Edge("a").Host, l.Host(lab.PCA)
	counts := func() (held, rest int) {
		out := sh(t, edge, "tc -s class show dev data0")
		for h, n := range map[string]*int{"2:10": &held, "2:f0": &rest} {
			m := regexp.MustCompile(`class htb ` + h + ` .*\n\s*Sent \d+ bytes (\d+) pkt`).FindStringSubmatch(out)
			require.NotNil(t, m, "%s", out)
			var err error
			*n, err = strconv.Atoi(m[1])
			require.NoError(t, err)
		}
		return held, rest
	}
	reaches(t, pc, "10.2.20.10")
	held, rest := counts()
	reaches(t, pc, "203.0.113.1")
	now, _ := counts()
	assert.Greater(t, now, held)
	held = now
	reaches(t, pc, "10.2.20.10")
	now, more := counts()
	assert.Equal(t, held, now)
	assert.Greater(t, more, rest)
	assert.Regexp(t, `data0 +downlink `, sh(t, edge, ringway+" status --queues --once"))
}

// queues counts packets by site and class on wan0.
func queues(t *testing.T, edge *lab.Host) map[qos.Place]int {
	out := sh(t, edge, "tc -s class show dev wan0")
	counts, places := map[qos.Place]int{}, qos.Places([]string{"munich"})
	for _, m := range regexp.MustCompile(
		`class htb (1:[0-9a-f]+) .*\n\s*Sent \d+ bytes (\d+) pkt`).FindAllStringSubmatch(out, -1) {
		n, err := strconv.Atoi(m[2])
		require.NoError(t, err)
		var h qos.Handle
		require.NoError(t, h.UnmarshalText([]byte(m[1])))
		if p, ok := places[h]; ok {
			counts[p] = n
		}
	}
	require.Len(t, counts, 8, "%s", out)
	return counts
}

// socket opens a UDP socket on a host.
func socket(t *testing.T, h *lab.Host, port int) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	require.NoError(t, h.Do(func() (err error) {
		c, err = net.ListenUDP("udp", &net.UDPAddr{Port: port})
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return c
}

// mark sets the traffic class byte (DSCP and ECN) of what a socket sends.
func mark(t *testing.T, c *net.UDPConn, v6 bool, tos int) {
	t.Helper()
	raw, err := c.SyscallConn()
	require.NoError(t, err)
	var serr error
	require.NoError(t, raw.Control(func(fd uintptr) {
		if v6 {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, tos)
		} else {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, tos)
		}
	}))
	require.NoError(t, serr)
}

func send(t *testing.T, h *lab.Host, from int, to string, port, dscp int) {
	t.Helper()
	c := socket(t, h, from)
	defer c.Close()
	sendFrom(t, c, to, port, dscp)
}

func sendFrom(t *testing.T, c *net.UDPConn, to string, port, dscp int) {
	t.Helper()
	addr := netip.MustParseAddr(to)
	mark(t, c, addr.Is6(), dscp<<2)
	for range burst {
		_, err := c.WriteToUDPAddrPort(make([]byte, 172), netip.AddrPortFrom(addr, uint16(port)))
		require.NoError(t, err)
	}
}

// A packet crosses two edges as it would two routers: one hop each, ECN as it was; its DSCP is what its class
// has, on the phone's side again, whatever the sender took.
func TestWhatArrivesAtThePhone(t *testing.T) {
	t.Parallel()
	l := branches(t)
	for i, c := range []struct {
		from, to, addr string
		sent, ecn      int
		arrives        int
	}{
		{lab.PhoneA, lab.PhoneB, "10.2.10.10", dscp["EF"], 2, dscp["EF"]},
		{lab.PhoneA, lab.PhoneB, "10.2.10.10", dscp["EF"], 3, dscp["EF"]},
		{lab.PhoneA, lab.PhoneB, "10.2.10.10", dscp["CS5"], 1, dscp["CS3"]},
		{lab.PhoneA, lab.PhoneB, "10.2.10.10", dscp["AF31"], 0, dscp["CS3"]},
		{lab.PhoneA, lab.PhoneB, "10.2.10.10", dscp["DF"], 2, dscp["DF"]},
		{lab.PhoneA, lab.PhoneB, "10.2.10.10", dscp["CS1"], 2, dscp["CS1"]},
		{lab.PhoneA, lab.PhoneB, "2001:db8:2:10::10", dscp["CS5"], 2, dscp["CS3"]},
		{lab.PhoneB, lab.PhoneA, "10.1.10.10", dscp["EF"], 2, dscp["EF"]},
		{lab.PCA, lab.PCB, "10.2.20.10", dscp["EF"], 3, dscp["DF"]},
		{lab.PCA, lab.PCB, "2001:db8:2:20::10", dscp["CS1"], 1, dscp["CS1"]},
	} {
		addr := netip.MustParseAddr(c.addr)
		in := socket(t, l.Host(c.to), 25000+i)
		raw, err := in.SyscallConn()
		require.NoError(t, err)
		require.NoError(t, raw.Control(func(fd uintptr) {
			for _, o := range []struct{ level, option int }{{unix.IPPROTO_IP, unix.IP_RECVTOS},
				{unix.IPPROTO_IP, unix.IP_RECVTTL},
				{unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS}, {unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT}} {
				assert.NoError(t, unix.SetsockoptInt(int(fd), o.level, o.option, 1))
			}
		}))
		out := socket(t, l.Host(c.from), 26000+i)
		mark(t, out, addr.Is6(), c.sent<<2|c.ecn)
		_, err = out.WriteToUDPAddrPort([]byte("hello"), netip.AddrPortFrom(addr, uint16(25000+i)))
		require.NoError(t, err)

		b, oob := make([]byte, 100), make([]byte, 256)
		require.NoError(t, in.SetReadDeadline(time.Now().Add(patience)))
		_, n, _, _, err := in.ReadMsgUDPAddrPort(b, oob)
		require.NoError(t, err, "%s to %s", c.from, c.addr)
		tos, ttl := header(t, oob[:n])
		name := fmt.Sprintf("%s to %s with DSCP %d", c.from, c.addr, c.sent)
		assert.Equal(t, c.arrives, tos>>2, "%s: DSCP", name)
		assert.Equal(t, c.ecn, tos&3, "%s: ECN", name)
		assert.Equal(t, 64-2, ttl, "%s: two edges are two hops, the tunnel is none", name)
	}
}

func header(t *testing.T, oob []byte) (tos, ttl int) {
	t.Helper()
	messages, err := unix.ParseSocketControlMessage(oob)
	require.NoError(t, err)
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TOS && len(m.Data) > 0:
			tos = int(m.Data[0])
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TTL,
			m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT:
			ttl = int(binary.NativeEndian.Uint32(m.Data))
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_TCLASS:
			tos = int(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return tos, ttl
}

// TCP learns how long its packets may be from the SYN: the tunnel's MTU less the headers, in either direction
// and family.
func TestSYNsAreClamped(t *testing.T) {
	t.Parallel()
	l := branches(t)
	for _, c := range []struct {
		from, to, addr string
		mss            int
	}{
		{lab.PCA, lab.PCB, "10.2.20.10", 1420 - 40}, {lab.PCB, lab.PCA, "10.1.20.10", 1420 - 40},
		{lab.PCA, lab.PCB, "2001:db8:2:20::10", 1420 - 60}, {lab.PhoneA, lab.PhoneB, "10.2.10.10", 1420 - 40},
	} {
		const port = 5060 // what phones and PCs may both reach
		to := l.Host(c.to)
		var ear int
		require.NoError(t, to.Do(func() (err error) {
			ear, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
			if err != nil {
				return err
			}
			link, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			return unix.Bind(ear, &unix.SockaddrLinklayer{Protocol: uint16(unix.ETH_P_ALL) << 8, Ifindex: link.Index})
		}))
		defer unix.Close(ear)
		require.NoError(t, unix.SetsockoptTimeval(ear, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}))
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		done := make(chan struct{})
		go func() { // refused, since nobody listens there: the SYN is all that is wanted
			defer close(done)
			_ = l.Host(c.from).Do(func() error {
				d := net.Dialer{}
				conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(netip.MustParseAddr(c.addr), port).String())
				if err == nil {
					conn.Close()
				}
				return err
			})
		}()
		mss, b := 0, make([]byte, 2048)
		for end := time.Now().Add(patience); mss == 0 && time.Now().Before(end); {
			n, _, err := unix.Recvfrom(ear, b, 0)
			if err == nil {
				mss = synMSS(b[:n], port)
			}
		}
		cancel()
		<-done
		assert.Equal(t, c.mss, mss, "%s to %s", c.from, c.addr)
	}
}

// synMSS reads the option from an IP packet that is a SYN to a port; 0 for any other packet.
func synMSS(b []byte, port uint16) int {
	switch {
	case len(b) >= 40 && b[0]>>4 == 4 && b[9] == unix.IPPROTO_TCP:
		b = b[int(b[0]&15)*4:]
	case len(b) >= 60 && b[0]>>4 == 6 && b[6] == unix.IPPROTO_TCP:
		b = b[40:]
	default:
		return 0
	}
	if len(b) < 20 || binary.BigEndian.Uint16(b[2:]) != port || b[13]&0x12 != 0x02 {
		return 0
	}
	for o := b[20:min(len(b), int(b[12]>>4)*4)]; len(o) >= 4; {
		switch {
		case o[0] == 2:
			return int(binary.BigEndian.Uint16(o[2:]))
		case o[0] == 1:
			o = o[1:]
		case o[1] < 2 || int(o[1]) > len(o):
			return 0
		default:
			o = o[o[1]:]
		}
	}
	return 0
}

// A site that is heard from another port, as behind a NAT that forgot it, takes its queues along: at once, by
// elements of the maps, with every rule as it was.
func TestASiteThatRoamsKeepsItsQueues(t *testing.T) {
	t.Parallel()
	l := branches(t)
	edge, pc := l.Host(lab.EdgeA), l.Host(lab.PCA)
	reaches(t, pc, "10.2.20.10")
	rules := func() string {
		return sh(t, edge, "nft -a list chain inet ringway wan_data; nft -a list chain inet ringway egress_wan")
	}
	element := func(port string) bool {
		return strings.Contains(sh(t, edge, "nft list map inet ringway prio_data4"), addressB+" . "+port+" :")
	}
	before := rules()
	require.True(t, element("51821"))
	sh(t, l.Host(lab.EdgeB), strings.Join([]string{"nft add table inet nat_box",
		"nft add chain inet nat_box out '{ type filter hook postrouting priority 300; }'", "nft add rule inet " +
			"nat_box out oifname wan0 udp sport 51821 udp sport set 40021",
		"nft add chain inet nat_box in '{ type filter hook prerouting priority -400; }'", "nft add rule inet " +
			"nat_box in iifname wan0 udp dport 40021 udp dport set 51821"}, "\n"))
	sh(t, l.Host(lab.PCB), "ping -n -q -c 1 -W 5 10.1.20.10") // it is heard
	polltest.Require(t, func() bool { return element("40021") && !element("51821") }, patience, 20*time.Millisecond)
	was := queues(t, edge)
	send(t, pc, 31000, "10.2.20.10", 20004, 0)
	munich := qos.Place{Site: "munich", Class: qos.Data}
	polltest.Require(t, func() bool { return queues(t, edge)[munich]-was[munich] >= burst }, patience,
		20*time.Millisecond)
	assert.Equal(t, before, rules())
	assert.Contains(t, sh(t, edge, "nft list map inet ringway prio_media4"), addressB+" . 51820 :",
		"the voice tunnel is where it was")
}
