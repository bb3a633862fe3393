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

// call is a call of a phone with SDES to a phone with SDES, after its first answer.
type call struct {
	*bench
	offered, answered string // by the caller and the callee
	first             offer.Result
	passed            string // the first offer as it was passed on
}

func newCall(t testing.TB) *call {
	t.Helper()
	c := &call{bench: newBench(t, phone(offer.Require), phone(offer.Require))}
	c.offered = audio(5004, "RTP/SAVP", crypto(1, 1, cm80))
	r := c.offer(t, "", offer.Caller, c.offered)
	c.passed = string(r.Body)
	c.answered = reply(t, r.Body, 5008, 2, cm80)
	c.first = c.answer(t, "b", offer.Callee, c.answered)
	return c
}

func legOf(r offer.Result, e offer.End) offer.Leg { return r.Media[0].Legs[e] }

func epochs(r offer.Result) [4]uint32 {
	a, b := legOf(r, offer.Caller), legOf(r, offer.Callee)
	return [4]uint32{a.Send.Epoch, a.Receive.Epoch, b.Send.Epoch, b.Receive.Epoch}
}

// again makes a re-INVITE of the caller, which the callee answers with the same keys.
func (c *call) again(t testing.TB, body string) (passed string, r offer.Result) {
	t.Helper()
	r = c.offer(t, "b", offer.Caller, body)
	return string(r.Body), c.answer(t, "b", offer.Callee, c.answered)
}

func TestCase2And7SameDescriptionIsTheSameKeys(t *testing.T) {
	c := newCall(t)
	for range 3 {
		passed, r := c.again(t, c.offered)
		assert.Equal(t, c.passed, passed, "a refresh is the same offer")
		assert.Equal(t, string(c.first.Body), string(r.Body))
		assert.Equal(t, epochs(c.first), epochs(r))
		assert.Equal(t, c.first.Media, r.Media)
	}
	// From the other end, too. The callee's offer is answered with the key that the box had offered to it.
	r := c.offer(t, "b", offer.Callee, strings.Replace(c.answered, crypto(4, 2, cm80), crypto(1, 2, cm80), 1))
	toCaller := cryptoOf(t, r.Body)
	assert.Equal(t, cm80, toCaller[0].Suite, "the suite in use first")
	assert.True(t, same(toCaller[0].Keys[0], legOf(c.first, offer.Caller).Send.Keys[0]))
	r = c.answer(t, "b", offer.Caller, c.offered)
	assert.Equal(t, epochs(c.first), epochs(r))

	// A new key of the caller alone.
	_, r = c.again(t, audio(5004, "RTP/SAVP", crypto(1, 7, cm80)))
	was, is := epochs(c.first), epochs(r)
	assert.NotEqual(t, was[1], is[1], "what the caller sends starts with a counter of 0")
	was[1], is[1] = 0, 0
	assert.Equal(t, was, is, "the rest goes on")
}

func TestCase3And4HoldKeepsTheCounters(t *testing.T) {
	c := newCall(t)
	for _, hold := range []string{
		strings.Replace(c.offered, "a=sendrecv", "a=sendonly", 1),
		strings.Replace(c.offered, "a=sendrecv", "a=inactive", 1),
		at("0.0.0.0", c.offered), // RFC 2543
		strings.Replace(c.offered, "a=sendrecv", "a=ssrc:99 cname:other\r\na=sendonly", 1),
	} {
		passed, r := c.again(t, hold)
		assert.Equal(t, epochs(c.first), epochs(r))
		assert.Equal(t, c.first.Media[0].Legs[offer.Caller].Remote, r.Media[0].Legs[offer.Caller].Remote)
		assert.False(t, legOf(r, offer.Callee).Sends && strings.Contains(hold, "0.0.0.0"))
		if strings.Contains(hold, "0.0.0.0") {
			assert.Contains(t, passed, "c=IN IP4 0.0.0.0", "the hold reaches the other end")
		}
		passed, r = c.again(t, c.offered)
		assert.Equal(t, c.passed, passed)
		assert.Equal(t, c.first.Media, r.Media)
	}
}

