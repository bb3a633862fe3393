package qos

import (
	"fmt"
	"slices"
	"strings"
)

// Cells is how a line carries a packet in pieces of its own.
type Cells string

// The ways.
const (
	NoCells Cells = ""
	ATM     Cells = "atm" // cells of 53 bytes for 48 of packet, the last one filled up (ITU-T I.363.5, AAL5)
	// 65 bytes on the line for 64 (IEEE 802.3 clause 61.3): every packet alike, so it is taken off the rate
	PTM Cells = "ptm"
)

// EthernetHeader is what the kernel's queues count of a packet besides its IP part.
const EthernetHeader = 14

// LinkLayer is how the provider's meter counts a packet.
type LinkLayer struct {
	// bytes a packet beyond the kernel's count; less than 0 where the meter does not count all of the ethernet
	// header
	Overhead int
	MPU      int   // the least that a packet counts, overhead included; 0 = no least
	Cells    Cells // after overhead and least
}

// namedLink has the numbers of tc-cake(8), which count from the IP packet on.
type namedLink struct {
	name          string
	overhead, mpu int
	cells         Cells
}

var namedLinks = []namedLink{
	{"kernel", EthernetHeader, 0, NoCells}, // as the kernel counts: IP and ethernet header
	{"ip", 0, 0, NoCells},
	{"ethernet", 38, 84, NoCells}, // header 14, checksum 4, preamble 8, gap 12
	{"vlan", 42, 84, NoCells},     // and a tag that the modem or the switch puts in
	{"docsis", 18, 64, NoCells},
	{"bridged-ptm", 22, 0, PTM},
	{"pppoe-ptm", 30, 0, PTM},
	{"pppoa-vcmux", 10, 0, ATM},
	{"pppoa-llc", 14, 0, ATM},
	{"pppoe-vcmux", 32, 0, ATM},
	{"pppoe-llcsnap", 40, 0, ATM},
	{"bridged-vcmux", 24, 0, ATM},
	{"bridged-llcsnap", 32, 0, ATM},
	{"ipoa-vcmux", 8, 0, ATM},
	{"ipoa-llcsnap", 16, 0, ATM},
	{"conservative", 48, 0, ATM},
}

// LinkNames lists the link layers that have a name.
func LinkNames() []string {
	var out []string
	for _, l := range namedLinks {
		out = append(out, l.name)
	}
	return out
}

// ParseLink gives the link layer of a name of LinkNames.
func ParseLink(name string) (LinkLayer, error) {
	i := slices.IndexFunc(namedLinks, func(l namedLink) bool { return l.name == name })
	if i < 0 {
		return LinkLayer{}, fmt.Errorf("%q is no link layer (allowed: %s)", name, strings.Join(LinkNames(), ", "))
	}
	l := namedLinks[i]
	return LinkLayer{Overhead: l.overhead - EthernetHeader, MPU: l.mpu, Cells: l.cells}, nil
}

// Wire is what the meter counts for a frame that the kernel counts as n bytes.
func (l LinkLayer) Wire(n ByteCount) ByteCount {
	b := max(int64(n)+int64(l.Overhead), int64(l.MPU), 1)
	if l.Cells == ATM {
		b = (b + 47) / 48 * 53
	}
	return ByteCount(b)
}

// Net is what a line of rate r leaves for what Wire counts.
func (l LinkLayer) Net(r BitRate) BitRate {
	if l.Cells == PTM {
		return r / 65 * 64
	}
	return r
}

// Shape is the rate to hold a line's queue to: r as the meter of l counts it, less margin percent (0-50).
func (l LinkLayer) Shape(r BitRate, margin int) BitRate {
	return whole(l.Net(r.Percent(100 - min(max(margin, 0), 50))))
}
