package offer_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/offer"
)

// version is a description with another version in its o=.
func version(n int, body string) string {
	return strings.Replace(body, "o=- 3747 3747", fmt.Sprintf("o=- 3747 %d", 3747+n), 1)
}

// An end may pass over an offer whose version has not risen (RFC 3264 section 8): the box changes its own part of an
// offer only along with the end that makes it.
func TestOfferChangesWithItsVersionAlone(t *testing.T) {
	c := newCall(t)
	moved := strings.Replace(c.answered, "m=audio 5008", "m=audio 5108", 1)
	for range 2 {
		r := c.offer(t, "b", offer.Caller, c.offered)
		assert.Equal(t, c.passed, string(r.Body))
		r = c.answer(t, "b", offer.Callee, moved)
		assert.Equal(t, epochs(c.first)[2], epochs(r)[2], "the index goes on")
		assert.True(t, legOf(r, offer.Callee).Stale)
	}
	next := version(1, c.offered)
	r := c.offer(t, "b", offer.Caller, next)
	assert.Len(t, cryptoOf(t, r.Body), len(cryptoOf(t, []byte(c.passed))))
	for i, a := range cryptoOf(t, r.Body) {
		for _, old := range cryptoOf(t, []byte(c.passed)) {
			assert.False(t, same(a.Keys[0], old.Keys[0]), "line %d", i)
		}
	}
	renewed := string(r.Body)
	assert.Equal(t, renewed, string(c.offer(t, "b", offer.Caller, next).Body), "sent again")
	r = c.answer(t, "b", offer.Callee, moved)
	assert.NotEqual(t, epochs(c.first)[2], epochs(r)[2])
	assert.False(t, legOf(r, offer.Callee).Stale)
	// The suite in use comes first once the keys are others; from then on the offer stays.
	assert.Equal(t, renewed, string(c.offer(t, "b", offer.Caller, next).Body))
}

// A suite below the minimum is offered as long as it is in use. With a new key it is no other suite.
func TestOfferOfAWeakSuiteInUseIsMadeAgainAsItWas(t *testing.T) {
	caller := phone(offer.Prefer)
	caller.Minimum = gcm
	answered := at("10.1.10.20", audio(5008, "RTP/AVP"))
	for name, renew := range map[string]func(b *bench) (offer.Result, string){
		"for another peer, perhaps": func(b *bench) (offer.Result, string) {
			r, err := b.Offer("b", offer.Callee, []byte(answered), true)
			require.NoError(t, err)
			return r, answered
		},
		"after a move in an answer": func(b *bench) (offer.Result, string) {
			b.offer(t, "b", offer.Callee, answered)
			r := b.answer(t, "b", offer.Caller, audio(5104, "RTP/AVP", crypto(1, 1, cm80)))
			require.True(t, legOf(r, offer.Caller).Stale)
			next := version(1, answered)
			return b.offer(t, "b", offer.Callee, next), next
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, caller, phone(offer.Off))
			b.offer(t, "", offer.Caller, audio(5004, "RTP/AVP", crypto(1, 1, cm80)))
			r := b.answer(t, "b", offer.Callee, answered)
			used := legOf(r, offer.Caller).Send.Keys[0]
			first, offered := renew(b)
			require.Equal(t, cm80, cryptoOf(t, first.Body)[0].Suite)
			assert.False(t, same(used, cryptoOf(t, first.Body)[0].Keys[0]), "a new key")
			assert.Equal(t, string(first.Body), string(b.offer(t, "b", offer.Callee, offered).Body), "sent again")
			b.reject(t, "b")
			assert.Equal(t, string(first.Body), string(b.offer(t, "b", offer.Callee, offered).Body), "made again")
		})
	}
}

