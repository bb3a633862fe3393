package body

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/message"
)

const description = "v=0\r\no=- 1 1 IN IP4 10.1.10.10\r\nm=audio 5004 RTP/AVP 0\r\n"

func read(t testing.TB, headers, body string) (string, Found) {
	t.Helper()
	var m message.Message
	require.Equal(t, message.None, m.Scan([]byte("INVITE sip:x SIP/2.0\r\n"+
		"Via: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: <sip:a@x>;tag=1\r\n"+
		"To: <sip:b@x>\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\n"+headers+"\r\n"+body)))
	d, found := Description(&m)
	return string(d), found
}

func TestDescription(t *testing.T) {
	mixed := "--xx\r\nContent-Type: application/sdp\r\n\r\n" + description + "\r\n--xx\r\n" +
		"Content-Type: application/isup;version=itu\r\n" +
		"Content-Transfer-Encoding: binary\r\n\r\n\x01\x02--xx\x03\r\n--xx--\r\n"
	for _, test := range []struct {
		name, headers, body, want string
		found                     Found
	}{
		{"plain", "Content-Type: application/sdp\r\n", description, description, Plain},
		{"compact, with a parameter", "c: Application/SDP;charset=utf-8\r\n", description, description, Plain},
		{"no type", "", description, description, Plain},
		{"no body", "c: application/sdp\r\n", "", "", Nothing},
		{"another body", "c: application/dtmf-relay\r\n", "Signal=1\r\n", "", Nothing},
		{"SDP and ISUP", "c: multipart/mixed;boundary=xx\r\n", mixed, description, Plain},
		{"quoted boundary", "c: multipart/mixed; boundary=\"xx\"\r\n", mixed, description, Plain},
		{"SDP second, after a preamble, in a part of a part, with LF", "c: multipart/mixed;boundary=aa\r\n",
			"preamble\n--aab\n--aa\nContent-Type: application/pidf+xml\n\n<x/>\n--aa\n" +
				"Content-Type: multipart/alternative;boundary=xx\n\n" +
				mixed + "\n--aa--", description, Plain},
		{"no end", "c: multipart/mixed;boundary=xx\r\n", "--xx\r\nContent-Type: application/sdp\r\n" +
			"\r\n" + description, description, Plain},
		{"a part without header fields", "c: multipart/mixed;boundary=xx\r\n", "--xx\r\n\r\ntext\r\n" +
			"--xx--", "", Nothing},
		{"base64", "c: multipart/mixed;boundary=xx\r\n",
			"--xx\r\nContent-Type: application/sdp\r\nContent-Transfer-Encoding: base64\r\n\r\ndj0w\r\n" +
				"--xx--", "", Unreadable},
		{"S/MIME", "c: application/pkcs7-mime\r\n", "x", "", Unreadable},
		{"compressed", "c: application/sdp\r\ne: gzip\r\n", "x", "", Unreadable},
		{"no boundary", "c: multipart/mixed\r\n", mixed, "", Nothing},
		{"parts in parts without end", "c: multipart/mixed;boundary=xx\r\n",
			strings.Repeat("--xx\r\nContent-Type: multipart/mixed;boundary=xx\r\n\r\n", 1000), "", Nothing},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, found := read(t, test.headers, test.body)
			assert.Equal(t, test.want, got)
			assert.Equal(t, test.found, found)
		})
	}
}

func FuzzDescription(f *testing.F) {
	f.Add("multipart/mixed;boundary=xx", "--xx\r\nContent-Type: application/sdp\r\n\r\n"+description+"--xx--")
	f.Fuzz(func(t *testing.T, contentType, body string) {
		if d, found := find([]byte(contentType), []byte(body), maxDepth); found == Plain {
			assert.Contains(t, body, string(d), "as it lies there")
		}
	})
}
