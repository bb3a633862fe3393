package message

import (
	"bytes"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	"github.com/emiago/sipgo/sip"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func parse(t testing.TB, text string) *Message {
	t.Helper()
	var m Message
	require.Equal(t, None, m.Scan([]byte(text)))
	return &m
}

func TestCompactAndLongFormsAreTheSame(t *testing.T) {
	const long = "INVITE sip:b@example.com SIP/2.0\r\nVia: SIP/2.0/UDP 10.1.10.10;branch=z9hG4bK1\r\n" +
		"From: <sip:a@x>;tag=1\r\n" +
		"To: <sip:b@x>\r\nCall-ID: 1\r\nContact: <sip:a@10.1.10.10>\r\nCSeq: 7 INVITE\r\n" +
		"Content-Type: application/sdp\r\n" +
		"Supported: timer\r\nSession-Expires: 1800\r\nContent-Length: 3\r\n\r\nv=0"
	const compact = "INVITE sip:b@example.com SIP/2.0\r\nV : SIP/2.0/UDP 10.1.10.10;branch=z9hG4bK1\r\n" +
		"f:<sip:a@x>;tag=1\r\n" +
		"t:\r\n <sip:b@x>\r\ni\t: 1\r\nm: <sip:a@10.1.10.10>\r\ncSEQ: 7\r\n\tINVITE\r\n" +
		"c: application/sdp\r\nk: timer\r\n" +
		"x: 1800\r\nl :  3 \r\n\r\nv=0, and what a datagram may have behind its body"
	a, b := parse(t, long), parse(t, compact)
	for k := AlertInfo; k < kinds; k++ {
		if k == CSeq {
			continue
		}
		assert.Equal(t, a.Header(k), b.Header(k), kindNames[k].name)
		assert.Equal(t, a.Has(k), b.Has(k), kindNames[k].name)
	}
	for _, m := range []*Message{a, b} {
		assert.True(t, m.Request)
		assert.Equal(t, INVITE, m.Method)
		assert.Equal(t, "INVITE", string(m.MethodName()))
		assert.EqualValues(t, 7, m.CSeq)
		assert.Equal(t, "v=0", string(m.Body))
		assert.Equal(t, "sip:b@example.com", string(m.URI()))
	}
	assert.Equal(t, "<sip:b@x>", string(b.Header(To)))
	assert.Equal(t, "V", string(b.Bytes(b.Headers()[0].Name)))
}

func TestResponses(t *testing.T) {
	const rest = "Via: SIP/2.0/UDP 10.1.10.10;branch=z9hG4bK1\r\nFrom: a <sip:a@x>;tag=1\r\n" +
		"To: <sip:b@x>;tag=2\r\nCall-ID: 1\r\n" +
		"CSeq: 2 INVITE\r\n\r\n"
	m := parse(t, "SIP/2.0 183 Session Progress\r\n"+rest)
	assert.False(t, m.Request)
	assert.Equal(t, 183, m.Status)
	assert.Equal(t, INVITE, m.Method)
	assert.Equal(t, "Session Progress", string(m.ReasonPhrase()))
	assert.Empty(t, m.Body)

	assert.Empty(t, parse(t, "SIP/2.0 200\r\n"+rest).ReasonPhrase())
	assert.Empty(t, parse(t, "SIP/2.0 200 \r\n"+rest).ReasonPhrase())
	for line, want := range map[string]Reason{
		"SIP/2.0 99 x": BadStartLine, "SIP/2.0 700 x": BadStartLine, "SIP/2.0 2000 x": BadStartLine,
		"SIP/2.0 20x":    BadStartLine,
		"SIP/2.0  200 x": BadStartLine, "SIP/2.1 200 x": OtherVersion,
	} {
		var m Message
		assert.Equal(t, want, m.Scan([]byte(line+"\r\n"+rest)), line)
	}
}

func TestKeepAlives(t *testing.T) {
	stun := append([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, make([]byte, 12)...)
	for _, b := range [][]byte{{}, []byte("\r\n\r\n"), []byte("\r\n"), {0, 0, 0, 0}, stun} {
		var m Message
		assert.Equal(t, KeepAlive, m.Scan(b), "%q", b)
	}
}

func TestAddresses(t *testing.T) {
	for _, test := range []struct{ value, display, uri, tag string }{
		{"<sip:a@x>;tag=1", "", "sip:a@x", "1"},
		{`"A, <b>; \" c" <sip:a@x;p=1>;q=0.1 ; TAG = 2`, `"A, <b>; \" c"`, "sip:a@x;p=1", "2"},
		{"sip:a@x;tag=3", "", "sip:a@x", "3"},
		{"Watson, Thomas <sip:a@x>", "", "Watson", ""}, // bad, and what it means is not decided here
		{"A B\r\n <sip:a@x>\r\n ;tag=4, <sip:c@x>;tag=5", "A B", "sip:a@x", "4"},
		{`<sip:a@x>;x="; tag=6";tag="7"`, "", "sip:a@x", "7"},
		{"<sip:a@x>;tag", "", "sip:a@x", ""},
	} {
		a, ok := ParseAddress([]byte(test.value))
		assert.True(t, ok, test.value)
		assert.Equal(t, [3]string{test.display, test.uri, test.tag},
			[3]string{string(a.Display), string(a.URI), string(a.Tag())}, test.value)
	}
	for _, value := range []string{"", `"a <sip:a@x>`, "<sip:a@x", "<>", "<sip:a@x> tag=1"} {
		_, ok := ParseAddress([]byte(value))
		assert.False(t, ok, value)
	}

	var all []string
	rest := []byte(`"a,b" <sip:a@x>;q=1, sip:b@x ,<sip:c@x>`)
	for len(rest) > 0 {
		var a Address
		var ok bool
		a, rest, ok = NextAddress(rest)
		require.True(t, ok)
		all = append(all, string(a.URI))
	}
	assert.Equal(t, []string{"sip:a@x", "sip:b@x", "sip:c@x"}, all)
}

func TestVias(t *testing.T) {
	v, ok := ParseVia([]byte("SIP / 2.0 / TCP  first.example.com: 4000 ;ttl=16 ;branch=z9hG4bKa, SIP/2.0/UDP h"))
	require.True(t, ok)
	assert.Equal(t, "TCP", string(v.Transport))
	assert.Equal(t, "first.example.com: 4000", string(v.SentBy))
	assert.Equal(t, "z9hG4bKa", string(v.Branch()))

	for _, received := range []string{"2001:db8::9", "[2001:db8::9]", `"[2001:db8::9]"`} {
		v, ok := ParseVia([]byte("SIP/2.0/UDP [2001:db8::1]:5060;received=" + received + ";branch=z9hG4bKa"))
		require.True(t, ok)
		a, ok := v.Received()
		assert.True(t, ok)
		assert.Equal(t, "2001:db8::9", a.String())
	}
	for _, value := range []string{
		"", "SIP/2.0", "SIP/3.0/UDP x", "SIP/2.0/UDP", "SIP/2.0/UDP ;branch=1", `SIP/2.0/UDP x;a="`,
	} {
		_, ok := ParseVia([]byte(value))
		assert.False(t, ok, value)
	}
}

func TestURIs(t *testing.T) {
	for _, test := range []struct {
		uri, scheme, user, host string
		port                    uint16
		params                  string
	}{
		{"sip:100@pbx.example.com", "sip", "100", "pbx.example.com", 0, ""},
		{"SIPS:a:x@[2001:db8::1]:5061;transport=tcp?subject=x", "SIPS", "a", "[2001:db8::1]", 5061, ";transport=tcp"},
		{"sip:a;b=c;d@x;lr", "sip", "a;b=c;d", "x", 0, ";lr"},
		{"sip:10.1.10.1:5060", "sip", "", "10.1.10.1", 5060, ""},
		{"tel:+49-89-1234;phone-context=x", "tel", "+49-89-1234", "", 0, ";phone-context=x"},
		{"urn:service:sos.fire", "urn", "service:sos.fire", "", 0, ""},
	} {
		u, ok := ParseURI([]byte(test.uri))
		assert.True(t, ok, test.uri)
		assert.Equal(t, []string{test.scheme, test.user, test.host, test.params},
			[]string{string(u.Scheme), string(u.User), string(u.Host), string(u.Params)}, test.uri)
		assert.Equal(t, test.port, u.Port, test.uri)
	}
	for _, uri := range []string{
		"", "sip", ":a@x", "sip:", "sip:a@", "sip:a@x:0", "sip:a@x:65536", "sip:a@[::1", "tel:",
	} {
		_, ok := ParseURI([]byte(uri))
		assert.False(t, ok, uri)
	}
}

func TestEveryReasonHasAName(t *testing.T) {
	seen := map[string]bool{}
	for r := BadStartLine; r < reasons; r++ {
		assert.NotEmpty(t, r.Name(), "%d", r)
		assert.False(t, seen[r.Name()], r)
		seen[r.Name()] = true
	}
	assert.Equal(t, Read, None.Verdict())
	assert.Equal(t, Refused, MissingContentLength.Verdict())
	assert.Equal(t, Unread, KeepAlive.Verdict())
	assert.Len(t, Reasons(), int(reasons)-1)
}

func invite(t testing.TB) []byte {
	t.Helper()
	return torture(t)["wsinv"]
}

func TestScanAllocatesNothing(t *testing.T) {
	b := invite(t)
	m := new(Message)
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		if m.Scan(b) != None {
			panic(m.Scan(b).Name())
		}
	}))
}

