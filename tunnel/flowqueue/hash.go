package flowqueue

import "encoding/binary"

// place is where a packet is queued.
type place struct{ flow, host, site uint16 }

// classify finds a packet's place by its addresses, protocol and ports. Fragments go by addresses and
// protocol alone, the first one, too, so that none overtakes another; so does what has no ports, or has them
// behind extension headers.
func classify(p []byte, site uint32, seed uint64) place {
	host := mix(seed, uint64(site)+1)
	far, ports := host, uint64(0)
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		host = mix(host, uint64(binary.BigEndian.Uint32(p[12:])))
		far = mix(host, uint64(binary.BigEndian.Uint32(p[16:]))<<8|uint64(p[9]))
		if at := int(p[0]&15) * 4; binary.BigEndian.Uint16(p[6:])&0x3fff == 0 && hasPorts(p[9]) && len(p) >= at+4 {
			ports = uint64(binary.BigEndian.Uint32(p[at:])) + 1
		}
	case len(p) >= 40 && p[0]>>4 == 6:
		host = mix(mix(host, binary.BigEndian.Uint64(p[8:])), binary.BigEndian.Uint64(p[16:]))
		far = mix(mix(host, binary.BigEndian.Uint64(p[24:])), binary.BigEndian.Uint64(p[32:])^uint64(p[6])<<56)
		if hasPorts(p[6]) && len(p) >= 44 {
			ports = uint64(binary.BigEndian.Uint32(p[40:])) + 1
		}
	}
	far = mix(far, ports)
	return place{flow: uint16(far % flowCount), host: uint16(host % hostCount), site: uint16(site % siteCount)}
}

func hasPorts(protocol byte) bool {
	switch protocol {
	case 6, 17, 33, 132, 136: // TCP, UDP, DCCP, SCTP, UDP-Lite
		return true
	}
	return false
}

// mix is a step of a seeded hash (the finalizer of SplitMix64).
func mix(h, v uint64) uint64 {
	h ^= v
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
