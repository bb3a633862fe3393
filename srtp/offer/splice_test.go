package offer_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/offer"
	"ringway/srtp/sdes"
	"ringway/srtp/suite"
)

// sent is what the site gets of a phone's offer.
func sent(t *testing.T, level offer.Level, body string) string {
	t.Helper()
	r := newBench(t, phone(level), site(level)).offer(t, "", offer.Caller, body)
	return string(r.Body)
}

func TestSplice(t *testing.T) {
	const session = "v=0\r\no=- 1 1 IN IP4 10.1.10.10\r\ns=-\r\n"
	const tls = "a=setup:actpass\r\n"
	for _, test := range []struct{ name, body, want string }{
		{
			"lines ended by LF, the last by nothing",
			"v=0\nc=IN IP4 10.1.10.10\nm=audio 5004 RTP/AVP 8",
			"v=0\nc=IN IP4 10.9.0.1\nm=audio 40000 RTP/AVP 8\n" + strings.ReplaceAll(marker, "\r", ""),
		}, {
			"an address of the line's own, fields apart, i=, b=, an empty line at the end",
			session + "m=audio  5004\tRTP/AVP 8\r\ni=x\r\nc=IN IP4 10.1.10.11\r\nb=AS:80\r\na=mid:1\r\n\r\n",
			session + "m=audio  40000\tRTP/AVP 8\r\ni=x\r\nc=IN IP4 10.9.0.1\r\nb=AS:80\r\na=mid:1\r\n" + marker + "\r\n",
		}, {
			"T.38 is left alone, with the session's address",
			session + "c=IN IP4 10.1.10.10\r\nm=audio 5004 RTP/AVP 8\r\ni=x\r\nb=AS:80\r\n" +
				"m=image 5006 udptl t38\r\na=T38FaxVersion:0\r\n",
			session + "c=IN IP4 10.1.10.10\r\nm=audio 40000 RTP/AVP 8\r\ni=x\r\nc=IN IP4 10.9.0.1\r\nb=AS:80\r\n" + marker +
				"m=image 5006 udptl t38\r\na=T38FaxVersion:0\r\n",
		}, {
			"T.38 with an address of its own, and sound with nothing behind it",
			session + "c=IN IP4 10.1.10.10\r\nm=image 5006 udptl t38\r\nc=IN IP4 10.1.10.12\r\nm=audio 5004 RTP/AVP 8\r\n",
			session + "c=IN IP4 10.9.0.1\r\nm=image 5006 udptl t38\r\nc=IN IP4 10.1.10.12\r\n" +
				"m=audio 40000 RTP/AVP 8\r\n" + marker,
		}, {
			"T.38 instead of sound",
			session + "c=IN IP4 10.1.10.10\r\nm=audio 0 RTP/AVP 8\r\nm=image 5006 udptl t38\r\n",
			session + "c=IN IP4 10.1.10.10\r\nm=audio 0 RTP/AVP 8\r\nm=image 5006 udptl t38\r\n",
		}, {
			"keys of the session, which TLS of another line needs",
			session + "c=IN IP4 10.1.10.10\r\n" + fingerprint(1) + tls + "m=audio 5004 UDP/TLS/RTP/SAVPF 8\r\na=rtcp-mux\r\n" +
				"m=message 5010 TCP/TLS/MSRP *\r\na=setup:active\r\n",
			session + "c=IN IP4 10.1.10.10\r\nm=audio 40000 RTP/AVP 8\r\nc=IN IP4 10.9.0.1\r\na=rtcp-mux\r\n" + marker +
				"m=message 5010 TCP/TLS/MSRP *\r\na=setup:active\r\n" + fingerprint(1),
		}, {
			"several lines, one refused, feedback kept",
			session + "c=IN IP4 10.1.10.10\r\nm=audio 5004 RTP/AVP 8\r\nm=video 0 RTP/SAVPF 96\r\n" + crypto(1, 1, cm80) +
				"m=video 5008 RTP/AVPF 96\r\na=rtcp-fb:* nack\r\na=content:slides\r\n",
			session + "c=IN IP4 10.9.0.1\r\nm=audio 40000 RTP/AVP 8\r\n" + marker + "m=video 0 RTP/SAVPF 96\r\n" +
				"m=video 40002 RTP/AVPF 96\r\na=rtcp-fb:* nack\r\na=content:slides\r\n" + marker,
		}, {
			"BUNDLE and ICE with an address: each line has a port",
			session + "c=IN IP4 10.1.10.10\r\na=group:BUNDLE 0 1\r\na=group:LS 0 1\r\na=ice-lite\r\na=msid-semantic: WMS\r\n" +
				"m=audio 5004 RTP/AVP 8\r\na=mid:0\r\na=ice-ufrag:x\r\na=ice-pwd:y\r\n" +
				"a=candidate:1 1 UDP 1 10.1.10.10 5004 typ host\r\n" +
				"a=rtcp-mux\r\na=ssrc:1 cname:z\r\na=end-of-candidates\r\nm=video 5006 RTP/AVP 96\r\na=mid:1\r\na=rtcp-mux\r\n",
			session + "c=IN IP4 10.9.0.1\r\na=group:LS 0 1\r\na=msid-semantic: WMS\r\n" +
				"m=audio 40000 RTP/AVP 8\r\na=mid:0\r\na=rtcp-mux\r\na=ssrc:1 cname:z\r\n" + marker +
				"m=video 40002 RTP/AVP 96\r\na=mid:1\r\na=rtcp-mux\r\n" + marker,
		}, {
			"other ways to agree on keys and addresses are taken away, in any case",
			session + "c=IN IP4 10.1.10.10\r\na=TCAP:1 RTP/SAVP\r\na=key-mgmt:mikey AAAA\r\nm=audio 5004 RTP/AVP 8\r\n" +
				"a=pcfg:1 t=1 a=1\r\na=acap:1 crypto:1 " + cm80.String() + " inline:" + inline(9, cm80) + "\r\n" +
				"a= Crypto:1 " + cm80.String() + " inline:" + inline(8, cm80) + "\r\na=altc:1 IP4 10.1.10.10 5004\r\n" +
				"a=zrtp-hash:1.10 00\r\na=" + strings.TrimPrefix(marker, "a=") + "a=fmtp:8 x\r\n",
			session + "c=IN IP4 10.9.0.1\r\nm=audio 40000 RTP/AVP 8\r\na=fmtp:8 x\r\n" + marker,
		},
	} {
		t.Run(test.name, func(t *testing.T) { assert.Equal(t, test.want, sent(t, offer.Prefer, test.body)) })
	}
}