func TestCase5NewAddressMeansNewKey(t *testing.T) {
	for _, moved := range []string{
		audio(5104, "RTP/SAVP", crypto(1, 1, cm80)), // the key is the same, which RFC 4568 does not allow
		audio(5104, "RTP/SAVP", crypto(1, 9, cm80)),
		at("10.1.10.11", audio(5004, "RTP/SAVP", crypto(1, 9, cm80))),
	} {
		c := newCall(t)
		_, r := c.again(t, at("0.0.0.0", c.offered)) // moves at unhold
		_, r2 := c.again(t, moved)
		was, is := epochs(r), epochs(r2)
		assert.NotEqual(t, was[0], is[0])
		assert.NotEqual(t, was[1], is[1])
		assert.Equal(t, was[2:], is[2:], "the other end has not moved")
		assert.False(t, same(legOf(r, offer.Caller).Send.Keys[0], legOf(r2, offer.Caller).Send.Keys[0]),
			"a key is not used from 0 twice")
		assert.True(t, same(cryptoOf(t, r2.Body)[0].Keys[0], legOf(r2, offer.Caller).Send.Keys[0]))
	}
	t.Run("in an answer", func(t *testing.T) {
		c := newCall(t)
		elsewhere := at("10.1.10.21", strings.Replace(c.answered, "10.1.10.20", "10.1.10.10", 1))
		r := c.offer(t, "b", offer.Caller, c.offered)
		assert.Equal(t, c.passed, string(r.Body))
		r = c.answer(t, "b", offer.Callee, elsewhere)
		was, is := epochs(c.first), epochs(r)
		assert.NotEqual(t, was[3], is[3])
		assert.Equal(t, was[:3], is[:3], "the key was offered before the box could know: its index goes on")
		assert.True(t, legOf(r, offer.Callee).Stale)
		// The next offer has other keys.
		r2 := c.offer(t, "b", offer.Caller, version(1, c.offered))
		for _, a := range cryptoOf(t, r2.Body) {
			for _, old := range cryptoOf(t, []byte(c.passed)) {
				assert.False(t, same(a.Keys[0], old.Keys[0]))
			}
		}
		r2 = c.answer(t, "b", offer.Callee, elsewhere)
		assert.NotEqual(t, epochs(r)[2], epochs(r2)[2])
	})
	t.Run("the offer answers a request without one", func(t *testing.T) {
		c := newCall(t)
		r, err := c.Offer("b", offer.Caller, []byte(c.offered), true)
		require.NoError(t, err)
		assert.False(t, same(cryptoOf(t, r.Body)[0].Keys[0], cryptoOf(t, []byte(c.passed))[0].Keys[0]))
		again, err := c.Offer("b", offer.Caller, []byte(c.offered), true)
		require.NoError(t, err)
		assert.Equal(t, string(r.Body), string(again.Body), "sent again")
	})
	t.Run("between boxes", func(t *testing.T) {
		b := newBench(t, phone(offer.Off), site(offer.Require))
		b.offer(t, "", offer.Caller, audio(5004, "RTP/AVP"))
		first := b.answer(t, "b", offer.Callee, fromBox(audio(41000, "RTP/AVP", marker)))
		b.offer(t, "b", offer.Caller, audio(5004, "RTP/AVP"))
		r := b.answer(t, "b", offer.Callee, fromBox(audio(41000, "RTP/AVP", marker)))
		assert.Equal(t, epochs(first), epochs(r))
		b.offer(t, "b", offer.Caller, audio(5004, "RTP/AVP"))
		r = b.answer(t, "b", offer.Callee, fromBox(audio(41002, "RTP/AVP", marker)))
		assert.NotEqual(t, epochs(first)[2], epochs(r)[2])
		assert.NotEqual(t, epochs(first)[3], epochs(r)[3])
	})
}

// toSite is a phone's call to a site: what the phone gets for an answer.
func toSite(t testing.TB, p offer.Place, offered string) (*bench, offer.Result) {
	t.Helper()
	b := newBench(t, p, site(offer.Require))
	b.offer(t, "", offer.Caller, offered)
	return b, b.answer(t, "b", offer.Callee, fromBox(audio(41000, "RTP/AVP", marker)))
}

func TestCase12LifetimeIsRead(t *testing.T) {
	for _, text := range []string{"|2^31", "|2147483648", "|2^31|1:4"} {
		_, r := toSite(t, phone(offer.Require), audio(5004, "RTP/SAVP",
			"a=crypto:1 "+cm80.String()+" inline:"+inline(1, cm80)+text+"\r\n"))
		assert.Equal(t, uint64(1<<31), legOf(r, offer.Caller).Receive.Keys[0].Lifetime, text)
	}
}

func TestCase13AnswerHasAnMKIIfItsLineHas(t *testing.T) {
	line := "a=crypto:%d " + cm80.String() + " inline:" + inline(1, cm80) + "%s\r\n"
	with, without := fmt.Sprintf(line, 1, "|2^20|1:4"), fmt.Sprintf(line, 2, "")
	_, r := toSite(t, phone(offer.Require), audio(5004, "RTP/SAVP", with, without))
	assert.Len(t, legOf(r, offer.Caller).Send.Keys[0].MKI, 4)
	assert.Len(t, cryptoOf(t, r.Body)[0].Keys[0].MKI, 4)
	assert.Equal(t, []byte{0, 0, 0, 1}, legOf(r, offer.Caller).Receive.Keys[0].MKI)
	x := legOf(r, offer.Caller)
	rtp, rtcp := x.Overhead()
	assert.Equal(t, [2]int{14, 18}, [2]int{rtp, rtcp})

	_, r = toSite(t, phone(offer.Require), audio(5004, "RTP/SAVP", without, with))
	assert.Equal(t, uint32(2), cryptoOf(t, r.Body)[0].Tag)
	assert.Empty(t, cryptoOf(t, r.Body)[0].Keys[0].MKI)

	t.Run("several keys", func(t *testing.T) {
		two := "a=crypto:1 " + cm80.String() + " inline:" + inline(1, cm80) + "|2^20|1:1;inline:" + inline(2, cm80) +
			"|2^20|2:1\r\n"
		_, r := toSite(t, phone(offer.Require), audio(5004, "RTP/SAVP", two))
		assert.Len(t, legOf(r, offer.Caller).Receive.Keys, 2)
		assert.Len(t, legOf(r, offer.Caller).Send.Keys, 1)
	})
}

