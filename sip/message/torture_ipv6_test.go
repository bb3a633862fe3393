package message

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/host"
)

// tortureIPv6 are RFC 5118's messages, by the names that the RFC gives them. Three Content-Lengths that it prints are
// not their bodies': here they are right.
func tortureIPv6() map[string]string {
	all := map[string][]string{
		"ipv6-good": {
			"REGISTER sip:[2001:db8::10] SIP/2.0",
			"To: sip:user@example.com",
			"From: sip:user@example.com;tag=81x2",
			"Via: SIP/2.0/UDP [2001:db8::9:1];branch=z9hG4bKas3-111",
			"Call-ID: SSG9559905523997077@hlau_4100",
			"Max-Forwards: 70",
			`Contact: "Caller" <sip:caller@[2001:db8::1]>`,
			"CSeq: 98176 REGISTER",
			"Content-Length: 0",
			"",
		},
		"ipv6-bad": {
			"REGISTER sip:2001:db8::10 SIP/2.0",
			"To: sip:user@example.com",
			"From: sip:user@example.com;tag=81x2",
			"Via: SIP/2.0/UDP [2001:db8::9:1];branch=z9hG4bKas3-111",
			"Call-ID: SSG9559905523997077@hlau_4100",
			"Max-Forwards: 70",
			`Contact: "Caller" <sip:caller@[2001:db8::1]>`,
			"CSeq: 98176 REGISTER",
			"Content-Length: 0",
			"",
		},
		"port-ambiguous": {
			"REGISTER sip:[2001:db8::10:5070] SIP/2.0",
			"To: sip:user@example.com",
			"From: sip:user@example.com;tag=81x2",
			"Via: SIP/2.0/UDP [2001:db8::9:1];branch=z9hG4bKas3-111",
			"Call-ID: SSG9559905523997077@hlau_4100",
			`Contact: "Caller" <sip:caller@[2001:db8::1]>`,
			"Max-Forwards: 70",
			"CSeq: 98176 REGISTER",
			"Content-Length: 0",
			"",
		},
		"port-unambiguous": {
			"REGISTER sip:[2001:db8::10]:5070 SIP/2.0",
			"To: sip:user@example.com",
			"From: sip:user@example.com;tag=81x2",
			"Via: SIP/2.0/UDP [2001:db8::9:1];branch=z9hG4bKas3-111",
			"Call-ID: SSG9559905523997077@hlau_4100",
			`Contact: "Caller" <sip:caller@[2001:db8::1]>`,
			"Max-Forwards: 70",
			"CSeq: 98176 REGISTER",
			"Content-Length: 0",
			"",
		},
		"via-received-param-with-delim": {
			"BYE sip:[2001:db8::10] SIP/2.0",
			"To: sip:user@example.com;tag=bd76ya",
			"From: sip:user@example.com;tag=81x2",
			"Via: SIP/2.0/UDP [2001:db8::9:1];received=[2001:db8::9:255];branch=z9hG4bKas3-111",
			"Call-ID: SSG9559905523997077@hlau_4100",
			"Max-Forwards: 70",
			"CSeq: 321 BYE",
			"Content-Length: 0",
			"",
		},
		"via-received-param-no-delim": {
			"OPTIONS sip:[2001:db8::10] SIP/2.0",
			"To: sip:user@example.com",
			"From: sip:user@example.com;tag=81x2",
			"Via: SIP/2.0/UDP [2001:db8::9:1];received=2001:db8::9:255;branch=z9hG4bKas3",
			"Call-ID: SSG95523997077@hlau_4100",
			"Max-Forwards: 70",
			`Contact: "Caller" <sip:caller@[2001:db8::9:1]>`,
			"CSeq: 921 OPTIONS",
			"Content-Length: 0",
			"",
		},
		"ipv6-in-sdp": {
			"INVITE sip:user@[2001:db8::10] SIP/2.0",
			"To: sip:user@[2001:db8::10]",
			"From: sip:user@example.com;tag=81x2",
			"Via: SIP/2.0/UDP [2001:db8::20];branch=z9hG4bKas3-111",
			"Call-ID: SSG9559905523997077@hlau_4100",
			`Contact: "Caller" <sip:caller@[2001:db8::20]>`,
			"CSeq: 8612 INVITE",
			"Max-Forwards: 70",
			"Content-Type: application/sdp",
			"Content-Length: 251",
			"",
			"v=0",
			"o=assistant 971731711378798081 0 IN IP6 2001:db8::20",
			"s=Live video feed for today's meeting",
			"c=IN IP6 2001:db8::20",
			"t=3338481189 3370017201",
			"m=audio 6000 RTP/AVP 2",
			"a=rtpmap:2 G726-32/8000",
			"m=video 6024 RTP/AVP 107",
			"a=rtpmap:107 H263-1998/90000",
		},
		"mult-ip-in-header": {
			"BYE sip:user@host.example.net SIP/2.0",
			"Via: SIP/2.0/UDP [2001:db8::9:1]:6050;branch=z9hG4bKas3-111",
			"Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKjhja8781hjuaij65144",
			"Via: SIP/2.0/TCP [2001:db8::9:255];branch=z9hG4bK451jj;received=192.0.2.200",
			"Call-ID: 997077@lau_4100",
			"Max-Forwards: 70",
			"CSeq: 89187 BYE",
			"To: sip:user@example.net;tag=9817--94",
			"From: sip:user@example.com;tag=81x2",
			"Content-Length: 0",
			"",
		},
		"mult-ip-in-sdp": {
			"INVITE sip:user@[2001:db8::10] SIP/2.0",
			"To: sip:user@[2001:db8::10]",
			"From: sip:user@example.com;tag=81x2",
			"Via: SIP/2.0/UDP [2001:db8::9:1];branch=z9hG4bKas3-111",
			"Call-ID: SSG9559905523997077@hlau_4100",
			`Contact: "Caller" <sip:caller@[2001:db8::9:1]>`,
			"Max-Forwards: 70",
			"CSeq: 8912 INVITE",
			"Content-Type: application/sdp",
			"Content-Length: 189",
			"",
			"v=0",
			"o=bob 280744730 28977631 IN IP4 host.example.com",
			"s=",
			"t=0 0",
			"m=audio 22334 RTP/AVP 0",
			"c=IN IP4 192.0.2.1",
			"m=video 6024 RTP/AVP 107",
			"c=IN IP6 2001:db8::1",
			"a=rtpmap:107 H263-1998/90000",
		},
		"ipv4-mapped-ipv6": {
			"INVITE sip:user@example.com SIP/2.0",
			"To: sip:user@example.com",
			"From: sip:user@east.example.com;tag=81x2",
			"Via: SIP/2.0/UDP [::ffff:192.0.2.10]:19823;branch=z9hG4bKbh19",
			"Via: SIP/2.0/UDP [::ffff:192.0.2.2];branch=z9hG4bKas3-111",
			"Call-ID: SSG9559905523997077@hlau_4100",
			`Contact: "T. desk phone" <sip:ted@[::ffff:192.0.2.2]>`,
			"CSeq: 612 INVITE",
			"Max-Forwards: 70",
			"Content-Type: application/sdp",
			"Content-Length: 245",
			"",
			"v=0",
			"o=assistant 971731711378798081 0 IN IP6 ::ffff:192.0.2.2",
			"s=Call me soon, please!",
			"c=IN IP6 ::ffff:192.0.2.2",
			"t=3338481189 3370017201",
			"m=audio 6000 RTP/AVP 2",
			"a=rtpmap:2 G726-32/8000",
			"m=video 6024 RTP/AVP 107",
			"a=rtpmap:107 H263-1998/90000",
		},
		"ipv6-bug-abnf-3-colons": {
			"OPTIONS sip:user@[2001:db8:::192.0.2.1] SIP/2.0",
			"To: sip:user@[2001:db8:::192.0.2.1]",
			"From: sip:user@example.com;tag=810x2",
			"Via: SIP/2.0/UDP lab1.east.example.com;branch=z9hG4bKas3-111",
			"Call-ID: G9559905523997077@hlau_4100",
			"CSeq: 689 OPTIONS",
			"Max-Forwards: 70",
			"Content-Length: 0",
			"",
		},
		"ipv6-correct-abnf-2-colons": {
			"OPTIONS sip:user@[2001:db8::192.0.2.1] SIP/2.0",
			"To: sip:user@[2001:db8::192.0.2.1]",
			"From: sip:user@example.com;tag=810x2",
			"Via: SIP/2.0/UDP lab1.east.example.com;branch=z9hG4bKas3-111",
			"Call-ID: G9559905523997077@hlau_4100",
			"CSeq: 689 OPTIONS",
			"Max-Forwards: 70",
			"Content-Length: 0",
			"",
		},
	}
	texts := map[string]string{}
	for name, lines := range all {
		texts[name] = strings.Join(append(lines, ""), "\r\n")
	}
	return texts
}

