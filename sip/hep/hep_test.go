package hep

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/message"
	"ringway/sip/privacy"
)

const options = "OPTIONS sip:pbx.example.com SIP/2.0\r\nVia: SIP/2.0/UDP 10.1.10.10;branch=z9hG4bK1\r\n" +
	"From: <sip:pbx.example.com>;tag=a\r\nTo: <sip:pbx.example.com>\r\nCall-ID: 7d1@10.1.10.10\r\nCSeq: 1 OPTIONS\r\n" +
	"Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n"

func kept(text string) privacy.Text {
	var m message.Message
	var r privacy.Redactor
	why := m.Scan([]byte(text))
	return r.Redact(&m, why)
}

func packet(from, to string) *Packet {
	return &Packet{
		At:   time.Unix(1_800_000_000, 123_456_789),
		From: netip.MustParseAddrPort(from), To: netip.MustParseAddrPort(to),
		Call: "7d1@10.1.10.10", Text: kept(options),
	}
}

func encoder(t testing.TB, key string) *Encoder {
	t.Helper()
	e, err := NewEncoder(2001, key)
	require.NoError(t, err)
	return e
}

// The packet byte for byte, written down from the specification.
func TestPacket(t *testing.T) {
	p := packet("10.1.10.10:5060", "10.2.10.5:5061")
	p.Text = kept("\r\n\r\n")
	p.Call = "abc"
	got, err := encoder(t, "key").Append(nil, p)
	require.NoError(t, err)
	assert.Equal(t, "48455033"+"0092"+ // HEP3, 146 bytes
		"0000"+"0001"+"0007"+"02"+
		"0000"+"0002"+"0007"+"11"+
		"0000"+"0003"+"000a"+"0a010a0a"+
		"0000"+"0004"+"000a"+"0a020a05"+
		"0000"+"0007"+"0008"+"13c4"+
		"0000"+"0008"+"0008"+"13c5"+
		"0000"+"0009"+"000a"+"6b49d200"+
		"0000"+"000a"+"000a"+"0001e240"+
		"0000"+"000b"+"0007"+"01"+
		"0000"+"000c"+"000a"+"000007d1"+
		"0000"+"000e"+"0009"+hex.EncodeToString([]byte("key"))+
		"0000"+"0011"+"0009"+hex.EncodeToString([]byte("abc"))+
		"0000"+"000f"+"0023"+hex.EncodeToString([]byte("[keep_alive, blanked 4 bytes]")),
		hex.EncodeToString(got))
}

// chunks reads a packet by its structure alone.
func chunks(t testing.TB, b []byte) map[int][]byte {
	t.Helper()
	require.Equal(t, "HEP3", string(b[:4]))
	require.Equal(t, len(b), int(binary.BigEndian.Uint16(b[4:])))
	all := map[int][]byte{}
	for b = b[6:]; len(b) > 0; {
		require.Zero(t, binary.BigEndian.Uint16(b))
		kind, size := int(binary.BigEndian.Uint16(b[2:])), int(binary.BigEndian.Uint16(b[4:]))
		require.NotContains(t, all, kind)
		all[kind], b = b[6:size], b[size:]
	}
	return all
}

func TestIPv6OverAStreamWithoutKey(t *testing.T) {
	p := packet("[2001:db8::10]:40001", "[2001:db8::5]:5061")
	p.Stream = true
	before := []byte("before")
	got, err := encoder(t, "").Append(before, p)
	require.NoError(t, err)
	assert.Equal(t, "before", string(got[:6]))
	all := chunks(t, got[6:])
	assert.Equal(t, []byte{10}, all[family])
	assert.Equal(t, []byte{6}, all[protocol])
	assert.Equal(t, p.From.Addr().AsSlice(), all[source6])
	assert.Equal(t, p.To.Addr().AsSlice(), all[target6])
	assert.NotContains(t, all, source4)
	assert.NotContains(t, all, target4)
	assert.NotContains(t, all, authKey)
	assert.Equal(t, "7d1@10.1.10.10", string(all[correlation]))
	assert.Equal(t, p.Text.String(), string(all[payload]))

	mapped := packet("[::ffff:10.1.10.10]:5060", "10.2.10.5:5060")
	got, err = encoder(t, "").Append(nil, mapped)
	require.NoError(t, err)
	assert.Equal(t, []byte{10, 1, 10, 10}, chunks(t, got)[source4], "an IPv4 address in the form of IPv6")
}

