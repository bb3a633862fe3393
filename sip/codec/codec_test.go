package codec

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"ringway/qos"
	"ringway/sip/sdp"
)

func TestWhatMediaTake(t *testing.T) {
	for _, test := range []struct{ media, offered, chosen string }{
		{"m=audio 2 RTP/AVP 0 8 101\r\n" +
			"a=rtpmap:101 telephone-event/8000", "G.711 µ-law 160 20ms", "G.711 µ-law 160 20ms"},
		{"m=audio 2 RTP/AVP 101 18 9\r\na=rtpmap:101 telephone-event/8000", "G.722 160 20ms", "G.729 20 20ms"},
		{"m=audio 2 RTP/AVP 8\r\na=ptime:30", "G.711 A-law 240 30ms", "G.711 A-law 240 30ms"},
		{"m=audio 2 RTP/AVP 18\r\na=ptime:5", "G.729 10 10ms", "G.729 10 10ms"},
		{"m=audio 2 RTP/AVP 18\r\na=ptime:60\r\na=maxptime:40", "G.729 40 40ms", "G.729 40 40ms"},
		{"m=audio 2 RTP/AVP 4", "G.723 24 30ms", "G.723 24 30ms"},
		{"m=audio 2 RTP/AVP 96\r\na=rtpmap:96 opus/48000/2", "Opus 100 20ms", "Opus 100 20ms"},
		{"m=audio 2 RTP/AVP 96\r\na=rtpmap:96 OPUS/48000/2\r\n" +
			"a=fmtp:96 useinbandfec=1; maxaveragebitrate=16000", "Opus 40 20ms", "Opus 40 20ms"},
		{"m=audio 2 RTP/AVP 96\r\na=rtpmap:96 L16/44100/2", "L16 3528 20ms", "L16 3528 20ms"},
		{"m=audio 2 RTP/AVP 96\r\na=rtpmap:96 nobody/8000", "unknown audio 320 20ms", "unknown audio 320 20ms"},
		{"m=audio 2 RTP/AVP 96\r\nb=AS:80\r\n" +
			"a=rtpmap:96 nobody/8000", "unknown audio 200 20ms", "unknown audio 200 20ms"},
		{"m=audio 2 RTP/AVP", "unknown audio 320 20ms", "unknown audio 320 20ms"},
		{"m=video 2 RTP/AVP 96\r\na=rtpmap:96 H264/90000", "video 1200 6.4ms", "video 1200 6.4ms"},
		{"m=video 2 RTP/AVP 96\r\nb=TIAS:960000", "video 1200 10ms", "video 1200 10ms"},
		{"m=image 2 udptl t38", "T.38 160 20ms", "T.38 160 20ms"},
	} {
		var d sdp.Description
		require.True(t, d.Read([]byte("v=0\r\n"+test.media+"\r\n")))
		o, c := Offered(&d.Media[0]), Chosen(&d.Media[0])
		assert.Equal(t, test.offered, fmt.Sprint(o.Name, " ", int(o.Payload), " ", o.Interval), test.media)
		assert.Equal(t, test.chosen, fmt.Sprint(c.Name, " ", int(c.Payload), " ", c.Interval), test.media)
	}
}

func media(t *testing.T, text string) *sdp.Media {
	t.Helper()
	d := new(sdp.Description)
	require.True(t, d.Read([]byte("v=0\r\n"+text+"\r\n")))
	return &d.Media[0]
}

func names(all []qos.Codec) (list []string) {
	for _, c := range all {
		list = append(list, fmt.Sprint(c.Name, " ", int(c.Payload), " ", c.Interval))
	}
	return list
}