// Each of RFC 5118's messages is framed alike by everybody, so each goes on byte for byte, those too whose addresses
// are wrong: then the address is none, and who is to read it may say so.
func TestTortureMessagesOfIPv6(t *testing.T) {
	type read struct {
		Host     string // of the Request-URI
		Address  string // that it is; empty: none
		Port     uint16
		SentBy   string // of the topmost Via
		Received string
	}
	all := tortureIPv6()
	want := map[string]read{
		"ipv6-good":        {"[2001:db8::10]", "2001:db8::10", 0, "[2001:db8::9:1]", ""},
		"ipv6-bad":         {},
		"port-ambiguous":   {"[2001:db8::10:5070]", "2001:db8::10:5070", 0, "[2001:db8::9:1]", ""},
		"port-unambiguous": {"[2001:db8::10]", "2001:db8::10", 5070, "[2001:db8::9:1]", ""},
		"via-received-param-with-delim": {
			"[2001:db8::10]", "2001:db8::10", 0, "[2001:db8::9:1]", "2001:db8::9:255",
		},
		"via-received-param-no-delim": {
			"[2001:db8::10]", "2001:db8::10", 0, "[2001:db8::9:1]", "2001:db8::9:255",
		},
		"ipv6-in-sdp":                {"[2001:db8::10]", "2001:db8::10", 0, "[2001:db8::20]", ""},
		"mult-ip-in-header":          {"host.example.net", "", 0, "[2001:db8::9:1]:6050", ""},
		"mult-ip-in-sdp":             {"[2001:db8::10]", "2001:db8::10", 0, "[2001:db8::9:1]", ""},
		"ipv4-mapped-ipv6":           {"example.com", "", 0, "[::ffff:192.0.2.10]:19823", ""},
		"ipv6-bug-abnf-3-colons":     {"[2001:db8:::192.0.2.1]", "", 0, "lab1.east.example.com", ""},
		"ipv6-correct-abnf-2-colons": {"[2001:db8::192.0.2.1]", "2001:db8::c000:201", 0, "lab1.east.example.com", ""},
	}
	require.Len(t, all, len(want))
	for name, text := range all {
		t.Run(name, func(t *testing.T) {
			var m Message
			assert.Equal(t, None.String(), m.Scan([]byte(text)).String())
			assert.Equal(t, text, string(m.Raw), "byte for byte")

			var got read
			uri, ok := ParseURI(m.URI())
			got.Host, got.Port = string(uri.Host), uri.Port
			if a, is := host.Parse(uri.Host); is {
				got.Address = a.String()
			}
			via, isVia := ParseVia(m.Header(Via))
			require.True(t, isVia)
			got.SentBy = string(via.SentBy)
			if a, is := via.Received(); is {
				got.Received = a.String()
			}
			if name == "ipv6-bad" {
				assert.False(t, ok, "an address without brackets")
				got = read{}
			}
			assert.Equal(t, want[name], got)

			var f Framer
			stream := []byte(text + text)
			for range 2 {
				n, why := f.Next(stream, &m)
				require.Equal(t, None.String(), why.String())
				assert.Equal(t, text, string(stream[:n]))
				stream = stream[n:]
			}
			assert.Empty(t, stream)
		})
	}
}

