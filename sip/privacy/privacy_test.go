package privacy

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/message"
	"ringway/sip/sdp"
)

// lines joins lines with CRLF.
func lines(all ...string) string { return strings.Join(all, "\r\n") + "\r\n" }

// redact is what is kept of a message.
func redact(p Policy, text string) string {
	var m message.Message
	why := m.Scan([]byte(text))
	r := Redactor{Policy: p}
	return r.Redact(&m, why).String()
}

// an INVITE with a secret or a number wherever there may be one.
var invite = lines(
	"INVITE sip:+49301234567:secret@pbx.example.com:5060;transport=udp;pn-prid=secret?Authorization=secret SIP/2.0",
	"Via: SIP/2.0/UDP 10.1.10.10:5060;branch=z9hG4bK1;rport",
	`From: "Anna Schmidt" <sip:0301112223@pbx.example.com>;tag=a1`,
	"t: <tel:+49-30-1234567;phone-context=+49301>",
	"Call-ID: 7d1@10.1.10.10",
	"CSeq: 2 INVITE",
	`m: <sip:101@10.1.10.10:5060>;+sip.instance="<urn:uuid:f81d4fae>";expires=60;x-token=secret`,
	`Proxy-Authorization: Digest username="101", realm="pbx",`,
	` nonce="secret", response="secret"`,
	"Identity: secret;info=<https://example.com/cert>;alg=ES256",
	"P-Asserted-Identity: <sip:0301112223@pbx.example.com>, tel:+49301112223",
	"P-Preferred-Identity: sip:0301112223@pbx.example.com",
	"Remote-Party-ID: <sip:0301112223@pbx.example.com>;party=calling;screen=yes",
	"Diversion: <sip:0309998887@pbx.example.com>;reason=no-answer;counter=1",
	"History-Info: <sip:0309998887@pbx.example.com?Reason=secret>;index=1",
	"Referred-By: <sip:0309998887@pbx.example.com>;cid=secret",
	"X-Auth-Token: secret",
	"Subject: secret",
	"User-Agent: Phone 1.0",
	"Reason: Q.850;cause=16;text=\"call of 03012345678\"",
	"Content-Type: application/sdp",
	"Content-Length: 0421",
	"",
	"v=0",
	"o=0301112223 3747 3747 IN IP4 10.1.10.10",
	"s=secret",
	"i=secret",
	"e=secret",
	"p=secret",
	"c=IN IP4 10.1.10.10",
	"t=0 0",
	"k=base64:secret",
	"a=key-mgmt:mikey secret",
	"m=audio 5004 RTP/SAVP 0 101",
	"a=rtpmap:101 telephone-event/8000",
	"a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:secret|2^20|1:4",
	"a=crypto:secret",
	"a=ice-ufrag:8hhY",
	"a=ice-pwd:secret",
	"a=fingerprint:sha-256 4A:AD:B9",
	"a=acap:1 crypto:1 AES_CM_128_HMAC_SHA1_32 inline:secret",
	"a=x-own:secret",
	"a=sendrecv",
)