func TestIPv6(t *testing.T) {
	six := strings.Replace(audio(5004, "RTP/SAVP", crypto(1, 1, cm80)),
		"c=IN IP4 10.1.10.10", "c=IN IP6 2001:db8:1::10", 1)
	_, r := toSite(t, phone(offer.Require), six)
	assert.Contains(t, string(r.Body), "c=IN IP6 2001:db8:1::1\r\n")
	assert.Equal(t, netip.AddrPortFrom(boxVoice, 40000), legOf(r, offer.Callee).Local, "the site has IPv4 alone")

	// Lines of both families.
	b := newBench(t, phone(offer.Prefer), phone(offer.Prefer))
	r = b.offer(t, "", offer.Caller, six+"m=video 5006 RTP/AVP 96\r\nc=IN IP4 10.1.10.10\r\nm=audio 5008 RTP/AVP 0\r\n")
	assert.Regexp(t, `(?s)c=IN IP6 2001:db8:1::1\r\n.*m=audio 40000 .*`+
		`m=video 40002 [^\n]*\r\nc=IN IP4 10.1.10.1\r\n`, string(r.Body))

	only := phone(offer.Require)
	only.IPv6 = netip.Addr{}
	b = newBench(t, only, site(offer.Require))
	b.offer(t, "", offer.Caller, six)
	_, err := b.Answer("b", offer.Callee, []byte(fromBox(audio(41000, "RTP/AVP", marker))))
	requireRefusal(t, err, 488, "no media address")
	b.Close()
	assert.Empty(t, b.ports.out)
}

