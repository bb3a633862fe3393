package qos

import "slices"

// The tree of a LAN's device, for what comes in from WANs in clear. The queue that counts is at the
// provider's end of the line, out of our control: what is held back here, below the line's rate, is
// what senders slow down for, so that the other one stays empty.
//
//	root 2: htb, default 2:f0
//	  2:10, 2:20, …  one for each WAN with a downlink: rate = ceil = its downlink, less the margin and the voice budget
//	  2:e0           calls, wherever they come from: first, without a limit
//	  2:f0           the rest, out of tunnels, from LANs and the box: without a limit
//
// All are within their own rates, on one level: prio orders them, and none waits for another's tokens. While
// the tree is being made there is no class 2:f0, and HTB sends what finds none at once.
const (
	lanQdisc   Handle = 0x2 << 16
	callsClass Handle = lanQdisc | 0xe0
	restClass  Handle = lanQdisc | 0xf0

	maxDownlinks = 8 // as many WANs as a config may have; their minors stay below calls'

	// unheld is above the rate of every card, so that the card alone holds the class, and its burst takes any
	// super-packet.
	unheld      = 100 * Gbit
	unheldBurst = 1 << 20
	// unheldPackets is what a card's own queue holds (txqueuelen), before there is a tree in its place.
	unheldPackets = 1000
)

// ClassDownlink is the name, where classes' names stand, of what comes in from a WAN in clear and is no call.
const ClassDownlink ClassName = "downlink"

// CallsID is the skb->priority of calls on the LANs that have a tree.
const CallsID = uint32(callsClass)

// Downlink is the queue, on every LAN, of what comes in from a WAN in clear.
type Downlink struct {
	WAN     string
	ClassID uint32
	Rate    BitRate // its limit
	Line    BitRate // the WAN's downlink
	wan     Egress
}

// Downlinks lists, for the firewall, the queues that Want makes on every one of in.LANs; none where these are
// none.
func Downlinks(in Input) (out []Downlink) {
	if len(in.LANs) == 0 || !in.Features.HTB {
		return nil
	}
	for i, w := range in.WANs[:min(len(in.WANs), maxDownlinks)] {
		if r := w.Arriving(in.Classes); r > 0 {
			out = append(out, Downlink{w.Interface, uint32(downlinkClass(i)), r, w.Downlink, w})
		}
	}
	return out
}

// Arriving is the limit of data that arrives over l in clear: its downlink less the margin and
// media's share of that, which stays free for calls. 0 where the downlink is not known.
func (l Line) Arriving(classes []Class) BitRate {
	if l.Downlink < 64*Kbit {
		return 0
	}
	line := l.ShapedDownlink()
	return max(line-Rate(line, classes, Media), 8*Kbit)
}

// DownlinkPlaces names the classes of a LAN's tree by the WANs, in the order of Input; the WAN stands where a
// site's name does.
func DownlinkPlaces(wans []string) map[Handle]Place {
	out := map[Handle]Place{}
	for i, w := range wans[:min(len(wans), maxDownlinks)] {
		out[downlinkClass(i)] = Place{w, ClassDownlink}
	}
	return out
}

// downlinkClass is the class of the WAN in that place of the config.
func downlinkClass(i int) Handle { return lanQdisc | Handle(i+1)<<4 }

// lanClass says whether h is a class of a LAN's tree. All of them are leaves.
func lanClass(h Handle) bool {
	minor := h & 0xffff
	return h>>16 == lanQdisc>>16 && minor&0xf == 0 &&
		(minor > 0 && minor <= maxDownlinks<<4 || h == callsClass || h == restClass)
}

// wantLANs is Want's part for LANs. A VLAN's packets pass its parent, so that all VLANs of a card share the
// tree.
func wantLANs(in Input) (out []Link) {
	downs := Downlinks(in)
	if len(downs) == 0 {
		return nil
	}
	for _, name := range slices.Compact(slices.Sorted(slices.Values(in.LANs))) {
		l := Link{
			Interface: name,
			Qdiscs: []Qdisc{
				{Handle: lanQdisc, Parent: RootHandle, Kind: "htb", HTB: &HTB{Default: uint32(restClass & 0xffff)}},
			},
		}
		for i, h := range []Handle{callsClass, restClass} {
			l.Classes = append(l.Classes, HTBClass{Handle: h, Parent: lanQdisc, Rate: unheld, Ceil: unheld,
				Burst: unheldBurst, CBurst: unheldBurst, Prio: uint32(i), Quantum: WireFrame(0)})
			l.Qdiscs = append(
				l.Qdiscs,
				Qdisc{Handle: h & 0xffff << 16, Parent: h, Kind: "pfifo", FIFO: &FIFO{Limit: unheldPackets}},
			)
		}
		for _, d := range downs {
			packet := d.wan.wire()
			b := burst(d.Rate, d.Rate, d.Rate, packet)
			c := HTBClass{
				Handle:   Handle(d.ClassID),
				Parent:   lanQdisc,
				Rate:     d.Rate,
				Ceil:     d.Rate,
				Burst:    b,
				CBurst:   b,
				Prio:     2,
				Quantum:  packet,
				Overhead: uint16(max(d.wan.Overhead, 0)),
				MPU:      uint16(max(d.wan.MPU, 0)),
				ATM:      d.wan.Cells == ATM,
			}
			l.Classes = append(l.Classes, c)
			limit := LeafBytes(d.Rate, classNamed(in.Classes, Data), packet)
			l.Qdiscs = append(l.Qdiscs, wantLeaf(c.Handle, Data, d.Rate, limit, packet, in.Features)...)
		}
		out = append(out, l)
	}
	return out
}
