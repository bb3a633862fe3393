// Package codec reckons what the media of a session description take: for a budget that has to be kept, so
// the most that a codec sends, not what it sends on average.
package codec

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringway/qos"
	"ringway/sip/sdp"
)

// audio are codecs by their encoding name (RFC 3551, and the registration of each), with the default
// duration of a packet.
var audio = map[string]struct {
	rate  qos.BitRate // of the payload
	frame time.Duration
	ptime time.Duration
}{
	"pcmu":      {64 * qos.Kbit, 0, 20 * time.Millisecond},
	"pcma":      {64 * qos.Kbit, 0, 20 * time.Millisecond},
	"g722":      {64 * qos.Kbit, 0, 20 * time.Millisecond},
	"g729":      {8 * qos.Kbit, 10 * time.Millisecond, 20 * time.Millisecond},
	"g723":      {6400, 30 * time.Millisecond, 30 * time.Millisecond}, // 24 bytes a frame
	"g728":      {16 * qos.Kbit, 0, 20 * time.Millisecond},
	"g726-16":   {16 * qos.Kbit, 0, 20 * time.Millisecond},
	"g726-24":   {24 * qos.Kbit, 0, 20 * time.Millisecond},
	"g726-32":   {32 * qos.Kbit, 0, 20 * time.Millisecond},
	"g726-40":   {40 * qos.Kbit, 0, 20 * time.Millisecond},
	"gsm":       {13200, 20 * time.Millisecond, 20 * time.Millisecond},
	"gsm-efr":   {12400, 20 * time.Millisecond, 20 * time.Millisecond},
	"ilbc":      {15200, 20 * time.Millisecond, 20 * time.Millisecond}, // mode=20; mode=30 takes less
	"amr":       {12800, 20 * time.Millisecond, 20 * time.Millisecond}, // 12.2 kbit/s, octet-aligned with its header
	"amr-wb":    {24400, 20 * time.Millisecond, 20 * time.Millisecond}, // 23.85 kbit/s
	"evs":       {128 * qos.Kbit, 20 * time.Millisecond, 20 * time.Millisecond},
	"speex":     {44 * qos.Kbit, 20 * time.Millisecond, 20 * time.Millisecond}, // RFC 5574: up to that in wide band
	"g7221":     {32 * qos.Kbit, 20 * time.Millisecond, 20 * time.Millisecond},
	"g719":      {128 * qos.Kbit, 20 * time.Millisecond, 20 * time.Millisecond},
	"silk":      {40 * qos.Kbit, 20 * time.Millisecond, 20 * time.Millisecond},
	"lpc":       {5600, 20 * time.Millisecond, 20 * time.Millisecond},
	"dvi4":      {64 * qos.Kbit, 0, 20 * time.Millisecond},
	"clearmode": {64 * qos.Kbit, 0, 20 * time.Millisecond},
}

// notMedia are formats that come beside sound and never instead of it: they set no rate.
var notMedia = map[string]bool{"telephone-event": true, "tone": true, "cn": true, "red": true, "rtx": true,
	"ulpfec":  true,
	"flexfec": true, "flexfec-03": true}

// Rates for what does not say about itself.
const (
	unknownAudio = 128 * qos.Kbit
	unknownVideo = 1500 * qos.Kbit
	// t38 is a page at 14,400 bit/s with three packets of redundancy in each (ITU-T T.38, annex), rounded up.
	t38 = 64 * qos.Kbit

	videoPacket = 1200 // bytes of payload: most senders leave room for tunnels

	// maxRate is the most that a description is believed to mean. Beyond it the products below would not fit
	// 64 bits, and a medium that says so would cost next to nothing.
	maxRate = qos.Gbit
)

// Offered is the most that one side may have to send after this m-line, whichever format is chosen.
func Offered(m *sdp.Media) qos.Codec {
	var most qos.Codec
	for i := range m.Formats {
		if c, ok := of(m, &m.Formats[i]); ok && rate(c) > rate(most) {
			most = c
		}
	}
	if most.Payload == 0 {
		most = unknown(m)
	}
	return most
}

// Formats are the formats of an m-line that set a rate, in its order, each once: a caller that has a meter
// finds the dearest there (Bounds). There is one at least: for what is not known, its usual rate.
func Formats(m *sdp.Media) []qos.Codec {
	var all []qos.Codec
	for i := range m.Formats {
		if c, ok := of(m, &m.Formats[i]); ok && !slices.Contains(all, c) {
			all = append(all, c)
		}
	}
	if all == nil {
		all = []qos.Codec{unknown(m)}
	}
	return all
}

// Bounds are the codecs of a list that may be its dearest on some meter. One that sends no more bytes in a
// packet and no more packets than another one is left out. Which of the others is dearest depends on the
// padding and on what stands around a packet: the payload's rate does not tell.
func Bounds(all []qos.Codec) []qos.Codec {
	var bounds []qos.Codec
	for i, c := range all {
		covered := func(k int) bool {
			o := all[k]
			equal := o.Payload == c.Payload && o.Interval == c.Interval
			return o.Payload >= c.Payload && o.Interval <= c.Interval && (!equal || k < i)
		}
		dearest := true
		for k := range all {
			dearest = dearest && (k == i || !covered(k))
		}
		if dearest {
			bounds = append(bounds, c)
		}
	}
	return bounds
}