// The RFC prints three lengths that are not those of the bodies. A datagram whose body is cut goes on unread; one whose
// body is longer is read as far as it says (RFC 3261, section 18.3). In a stream the length counts.
func TestTortureMessagesOfIPv6WithTheirPrintedLengths(t *testing.T) {
	all := tortureIPv6()
	for name, c := range map[string]struct {
		right, printed int
		why            Reason
		stream         string
	}{
		"ipv6-in-sdp":      {251, 268, BodyCut, "%d left\n"},
		"mult-ip-in-sdp":   {189, 181, None, "bad_start_line\n"},
		"ipv4-mapped-ipv6": {245, 236, None, "bad_start_line\n"},
	} {
		text := all[name]
		_, body, _ := strings.Cut(text, "\r\n\r\n")
		assert.Len(t, body, c.right, name)
		length := func(n int) string { return fmt.Sprintf("Content-Length: %d\r\n", n) }
		printed := strings.Replace(text, length(c.right), length(c.printed), 1)
		require.NotEqual(t, text, printed)

		var m Message
		assert.Equal(t, c.why.String(), m.Scan([]byte(printed)).String(), name)
		assert.Equal(t, printed, string(m.Raw), name)
		assert.Equal(t, body[:min(c.printed, c.right)], string(m.Body), name)
		stream := cut([]byte(printed))
		if c.why == BodyCut {
			assert.Equal(t, fmt.Sprintf(c.stream, len(printed)), stream, name)
		} else {
			assert.True(t, strings.HasSuffix(stream, "\n"+c.stream), "%s: %s", name, stream)
		}
	}
}
