package offer_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/offer"
	"ringway/srtp/sdes"
	"ringway/srtp/suite"
)

// answered is an answer to what was offered: with a key for that suite, or with a fingerprint, or without either.
func answered(t testing.TB, offered []byte, n int, how string) string {
	t.Helper()
	var attributes string
	switch s, err := suite.Parse(how); {
	case err == nil:
		for _, a := range cryptoOf(t, offered) {
			if a.Suite == s {
				attributes = crypto(int(a.Tag), n, s)
			}
		}
		require.NotEmpty(t, attributes, "%s is not offered", how)
	case how == "DTLS":
		attributes = fingerprint(1) + "a=setup:active\r\na=rtcp-mux\r\n"
	}
	return at("10.1.10.20", audio(5008, "RTP/AVP", attributes))
}

// A key that was in use is not offered again once something else was: the index would begin at 0 a second time.
func TestUsedKeyIsNotOfferedAgain(t *testing.T) {
	for _, between := range []string{"nothing", "DTLS", gcm.String()} {
		t.Run(between, func(t *testing.T) {
			b := newBench(t, phone(offer.Prefer), phone(offer.Prefer, offer.SDES, offer.DTLS))
			offered := audio(5004, "RTP/AVP")
			var inUse, left []sdes.Key
			epochs := map[uint32]bool{}
			passed := b.offer(t, "", offer.Caller, offered)
			for i, how := range []string{cm80.String(), between, cm80.String(), between, cm80.String()} {
				if i > 0 {
					passed = b.offer(t, "p", offer.Caller, offered)
				}
				for _, a := range cryptoOf(t, passed.Body) {
					for _, k := range left {
						assert.False(t, same(k, a.Keys[0]), "offer %d has a key that was in use", i)
					}
				}
				r := b.answer(t, "p", offer.Callee, answered(t, passed.Body, i+1, how))
				left = append(left, inUse...)
				inUse = legOf(r, offer.Callee).Send.Keys
				if len(inUse) > 0 {
					assert.NotContains(t, epochs, legOf(r, offer.Callee).Send.Epoch)
					epochs[legOf(r, offer.Callee).Send.Epoch] = true
				}
			}
			assert.GreaterOrEqual(t, len(left), 2)
		})
	}
}

// Keys of suites that an offer had besides, and which nobody took, stay: nothing but what was used is new.
func TestUnusedKeysStayOffered(t *testing.T) {
	b := newBench(t, phone(offer.Prefer), phone(offer.Prefer))
	first := b.offer(t, "", offer.Caller, audio(5004, "RTP/AVP"))
	b.answer(t, "p", offer.Callee, answered(t, first.Body, 1, cm80.String()))
	again := b.offer(t, "p", offer.Caller, audio(5004, "RTP/AVP"))
	assert.Equal(t, string(first.Body), string(again.Body))
}

// A second answer to one offer may take another line, and not the first one once more.
func TestAnswerDoesNotReturnToAKey(t *testing.T) {
	b := newBench(t, phone(offer.Prefer), phone(offer.Prefer, offer.SDES, offer.DTLS))
	passed := b.offer(t, "", offer.Caller, audio(5004, "RTP/AVP"))
	first := b.answer(t, "p", offer.Callee, answered(t, passed.Body, 1, cm80.String()))
	second := b.answer(t, "p", offer.Callee, answered(t, passed.Body, 2, gcm.String()))
	assert.NotEqual(t, legOf(first, offer.Callee).Send.Epoch, legOf(second, offer.Callee).Send.Epoch)
	assert.Equal(t, second.Media, b.answer(t, "p", offer.Callee, answered(t, passed.Body, 2, gcm.String())).Media)

	_, err := b.Answer("p", offer.Callee, []byte(answered(t, passed.Body, 1, cm80.String())))
	requireRefusal(t, err, 488, "goes back to a key")
	third := b.answer(t, "p", offer.Callee, answered(t, passed.Body, 1, "DTLS"))
	assert.Zero(t, legOf(third, offer.Callee).Send.Epoch)
	for _, how := range []string{cm80.String(), gcm.String()} {
		_, err = b.Answer("p", offer.Callee, []byte(answered(t, passed.Body, 1, how)))
		requireRefusal(t, err, 488, "goes back to a key")
	}
	// The next offer has keys that nobody has used.
	passed = b.offer(t, "p", offer.Caller, audio(5004, "RTP/AVP"))
	b.answer(t, "p", offer.Callee, answered(t, passed.Body, 1, cm80.String()))
}

