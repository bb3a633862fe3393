package offer_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/offer"
	"ringway/srtp/sdes"
	"ringway/srtp/suite"
)

var (
	phoneSide = netip.MustParseAddr("10.1.10.1") // the box in the phones' LAN
	boxVoice  = netip.MustParseAddr("10.9.0.1")  // the box in the voice tunnel
	farBox    = netip.MustParseAddr("10.9.0.2")
	wanSide   = netip.MustParseAddr("198.51.100.7")
	phoneSix  = netip.MustParseAddr("2001:db8:1::1")
)

// ports hands out even ports, and knows which are out.
type ports struct {
	next uint16
	out  map[netip.AddrPort]bool
}

func (p *ports) Allocate(a netip.Addr) (uint16, bool) {
	if p.next == 0 {
		p.next = 40000
	}
	if p.next >= 60000 {
		return 0, false
	}
	p.next += 2
	p.out[netip.AddrPortFrom(a, p.next-2)] = true
	return p.next - 2, true
}

func (p *ports) Release(a netip.AddrPort) {
	if !p.out[a] {
		panic("released a port that is not out: " + a.String())
	}
	delete(p.out, a)
}

// numbered are the bytes that a counter stands for: keys of tests are recognizable, and of no use.
func numbered(label string, n, size int) []byte {
	var b []byte
	for i := 0; len(b) < size; i++ {
		h := sha256.Sum256(fmt.Appendf(nil, "%s %d %d", label, n, i))
		b = append(b, h[:]...)
	}
	return b[:size]
}

// inline is the key of a phone in base64.
func inline(n int, s suite.Suite) string {
	return base64.StdEncoding.EncodeToString(numbered("phone", n, s.KeyLen()+s.SaltLen()))
}

func crypto(tag, n int, s suite.Suite) string {
	return fmt.Sprintf("a=crypto:%d %s inline:%s\r\n", tag, s, inline(n, s))
}

// fingerprint is one that a phone has.
func fingerprint(n int) string {
	pairs := make([]string, 32)
	for i, b := range numbered("certificate", n, 32) {
		pairs[i] = strings.ToUpper(hex.EncodeToString([]byte{b}))
	}
	return "a=fingerprint:sha-256 " + strings.Join(pairs, ":") + "\r\n"
}

// helper is what is needed of a test.
type helper interface{ Helper() }

type bench struct {
	*offer.Call
	ports *ports
	keys  []sdes.Key // the masters that were made, as they are now
}

var certificate = []byte("the box's certificate, of which only hashes are seen")

func newBench(t helper, caller, callee offer.Place) *bench {
	t.Helper()
	b := &bench{ports: &ports{out: map[netip.AddrPort]bool{}}}
	made, ids := 0, 0
	config := offer.Config{
		Ports: b.ports,
		NewKey: func(s suite.Suite) sdes.Key {
			made++
			raw := numbered("box", made, s.KeyLen()+s.SaltLen())
			k := sdes.Key{Master: raw[:s.KeyLen()], Salt: raw[s.KeyLen():]}
			b.keys = append(b.keys, k)
			return k
		},
		NewID: func() string {
			ids++
			return fmt.Sprintf("%032x", ids)
		},
		Certificate: certificate,
	}
	b.Call = offer.NewCall(config, caller, callee)
	return b
}

// phone is a place in the voice network, with this policy.
func phone(l offer.Level, methods ...offer.Keying) offer.Place {
	return offer.Place{Policy: offer.Policy{Level: l, Methods: methods}, IPv4: phoneSide, IPv6: phoneSix}
}

// site is the far box.
func site(l offer.Level) offer.Place {
	return offer.Place{Policy: offer.Policy{Level: l}, IPv4: boxVoice, Box: farBox, ChannelUp: true}
}

// trunk is a provider.
func trunk(l offer.Level) offer.Place {
	return offer.Place{Policy: offer.Policy{Level: l}, IPv4: wanSide}
}

