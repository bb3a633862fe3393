package qos

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"ringway/units"
)

func ethernet(n ByteCount) ByteCount { return n + 14 }

// cells is ATM's: 48 bytes of payload in each cell of 53, with the 8 of AAL5 in the last (ITU-T I.363.5).
func cells(n ByteCount) ByteCount { return (n + 8 + 10 + 47) / 48 * 53 }

func words(steps []Step) string {
	var out []string
	for _, s := range steps {
		out = append(out, fmt.Sprintf("%s%+d=%d", s.Name, s.Bytes, s.Total))
	}
	return strings.Join(out, " ")
}

// Each line is reckoned by hand, with the RFCs and the WireGuard paper beside it.
func TestPacketsByHand(t *testing.T) {
	for _, c := range []struct {
		name  string
		b     Budget
		codec Codec
		steps string
		call  BitRate
	}{
		{"G.711, IPv4 in IPv4", Budget{Envelope: Envelope{MTU: 1420, Wire: ethernet}}, G711,
			"payload+160=160 RTP+12=172 UDP+8=180 IPv4+20=200 " +
				"padding+8=208 WireGuard+32=240 UDP+8=248 IPv4+20=268 link+14=282", 112800},
		{"with SRTP", Budget{Envelope: Envelope{MTU: 1420, Wire: ethernet}, SRTP: SRTPTag}, G711,
			"payload+160=160 RTP+12=172 SRTP+10=182 UDP+8=190 IPv4+20=210 padding+14=224 WireGuard+32=256 " +
				"UDP+8=264 IPv4+20=284 link+14=298", 119200},
		{"IPv6 in IPv6", Budget{Envelope: Envelope{MTU: 1420, IPv6: true, Wire: ethernet}, CallIPv6: true}, G722,
			"payload+160=160 RTP+12=172 UDP+8=180 IPv6+40=220 " +
				"padding+4=224 WireGuard+32=256 UDP+8=264 IPv6+40=304 link+14=318", 127200},
		{"G.729", Budget{Envelope: Envelope{MTU: 1420, Wire: ethernet}}, G729,
			"payload+20=20 RTP+12=32 UDP+8=40 IPv4+20=60 " +
				"padding+4=64 WireGuard+32=96 UDP+8=104 IPv4+20=124 link+14=138", 55200},
		{"Opus at 32 kbit/s", Budget{Envelope: Envelope{MTU: 1420, Wire: ethernet}}, Opus,
			"payload+80=80 RTP+12=92 UDP+8=100 IPv4+20=120 " +
				"padding+8=128 WireGuard+32=160 UDP+8=168 IPv4+20=188 link+14=202", 80800},
		{"padded to 512", Budget{Envelope: Envelope{MTU: 1420, PadTo: 512, Wire: ethernet}}, G711,
			"payload+160=160 RTP+12=172 UDP+8=180 IPv4+20=200 padding+312=512 WireGuard+32=544 UDP+8=552 " +
				"IPv4+20=572 link+14=586", 234400},
		{"padded to what the MTU cuts", Budget{Envelope: Envelope{MTU: 1420, PadTo: 1419, Wire: ethernet}}, G711,
			"payload+160=160 RTP+12=172 UDP+8=180 IPv4+20=200 padding+1220=1420 WireGuard+32=1452 UDP+8=1460 " +
				"IPv4+20=1480 link+14=1494", 597600},
		{"ATM: 286 bytes are 6 cells", Budget{Envelope: Envelope{MTU: 1420, Wire: cells}}, G711,
			"payload+160=160 RTP+12=172 UDP+8=180 IPv4+20=200 " +
				"padding+8=208 WireGuard+32=240 UDP+8=248 IPv4+20=268 link+50=318", 127200},
		{"a meter of IP packets", Budget{}, G711,
			"payload+160=160 RTP+12=172 UDP+8=180 IPv4+20=200 " +
				"padding+8=208 WireGuard+32=240 UDP+8=248 IPv4+20=268", 107200},
	} {
		assert.Equal(t, c.steps, words(c.b.Steps(c.codec)), c.name)
		assert.Equal(t, c.call, c.b.Call(c.codec), c.name)
	}
}