// What two ends could read in different ways is refused.
func TestUnreadable(t *testing.T) {
	good := audio(5004, "RTP/SAVP", crypto(1, 1, cm80))
	for name, body := range map[string]string{
		"none":                           "",
		"no description":                 "Signal=1\r\n",
		"two sessions":                   good + good,
		"a bare CR":                      strings.Replace(good, "s=call\r\n", "s=call\rm=audio 6 RTP/AVP 0\r\n", 1),
		"a NUL":                          strings.Replace(good, "s=call", "s=ca\x00ll", 1),
		"a folded line":                  strings.Replace(good, "a=sendrecv", " a=sendrecv", 1),
		"a capital":                      strings.Replace(good, "a=sendrecv", "M=audio 6 RTP/AVP 0", 1),
		"a port that is none":            strings.Replace(good, "5004", "70004", 1),
		"a port in hexadecimal":          strings.Replace(good, "5004", "0x10", 1),
		"a number of ports that is none": strings.Replace(good, "5004", "5004/x", 1),
		"a signed port":                  strings.Replace(good, "5004", "+5004", 1),
		"no protocol":                    strings.Replace(good, "m=audio 5004 RTP/SAVP 8 101", "m=audio 5004", 1),
		"two addresses of a line":        good + "c=IN IP4 10.1.10.11\r\nc=IN IP4 10.1.10.12\r\n",
		"nine lines":                     good + strings.Repeat("m=audio 5006 RTP/SAVP 8\r\n", 8),
		"too long":                       good + strings.Repeat("a=x:y\r\n", offer.MaxBody/7),
		"too many lines":                 good + strings.Repeat("a=\r\n", 1000),
	} {
		b := newBench(t, phone(offer.Prefer), site(offer.Require))
		_, err := b.Offer("", offer.Caller, []byte(body), false)
		requireRefusal(t, err, 488, "cannot be read")
		assert.Empty(t, b.ports.out, name)
	}
}

func TestRefusedLines(t *testing.T) {
	secure := audio(5004, "RTP/SAVP", crypto(1, 1, cm80))
	keys := crypto(1, 1, cm80)
	for name, test := range map[string]struct{ video, want string }{
		"clear":             {"m=video 5006 RTP/AVP 96\r\n", "m=video 0 RTP/AVP 96\r\n"},
		"by an unknown way": {"m=video 5006 DCCP/RTP/AVP 96\r\n", "m=video 0 DCCP/RTP/AVP 96\r\n"},
		"not even RTP":      {"m=video 5006 udp 96\r\n", "m=video 0 udp 96\r\n"},
		"without suites": {
			"m=video 5006 RTP/SAVP 96\r\n" + strings.Replace(keys, cm80.String(), "F8_128_HMAC_SHA1_80", 1),
			"m=video 0 RTP/SAVP 96\r\n",
		},
		"by ICE": {
			"m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=ice-ufrag:x\r\na=setup:actpass\r\n" + fingerprint(1),
			"m=video 0 UDP/TLS/RTP/SAVPF 96\r\n",
		},
		"by a name": {
			"m=video 5006 RTP/SAVP 96\r\nc=IN IP4 x.example\r\n" + keys,
			"m=video 0 RTP/SAVP 96\r\nc=IN IP4 x.example\r\n",
		},
		"by multicast": {
			"m=video 5006 RTP/SAVP 96\r\nc=IN IP4 224.2.1.1/127\r\n" + keys,
			"m=video 0 RTP/SAVP 96\r\nc=IN IP4 224.2.1.1/127\r\n",
		},
		"at ourselves": {
			"m=video 5006 RTP/SAVP 96\r\nc=IN IP4 127.0.0.1\r\n" + keys,
			"m=video 0 RTP/SAVP 96\r\nc=IN IP4 127.0.0.1\r\n",
		},
		"in layers": {"m=video 5006/2 RTP/SAVP 96\r\n" + keys, "m=video 0 RTP/SAVP 96\r\n"},
	} {
		b := newBench(t, phone(offer.Require), site(offer.Require))
		r := b.offer(t, "", offer.Caller, secure+test.video)
		assert.True(t, strings.HasSuffix(string(r.Body), marker+test.want), "%s: %s", name, r.Body)
		assert.Len(t, b.ports.out, 1, name)
		answered := fromBox(audio(41000, "RTP/AVP", marker))
		// The other end takes it all the same: the phone does not hear of it.
		r = b.answer(t, "b", offer.Callee, answered+"m=video 41002 RTP/AVP 96\r\n"+marker)
		assert.Contains(t, string(r.Body), "m=video 0 "+strings.Fields(test.want)[2]+" 96\r\n", name)
		assert.NotContains(t, string(r.Body), "ringway")
		assert.Len(t, r.Media, 1)

		// Sound is what a call is about: without it there is none.
		b = newBench(t, phone(offer.Require), site(offer.Require))
		_, err := b.Offer("", offer.Caller, []byte(head+strings.Replace(test.video, "m=video", "m=audio", 1)+
			"m=video 5008 RTP/SAVP 96\r\n"+crypto(1, 1, cm80)), false)
		requireRefusal(t, err, 488, "")
		assert.Empty(t, b.ports.out)
	}
}

