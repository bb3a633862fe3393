package qos

import "time"

// Line is what a provider sells: its rates, how its meter counts, and how long one packet may occupy it.
type Line struct {
	Uplink    BitRate // what the provider's meter lets through; 0 = not known: nothing is shaped
	Downlink  BitRate // the same inwards; 0 = not known
	Margin    int     // percent of both left unused, 0-50, so that the queue stays here and not at the provider
	LinkLayer         // how the meter counts

	// Serialization is how long one packet of data may keep the line busy while a call's packet waits behind it;
	// 0 = no bound.
	Serialization time.Duration
}

// InternetMTU is how long packets outside tunnels are, bytes.
const InternetMTU = 1500

// Shaped is the rate that the line's queues are shaped to: the uplink less the margin. 0 where the uplink is
// not known.
func (l Line) Shaped() BitRate { return l.Shape(l.Uplink, l.Margin) }

// ShapedDownlink is the downlink less the margin; 0 where the downlink is not known.
func (l Line) ShapedDownlink() BitRate { return l.Shape(l.Downlink, l.Margin) }

// Ceiling is the most that is sent to a site over l: its downlink less l's margin, and no more than l carries.
func (l Line) Ceiling(s Site) BitRate {
	if s.Downlink == 0 {
		return l.Shaped()
	}
	return min(LinkLayer{}.Shape(s.Downlink, l.Margin), l.Shaped())
}

// Media is the share of the uplink that is for calls: the most that calls with any one site get. 0 where the
// uplink is not known.
func (l Line) Media(classes []Class) BitRate {
	if l.Shaped() == 0 {
		return 0
	}
	return Rate(l.Shaped(), classes, Media)
}

// VoiceBudget is the most that calls with s get of l: media's share of the ceiling. 0 where the uplink is not
// known.
func (l Line) VoiceBudget(s Site, classes []Class) BitRate {
	if l.Shaped() == 0 {
		return 0
	}
	return Rate(l.Ceiling(s), classes, Media)
}

// Metered is what an IP packet counts on the provider's meter.
func (l Line) Metered(packet ByteCount) ByteCount { return l.Wire(packet + EthernetHeader) }

// Tunnel is what the size of a tunnel's packets depends on.
type Tunnel struct {
	PadTo ByteCount // shorter packets inside are padded to it
	MTU   ByteCount // the largest packet inside
}

// Envelope is what stands around the packets of t on l, ipv6 being the outer packet's.
func (l Line) Envelope(t Tunnel, ipv6 bool) Envelope {
	return Envelope{IPv6: ipv6, PadTo: t.PadTo, MTU: t.MTU, Wire: l.Metered}
}

// Fit is the longest packet, from least to most bytes, that keeps within the bound on serialization at a
// rate, size being what it counts on the meter.
func (l Line) Fit(rate BitRate, least, most int, size Wire) int {
	return int(FitMTU(rate, l.Serialization, ByteCount(least), ByteCount(most), size))
}

// FitTunnel is Fit for a tunnel whose own MTU the packet's length becomes, so that padding goes no further.
func (l Line) FitTunnel(t Tunnel, ipv6 bool, rate BitRate, least, most int) int {
	return l.Fit(rate, least, most, func(n ByteCount) ByteCount {
		t.MTU = n
		return l.Envelope(t, ipv6).OnWire(n)
	})
}

// InternetMTUs is how long the packets of local TCP connections over l may be, sent and received, so that
// they keep to the bound as the tunnel's do, but least at least: 0 where any may.
func (l Line) InternetMTUs(least int) (sent, received int) {
	held := func(rate BitRate) int {
		if n := l.Fit(rate, least, InternetMTU, l.Metered); n < InternetMTU {
			return n
		}
		return 0
	}
	return held(l.Shaped()), held(l.ShapedDownlink())
}