const (
	origin = "o=- 3747 3747 IN IP4 10.1.10.10\r\n"
	head   = "v=0\r\n" + origin + "s=call\r\nc=IN IP4 10.1.10.10\r\nt=0 0\r\n"
	codecs = "a=rtpmap:8 PCMA/8000\r\na=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\na=ptime:20\r\n"
)

// audio is the description of a phone.
func audio(port int, protocol string, attributes ...string) string {
	return head + fmt.Sprintf("m=audio %d %s 8 101\r\n", port, protocol) + codecs + strings.Join(attributes, "") +
		"a=sendrecv\r\n"
}

// at moves a description elsewhere.
func at(address, body string) string {
	return strings.Replace(body, "c=IN IP4 10.1.10.10", "c=IN IP4 "+address, 1)
}

// fromBox is the description of the far box.
func fromBox(body string) string { return at(farBox.String(), body) }

const marker = "a=ringway-srtp:AEAD_AES_128_GCM\r\n"

func (b *bench) offer(t testing.TB, tag string, from offer.End, body string) offer.Result {
	t.Helper()
	r, err := b.Offer(tag, from, []byte(body), false)
	require.NoError(t, err)
	return r
}

func (b *bench) answer(t testing.TB, tag string, from offer.End, body string) offer.Result {
	t.Helper()
	r, err := b.Answer(tag, from, []byte(body))
	require.NoError(t, err)
	require.True(t, r.Settled)
	return r
}

func (b *bench) reject(t testing.TB, tag string) offer.Result {
	t.Helper()
	r, err := b.Reject(tag)
	require.NoError(t, err)
	return r
}

func requireRefusal(t testing.TB, err error, status int, reason string) {
	t.Helper()
	var r *offer.Refusal
	require.ErrorAs(t, err, &r)
	assert.Equal(t, status, r.Status)
	assert.Contains(t, r.Reason, reason)
}

