package refusal

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emiago/sipgo/sip"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"ringway/sip/message"
)

var phone = netip.MustParseAddrPort("10.1.10.10:49152")

func scan(t testing.TB, text string) *message.Message {
	t.Helper()
	m := new(message.Message)
	require.Equal(t, message.None, m.Scan([]byte(text)), "%s", text)
	return m
}

func refuse(t testing.TB, m *message.Message, f Form) string {
	t.Helper()
	b, err := Append(nil, m, Refusal{Form: f, Source: phone, Agent: "edge-1.example.com", Tag: "rw1"})
	require.NoError(t, err)
	return string(b)
}

const invite = "INVITE sip:202@pbx.example.com SIP/2.0\r\n" +
	"Via: SIP/2.0/UDP 10.1.10.10:5062;branch=z9hG4bKa;rport\r\n" +
	"Via: SIP/2.0/TCP other.example.com;branch=z9hG4bKb\r\n" +
	"Max-Forwards: 70\r\n" +
	"From: \"A\" <sip:201@pbx.example.com>;tag=1\r\n" +
	"To: <sip:202@pbx.example.com>\r\n" +
	"Call-ID: 7@10.1.10.10\r\nCSeq: 20 INVITE\r\n" +
	"Record-Route: <sip:p;lr>\r\nContact: <sip:201@10.1.10.10:5062>\r\nRequire: 100rel\r\n" +
	"Content-Type: application/sdp\r\nContent-Length: 3\r\n\r\nv=0"

func TestToAPhone(t *testing.T) {
	assert.Equal(t, "SIP/2.0 488 Not Acceptable Here\r\n"+
		"Via: SIP/2.0/UDP 10.1.10.10:5062;branch=z9hG4bKa;rport=49152;received=10.1.10.10\r\n"+
		"Via: SIP/2.0/TCP other.example.com;branch=z9hG4bKb\r\n"+
		"From: \"A\" <sip:201@pbx.example.com>;tag=1\r\n"+
		"To: <sip:202@pbx.example.com>;tag=rw1\r\n"+
		"Call-ID: 7@10.1.10.10\r\nCSeq: 20 INVITE\r\n"+
		"Warning: 370 edge-1.example.com \"Insufficient bandwidth\"\r\n"+
		"Content-Length: 0\r\n\r\n", refuse(t, scan(t, invite), NotAcceptable))
}

func TestForms(t *testing.T) {
	m := scan(t, invite)
	const warning = "Warning: 370 edge-1.example.com \"Insufficient bandwidth\"\r\n"
	for _, test := range []struct {
		form    Form
		line    string
		warning bool
	}{
		{NoRoom(true, false), "SIP/2.0 488 Not Acceptable Here\r\n", true},
		{NoRoom(false, false), "SIP/2.0 503 Service Unavailable\r\n", true},
		{NoRoom(false, true), "SIP/2.0 488 Not Acceptable Here\r\n", true}, // the call of a PBX stays as it was
		{Forbidden, "SIP/2.0 403 Forbidden\r\n", false},
		{Form{Status: 480, Phrase: "Temporarily Unavailable"}, "SIP/2.0 480 Temporarily Unavailable\r\n", false},
	} {
		got := refuse(t, m, test.form)
		assert.True(t, strings.HasPrefix(got, test.line), got)
		assert.Equal(t, test.warning, strings.Contains(got, warning), got)
		assert.NotContains(t, got, "Retry-After")
		assert.NotContains(t, got, "Record-Route")
	}
}

// A request within a dialog keeps its tag.
func TestWithinADialog(t *testing.T) {
	m := scan(t, strings.Replace(invite, "To: <sip:202@pbx.example.com>", "To: <sip:202@pbx.example.com> ; Tag = x", 1))
	assert.Contains(t, refuse(t, m, NotAcceptable), "\r\nTo: <sip:202@pbx.example.com> ; Tag = x\r\n")
}