func TestFormatsAndTheirBounds(t *testing.T) {
	const maps = "\r\na=rtpmap:101 telephone-event/8000\r\na=rtpmap:97 iLBC/8000"
	for _, test := range []struct {
		media           string
		formats, bounds []string
	}{
		{"m=audio 2 RTP/AVP 18 0 101" + maps,
			[]string{"G.729 20 20ms", "G.711 µ-law 160 20ms"}, []string{"G.711 µ-law 160 20ms"}},
		{"m=audio 2 RTP/AVP 0 0 8", // the same cost twice
			[]string{"G.711 µ-law 160 20ms", "G.711 A-law 160 20ms"}, []string{"G.711 µ-law 160 20ms"}},
		// LPC has the lower rate, and sends more packets: on a meter it is the dearer one.
		{"m=audio 2 RTP/AVP 4 7",
			[]string{"G.723 24 30ms", "LPC 14 20ms"}, []string{"G.723 24 30ms", "LPC 14 20ms"}},
		{"m=audio 2 RTP/AVP 4 97" + maps, []string{"G.723 24 30ms", "ILBC 38 20ms"}, []string{"ILBC 38 20ms"}},
		{"m=audio 2 RTP/AVP 101" + maps, []string{"unknown audio 320 20ms"}, []string{"unknown audio 320 20ms"}},
		{"m=image 2 udptl t38", []string{"T.38 160 20ms"}, []string{"T.38 160 20ms"}},
		{"m=video 2 RTP/AVP 96 97\r\nb=AS:960", []string{"video 1200 10ms"}, []string{"video 1200 10ms"}},
	} {
		all := Formats(media(t, test.media))
		assert.Equal(t, test.formats, names(all), test.media)
		assert.Equal(t, test.bounds, names(Bounds(all)), test.media)
	}
}

// No codec that Bounds leaves out is dearer than all that it keeps, whatever the meter.
func TestBoundsHoldOnEveryMeter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		codecs := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) qos.Codec {
			return qos.Codec{
				Name:     "drawn",
				Payload:  qos.ByteCount(rapid.IntRange(1, 320).Draw(t, "payload")),
				Interval: time.Duration(rapid.IntRange(5, 60).Draw(t, "ms")) * time.Millisecond,
			}
		}), 1, 8).Draw(t, "codecs")
		b := qos.Budget{Envelope: qos.Envelope{
			PadTo: qos.ByteCount(rapid.SampledFrom([]int{0, 64, 208, 512}).Draw(t, "pad")),
			MTU:   1420,
		}}
		dearest := func(all []qos.Codec) (rate qos.BitRate) {
			for _, c := range all {
				rate = max(rate, b.Call(c))
			}
			return rate
		}
		require.Equal(t, dearest(codecs), dearest(Bounds(codecs)))
	})
}

func TestSecured(t *testing.T) {
	for text, want := range map[string]bool{
		"m=audio 2 RTP/AVP 0":           false,
		"m=audio 2 RTP/SAVP 0":          true,
		"m=audio 2 UDP/TLS/RTP/SAVPF 0": true,
		"m=audio 2 RTP/AVP 0\r\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:x": true,
		"m=image 2 udptl t38": false,
	} {
		assert.Equal(t, want, Secured(media(t, text)), text)
	}
}

// A rate beyond all reason is a high one, not what is left of it in 64 bits.
func TestRatesBeyondAllReason(t *testing.T) {
	for _, text := range []string{
		"m=audio 2 RTP/AVP 96\r\nb=AS:922337204\r\na=rtpmap:96 nobody/8000",
		"m=audio 2 RTP/AVP 96\r\na=rtpmap:96 L16/1000000000/255",
		"m=audio 2 RTP/AVP 96\r\nb=AS:1073741824\r\na=ptime:10000\r\na=rtpmap:96 nobody/8000",
		"m=video 2 RTP/AVP 96\r\nb=AS:1073741824",
	} {
		c := Offered(media(t, text))
		assert.GreaterOrEqual(t, qos.Budget{}.Call(c), 999*qos.Mbit, text)
		assert.Less(t, qos.Budget{}.Call(c), 2*qos.Gbit, text)
	}
}