func TestWhatTheBoxDoesNotSpeakPassesIfNothingIsRequired(t *testing.T) {
	p := phone(offer.Prefer)
	webrtc := "v=0\r\nc=IN IP4 0.0.0.0\r\na=group:BUNDLE 0\r\n" + fingerprint(1) +
		"m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=ice-ufrag:x\r\na=setup:actpass\r\n"
	b := newBench(t, p, trunk(offer.Prefer))
	r := b.offer(t, "", offer.Caller, webrtc)
	assert.Equal(t, webrtc, string(r.Body), "it is encrypted from end to end")
	r = b.answer(t, "b", offer.Callee, webrtc)
	assert.Equal(t, webrtc, string(r.Body))
	assert.Empty(t, r.Media)
	b.Close()

	b = newBench(t, p, site(offer.Require))
	_, err := b.Offer("", offer.Caller, []byte(webrtc), false)
	requireRefusal(t, err, 488, "by ICE alone")

	odd := head + "m=audio 5004 DCCP/RTP/AVP 8\r\n"
	b = newBench(t, p, trunk(offer.Prefer))
	r = b.offer(t, "", offer.Caller, odd)
	assert.Equal(t, odd, string(r.Body))
	_, err = b.Answer("b", offer.Callee, []byte(strings.Replace(odd, "DCCP", "UDP", 1)))
	require.NoError(t, err)
}

