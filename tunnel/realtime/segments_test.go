package realtime

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/enginetest"
	"ringway/test/netnstest"
	"ringway/tunnel"
)

// lossRule has the netdev hook of an interface lose 3 % of the packets of RTP, and remember which. A copy of a packet
// has the marker: it is lost with the packet, or not at all.
const lossRule = `table netdev lose {
	set lost {
		typeof udp sport . @th,80,16
		size 65535
		flags dynamic
	}
	chain arriving {
		type filter hook ingress device "%s" priority 0
		udp dport 20000 @th,72,8 0x08 numgen random mod 1000 < 30 add @lost { udp sport . @th,80,16 } drop
		udp dport 20000 @th,72,8 0x88 udp sport . @th,80,16 @lost drop
	}
}`

// lineRule has it lose 3 % of the tunnel's packets of that size: reports and handshakes have others.
const lineRule = `table netdev lose {
	chain arriving {
		type filter hook ingress device "wire0" priority 0
		udp dport 51820 udp length 248 numgen random mod 1000 < 30 drop
	}
}`

// segments are two engines with a phone behind each.
//
//	phone a ---- lan0 box a rw0 ==== wire0 ==== rw0 box b lan0 ---- phone b
//	10.77.1.2    10.77.1.1                       10.77.2.1         10.77.2.2
type segments struct {
	t      *testing.T
	boxes  [2]*enginetest.Box
	phones [2]*netnstest.NS
}

func newSegments(t *testing.T) *segments {
	s := &segments{t: t}
	s.boxes[0], s.boxes[1] = wire(t)
	for i, b := range s.boxes {
		b.Open(0, 0, wide)
		phone := netnstest.New(t)
		s.phones[i] = phone
		netnstest.Veth(t, phone, "eth0", b.NS, "lan0")
		network := fmt.Sprintf("10.77.%d", i+1)
		b.NS.Run("ip", "address", "add", network+".1/24", "dev", "lan0")
		phone.Run("ip", "address", "add", network+".2/24", "dev", "eth0")
		phone.Run("ip", "route", "add", "default", "via", network+".1")
		b.NS.Run("ip", "route", "add", fmt.Sprintf("10.77.%d.0/24", 2-i), "dev", "rw0")
		b.NS.Run("sysctl", "-qw", "net.ipv4.ip_forward=1")
		b.Start(wide)
		require.NoError(t, b.E.SetBounds(tunnel.Bounds{})) // the rule on the line has to see single packets
		require.NoError(t, b.E.(*Engine).SetMeasured(measured))
	}
	for i, b := range s.boxes {
		far := s.boxes[1-i]
		b.Set(b.Peer(far, fmt.Sprintf("192.0.2.%d:51820", far.N)) + fmt.Sprintf("allowed_ip=10.77.%d.0/24\n", 2-i))
	}
	require.NoError(t, s.boxes[0].Ping("10.66.0.2"))
	return s
}

func (s *segments) engine(i int) *Engine { return s.boxes[i].E.(*Engine) }

// load loads a ruleset.
func (s *segments) load(ns *netnstest.NS, rules string) {
	s.t.Helper()
	cmd := ns.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	out, err := cmd.CombinedOutput()
	require.NoError(s.t, err, string(out))
}

// numbers are sequence numbers of each call.
type numbers [segmentCalls]map[uint16]bool

func newNumbers() (n numbers) {
	for c := range n {
		n[c] = map[uint16]bool{}
	}
	return n
}

// lost is which packets a rule has lost.
func (s *segments) lost(ns *netnstest.NS) numbers {
	s.t.Helper()
	out := ns.Run("nft", "-n", "list", "set", "netdev", "lose", "lost")
	which := newNumbers()
	for _, e := range regexp.MustCompile(`(\d+) \. (0x[0-9a-f]+|\d+)`).FindAllStringSubmatch(out, -1) {
		port, err := strconv.ParseUint(e[1], 10, 16)
		require.NoError(s.t, err)
		sequence, err := strconv.ParseUint(e[2], 0, 16)
		require.NoError(s.t, err)
		which[port-firstPort][uint16(sequence)] = true
	}
	return which
}

// socket is a socket of a phone, whose packets are EF.
func (s *segments) socket(i int, port uint16) *net.UDPConn {
	s.t.Helper()
	var c net.PacketConn
	require.NoError(s.t, s.phones[i].Do(func() (err error) {
		config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, ef)
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
			})
		}}
		c, err = config.ListenPacket(s.t.Context(), "udp4", fmt.Sprintf("10.77.%d.2:%d", i+1, port))
		return err
	}))
	s.t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

const (
	segmentCalls   = 30
	copiedCalls    = 6    // of them, whose packets come twice: their phones report nothing, since they would count copies
	segmentPackets = 2400 // of each call, 50 a second
	quietPackets   = 300  // of them, at the end, without losses
	firstPort      = 30000
)