func TestTopVia(t *testing.T) {
	for via, want := range map[string]string{
		"UDP 10.1.10.10:5062;branch=z9hG4bKa": "UDP 10.1.10.10:5062;branch=z9hG4bKa",
		"UDP 10.1.10.10 ; branch=z9hG4bKa":    "UDP 10.1.10.10; branch=z9hG4bKa",
		"UDP 10.9.9.9;branch=z9hG4bKa":        "UDP 10.9.9.9;branch=z9hG4bKa;received=10.1.10.10",
		"UDP phone.local;branch=z9hG4bKa":     "UDP phone.local;branch=z9hG4bKa;received=10.1.10.10",
		"UDP h:5060;RPORT;branch=z9hG4bK":     "UDP h:5060;rport=49152;branch=z9hG4bK;received=10.1.10.10",
		"UDP 10.1.10.10;rport=;branch=z9hG4b": "UDP 10.1.10.10;rport=49152;branch=z9hG4b;received=10.1.10.10",
		"UDP 10.1.10.10;rport=7;branch=z9hG4": "UDP 10.1.10.10;rport=7;branch=z9hG4",
		"UDP h;received=10.6.6.6;branch=z9h":  "UDP h;branch=z9h;received=10.1.10.10",
		"UDP h;x=\";rport\";branch=z9h, SIP/2.0/UDP b;rport": "UDP h;x=\";rport\";branch=z9h;received=10.1.10.10, " +
			"SIP/2.0/UDP b;rport",
		"\r\n UDP h ;\r\n\trport\r\n ;branch=z9hG4bKa": " UDP h;rport=49152;branch=z9hG4bKa;received=10.1.10.10",
	} {
		via, want = "SIP/2.0/"+via, "SIP/2.0/"+want
		m := scan(t, strings.Replace(invite, "SIP/2.0/UDP 10.1.10.10:5062;branch=z9hG4bKa;rport", via, 1))
		assert.Contains(t, refuse(t, m, NotAcceptable), "\r\nVia: "+want+"\r\nVia: SIP/2.0/TCP other", via)
	}
}

func TestIPv6(t *testing.T) {
	for via, want := range map[string]string{
		"SIP/2.0/UDP [2001:db8::9]:5062;branch=z9hG4bKa": "SIP/2.0/UDP [2001:db8::9]:5062;branch=z9hG4bKa",
		"SIP/2.0/UDP [2001:DB8:0::9];branch=z9hG4bKa":    "SIP/2.0/UDP [2001:DB8:0::9];branch=z9hG4bKa",
		"SIP/2.0/UDP [2001:db8::1];rport;branch=z9hG4bKa": "SIP/2.0/UDP [2001:db8::1];rport=5070;branch=z9hG4bKa" +
			";received=2001:db8::9",
	} {
		m := scan(t, strings.Replace(invite, "SIP/2.0/UDP 10.1.10.10:5062;branch=z9hG4bKa;rport", via, 1))
		source := netip.MustParseAddrPort("[2001:db8::9]:5070")
		b, err := Append(nil, m, Refusal{Form: NotAcceptable, Source: source, Tag: "t"})
		require.NoError(t, err)
		assert.Contains(t, string(b), "\r\nVia: "+want+"\r\n")
		assert.Contains(t, string(b), "\r\nWarning: 370 ringway \"")
	}
}

func TestCompactAndFoldedHeaders(t *testing.T) {
	m := scan(t, "INVITE sip:b@x SIP/2.0\r\nv : SIP/2.0/UDP 10.1.10.10;branch=z9hG4bK1,\r\n  SIP/2.0/UDP b\r\n"+
		"f:\"A\r\n\tB\" <sip:a@x>\r\n ;tag=1\r\nt:\r\n <sip:b@x>;\r\ni\t: 1\r\nCSEQ: 7\r\n\tINVITE\r\nl:0\r\n\r\n")
	assert.Equal(t, "SIP/2.0 403 Forbidden\r\nv: SIP/2.0/UDP 10.1.10.10;branch=z9hG4bK1, SIP/2.0/UDP b\r\n"+
		"f: \"A B\" <sip:a@x> ;tag=1\r\nt: <sip:b@x>;tag=rw1\r\ni: 1\r\nCSEQ: 7 INVITE\r\n"+
		"Content-Length: 0\r\n\r\n", refuse(t, m, Forbidden))
}