func BenchmarkScan(b *testing.B) {
	msg := invite(b)
	b.Run("Ringway", func(b *testing.B) {
		m := new(Message)
		for b.Loop() {
			m.Scan(msg)
		}
	})
	b.Run("sipgo", func(b *testing.B) {
		p := sip.NewParser()
		for b.Loop() {
			_, _ = p.ParseSIP(msg)
		}
	})
}

// folds are line ends within a value, which sipgo replaces by a blank.
var folds = regexp.MustCompile(`[ \t]*\r\n[ \t]+`)

// Where sipgo and the scanner both accept a message, they agree on what it is and where it ends.
func FuzzScanAgreesWithSipgo(f *testing.F) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	for _, b := range torture(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Message
		if m.Scan(b) != None {
			return
		}
		other, err := sip.ParseMessage(bytes.Clone(b))
		if err != nil || other.CallID() == nil || other.CSeq() == nil {
			return
		}
		request, is := other.(*sip.Request)
		require.Equal(t, is, m.Request)
		if is {
			// sipgo makes it upper case.
			require.True(t, strings.EqualFold(string(request.Method), string(m.MethodName())))
		} else {
			require.Equal(t, other.(*sip.Response).StatusCode, m.Status)
		}
		unfolded := folds.ReplaceAllString(string(m.CallID()), " ")
		require.Equal(t, strings.TrimSpace(other.CallID().Value()), unfolded)
		require.Equal(t, other.CSeq().SeqNo, m.CSeq)
		if m.Has(ContentLength) {
			require.Equal(t, int(*other.ContentLength()), len(m.Body))
		}
	})
}