// cryptoOf are the attributes of a body.
func cryptoOf(t testing.TB, body []byte) (all []sdes.Attribute) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?m)^a=crypto:(.*?)\r?$`).FindAllSubmatch(body, -1) {
		a, err := sdes.Parse(string(m[1]))
		require.NoError(t, err)
		all = append(all, a)
	}
	return all
}

// reply is what a phone answers to an offer: with the suite, and a key of its own.
func reply(t testing.TB, offered []byte, port, n int, s suite.Suite) string {
	t.Helper()
	for _, a := range cryptoOf(t, offered) {
		if a.Suite == s {
			protocol := "RTP/SAVP"
			if bytes.Contains(offered, []byte("RTP/AVP")) {
				protocol = "RTP/AVP"
			}
			return at("10.1.10.20", audio(port, protocol, crypto(int(a.Tag), n, s)))
		}
	}
	require.Fail(t, "suite is not offered", "%s in %s", s, offered)
	return ""
}

func same(a, b sdes.Key) bool { return a.Equal(b) }

// parties of the calls in these tests.
const (
	cm80 = suite.AES128CMHMACSHA180
	cm32 = suite.AES128CMHMACSHA132
	gcm  = suite.AEADAES128GCM
)

func TestPhoneToSite(t *testing.T) {
	b := newBench(t, phone(offer.Require), site(offer.Require))
	body := audio(5004, "RTP/SAVP", crypto(1, 1, cm80), "a=ssrc:1234 cname:x\r\n", "a=rtcp:5005\r\n")
	r := b.offer(t, "", offer.Caller, body)
	assert.False(t, r.Settled)
	assert.Equal(t, strings.ReplaceAll(strings.ReplaceAll(audio(40000, "RTP/AVP", "a=ssrc:1234 cname:x\r\n"),
		"c=IN IP4 10.1.10.10", "c=IN IP4 10.9.0.1"), "a=sendrecv\r\n", "a=sendrecv\r\n"+marker), string(r.Body),
		"keys do not go between boxes")

	r = b.answer(t, "b1", offer.Callee, fromBox(audio(41000, "RTP/AVP", marker)))
	made := cryptoOf(t, r.Body)
	require.Len(t, made, 1)
	assert.Equal(t, uint32(1), made[0].Tag)
	assert.Equal(t, cm80, made[0].Suite)
	assert.Contains(t, string(r.Body), "c=IN IP4 10.1.10.1\r\n")
	assert.Contains(t, string(r.Body), "m=audio 40002 RTP/SAVP 8 101\r\n")
	assert.NotContains(t, string(r.Body), "ringway")

	require.Len(t, r.Media, 1)
	x, y := r.Media[0].Legs[offer.Caller], r.Media[0].Legs[offer.Callee]
	assert.Equal(t, offer.SDES, x.Keying)
	assert.Equal(t, cm80, x.Suite)
	assert.Equal(t, netip.AddrPortFrom(phoneSide, 40002), x.Local)
	assert.Equal(t, netip.MustParseAddrPort("10.1.10.10:5004"), x.Remote)
	assert.Equal(t, netip.MustParseAddrPort("10.1.10.10:5005"), x.RemoteRTCP)
	assert.True(t, same(made[0].Keys[0], x.Send.Keys[0]))
	assert.Equal(t, numbered("phone", 1, 30)[:16], x.Receive.Keys[0].Master)
	assert.Equal(t, offer.Channel, y.Keying)
	assert.Equal(t, gcm, y.Suite)
	assert.Equal(t, netip.AddrPortFrom(boxVoice, 40000), y.Local)
	assert.Equal(t, netip.AddrPortFrom(farBox, 41000), y.Remote)
	assert.NotZero(t, y.Send.Epoch)
	assert.Equal(t, []offer.Codec{{8, "PCMA", 8000, 1, ""}, {101, "telephone-event", 8000, 1, "0-15"}}, x.Codecs)
	assert.Equal(t, 20, x.Ptime)
	assert.True(t, x.Sends && x.Receives && y.Sends && y.Receives)

	rtp, rtcp := y.Overhead()
	assert.Equal(t, 20, rtp)
	assert.Equal(t, 24, rtcp)
	rtp, _ = x.Overhead()
	assert.Equal(t, 10, rtp)

	b.Close()
	assert.Empty(t, b.ports.out)
}

func TestSiteToPhone(t *testing.T) {
	t.Run("by SDES", func(t *testing.T) {
		b := newBench(t, site(offer.Require), phone(offer.Require))
		r := b.offer(t, "", offer.Caller, fromBox(audio(41000, "RTP/AVP", marker)))
		assert.Contains(t, string(r.Body), "m=audio 40000 RTP/SAVP 8 101\r\n")
		var names []suite.Suite
		for i, a := range cryptoOf(t, r.Body) {
			names = append(names, a.Suite)
			assert.Equal(t, uint32(i+1), a.Tag)
		}
		assert.Equal(t, []suite.Suite{suite.AEADAES256GCM, gcm, suite.AES256CMHMACSHA180, cm80}, names)
		leg := r.Media[0].Legs[offer.Callee]
		assert.Equal(t, offer.Undecided, leg.Keying)
		rtp, _ := leg.Overhead()
		assert.Equal(t, 16, rtp, "the most that may be chosen")

		r = b.answer(t, "p", offer.Callee, reply(t, r.Body, 5008, 3, cm80))
		assert.Contains(t, string(r.Body), "m=audio 40002 RTP/AVP 8 101\r\n")
		assert.Contains(t, string(r.Body), marker)
		assert.Empty(t, cryptoOf(t, r.Body))
		assert.Equal(t, offer.SDES, r.Media[0].Legs[offer.Callee].Keying)
		assert.Equal(t, offer.Channel, r.Media[0].Legs[offer.Caller].Keying)
	})
	t.Run("by DTLS", func(t *testing.T) {
		b := newBench(t, site(offer.Require), phone(offer.Require, offer.DTLS))
		r := b.offer(t, "", offer.Caller, fromBox(audio(41000, "RTP/AVP", marker)))
		sum := sha256.Sum256(certificate)
		assert.Contains(t, strings.ToLower(strings.ReplaceAll(string(r.Body), ":", "")), hex.EncodeToString(sum[:]))
		assert.Contains(t, string(r.Body), "m=audio 40000 UDP/TLS/RTP/SAVP 8 101\r\n")
		assert.Contains(t, string(r.Body), "a=setup:actpass\r\na=tls-id:")
		r = b.answer(t, "p", offer.Callee,
			at("10.1.10.20", audio(5008, "UDP/TLS/RTP/SAVP", fingerprint(1), "a=setup:active\r\na=rtcp-mux\r\n")))
		leg := r.Media[0].Legs[offer.Callee]
		require.Equal(t, offer.DTLS, leg.Keying)
		assert.Equal(t, offer.Passive, leg.DTLS.Role)
		assert.Len(t, leg.DTLS.Remote, 1)
		assert.NotContains(t, string(r.Body), "fingerprint")
	})
	t.Run("the channel is down", func(t *testing.T) {
		place := site(offer.Require)
		place.ChannelUp = false
		b := newBench(t, phone(offer.Off), place)
		_, err := b.Offer("", offer.Caller, []byte(audio(5004, "RTP/AVP")), false)
		requireRefusal(t, err, 488, "key channel to the site is down")
		b = newBench(t, place, phone(offer.Off))
		_, err = b.Offer("", offer.Caller, []byte(fromBox(audio(41000, "RTP/AVP", marker))), false)
		requireRefusal(t, err, 488, "key channel to the site is down")
		assert.Empty(t, b.ports.out)

		place.Level = offer.Prefer
		b = newBench(t, phone(offer.Off), place)
		r := b.offer(t, "", offer.Caller, audio(5004, "RTP/AVP"))
		assert.NotContains(t, string(r.Body), "ringway", "both boxes know that nothing is encrypted")
		r = b.answer(t, "b1", offer.Callee, fromBox(audio(41000, "RTP/AVP", marker)))
		assert.Equal(t, offer.Clear, r.Media[0].Legs[offer.Callee].Keying)
	})
	t.Run("another address than the box's", func(t *testing.T) {
		b := newBench(t, site(offer.Require), phone(offer.Off))
		_, err := b.Offer("", offer.Caller, []byte(at("10.9.0.77", audio(41000, "RTP/AVP", marker))), false)
		requireRefusal(t, err, 488, "SRTP is required")
		b = newBench(t, phone(offer.Off), site(offer.Require))
		b.offer(t, "", offer.Caller, audio(5004, "RTP/AVP"))
		_, err = b.Answer("b1", offer.Callee, []byte(at("10.9.0.77", audio(41000, "RTP/AVP", marker))))
		requireRefusal(t, err, 488, "SRTP is required")
		_, err = b.Answer("b1", offer.Callee, []byte(fromBox(audio(41000, "RTP/AVP"))))
		requireRefusal(t, err, 488, "SRTP is required")
	})
}

func TestOffPassesEverything(t *testing.T) {
	b := newBench(t, phone(offer.Off), trunk(offer.Off))
	body := audio(5004, "RTP/SAVP", crypto(1, 1, cm80))
	r := b.offer(t, "", offer.Caller, body)
	assert.Equal(t, body, string(r.Body))
	assert.Empty(t, r.Media)
	r = b.answer(t, "x", offer.Callee, body)
	assert.Equal(t, body, string(r.Body))
}

// describe is the keying of both ends, of every line.
func describe(r offer.Result) string {
	var all []string
	for _, m := range r.Media {
		all = append(all, fmt.Sprintf("%d: %s, %s", m.Index, m.Legs[offer.Caller].Keying, m.Legs[offer.Callee].Keying))
	}
	return strings.Join(all, "; ")
}
