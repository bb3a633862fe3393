package capture

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/bpf"
)

// udp is a packet from port 4000 to an address.
func udp(to string, payload []byte) []byte {
	dst := netip.MustParseAddrPort(to)
	src := netip.MustParseAddr("10.1.10.9")
	if dst.Addr().Is6() {
		src = netip.MustParseAddr("2001:db8:1::9")
	}
	b := binary.BigEndian.AppendUint16(nil, 4000)
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(append(b, 0, 0), payload...)
	header, _ := ipHeader(src, dst.Addr(), protoUDP, len(b))
	return append(header, b...)
}

// rtp is a packet of RTP with a payload.
func rtp(payloadType byte, sequence uint16, payload string) []byte {
	b := []byte{0x80, payloadType, 0, 0, 0, 0, 0, 1, 0, 0, 0, 7}
	binary.BigEndian.PutUint16(b[2:], sequence)
	return append(b, payload...)
}

var (
	sound  = strings.Repeat("sound", 32)
	report = append([]byte{0x81, 201, 0, 7, 0, 0, 0, 7}, bytes.Repeat([]byte{1}, 24)...)
	names  = append([]byte{0x81, 202, 0, 3, 0, 0, 0, 7}, "\x01\x06ann@pc"...)
)

func TestTheFilterKeepsTheCallAlone(t *testing.T) {
	to := netip.MustParseAddrPort
	flows := []Flow{
		{To: to("10.2.10.9:6000")}, {To: to("10.2.10.9:6001"), RTCP: true},
		{To: to("[2001:db8:2::9]:6000")}, {To: to("[2001:db8:2::9]:6001"), RTCP: true},
	}
	for len(flows) < MaxFlows+1 {
		flows = append(flows, Flow{To: to(fmt.Sprintf("[2001:db8:3::9]:%d", 1024+len(flows)))})
	}
	for _, c := range []struct {
		what           string
		packet         []byte
		headers, sound int // bytes that are copied
	}{
		{"RTP", udp("10.2.10.9:6000", rtp(8, 1, sound)), 20 + 8 + 12, 20 + 8 + 172},
		{"RTP over IPv6", udp("[2001:db8:2::9]:6000", rtp(8, 1, sound)), 40 + 8 + 12, 40 + 8 + 172},
		{"RTCP", udp("10.2.10.9:6001", report), 20 + 8 + 32, 20 + 8 + 32},
		{"RTCP over IPv6", udp("[2001:db8:2::9]:6001", report), 40 + 8 + 32, 40 + 8 + 32},
		{"RTCP on RTP's port", udp("10.2.10.9:6000", report), 20 + 8 + 32, 20 + 8 + 32},
		{"the last flow", udp(flows[MaxFlows-1].To.String(), rtp(8, 1, sound)), 40 + 8 + 12, 40 + 8 + 172},
		{"a flow too many", udp(flows[MaxFlows].To.String(), rtp(8, 1, sound)), 0, 0},
		{"another port", udp("10.2.10.9:6002", rtp(8, 1, sound)), 0, 0},
		{"another address", udp("10.2.10.8:6000", rtp(8, 1, sound)), 0, 0},
		{"another network", udp("[2001:db9:2::9]:6000", rtp(8, 1, sound)), 0, 0},
		{"nothing", []byte{}, 0, 0},
		{"cut", udp("10.2.10.9:6000", nil)[:22], 0, 0},
		{"no IP", []byte("no IP at all, whatever it is"), 0, 0},
	} {
		for with, want := range map[bool]int{false: c.headers, true: c.sound} {
			vm, err := bpf.NewVM(Filter(flows, with))
			require.NoError(t, err)
			n, err := vm.Run(c.packet)
			require.NoError(t, err)
			assert.Equal(t, want, min(n, len(c.packet)), "%s, with sound: %v", c.what, with)
		}
	}
	tcp := udp("10.2.10.9:6000", rtp(8, 1, sound))
	tcp[9] = protoTCP
	fragment := udp("10.2.10.9:6000", rtp(8, 1, sound))
	fragment[7] = 1
	vm, err := bpf.NewVM(Filter(flows, true))
	require.NoError(t, err)
	for _, b := range [][]byte{tcp, fragment} {
		n, err := vm.Run(b)
		require.NoError(t, err)
		assert.Zero(t, n)
	}
	assert.LessOrEqual(t, len(Filter(flows, false)), 4096, "the kernel takes no more")
}