func TestCase14To16TagsOfAnswers(t *testing.T) {
	for _, test := range []struct {
		tag  int
		s    suite.Suite
		fits bool
	}{
		{4, cm80, true},
		{9, cm80, true}, // 14: renumbered
		{1, cm80, true}, // 15: the tag of the first line, the suite of another
		{0, cm80, true}, // 16
		{2, gcm, true},  //
		{1, cm32, false},
	} {
		b := newBench(t, site(offer.Require), phone(offer.Require))
		offered := b.offer(t, "", offer.Caller, fromBox(audio(41000, "RTP/AVP", marker)))
		r, err := b.Answer("p", offer.Callee, []byte(audio(5008, "RTP/SAVP", crypto(test.tag, 3, test.s))))
		if !test.fits {
			requireRefusal(t, err, 488, "no keys")
			continue
		}
		require.NoError(t, err, "%d %s", test.tag, test.s)
		var want sdes.Key
		for _, a := range cryptoOf(t, offered.Body) {
			if a.Suite == test.s {
				want = a.Keys[0]
			}
		}
		assert.True(t, same(want, legOf(r, offer.Callee).Send.Keys[0]), "the key of the line that was chosen")
	}
	_, r := toSite(t, phone(offer.Require), audio(5004, "RTP/SAVP", crypto(0, 1, cm80)))
	assert.Equal(t, uint32(0), cryptoOf(t, r.Body)[0].Tag)
}

func TestCase17And18NamesAndLengthsOfKeys(t *testing.T) {
	cm256, gcm256 := suite.AES256CMHMACSHA180, suite.AEADAES256GCM
	for text, want := range map[string]suite.Suite{
		cm80.String() + " inline:" + strings.TrimRight(inline(1, cm80), "="):         cm80,
		"AES_CM_256_HMAC_SHA1_80 inline:" + strings.TrimRight(inline(1, cm256), "="): cm256,
		gcm256.String() + " inline:" + inline(1, gcm256):                             gcm256,
	} {
		_, r := toSite(t, phone(offer.Require), audio(5004, "RTP/SAVP", "a=crypto:1 "+text+"\r\n"))
		x := legOf(r, offer.Caller)
		assert.Equal(t, want, x.Suite)
		assert.Len(t, x.Send.Keys[0].Master, want.KeyLen())
		assert.Len(t, x.Send.Keys[0].Salt, want.SaltLen())
	}
}

func TestCase19ShortTags(t *testing.T) {
	offered := audio(5004, "RTP/SAVP", crypto(1, 1, cm32))
	b := newBench(t, phone(offer.Require), site(offer.Require))
	_, err := b.Offer("", offer.Caller, []byte(offered), false)
	requireRefusal(t, err, 488, "no crypto attribute that is acceptable")

	weak := phone(offer.Require)
	weak.Minimum = cm32
	_, r := toSite(t, weak, offered)
	x := legOf(r, offer.Caller)
	rtp, rtcp := x.Overhead()
	assert.Equal(t, [2]int{4, 14}, [2]int{rtp, rtcp}, "SRTCP's tag stays at 80 bits")

	_, r = toSite(t, phone(offer.Prefer), offered)
	assert.Equal(t, offer.SDES, legOf(r, offer.Caller).Keying, "a short tag is more than none")
	_, r = toSite(t, phone(offer.Require), audio(5004, "RTP/SAVP", crypto(1, 1, cm32), crypto(2, 2, cm80)))
	assert.Equal(t, cm80, legOf(r, offer.Caller).Suite)
}

func TestCase20ClearSRTCP(t *testing.T) {
	clearRTCP := "a=crypto:1 " + cm80.String() + " inline:" + inline(1, cm80) + " UNENCRYPTED_SRTCP\r\n"
	_, r := toSite(t, phone(offer.Require), audio(5004, "RTP/SAVP", clearRTCP, crypto(2, 2, cm80)))
	assert.False(t, legOf(r, offer.Caller).ClearSRTCP)
	assert.Equal(t, uint32(2), cryptoOf(t, r.Body)[0].Tag)

	lax := phone(offer.Require)
	lax.ClearSRTCP = true
	_, r = toSite(t, lax, audio(5004, "RTP/SAVP", clearRTCP))
	assert.True(t, legOf(r, offer.Caller).ClearSRTCP)
	assert.True(t, cryptoOf(t, r.Body)[0].UnencryptedSRTCP)

	for _, parameter := range []string{" UNENCRYPTED_SRTP", " UNAUTHENTICATED_SRTP"} {
		b := newBench(t, lax, site(offer.Require))
		_, err := b.Offer("", offer.Caller, []byte(strings.Replace(audio(5004, "RTP/SAVP", clearRTCP),
			" UNENCRYPTED_SRTCP", parameter, 1)), false)
		requireRefusal(t, err, 488, "acceptable")
	}
}

func TestCase21Opportunistic(t *testing.T) {
	offered := audio(5004, "RTP/AVP", crypto(1, 1, cm80), "a=encryption:optional\r\n")
	for _, level := range []offer.Level{offer.Prefer, offer.Require} {
		_, r := toSite(t, phone(level), offered)
		assert.Contains(t, string(r.Body), "RTP/AVP 8")
		assert.Len(t, cryptoOf(t, r.Body), 1)
		assert.Equal(t, offer.SDES, legOf(r, offer.Caller).Keying)
	}
	_, r := toSite(t, phone(offer.Off), offered)
	assert.Equal(t, offer.Clear, legOf(r, offer.Caller).Keying)
	assert.Empty(t, cryptoOf(t, r.Body))

	// `prefer` offers it, and takes what it gets.
	for _, answered := range []struct {
		body string
		want offer.Keying
	}{
		{audio(5008, "RTP/AVP"), offer.Clear},
		{audio(5008, "RTP/AVP", crypto(4, 2, cm80)), offer.SDES},
		{audio(5008, "RTP/SAVP", crypto(4, 2, cm80)), offer.SDES},
		{audio(5008, "RTP/AVP", fingerprint(1), "a=setup:active\r\na=rtcp-mux\r\n"), offer.DTLS},
	} {
		b := newBench(t, site(offer.Require), phone(offer.Prefer, offer.SDES, offer.DTLS))
		r := b.offer(t, "", offer.Caller, fromBox(audio(41000, "RTP/AVP", marker)))
		assert.Contains(t, string(r.Body), "m=audio 40000 RTP/AVP 8")
		assert.NotEmpty(t, cryptoOf(t, r.Body))
		assert.Contains(t, string(r.Body), "a=setup:actpass")
		r = b.answer(t, "p", offer.Callee, answered.body)
		assert.Equal(t, answered.want, legOf(r, offer.Callee).Keying)
	}
	b := newBench(t, site(offer.Require), phone(offer.Prefer))
	b.offer(t, "", offer.Caller, fromBox(audio(41000, "RTP/AVP", marker)))
	_, err := b.Answer("p", offer.Callee, []byte(audio(5008, "RTP/AVP", crypto(1, 2, cm32))))
	requireRefusal(t, err, 488, "not offered")
	_, err = b.Answer("p", offer.Callee, []byte(audio(5008, "RTP/SAVP")))
	requireRefusal(t, err, 488, "no keys")
}

