package stamp

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	require.NoError(t, err)
	return b
}

// The figures of the RFCs, field by field, one line each.
const (
	goldenQuestion = `
		00000007                 Sequence Number
		eb2d3c4f 80000000        Timestamp, NTP
		8f a0                    Error Estimate: S 1, Z 0, Scale 15, Multiplier 160
		4242                     SSID (RFC 8972)
		00000000 00000000 00000000 00000000 00000000 00000000 00000000`
	goldenAnswer = `
		00000005                 Sequence Number
		eb2d3c50 40000000        Timestamp
		0f a0                    Error Estimate: S 0
		4242                     SSID
		eb2d3c50 20000000        Receive Timestamp
		00000007                 Session-Sender Sequence Number
		eb2d3c4f 80000000        Session-Sender Timestamp
		8fa0                     Session-Sender Error Estimate
		0000                     MBZ
		fd                       Ses-Sender TTL
		000000                   MBZ`
)

// golden drops the words behind the octets: what is not hexadecimal, or longer than a field.
func golden(t *testing.T, s string) []byte {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(s) {
		octets, _, _ := strings.Cut(strings.TrimSpace(line), "   ")
		b.WriteString(octets)
	}
	return unhex(t, b.String())
}

func TestQuestionIsFigure2(t *testing.T) {
	want := golden(t, goldenQuestion)
	require.Len(t, want, BaseSize)
	q := Question{Seq: 7, Sent: 0xeb2d3c4f_80000000, Error: 0x8fa0, SSID: 0x4242}
	assert.Equal(t, want, q.Append(nil))
	got, err := ParseQuestion(want)
	require.NoError(t, err)
	assert.Equal(t, q, got)
	assert.True(t, q.Error.Synchronized())
	assert.Equal(t, NTP, q.Error.Format())
	for n := range BaseSize {
		_, err := ParseQuestion(want[:n])
		assert.ErrorIs(t, err, ErrShort)
	}
}

func TestAnswerIsFigure5(t *testing.T) {
	want := golden(t, goldenAnswer)
	require.Len(t, want, BaseSize)
	a := Answer{Seq: 5, Sent: 0xeb2d3c50_40000000, Error: 0x0fa0, SSID: 0x4242, Received: 0xeb2d3c50_20000000,
		SenderSeq: 7, SenderSent: 0xeb2d3c4f_80000000, SenderError: 0x8fa0, SenderTTL: 253}
	b := make([]byte, BaseSize)
	for i := range b {
		b[i] = 0xff // what the question held there must not come back
	}
	a.put(b)
	assert.Equal(t, want, b)
	got, err := ParseAnswer(want)
	require.NoError(t, err)
	assert.Equal(t, a, got)
	for n := range BaseSize {
		_, err := ParseAnswer(want[:n])
		assert.ErrorIs(t, err, ErrShort)
	}
}

// Extensions of a voice packet's size, as RFC 8972 draws them (figures 4, 9, 10 and 5), asked and answered.
func TestExtensionsAreThoseOfRFC8972(t *testing.T) {
	l, err := layoutOf(172)
	require.NoError(t, err)
	asked := l.extensions(nil, 46, 9)
	require.Len(t, asked, 172-BaseSize)
	assert.Equal(
		t, unhex(t, `80 05 000c 00000009 00000000 00000000   80 04 0004 b8000000   80 01 0064`), asked[:28],
	)
	assert.Equal(t, make([]byte, 100), asked[28:])

	answered := append([]byte(nil), asked...)
	extend(answered, 46<<2|1, 8, 7)
	assert.Equal(
		t, unhex(t, `00 05 000c 00000009 00000008 00000007   00 04 0004 bae4 0000   00 01 0064`), answered[:28],
	)
	assert.Equal(
		t, Far{Counted: true, RxCount: 8, TxCount: 7, SawDSCP: true, DSCP: 46, ECN: 1}, parseFar(answered),
	)

	answered = append([]byte(nil), asked...)
	// the code point was lost on the way: DSCP2 is 0, and the wish for EF is refused (RP 1)
	extend(answered, 0, 1, 1)
	assert.Equal(t, unhex(t, `00 04 0004 b801 0000`), answered[16:24])
	assert.Equal(t, uint8(0), parseFar(answered).DSCP)

	assert.Equal(
		t, Far{}, parseFar(asked), "a reflector that does not know extensions sends them back as they were",
	)
}

