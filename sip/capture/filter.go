// Package capture writes one call's packets to a file: its signalling, as it is kept in memory without credentials and
// keys, and the headers of its media. What people say is in the file only if the caller asks for sound.
//
//	Filter       which packets of the call's media the kernel copies, and how much of each (filter.go)
//	Tap          the socket that they come from (tap.go)
//	Cleaner      what of each is kept (packet.go)
//	Writer       the file, and packets made from signalling (pcap.go)
package capture

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/net/bpf"
)

// Flow is where media of a call, or its RTCP, goes to.
type Flow struct {
	To   netip.AddrPort
	RTCP bool
}

// MaxFlows bounds the filter. The kernel takes 4096 instructions; a flow over IPv6 has up to 19.
const MaxFlows = 192

// How much of a packet is copied, behind its IP header.
const (
	udpHeader  = 8
	rtpHeader  = 12
	maxRTCP    = 512
	wholeFrame = 1 << 16
)

// Filter keeps the packets to these flows, MaxFlows at most, as a socket gives them that begin with the IP header.
// Without sound, of RTP nothing behind its header leaves the kernel.
func Filter(flows []Flow, sound bool) []bpf.Instruction {
	flows = flows[:min(len(flows), MaxFlows)]
	none := bpf.RetConstant{Val: 0}
	four := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoUDP, SkipTrue: 1}, none,
		bpf.LoadAbsolute{Off: 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: 0x1fff, SkipTrue: 1}, none, // a later fragment has no ports
		bpf.LoadMemShift{Off: 0}, // X is where UDP begins
	}
	six := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 6, Size: 1}, // extension headers do not occur in front of RTP
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoUDP, SkipTrue: 1}, none,
		bpf.LoadConstant{Dst: bpf.RegX, Val: 40},
	}
	for _, f := range flows {
		if f.To.Addr().Is4() {
			four = append(four, f.block(16, sound)...)
		} else {
			six = append(six, f.block(24, sound)...)
		}
	}
	four, six = append(four, none), append(six, none)

	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0x60, SkipTrue: 1},
		bpf.Jump{Skip: uint32(len(four)) + 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x40, SkipTrue: 1}, none,
	}
	return append(append(program, four...), six...)
}

// block keeps packets to f; what does not match goes on behind it. at is where the IP header has the destination, and X
// where UDP begins.
func (f Flow) block(at uint32, sound bool) []bpf.Instruction {
	address := f.To.Addr().AsSlice()
	var tests []bpf.Instruction
	for i := 0; i < len(address); i += 4 {
		tests = append(tests, bpf.LoadAbsolute{Off: at + uint32(i), Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(address[i:])})
	}
	tests = append(tests, bpf.LoadIndirect{Off: 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(f.To.Port())})

	keep := func(n uint32) []bpf.Instruction {
		return []bpf.Instruction{bpf.TXA{}, bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: n}, bpf.RetA{}}
	}
	var kept []bpf.Instruction
	switch {
	case f.RTCP:
		kept = keep(udpHeader + maxRTCP)
	case sound:
		kept = keep(wholeFrame)
	default: // RTCP may be on the same port (RFC 5761)
		kept = append([]bpf.Instruction{
			bpf.LoadIndirect{Off: udpHeader + 1, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: firstRTCP, SkipTrue: 4},
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: lastRTCP, SkipTrue: 3},
		}, append(keep(udpHeader+maxRTCP), keep(udpHeader+rtpHeader)...)...)
	}
	for i, one := range tests {
		if j, is := one.(bpf.JumpIf); is {
			j.SkipTrue = uint8(len(tests) + len(kept) - i - 1)
			tests[i] = j
		}
	}
	return append(tests, kept...)
}

// firstRTCP to lastRTCP is what the second byte of RTCP may be (RFC 5761, section 4).
const firstRTCP, lastRTCP = 192, 223