func TestWhatIsKept(t *testing.T) {
	digit := "\x05\x0a\x00\xa0"
	for _, c := range []struct {
		what, payload, headers, sound string
	}{
		{"RTP", string(rtp(8, 1, sound)), string(rtp(8, 1, "")), string(rtp(8, 1, sound))},
		{"digits", string(rtp(101, 1, digit)), string(rtp(101, 1, "")), string(rtp(101, 1, "\x00\x00\x00\x00"))},
		{"the end of a digit", string(rtp(101|128, 1, digit)), string(rtp(101|128, 1, "")),
			string(rtp(101|128, 1, "\x00\x00\x00\x00"))},
		{"digits that nobody described", string(rtp(97, 1, digit)), string(rtp(97, 1, "")),
			string(rtp(97, 1, "\x00\x00\x00\x00"))},
		{"digits in a described type, of any length", string(rtp(101, 1, sound)), string(rtp(101, 1, "")),
			string(rtp(101, 1, strings.Repeat("\x00", len(sound))))},
		{"redundant digits", string(rtp(102, 1, sound)), string(rtp(102, 1, "")),
			string(rtp(102, 1, strings.Repeat("\x00", len(sound))))},
		{"Opus", string(rtp(96, 1, sound)), string(rtp(96, 1, "")), string(rtp(96, 1, sound))},
		{"a header that is cut", "\x9f" + string(rtp(8, 1, "ab")[1:]), "\x9f" + string(rtp(8, 1, "")[1:]),
			"\x9f" + string(rtp(8, 1, "")[1:])},
		{"an extension that is cut", "\x90" + string(rtp(8, 1, "ab")[1:]), "\x90" + string(rtp(8, 1, "")[1:]),
			"\x90" + string(rtp(8, 1, "")[1:])},
		{"a report", string(report), string(report), string(report)},
		{"a report with a name", string(report) + string(names), string(report), string(report)},
		{"a name", string(names), string(names[:8]), string(names[:8])},
		{"STUN with a user's name", "\x00\x01\x00\x10!\x12\xa4Buser:password", "\x00\x01\x00\x10!\x12\xa4B",
			"\x00\x01\x00\x10!\x12\xa4B"},
		{"nothing", "", "", ""},
	} {
		for with, want := range map[bool]string{false: c.headers, true: c.sound} {
			for _, to := range []string{"10.2.10.9:6000", "[2001:db8:2::9]:6000"} {
				cleaner := &Cleaner{Sound: with}
				cleaner.Describe([]byte("v=0\r\na=rtpmap:101 telephone-event/8000\r\na=rtpmap:102 RED/8000\r\n" +
					"a=rtpmap:999 telephone-event/8000\r\na=rtpmap:x tone\r\na=rtpmap:\r\na=rtpmap:96 opus/48000/2\r\n"))
				packet := udp(to, []byte(c.payload))
				head := len(packet) - len(c.payload)
				kept, length, ok := cleaner.Clean(packet)
				require.True(t, ok, c.what)
				assert.Equal(t, want, string(kept[head:]), "%s, with sound: %v", c.what, with)
				assert.Equal(t, head+len(c.payload), length, c.what)
			}
		}
	}
}

// A packet crosses two interfaces of the box, and comes once.
func TestEachPacketComesOnce(t *testing.T) {
	c := &Cleaner{}
	first := udp("10.2.10.9:6000", rtp(8, 1, sound))
	again := bytes.Clone(first)
	again[1], again[8], again[10] = 46<<2, 63, 7 // DSCP, hop limit, checksum
	_, _, ok := c.Clean(first)
	assert.True(t, ok)
	_, _, ok = c.Clean(again)
	assert.False(t, ok)
	for n := range 3 * len(c.recent) {
		_, _, ok = c.Clean(udp("10.2.10.9:6000", rtp(8, uint16(2+n), "")))
		require.True(t, ok)
	}
	assert.LessOrEqual(t, len(c.known), len(c.recent)+1, "what is remembered is bounded")
}

func TestWhatIsNoPacket(t *testing.T) {
	good := udp("10.2.10.9:6000", rtp(8, 1, sound))
	short := bytes.Clone(good)
	short[0] = 0x44
	lies := bytes.Clone(good)
	lies[2], lies[3] = 0, 21
	for _, b := range [][]byte{nil, {0x45}, good[:19], good[:27], short, lies, []byte(strings.Repeat("x", 100))} {
		_, _, ok := new(Cleaner).Clean(b)
		assert.False(t, ok, "%x", b)
	}
}

