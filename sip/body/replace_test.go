package body

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/message"
)

func scan(t testing.TB, headers, body string) *message.Message {
	t.Helper()
	m := new(message.Message)
	require.Equal(t, message.None, m.Scan([]byte("INVITE sip:x SIP/2.0\r\n"+
		"Via: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: <sip:a@x>;tag=1\r\n"+
		"To: <sip:b@x>\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\n"+headers+"\r\n"+body)))
	return m
}

// Nothing but the description and the number in Content-Length is another one.
func TestReplace(t *testing.T) {
	const parts = "--xx\r\nContent-Type: application/isup\r\n\r\n\x01\x02\r\n--xx\r\n" +
		"Content-Type: application/sdp\r\n\r\n" +
		"SDP\r\n--xx--\r\n"
	other := description + "a=sendrecv\r\n"
	for _, test := range []struct{ name, before, after, headers, body string }{
		{"plain", "Content-Length: 56", "Content-Length: 68", "c: application/sdp\r\n", "SDP"},
		{"compact, with blanks", "l :   56  ", "l :   68  ", "c: application/sdp\r\n", "SDP"},
		{"a length in between", "L: 56\r\nX-After: 1", "L: 68\r\nX-After: 1", "c: application/sdp\r\n", "SDP"},
		{"no length", "X: 1", "X: 1", "c: application/sdp\r\n", "SDP"},
		{"parts", "l: 149", "l: 161", "c: multipart/mixed;boundary=xx\r\n", parts},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := scan(t, test.before+"\r\n"+test.headers, strings.Replace(test.body, "SDP", description, 1))
			d, found := Description(m)
			require.Equal(t, Plain, found)
			want := scan(t, test.after+"\r\n"+test.headers, strings.Replace(test.body, "SDP", other, 1))
			before := strings.Clone(string(m.Raw))
			assert.Equal(t, string(want.Raw), string(Replace(m, d, []byte(other), len(want.Raw))))
			assert.Equal(t, before, string(m.Raw))
			assert.Nil(t, Replace(m, d, []byte(other), len(want.Raw)-1), "a byte too long")
		})
	}
	m := scan(t, "l: 56\r\nc: application/sdp\r\n", description+"behind the body")
	d, _ := Description(m)
	assert.NotContains(t, string(Replace(m, d, []byte(other), 1000)), "behind")
}

func TestStray(t *testing.T) {
	two := "--xx\r\nContent-Type: application/sdp\r\n\r\n" + description + "\r\n--xx\r\n" +
		"Content-Type: application/sdp\r\n\r\n" + description + "\r\n--xx--\r\n"
	for _, test := range []struct {
		name, headers, body string
		stray               bool
	}{
		{"plain", "c: application/sdp\r\n", description, false},
		{"no body", "c: application/sdp\r\nc: text/plain\r\n", "", false},
		{"two types", "c: application/sdp\r\nContent-Type: text/plain\r\n", description, true},
		{"two in parts", "c: multipart/alternative;boundary=xx\r\n", two, true},
		{"one in parts", "c: multipart/mixed;boundary=xx\r\n",
			strings.Replace(two, description+"\r\n--xx--", "Signal=1\r\n--xx--", 1), false},
		{"another type", "c: text/plain\r\n", description, true},
		{"with CR alone", "c: text/plain\r\n", "x\rm=audio 4 RTP/AVP 0", true},
		{"digits", "c: application/dtmf-relay\r\n", "Signal=1\r\n", false},
		{"encoded", "c: application/sdp\r\nContent-Encoding: gzip\r\n", "\x1f\x8b", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := scan(t, test.headers, test.body)
			d, _ := Description(m)
			assert.Equal(t, test.stray, Stray(m, d))
		})
	}
}