func TestWhatHasNoResponse(t *testing.T) {
	r := Refusal{Form: NotAcceptable, Source: phone, Tag: "rw1"}
	without := func(old, new string) string { return strings.Replace(invite, old, new, 1) }
	for text, want := range map[string]string{
		strings.ReplaceAll(invite, "INVITE", "ACK"):                  ErrNoResponse.Error(),
		"SIP/2.0 200 OK\r\n" + invite[strings.Index(invite, "Via"):]: ErrNoResponse.Error(),

		without("Call-ID: 7@10.1.10.10\r\n", ""):          "answer INVITE: Call-ID is missing",
		without("Call-ID: 7@10.1.10.10", "Call-ID:"):      "answer INVITE: Call-ID is missing",
		without("To: <sip:202@pbx.example.com>\r\n", ""):  "answer INVITE: To is missing",
		without("To: <", "To: \"<"):                       "answer INVITE: To is not an address",
		without("CSeq: 20 INVITE\r\n", ""):                "answer INVITE: CSeq is missing",
		without("Via: SIP", "Via: SAP"):                   "answer INVITE: Via cannot be read",
		strings.Replace(invite, "From: ", "Fram: ", 1):    "answer INVITE: From is missing",
		strings.ReplaceAll(invite, "\r\nVia:", "\r\nVa:"): "answer INVITE: Via is missing",
	} {
		var m message.Message
		m.Scan([]byte(text))
		b, err := Append([]byte("x"), &m, r)
		assert.EqualError(t, err, want)
		assert.Equal(t, "x", string(b))
	}

	for _, change := range []func(*Refusal){
		func(r *Refusal) { r.Tag = "" },
		func(r *Refusal) { r.Tag = "a;b" },
		func(r *Refusal) { r.Tag = strings.Repeat("a", 65) },
		func(r *Refusal) { r.Agent = "a b" },
		func(r *Refusal) { r.Agent = strings.Repeat("a", 65) },
		func(r *Refusal) { r.Status = 200 },
		func(r *Refusal) { r.Phrase = "x\r\nEvil: yes" },
		func(r *Refusal) { r.Text = "a\"" },
		func(r *Refusal) { r.Warning = 200 },
		func(r *Refusal) { r.Source = netip.AddrPort{} },
	} {
		wrong := r
		change(&wrong)
		_, err := Append(nil, scan(t, invite), wrong)
		assert.Error(t, err, "%+v", wrong)
	}
}

// torture are RFC 4475's valid messages, by name.
func torture(t *testing.T) map[string][]byte {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/emiago/sipgo").Output()
	require.NoError(t, err)
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "sip/testdata/torture/valid/*.dat"))
	require.NoError(t, err)
	all := map[string][]byte{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		all[strings.TrimSuffix(filepath.Base(f), ".dat")] = b
	}
	require.Len(t, all, 13)
	return all
}

