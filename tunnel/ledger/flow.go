package ledger

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Seed keys the hash by which flows are known, so that nobody can choose ports that collide. Reservations and
// packets are hashed with the same one.
type Seed [2]uint64

// Where ports are in a hash of what has none: no packet has this value.
const noPorts = 1 << 32

// https://www.iana.org/assignments/protocol-numbers
const (
	protocolICMP   = 1
	protocolUDP    = 17
	protocolICMPv6 = 58
)

const (
	headerIPv6 = 40
	headerUDP  = 8

	firstRTCP, lastRTCP = 200, 207 // packet types (RFC 5761, section 4)
)

// Packet identifies a packet's flow. Packets without ports (fragments, other protocols) are one flow between
// two hosts.
func (s *Seed) Packet(p []byte) uint64 {
	if p[0]>>4 == 6 {
		ports := uint64(noPorts)
		if p[6] == protocolUDP && len(p) >= headerIPv6+headerUDP {
			ports = uint64(binary.BigEndian.Uint32(p[headerIPv6:]))
		}
		return s.hash6(p[8:headerIPv6], ports)
	}

	ports := uint64(noPorts)
	header := int(p[0]&15) * 4
	if p[9] == protocolUDP && p[6]&0x3f == 0 && p[7] == 0 && len(p) >= header+headerUDP {
		ports = uint64(binary.BigEndian.Uint32(p[header:]))
	}
	return s.hash4(binary.BigEndian.Uint64(p[12:]), ports)
}

// Flow identifies the flow of UDP packets with these addresses and ports.
func (s *Seed) Flow(source, destination netip.AddrPort) uint64 {
	ports := uint64(source.Port())<<16 | uint64(destination.Port())
	from, to := source.Addr().Unmap(), destination.Addr().Unmap()
	if from.Is4() && to.Is4() {
		a, b := from.As4(), to.As4()
		return s.hash4(uint64(binary.BigEndian.Uint32(a[:]))<<32|uint64(binary.BigEndian.Uint32(b[:])), ports)
	}
	var addresses [32]byte
	a, b := from.As16(), to.As16()
	copy(addresses[:16], a[:])
	copy(addresses[16:], b[:])
	return s.hash6(addresses[:], ports)
}

func (s *Seed) hash4(addresses, ports uint64) uint64 {
	return s.finish(fold(addresses^s[0], ports^s[1]))
}

func (s *Seed) hash6(addresses []byte, ports uint64) uint64 {
	h := fold(binary.BigEndian.Uint64(addresses)^s[1], binary.BigEndian.Uint64(addresses[8:])^s[0])
	h = fold(binary.BigEndian.Uint64(addresses[16:])^s[1]^h, binary.BigEndian.Uint64(addresses[24:])^s[0])
	return s.finish(fold(h^s[0], ports^s[1]))
}

// finish spreads a hash. 0 stands for no flow.
func (s *Seed) finish(h uint64) uint64 { return max(fold(h^s[1], s[0]|1), 1) }

// fold multiplies to 128 bits and combines the halves, as wyhash does.
func fold(a, b uint64) uint64 {
	high, low := bits.Mul64(a, b)
	return high ^ low
}

// isRTCP reports whether a packet is RTCP, or SRTCP, whose first words are in clear; or ICMP, which is no
// call either: a ping that is marked like a call must not take a call's place.
func isRTCP(p []byte) bool {
	at := headerIPv6 + headerUDP
	if p[0]>>4 == 4 {
		if p[9] == protocolICMP {
			return true
		}
		at = int(p[0]&15)*4 + headerUDP
	} else if p[6] == protocolICMPv6 {
		return true
	}
	return len(p) >= at+8 && p[at]>>6 == 2 && p[at+1] >= firstRTCP && p[at+1] <= lastRTCP
}