// Secured reports whether the packets of an m-line have the tag of SRTP (RFC 3711), or may have it.
func Secured(m *sdp.Media) bool {
	return m.Crypto || m.Fingerprint || bytes.Contains(m.Protocol, []byte("SAVP"))
}

// Chosen is what is sent after an answer: the first format in it (RFC 3264, section 6.1).
func Chosen(m *sdp.Media) qos.Codec {
	for i := range m.Formats {
		if c, ok := of(m, &m.Formats[i]); ok {
			return c
		}
	}
	return unknown(m)
}

func rate(c qos.Codec) float64 {
	if c.Interval == 0 {
		return 0
	}
	return float64(c.Payload) / c.Interval.Seconds()
}

// of is one format of an m-line. ok is false for those that set no rate.
func of(m *sdp.Media, f *sdp.Format) (c qos.Codec, ok bool) {
	name := lower(f.Name)
	if notMedia[name] {
		return c, false
	}
	if m.Kind != sdp.Audio {
		return unknown(m), true
	}
	known, found := audio[name]
	switch {
	case name == "opus":
		known.rate, known.frame, known.ptime = opus(f.Params), 20*time.Millisecond, 20*time.Millisecond
	case name == "l16":
		known.rate = qos.BitRate(16*uint64(max(f.Clock, 8000))) * qos.BitRate(max(1, f.Channels))
		known.ptime = 20 * time.Millisecond
	case !found:
		return unknown(m), true
	}

	interval := known.ptime
	if m.Ptime > 0 {
		interval = time.Duration(m.Ptime) * time.Millisecond
	}
	if most := time.Duration(m.MaxPtime) * time.Millisecond; most > 0 {
		interval = min(interval, most)
	}
	if known.frame > 0 { // whole frames
		interval = max(interval/known.frame, 1) * known.frame
	}
	return packets(displays[name], known.rate, interval), true
}

// opus is the bit rate of Opus: of maxaveragebitrate (RFC 7587, section 6.1), else what speech in full band
// takes.
func opus(params []byte) qos.BitRate {
	for one := range bytes.SplitSeq(params, []byte(";")) {
		key, value, _ := bytes.Cut(bytes.TrimSpace(one), []byte("="))
		if string(key) != "maxaveragebitrate" {
			continue
		}
		if n, err := strconv.Atoi(string(value)); err == nil && n >= 6000 && n <= 510000 {
			return qos.BitRate(n)
		}
	}
	return 40 * qos.Kbit // RFC 6716, section 2.1.1
}

// unknown is what an m-line takes whose formats are not known: its b= line, or a usual rate of its kind.
func unknown(m *sdp.Media) qos.Codec {
	rate, name := unknownAudio, "unknown audio"
	switch {
	case m.Kind == sdp.Video:
		rate, name = unknownVideo, "video"
	case m.Kind == sdp.Image:
		rate, name = t38, "T.38"
	case m.Kind == sdp.Other:
		name = "unknown"
	}
	if m.Bandwidth > 0 {
		rate = min(qos.BitRate(m.Bandwidth), maxRate)
	}
	if m.Kind == sdp.Video {
		interval := time.Duration(uint64(videoPacket*8) * uint64(time.Second) / uint64(max(rate, 8000)))
		return qos.Codec{Name: name, Payload: videoPacket, Interval: max(interval, time.Microsecond)}
	}
	return packets(name, rate, 20*time.Millisecond)
}

func packets(name string, rate qos.BitRate, interval time.Duration) qos.Codec {
	bits := uint64(min(rate, maxRate)) * uint64(interval)
	return qos.Codec{
		Name:     name,
		Payload:  qos.ByteCount((bits + 8*uint64(time.Second) - 1) / (8 * uint64(time.Second))),
		Interval: interval,
	}
}

// displays are the names of codecs as people write them, by the names in lower case.
var displays = func() map[string]string {
	all := map[string]string{"opus": "Opus", "l16": "L16"}
	for name := range audio {
		all[name] = strings.ToUpper(name)
	}
	all["pcmu"], all["pcma"] = "G.711 µ-law", "G.711 A-law"
	for _, name := range []string{"g722", "g723", "g728", "g729", "g719"} {
		all[name] = "G." + name[1:]
	}
	return all
}()

// lower is a name in lower case; it allocates nothing for a name that is known. A name that is not is the
// empty one.
func lower(name []byte) string {
	var b [16]byte
	if len(name) > len(b) {
		return ""
	}
	for i, c := range name {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		b[i] = c
	}
	return spellings[string(b[:len(name)])]
}

// spellings are the names that mean something here, by themselves.
var spellings = func() map[string]string {
	all := map[string]string{}
	for name := range displays {
		all[name] = name
	}
	for name := range notMedia {
		all[name] = name
	}
	return all
}()
