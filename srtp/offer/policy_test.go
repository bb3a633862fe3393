package offer_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/sdp"
	"ringway/srtp/offer"
	"ringway/srtp/suite"
)

// What an end requires may change between an offer and its answer: then the answer is checked against what is required
// by then.
func TestPolicyThatChangesBeforeTheAnswer(t *testing.T) {
	const sctp = "m=application 5010 UDP/DTLS/SCTP webrtc-datachannel\r\n"
	webrtc := "v=0\r\n" + origin + "c=IN IP4 0.0.0.0\r\n" +
		"m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=ice-ufrag:x\r\n" + fingerprint(1)
	for name, test := range map[string]struct {
		level             offer.Level // of both ends at first
		offered, answered string
		caller, callee    offer.Level // by the answer
		reason            string
	}{
		"who offered requires it": {
			offer.Prefer, audio(5004, "RTP/AVP"), audio(5008, "RTP/AVP", crypto(4, 2, cm80)),
			offer.Require, offer.Prefer, "SRTP is required by now",
		},
		"who answers requires it": {
			offer.Prefer, audio(5004, "RTP/AVP", crypto(1, 1, cm80)), audio(5008, "RTP/AVP"),
			offer.Prefer, offer.Require, "SRTP is required",
		},
		"nothing was relayed": {
			offer.Off, audio(5004, "RTP/AVP"), audio(5008, "RTP/AVP"),
			offer.Prefer, offer.Require, "SRTP is required by now",
		},
		"what the box does not do": {
			offer.Prefer, webrtc, webrtc, offer.Require, offer.Prefer, "SRTP is required by now",
		},
		"a protocol that the box does not speak": {
			offer.Prefer, head + "m=audio 5004 DCCP/RTP/AVP 8\r\n", head + "m=audio 5004 DCCP/RTP/AVP 8\r\n",
			offer.Require, offer.Prefer, "SRTP is required by now",
		},
		"such a protocol over TLS": {
			offer.Prefer, head + "m=audio 5004 TCP/TLS/RTP/SAVP 8\r\n", head + "m=audio 5004 TCP/TLS/RTP/SAVP 8\r\n",
			offer.Require, offer.Prefer, "SRTP is required by now",
		},
		"a line that is not RTP": {
			offer.Prefer, audio(5004, "RTP/AVP", crypto(1, 1, cm80)) + "m=image 5010 udptl t38\r\n",
			audio(5008, "RTP/AVP", crypto(4, 2, cm80)) + "m=image 5012 udptl t38\r\n",
			offer.Require, offer.Prefer, "SRTP is required by now",
		},
		"a line that was encrypted in the offer": {
			offer.Require, audio(5004, "RTP/SAVP", crypto(1, 1, cm80)) + sctp,
			audio(5008, "RTP/SAVP", crypto(4, 2, cm80)) + strings.Replace(sctp, "UDP/DTLS/SCTP", "SCTP", 1),
			offer.Require, offer.Require, "SRTP is required by now",
		},
	} {
		t.Run(name, func(t *testing.T) {
			caller, callee := phone(test.level), phone(test.level)
			b := newBench(t, caller, callee)
			b.offer(t, "", offer.Caller, test.offered)
			caller.Level, callee.Level = test.caller, test.callee
			b.SetPlace(offer.Caller, caller)
			b.SetPlace(offer.Callee, callee)
			r, err := b.Answer("b", offer.Callee, []byte(test.answered))
			requireRefusal(t, err, 488, test.reason)
			assert.Empty(t, r.Media)

			// It is the policy that refused it, not the answer.
			caller.Level, callee.Level = test.level, test.level
			if test.level == offer.Require {
				return
			}
			b.SetPlace(offer.Caller, caller)
			b.SetPlace(offer.Callee, callee)
			b.answer(t, "b", offer.Callee, test.answered)
			b.Close()
			assert.Empty(t, b.ports.out)
		})
	}
	t.Run("the weakest suite", func(t *testing.T) {
		p := phone(offer.Require)
		b := newBench(t, p, phone(offer.Prefer))
		b.offer(t, "", offer.Caller, audio(5004, "RTP/SAVP", crypto(1, 1, cm80)))
		p.Minimum = gcm
		b.SetPlace(offer.Caller, p)
		_, err := b.Answer("b", offer.Callee, []byte(audio(5008, "RTP/AVP")))
		requireRefusal(t, err, 488, "by now")
	})
	t.Run("SRTCP in clear", func(t *testing.T) {
		p := phone(offer.Require)
		p.ClearSRTCP = true
		b := newBench(t, p, phone(offer.Prefer))
		b.offer(t, "", offer.Caller, strings.Replace(audio(5004, "RTP/SAVP", crypto(1, 1, cm80)),
			inline(1, cm80), inline(1, cm80)+" UNENCRYPTED_SRTCP", 1))
		p.ClearSRTCP = false
		b.SetPlace(offer.Caller, p)
		_, err := b.Answer("b", offer.Callee, []byte(audio(5008, "RTP/AVP")))
		requireRefusal(t, err, 488, "by now")
	})
	t.Run("the suite between boxes", func(t *testing.T) {
		p := site(offer.Prefer)
		b := newBench(t, phone(offer.Off), p)
		b.offer(t, "", offer.Caller, audio(5004, "RTP/AVP"))
		p.Minimum = suite.AEADAES256GCM
		b.SetPlace(offer.Callee, p)
		r := b.answer(t, "b", offer.Callee, fromBox(audio(41000, "RTP/AVP", marker)))
		assert.Equal(t, offer.Channel, legOf(r, offer.Callee).Keying, "the far box sends SRTP from now on")
		assert.Equal(t, gcm, legOf(r, offer.Callee).Suite)
		_, err := b.Answer("b", offer.Callee, []byte(fromBox(audio(41000, "RTP/AVP",
			strings.Replace(marker, "128", "256", 1)))))
		requireRefusal(t, err, 488, "not offered")

		p.Level = offer.Require
		b.SetPlace(offer.Callee, p)
		_, err = b.Answer("c", offer.Callee, []byte(fromBox(audio(41000, "RTP/AVP", marker))))
		requireRefusal(t, err, 488, "by now")
	})
}