func TestCase22TwoLinesForOneStream(t *testing.T) {
	secure := "m=audio 5004 RTP/SAVP 8\r\n" + crypto(1, 1, cm80)
	plain := "m=audio 5004 RTP/AVP 8\r\n"
	for _, level := range []offer.Level{offer.Prefer, offer.Require} {
		for _, lines := range [][2]string{{secure, plain}, {plain, secure}} {
			b := newBench(t, phone(level), site(offer.Require))
			r := b.offer(t, "", offer.Caller, head+lines[0]+lines[1])
			taken, gone := "m=audio 40000 RTP/AVP 8\r\n", "m=audio 0 RTP/AVP 8\r\n"
			if lines[0] == plain {
				taken, gone = gone, taken
			}
			assert.Regexp(t, "(?s)"+taken+".*"+gone, string(r.Body))
			// Even an answer that takes the other one.
			r = b.answer(t, "b", offer.Callee, fromBox(head)+
				"m=audio 41000 RTP/AVP 8\r\n"+marker+"m=audio 41002 RTP/AVP 8\r\n"+marker)
			assert.Equal(t, 1, strings.Count(string(r.Body), "RTP/SAVP 8"))
			assert.Contains(t, string(r.Body), "m=audio 0 RTP/AVP 8\r\n")
			assert.Len(t, r.Media, 1)
			assert.Equal(t, offer.SDES, legOf(r, offer.Caller).Keying)
		}
	}
	// Keys that are of no use.
	b := newBench(t, phone(offer.Prefer), site(offer.Require))
	useless := head + strings.Replace(secure, cm80.String(), "F8_128_HMAC_SHA1_80", 1) + plain
	r := b.offer(t, "", offer.Caller, useless)
	assert.Regexp(t, "(?s)m=audio 0 RTP/SAVP 8\r\nm=audio 40000 RTP/AVP 8\r\n", string(r.Body))
	b = newBench(t, phone(offer.Require), site(offer.Require))
	_, err := b.Offer("", offer.Caller, []byte(useless), false)
	requireRefusal(t, err, 488, "acceptable")
}

func TestCase23AnswerWithoutKeys(t *testing.T) {
	for _, body := range []string{
		audio(5008, "RTP/SAVP"), audio(5008, "RTP/AVP"), audio(5008, "RTP/SAVP", fingerprint(1)),
		audio(5008, "UDP/TLS/RTP/SAVP", crypto(4, 2, cm80)), audio(5008, "RTP/SAVP", crypto(4, 2, cm80)+"a=x\ry\r\n"),
	} {
		b := newBench(t, site(offer.Require), phone(offer.Require))
		b.offer(t, "", offer.Caller, fromBox(audio(41000, "RTP/AVP", marker)))
		_, err := b.Answer("p", offer.Callee, []byte(body))
		requireRefusal(t, err, 488, "")
		// The next one may be better.
		b.answer(t, "p", offer.Callee, audio(5008, "RTP/SAVP", crypto(4, 2, cm80)))
	}
}

func dtlsBody(port, certificate int, lines ...string) string {
	return audio(port, "UDP/TLS/RTP/SAVP", append([]string{fingerprint(certificate), "a=rtcp-mux\r\n"}, lines...)...)
}

