package message

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// cut gives a stream to a Framer as it comes: up to each of the offsets, then whole. It returns what went
// on, a line for each message. Line ends between messages are one line, however they came.
func cut(stream []byte, splits ...int) string {
	var f Framer
	var m Message
	var out strings.Builder
	var idle, at int
	flush := func() {
		if idle > 0 {
			fmt.Fprintf(&out, "%d %s\n", idle, KeepAlive)
			idle = 0
		}
	}
	for _, end := range append(splits, len(stream)) {
		for at < end {
			n, why := f.Next(stream[at:end], &m)
			switch {
			case n == 0 && why == None:
			case n > 0 && why == KeepAlive:
				idle += n
			case n > 0:
				flush()
				fmt.Fprintf(&out, "%d %s %s %s\n", n, why, m.CallID(), bytes.TrimSpace(m.Body))
			default:
				flush()
				fmt.Fprintf(&out, "%s\n", why)
				return out.String()
			}
			if n == 0 {
				break
			}
			at += n
		}
	}
	flush()
	if at < len(stream) {
		fmt.Fprintf(&out, "%d left\n", len(stream)-at)
	}
	return out.String()
}

func request(method, callID, more, body string) string {
	return method + " sip:200@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/TCP 10.1.10.10;branch=z9hG4bK1\r\n" +
		"From: <sip:100@192.0.2.1>;tag=1\r\nTo: <sip:200@192.0.2.1>\r\nCall-ID: " + callID + "\r\nCSeq: 1 " + method +
		"\r\n" + more + "\r\n" + body
}

func TestStreamIsCutTheSameHoweverItCame(t *testing.T) {
	options := request("OPTIONS", "a", "l : 0\r\n", "")
	n := len(options)
	info := request("INFO", "b", "Content-Length: 8\r\n", "a\r\n\r\nb\r\n")
	odd := request("BYE", "e", "no colon\r\nl: 2\r\n", "ab")
	for _, test := range []struct{ name, stream, want string }{
		{"three messages in a segment", options + options + options,
			fmt.Sprintf("%d  a \n%d  a \n%d  a \n", n, n, n)},
		{"keep-alive before a message", "\r\n\r\n" + options, fmt.Sprintf("4 keep_alive\n%d  a \n", n)},
		{"keep-alive between messages", options + "\r\n" +
			"\r\n" + options, fmt.Sprintf("%d  a \n4 keep_alive\n%d  a \n", n, n)},
		{"a message is no end of another's", options + options[:n-2], fmt.Sprintf("%d  a \n%d left\n", n, n-2)},
		{"body with an empty line", info + options,
			fmt.Sprintf("%d  b a\r\n\r\nb\n%d  a \n", len(info), n)},
		{"no length", request("BYE", "c", "", "") + options, "missing_content_length\n"},
		{"two lengths", request("BYE", "c", "l: 0\r\nContent-Length: 400\r\n", ""), "repeated_content_length\n"},
		{"negative length", request("BYE", "c", "l: -1\r\n", ""), "bad_content_length\n"},
		{"length beyond the bound", request("BYE", "c", "l: 65535\r\n", ""), "too_long\n"},
		{"length beyond all bounds", request("BYE", "c", "l: 4294967296\r\n", ""), "bad_content_length\n"},
		{"bare LF", strings.Replace(options, "\r\nTo:", "\nTo:", 1), "bare_line_end\n"},
		{"bare CR", strings.Replace(options, "Call-ID: ", "Call-ID: \r", 1), "bare_line_end\n"},
		{"not SIP", "GET / HTTP/1.1\r\n", "bad_start_line\n"},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\n", "bad_start_line\n"},
		{"head that never ends", "OPTIONS sip:a SIP/2.0\r\n" + strings.Repeat("A: b\r\n", MaxSize/6), "too_long\n"},
		{"too many header fields", request("BYE", "d", strings.Repeat("A: b\r\n", 300), ""), "too_many_headers\n"},
		{"odd, but with an end", odd + options,
			fmt.Sprintf("%d no_colon e ab\n%d  a \n", len(odd), n)},
	} {
		t.Run(test.name, func(t *testing.T) {
			stream := []byte(test.stream)
			assert.Equal(t, test.want, cut(stream))
			step := 1 + len(stream)/2000
			for at := 1; at < len(stream); at += step {
				assert.Equal(t, cut(stream), cut(stream, at), "split at %d", at)
			}
			var every []int
			for at := 1; at < len(stream); at += step {
				every = append(every, at)
			}
			assert.Equal(t, cut(stream), cut(stream, every...), "split at every byte")
		})
	}
}

func FuzzFramer(f *testing.F) {
	for _, b := range torture(f) {
		f.Add(append(bytes.Clone(b), b...), uint16(len(b)/2), uint16(len(b)))
	}
	f.Add([]byte(request("OPTIONS", "a", "l: 0\r\n", "")+"\r\n\r\n"), uint16(3), uint16(150))
	f.Fuzz(func(t *testing.T, stream []byte, x, y uint16) {
		if len(stream) == 0 {
			return
		}
		a, b := int(x)%len(stream), int(y)%len(stream)
		if a > b {
			a, b = b, a
		}
		assert.Equal(t, cut(stream), cut(stream, a, b))
	})
}
