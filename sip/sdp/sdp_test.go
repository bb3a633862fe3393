package sdp

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// show is a description as text, a line for each medium.
func show(body string) string {
	var d Description
	var out strings.Builder
	if !d.Read([]byte(body)) {
		return "none\n"
	}
	if d.Sessions > 1 || d.Beyond > 0 {
		fmt.Fprintf(&out, "sessions %d, beyond %d\n", d.Sessions, d.Beyond)
	}
	for _, m := range d.Media {
		fmt.Fprintf(&out, "%s %v:%d", [...]string{"other", "audio", "video", "image"}[m.Kind], m.Address, m.Port)
		if m.Named {
			out.WriteString(" named")
		}
		if m.Ports != 1 {
			fmt.Fprintf(&out, "/%d", m.Ports)
		}
		fmt.Fprintf(&out, " rtcp %v %s %s", m.Control(), m.Protocol,
			[...]string{"sendrecv", "sendonly", "recvonly", "inactive"}[m.Direction])
		for _, f := range m.Formats {
			fmt.Fprintf(&out, " %d=%s/%d/%d", f.Type, f.Name, f.Clock, f.Channels)
			if f.Params != nil {
				fmt.Fprintf(&out, "(%s)", f.Params)
			}
		}
		if m.Ptime > 0 || m.MaxPtime > 0 {
			fmt.Fprintf(&out, " ptime %d/%d", m.Ptime, m.MaxPtime)
		}
		if m.Bandwidth > 0 {
			fmt.Fprintf(&out, " %d bit/s", m.Bandwidth)
		}
		for name, is := range map[string]bool{" mux": m.RTCPMux} {
			if is {
				out.WriteString(name)
			}
		}
		if m.Crypto {
			out.WriteString(" crypto")
		}
		if m.Fingerprint {
			out.WriteString(" fingerprint")
		}
		for _, c := range m.Candidates {
			fmt.Fprintf(&out, " candidate %v", c)
		}
		out.WriteString("\n")
	}
	return out.String()
}