func TestWhatCannotBeSent(t *testing.T) {
	dst := []byte("x")
	p := packet("10.1.10.10:5060", "[2001:db8::5]:5061")
	got, err := encoder(t, "").Append(dst, p)
	assert.ErrorIs(t, err, ErrAddress)
	assert.Equal(t, dst, got)
	_, err = encoder(t, "").Append(dst, &Packet{})
	assert.ErrorIs(t, err, ErrAddress)

	long := strings.Replace(options, "Max-Forwards: 70", "User-Agent: "+strings.Repeat("x", 65535-len(options)), 1)
	p = packet("10.1.10.10:5060", "10.2.10.5:5061")
	p.Text = kept(long)
	require.Greater(t, p.Text.Len(), 65400)
	got, err = encoder(t, "").Append(dst, p)
	assert.ErrorIs(t, err, ErrTooLong)
	assert.Equal(t, dst, got)

	p = packet("10.1.10.10:5060", "10.2.10.5:5061")
	p.Call = strings.Repeat("c", 70000)
	got, err = encoder(t, "").Append(nil, p)
	require.NoError(t, err)
	assert.Len(t, chunks(t, got)[correlation], maxID)

	_, err = NewEncoder(1, strings.Repeat("k", 257))
	assert.EqualError(t, err, "HEP key has 257 bytes (at most 256)")
}

func TestAppendAllocatesNothing(t *testing.T) {
	e, p, b := encoder(t, "key"), packet("10.1.10.10:5060", "10.2.10.5:5061"), make([]byte, 0, 4096)
	assert.Zero(t, testing.AllocsPerRun(100, func() { _, _ = e.Append(b, p) }))
}

// sngrep reads HEP version 3 with a parser of its own, and writes the message as the packet that it was; tshark
// (which does not know HEP) reads that.
func TestSngrepReadsIt(t *testing.T) {
	for _, tool := range []string{"sngrep", "tshark"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: apt-get install %s", tool, tool)
		}
	}
	for _, test := range []struct{ from, to, want string }{
		{"10.1.10.10", "10.2.10.5", "10.1.10.10|10.2.10.5||"},
		{"2001:db8::10", "2001:db8::5", "0.0.0.0|0.0.0.0||"}, // sngrep writes no IPv6; the rest it has read
	} {
		p := packet(netip.AddrPortFrom(netip.MustParseAddr(test.from), 5060).String(),
			netip.AddrPortFrom(netip.MustParseAddr(test.to), 5061).String())
		b, err := encoder(t, "").Append(nil, p)
		require.NoError(t, err)
		in, out := filepath.Join(t.TempDir(), "hep.pcap"), filepath.Join(t.TempDir(), "sip.pcap")
		require.NoError(t, os.WriteFile(in, pcap(b), 0o600))
		text, err := exec.Command("sngrep", "-F", "-N", "-q", "-E", "-I", in, "-O", out).CombinedOutput()
		require.NoError(t, err, "%s", text)

		args := []string{"-r", out, "-T", "fields", "-E", "separator=|"}
		for _, field := range []string{"frame.time_epoch", "ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "udp.srcport",
			"udp.dstport", "sip.Method", "sip.Call-ID", "udp.length"} {
			args = append(args, "-e", field)
		}
		got, err := exec.Command("tshark", args...).Output()
		require.NoError(t, err)
		first, _, _ := strings.Cut(string(got), "\n") // sngrep 1.6.0 writes each message twice
		assert.Equal(t, fmt.Sprintf("1800000000.123456000|%s|5060|5061|OPTIONS|7d1@10.1.10.10|%d",
			test.want, 8+p.Text.Len()), first)
	}
}

// pcap is a capture file of one UDP datagram over IPv4 and Ethernet.
func pcap(datagram []byte) []byte {
	length := 14 + 28 + len(datagram)
	file := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	file = append(file, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0)
	file = append(file, 0, 0, 0, 0, 0, 0, 0, 0)
	file = binary.LittleEndian.AppendUint32(file, uint32(length))
	file = binary.LittleEndian.AppendUint32(file, uint32(length))
	file = append(file, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0)
	file = binary.BigEndian.AppendUint16(file, uint16(length-14))
	file = append(file, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2)
	file = binary.BigEndian.AppendUint16(file, 40000)
	file = binary.BigEndian.AppendUint16(file, Port)
	file = binary.BigEndian.AppendUint16(file, uint16(8+len(datagram)))
	return append(append(file, 0, 0), datagram...)
}

func FuzzAppend(f *testing.F) {
	f.Add([]byte(options), "7d1", "key", uint32(1), uint32(2), uint16(5060), int64(1_800_000_000_123_456_789), true)
	f.Fuzz(func(t *testing.T, text []byte, call, key string, from, to uint32, port uint16, at int64, stream bool) {
		e, err := NewEncoder(from, key)
		if err != nil {
			return
		}
		p := &Packet{
			At:     time.Unix(0, at),
			From:   netip.AddrPortFrom(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, from))), port),
			To:     netip.AddrPortFrom(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, to))), port),
			Stream: stream, Call: call, Text: kept(string(text)),
		}
		b, err := e.Append(nil, p)
		if err != nil {
			return
		}
		all := chunks(t, b)
		assert.Equal(t, p.Text.String(), string(all[payload]))
		assert.Equal(t, from, binary.BigEndian.Uint32(all[source4]))
		assert.Equal(t, port, binary.BigEndian.Uint16(all[targetPort]))
	})
}