func TestCase25Roles(t *testing.T) {
	t.Run("a phone offers again", func(t *testing.T) {
		roles := map[string]offer.Role{"actpass": offer.Active, "active": offer.Passive, "passive": offer.Active}
		for setup, role := range roles {
			b, first := toSite(t, phone(offer.Require),
				dtlsBody(5004, 1, "a=setup:"+setup+"\r\n", "a=tls-id:"+strings.Repeat("a", 20)+"\r\n"))
			x := legOf(first, offer.Caller)
			require.Equal(t, offer.DTLS, x.Keying)
			assert.Equal(t, role, x.DTLS.Role)
			assert.Contains(t, string(first.Body), "a=tls-id:"+x.DTLS.LocalID+"\r\n")

			again := func(body string) offer.Result {
				b.offer(t, "b", offer.Caller, body)
				return b.answer(t, "b", offer.Callee, fromBox(audio(41000, "RTP/AVP", marker)))
			}
			r := again(dtlsBody(5004, 1, "a=setup:actpass\r\n", "a=tls-id:"+strings.Repeat("a", 20)+"\r\n"))
			assert.Equal(t, x.DTLS, legOf(r, offer.Caller).DTLS, "role and association are kept")
			assert.Equal(t, string(first.Body), string(r.Body))

			// Each of these is a new association (RFC 8842 section 4).
			for name, body := range map[string]string{
				"tls-id":      dtlsBody(5004, 1, "a=setup:actpass\r\n", "a=tls-id:"+strings.Repeat("b", 20)+"\r\n"),
				"certificate": dtlsBody(5004, 2, "a=setup:actpass\r\n", "a=tls-id:"+strings.Repeat("a", 20)+"\r\n"),
				"port":        dtlsBody(5104, 1, "a=setup:actpass\r\n", "a=tls-id:"+strings.Repeat("a", 20)+"\r\n"),
			} {
				before := legOf(r, offer.Caller).DTLS
				r = again(body)
				after := legOf(r, offer.Caller).DTLS
				assert.NotEqual(t, before.Epoch, after.Epoch, name)
				assert.NotEqual(t, before.LocalID, after.LocalID, name)
			}
		}
	})
	t.Run("a phone answers with a new tls-id while the box is passive", func(t *testing.T) {
		b := newBench(t, site(offer.Require), phone(offer.Require, offer.DTLS))
		box := fromBox(audio(41000, "RTP/AVP", marker))
		b.offer(t, "", offer.Caller, box)
		id := func(s string) string { return "a=tls-id:" + strings.Repeat(s, 20) + "\r\n" }
		first := legOf(b.answer(t, "p", offer.Callee, dtlsBody(5008, 1, "a=setup:active\r\n", id("a"))), offer.Callee).DTLS
		assert.Equal(t, offer.Passive, first.Role)

		pending := b.offer(t, "p", offer.Caller, box)
		assert.Contains(t, string(pending.Body), "a=setup:actpass\r\na=tls-id:"+first.LocalID)
		assert.Equal(t, first, legOf(pending, offer.Callee).DTLS, "nothing changes before the answer")
		same := legOf(b.answer(t, "p", offer.Callee, dtlsBody(5008, 1, "a=setup:active\r\n", id("a"))), offer.Callee).DTLS
		assert.Equal(t, first, same)

		b.offer(t, "p", offer.Caller, box)
		next := legOf(b.answer(t, "p", offer.Callee, dtlsBody(5008, 1, "a=setup:active\r\n", id("b"))), offer.Callee).DTLS
		assert.Equal(t, offer.Passive, next.Role, "it waits for the ClientHello")
		assert.NotEqual(t, first.Epoch, next.Epoch)

		// baresip answers a later offer with actpass: the roles of an association that goes on are known.
		b.offer(t, "p", offer.Caller, box)
		same = legOf(b.answer(t, "p", offer.Callee, dtlsBody(5008, 1, "a=setup:actpass\r\n", id("b"))), offer.Callee).DTLS
		assert.Equal(t, next, same)
		b.offer(t, "p", offer.Caller, box)
		_, err := b.Answer("p", offer.Callee, []byte(dtlsBody(5008, 1, "a=setup:actpass\r\n", id("c"))))
		requireRefusal(t, err, 488, "setup")
	})
	t.Run("a phone's first answer does not say its role", func(t *testing.T) {
		b := newBench(t, site(offer.Require), phone(offer.Require, offer.DTLS))
		b.offer(t, "", offer.Caller, fromBox(audio(41000, "RTP/AVP", marker)))
		_, err := b.Answer("p", offer.Callee, []byte(dtlsBody(5008, 1, "a=setup:actpass\r\n")))
		requireRefusal(t, err, 488, "setup")
	})
	t.Run("the address offered is of the family that the end signals in", func(t *testing.T) {
		callee := phone(offer.Off)
		callee.IPv4, callee.IPv6 = netip.MustParseAddr("10.2.10.1"), netip.MustParseAddr("2001:db8:2:10::1")
		for hop, want := range map[string]string{"2001:db8:2:10::9": "IP6 2001:db8:2:10::1", "10.2.10.9": "IP4 10.2.10.1"} {
			callee.Hop = netip.MustParseAddr(hop)
			b := newBench(t, site(offer.Require), callee)
			r := b.offer(t, "", offer.Caller, fromBox(audio(41000, "RTP/AVP", marker)))
			assert.Contains(t, string(r.Body), "c=IN "+want+"\r\n", "the far box has one family, whatever the phones have")
		}
	})
}