func TestWhatIsKeptOfAnInvite(t *testing.T) {
	full := strings.Replace(invite, "0421", bodyLength(invite), 1)
	require.Greater(t, strings.Count(full, "secret"), 15)
	masked := redact(Mask, full)
	assert.NotContains(t, masked, "secret")
	assert.Equal(t, lines(
		"INVITE sip:+49301234xxx:blanked@pbx.example.com:5060;transport=udp;pn-prid=blanked?blanked=yes SIP/2.0",
		"Via: SIP/2.0/UDP 10.1.10.10:5060;branch=z9hG4bK1;rport",
		`From: "[blanked]" <sip:0301112xxx@pbx.example.com>;tag=a1`,
		"t: <tel:+49-30-1234xxx;phone-context=+49xxx>",
		"Call-ID: 7d1@10.1.10.10",
		"CSeq: 2 INVITE",
		`m: <sip:xxx@10.1.10.10:5060>;+sip.instance="<urn:uuid:f81d4fae>";expires=60;x-token=blanked`,
		"Proxy-Authorization: Digest [blanked 65 bytes]",
		"Identity: [blanked 48 bytes]",
		"P-Asserted-Identity: <sip:0301112xxx@pbx.example.com>, <tel:+49301112xxx>",
		"P-Preferred-Identity: <sip:0301112xxx@pbx.example.com>",
		"Remote-Party-ID: <sip:0301112xxx@pbx.example.com>;party=calling;screen=yes",
		"Diversion: <sip:0309998xxx@pbx.example.com>;reason=no-answer;counter=1",
		"History-Info: <sip:0309998xxx@pbx.example.com?blanked=yes>;index=1",
		"Referred-By: <sip:0309998xxx@pbx.example.com>;cid=blanked",
		"X-Auth-Token: [blanked 6 bytes]",
		"Subject: [blanked 6 bytes]",
		"User-Agent: Phone 1.0",
		"Reason: Q.850;cause=16;text=\"call of 03012345xxx\"",
		"Content-Type: application/sdp",
		"Content-Length: "+bodyLength(masked),
		"",
		"v=0",
		"o=0301112xxx 3747 3747 IN IP4 10.1.10.10",
		"s=[blanked 6 bytes]",
		"i=[blanked 6 bytes]",
		"e=[blanked 6 bytes]",
		"p=[blanked 6 bytes]",
		"c=IN IP4 10.1.10.10",
		"t=0 0",
		"k=[blanked 13 bytes]",
		"a=key-mgmt:[blanked 12 bytes]",
		"m=audio 5004 RTP/SAVP 0 101",
		"a=rtpmap:101 telephone-event/8000",
		"a=crypto:1 AES_CM_128_HMAC_SHA1_80 [blanked 22 bytes]",
		"a=crypto:[blanked 6 bytes]",
		"a=ice-ufrag:8hhY",
		"a=ice-pwd:[blanked 6 bytes]",
		"a=fingerprint:sha-256 4A:AD:B9",
		"a=acap:[blanked 48 bytes]",
		"a=x-own:[blanked 6 bytes]",
		"a=sendrecv",
	), masked)

	shown := redact(Show, full)
	assert.NotContains(t, shown, "secret", "the policy is about numbers alone")
	for _, number := range []string{"+49301234567:blanked@", `"Anna Schmidt" <sip:0301112223@`, "<sip:101@",
		"call of 03012345678", "o=0301112223 ", "tel:+49-30-1234567"} {
		assert.Contains(t, shown, number)
	}
	for _, of := range []string{masked, shown} {
		var m message.Message
		assert.Equal(t, message.None, m.Scan([]byte(of)), of)
		assert.Len(t, m.Body, len(m.Raw)-strings.Index(of, "\r\n\r\n")-4)
	}
}

// bodyLength is the length of a message's body as text.
func bodyLength(text string) string {
	_, body, _ := strings.Cut(text, "\r\n\r\n")
	return strconv.Itoa(len(body))
}

// The description that is kept still says what a firewall reads in it.
func TestMediaAreReadAsBefore(t *testing.T) {
	_, before, _ := strings.Cut(invite, "\r\n\r\n")
	_, after, _ := strings.Cut(redact(Mask, strings.Replace(invite, "0421", bodyLength(invite), 1)), "\r\n\r\n")
	var a, b sdp.Description
	require.True(t, a.Read([]byte(before)))
	require.True(t, b.Read([]byte(after)))
	require.Len(t, b.Media, 1)
	assert.Equal(t, a.Media[0].Address, b.Media[0].Address)
	assert.Equal(t, a.Media[0].Port, b.Media[0].Port)
	assert.Equal(t, a.Media[0].Formats, b.Media[0].Formats)
	assert.True(t, b.Media[0].Crypto)
	assert.True(t, b.Media[0].Fingerprint)
}