// An offer that failed was seen all the same. It may be made again as it was, as after 491.
func TestOfferThatFailedIsMadeAgainAsItWas(t *testing.T) {
	c := newCall(t)
	moved := strings.Replace(c.answered, "m=audio 5008", "m=audio 5108", 1)
	c.offer(t, "b", offer.Caller, c.offered)
	agreed := c.answer(t, "b", offer.Callee, moved)
	next := version(1, c.offered) + "m=video 5006 RTP/SAVP 96\r\n" + crypto(1, 5, cm80)
	first := c.offer(t, "b", offer.Caller, next)
	for range 3 {
		assert.Equal(t, agreed.Media, c.reject(t, "b").Media, "what was agreed is as it was")
		assert.Equal(t, string(first.Body), string(c.offer(t, "b", offer.Caller, next).Body))
	}
	c.reject(t, "b")
	c.offer(t, "b", offer.Caller, version(2, c.offered))
	c.reject(t, "b")
	assert.Equal(t, string(first.Body), string(c.offer(t, "b", offer.Caller, next).Body), "another one between")
	r := c.answer(t, "b", offer.Callee, strings.Replace(drawnAnswer(t, first.Body), farBox.String(), "10.1.10.20", 1))
	require.Len(t, r.Media, 2)
	for i := range r.Media {
		assert.True(t, same(cryptoOf(t, first.Body)[4*i].Keys[0], r.Media[i].Legs[offer.Callee].Send.Keys[0]))
	}
	assert.NotEqual(t, epochs(agreed)[2], epochs(r)[2])
	c.Close()
	assert.Empty(t, c.ports.out)
}

// A line that an offer without an answer has switched off is still in use: the next offer has it as it was.
func TestLineThatAnOfferWithoutAnAnswerSwitchesOff(t *testing.T) {
	for name, p := range map[string]offer.Place{
		"SDES": phone(offer.Require), "DTLS": phone(offer.Require, offer.DTLS), "box": site(offer.Require),
	} {
		for _, fresh := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s %v", name, fresh), func(t *testing.T) {
				b := newBench(t, phone(offer.Prefer), p)
				offered := audio(5004, "RTP/AVP")
				passed := b.offer(t, "", offer.Caller, offered)
				agreed := b.answer(t, "p", offer.Callee, drawnAnswer(t, passed.Body))
				off := version(1, audio(0, "RTP/AVP")) + "m=video 5006 RTP/AVP 96\r\n"
				on := version(2, offered) + "m=video 5006 RTP/AVP 96\r\n"
				_, err := b.Offer("p", offer.Caller, []byte(off), fresh)
				require.NoError(t, err)
				r, err := b.Offer("p", offer.Caller, []byte(on), fresh)
				require.NoError(t, err)
				assert.Equal(t, legOf(agreed, offer.Callee).Local, legOf(r, offer.Callee).Local)
				assert.Equal(t, legOf(agreed, offer.Callee).Send.Epoch, legOf(r, offer.Callee).Send.Epoch)
				kept := strings.Contains(string(r.Body), strings.SplitAfter(string(passed.Body), "a=sendrecv\r\n")[1])
				assert.Equal(t, !fresh || p.Box.IsValid(), kept, "keys\n%s", r.Body)
				assert.Equal(t, string(r.Body), string(b.offer(t, "p", offer.Caller, on).Body), "sent again")
				assert.Equal(t, agreed.Media, b.reject(t, "p").Media)
				assert.Equal(t, string(r.Body), string(b.offer(t, "p", offer.Caller, on).Body), "made again")
				b.Close()
				assert.Empty(t, b.ports.out)
			})
		}
	}
}

// An answer to the offer before one that failed is read by what that one offered.
func TestAnswerAfterAnOfferThatFailed(t *testing.T) {
	c := newCall(t)
	c.offer(t, "b", offer.Caller, c.offered)
	moved := strings.Replace(c.answered, "m=audio 5008", "m=audio 5108", 1)
	agreed := c.answer(t, "b", offer.Callee, moved)
	c.offer(t, "b", offer.Caller, version(1, c.offered)) // with other keys
	c.reject(t, "b")
	assert.Equal(t, agreed.Media, c.answer(t, "b", offer.Callee, moved).Media, "sent again")
	c.offer(t, "b", offer.Caller, version(1, c.offered))
	c.reject(t, "b")
	c.Close()
	for i, k := range c.keys {
		assert.Empty(t, strings.Trim(string(k.Master), "\x00"), "key %d is overwritten", i)
	}
}