func TestAnswersThatDoNotFit(t *testing.T) {
	b := newBench(t, phone(offer.Require), site(offer.Require))
	_, err := b.Answer("b", offer.Callee, []byte(audio(1, "RTP/AVP")))
	requireRefusal(t, err, 488, "without an offer")
	b.offer(t, "", offer.Caller, audio(5004, "RTP/SAVP", crypto(1, 1, cm80))+"m=message 5006 TCP/TLS/MSRP *\r\n")
	ok := fromBox(audio(41000, "RTP/AVP", marker))
	const chat = "m=message 5006 TCP/TLS/MSRP *\r\n"
	for body, reason := range map[string]string{
		ok:                                    "another number of media lines",
		ok + chat + "m=audio 6 RTP/AVP 0\r\n": "another number of media lines",
		ok + "m=audio 5006 RTP/AVP 0\r\n":     "another protocol",
		fromBox(head) + chat + chat:           "another protocol",
		strings.Replace(ok, "m=audio 41000", "m=audio 41000/2", 1) + chat:      "several ports",
		strings.Replace(ok, "IN IP4 10.9.0.2", "IN IP6 2001:db8::1", 1) + chat: "SRTP is required",
		ok + "v=0\r\n": "cannot be read",
	} {
		_, err := b.Answer("b", offer.Callee, []byte(body))
		requireRefusal(t, err, 488, reason)
	}
	_, err = b.Answer("b", offer.Caller, []byte(ok))
	requireRefusal(t, err, 488, "of its own")
	assert.Len(t, b.ports.out, 1, "a refused branch leaves nothing")
	r := b.answer(t, "b", offer.Callee, ok+"m=message 5007 TCP/TLS/MSRP *\r\n")
	assert.Contains(t, string(r.Body), "m=message 5007 TCP/TLS/MSRP *\r\n")
	r = b.answer(t, "c", offer.Callee, fromBox(audio(0, "RTP/AVP"))+"m=message 5007 TCP/TLS/MSRP *\r\n")
	assert.Contains(t, string(r.Body), "m=audio 0 RTP/SAVP 8 101\r\n", "the caller's own protocol")
	assert.Empty(t, r.Media)

	// An answer that brings up what was off.
	b = newBench(t, phone(offer.Require), site(offer.Require))
	b.offer(t, "", offer.Caller, audio(5004, "RTP/SAVP", crypto(1, 1, cm80))+
		"m=audio 0 udp 8\r\nm=message 0 TCP/TLS/MSRP *\r\n")
	r = b.answer(t, "b", offer.Callee, ok+"m=audio 5006 RTP/AVP 8\r\nm=message 5008 TCP/TLS/MSRP *\r\n")
	assert.Contains(t, string(r.Body), "m=audio 0 RTP/AVP 8\r\nm=message 0 TCP/TLS/MSRP *\r\n")

	v6 := newBench(t, phone(offer.Require), phone(offer.Require))
	passed := v6.offer(t, "", offer.Caller, audio(5004, "RTP/SAVP", crypto(1, 1, cm80)))
	_, err = v6.Answer("b", offer.Callee, []byte(strings.Replace(reply(t, passed.Body, 5008, 2, cm80),
		"c=IN IP4 10.1.10.20", "c=IN IP6 2001:db8::20", 1)))
	requireRefusal(t, err, 488, "other family")
}

func TestOffersCrossAndAreRejected(t *testing.T) {
	c := newCall(t)
	moved := audio(5104, "RTP/SAVP", crypto(1, 9, cm80))
	c.offer(t, "b", offer.Caller, moved)
	_, err := c.Offer("b", offer.Callee, []byte(c.answered), false)
	requireRefusal(t, err, 491, "")
	back := c.reject(t, "b")
	assert.True(t, back.Settled)
	assert.Equal(t, c.first.Media, back.Media)
	passed, r := c.again(t, c.offered)
	assert.Equal(t, c.passed, passed)
	assert.Equal(t, c.first.Media, r.Media)
	assert.Empty(t, c.reject(t, "b").Media, "there is no offer")
	assert.Empty(t, c.reject(t, "other").Media)

	// An offer that is refused changes nothing.
	_, err = c.Offer("b", offer.Caller, []byte(audio(5004, "RTP/AVP")), false)
	requireRefusal(t, err, 488, "required")
	_, r = c.again(t, c.offered)
	assert.Equal(t, c.first.Media, r.Media)
	c.Close()
	assert.Empty(t, c.ports.out)
}

