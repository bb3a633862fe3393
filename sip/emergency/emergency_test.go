package emergency

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/message"
)

func set(t *testing.T, prefixes ...string) *Set {
	t.Helper()
	s, err := New(nil, prefixes)
	require.NoError(t, err)
	return s
}

func TestURIs(t *testing.T) {
	s := set(t, "0", "9", "*31#", "+49", "+1")
	for _, uri := range []string{
		"urn:service:sos", "URN:Service:SOS", "urn:service:sos.police", "urn:service:sos.Fire",
		"sip:urn%3aservice%3Asos@pbx.example.com",
		"tel:112", "TEL:911", "tel:1-1-2", "tel:(112)", "tel:112;phone-context=+49", "tel:110;phone-context=example.com",
		"tel:+112", "tel:+49112", "tel:+49-112", "tel:+1911;x=y", "tel:+1(911)",
		"sip:112@pbx.example.com", "sips:112@10.2.10.5:5061;transport=tls", "sip:112", "sip:112;x", "SIP:999@x",
		"sip:112;phone-context=+49@example.com;user=phone", "sip:+49112@example.com;user=phone",
		"sip:112:secret@example.com", "sip:%31%31%32@x", "sip:1%2D1-2@x", "sip:1.1.0@x;user=phone", "sip:112@x:99999",
		"sip:112%3Bphone-context%3D%2B49@example.com", "sip:911@[2001:db8::5]:5060", "sip:000@x", "sip:933@x",
		// Behind a prefix.
		"sip:0112@x", "sip:9911@x", "sip:0000@x", "sip:*31#112@x", "sip:%2A31%23112@x", "tel:0-110",
	} {
		assert.True(t, s.URI([]byte(uri)), uri)
	}
	for _, uri := range []string{
		"", "112", "urn:service:sosa", "urn:service:test.sos", "urn:service:counseling", "urn:nena:service:sos",
		"tel:1120", "tel:0711112", "tel:11", "sip:1112@x", "sip:112a@x", "sip:a112@x", "sip:11@x", "sip:99112@x",
		"sip:00112@x", "sip:x@112.example.com", "sip:1.1.0.0", "sip:pbx.example.com", "http://112", "sip:0@x", "sip:9@x",
		"sip:%1@x", "sip:%@x", "tel:+44112", "sip:;112@x",
	} {
		assert.False(t, s.URI([]byte(uri)), uri)
	}
}

// Case 35: rules and prefixes must not hide a number that is an emergency number as it was dialled.
func TestTheNumberAsDialledIsLookedAtFirst(t *testing.T) {
	s := set(t, "9", "99", "1", "11")
	for _, number := range []string{"911", "999", "112", "110", "9911", "99911", "1112"} {
		assert.True(t, s.URI([]byte("sip:"+number+"@x")), number)
	}
	assert.False(t, s.URI([]byte("sip:11@x")), "what a rule that takes off the 9 makes of 911")
	assert.False(t, set(t).URI([]byte("sip:9911@x")), "without prefixes, the match is exact")
	assert.False(t, s.URI([]byte("sip:999112@x")), "one prefix is removed, not several")
}

func TestOwnNumbers(t *testing.T) {
	s, err := New([]string{"15", "+498912345", "112"}, []string{"0"})
	require.NoError(t, err)
	for uri, want := range map[string]bool{
		"tel:15": true, "sip:015@x": true, "tel:+49-89-12345": true, "sip:112@x": true,
		"sip:911@x": false, "sip:1.5.0.0": false, "urn:service:sos": true,
	} {
		assert.Equal(t, want, s.URI([]byte(uri)), uri)
	}
}

func TestWhatCannotBeDialled(t *testing.T) {
	_, err := New([]string{"112", "1x2", "", "1", "1234567890123456", "+"}, []string{"0", "", "9x", "123456789", "++1"})
	assert.EqualError(t, err, strings.Join([]string{
		number("1x2"), number(""), number("1"), number("1234567890123456"), number("+"),
		prefix(""), prefix("9x"), prefix("123456789"), prefix("++1"),
	}, "\n"))
	_, err = New(make([]string, 65), nil)
	assert.ErrorContains(t, err, "65 emergency numbers and 0 prefixes (allowed: up to 64 and 16)")
}

func number(s string) string {
	return fmt.Sprintf("emergency number %q cannot be dialled (allowed: 2 to 15 digits, with a + before them if it is"+
		" international)", s)
}

func prefix(s string) string {
	return fmt.Sprintf("prefix %q of emergency numbers cannot be dialled (allowed: 1 to 8 of 0-9, * and #, with a +"+
		" before them if it is a country code)", s)
}

func scan(t *testing.T, start, to, more string) *message.Message {
	t.Helper()
	method, _, _ := strings.Cut(start, " ")
	m := new(message.Message)
	require.Equal(t, message.None, m.Scan([]byte(start+" SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\n"+
		"From: <sip:a@x>;tag=1\r\nTo: "+to+"\r\nCall-ID: 1\r\nCSeq: 1 "+method+"\r\n"+more+"\r\n")))
	return m
}

func TestSigns(t *testing.T) {
	s := set(t, "9")
	for _, test := range []struct {
		start, to, more string
		want            Sign
	}{
		{"INVITE sip:112@pbx", "<sip:112@pbx>", "", Dialled},
		{"INVITE urn:service:sos", "<urn:service:sos>", "Route: <sip:pbx;lr>\r\n", Dialled},
		{"INVITE sip:psap@10.2.10.5", `"Emergency" <tel:112>;x=y`, "", To},
		{"INVITE sip:11@trunk", "sip:911@pbx", "", To}, // case 35
		{"INVITE sip:202@10.1.10.10", "<sip:202@x>", "Priority: psap-callback\r\n", Callback},
		{"INVITE sip:202@10.1.10.10", "<sip:202@x>", "Priority: normal\r\npriority:\r\n PSAP-Callback\r\n", Callback},
		{"INVITE sip:202@10.1.10.10", "<sip:202@x>", "Priority: emergency\r\n", None},
		{"INVITE sip:202@pbx", `"112" <sip:202@x>`, "", None},
		{"BYE sip:112@pbx", "<sip:112@pbx>;tag=2", "", None},
		{"REGISTER sip:112", "<sip:112@pbx>", "", None},
		{"MESSAGE sip:112@pbx", "<sip:112@pbx>", "", None},
	} {
		m := scan(t, test.start, test.to, test.more)
		assert.Equal(t, test.want.String(), s.Sign(m).String(), test.start+" "+test.to)
		assert.Equal(t, test.want != None, s.Call(m), test.start)
	}
	var m message.Message
	require.Equal(t, message.None, m.Scan([]byte("SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\n"+
		"From: <sip:a@x>;tag=1\r\nTo: <sip:112@x>;tag=2\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\n\r\n")))
	assert.False(t, s.Call(&m), "a response")
}

func FuzzURI(f *testing.F) {
	for _, seed := range []string{
		"sip:112@x", "tel:+49112;phone-context=+49", "urn:service:sos.fire", "sip:%31%312@[::1]:5",
	} {
		f.Add([]byte(seed))
	}
	s, err := New(nil, []string{"0", "+49"})
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, b []byte) {
		if s.URI(b) && !strings.Contains(strings.ToLower(string(b)), "sos") {
			// What is recognised has the digits of a number in it, escaped or not.
			digits := strings.Map(func(r rune) rune {
				if r >= '0' && r <= '9' {
					return r
				}
				return -1
			}, string(unescape(b)))
			require.GreaterOrEqual(t, len(digits), 3, "%q", b)
		}
	})
}