// What an offer that failed leaves is what was agreed before. It must be allowed yet.
func TestRejectedOfferLeavesNothingThatIsNotAllowed(t *testing.T) {
	for _, level := range []offer.Level{offer.Off, offer.Prefer} {
		p := phone(level)
		b := newBench(t, p, phone(level))
		b.offer(t, "", offer.Caller, audio(5004, "RTP/AVP"))
		b.answer(t, "b", offer.Callee, audio(5008, "RTP/AVP"))
		require.NoError(t, b.Allowed("b"))

		p.Level = offer.Require
		b.SetPlace(offer.Caller, p)
		requireRefusal(t, b.Allowed("b"), 488, "by now")
		b.offer(t, "b", offer.Caller, audio(5004, "RTP/SAVP", crypto(1, 1, cm80)))
		requireRefusal(t, b.Allowed("b"), 488, "by now")
		r, err := b.Reject("b")
		requireRefusal(t, err, 488, "by now")
		assert.Empty(t, r.Media)

		// Another offer can still bring keys.
		b.offer(t, "b", offer.Caller, audio(5004, "RTP/SAVP", crypto(1, 1, cm80)))
		r = b.answer(t, "b", offer.Callee, audio(5008, "RTP/AVP"))
		assert.Equal(t, offer.SDES, legOf(r, offer.Caller).Keying)
		b.offer(t, "b", offer.Caller, audio(5004, "RTP/SAVP", crypto(1, 2, cm80)))
		back, err := b.Reject("b")
		require.NoError(t, err)
		assert.Equal(t, r.Media, back.Media)
		b.Close()
		assert.Empty(t, b.ports.out)
	}
}

