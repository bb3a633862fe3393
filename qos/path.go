package qos

import "time"

// Path bounds every queue that a tunnel's packet meets on its way out, together:
//
//	TUN queue -> (flow queues) -> engine -> send buffer of the tunnel's socket = part of the class's leaf -> wire
//
// What is in the send buffer is the leaf's own content: the kernel charges a packet to its socket
// until it leaves the queue. So the two are not added up.
type Path struct {
	TUNPackets  int // txqueuelen of the tunnel device
	TUNGSOBytes int // gso_max_size of the tunnel device: a queued packet is no longer than this
	// packets that wait in flow queues, where the engine has them; Alone and Total are without. 0 = none
	FlowPackets   int
	EnginePackets int // plaintext packets that the engine holds at most; 0 = no bound needed
	SendBuffer    int // for SO_SNDBUF (the kernel doubles it)
	LeafBytes     int // the leaf's limit, as Want makes it; 0 where nothing is shaped
	// the longest that all of it together holds a packet while no other class sends; 0 = no bound
	Alone time.Duration
	Total time.Duration // the same while it gets no more than its share
}

// What the kernel charges to a socket for a packet in a queue (truesize, x86-64 and arm64 with
// 4 kB pages): the buffer's slab and the sk_buff.
const (
	truesizeFull  = 2048 + 256 // up to 1.6 kB of frame
	truesizeVoice = 1024 + 256 // a call's packet through the tunnel, about 270 bytes
	voicePacket   = 270        // G.711 at 20 ms: 200 inner, 60 of WireGuard over IPv4, an ethernet header

	minSendBuffer = 2304     // SO_SNDBUF below this is raised by the kernel (SOCK_MIN_SNDBUF, halved)
	stockTUN      = 1000     // what wireguard-go takes
	stockSocket   = 7 << 20  // what wireguard-go asks for
	maxGSO        = 64 << 10 // no device takes more by default
)

// Shares of the way before the leaf, at the most that the class can get. A bulk flow needs them
// only to keep the engine busy between two turns of the scheduler.
const (
	// twice that in super-packets: a queue counted in packets must hold single ones too
	tunTime    = 20 * time.Millisecond
	engineTime = 10 * time.Millisecond
	gsoTime    = time.Millisecond // a super-packet is one packet in every queue: it may not be long
	leastTUN   = 256              // packets of calls, which the leaf bounds in time
	gsoPackets = 10               // nor may a queue of them hold too few single packets
)

// Flow queues may hold much: CoDel shortens each of them, and nobody waits behind another's. The bound is for
// who sends on whatever is dropped, and for memory.
const (
	flowTime = 200 * time.Millisecond
	minFlow  = 64
	maxFlow  = 4096
)

// PathBounds gives the bounds for a tunnel by the class that it is made for (media for the voice
// tunnel, data for the data tunnel), on a WAN that lets rate through (WAN.Shaped; 0 = unknown: as
// wireguard-go has it by default). mtu is the WAN's.
//
// Data is pushed back: its send buffer is three quarters of its leaf, so that the engine's send
// waits and nothing is dropped after it was encrypted; the TUN queue drops, where flows can still be
// told apart. So Total is at most four times the class's Limit, or 13 packets at its own rate where
// that is more (slow links: below about four packets in a queue TCP stands still).
//
// Voice is not pushed back: its socket never blocks, so that a media class beyond its budget is
// dropped in its own leaf and does not hold up the signalling that shares the tunnel. There the
// leaf is all that delays.
func PathBounds(rate BitRate, class Class, mtu int) Path {
	if rate == 0 {
		return Path{TUNPackets: stockTUN, TUNGSOBytes: maxGSO, SendBuffer: stockSocket}
	}
	packet := WireFrame(mtu)
	own := max(whole(rate*BitRate(max(class.Share, 1))/100), 8)
	most := rate
	if class.Name == Media {
		most = own
	}
	leaf := LeafBytes(own, class, packet)
	gso, queue := min(rate.Bytes(gsoTime), gsoPackets*packet, maxGSO), 2*tunTime
	if gso < 2*packet {
		gso, queue = packet, tunTime
	}
	p := Path{LeafBytes: int(leaf), TUNGSOBytes: int(gso)}
	switch class.Name {
	case Media, Signalling:
		// A device is taken off the air for some milliseconds when its queue gets another length, and what comes
		// meanwhile is lost (the kernel's dev_qdisc_change_tx_queue_len). So the length is a power of two, and the
		// same for all budgets up to 27 Mbit/s.
		p.TUNPackets = leastTUN
		for p.TUNPackets < int(most.Bytes(tunTime)/voicePacket) {
			p.TUNPackets *= 2
		}
		p.SendBuffer = int(max(2*leaf/voicePacket*truesizeVoice/2, 32*truesizeVoice))
		p.Alone, p.Total = most.Serialization(leaf), own.Serialization(leaf)
	default:
		p.TUNPackets = atLeast(4, most.Bytes(queue), gso)
		p.EnginePackets = atLeast(4, most.Bytes(engineTime), packet)
		p.FlowPackets = min(atLeast(minFlow, most.Bytes(flowTime), packet), maxFlow)
		p.SendBuffer = max(int(leaf*3/4/packet*truesizeFull/2), minSendBuffer)
		queued := leaf + ByteCount(p.TUNPackets)*gso + ByteCount(p.EnginePackets)*packet
		p.Alone, p.Total = most.Serialization(queued), own.Serialization(queued)
	}
	return p
}

// atLeast is how many packets of a size make n bytes, but not less than floor.
func atLeast(floor int, n, size ByteCount) int { return max(floor, int(n/size)) }