func TestNumbers(t *testing.T) {
	for _, test := range []struct{ number, want string }{
		{"", ""},
		{"1", "x"},
		{"101", "xxx"},
		{"1001", "1xxx"},
		{"+49301234567", "+49301234xxx"},
		{"+49-30-123-45-67", "+49-30-123-4x-xx"},
		{"alice", "alxxx"},
		{"anna.schmidt", "anna.schmxxx"},
		{"*72#", "*xx#"},
		{"%30%33%30%31", "0xxx"},
		{"a%40b%2Ecd", "a%40x%2Exx"},
		{"müller", "mülxxx"},
		{"anné", "axxxx"},
		{"0301234567;phone-context=+4930", "0301234xxx;phone-context=+4xxx"},
		{"0301234567;isub=12345", "0301234xxx;isub=blanked"},
	} {
		assert.Equal(t, test.want, Number(Mask, test.number), test.number)
		assert.Equal(t, test.number, Number(Show, test.number))
		if !strings.Contains(test.number, "+4930") {
			assert.Equal(t, test.want, Number(Mask, test.want), "masked twice: %s", test.number)
		}
	}
}

func TestURIs(t *testing.T) {
	nowhere := "sip:blanked@blanked.invalid"
	for _, test := range []struct{ uri, want string }{
		{"sip:pbx.example.com", "sip:pbx.example.com"},
		{"SIPS:1001@[2001:db8::1]:5061;lr", "sips:1xxx@[2001:db8::1]:5061;lr"},
		{"sip:0301234567", "sip:0301234xxx"},
		{"sip:1001;x=y@h", "sip:1xxx;x=blanked@h"},
		{"sip:1001@h;maddr=10.1.1.1;secret=y;lr", "sip:1xxx@h;maddr=10.1.1.1;secret=blanked;lr"},
		{"sip:1001:p@ss@h", nowhere},
		{"sip:h?Authorization=a@b", nowhere},
		{"sip:1001@h?Authorization=a@b", "sip:1xxx@h?blanked=yes"},
		{"sip:1001@h i", nowhere},
		{"sip:", nowhere},
		{"1001", nowhere},
		{"", nowhere},
		{"tel:+49301234567", "tel:+49301234xxx"},
		{"tel:1234567;phone-context=example.com", "tel:1234xxx;phone-context=blanked"},
		{"tel:a b", "tel:blanked"},
		{"urn:service:sos.police", "urn:service:sos.police"},
		{"http://example.com/secret?a=b", "http:blanked"},
		{"<sip:a@b>", nowhere},
	} {
		r := Redactor{}
		assert.Equal(t, test.want, string(r.appendURI(nil, []byte(test.uri))), test.uri)
	}
}

func TestHeaders(t *testing.T) {
	const head = "SIP/2.0 401 Unauthorized\r\nVia: SIP/2.0/UDP h;branch=1\r\nFrom: <sip:a@x>;tag=1\r\nTo: <sip:b@x>\r\n" +
		"Call-ID: 1\r\nCSeq: 1 REGISTER\r\n"
	for _, test := range []struct{ header, want string }{
		{`WWW-Authenticate: Digest realm="x", nonce="y"`, "WWW-Authenticate: Digest [blanked 21 bytes]"},
		{"Authorization: secret", "Authorization: [blanked 6 bytes]"},
		{"AUTHORIZATION:bearer secret", "AUTHORIZATION: Bearer [blanked 7 bytes]"},
		{"Proxy-Authorization :\r\n  Basic\r\n secret", "Proxy-Authorization: Basic [blanked 9 bytes]"},
		{"Authentication-Info: nextnonce=\"secret\"", "Authentication-Info: [blanked 18 bytes]"},
		{"y: secret", "y: [blanked 6 bytes]"},
		{"s: secret", "s: [blanked 6 bytes]"},
		{"Contact: *", "Contact: *"},
		{"Contact:", "Contact:"},
		{"Contact: <sip:1001@h", "Contact: <sip:blanked@blanked.invalid>"},
		{"Contact: <sip:1001@h>,\r\n <sip:1002@h>", "Contact: <sip:1xxx@h>, <sip:1xxx@h>"},
		{`Contact: "a, <sip:b>" <sip:1001@h>;q="0;5"`, `Contact: "[blanked]" <sip:1xxx@h>;q="0;5"`},
		{"Contact: <sip:1001@h>;q=a@b;reason=<x>;=y;b c=d;screen;index=\"\\\"\"",
			"Contact: <sip:1xxx@h>;q=blanked;reason=blanked;screen;index=blanked"},
		{"Refer-To: <sip:1001@h?Replaces=a%3Bto-tag%3Db>", "Refer-To: <sip:1xxx@h?blanked=yes>"},
		{"Record-Route: <sip:10.2.10.5;lr;r2=on>", "Record-Route: <sip:10.2.10.5;lr;r2=on>"},
		{"Alert-Info: <http://10.2.10.5/ring.wav>;info=x", "Alert-Info: <http:blanked>;info=blanked"},
		{"Warning: 399 h \"no route to 03012345678\"", "Warning: 399 h \"no route to 03012345xxx\""},
		{"Supported: replaces,\r\n timer", "Supported: replaces, timer"},
		{strings.Repeat("X", 50) + ": secret", strings.Repeat("X", 50) + ": [blanked 6 bytes]"},
	} {
		got := redact(Mask, head+test.header+"\r\n\r\n")
		assert.Equal(t, strings.NewReplacer("sip:a@", "sip:x@", "sip:b@", "sip:x@").Replace(head)+test.want+"\r\n\r\n", got)
	}
}