func TestEarlyMediaThenAnotherAnswer(t *testing.T) {
	b := newBench(t, phone(offer.Require), trunk(offer.Prefer))
	b.offer(t, "", offer.Caller, audio(5004, "RTP/SAVP", crypto(1, 1, cm80)))
	early := b.answer(t, "b", offer.Callee, at("203.0.113.5", audio(6000, "RTP/AVP")))
	again := b.answer(t, "b", offer.Callee, at("203.0.113.5", audio(6000, "RTP/AVP")))
	assert.Equal(t, early.Media, again.Media)
	last := b.answer(t, "b", offer.Callee, at("203.0.113.6", audio(6002, "RTP/AVP", crypto(4, 3, cm80))))
	assert.Equal(t, "0: SRTP by SDES, RTP", describe(early))
	assert.Equal(t, "0: SRTP by SDES, SRTP by SDES", describe(last))
	assert.Equal(t, string(early.Body[:20]), string(last.Body[:20]))
	assert.Equal(t, legOf(early, offer.Caller).Send, legOf(last, offer.Caller).Send, "the caller notices nothing")
	assert.Equal(t, netip.MustParseAddrPort("203.0.113.6:6002"), legOf(last, offer.Callee).Remote)
}

func TestLateOffer(t *testing.T) {
	b := newBench(t, site(offer.Require), phone(offer.Require))
	passed := b.offer(t, "p", offer.Callee, audio(5008, "RTP/SAVP", crypto(1, 1, cm80)))
	assert.Contains(t, string(passed.Body), marker)
	r := b.answer(t, "p", offer.Caller, fromBox(audio(41000, "RTP/AVP", marker)))
	assert.Equal(t, "0: SRTP between boxes, SRTP by SDES", describe(r))
	b.offer(t, "q", offer.Callee, audio(5008, "RTP/SAVP", crypto(1, 1, cm80)))
	assert.Empty(t, b.reject(t, "q").Media)
	b.End("p")
	assert.Empty(t, b.ports.out)
}

func TestLineThatIsSwitchedOffAndOnHasNewKeys(t *testing.T) {
	c := newCall(t)
	c.offer(t, "b", offer.Caller,
		strings.Replace(c.offered, "m=audio 5004", "m=audio 0", 1)+"m=message 5006 TCP/TLS/MSRP *\r\n")
	r := c.answer(t, "b", offer.Callee,
		strings.Replace(c.answered, "m=audio 5008", "m=audio 0", 1)+"m=message 5010 TCP/TLS/MSRP *\r\n")
	assert.Empty(t, r.Media)
	assert.NotContains(t, string(r.Body), "crypto")
	c.offer(t, "b", offer.Caller, c.offered+"m=message 0 TCP/TLS/MSRP *\r\n")
	r = c.answer(t, "b", offer.Callee, c.answered+"m=message 0 TCP/TLS/MSRP *\r\n")
	for i := range epochs(r) {
		assert.NotEqual(t, epochs(c.first)[i], epochs(r)[i])
	}
	assert.False(t, same(legOf(r, offer.Caller).Send.Keys[0], legOf(c.first, offer.Caller).Send.Keys[0]))
	c.Close()
	assert.Empty(t, c.ports.out)
}

func TestPortsRunOut(t *testing.T) {
	b := newBench(t, phone(offer.Require), site(offer.Require))
	offered := audio(5004, "RTP/SAVP", crypto(1, 1, cm80))
	b.ports.next = 60000
	_, err := b.Offer("", offer.Caller, []byte(offered), false)
	requireRefusal(t, err, 503, "no media port")
	b.ports.next = 59998
	b.offer(t, "", offer.Caller, offered)
	_, err = b.Answer("b", offer.Callee, []byte(fromBox(audio(41000, "RTP/AVP", marker))))
	requireRefusal(t, err, 503, "no media port")
	b.Close()
	assert.Empty(t, b.ports.out)
}

func TestBranchesAreBounded(t *testing.T) {
	b := newBench(t, phone(offer.Require), site(offer.Require))
	b.offer(t, "", offer.Caller, audio(5004, "RTP/SAVP", crypto(1, 1, cm80)))
	for i := range 16 {
		b.answer(t, fmt.Sprint(i), offer.Callee, fromBox(audio(41000, "RTP/AVP", marker)))
	}
	_, err := b.Answer("16", offer.Callee, []byte(fromBox(audio(41000, "RTP/AVP", marker))))
	requireRefusal(t, err, 503, "too many branches")
	_, err = b.Offer("17", offer.Callee, []byte(fromBox(audio(41000, "RTP/AVP", marker))), false)
	requireRefusal(t, err, 503, "too many branches")
}