// Nothing of an offer that is under way shows clear media to an end that requires keys by now.
func TestClearLegBecomesUndecidedWhereKeysAreRequiredByNow(t *testing.T) {
	p := phone(offer.Prefer)
	b := newBench(t, phone(offer.Prefer), p)
	b.offer(t, "", offer.Caller, audio(5004, "RTP/AVP"))
	b.answer(t, "b", offer.Callee, audio(5008, "RTP/AVP"))
	p.Level = offer.Require
	b.SetPlace(offer.Callee, p)
	r := b.offer(t, "b", offer.Caller, audio(5004, "RTP/AVP"))
	assert.Equal(t, offer.Undecided, legOf(r, offer.Callee).Keying)
	assert.NotEmpty(t, cryptoOf(t, r.Body))
	_, err := b.Answer("b", offer.Callee, []byte(audio(5008, "RTP/AVP")))
	requireRefusal(t, err, 488, "SRTP is required")
	r = b.answer(t, "b", offer.Callee, audio(5008, "RTP/AVP", crypto(4, 2, cm80)))
	assert.Equal(t, offer.SDES, legOf(r, offer.Callee).Keying)
}

// A minimum that rises in a call: what is offered from then on is not below it.
func TestMinimumThatRisesInACall(t *testing.T) {
	p := phone(offer.Require)
	b := newBench(t, phone(offer.Prefer), p)
	first := b.offer(t, "", offer.Caller, audio(5004, "RTP/AVP"))
	b.answer(t, "b", offer.Callee, audio(5008, "RTP/SAVP", crypto(4, 2, cm80)))
	p.Minimum = gcm
	b.SetPlace(offer.Callee, p)
	r := b.offer(t, "b", offer.Caller, audio(5004, "RTP/AVP"))
	made := cryptoOf(t, r.Body)
	require.Len(t, made, 2)
	for i, a := range made {
		assert.True(t, a.Suite.AEAD())
		assert.False(t, same(a.Keys[0], cryptoOf(t, first.Body)[i].Keys[0]) && a.Suite == cm80)
	}
	_, err := b.Answer("b", offer.Callee, []byte(audio(5008, "RTP/SAVP", crypto(4, 2, cm80))))
	requireRefusal(t, err, 488, "no keys")
	b.answer(t, "b", offer.Callee, audio(5008, "RTP/SAVP", crypto(2, 2, gcm)))
}

// Under `prefer` a suite of the far box that is below the minimum is more than none.
func TestPreferTakesWhatTheFarBoxHas(t *testing.T) {
	p := site(offer.Prefer)
	p.Minimum = suite.AEADAES256GCM
	b := newBench(t, p, phone(offer.Off))
	b.offer(t, "", offer.Caller, fromBox(audio(41000, "RTP/AVP", marker)))
	r := b.answer(t, "b", offer.Callee, audio(5008, "RTP/AVP"))
	assert.Equal(t, offer.Channel, legOf(r, offer.Caller).Keying)
	assert.Equal(t, gcm, legOf(r, offer.Caller).Suite)
	assert.Contains(t, string(r.Body), marker)

	p.Level = offer.Require
	b = newBench(t, p, phone(offer.Off))
	_, err := b.Offer("", offer.Caller, []byte(fromBox(audio(41000, "RTP/AVP", marker))), false)
	requireRefusal(t, err, 488, "does not offer it")
}