// 5.82 Mbit/s is the budget of a WAN of 20 Mbit/s: less 3 % margin, 30 % of it. Less RTCP's share it is
// 5,542,857 bit/s.
func TestCallsByHand(t *testing.T) {
	b := Budget{Rate: 5820 * Kbit, Envelope: Envelope{MTU: 1420, Wire: ethernet}}
	assert.Equal(t, BitRate(5542857), b.RTP())
	assert.Equal(t, 49, b.Calls(G711), "5542857 / 112800 = 49.1")
	assert.Equal(t, 49, b.Calls(G722))
	assert.Equal(t, 100, b.Calls(G729), "5542857 / 55200 = 100.4")
	assert.Equal(t, 68, b.Calls(Opus), "5542857 / 80800 = 68.6")
	b.SRTP = SRTPTag
	assert.Equal(t, 46, b.Calls(G711), "5542857 / 119200 = 46.5")

	one := Budget{Envelope: b.Envelope}
	assert.Equal(t, BitRate(118440), one.MinRate(G711, 1), "112800 and 5 %")
	for _, n := range []int{1, 7, 100} {
		one.Rate = one.MinRate(G711, n)
		assert.Equal(t, n, one.Calls(G711))
		one.Rate--
		assert.Equal(t, n-1, one.Calls(G711))
	}
	assert.Zero(t, Budget{}.Calls(G711), "an unknown rate carries nothing that one could promise")
}

func TestOpusRates(t *testing.T) {
	assert.EqualValues(t, 80, OpusAt(32*Kbit).Payload)
	assert.EqualValues(t, 160, OpusAt(64*Kbit).Payload)
	assert.EqualValues(t, 16, OpusAt(6*Kbit+1).Payload, "15 bytes and a bit")
}

func drawBudget(t *rapid.T) Budget {
	extra := rapid.IntRange(0, 64).Draw(t, "link")
	wire := Wire(func(n ByteCount) ByteCount { return n + ByteCount(extra) })
	if rapid.Bool().Draw(t, "cells") {
		wire = func(n ByteCount) ByteCount { return (n + ByteCount(extra) + 47) / 48 * 53 }
	}
	return Budget{
		Rate: BitRate(rapid.Uint64Range(0, uint64(10*Gbit)).Draw(t, "rate")),
		Envelope: Envelope{
			IPv6:  rapid.Bool().Draw(t, "outer6"),
			PadTo: ByteCount(rapid.SampledFrom([]int{0, 64, 208, 500, 576}).Draw(t, "pad")),
			MTU:   ByteCount(rapid.IntRange(576, 9000).Draw(t, "mtu")),
			Wire:  wire,
		},
		CallIPv6: rapid.Bool().Draw(t, "inner6"),
		SRTP:     ByteCount(rapid.SampledFrom([]int{0, 4, 10, 16}).Draw(t, "srtp")),
	}
}

func drawCodec(t *rapid.T) Codec {
	return Codec{
		"drawn",
		ByteCount(rapid.IntRange(1, 320).Draw(t, "payload")),
		time.Duration(rapid.IntRange(5, 60).Draw(t, "ms")) * time.Millisecond,
	}
}

// What the calls send in any whole second, and RTCP's share of it, is never more than the budget.
func TestCallsNeverExceedTheirBudget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, c := drawBudget(t), drawCodec(t)
		n := uint64(b.Calls(c))
		// In packets and bytes over an hour, so that no interval leaves a rest.
		hour := uint64(time.Hour)
		bits := n * uint64(b.Packet(c)) * 8 * (hour / uint64(c.Interval))
		require.LessOrEqual(t, bits+bits*units.RTCPShare/100, uint64(b.Rate)*3600)
		require.Less(t, uint64(b.Rate), uint64(b.MinRate(c, int(n)+1)), "nor is a call refused that would fit")
		if n > 0 {
			require.LessOrEqual(t, b.MinRate(c, int(n)), b.Rate)
		}
	})
}