// The oracle: sipgo reads the response, and it is one of the request's transaction.
func TestTortureMessages(t *testing.T) {
	refused := 0
	for name, b := range torture(t) {
		var m message.Message
		require.NotEqual(t, message.Refused, m.Scan(b).Verdict(), name)
		if !m.Request {
			continue
		}
		refused++
		response := refuse(t, &m, Unavailable)
		assert.LessOrEqual(t, len(response), len(b)+MaxGrowth, name)

		var own message.Message
		require.Equal(t, message.None, own.Scan([]byte(response)), name)
		assert.Equal(t, 503, own.Status, name)
		assert.Equal(t, m.CSeq, own.CSeq, name)
		assert.Equal(t, string(m.MethodName()), string(own.MethodName()), name)
		assert.Equal(t, count(&m, message.Via), count(&own, message.Via), name)

		theirs, err := sip.ParseMessage([]byte(response))
		if !assert.NoError(t, err, name) {
			continue
		}
		r, ok := theirs.(*sip.Response)
		require.True(t, ok, name)
		assert.Equal(t, 503, r.StatusCode, name)
		request, err := sip.ParseMessage(b)
		if !assert.NoError(t, err, name) {
			continue
		}
		q := request.(*sip.Request)
		assert.Equal(t, q.CSeq().SeqNo, r.CSeq().SeqNo, name)
		assert.Equal(t, q.CallID().Value(), r.CallID().Value(), name)
		assert.Equal(t, q.From().Address.String(), r.From().Address.String(), name)
		to, _ := message.ParseAddress(own.Header(message.To))
		assert.NotEmpty(t, to.Tag(), name)
		if name != "wsinv" { // sipgo takes the blanks around a parameter's name for a part of it
			assert.Equal(t, string(to.Tag()), r.To().Params.GetOr("tag", ""), name)
		}
		wantKey, err := sip.ClientTxKeyMake(q)
		if err == nil { // longreq and wsinv have branches of RFC 2543
			gotKey, err := sip.ClientTxKeyMake(r)
			require.NoError(t, err, name)
			assert.Equal(t, wantKey, gotKey, name)
		}
		if q.To().Params.Has("tag") {
			assert.Equal(t, q.To().Params.ToString(';'), r.To().Params.ToString(';'), name)
		}
	}
	assert.GreaterOrEqual(t, refused, 10)
}

func count(m *message.Message, k message.Kind) (n int) {
	for _, h := range m.Headers() {
		if h.Kind == k {
			n++
		}
	}
	return n
}

// Whatever the request: the response is one message, the Vias are the request's, and it is not much longer.
func TestEveryResponseIsOneMessage(t *testing.T) {
	pieces := []string{";rport", ";received=10.6.6.6", ";branch=z9hG4bKa", ";x=\"a;b,c\"", " ;\r\n\ty", ";maddr=10.9.9.9"}
	rapid.Check(t, func(t *rapid.T) {
		via := "SIP/2.0/UDP " + rapid.SampledFrom([]string{"h", "10.1.10.10:5060", "[2001:db8::1]"}).Draw(t, "host")
		via += strings.Join(rapid.SliceOfN(rapid.SampledFrom(pieces), 0, 5).Draw(t, "params"), "")
		more := strings.Repeat("v:SIP/2.0/UDP a\r\n", rapid.IntRange(0, 200).Draw(t, "vias"))
		to := "<sip:b@x>" + rapid.SampledFrom([]string{"", ";tag=2", ";x", ";", "; x=\"\\\";tag=3\""}).Draw(t, "to")
		text := "INVITE sip:b@x SIP/2.0\r\nVia: " + via + "\r\n" + more + "From: <sip:a@x>;tag=1\r\nTo: " + to +
			"\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\n\r\n"
		var m, own message.Message
		require.Equal(t, message.None, m.Scan([]byte(text)))
		b, err := Append(nil, &m, Refusal{Form: Unavailable, Source: phone, Agent: strings.Repeat("a", 64),
			Tag: strings.Repeat("t", 64)})
		require.NoError(t, err)
		require.LessOrEqual(t, len(b), len(text)+MaxGrowth)
		require.Equal(t, message.None, own.Scan(b), "%s", b)
		require.Equal(t, count(&m, message.Via), count(&own, message.Via))
		address, _ := message.ParseAddress(own.Header(message.To))
		require.NotEmpty(t, address.Tag())
		v, ok := message.ParseVia(own.Header(message.Via))
		require.True(t, ok)
		before, _ := message.ParseVia(m.Header(message.Via))
		require.Equal(t, string(before.Branch()), string(v.Branch()))
		if rport, has := message.Param(v.Params, "rport"); has {
			require.Equal(t, "49152", string(rport))
		}
		if seen, has := v.Received(); has && !strings.Contains(via, "10.1.10.10") {
			require.Equal(t, phone.Addr(), seen)
		}
	})
}

