package offer_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/offer"
)

// protocolOf is that of the first line m=.
func protocolOf(t testing.TB, r offer.Result) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^m=\S+ \d+ (\S+)`).FindSubmatch(r.Body)
	require.NotNil(t, m, "%s", r.Body)
	return string(m[1])
}

// Feedback (RFC 4585) belongs to DTLS as a matter of course; others have it if the end that offers has asked for it
// without DTLS. Whatever the other end has, the answer has the protocol of the offer.
func TestFeedback(t *testing.T) {
	keys, both := crypto(1, 1, cm80), []offer.Keying{offer.DTLS, offer.SDES}
	withDTLS := []string{fingerprint(1), "a=setup:actpass\r\na=rtcp-mux\r\n"}
	for name, test := range map[string]struct {
		protocol string
		keys     []string
		callee   offer.Place
		want     string
	}{
		"DTLS to RTP":             {"UDP/TLS/RTP/SAVPF", withDTLS, phone(offer.Off), "RTP/AVP"},
		"DTLS to SDES":            {"UDP/TLS/RTP/SAVPF", withDTLS, phone(offer.Require), "RTP/SAVP"},
		"DTLS to either, or RTP":  {"UDP/TLS/RTP/SAVPF", withDTLS, phone(offer.Prefer, both...), "RTP/AVP"},
		"DTLS to DTLS":            {"UDP/TLS/RTP/SAVPF", withDTLS, phone(offer.Require, offer.DTLS), "UDP/TLS/RTP/SAVPF"},
		"DTLS to a box":           {"UDP/TLS/RTP/SAVPF", withDTLS, site(offer.Require), "RTP/AVP"},
		"DTLS without it to DTLS": {"UDP/TLS/RTP/SAVP", withDTLS, phone(offer.Require, offer.DTLS), "UDP/TLS/RTP/SAVP"},
		"RTP to RTP":              {"RTP/AVPF", []string{keys}, phone(offer.Off), "RTP/AVPF"},
		"RTP to SDES":             {"RTP/AVPF", []string{keys}, phone(offer.Require), "RTP/SAVPF"},
		"SDES to RTP":             {"RTP/SAVPF", []string{keys}, phone(offer.Off), "RTP/AVPF"},
		"SDES to DTLS":            {"RTP/SAVPF", []string{keys}, phone(offer.Require, offer.DTLS), "UDP/TLS/RTP/SAVPF"},
		"SDES to a box":           {"RTP/SAVPF", []string{keys}, site(offer.Require), "RTP/AVPF"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, phone(offer.Require), test.callee)
			if test.callee.Level == offer.Off {
				b = newBench(t, phone(offer.Prefer), test.callee)
			}
			offered := audio(5004, test.protocol, test.keys...)
			passed := b.offer(t, "", offer.Caller, offered)
			require.Equal(t, test.want, protocolOf(t, passed))
			answered := drawnAnswer(t, passed.Body)
			r := b.answer(t, "b", offer.Callee, answered)
			assert.Equal(t, test.protocol, protocolOf(t, r))

			assert.Equal(t, string(passed.Body), string(b.offer(t, "b", offer.Caller, offered).Body), "a refresh")
			assert.Equal(t, string(r.Body), string(b.answer(t, "b", offer.Callee, answered).Body))

			// The other end's refresh has its own protocol, and the first one gets what it has offered.
			if strings.Contains(answered, "a=setup:") {
				answered = strings.Replace(answered, "a=setup:active", "a=setup:actpass", 1)
			}
			r = b.offer(t, "b", offer.Callee, answered)
			assert.Equal(t, test.protocol, protocolOf(t, r))
			r = b.answer(t, "b", offer.Caller, strings.Replace(offered, "a=setup:actpass", "a=setup:passive", 1))
			assert.Equal(t, test.want, protocolOf(t, r))
		})
	}
}

// A call that goes on stays with the protocols it has.
func TestFeedbackDoesNotChangeInACall(t *testing.T) {
	b := newBench(t, phone(offer.Prefer), phone(offer.Off))
	keys, answered := crypto(1, 1, cm80), at("10.1.10.20", audio(5008, "RTP/AVP"))
	b.offer(t, "", offer.Caller, audio(5004, "RTP/AVP", keys))
	first := b.answer(t, "b", offer.Callee, answered)
	r := b.offer(t, "b", offer.Caller, version(1, audio(5004, "RTP/AVPF", keys)))
	assert.Equal(t, "RTP/AVP", protocolOf(t, r), "the callee has never had another one")
	r = b.answer(t, "b", offer.Callee, answered)
	assert.Equal(t, "RTP/AVPF", protocolOf(t, r))
	assert.Equal(t, epochs(first), epochs(r))
	assert.Equal(t, "RTP/AVPF", protocolOf(t, b.offer(t, "b", offer.Callee, answered)))
}