func TestRead(t *testing.T) {
	const head = "v=0\r\no=- 1 1 IN IP4 10.1.10.10\r\ns=-\r\nc=IN IP4 10.1.10.10\r\nt=0 0\r\n"
	for _, test := range []struct{ name, body, want string }{
		{
			"a phone",
			head + "m=audio 5004 RTP/AVP 0 8 101\r\na=rtpmap:101 telephone-event/8000\r\n" +
				"a=fmtp:101 0-15\r\na=ptime:20\r\n",
			"audio 10.1.10.10:5004 rtcp 10.1.10.10:5005 RTP/AVP sendrecv 0=PCMU/8000/1 8=PCMA/8000/1 " +
				"101=telephone-event/8000/1(0-15) ptime 20/0\n",
		}, {
			"lines ended by LF, the last by nothing",
			strings.ReplaceAll(head, "\r", "") + "m=audio 5004 RTP/AVP 0\na=sendonly",
			"audio 10.1.10.10:5004 rtcp 10.1.10.10:5005 RTP/AVP sendonly 0=PCMU/8000/1\n",
		}, {
			"b= before c=, o= of five fields, neither s= nor t=",
			"v=0\r\no=- 1 IN IP4 10.1.10.10\r\nm=audio 5004 RTP/AVP 9\r\nb=AS:80\r\nc=IN IP4 10.1.10.11\r\n",
			"audio 10.1.10.11:5004 rtcp 10.1.10.11:5005 RTP/AVP sendrecv 9=G722/8000/1 80000 bit/s\n",
		}, {
			"hold as RFC 2543 has it",
			"v=0\r\nc=IN IP4 0.0.0.0\r\nm=audio 5004 RTP/AVP 0\r\na=inactive\r\n",
			"audio 0.0.0.0:5004 rtcp 0.0.0.0:5005 RTP/AVP inactive 0=PCMU/8000/1\n",
		}, {
			"audio and image, the image refused and without an address of its own",
			"v=0\r\nm=audio 5004 RTP/AVP 0\r\nc=IN IP4 10.1.10.10\r\nm=image 0 udptl t38\r\n",
			"audio 10.1.10.10:5004 rtcp 10.1.10.10:5005 RTP/AVP sendrecv 0=PCMU/8000/1\n" +
				"image invalid IP:0 rtcp invalid AddrPort udptl sendrecv 255=t38/0/0\n",
		}, {
			"RTCP elsewhere, and multiplexed if the other end can",
			head + "m=audio 5004 RTP/SAVP 0\r\na=rtcp:6001 IN IP4 10.1.10.12\r\na=rtcp-mux\r\n" +
				"a=crypto:1 AES_CM_128_HMAC_SHA1_80 x\r\n",
			"audio 10.1.10.10:5004 rtcp 10.1.10.12:6001 RTP/SAVP sendrecv 0=PCMU/8000/1 mux crypto\n",
		}, {
			"RTCP on another port, before the address is known",
			"v=0\r\nm=audio 5004 RTP/AVP 0\r\na=rtcp:6001\r\nc=IN IP4 10.1.10.12\r\n",
			"audio 10.1.10.12:5004 rtcp 10.1.10.12:6001 RTP/AVP sendrecv 0=PCMU/8000/1\n",
		}, {
			"ICE: addresses in candidates alone",
			"v=0\r\nc=IN IP4 0.0.0.0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=fingerprint:sha-256 AB\r\n" +
				"a=rtpmap:111 opus/48000/2\r\na=candidate:1 1 udp 2130706431 10.1.10.10 50000 typ host\r\n" +
				"a=candidate:2 1 TCP 1 10.1.10.10 9 typ host\r\na=candidate:3 1 UDP 1 x.local 50001 typ host\r\n",
			"audio 0.0.0.0:9 rtcp 0.0.0.0:10 UDP/TLS/RTP/SAVPF sendrecv " +
				"111=opus/48000/2 fingerprint candidate 10.1.10.10:50000\n",
		}, {
			"IPv6, and an address of the other family than it says",
			"v=0\r\nc=IN IP6 2001:db8::9\r\nm=audio 5004 RTP/AVP 18\r\nm=video 5006 RTP/AVP 96\r\n" +
				"c=IN IP4 2001:db8::9\r\n",
			"audio 2001:db8::9:5004 rtcp [2001:db8::9]:5005 RTP/AVP sendrecv 18=G729/8000/1\n" +
				"video invalid IP:5006 rtcp invalid AddrPort RTP/AVP sendrecv 96=/0/0\n",
		}, {
			"multicast with a TTL; a name",
			"v=0\r\nc=IN IP4 224.2.1.1/127/3\r\nm=audio 49170/2 RTP/AVP 0\r\nm=audio 1 RTP/AVP 0\r\n" +
				"c=IN IP4 pbx.example.com\r\n",
			"audio 224.2.1.1:49170/2 rtcp 224.2.1.1:49171 RTP/AVP sendrecv 0=PCMU/8000/1\n" +
				"audio invalid IP:1 named rtcp invalid AddrPort RTP/AVP sendrecv 0=PCMU/8000/1\n",
		}, {
			"direction and ptime of the session, the medium's own before them",
			"v=0\r\na=recvonly\r\na=ptime:30.0\r\nm=audio 2 RTP/AVP 0\r\nm=audio 4 RTP/AVP 0\r\n" +
				"a=sendonly\r\na=maxptime:40\r\n",
			"audio invalid IP:2 rtcp invalid AddrPort RTP/AVP recvonly 0=PCMU/8000/1 ptime 30/0\n" +
				"audio invalid IP:4 rtcp invalid AddrPort RTP/AVP sendonly 0=PCMU/8000/1 ptime 30/40\n",
		}, {
			"two sessions in a body",
			head + "m=audio 5004 RTP/AVP 0\r\n" +
				strings.ReplaceAll(head, "10.1.10.10", "10.1.10.11") + "m=audio 5006 RTP/AVP 8\r\n",
			"sessions 2, beyond 0\n" +
				"audio 10.1.10.10:5004 rtcp 10.1.10.10:5005 RTP/AVP sendrecv 0=PCMU/8000/1\n" +
				"audio 10.1.10.11:5006 rtcp 10.1.10.11:5007 RTP/AVP sendrecv 8=PCMA/8000/1\n",
		}, {
			"m-lines that make no sense keep their index",
			"v=0\r\nm=\r\nm=audio x RTP/AVP\r\nm=audio 65536 RTP/AVP 0\r\n",
			"other invalid IP:0 rtcp invalid AddrPort  sendrecv\n" +
				"audio invalid IP:0 rtcp invalid AddrPort RTP/AVP sendrecv\n" +
				"audio invalid IP:0 rtcp invalid AddrPort RTP/AVP sendrecv 0=PCMU/8000/1\n",
		},
		{"no description", "Signal=1\r\nDuration=160\r\n", "none\n"},
		{"nothing", "", "none\n"},
	} {
		t.Run(test.name, func(t *testing.T) { assert.Equal(t, test.want, show(test.body)) })
	}
}