func TestAssociationOfAnOfferThatFailed(t *testing.T) {
	b := newBench(t, phone(offer.Off), phone(offer.Require, offer.DTLS))
	offered, answered := audio(5004, "RTP/AVP"), dtlsBody(5008, 1, "a=setup:active\r\n")
	first := b.offer(t, "", offer.Caller, offered)
	agreed := b.answer(t, "p", offer.Callee, answered)
	r, err := b.Offer("p", offer.Caller, []byte(offered), true)
	require.NoError(t, err)
	assert.NotEqual(t, string(first.Body), string(r.Body))
	assert.Equal(t, agreed.Media, b.reject(t, "p").Media)
	assert.Equal(t, agreed.Media, b.answer(t, "p", offer.Callee, answered).Media, "sent again")
	assert.Equal(t, string(r.Body), string(b.offer(t, "p", offer.Caller, offered).Body))
	next := b.answer(t, "p", offer.Callee, answered)
	assert.NotEqual(t, legOf(agreed, offer.Callee).DTLS.Epoch, legOf(next, offer.Callee).DTLS.Epoch)
}

// A line that an answer has refused is offered again as it was, as by a phone with a camera to one without.
func TestRefusedLineIsOfferedAgainAsItWas(t *testing.T) {
	for name, p := range map[string]offer.Place{
		"SDES": phone(offer.Require), "DTLS": phone(offer.Require, offer.DTLS),
		"both": phone(offer.Prefer, offer.DTLS, offer.SDES), "box": site(offer.Require),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, phone(offer.Prefer), p)
			offered := audio(5004, "RTP/AVP") + "m=video 5006 RTP/AVP 96\r\n"
			passed := b.offer(t, "", offer.Caller, offered)
			answered := strings.Replace(drawnAnswer(t, passed.Body), "m=video 6000", "m=video 0", 1)
			for range 3 {
				r := b.answer(t, "p", offer.Callee, answered)
				assert.Len(t, r.Media, 1)
				assert.Contains(t, string(r.Body), "m=video 0 RTP/AVP 96")
				assert.Equal(t, string(passed.Body), string(b.offer(t, "p", offer.Caller, offered).Body))
			}
			// One that was taken and is given up has keys that were used.
			r := b.answer(t, "p", offer.Callee, drawnAnswer(t, passed.Body))
			require.Len(t, r.Media, 2)
			b.offer(t, "p", offer.Caller, offered)
			b.answer(t, "p", offer.Callee, answered)
			r = b.offer(t, "p", offer.Caller, offered)
			assert.NotEqual(t, string(passed.Body), string(r.Body))
			b.Close()
			assert.Empty(t, b.ports.out)
		})
	}
}

// drawnAnswer takes every line by the first method that is offered, on port 6000.
func drawnAnswer(t testing.TB, offered []byte) string {
	t.Helper()
	out, taken := "", false
	for _, l := range strings.SplitAfter(string(offered), "\n") {
		switch {
		case strings.HasPrefix(l, "m="):
			f := strings.Fields(l)
			f[1], taken = "6000", false
			out += strings.Join(f, " ") + "\r\n"
		case taken:
		case strings.HasPrefix(l, "a=crypto:"):
			a := cryptoOf(t, []byte(l))[0]
			out, taken = out+crypto(int(a.Tag), 7+len(out), a.Suite), true
		case strings.HasPrefix(l, "a=fingerprint:"):
			out, taken = out+fingerprint(2)+"a=setup:active\r\na=rtcp-mux\r\n", true
		case strings.HasPrefix(l, "a=ringway"):
			out, taken = out+l, true
		}
	}
	return fromBox(head) + out
}