func TestCase26FingerprintsAndHoldconn(t *testing.T) {
	b, first := toSite(t, phone(offer.Require), dtlsBody(5004, 1, "a=setup:holdconn\r\n"))
	assert.Contains(t, string(first.Body), "a=setup:holdconn\r\n")
	assert.Equal(t, offer.Held, legOf(first, offer.Caller).DTLS.Role)
	b.offer(t, "b", offer.Caller, dtlsBody(5004, 1, "a=setup:actpass\r\n"))
	r := b.answer(t, "b", offer.Callee, fromBox(audio(41000, "RTP/AVP", marker)))
	a := legOf(r, offer.Caller).DTLS
	assert.Equal(t, offer.Active, a.Role)
	assert.NotEqual(t, legOf(first, offer.Caller).DTLS.Epoch, a.Epoch)
	b.offer(t, "b", offer.Caller, dtlsBody(5004, 1, "a=setup:holdconn\r\n"))
	r = b.answer(t, "b", offer.Callee, fromBox(audio(41000, "RTP/AVP", marker)))
	assert.Equal(t, a, legOf(r, offer.Caller).DTLS, "an association that exists goes on")

	lower := strings.ToLower(strings.TrimPrefix(fingerprint(1), "a=fingerprint:sha-256 "))
	sha512 := "a=fingerprint:SHA-512 " + strings.TrimSuffix(strings.Repeat("AB:", 64), ":") + "\r\n"
	sha1 := "a=fingerprint:sha-1 " + strings.TrimSuffix(strings.Repeat("AB:", 20), ":") + "\r\n"
	for _, test := range []struct {
		lines, answer string
		prints        int
	}{
		{"a=fingerprint:SHA-256 " + lower, "a=fingerprint:sha-256 ", 1},
		{fingerprint(1) + fingerprint(2), "a=fingerprint:sha-256 ", 2},
		{sha1 + fingerprint(1), "a=fingerprint:sha-256 ", 1},
		{fingerprint(1) + sha512, "a=fingerprint:sha-512 ", 2},
	} {
		_, r := toSite(t, phone(offer.Require),
			audio(5004, "UDP/TLS/RTP/SAVP", test.lines, "a=setup:actpass\r\na=rtcp-mux\r\n"))
		assert.Contains(t, string(r.Body), test.answer)
		assert.NotContains(t, string(r.Body), "tls-id", "only to who knows it")
		assert.Len(t, legOf(r, offer.Caller).DTLS.Remote, test.prints)
		assert.Contains(t, legOf(r, offer.Caller).DTLS.Remote[0].Hash, "sha-")
	}
	upper, _ := toSite(t, phone(offer.Require), dtlsBody(5004, 1, "a=setup:actpass\r\n"))
	was := upper.offer(t, "b", offer.Caller, dtlsBody(5004, 1, "a=setup:actpass\r\n"))
	is := upper.offer(t, "b", offer.Caller,
		audio(5004, "UDP/TLS/RTP/SAVP", "a=fingerprint:SHA-256 "+lower, "a=setup:actpass\r\na=rtcp-mux\r\n"))
	assert.Equal(t, legOf(was, offer.Caller).DTLS, legOf(is, offer.Caller).DTLS, "capitals are no change")

	md5 := "a=fingerprint:md5 " + strings.Repeat("AB:", 15) + "AB\r\n"
	for _, bad := range []string{sha1, "a=fingerprint:sha-256 AB\r\n", md5, ""} {
		b := newBench(t, phone(offer.Require), site(offer.Require))
		offered := audio(5004, "UDP/TLS/RTP/SAVP", bad, "a=setup:actpass\r\na=rtcp-mux\r\n")
		_, err := b.Offer("", offer.Caller, []byte(offered), false)
		requireRefusal(t, err, 488, "no certificate fingerprint that is acceptable")
	}
}

func TestCase29Forks(t *testing.T) {
	b := newBench(t, phone(offer.Require), phone(offer.Prefer, offer.SDES, offer.DTLS))
	offered := audio(5004, "RTP/SAVP", crypto(1, 1, cm80))
	passed := b.offer(t, "", offer.Caller, offered)
	one := b.answer(t, "one", offer.Callee, at("10.1.10.20", audio(5008, "RTP/AVP", crypto(4, 2, cm80))))
	two := b.answer(t, "two", offer.Callee,
		at("10.1.10.30", audio(5010, "RTP/AVP", fingerprint(3), "a=setup:active\r\na=rtcp-mux\r\n")))
	three := b.answer(t, "three", offer.Callee, at("10.1.10.40", audio(5012, "RTP/AVP", crypto(4, 4, cm80))))
	assert.Equal(t, "0: SRTP by SDES, SRTP by SDES", describe(one))
	assert.Equal(t, "0: SRTP by SDES, DTLS-SRTP", describe(two))
	assert.NotEqual(t, legOf(one, offer.Caller).Local, legOf(two, offer.Caller).Local)
	assert.False(t, same(legOf(one, offer.Caller).Send.Keys[0], legOf(two, offer.Caller).Send.Keys[0]))
	assert.Equal(t, legOf(one, offer.Callee).Local, legOf(three, offer.Callee).Local, "it was offered once")
	assert.NotEqual(t, legOf(one, offer.Callee).Remote, legOf(three, offer.Callee).Remote)

	assert.Equal(t, string(passed.Body), string(b.offer(t, "", offer.Caller, offered).Body), "the INVITE comes again")
	assert.Len(t, b.ports.out, 4)
	b.Settle("two")
	assert.Len(t, b.ports.out, 2, "losers' ports are given back")
	_, err := b.Answer("four", offer.Callee, []byte(audio(5012, "RTP/AVP", crypto(4, 4, cm80))))
	requireRefusal(t, err, 488, "without an offer")
	r := b.offer(t, "two", offer.Caller, offered)
	assert.Equal(t, offer.DTLS, legOf(r, offer.Callee).Keying)

	// The result's keys are copies: they live on in the media plane.
	assert.Equal(t, numbered("phone", 4, 30)[:16], legOf(three, offer.Callee).Receive.Keys[0].Master)
	three.Wipe()
	b.Close()
	assert.Empty(t, b.ports.out)
}

