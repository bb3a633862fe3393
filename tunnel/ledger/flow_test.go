package ledger

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What has no ports is one flow between two hosts.
func TestFlowsAreToldApart(t *testing.T) {
	seed := Seed{rand.Uint64(), rand.Uint64()}
	v6 := func(port byte, next byte) []byte {
		p := make([]byte, 100)
		p[0], p[5], p[6] = 0x60, 60, next
		p[8], p[24], p[41] = 0xfd, 0xfd, port
		return p
	}
	options := func(port uint16) []byte {
		p := mediaPacket(1, 100, false)
		p[0] = 0x46
		binary.BigEndian.PutUint16(p[24:], port)
		return p
	}
	fragment := func(port uint16, offset byte) []byte {
		p := mediaPacket(port, 100, false)
		p[7] = offset
		return p
	}
	same := [][2][]byte{
		{mediaPacket(7, 100, false), mediaPacket(7, 200, true)},
		{v6(1, 17), v6(1, 17)},
		{v6(1, 44), v6(2, 44)},
		{fragment(1, 9), fragment(2, 18)},
		{options(5), options(5)},
	}
	for _, c := range same {
		assert.Equal(t, seed.Packet(c[0]), seed.Packet(c[1]))
	}
	different := [][2][]byte{
		{mediaPacket(7, 100, false), mediaPacket(8, 100, false)},
		{v6(1, 17), v6(2, 17)},
		{options(5), options(6)},
		{v6(1, 17), v6(1, 44)},
	}
	for _, c := range different {
		assert.NotEqual(t, seed.Packet(c[0]), seed.Packet(c[1]))
	}
	for n := range 60 { // cut short anywhere
		for _, p := range [][]byte{mediaPacket(1, 60, true), v6(1, 17)[:60], options(1)[:60]} {
			if n >= 20 && p[0]>>4 == 4 || n >= 40 {
				seed.Packet(p[:n])
				isRTCP(p[:n])
			}
		}
	}
}

// The hash of a reservation's addresses and ports is that of its packets.
func TestAReservationHasItsPacketsHash(t *testing.T) {
	seed := Seed{rand.Uint64(), rand.Uint64()}
	flow := func(source, destination string) uint64 {
		return seed.Flow(netip.MustParseAddrPort(source), netip.MustParseAddrPort(destination))
	}
	v4 := seed.Packet(mediaPacket(20000, 200, false))
	assert.Equal(t, v4, flow("10.66.0.1:20000", "10.66.0.2:20000"))
	assert.Equal(t, v4, flow("[::ffff:10.66.0.1]:20000", "10.66.0.2:20000"))
	assert.NotEqual(t, v4, flow("10.66.0.1:20000", "10.66.0.2:20002"))
	assert.NotEqual(t, v4, flow("10.66.0.2:20000", "10.66.0.1:20000"), "the other direction")

	v6 := make([]byte, 100)
	v6[0], v6[6] = 0x60, protocolUDP
	from, to := netip.MustParseAddr("fd66::1").As16(), netip.MustParseAddr("fd66::2").As16()
	copy(v6[8:], from[:])
	copy(v6[24:], to[:])
	binary.BigEndian.PutUint16(v6[40:], 5004)
	binary.BigEndian.PutUint16(v6[42:], 5006)
	assert.Equal(t, seed.Packet(v6), flow("[fd66::1]:5004", "[fd66::2]:5006"))
}

// Ports that follow each other, as calls have them, spread over the table.
func TestFlowsSpread(t *testing.T) {
	seed := Seed{rand.Uint64(), rand.Uint64()}
	table := newTable(600_000)
	longest := 0
	site, line := &Account{}, &Line{}
	for port := uint16(10000); !table.full(); port += 2 {
		id := seed.Packet(mediaPacket(port, 200, false))
		probes := 0
		for i := table.home(id); table.slots[i&(minSlots-1)].id != 0; i++ {
			probes++
		}
		longest = max(longest, probes)
		e := table.find(id)
		require.Zero(t, e.id, "two flows with one hash")
		*e = entry{id: id, site: site, line: line}
		table.enter(e, minCost)
	}
	assert.Less(t, longest, 40)
}