func TestBodies(t *testing.T) {
	sdpBody := lines("v=0", "c=IN IP4 10.1.10.10", "m=audio 5004 RTP/AVP 0", "a=ice-pwd:secret")
	kept := lines("v=0", "c=IN IP4 10.1.10.10", "m=audio 5004 RTP/AVP 0", "a=ice-pwd:[blanked 6 bytes]")
	for _, test := range []struct{ name, head, body, wantType, want string }{
		{"MESSAGE", "Content-Type: text/plain;charset=utf-8", "secret secret", "text/plain", "[blanked 13 bytes]"},
		{"DTMF", "Content-Type: application/dtmf-relay", "Signal=5\r\nDuration=160\r\n", "application/dtmf-relay",
			"[blanked 24 bytes]"},
		{"DTMF of another kind", "Content-Type: application/dtmf", "5", "application/dtmf", "[blanked 1 bytes]"},
		{"SDP", "Content-Type: application/SDP; charset=x", sdpBody, "application/SDP", kept},
		{"SDP without a type", "X: y", sdpBody, "", kept},
		{"text without a type", "X: y", "secret", "", "[blanked 6 bytes]"},
		{"compressed", "Content-Encoding: gzip\r\nContent-Type: application/sdp", sdpBody, "application/sdp",
			"[blanked 68 bytes]"},
		{"a type that is none", "Content-Type: secret", sdpBody, "blanked/blanked", "[blanked 68 bytes]"},
		{"lines ended by CR, and a line that is none", "Content-Type: application/sdp",
			"v=0\ra=rtpmap:0 PCMU/8000\ra=crypto:1 x inline:secret\nsecret\n\n", "application/sdp",
			lines("v=0", "a=rtpmap:0 PCMU/8000", "a=crypto:[blanked 17 bytes]", "[blanked 6 bytes]")},
		{"keys where they do not belong", "Content-Type: application/sdp",
			lines("v=0", "o=- 1 1 IN IP4 h inline:secret", "c=IN IP4 h inline:secret", "m=audio 1 RTP/AVP 0 MIKEY secret",
				"a=secret", "a=sendonly", "a=ice-lite", "a="+strings.Repeat("secret", 4)+":x",
				"a=crypto:1x AES_CM_128_HMAC_SHA1_80 inline:secret", "a=rtpmap:0 Inline:secret", "A=secret", "o=secret"),
			"application/sdp",
			lines("v=0", "o=[blanked 28 bytes]", "c=[blanked 22 bytes]", "m=[blanked 30 bytes]",
				"a=[blanked 6 bytes]", "a=sendonly", "a=ice-lite", "a=[blanked 26 bytes]",
				"a=crypto:[blanked 40 bytes]", "a=rtpmap:[blanked 15 bytes]", "A=[blanked 6 bytes]", "o=[blanked 6 bytes]")},
		{"multipart", "Content-Type: multipart/mixed; boundary=\"b1\"; x=secret",
			"secret\r\n--b1\r\nContent-Type: application/sdp\r\nX: secret\r\n\r\n" + sdpBody +
				"\r\n--b1\r\nContent-Type: application/isup;version=secret\r\n\r\nsecret\r\n--b1x\r\n--b1\r\n\r\nsecret" +
				"\r\n--b1--\r\nsecret",
			"multipart/mixed;boundary=\"b1\"",
			"--b1\r\nContent-Type: application/sdp\r\n\r\n" + kept +
				"\r\n--b1\r\nContent-Type: application/isup\r\n\r\n[blanked 13 bytes]" +
				"\r\n--b1\r\nContent-Type: text/plain\r\n\r\n[blanked 6 bytes]\r\n--b1--\r\n"},
		{"parts within parts", "Content-Type: multipart/mixed;boundary=a",
			"--a\r\nContent-Type: multipart/alternative;boundary=b\r\n\r\n--b\r\n\r\nsecret\r\n--b\r\n" +
				"Content-Type: application/sdp\r\nContent-Transfer-Encoding: base64\r\n\r\nc2VjcmV0\r\n--b--\r\n--a--",
			"multipart/mixed;boundary=\"a\"",
			"--a\r\nContent-Type: multipart/alternative;boundary=\"b\"\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\n" +
				"[blanked 6 bytes]\r\n--b\r\nContent-Type: application/sdp\r\n\r\n[blanked 8 bytes]\r\n--b--\r\n" +
				"\r\n--a--\r\n"},
		{"multipart without a boundary", "Content-Type: multipart/mixed", "--\r\n" + sdpBody, "multipart/mixed",
			"[blanked 72 bytes]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := lines("INFO sip:b@x SIP/2.0", "Via: SIP/2.0/UDP h", "From: a:b", "To: a:b", "Call-ID: 1", "CSeq: 1 INFO",
				test.head, "") + test.body
			got := redact(Mask, text)
			var m message.Message
			require.Equal(t, message.None, m.Scan([]byte(got)), got)
			assert.Equal(t, test.want, string(m.Body))
			assert.Equal(t, test.wantType, string(m.Header(message.ContentType)))
			assert.Equal(t, bodyLength(got), string(m.Header(message.ContentLength)))
			assert.NotContains(t, got, "secret")
		})
	}
}