func FuzzClean(f *testing.F) {
	f.Add(udp("10.2.10.9:6000", rtp(8, 1, sound)), true)
	f.Add(udp("[2001:db8:2::9]:6000", append(report, names...)), false)
	f.Fuzz(func(t *testing.T, b []byte, with bool) {
		c := &Cleaner{Sound: with}
		c.Describe(b)
		kept, length, ok := c.Clean(bytes.Clone(b))
		if ok {
			assert.LessOrEqual(t, len(kept), len(b))
			assert.LessOrEqual(t, len(kept), length)
		}
	})
}

// The file begins as tcpdump's does, and each packet has when it came and how long it was.
func TestTheFile(t *testing.T) {
	var file bytes.Buffer
	w, err := NewWriter(&file, 1000)
	require.NoError(t, err)
	at := time.Unix(1_800_000_000, 5)
	require.NoError(t, w.Packet(at, []byte("head"), 200))
	assert.Equal(t, "4d3cb2a1"+"02000400"+"00000000"+"00000000"+"00000100"+"65000000"+
		"00d2496b"+"05000000"+"04000000"+"c8000000"+"68656164", fmt.Sprintf("%x", file.Bytes()))
	require.ErrorIs(t, w.Packet(at, make([]byte, 1000), 1000), ErrFull)
	assert.Equal(t, 24+16+4, file.Len(), "nothing of a packet that does not fit")
}

// Messages are packets of their own family and transport, with right checksums, and those of a connection continue one
// another.
func TestSignallingInTheFile(t *testing.T) {
	for _, c := range []struct {
		from, to string
		tcp      bool
	}{
		{"10.1.10.9:5060", "10.2.20.5:5060", false}, {"10.1.10.9:5060", "10.2.20.5:5060", true},
		{"[2001:db8:1::9]:5060", "[2001:db8:2::5]:5060", false}, {"[2001:db8:1::9]:5060", "[2001:db8:2::5]:5060", true},
	} {
		var file bytes.Buffer
		w, err := NewWriter(&file, 1<<20)
		require.NoError(t, err)
		from, to := netip.MustParseAddrPort(c.from), netip.MustParseAddrPort(c.to)
		for range 2 {
			require.NoError(t, w.Signalling(time.Unix(1, 0), from, to, c.tcp, []byte("OPTIONS sip:x SIP/2.0\r\n\r\n")))
		}
		head, transport := 20, 8
		if from.Addr().Is6() {
			head = 40
		}
		if c.tcp {
			transport = 20
		}
		b := file.Bytes()[24:]
		for n := range 2 {
			length := int(binary.LittleEndian.Uint32(b[8:]))
			packet := b[16 : 16+length]
			b = b[16+length:]
			assert.Equal(t, "OPTIONS sip:x SIP/2.0\r\n\r\n", string(packet[head+transport:]))
			_, pseudo := ipHeader(from.Addr(), to.Addr(), map[bool]byte{false: protoUDP, true: protoTCP}[c.tcp], length-head)
			assert.EqualValues(t, 0xffff, checksum(append(pseudo, packet[head:]...)), "the sum of all is zero")
			if head == 20 {
				assert.EqualValues(t, 0xffff, checksum(packet[:20]))
			}
			if c.tcp {
				assert.EqualValues(t, 1+25*n, binary.BigEndian.Uint32(packet[head+4:]))
			}
		}
		assert.Empty(t, b)
	}
	w, err := NewWriter(new(bytes.Buffer), 1<<20)
	require.NoError(t, err)
	mixed := w.Signalling(time.Now(), netip.MustParseAddrPort("10.1.10.9:5060"), netip.MustParseAddrPort("[::1]:5060"),
		false, nil)
	require.NoError(t, mixed)
	require.NoError(t, w.Signalling(time.Now(), netip.AddrPort{}, netip.AddrPort{}, false, nil))
	long := make([]byte, 70_000)
	require.NoError(t, w.Signalling(time.Now(), netip.MustParseAddrPort("10.1.10.9:5060"),
		netip.MustParseAddrPort("10.2.20.5:5060"), true, long))
	assert.Equal(t, 1, w.Packets)
}