func TestDirectionsAndCodecs(t *testing.T) {
	b := newBench(t, phone(offer.Off), site(offer.Require))
	b.offer(t, "", offer.Caller, head+"m=audio 5004 RTP/AVP 96 0 8\r\n"+
		"a=rtpmap:96 opus/48000/2\r\na=ptime:20\r\na=maxptime:60\r\na=sendonly\r\n")
	r := b.answer(t, "b", offer.Callee, fromBox(head)+"m=audio 41000 RTP/AVP 97 8\r\n"+
		"a=rtpmap:97 OPUS/48000/2\r\na=ptime:40\r\na=recvonly\r\n"+marker)
	x, y := legOf(r, offer.Caller), legOf(r, offer.Callee)
	assert.True(t, x.Sends && y.Receives)
	assert.False(t, x.Receives || y.Sends)
	assert.Equal(t, []offer.Codec{{97, "OPUS", 48000, 2, ""}, {8, "PCMA", 8000, 1, ""}}, x.Codecs)
	assert.Equal(t, []offer.Codec{{96, "opus", 48000, 2, ""}, {8, "PCMA", 8000, 1, ""}}, y.Codecs)
	assert.Equal(t, [4]int{40, 0, 20, 60}, [4]int{x.Ptime, x.MaxPtime, y.Ptime, y.MaxPtime})
}

func TestChannelGoesDownInACall(t *testing.T) {
	place := site(offer.Require)
	b := newBench(t, phone(offer.Off), place)
	offered, answered := audio(5004, "RTP/AVP"), fromBox(audio(41000, "RTP/AVP", marker))
	first := b.offer(t, "", offer.Caller, offered)
	r := b.answer(t, "b", offer.Callee, answered)
	place.ChannelUp = false
	b.SetPlace(offer.Callee, place)
	again := b.offer(t, "b", offer.Caller, offered)
	assert.Equal(t, string(first.Body), string(again.Body), "the legs that exist stay on their keys")
	assert.Equal(t, r.Media, b.answer(t, "b", offer.Callee, answered).Media)
	again = b.offer(t, "b", offer.Callee, answered)
	assert.NotContains(t, string(again.Body), "ringway")
	assert.Equal(t, r.Media, b.answer(t, "b", offer.Caller, offered).Media)

	// A line that is added needs new ones.
	again = b.offer(t, "b", offer.Caller, offered+"m=video 5006 RTP/AVP 96\r\n")
	assert.Contains(t, string(again.Body), "m=video 0 RTP/AVP 96\r\n")
}

func TestEmergency(t *testing.T) {
	p := phone(offer.Require)
	p.Policy = p.ForEmergency()
	place := site(offer.Require)
	place.Policy = place.ForEmergency()
	place.ChannelUp = false
	b := newBench(t, p, place)
	b.offer(t, "", offer.Caller, audio(5004, "RTP/AVP"))
	r := b.answer(t, "b", offer.Callee, fromBox(audio(41000, "RTP/AVP")))
	assert.Equal(t, "0: RTP, RTP", describe(r))

	p.Level, p.RequireEmergency = offer.Require, true
	assert.Equal(t, offer.Require, p.ForEmergency().Level)
}

func TestOverhead(t *testing.T) {
	for s, want := range map[suite.Suite][2]int{
		cm80: {14, 18}, cm32: {8, 18}, gcm: {20, 24}, suite.AEADAES256GCM: {20, 24}, 0: {0, 0},
	} {
		rtp, rtcp := offer.Overhead(s, 4)
		assert.Equal(t, want, [2]int{rtp, rtcp}, s)
	}
	l := offer.Leg{Keying: offer.DTLS}
	rtp, _ := l.Overhead()
	assert.Equal(t, 16, rtp)
}

