package capture

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"
)

// frame4 is an Ethernet frame with IPv4 and UDP around payload.
func frame4(sport, dport uint16, tos uint8, payload []byte) []byte {
	b := make([]byte, 14+20+8, 14+20+8+len(payload))
	binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IP)
	ip := b[14:]
	ip[0], ip[1], ip[9] = 0x45, tos, unix.IPPROTO_UDP
	copy(ip[12:], []byte{198, 51, 100, 2})
	copy(ip[16:], []byte{203, 0, 113, 2})
	binary.BigEndian.PutUint16(ip[20:], sport)
	binary.BigEndian.PutUint16(ip[22:], dport)
	binary.BigEndian.PutUint16(ip[24:], uint16(8+len(payload)))
	return append(b, payload...)
}

func frame6(next uint8, payload ...byte) []byte {
	b := make([]byte, 14+40)
	binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IPV6)
	ip := b[14:]
	binary.BigEndian.PutUint32(ip, 6<<28|uint32(46<<2)<<20)
	ip[6] = next
	return append(b, payload...)
}

func pad(n int, head ...byte) []byte { return append(head, make([]byte, n-len(head))...) }

func TestKindsOfFrames(t *testing.T) {
	arp := make([]byte, 42)
	binary.BigEndian.PutUint16(arp[12:], unix.ETH_P_ARP)
	tcpSIP := append(pad(20), "INVITE sip:bob@example.com SIP/2.0\r\n"...)
	tcpSIP[12] = 5 << 4
	for name, c := range map[string]struct {
		frame []byte
		kind  Kind
	}{
		"initiation":                 {frame4(51820, 51820, 0, pad(148, 1)), WireGuard},
		"response":                   {frame4(51820, 51820, 0, pad(92, 2)), WireGuard},
		"cookie":                     {frame4(51820, 51820, 0, pad(64, 3)), WireGuard},
		"data":                       {frame4(40000, 9, 0, pad(240, 4)), WireGuard},
		"keepalive":                  {frame4(40000, 9, 0, pad(32, 4)), WireGuard},
		"no initiation: length":      {frame4(51820, 51820, 0, pad(149, 1)), UDP},
		"no data: reserved not zero": {frame4(51820, 51820, 0, pad(240, 4, 1)), UDP},
		"RTP":                        {frame4(6000, 6000, 0, pad(172, 0x80)), RTP},
		"SIP":                        {frame4(5060, 5060, 0, []byte("SIP/2.0 200 OK\r\n")), SIP},
		"SIP on another port":        {frame4(40001, 40000, 0, []byte("BYE sip:bob@example.com SIP/2.0\r\n")), SIP},
		"DNS":                        {frame4(40001, 53, 0, pad(30)), DNS},
		"empty UDP":                  {frame4(1, 2, 0, nil), UDP},
		"ARP":                        {arp, ARP},
		"SIP over TCP":               {frame6(unix.IPPROTO_TCP, tcpSIP...), SIP},
		"TCP":                        {frame6(unix.IPPROTO_TCP, pad(20)...), TCP},
		"neighbour solicitation":     {frame6(unix.IPPROTO_ICMPV6, 135, 0, 0, 0), ND},
		"listener report":            {frame6(0, unix.IPPROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0, 143, 0), ND},
		"echo":                       {frame6(unix.IPPROTO_ICMPV6, 128, 0, 0, 0), ICMP},
		"short":                      {[]byte{1, 2, 3}, Other},
	} {
		assert.Equal(t, c.kind, parseFrame(c.frame).Kind, name)
	}
	f := parseFrame(frame4(51820, 51821, 46<<2|1, pad(240, 4)))
	assert.EqualValues(t, 46, f.DSCP)
	assert.EqualValues(t, 4, f.Type)
	assert.Equal(t, netip.MustParseAddrPort("203.0.113.2:51821"), f.Destination)
	assert.EqualValues(t, 46, parseFrame(frame6(unix.IPPROTO_TCP, pad(20)...)).DSCP)
}

func FuzzParse(f *testing.F) {
	f.Add(frame4(6000, 6000, 0, pad(172, 0x80)))
	f.Add(frame6(0, unix.IPPROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0, 143, 0))
	f.Add(frame6(unix.IPPROTO_TCP, pad(20)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = parseFrame(b)
		if h, ok := parseIP(b); ok {
			_, _ = parseRTP(h.payload)
		}
		_, _ = stamp(b)
	})
}