// Forks share what they were offered. It is one key, so it is one sender: the index goes on from branch to branch.
func TestForksShareTheEpochOfAKey(t *testing.T) {
	b := newBench(t, phone(offer.Prefer), phone(offer.Require))
	passed := b.offer(t, "", offer.Caller, audio(5004, "RTP/AVP"))
	by := func(how string, n int) string {
		return strings.Replace(answered(t, passed.Body, n, how), "RTP/AVP", "RTP/SAVP", 1)
	}
	one := legOf(b.answer(t, "one", offer.Callee, by(cm80.String(), 1)), offer.Callee)
	b.End("one")
	two := legOf(b.answer(t, "two", offer.Callee, by(cm80.String(), 2)), offer.Callee)
	three := legOf(b.answer(t, "three", offer.Callee, by(gcm.String(), 3)), offer.Callee)
	require.True(t, same(one.Send.Keys[0], two.Send.Keys[0]))
	assert.Equal(t, one.Send.Epoch, two.Send.Epoch, "one key, one sender")
	assert.NotEqual(t, one.Receive.Epoch, two.Receive.Epoch, "each callee sends under a key of its own")
	assert.NotEqual(t, one.Send.Epoch, three.Send.Epoch)

	// Another branch may take that key yet: its sender has to be kept, until no branch can.
	assert.Contains(t, b.Epochs(), one.Send.Epoch)
	assert.NotContains(t, b.Epochs(), one.Receive.Epoch)
	b.Settle("three")
	assert.Contains(t, b.Epochs(), one.Send.Epoch, "it is offered to the third, too")
	b.answer(t, "three", offer.Callee, by(cm80.String(), 3))
	b.answer(t, "three", offer.Callee, by(suite.AEADAES256GCM.String(), 3))
	assert.NotContains(t, b.Epochs(), one.Send.Epoch)
	b.Close()
	assert.Empty(t, b.Epochs())
}

// What callees of a fork were offered is known to all of them. The one that stays gets keys of its own with the next
// offer that it will read.
func TestKeyOfAForkIsReplaced(t *testing.T) {
	b := newBench(t, phone(offer.Prefer), phone(offer.Prefer))
	offered := audio(5004, "RTP/AVP")
	passed := b.offer(t, "", offer.Caller, offered)
	one := b.answer(t, "one", offer.Callee, answered(t, passed.Body, 1, cm80.String()))
	assert.False(t, legOf(one, offer.Callee).Stale)
	assert.Equal(t, one.Media, b.answer(t, "one", offer.Callee, answered(t, passed.Body, 1, cm80.String())).Media)
	two := b.answer(t, "two", offer.Callee, answered(t, passed.Body, 2, cm80.String()))
	assert.True(t, legOf(two, offer.Callee).Stale, "it may expect a sender that begins")
	b.Settle("two")
	again := b.offer(t, "two", offer.Caller, offered)
	assert.Equal(t, string(passed.Body), string(again.Body))
	assert.Equal(t, two.Media, b.answer(t, "two", offer.Callee, answered(t, again.Body, 2, cm80.String())).Media)
	next := b.offer(t, "two", offer.Caller, version(1, offered))
	r := b.answer(t, "two", offer.Callee, answered(t, next.Body, 2, cm80.String()))
	assert.NotEqual(t, legOf(two, offer.Callee).Send.Epoch, legOf(r, offer.Callee).Send.Epoch)
	assert.False(t, legOf(r, offer.Callee).Stale)
}

// An offer that failed is not made again with a key that was left since.
func TestOfferThatFailedDoesNotBringBackAKey(t *testing.T) {
	b := newBench(t, phone(offer.Prefer), phone(offer.Prefer))
	offered := audio(5004, "RTP/AVP")
	passed := b.offer(t, "", offer.Caller, offered)
	first := b.answer(t, "p", offer.Callee, answered(t, passed.Body, 1, cm80.String()))
	b.offer(t, "p", offer.Caller, offered)
	b.reject(t, "p")
	b.answer(t, "p", offer.Callee, answered(t, passed.Body, 2, gcm.String())) // another one to the first offer
	next := b.offer(t, "p", offer.Caller, offered)
	for _, a := range cryptoOf(t, next.Body) {
		assert.False(t, same(legOf(first, offer.Callee).Send.Keys[0], a.Keys[0]))
	}
}

// Who sends under a key of the box would make two senders of it, and could send the box's own packets back.
func TestKeyOfTheBoxIsNotTakenBack(t *testing.T) {
	c := newCall(t)
	ours := cryptoOf(t, c.first.Body)[0]
	echo := strings.Replace(crypto(1, 1, cm80), inline(1, cm80), keyText(ours), 1)
	_, err := c.Offer("b", offer.Caller, []byte(audio(5004, "RTP/SAVP", echo)), false)
	requireRefusal(t, err, 488, "no crypto attribute that is acceptable")
	r := c.offer(t, "b", offer.Caller, audio(5004, "RTP/SAVP", echo, crypto(2, 3, cm80)))
	assert.NotEmpty(t, r.Body, "another one is taken")
	r = c.answer(t, "b", offer.Callee, c.answered)
	assert.Equal(t, uint32(2), cryptoOf(t, r.Body)[0].Tag)

	b := newBench(t, phone(offer.Prefer), phone(offer.Require))
	passed := b.offer(t, "", offer.Caller, audio(5004, "RTP/AVP"))
	for i, a := range cryptoOf(t, passed.Body) {
		for j, o := range cryptoOf(t, passed.Body) {
			if o.Suite.KeyLen() != a.Suite.KeyLen() || o.Suite.SaltLen() != a.Suite.SaltLen() {
				continue
			}
			line := strings.Replace(crypto(i+1, 1, a.Suite), inline(1, a.Suite), keyText(o), 1)
			_, err := b.Answer("p", offer.Callee, []byte(audio(5008, "RTP/SAVP", line)))
			requireRefusal(t, err, 488, "a key of the box")
			assert.Less(t, j, 4)
		}
	}
}

// keyText is the key of an attribute in base64.
func keyText(a sdes.Attribute) string {
	text := string(a.Append(nil))
	return text[strings.Index(text, "inline:")+len("inline:"):]
}