func TestWhatIsTooMuchIsCounted(t *testing.T) {
	var d Description
	body := "v=0\r\n" + strings.Repeat("m=audio 2 RTP/AVP 0\r\na=sendonly\r\n", MaxMedia+3)
	assert.True(t, d.Read([]byte(body)))
	assert.Len(t, d.Media, MaxMedia)
	assert.Equal(t, 3, d.Beyond)

	body = "v=0\r\nm=audio 2 RTP/AVP" + strings.Repeat(" 0", MaxFormats+1) + "\r\n" +
		strings.Repeat("a=candidate:1 1 UDP 1 10.1.10.10 5000 typ host\r\n", MaxCandidates+2)
	assert.True(t, d.Read([]byte(body)))
	assert.Len(t, d.Media[0].Formats, MaxFormats)
	assert.Len(t, d.Media[0].Candidates, MaxCandidates)
	assert.Equal(t, 3, d.Beyond)
}

const phone = "v=0\r\no=- 3747 3747 IN IP4 10.1.10.10\r\ns=-\r\nc=IN IP4 10.1.10.10\r\nt=0 0\r\n" +
	"m=audio 5004 RTP/AVP 9 0 8 18 101\r\na=rtpmap:9 G722/8000\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\n" +
	"a=rtpmap:18 G729/8000\r\na=fmtp:18 annexb=no\r\na=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\n" +
	"a=ptime:20\r\na=sendrecv\r\n"

func TestReadAllocatesNothing(t *testing.T) {
	d, body := new(Description), []byte(phone)
	assert.Zero(t, testing.AllocsPerRun(100, func() { d.Read(body) }))
}

func BenchmarkRead(b *testing.B) {
	d, body := new(Description), []byte(phone)
	for b.Loop() {
		d.Read(body)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(phone))
	f.Fuzz(func(t *testing.T, body []byte) {
		var d Description
		d.Read(body)
		for i := range d.Media {
			m := &d.Media[i]
			if c := m.Control(); c.IsValid() {
				assert.NotZero(t, c.Port())
			}
			assert.LessOrEqual(t, len(m.Formats), MaxFormats)
			assert.LessOrEqual(t, len(m.Candidates), MaxCandidates)
		}
	})
}

// The bodies of RFC 5118, sections 4.6, 4.8 and 4.9. An IPv4 address in the form of IPv6 is the IPv4 address: packets
// have that.
func TestAddressesOfBothFamilies(t *testing.T) {
	body := func(lines ...string) string { return strings.Join(append(lines, ""), "\r\n") }
	both := func(address string) string {
		return fmt.Sprintf("audio %s:6000 rtcp %s:6001 RTP/AVP sendrecv 2=G726-32/8000/1\n"+
			"video %s:6024 rtcp %s:6025 RTP/AVP sendrecv 107=H263-1998/90000/1\n",
			strings.Trim(address, "[]"), address, strings.Trim(address, "[]"), address)
	}
	media := []string{
		"t=3338481189 3370017201", "m=audio 6000 RTP/AVP 2", "a=rtpmap:2 G726-32/8000", "m=video 6024 RTP/AVP 107",
		"a=rtpmap:107 H263-1998/90000",
	}
	assert.Equal(t, both("[2001:db8::20]"), show(body(append([]string{
		"v=0", "o=assistant 971731711378798081 0 IN IP6 2001:db8::20", "s=Live video feed for today's meeting",
		"c=IN IP6 2001:db8::20",
	}, media...)...)))
	assert.Equal(t, both("192.0.2.2"), show(body(append([]string{
		"v=0", "o=assistant 971731711378798081 0 IN IP6 ::ffff:192.0.2.2", "s=Call me soon, please!",
		"c=IN IP6 ::ffff:192.0.2.2",
	}, media...)...)))
	assert.Equal(t, "audio 192.0.2.1:22334 rtcp 192.0.2.1:22335 RTP/AVP sendrecv 0=PCMU/8000/1\n"+
		"video 2001:db8::1:6024 rtcp [2001:db8::1]:6025 RTP/AVP sendrecv 107=H263-1998/90000/1\n", show(body(
		"v=0", "o=bob 280744730 28977631 IN IP4 host.example.com", "s=", "t=0 0", "m=audio 22334 RTP/AVP 0",
		"c=IN IP4 192.0.2.1", "m=video 6024 RTP/AVP 107", "c=IN IP6 2001:db8::1", "a=rtpmap:107 H263-1998/90000",
	)))
}