func TestOfWhatIsNotReadLessIsKept(t *testing.T) {
	assert.Equal(t, "[keep_alive, blanked 4 bytes]", redact(Mask, "\r\n\r\n"))
	assert.Equal(t, "[keep_alive, blanked 0 bytes]", redact(Mask, ""))
	assert.Equal(t, "[bad_start_line, blanked 10 bytes]", redact(Mask, "secret\r\n\r\n"))
	assert.Equal(t, "[repeated_call_id, blanked 80 bytes]",
		redact(Mask, "BYE sip:a@b SIP/2.0\r\nCall-ID: secret\r\nCall-ID: secret\r\nAuthorization: secret\r\n\r\n"))
	assert.Equal(t, "BYE sip:x@b SIP/2.0\r\nCall-ID: 1\r\n\r\n",
		redact(Mask, "BYE sip:a@b SIP/2.0\r\nsecret\r\nCall-ID: 1\r\n\r\n"), "a line without a colon")
	assert.Equal(t, "BYE sip:x@b SIP/2.0\r\nCall-ID: 1\r\n\r\n",
		redact(Mask, "BYE sip:a@b SIP/2.0\r\nCall-ID: 1\r\nAuthorization: sec"), "a head that is cut off")
	assert.Equal(t, "BYE sip:blanked@blanked.invalid SIP/2.0\r\nCall-ID: 1\r\n\r\n",
		redact(Mask, "BYE sip:a@b secret SIP/2.0\r\nCall-ID: 1\r\n\r\n"), "a URI with blanks")
}