// Lines that are not RTP pass where nothing is required, and status can tell of them. Under `require` those pass that
// are encrypted from end to end.
func TestLinesThatAreNotRTP(t *testing.T) {
	for protocol, encrypted := range map[string]bool{
		"udptl": false, "TCP/MSRP": false, "UDP": false, "SCTP": false, "TCP/BFCP": false, "TCP/TLSX/MSRP": false,
		"TCP/TLS/MSRP": true, "tcp/tls/msrp": true, "UDP/DTLS/SCTP": true, "UDP/TLS/UDPTL": true, "TCP/TLS/BFCP": true,
	} {
		t.Run(strings.ReplaceAll(protocol, "/", "-"), func(t *testing.T) {
			line := "m=image 5010 " + protocol + " t38\r\n"
			passed := []offer.Line{{Index: 1, Kind: sdp.Image, Protocol: protocol, Encrypted: encrypted}}
			offered := audio(5004, "RTP/SAVP", crypto(1, 1, cm80))

			b := newBench(t, phone(offer.Prefer), site(offer.Prefer))
			r := b.offer(t, "", offer.Caller, offered+line)
			assert.True(t, strings.HasSuffix(string(r.Body), marker+line), "%s", r.Body)
			assert.Equal(t, passed, r.Passed)
			assert.Empty(t, r.Refused)
			sound := fromBox(audio(41000, "RTP/AVP", marker))
			r = b.answer(t, "b", offer.Callee, sound+line)
			assert.Equal(t, passed, r.Passed)
			r = b.answer(t, "c", offer.Callee, sound+strings.Replace(line, "5010", "0", 1))
			assert.Empty(t, r.Passed, "it was not taken")

			b = newBench(t, phone(offer.Require), site(offer.Prefer))
			r = b.offer(t, "", offer.Caller, offered+line)
			alone := newBench(t, phone(offer.Prefer), site(offer.Require))
			other, err := alone.Offer("", offer.Caller, []byte(head+"m=audio 0 RTP/AVP 8\r\n"+line), false)
			if encrypted {
				assert.Equal(t, passed, r.Passed)
				require.NoError(t, err)
				assert.Equal(t, passed, other.Passed)
				return
			}
			assert.True(t, strings.HasSuffix(string(r.Body), "m=image 0 "+protocol+" t38\r\n"), "%s", r.Body)
			assert.Empty(t, r.Passed)
			require.Len(t, r.Refused, 1)
			assert.Equal(t, 1, r.Refused[0].Index)
			assert.Contains(t, r.Refused[0].Reason, "is required, and a media line is not RTP")
			r = b.answer(t, "b", offer.Callee, sound+line)
			assert.True(t, strings.HasSuffix(string(r.Body), "m=image 0 "+protocol+" t38\r\n"), "%s", r.Body)
			assert.Empty(t, r.Passed)
			requireRefusal(t, err, 488, "a media line is not RTP")
		})
	}
	t.Run("the reason is the sound's", func(t *testing.T) {
		b := newBench(t, phone(offer.Require), trunk(offer.Prefer))
		_, err := b.Offer("", offer.Caller, []byte(head+"m=image 5012 udptl t38\r\nm=audio 5004 RTP/AVP 8\r\n"), false)
		requireRefusal(t, err, 488, "offers none that is acceptable")
	})
	t.Run("a name that does not print", func(t *testing.T) {
		b := newBench(t, phone(offer.Prefer), trunk(offer.Prefer))
		name := "x\x1b[2Jy" + strings.Repeat("z", 100)
		r := b.offer(t, "", offer.Caller, audio(5004, "RTP/AVP")+"m=image 5012 "+name+" t38\r\n")
		assert.Equal(t, "x?[2Jy"+strings.Repeat("z", 34), r.Passed[0].Protocol)
	})
	t.Run("one of each", func(t *testing.T) {
		b := newBench(t, phone(offer.Require), trunk(offer.Prefer))
		r := b.offer(t, "", offer.Caller, head+"m=message 5010 TCP/TLS/MSRP *\r\nm=image 5012 udptl t38\r\n")
		assert.Len(t, r.Passed, 1)
		assert.Len(t, r.Refused, 1)
	})
	t.Run("all of it", func(t *testing.T) {
		webrtc := head + "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=ice-ufrag:x\r\nm=video 0 RTP/AVP 96\r\n"
		b := newBench(t, phone(offer.Prefer), trunk(offer.Prefer))
		r := b.offer(t, "", offer.Caller, webrtc)
		assert.Equal(t, []offer.Line{{Kind: sdp.Audio, Protocol: "UDP/TLS/RTP/SAVPF", Encrypted: true}}, r.Passed)
		r = b.answer(t, "b", offer.Callee, webrtc)
		assert.Len(t, r.Passed, 1)
	})
}