func TestMoreOverheadNeverCarriesMoreCalls(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, c := drawBudget(t), drawCodec(t)
		more := b
		switch rapid.IntRange(0, 5).Draw(t, "what") {
		case 0:
			more.SRTP += ByteCount(rapid.IntRange(1, 20).Draw(t, "tag"))
		case 1:
			more.CallIPv6 = true
		case 2:
			more.IPv6 = true
		case 3:
			more.PadTo += ByteCount(rapid.IntRange(1, 900).Draw(t, "padding"))
		case 4:
			d := ByteCount(rapid.IntRange(1, 64).Draw(t, "framing"))
			more.Wire = func(n ByteCount) ByteCount { return b.Wire(n + d) }
		case 5:
			more.MTU += ByteCount(rapid.IntRange(1, 500).Draw(t, "mtu+"))
		}
		require.GreaterOrEqual(t, more.Packet(c), b.Packet(c))
		require.LessOrEqual(t, more.Calls(c), b.Calls(c))
		less := b
		less.Rate = BitRate(rapid.Uint64Range(0, uint64(b.Rate)).Draw(t, "less"))
		require.LessOrEqual(t, less.Calls(c), b.Calls(c))
	})
}

func TestStepsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, c := drawBudget(t), drawCodec(t)
		total := 0
		for _, s := range b.Steps(c) {
			total += s.Bytes
			require.EqualValues(t, total, s.Total)
		}
		inner := c.Payload + rtpHeader + b.SRTP + udpHeader + ipHeader(b.CallIPv6)
		require.Equal(t, b.OnWire(inner), b.Packet(c), "the steps are what the tunnel does")
	})
}

func TestPacketsThatFitABound(t *testing.T) {
	e := Envelope{Wire: ethernet}
	// 1 Mbit/s less 3 %: 970 kbit/s carry 1212.5 bytes in 10 ms, 1212 less 14 of Ethernet, 20, 8 and 32: 1138.
	size := func(n ByteCount) ByteCount { e.MTU = n; return e.OnWire(n) }
	assert.EqualValues(t, 1138, FitMTU(970*Kbit, 10*time.Millisecond, 576, 1420, size))
	assert.EqualValues(
		t,
		1280,
		FitMTU(970*Kbit, 10*time.Millisecond, 1280, 1420, size),
		"the least, though it takes longer",
	)
	assert.EqualValues(t, 1420, FitMTU(2*Mbit, 10*time.Millisecond, 576, 1420, size))
	assert.EqualValues(t, 576, FitMTU(64*Kbit, 10*time.Millisecond, 576, 1420, size))
	assert.EqualValues(t, 1420, FitMTU(0, 10*time.Millisecond, 576, 1420, size), "unknown")
	assert.EqualValues(t, 1420, FitMTU(64*Kbit, 0, 576, 1420, size), "off")
	rapid.Check(t, func(t *rapid.T) {
		rate := BitRate(rapid.Uint64Range(uint64(64*Kbit), uint64(10*Mbit)).Draw(t, "rate"))
		bound := time.Duration(rapid.IntRange(1, 100).Draw(t, "ms")) * time.Millisecond
		wire := drawBudget(t).Wire
		got := FitMTU(rate, bound, 576, 1420, wire)
		if got > 576 {
			require.LessOrEqual(t, rate.Serialization(wire(got)), bound)
		}
		if got < 1420 {
			require.Greater(t, rate.Serialization(wire(got+1)), bound, "and not shorter than it has to be")
		}
	})
}