func TestSecretsDoNotPrint(t *testing.T) {
	c := newCall(t)
	_, err := c.Offer("b", offer.Caller, []byte(strings.Replace(c.offered, "inline:", "inline:!", 1)), false)
	require.Error(t, err)
	for _, v := range []any{c.first, &c.first, c.first.Media, c.Call, err} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q"} {
			text := fmt.Sprintf(verb, v)
			assert.NotContains(t, text, inline(1, cm80)[:8], verb)
			assert.NotContains(t, text, fmt.Sprint(numbered("phone", 1, 30)[:4])[1:], verb)
			assert.NotContains(t, text, fmt.Sprintf("%x", numbered("phone", 1, 30)[:4]), verb)
			assert.NotContains(t, text, fmt.Sprintf("%x", numbered("box", 4, 30)[:4]), verb)
		}
	}
}

func TestKeysAreOverwritten(t *testing.T) {
	zero := func(k sdes.Key) bool { return strings.Trim(string(k.Master)+string(k.Salt), "\x00") == "" }
	c := newCall(t)
	c.offer(t, "b", offer.Caller, audio(5104, "RTP/SAVP", crypto(1, 9, cm80)))
	c.Close()
	for i, k := range c.keys {
		assert.True(t, zero(k), "key %d", i)
	}
	x := legOf(c.first, offer.Caller)
	assert.False(t, zero(x.Send.Keys[0]), "copies are the media plane's")
	c.first.Wipe()
	assert.True(t, zero(x.Send.Keys[0]) && zero(x.Receive.Keys[0]))
}

// Where nothing is relayed nothing is refused, and what is remembered of it is bounded.
func TestOffPassesAnythingWithinBounds(t *testing.T) {
	b := newBench(t, phone(offer.Off), trunk(offer.Off))
	const offered, answered = "v=0\r\nwhatever", "v=1"
	pass := func(r offer.Result, err error, body string) {
		t.Helper()
		require.NoError(t, err)
		assert.Equal(t, body, string(r.Body))
	}
	for i := range 40 {
		r, err := b.Offer(fmt.Sprint("o", i), offer.Callee, []byte(offered), false)
		pass(r, err, offered)
		r, err = b.Answer(fmt.Sprint("a", i), offer.Callee, []byte(answered))
		assert.True(t, r.Settled)
		pass(r, err, answered)
	}
	assert.Equal(t, "call with 16 branches", fmt.Sprint(b.Call))
	b.reject(t, "o1")
	assert.Equal(t, "call with 15 branches", fmt.Sprint(b.Call), "it had agreed on nothing")
	// Offers that cross, and answers to none, are for the ends to sort out.
	for _, end := range []offer.End{offer.Caller, offer.Callee, offer.Caller} {
		r, err := b.Offer("o0", end, []byte(offered), false)
		pass(r, err, offered)
	}
	r, err := b.Answer("o0", offer.Caller, []byte(answered))
	pass(r, err, answered)
}

func TestPortsOfACallThatIsNoLongerRelayed(t *testing.T) {
	p := phone(offer.Prefer)
	b := newBench(t, p, phone(offer.Prefer))
	b.offer(t, "", offer.Caller, audio(5004, "RTP/AVP"))
	first := b.answer(t, "b", offer.Callee, audio(5008, "RTP/AVP", crypto(4, 2, cm80)))
	browser := audio(5004, "RTP/AVP") + "m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=ice-ufrag:x\r\n"
	r := b.offer(t, "b", offer.Caller, browser)
	require.Equal(t, browser, string(r.Body))
	p.Level = offer.Off
	b.SetPlace(offer.Caller, p)
	b.SetPlace(offer.Callee, p)
	b.offer(t, "b", offer.Caller, audio(5004, "RTP/AVP"))
	assert.Equal(t, first.Media, b.reject(t, "b").Media)
	b.offer(t, "b", offer.Caller, browser)
	b.Close()
	assert.Empty(t, b.ports.out)
	assert.Empty(t, b.Epochs())
}
