package transparent

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"ringway/sip/message"
)

// cut gives a stream to one direction as it comes, up to each of the offsets, then whole. It returns what was shown
// to the Handler and what went on. There is no socket.
func cut(stream []byte, splits ...int) (shown string, forwarded []byte) {
	var out strings.Builder
	idle := 0 // bytes of keep-alives: how they are cut depends on how they came
	flush := func() {
		if idle > 0 {
			fmt.Fprintf(&out, "%d keep-alive\n", idle)
			idle = 0
		}
	}
	relay := bareRelay(func(m *Message) Action {
		switch {
		case m.Reason == message.KeepAlive:
			idle += len(m.Raw)
		case m.Reason.Verdict() == message.Refused: // how much had come by then depends on how it came
			flush()
			fmt.Fprintf(&out, "%s\n", m.Reason)
		default:
			flush()
			fmt.Fprintf(&out, "%d %s %q\n", len(m.Raw), m.Reason, m.SIP.CallID())
		}
		return Action{}
	})
	p, _ := newPair(relay, netip.AddrPort{}, netip.AddrPort{}, true, nil)
	d := p.directions[near]
	d.forward = func(b []byte) error {
		forwarded = append(forwarded, b...)
		return nil
	}

	at := 0
	for _, end := range append(splits, len(stream)) {
		for at < end {
			room, ok := d.in.space()
			if !ok {
				return out.String() + "no room", forwarded
			}
			n := copy(room, stream[at:end])
			d.in.added(n)
			at += n
			if err := d.deliver(); err != nil {
				flush()
				fmt.Fprintf(&out, "%v\n", err)
				d.in.consume(len(d.in.bytes()))
				return out.String(), forwarded
			}
		}
	}
	flush()
	fmt.Fprintf(&out, "%d left, raw %t\n", len(d.in.bytes()), mode(p.mode.Load()) == carriesRaw)
	d.in.consume(len(d.in.bytes()))
	fmt.Fprintf(&out, "%d bytes of memory\n", relay.memory.used.Load())
	return out.String(), forwarded
}

// bareRelay is a relay without listeners and sockets.
func bareRelay(handle Handler) *Relay {
	r := &Relay{config: Config{Handle: handle}.withDefaults(), began: time.Now()}
	r.memory.limit = r.config.Limits.Memory
	r.scratch.New = func() any { return new(scratch) }
	return r
}

func TestStreamIsTheSameHoweverItCame(t *testing.T) {
	one, two := request("OPTIONS", "a", 0), request("INVITE", "b", 700)
	for _, c := range []struct{ name, stream, want string }{
		{"two messages", one + two, fmt.Sprintf("%d  \"a\"\n%d  \"b\"\n0 left, raw false\n", len(one), len(two))},
		{"pings", "\r\n\r\n" + one + "\r\n" + two,
			fmt.Sprintf("4 keep-alive\n%d  \"a\"\n2 keep-alive\n%d  \"b\"\n0 left, raw false\n", len(one), len(two))},
		{"part of a message", one + two[:600], fmt.Sprintf("%d  \"a\"\n600 left, raw false\n", len(one))},
		{"TLS", "\x16\x03\x01\x02\x00" + one, "0 left, raw true\n"},
		{"HTTP", "GET / HTTP/1.1\r\n" + one, "0 left, raw true\n"},
		{"a word without a blank", strings.Repeat("a", 40), "0 left, raw true\n"},
		{"a word that may become a method", "INVITE", "6 left, raw false\n"},
		{"a response first", strings.Replace(one, "OPTIONS sip:200@192.0.2.1 SIP/2.0", "SIP/2.0 200 OK", 1),
			fmt.Sprintf("%d  \"a\"\n0 left, raw false\n", len(one)-19)},
		{"not SIP after SIP", one + "GET / HTTP/1.1\r\n", fmt.Sprintf("%d  \"a\"\nbad_start_line\n"+
			"tcp_framing_fault\n", len(one))},
	} {
		t.Run(c.name, func(t *testing.T) {
			shown, forwarded := cut([]byte(c.stream))
			assert.Equal(t, c.want, strings.TrimSuffix(shown, "0 bytes of memory\n"))
			for at := 1; at < len(c.stream); at++ {
				s, f := cut([]byte(c.stream), at)
				assert.Equal(t, shown, s, "split at %d", at)
				assert.Equal(t, string(forwarded), string(f), "split at %d", at)
			}
			var every []int
			for at := 1; at < len(c.stream); at++ {
				every = append(every, at)
			}
			s, f := cut([]byte(c.stream), every...)
			assert.Equal(t, shown, s, "split at every byte")
			assert.Equal(t, string(forwarded), string(f))
		})
	}
}

// FuzzStream: where a stream was split on its way changes nothing, what goes on is the stream itself, and all memory
// comes back.
func FuzzStream(f *testing.F) {
	one, two := request("OPTIONS", "a", 0), request("INVITE", "b", 5000)
	f.Add([]byte(one+"\r\n\r\n"+two+one), uint16(3), uint16(400))
	f.Add([]byte("\x16\x03\x01\x02\x00"+one), uint16(1), uint16(2))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"+one), uint16(4), uint16(15))
	f.Add([]byte(one+strings.Replace(two, "Content-Length", "l: 3\r\nl", 1)), uint16(4), uint16(300))
	f.Add([]byte(request("INVITE", "c", 65530)), uint16(4096), uint16(16384))
	f.Fuzz(func(t *testing.T, stream []byte, x, y uint16) {
		if len(stream) == 0 || len(stream) > 1<<18 {
			return
		}
		a, b := int(x)%len(stream), int(y)%len(stream)
		shown, forwarded := cut(stream)
		s, f := cut(stream, min(a, b), max(a, b))
		assert.Equal(t, shown, s)
		assert.Equal(t, string(forwarded), string(f))
		assert.True(t, strings.HasPrefix(string(stream), string(f)), "what went on is not what came")
		assert.NotContains(t, shown, "no room")
		if !strings.Contains(shown, "tcp_framing_fault") {
			assert.Contains(t, shown, "\n0 bytes of memory\n")
		}
	})
}

func FuzzOriginalDestination(f *testing.F) {
	f.Add([]byte("\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x14\x00\x00\x00\x02\x00\x13\xc4\x0a\x01\x02\x03" +
		"\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(_ *testing.T, b []byte) { originalDestination(b) })
}