func TestCase30And31Mux(t *testing.T) {
	b, r := toSite(t, phone(offer.Require), audio(5004, "RTP/SAVP", crypto(1, 1, cm80), "a=rtcp-mux\r\n"))
	x, y := legOf(r, offer.Caller), legOf(r, offer.Callee)
	assert.True(t, x.Mux)
	assert.False(t, y.Mux, "the answer did not have it")
	assert.Equal(t, x.Remote, x.RemoteRTCP)
	assert.Equal(t, y.Remote.Port()+1, y.RemoteRTCP.Port())
	assert.Contains(t, string(r.Body), "a=rtcp-mux\r\n")

	// Then not: each offer and answer decides again, and one that is rejected changes nothing.
	b.offer(t, "b", offer.Caller, audio(5004, "RTP/SAVP", crypto(1, 1, cm80)))
	back := b.reject(t, "b")
	assert.True(t, back.Settled)
	assert.Equal(t, r.Media, back.Media)
	b.offer(t, "b", offer.Caller, audio(5004, "RTP/SAVP", crypto(1, 1, cm80), "a=rtcp:6001\r\n"))
	next := b.answer(t, "b", offer.Callee, fromBox(audio(41000, "RTP/AVP", marker, "a=rtcp-mux\r\n")))
	x, y = legOf(next, offer.Caller), legOf(next, offer.Callee)
	assert.False(t, x.Mux || y.Mux, "what was not offered is not taken")
	assert.Equal(t, netip.MustParseAddrPort("10.1.10.10:6001"), x.RemoteRTCP)
	assert.Equal(t, y.Remote.Port()+1, y.RemoteRTCP.Port())
	assert.NotContains(t, string(next.Body), "mux")
	assert.Equal(t, epochs(r), epochs(next))
}

// RTCP on a port of its own would need an association of its own (RFC 5764 section 4.2): DTLS is offered and taken with
// rtcp-mux alone.
func TestDTLSNeedsMux(t *testing.T) {
	const mux = "a=rtcp-mux\r\n"
	without := func(body string) string { return strings.Replace(body, mux, "", 1) }
	offered := dtlsBody(5004, 1, "a=setup:actpass\r\n")
	require.Contains(t, offered, mux)
	by := func(protocol string) string { return strings.Replace(offered, "UDP/TLS/RTP/SAVP", protocol, 1) }
	_, r := toSite(t, phone(offer.Require), offered)
	assert.True(t, legOf(r, offer.Caller).Mux)
	assert.False(t, legOf(r, offer.Callee).Mux, "each leg for itself")
	for _, body := range []string{offered, by("RTP/SAVP"), by("RTP/AVP")} {
		b := newBench(t, phone(offer.Require), site(offer.Require))
		_, err := b.Offer("", offer.Caller, []byte(without(body)), false)
		requireRefusal(t, err, 488, "DTLS-SRTP without a=rtcp-mux")
		assert.Empty(t, b.ports.out)
	}
	_, r = toSite(t, phone(offer.Require), without(by("RTP/SAVP"))+crypto(1, 1, cm80))
	assert.Equal(t, offer.SDES, legOf(r, offer.Caller).Keying, "there are other keys")
	_, r = toSite(t, phone(offer.Prefer), without(by("RTP/AVP")))
	assert.Equal(t, offer.Clear, legOf(r, offer.Caller).Keying, "where nothing is required it may be RTP")
	assert.NotContains(t, string(r.Body), "fingerprint")

	// Nor does it end in a call.
	b, _ := toSite(t, phone(offer.Require), offered)
	_, err := b.Offer("b", offer.Caller, []byte(without(offered)), false)
	requireRefusal(t, err, 488, "DTLS-SRTP without a=rtcp-mux")

	// The box offers it, also for who has not, and takes no answer without.
	for _, level := range []offer.Level{offer.Prefer, offer.Require} {
		b := newBench(t, site(offer.Require), phone(level, offer.DTLS))
		r := b.offer(t, "", offer.Caller, fromBox(audio(41000, "RTP/AVP", marker)))
		assert.Equal(t, 1, strings.Count(string(r.Body), mux))
		protocol := r.Media[0].Legs[offer.Callee].Protocol
		answer := strings.Replace(dtlsBody(5008, 1, "a=setup:active\r\n"), "UDP/TLS/RTP/SAVP", protocol, 1)
		_, err := b.Answer("p", offer.Callee, []byte(without(answer)))
		requireRefusal(t, err, 488, "DTLS-SRTP without a=rtcp-mux")
		r = b.answer(t, "p", offer.Callee, answer)
		y := legOf(r, offer.Callee)
		assert.True(t, y.Mux)
		assert.Equal(t, y.Remote, y.RemoteRTCP)
		assert.NotContains(t, string(r.Body), "mux", "the caller did not offer it")
	}
	b = newBench(t, site(offer.Require), phone(offer.Prefer, offer.SDES, offer.DTLS))
	r = b.offer(t, "", offer.Caller, fromBox(audio(41000, "RTP/AVP", marker)))
	assert.Contains(t, string(r.Body), mux)
	r = b.answer(t, "p", offer.Callee, audio(5008, "RTP/AVP", crypto(4, 2, cm80)))
	assert.False(t, legOf(r, offer.Callee).Mux, "SDES does without")
	assert.Equal(t, uint16(5009), legOf(r, offer.Callee).RemoteRTCP.Port())
}