// What grows by its marks stays within the bound of a message.
func TestTheResultIsBounded(t *testing.T) {
	head := lines("INVITE sip:b@x SIP/2.0", "Via: SIP/2.0/UDP h", "From: a:b", "To: a:b", "Call-ID: 1", "CSeq: 1 INVITE")
	body := head + "Content-Type: application/sdp\r\n\r\n" + strings.Repeat("i=ab\n", 13000)
	got := redact(Mask, body)
	assert.Less(t, len(got), 300)
	assert.Contains(t, got, "Content-Length: 21\r\n\r\n[blanked 65000 bytes]")

	got = redact(Mask, head+"Content-Type: text/plain\r\nContact: "+strings.Repeat("a:b,", 10000)+"a:b\r\n\r\n")
	assert.Equal(t, "[too long to keep, blanked 40134 bytes]", got)
}

func TestPolicies(t *testing.T) {
	for _, p := range []Policy{Mask, Show} {
		got, err := ParsePolicy(p.String())
		require.NoError(t, err)
		assert.Equal(t, p, got)
	}
	_, err := ParsePolicy("hide")
	assert.EqualError(t, err, `"hide" is not a privacy policy (allowed mask, show)`)
}

// RFC 4475's messages: one that is read stays one that is read, of the same call and transaction.
func TestTortureMessagesStayReadable(t *testing.T) {
	for name, b := range torture(t) {
		var before, after message.Message
		why := before.Scan(b)
		r := Redactor{}
		text := r.Redact(&before, why)
		if why != message.None {
			continue
		}
		require.Equal(t, message.None.String(), after.Scan(text.Bytes()).String(), "%s:\n%s", name, text)
		assert.Equal(t, before.Method, after.Method, name)
		assert.Equal(t, before.Status, after.Status, name)
		assert.Equal(t, before.CSeq, after.CSeq, name)
		assert.Equal(t, string(before.CallID()), string(after.CallID()), name)
		assert.Len(t, after.Headers(), len(before.Headers())+added(&before, &after), name)
	}
}

// added is one if a Content-Length was added.
func added(before, after *message.Message) int {
	if !before.Has(message.ContentLength) && after.Has(message.ContentLength) {
		return 1
	}
	return 0
}

func torture(t testing.TB) map[string][]byte {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/emiago/sipgo").Output()
	require.NoError(t, err)
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "sip/testdata/torture/*/*.dat"))
	require.NoError(t, err)
	all := map[string][]byte{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		all[strings.TrimSuffix(filepath.Base(f), ".dat")] = b
	}
	require.Len(t, all, 50)
	return all
}

func TestCloneOutlivesTheRedactor(t *testing.T) {
	var m message.Message
	r := Redactor{}
	why := m.Scan([]byte("\r\n"))
	kept := r.Redact(&m, why).Clone()
	why = m.Scan([]byte("x\r\n"))
	r.Redact(&m, why)
	assert.Equal(t, "[keep_alive, blanked 2 bytes]", kept.String())
	assert.Equal(t, 29, kept.Len())
}

func BenchmarkRedact(b *testing.B) {
	var m message.Message
	text := []byte(strings.Replace(invite, "0421", bodyLength(invite), 1))
	why := m.Scan(text)
	r := Redactor{}
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		r.Redact(&m, why)
	}
}

// key is what must not be kept. The fuzzer does not know it, so it can only be in the output if it was carried
// there from one of its places.
const key = "WVNfX19zZW1jdGwgKCkgewkyMjA7fQp9CnVubGVz"

// places are where keys and credentials are, in the head and in the body; `%` is what the fuzzer chooses.
var places = []struct{ head, body string }{
	{head: "Authorization: %" + key},
	{head: "Proxy-Authorization:%" + key + "%"},
	{head: "authorization : Digest response=\"%" + key + "\""},
	{head: "Identity: %" + key},
	{head: "y: " + key + "%"},
	{head: "X-Own: %" + key},
	{head: "WWW-Authenticate: Digest %" + key},
	{head: "Contact: <sip:a:" + key + "@b>%"},
	{head: "Contact: <sip:a@b?%Authorization=" + key + ">"},
	{head: "Contact: <sip:a@b;pn-prid=" + key + "%>"},
	{body: "a=crypto:% inline:" + key + "|2^20%"},
	{body: "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:%" + key},
	{body: "a=acap:1 crypto:%" + key},
	{body: "a=key-mgmt:mikey " + key + "%"},
	{body: "k=%" + key},
	{body: "a=ice-pwd:" + key},
	{body: "a=%:" + key}, // an attribute of any other name than those that are kept
	{body: "i=%" + key},
	{body: "%" + key}, // a line of no kind
}