func TestExtensionsThatAreWrong(t *testing.T) {
	for name, c := range map[string]struct{ asked, answered string }{
		"unknown":                  {`80 63 0002 abcd  80 01 0000`, `80 63 0002 abcd  00 01 0000`},
		"unknown, U not set":       {`00 63 0000`, `80 63 0000`},
		"longer than the packet":   {`80 01 0005 00000000`, `40 01 0005 00000000`},
		"after a bad one":          {`80 05 0004 00000000 80 01 0000`, `40 05 0004 00000000 80 01 0000`},
		"code point of wrong size": {`80 04 0002 b800`, `40 04 0002 b800`},
		"no room for a header":     {`80 01 0000 800100`, `00 01 0000 800100`},
		"padding of zeros":         {`00000000 00000000`, `80000000 80000000`},
	} {
		t.Run(name, func(t *testing.T) {
			b := unhex(t, c.asked)
			extend(b, 0, 1, 1)
			assert.Equal(t, unhex(t, c.answered), b)
		})
	}
	assert.True(t, parseFar(unhex(t, `40 05 0004 00000000`)).BadReply)
	assert.True(t, parseFar(unhex(t, `00 01 0009 00`)).BadReply)
}

func TestLayoutFillsEverySize(t *testing.T) {
	for size := range MaxSize + 1 {
		l, err := layoutOf(size)
		if size < BaseSize || size > BaseSize && size < BaseSize+tlvHeader {
			assert.Error(t, err, "%d", size)
			continue
		}
		require.NoError(t, err, "%d", size)
		b := l.extensions(make([]byte, BaseSize), 46, 1)
		require.Len(t, b, size)
		extend(b[BaseSize:], 46<<2, 1, 1)
		assert.False(t, parseFar(b[BaseSize:]).BadReply)
	}
	l, err := layoutOf(60)
	require.NoError(t, err)
	assert.Equal(t, layout{direct: true, padding: -1}, l)
}

// Whatever comes in: the answer is as long as the question, nothing is answered below 44 bytes, and both
// ends take it.
func FuzzReflect(f *testing.F) {
	l, err := layoutOf(172)
	require.NoError(f, err)
	f.Add(l.extensions(Question{Seq: 7, Error: 0x8fa0, SSID: 1}.Append(nil), 46, 9), uint8(46<<2))
	f.Add(make([]byte, BaseSize), uint8(0))
	f.Add(append(make([]byte, BaseSize), 0x80, 5, 0xff, 0xff), uint8(3))
	f.Add([]byte{1, 2, 3}, uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, tos uint8) {
		var r Reflector
		r.start()
		r.clock.read = func() (ClockState, error) { return ClockState{}, nil }
		n := len(b)
		q, ses, why := r.admit(b, addr("10.0.0.1:5000"), Port, 1)
		if n < BaseSize || n > largest {
			require.NotEmpty(t, why)
			return
		}
		require.Empty(t, why)
		ses.sent++
		extend(b[BaseSize:], tos, ses.received, ses.sent)
		r.finish(b, q, control{at: 1e18, ttl: 64}, ses.sent, 1e18+5)
		require.Len(t, b, n)
		a, err := ParseAnswer(b)
		require.NoError(t, err)
		assert.Equal(t, q.Seq, a.SenderSeq)
		assert.Equal(t, q.Sent, a.SenderSent)
		assert.Equal(t, q.SSID, a.SSID)
		assert.Equal(t, q.Error.Format(), a.Error.Format())
		parseFar(b[BaseSize:])
	})
}

// FuzzAnswer: what comes back to a sender may be anything.
func FuzzAnswer(f *testing.F) {
	f.Add(make([]byte, 172))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := sending{ssid: 1, highest: -1, stream: Stream{Packets: make([]Packet, 8)}}
		for i := range s.stream.Packets {
			s.stream.Packets[i].Sent, s.stream.Packets[i].raw = 1, Timestamp(i)
		}
		if s.take(b, control{at: 2}, Probe{Size: 172, Timeout: defaultTimeout}, 0) {
			require.Len(t, b, 172)
		}
	})
}

// FuzzControl: the kernel's words are parsed as strictly as a stranger's.
func FuzzControl(f *testing.F) {
	f.Add(replyControl(nil, addr("10.0.0.1:1").Addr(), 184, 7))
	f.Add(replyControl(nil, addr("[2001:db8::1]:1").Addr(), 184, 7))
	f.Fuzz(func(_ *testing.T, b []byte) {
		var c control
		c.parse(b)
	})
}

func TestControlRoundTrips(t *testing.T) {
	for _, a := range []string{"10.2.10.1:1", "[2001:db8::1]:1"} {
		var c control
		c.parse(replyControl(nil, addr(a).Addr(), 184, 0))
		assert.Equal(t, uint8(184), c.tos)
	}
}