// Calls over two boxes lose 3 % of their packets in the LAN, on the line and in the far LAN each, more than a thousand
// in each of them. Which were lost is known from the rules that lose them, and from the far phone. Meanwhile packets
// come twice and in another order, and sessions change. The boxes put at least 99 % to the right segment.
func TestLongLossesArePutToTheirSegment(t *testing.T) {
	s := newSegments(t)
	far := s.socket(1, 20000)
	received := newNumbers()
	var mu sync.Mutex
	done := make(chan struct{})
	go func() { // phone b
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := far.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if n > 12 {
				mu.Lock()
				received[from.Port()-firstPort][binary.BigEndian.Uint16(buf[2:])] = true
				mu.Unlock()
			}
		}
	}()
	var sockets [segmentCalls]*net.UDPConn
	for c := range sockets {
		sockets[c] = s.socket(0, uint16(firstPort+c))
	}
	send := func(call, i int, payload byte) {
		p := make([]byte, 172)
		p[0], p[1] = 0x80, payload
		binary.BigEndian.PutUint16(p[2:], uint16(i))
		binary.BigEndian.PutUint32(p[4:], uint32(160*i))
		binary.BigEndian.PutUint32(p[8:], uint32(1000+call))
		_, err := sockets[call].WriteToUDPAddrPort(p, netip.MustParseAddrPort("10.77.2.2:20000"))
		require.NoError(t, err)
	}

	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := range segmentPackets {
		<-tick.C
		switch i {
		case 120: // the first packets of all calls have come, and their phones have reported once
			s.load(s.boxes[0].NS, fmt.Sprintf(lossRule, "lan0"))
			s.load(s.boxes[1].NS, lineRule)
			s.load(s.phones[1], fmt.Sprintf(lossRule, "eth0"))
		case segmentPackets - quietPackets:
			for _, ns := range []*netnstest.NS{s.boxes[0].NS, s.boxes[1].NS, s.phones[1]} {
				ns.Run("nft", "flush", "chain", "netdev", "lose", "arriving")
			}
		}
		if i%500 == 499 {
			s.engine(0).Handshake()
		}
		for c := range segmentCalls {
			switch last := i == segmentPackets-1; {
			case (i+c)%10 == 5 && !last: // the next one comes first
			case (i+c)%10 == 6 && i > 0:
				send(c, i, 8)
				send(c, i-1, 8)
			default:
				send(c, i, 8)
				if c < copiedCalls {
					send(c, i, 0x88)
				}
			}
		}
		if i%100 == 99 {
			mu.Lock()
			for c := copiedCalls; c < segmentCalls; c++ {
				_, err := far.WriteToUDPAddrPort(receiverReport(uint32(1000+c), received[c]),
					netip.AddrPortFrom(netip.MustParseAddr("10.77.1.2"), uint16(firstPort+c)))
				require.NoError(t, err)
			}
			mu.Unlock()
		}
	}
	for range 5 * 50 { // the ends tell each other what became of the last ones
		<-tick.C
	}
	far.Close()
	<-done
	s.compare(received)
}

// receiverReport is what a phone reports that has received these packets.
func receiverReport(source uint32, received map[uint16]bool) []byte {
	highest := slices.Max(slices.Collect(maps.Keys(received)))
	lost := int(highest) + 1 - len(received)
	r := []byte{0x81, 201, 0, 7, 0, 0, 0, 99}
	r = binary.BigEndian.AppendUint32(r, source)
	r = binary.BigEndian.AppendUint32(r, uint32(lost)&0xffffff)
	r = binary.BigEndian.AppendUint32(r, uint32(highest))
	return append(r, make([]byte, 12)...)
}

// compare compares what the engines say with the truth.
func (s *segments) compare(received numbers) {
	t := s.t
	lan, behind := s.lost(s.boxes[0].NS), s.lost(s.phones[1])
	var truth [segmentCalls]struct{ lan, line, far int }
	for c := range truth {
		for n := range uint16(segmentPackets) {
			switch {
			case lan[c][n]:
				truth[c].lan++
			case received[c][n]:
			case behind[c][n]:
				truth[c].far++
			default:
				truth[c].line++
			}
		}
	}

	type tally struct{ lost, wrong int }
	tallies := map[string]*tally{}
	count := func(what string, truth, said int) {
		x := tallies[what]
		if x == nil {
			x = &tally{}
			tallies[what] = x
		}
		x.lost += truth
		x.wrong += max(truth-said, said-truth)
	}
	for i := range s.boxes {
		found := 0
		for from, next := 0, -1; next != 0; from = next {
			page, err := s.engine(i).Series(from)
			require.NoError(t, err)
			next = page.Next
			for _, x := range page.Series {
				if x.Out != (i == 0) {
					continue
				}
				c := int(x.Source) - 1000
				found++
				assert.EqualValues(t, segmentPackets, x.Expected)
				if x.Out {
					count("sender: phone's LAN", truth[c].lan, int(x.Expected-x.Arrived))
					count("sender: line", truth[c].line, int(x.Line))
					if c >= copiedCalls {
						count("sender: far LAN", truth[c].far, int(x.FarLAN))
					}
				} else {
					count("receiver: far LAN", truth[c].lan, int(x.FarLAN))
					count("receiver: line", truth[c].line, int(x.Line))
				}
				assert.Zero(t, x.FarBox)
			}
		}
		assert.Equal(t, segmentCalls, found)
	}
	require.Len(t, tallies, 5)
	for what, x := range tallies {
		t.Logf("%s: %d lost, %d of them put elsewhere", what, x.lost, x.wrong)
		assert.GreaterOrEqual(t, x.lost, 1000, what)
		assert.LessOrEqual(t, float64(x.wrong), 0.01*float64(x.lost), what)
	}
}