func TestBoxWithoutMarker(t *testing.T) {
	for _, line := range []string{"", "a=ringway-srtp:" + cm80.String() + "\r\n", "a=ringway-srtp:x\r\n"} {
		b := newBench(t, site(offer.Require), phone(offer.Off))
		_, err := b.Offer("", offer.Caller, []byte(fromBox(audio(41000, "RTP/AVP", line))), false)
		requireRefusal(t, err, 488, "the site's box does not offer it")
		b = newBench(t, site(offer.Prefer), phone(offer.Off))
		r := b.offer(t, "", offer.Caller, fromBox(audio(41000, "RTP/AVP", line)))
		assert.Equal(t, offer.Clear, legOf(r, offer.Caller).Keying)
	}
	strong := site(offer.Require)
	strong.Minimum = suite.AEADAES256GCM
	b := newBench(t, strong, phone(offer.Off))
	_, err := b.Offer("", offer.Caller, []byte(fromBox(audio(41000, "RTP/AVP", marker))), false)
	requireRefusal(t, err, 488, "the site's box does not offer it")
	b = newBench(t, phone(offer.Off), strong)
	r := b.offer(t, "", offer.Caller, audio(5004, "RTP/AVP"))
	assert.Contains(t, string(r.Body), "a=ringway-srtp:AEAD_AES_256_GCM\r\n")
}

func TestKeysInUseStayInUse(t *testing.T) {
	t.Run("the suite, where it is offered behind another", func(t *testing.T) {
		c := newCall(t)
		_, r := c.again(t, audio(5004, "RTP/SAVP", crypto(7, 5, gcm), crypto(8, 1, cm80)))
		assert.Equal(t, c.first.Media, r.Media)
		assert.Equal(t, uint32(8), cryptoOf(t, r.Body)[0].Tag)
		_, r = c.again(t, audio(5004, "RTP/SAVP", crypto(7, 5, gcm)))
		assert.Equal(t, gcm, legOf(r, offer.Caller).Suite)
		assert.NotEqual(t, epochs(c.first)[0], epochs(r)[0])
	})
	t.Run("not with another MKI", func(t *testing.T) {
		c := newCall(t)
		line := "a=crypto:1 " + cm80.String() + " inline:" + inline(1, cm80) + "|1:2\r\n"
		_, r := c.again(t, audio(5004, "RTP/SAVP", line))
		assert.NotEqual(t, epochs(c.first)[0], epochs(r)[0])
		assert.NotEqual(t, epochs(c.first)[1], epochs(r)[1])
		assert.Len(t, legOf(r, offer.Caller).Send.Keys[0].MKI, 2)
	})
	t.Run("not where who has moved in an answer offers", func(t *testing.T) {
		c := newCall(t)
		moved := strings.Replace(c.answered, "m=audio 5008", "m=audio 5108", 1)
		c.offer(t, "b", offer.Caller, c.offered)
		r := c.answer(t, "b", offer.Callee, moved)
		assert.Equal(t, epochs(c.first)[2], epochs(r)[2])
		c.offer(t, "b", offer.Callee, moved)
		assert.True(t, legOf(r, offer.Callee).Stale)
		r = c.answer(t, "b", offer.Caller, c.offered)
		assert.NotEqual(t, epochs(c.first)[2], epochs(r)[2])
		assert.False(t, legOf(r, offer.Callee).Stale)
	})
	t.Run("and old ones are not offered again", func(t *testing.T) {
		c := newCall(t)
		c.offer(t, "b", offer.Callee, c.answered)
		c.answer(t, "b", offer.Caller, c.offered)
		_, r := c.again(t, audio(5104, "RTP/SAVP", crypto(1, 9, cm80)))
		again := c.offer(t, "b", offer.Callee, c.answered)
		assert.True(t, same(legOf(r, offer.Caller).Send.Keys[0], cryptoOf(t, again.Body)[0].Keys[0]))
	})
}

func TestAssociationsOfDTLS(t *testing.T) {
	// An offer without a=setup is active (RFC 4145 section 4.1), an answer passive.
	_, r := toSite(t, phone(offer.Require), dtlsBody(5004, 1))
	assert.Contains(t, string(r.Body), "a=setup:passive\r\n")
	assert.Equal(t, offer.Passive, legOf(r, offer.Caller).DTLS.Role)

	b := newBench(t, site(offer.Require), phone(offer.Prefer, offer.SDES, offer.DTLS))
	box := fromBox(audio(41000, "RTP/AVP", marker))
	b.offer(t, "", offer.Caller, box)
	by := audio(5008, "RTP/AVP", fingerprint(1), "a=rtcp-mux\r\n")
	first := legOf(b.answer(t, "p", offer.Callee, by), offer.Callee).DTLS
	assert.Equal(t, offer.Active, first.Role)

	// New keys were asked for: the other end answers as before, and yet it is another association.
	_, err := b.Offer("p", offer.Caller, []byte(box), true)
	require.NoError(t, err)
	next := legOf(b.answer(t, "p", offer.Callee, by), offer.Callee).DTLS
	assert.NotEqual(t, first.LocalID, next.LocalID)
	assert.NotEqual(t, first.Epoch, next.Epoch)

	// To SDES and back.
	b.offer(t, "p", offer.Caller, box)
	assert.Nil(t, legOf(b.answer(t, "p", offer.Callee, audio(5008, "RTP/AVP", crypto(4, 2, cm80))), offer.Callee).DTLS)
	b.offer(t, "p", offer.Caller, box)
	last := legOf(b.answer(t, "p", offer.Callee, by), offer.Callee).DTLS
	assert.NotEqual(t, next.LocalID, last.LocalID)
	assert.NotEqual(t, next.Epoch, last.Epoch)
}

func TestTwoStreamsWithKeysAreTwo(t *testing.T) {
	b := newBench(t, phone(offer.Require), site(offer.Require))
	r := b.offer(t, "", offer.Caller,
		audio(5004, "RTP/SAVP", crypto(1, 1, cm80))+"m=audio 5006 RTP/AVP 8\r\n"+crypto(1, 2, cm80))
	assert.Len(t, r.Media, 2)
}