func TestTags(t *testing.T) {
	secret := []byte("a secret of this box")
	m := scan(t, invite)
	tag := Tag(secret, m)
	assert.Len(t, tag, 26)
	assert.Equal(t, tag, Tag(secret, scan(t, invite)), "the request comes again")
	for _, change := range [][2]string{
		{"CSeq: 20", "CSeq: 21"}, {"z9hG4bKa", "z9hG4bKc"}, {"Call-ID: 7", "Call-ID: 8"}, {";tag=1", ";tag=2"},
	} {
		other := scan(t, strings.Replace(invite, change[0], change[1], 1))
		assert.NotEqual(t, tag, Tag(secret, other), change[0])
	}
	assert.NotEqual(t, tag, Tag([]byte("another secret"), m))

	ack := strings.ReplaceAll(invite, "INVITE", "ACK")
	with := func(tag string) *message.Message {
		return scan(t, strings.Replace(ack, "To: <sip:202@pbx.example.com>", "To: <sip:202@pbx.example.com>;tag="+tag, 1))
	}
	assert.True(t, IsAcknowledged(secret, with(tag)))
	assert.False(t, IsAcknowledged(secret, with("another")))
	assert.False(t, IsAcknowledged(secret, scan(t, ack)))
	again := strings.Replace(invite, "com>\r\nCall", "com>;tag="+tag+"\r\nCall", 1)
	assert.False(t, IsAcknowledged(secret, scan(t, again)), "an INVITE")
}

func TestDestinations(t *testing.T) {
	for via, want := range map[string]string{
		"SIP/2.0/UDP 10.1.10.10:5062;branch=z9hG4bKa":                    "10.1.10.10:5062",
		"SIP/2.0/UDP 10.1.10.10;branch=z9hG4bKa":                         "10.1.10.10:5060",
		"SIP/2.0/UDP 10.1.10.10:5062;rport;branch=z9hG4bKa":              "10.1.10.10:49152",
		"SIP/2.0/UDP 10.9.9.9:5062;maddr=10.8.8.8;branch=z9hG4bKa":       "10.1.10.10:5062",
		"SIP/2.0/UDP [2001:db8::1];branch=z9hG4bKa":                      "10.1.10.10:5060",
		"SIP/2.0/UDP [2001:db8::1]:5064;branch=z9hG4bKa":                 "10.1.10.10:5064",
		"SIP/2.0/UDP phone.local:x;branch=z9hG4bKa":                      "10.1.10.10:49152",
		"SIP/2.0/UDP phone.local : 5070 ;branch=z9hG4bKa, SIP/2.0/UDP h": "10.1.10.10:5070",
	} {
		m := scan(t, strings.Replace(invite, "SIP/2.0/UDP 10.1.10.10:5062;branch=z9hG4bKa;rport", via, 1))
		assert.Equal(t, want, Destination(m, phone).String(), via)
	}
}

func FuzzAppend(f *testing.F) {
	f.Add([]byte(invite))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m, own message.Message
		if m.Scan(b).Verdict() == message.Refused {
			return
		}
		response, err := Append(nil, &m, Refusal{Form: Unavailable, Source: phone, Tag: "rw1"})
		if err != nil {
			return
		}
		require.LessOrEqual(t, len(response), len(b)+MaxGrowth)
		require.NotEqual(t, message.Refused, own.Scan(response).Verdict(), "%q", response)
		require.Equal(t, 503, own.Status)
	})
}
