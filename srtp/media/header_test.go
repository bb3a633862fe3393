package media

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"pgregory.net/rapid"
)

// packet is a payload with its headers.
func packet(from, to netip.AddrPort, dscp uint8, payload []byte) []byte {
	b := append(make([]byte, headersOf(from.Addr())), payload...)
	putHeaders(b, from, to, dscp)
	return b
}

func drawAddress(t *rapid.T, v6 bool, name string) netip.AddrPort {
	size := 4
	if v6 {
		size = 16
	}
	a, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), size, size).Draw(t, name))
	return netip.AddrPortFrom(a, rapid.Uint16().Draw(t, name+" port"))
}

// plainSum is RFC 1071 word by word.
func plainSum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		if sum += word; sum > 0xffff {
			sum -= 0xffff
		}
	}
	return uint16(sum)
}

// x/net reads the headers as they were meant, and the checksums add up word by word.
func TestHeaders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		from, to := drawAddress(t, v6, "from"), drawAddress(t, v6, "to")
		dscp := rapid.Uint8Range(0, 63).Draw(t, "dscp")
		payload := rapid.SliceOfN(rapid.Byte(), 0, maxPacket).Draw(t, "payload")
		b := packet(from, to, dscp, payload)

		var pseudo []byte
		if v6 {
			h, err := ipv6.ParseHeader(b)
			require.NoError(t, err)
			assert.Equal(t, &ipv6.Header{
				Version: 6, TrafficClass: int(dscp) << 2, PayloadLen: udpHeader + len(payload), NextHeader: protocolUDP,
				HopLimit: hops, Src: from.Addr().AsSlice(), Dst: to.Addr().AsSlice(),
			}, h)
		} else {
			h, err := ipv4.ParseHeader(b)
			require.NoError(t, err)
			assert.Equal(t, len(b), h.TotalLen)
			assert.Equal(t, int(dscp)<<2, h.TOS)
			assert.Equal(t, ipv4.DontFragment, h.Flags)
			assert.Equal(t, protocolUDP, h.Protocol)
			assert.Equal(t, net.IP(from.Addr().AsSlice()).To16(), h.Src.To16())
			assert.Equal(t, net.IP(to.Addr().AsSlice()).To16(), h.Dst.To16())
			assert.Equal(t, uint16(0xffff), plainSum(b[:ipv4Header]))
		}
		u := b[len(b)-udpHeader-len(payload):]
		pseudo = append(append(pseudo, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
		pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(u)))
		pseudo = append(pseudo, 0, 0, 0, protocolUDP)
		assert.Equal(t, uint16(0xffff), plainSum(append(pseudo, u...)))
		assert.NotZero(t, binary.BigEndian.Uint16(u[6:]), "0 means that there is no checksum")
		assert.Equal(t, []uint16{from.Port(), to.Port(), uint16(len(u))},
			[]uint16{binary.BigEndian.Uint16(u), binary.BigEndian.Uint16(u[2:]), binary.BigEndian.Uint16(u[4:])})
		assert.Equal(t, payload, append([]byte{}, u[udpHeader:]...))
	})
}

// A checksum that is 0 is sent as 0xffff.
func TestAChecksumIsNeverNone(t *testing.T) {
	for word := range 1 << 16 {
		b := packet(ours4, phone4, 46, []byte{byte(word >> 8), byte(word)})
		require.NotZero(t, binary.BigEndian.Uint16(b[ipv4Header+6:]))
	}
}

// tshark finds nothing wrong with what we write.
func TestHeadersByTshark(t *testing.T) {
	if testing.Short() {
		t.Skip("needs tshark")
	}
	var packets [][]byte
	for n := range 40 {
		payload := bytes.Repeat([]byte{byte(n), 0xff, 0}, n*11)
		packets = append(packets, packet(ours4, phone4, uint8(n), payload[:max(len(payload)-n%3, 0)]),
			packet(ours6, phone6, uint8(n), payload[:max(len(payload)-n%3, 0)]))
	}
	const rawIP = 101 // LINKTYPE_RAW
	file := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	for _, v := range []uint32{2 | 4<<16, 0, 0, 65535, rawIP} {
		file = binary.LittleEndian.AppendUint32(file, v)
	}
	for i, p := range packets {
		for _, v := range []uint32{uint32(i), 0, uint32(len(p)), uint32(len(p))} {
			file = binary.LittleEndian.AppendUint32(file, v)
		}
		file = append(file, p...)
	}
	path := filepath.Join(t.TempDir(), "headers.pcap")
	require.NoError(t, os.WriteFile(path, file, 0o600))

	var said strings.Builder
	cmd := exec.Command("tshark", "-r", path, "-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE",
		"-T", "fields", "-E", "separator=,", "-e", "ip.checksum.status", "-e", "udp.checksum.status", "-e", "udp.srcport",
		"-e", "ip.dsfield.dscp", "-e", "ipv6.tclass.dscp")
	cmd.Stderr = &said
	text, err := cmd.Output()
	require.NoError(t, err, "%s", said.String())
	var want []string
	for n := range 40 { // status 1 is good
		want = append(want, fmt.Sprintf("1,1,40000,%d,", n), fmt.Sprintf(",1,40000,,%d", n))
	}
	assert.Equal(t, want, strings.Split(strings.TrimSpace(string(text)), "\n"))
}
