package wanted

import (
	"cmp"
	"time"

	"ringway/appliance/config"
	"ringway/qos"
	"ringway/tunnel"
)

// slowestUplink is the rate that bounds are sized by: the least of the known ones, since any WAN may carry a
// tunnel; 0 where one is not known, for then nothing holds its queue.
//
// All that leaves a tunnel goes to sites: where their lines together are below the uplink, they bound it.
func slowestUplink(cfg *config.Config) qos.BitRate {
	var least qos.BitRate
	for _, w := range cfg.WANs {
		rate := w.Shaped()
		if rate == 0 {
			return 0
		}
		sites := qos.BitRate(0)
		for _, s := range cfg.Sites {
			sites += w.Ceiling(s.Queue())
		}
		if sites > 0 {
			rate = min(rate, sites)
		}
		if least == 0 || rate < least {
			least = rate
		}
	}
	return least
}

// smallestLeaf is the least that the queue of a class to any site holds, which no super-packet may fill; 0
// where none is shaped.
func smallestLeaf(cfg *config.Config, class qos.Class, mtu int) (least qos.ByteCount) {
	for _, w := range cfg.WANs {
		for _, s := range cfg.Sites {
			if w.Shaped() == 0 {
				continue
			}
			own := qos.Rate(w.Ceiling(s.Queue()), cfg.Classes, class.Name)
			if n := qos.LeafBytes(own, class, qos.WireFrame(mtu)); least == 0 || n < least {
				least = n
			}
		}
	}
	return least
}

// superPacketTime is the longest burst that one system call may put on the WAN: a whole 64 kB super-packet
// would make voice wait 26 ms at 20 Mbit/s.
const superPacketTime = time.Millisecond

// widestMTU is the largest of the WANs': its packets are the ones that a queue of bytes holds fewest of.
func widestMTU(cfg *config.Config, f Facts) int {
	widest := 0
	for _, w := range cfg.WANs {
		widest = max(widest, cmp.Or(f.WANMTU[w.Interface], 1500))
	}
	return widest
}

func bounds(uplink qos.BitRate, class qos.Class, wanMTU, mtu int) tunnel.Bounds {
	p := qos.PathBounds(uplink, class, wanMTU)
	b := tunnel.Bounds{
		Rate:          uplink,
		TxQueueLen:    p.TUNPackets,
		InFlight:      p.EnginePackets,
		FlowPackets:   p.FlowPackets,
		SendBuffer:    p.SendBuffer,
		ReceiveBuffer: receiveBuffer,
		SuperPacket:   maxSuperPacket,
	}
	b.DeviceGSO = p.TUNGSOBytes
	if b.InFlight == 0 {
		b.InFlight = maxInFlight
	}
	if uplink > 0 {
		b.SuperPacket = min(maxSuperPacket, int(uplink.Bytes(superPacketTime)))
		if b.SuperPacket < 2*mtu { // one packet is no super-packet
			b.SuperPacket = 0
		}
	}
	return b
}

const (
	maxSuperPacket = 65000 // under UDP's 65,507 with room for options
	// where time asks for no bound memory does: an engine's buffers are 64 kB each, and more bring no throughput
	maxInFlight   = 128
	sitePacket    = 2304    // what the kernel charges a socket for a full packet
	flowTUN       = 256     // packets: what hosts send at once while the plane gets no processor
	receiveBuffer = 7 << 20 // what stock wireguard-go asks for; the inbound direction has no pacing of ours
)