func FuzzNoKeyIsKept(f *testing.F) {
	for i := range places {
		f.Add(uint8(i), []byte("Subject: x\r\n"), []byte(" "), []byte("m=audio 1 RTP/AVP 0\r\n"), i%2 == 0)
		f.Add(uint8(i), []byte("Content-Type: application/sdp\r\n"), []byte("1 "), []byte("v=0\r\n"), i%2 == 1)
		f.Add(uint8(i), []byte("Content-Type: multipart/mixed;boundary=b\r\n"), []byte("1"),
			[]byte("--b\r\nContent-Type: application/sdp\r\n\r\n"), false)
	}
	f.Fuzz(func(t *testing.T, place uint8, head, inside, body []byte, show bool) {
		p := places[int(place)%len(places)]
		if bytes.Contains(head, []byte(key[:8])) || bytes.ContainsAny(inside, "\r\n\"<>") {
			t.Skip()
		}
		name := string(bytes.ToLower(bytes.TrimSpace(inside)))
		if keptAttributes[name] || keptAttributes[strings.TrimSpace(strings.SplitN(name, ":", 2)[0])] {
			t.Skip()
		}
		fill := func(text string) string { return strings.ReplaceAll(text, "%", string(inside)) }
		if p.body != "" && bytes.ContainsAny(inside, "=:") {
			t.Skip() // it could make a line that is kept
		}
		text := "INVITE sip:b@x SIP/2.0\r\nVia: SIP/2.0/UDP h\r\nFrom: <sip:a@x>;tag=1\r\nTo: <sip:b@x>\r\nCall-ID: 1\r\n" +
			"CSeq: 1 INVITE\r\n" + fill(p.head) + "\r\n" + strings.TrimRight(string(head), "\r\n") + "\r\n\r\n" +
			string(body) + "\r\n" + fill(p.body) + "\r\n"
		if p.head == "" {
			text = strings.Replace(text, "CSeq: 1 INVITE\r\n\r\n", "CSeq: 1 INVITE\r\n", 1)
		}

		var m, again message.Message
		why := m.Scan([]byte(text))
		r := Redactor{}
		if show {
			r.Policy = Show
		}
		kept := r.Redact(&m, why)
		assert.NotContains(t, kept.String(), key, text)
		assert.LessOrEqual(t, kept.Len(), message.MaxSize)
		if why == message.None && !strings.HasPrefix(kept.String(), "[too long") {
			assert.Equal(t, message.None.String(), again.Scan(kept.Bytes()).String(), "%s\n%s", text, kept)
			assert.Equal(t, string(m.CallID()), string(again.CallID()))
		}
	})
}

// FuzzRedact takes anything at all.
func FuzzRedact(f *testing.F) {
	for _, b := range torture(f) {
		f.Add(b)
	}
	f.Add([]byte(invite))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m, again message.Message
		why := m.Scan(b)
		r := Redactor{}
		kept := r.Redact(&m, why)
		assert.LessOrEqual(t, kept.Len(), message.MaxSize)
		if why == message.None && !strings.HasPrefix(kept.String(), "[too long") {
			require.Equal(t, message.None.String(), again.Scan(kept.Bytes()).String(), "%q\n%q", b, kept)
		}
	})
}

func TestRedactAllocatesNothing(t *testing.T) {
	var m message.Message
	why := m.Scan([]byte(strings.Replace(invite, "0421", bodyLength(invite), 1)))
	r := Redactor{}
	r.Redact(&m, why)
	assert.Zero(t, testing.AllocsPerRun(100, func() { r.Redact(&m, why) }))
}
