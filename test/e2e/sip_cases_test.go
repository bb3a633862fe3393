package e2e

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
)

// Calls as peers in the field make them, message by message through two boxes that read them: each message arrives byte
// for byte, and after each of them the holes of both boxes are what its call needs, and nothing else.
func TestCallsOfTheField(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	_, err := l.Pair(lab.Ringway).SecondPC(t.Context(), lab.PCB)
	require.NoError(t, err)
	ends := map[string]net.PacketConn{
		"a": udpOn(t, l.Host(lab.PhoneA), fieldA+":5060"), "b": udpOn(t, l.Host(lab.PhoneB), fieldB+":5060"),
		"p": udpOn(t, l.Host(lab.PCB), pbxAt+":5060"), "q": udpOn(t, l.Host(lab.PCB), fieldQ+":5060"),
	}
	for i, c := range fieldCases {
		t.Run(c.name, func(t *testing.T) {
			f := &field{t: t, l: l, ends: ends, id: fmt.Sprintf("field%d", i)}
			c.run(f)
			holesSettle(t, l.Edge("a"), 0)
			holesSettle(t, l.Edge("b"), 0)
		})
	}
}

// Two phones, two more addresses in the far LAN that only descriptions name, and a second server beside pbxAt.
const (
	fieldA = "10.1.10.10"
	fieldB = "10.2.10.10"
	fieldX = "10.2.10.31"
	fieldY = "10.2.10.44"
	fieldQ = "10.2.20.11"
)

// field is one call between a phone of either branch.
type field struct {
	t    *testing.T
	l    *lab.Lab
	ends map[string]net.PacketConn
	id   string // its Call-ID
	far  string // the end that is called b in messages: the phone, unless it is p or q, a server beside it
}

// farEnd is what b is now.
func (f *field) farEnd() (end, address string) {
	end = cmp.Or(f.far, "b")
	return end, map[string]string{"b": fieldB, "p": pbxAt, "q": fieldQ}[end]
}

// said is a message. The zero value of what is not set is the usual.
type said struct {
	by, asker string // a or b; who sends it, and who sent the request: by, or the other end for a response
	start     string // a method, or a status with its reason
	of        string // the method that a response is to: INVITE
	cseq      int    // 1
	caller    string // a
	tag       string // the callee's
	branch    string // its own for each request
	callID    string // of another call
	uri, to   string // of a request to b, and who it is for: sip:ben@ and b's address
	more      []string
	body      string
}

func (m said) isRequest() bool { return m.start[0] > '9' }

// text is the message on the wire.
func (f *field) text(m said) string {
	if m.asker == "" {
		m.asker = m.by
		if !m.isRequest() {
			m.asker = map[string]string{"a": "b", "b": "a"}[m.by]
		}
	}
	if m.of == "" {
		m.of = "INVITE"
	}
	if m.callID == "" {
		m.callID = f.id
	}
	m.cseq = max(m.cseq, 1)
	ben := cmp.Or(m.to, "sip:ben@"+fieldB)
	start := "SIP/2.0 " + m.start
	if m.isRequest() {
		m.of = m.start
		start = m.start + " " + map[string]string{"a": cmp.Or(m.uri, ben), "b": "sip:anna@" + fieldA}[m.by] + " SIP/2.0"
	}
	if m.branch == "" {
		m.branch = fmt.Sprintf("%s-%d-%s", m.callID, m.cseq, strings.Replace(m.of, "CANCEL", "INVITE", 1))
	}
	a, b := "<sip:anna@"+fieldA+">", "<"+ben+">"
	called := &b
	if m.caller == "b" {
		b, called = b+";tag=caller", &a
	} else {
		a += ";tag=caller"
	}
	if m.tag != "" {
		*called += ";tag=" + m.tag
	}
	at := fieldA
	if m.asker == "b" {
		a, b = b, a
		_, at = f.farEnd()
	}
	lines := append([]string{
		start, "Via: SIP/2.0/UDP " + at + ":5060;branch=z9hG4bK" + m.branch, "From: " + a, "To: " + b,
		"Call-ID: " + m.callID, fmt.Sprintf("CSeq: %d %s", m.cseq, m.of), "Max-Forwards: 70",
	}, m.more...)
	if m.body != "" && !slices.ContainsFunc(m.more, func(h string) bool { return strings.HasPrefix(h, "Content-Type") }) {
		lines = append(lines, "Content-Type: application/sdp")
	}
	return sip(m.body, lines...)
}

// say has a message go by, and demands that it arrives as it is, and that the boxes have these holes then.
func (f *field) say(m said, holes string) {
	f.t.Helper()
	f.pass(m.by, f.text(m), holes)
}

// pass is say with the text of the message.
func (f *field) pass(by, text, holes string) {
	f.t.Helper()
	far, _ := f.farEnd()
	by, to := map[string]string{"a": "a", "b": far}[by], map[string]string{"a": far, "b": "a"}[by]
	_, err := f.ends[by].WriteTo([]byte(text), f.ends[to].LocalAddr())
	require.NoError(f.t, err)
	require.NoError(f.t, f.ends[to].SetReadDeadline(time.Now().Add(5*time.Second)))
	got := make([]byte, 1<<16)
	n, from, err := f.ends[to].ReadFrom(got)
	require.NoError(f.t, err, "the message did not arrive: %s", text)
	require.Equal(f.t, text, string(got[:n]))
	require.Equal(f.t, f.ends[by].LocalAddr().String(), from.String(), "from the sender's own address and port")
	f.has(text, holes)
}

// has demands that both boxes come to have these holes: "A>X:7000+" is from a's address to X's port 7000 and to the
// port after it, "*>A:4000" from any address of the networks that lie beyond the tunnel from A.
func (f *field) has(after, holes string) {
	f.t.Helper()
	if holes == "?" {
		return
	}
	want := expandHoles(f.t, holes)
	for _, side := range []string{"a", "b"} {
		var got []string
		if !polled(4*time.Second, func() bool {
			got = holesOf(f.t, f.l.Edge(side))
			return slices.Equal(want, got)
		}) {
			first, _, _ := strings.Cut(after, "\r\n")
			require.Equal(f.t, want, got, "edge-%s after %s", side, first)
		}
	}
}

func expandHoles(t *testing.T, holes string) (all []string) {
	t.Helper()
	addresses := map[string][]string{
		"A": {fieldA}, "B": {fieldB}, "X": {fieldX}, "Y": {fieldY}, "P": {pbxAt}, "Q": {fieldQ},
		"*A": {"10.2.10.0", "10.2.20.0"}, "*B": {"10.1.10.0", "10.1.20.0"}, "*X": {"10.1.10.0", "10.1.20.0"},
		"*P": {"10.1.10.0", "10.1.20.0"},
	}
	for _, h := range strings.Fields(holes) {
		from, to, _ := strings.Cut(h, ">")
		to, text, _ := strings.Cut(to, ":")
		text, both := strings.CutSuffix(text, "+")
		port, err := strconv.Atoi(text)
		require.NoError(t, err, h)
		if from == "*" {
			from += to
		}
		for _, source := range addresses[from] {
			all = append(all, fmt.Sprintf("%s . %s . %d", source, addresses[to][0], port))
			if both {
				all = append(all, fmt.Sprintf("%s . %s . %d", source, addresses[to][0], port+1))
			}
		}
	}
	slices.Sort(all)
	return all
}

// mediaLines is the description of an end at an address, with these media.
func mediaLines(address string, lines ...string) string {
	return fmt.Sprintf("v=0\r\no=- 1 1 IN IP4 %[1]s\r\ns=-\r\nc=IN IP4 %[1]s\r\nt=0 0\r\n", address) +
		strings.Join(lines, "\r\n") + "\r\n"
}

// audio is a description of sound in G.711.
func audio(address string, port int, more ...string) string {
	return mediaLines(address, append([]string{fmt.Sprintf("m=audio %d RTP/AVP 8", port)}, more...)...)
}

// up sets a call up between A:40000 and X:7000.
func (f *field) up() (holes string) {
	f.t.Helper()
	holes = "A>X:7000+ X>A:40000+"
	f.say(said{by: "a", start: "INVITE", body: audio(fieldA, 40000)}, "*>A:40000+")
	f.say(said{by: "b", start: "200 OK", tag: "tb", body: audio(fieldX, 7000)}, holes)
	f.ack(1, "tb", holes)
	return holes
}

func (f *field) ack(cseq int, tag, holes string) {
	f.t.Helper()
	f.say(said{by: "a", start: "ACK", cseq: cseq, tag: tag, branch: fmt.Sprintf("%s-%d-ACK", f.id, cseq)}, holes)
}

// down ends the call.
func (f *field) down(tag string) {
	f.t.Helper()
	f.say(said{by: "a", start: "BYE", cseq: 90, tag: tag}, "?")
	f.say(said{by: "b", start: "200 OK", of: "BYE", cseq: 90, tag: tag}, "")
}

var fieldCases = []struct {
	name string
	run  func(f *field)
}{
	{"short names of header fields, a blank before the colon", func(f *field) {
		body := audio(fieldA, 40000)
		f.pass("a", strings.Join([]string{
			"INVITE sip:ben@" + fieldB + " SIP/2.0", "v: SIP/2.0/UDP " + fieldA + ":5060;branch=z9hG4bK" + f.id + "-1-INVITE",
			"f: <sip:anna@" + fieldA + ">;tag=caller", "t: <sip:ben@" + fieldB + ">", "i: " + f.id, "CSeq: 1 INVITE",
			"m: <sip:anna@" + fieldA + ">", "c: application/sdp", fmt.Sprintf("l : %d", len(body)), "", "",
		}, "\r\n")+body, "*>A:40000+")
		f.say(said{by: "b", start: "200 OK", tag: "tb", body: audio(fieldX, 7000)}, "A>X:7000+ X>A:40000+")
		f.ack(1, "tb", "A>X:7000+ X>A:40000+")
		f.down("tb")
	}},
	{"a description beside another part, and in a multipart body", func(f *field) {
		part := func(kind, body string) string { return "--cut\r\nContent-Type: " + kind + "\r\n\r\n" + body + "\r\n" }
		f.say(said{
			by: "a", start: "INVITE", more: []string{`Content-Type: multipart/mixed;boundary="cut"`},
			body: part("application/ISUP;version=x", "\x01\x10\x60\x01") + part("application/sdp", audio(fieldA, 40000)) +
				part("application/pidf+xml", "<presence/>") + "--cut--\r\n",
		}, "*>A:40000+")
		f.say(said{by: "b", start: "486 Busy Here", tag: "tb"}, "")
		f.ack(1, "tb", "")
	}},
	{"two sessions in one body", func(f *field) {
		f.say(said{by: "a", start: "INVITE", body: audio(fieldA, 40000) + audio(fieldA, 41000)}, "*>A:40000+ *>A:41000+")
		f.say(said{by: "b", start: "486 Busy Here", tag: "tb"}, "")
		f.ack(1, "tb", "")
	}},
	{"the 200 offers and the ACK answers", func(f *field) {
		f.say(said{by: "a", start: "INVITE"}, "")
		f.say(said{by: "b", start: "180 Ringing", tag: "tb"}, "")
		f.say(said{by: "b", start: "200 OK", tag: "tb", body: audio(fieldX, 7000)}, "*>X:7000+")
		f.say(said{by: "a", start: "ACK", tag: "tb", branch: f.id + "-1-ACK", body: audio(fieldA, 40000)},
			"A>X:7000+ X>A:40000+")
		f.down("tb")
	}},
	{"a fork: two phones answer, one is accepted", func(f *field) {
		f.say(said{by: "a", start: "INVITE", body: audio(fieldA, 40000)}, "*>A:40000+")
		f.say(said{by: "b", start: "183 Session Progress", tag: "tx", body: audio(fieldX, 7000)}, "A>X:7000+ X>A:40000+")
		f.say(said{by: "b", start: "183 Session Progress", tag: "ty", body: audio(fieldY, 7100)},
			"A>X:7000+ X>A:40000+ A>Y:7100+ Y>A:40000+")
		f.say(said{by: "b", start: "200 OK", tag: "ty", body: audio(fieldY, 7100)}, "A>Y:7100+ Y>A:40000+")
		f.ack(1, "ty", "A>Y:7100+ Y>A:40000+")
		f.down("ty")
	}},
	{"the 200 describes another address than the 183 did", func(f *field) {
		f.say(said{by: "a", start: "INVITE", body: audio(fieldA, 40000)}, "*>A:40000+")
		f.say(said{by: "b", start: "183 Session Progress", tag: "tb", body: audio(fieldX, 7000)}, "A>X:7000+ X>A:40000+")
		f.say(said{by: "b", start: "200 OK", tag: "tb", body: audio(fieldX, 7200)}, "A>X:7000+ A>X:7200+ X>A:40000+")
		f.ack(1, "tb", "A>X:7200+ X>A:40000+")
		f.down("tb")
	}},
	{"the last line has no end", func(f *field) {
		f.say(said{
			by: "a", start: "INVITE", body: strings.TrimSuffix(audio(fieldA, 40000, "a=sendonly"), "\r\n"),
		}, "*>A:40001")
		f.say(said{by: "b", start: "200 OK", tag: "tb", body: audio(fieldX, 7000, "a=recvonly")}, "A>X:7000+ X>A:40001")
		f.ack(1, "tb", "A>X:7000+ X>A:40001")
		f.down("tb")
	}},
	{"on hold with the address 0.0.0.0, and back", func(f *field) {
		holes := f.up()
		f.say(said{by: "a", start: "INVITE", cseq: 2, tag: "tb", body: audio("0.0.0.0", 40000)}, "?")
		f.say(said{by: "b", start: "200 OK", cseq: 2, tag: "tb", body: audio(fieldX, 7000, "a=inactive")}, "?")
		f.ack(2, "tb", "A>X:7001 X>A:40001")
		f.say(said{by: "a", start: "INVITE", cseq: 3, tag: "tb", body: audio(fieldA, 40000)}, "?")
		f.say(said{by: "b", start: "200 OK", cseq: 3, tag: "tb", body: audio(fieldX, 7000)}, holes)
		f.ack(3, "tb", holes)
		f.down("tb")
	}},
	{"re-INVITEs that cross", func(f *field) {
		holes := f.up()
		f.say(said{by: "a", start: "INVITE", cseq: 2, tag: "tb", body: audio(fieldA, 40000)}, "?")
		f.say(said{by: "b", start: "INVITE", cseq: 2, tag: "tb", branch: "b2", body: audio(fieldX, 7000)}, "?")
		f.say(said{by: "b", start: "491 Request Pending", cseq: 2, tag: "tb"}, "?")
		f.say(said{by: "a", start: "491 Request Pending", cseq: 2, tag: "tb", branch: "b2"}, "?")
		f.say(said{by: "a", start: "ACK", cseq: 2, tag: "tb", branch: f.id + "-2-INVITE"}, "?")
		f.say(said{by: "b", start: "ACK", cseq: 2, tag: "tb", branch: "b2"}, holes)
		f.say(said{by: "a", start: "INVITE", cseq: 3, tag: "tb", body: audio(fieldA, 40000)}, "?")
		f.say(said{by: "b", start: "200 OK", cseq: 3, tag: "tb", body: audio(fieldX, 7000)}, holes)
		f.ack(3, "tb", holes)
		f.down("tb")
	}},
	{"a re-INVITE moves a port", func(f *field) {
		holes := f.up()
		f.say(said{by: "a", start: "INVITE", cseq: 2, tag: "tb", body: audio(fieldA, 25446)}, holes+" *>A:25446+")
		f.say(said{by: "b", start: "200 OK", cseq: 2, tag: "tb", body: audio(fieldX, 7000)}, holes+" X>A:25446+")
		f.ack(2, "tb", "A>X:7000+ X>A:25446+")
		f.down("tb")
	}},
	{"a re-INVITE is refused", func(f *field) {
		holes := f.up()
		f.say(said{by: "a", start: "INVITE", cseq: 2, tag: "tb", body: audio(fieldA, 42000)}, holes+" *>A:42000+")
		f.say(said{by: "b", start: "488 Not Acceptable Here", cseq: 2, tag: "tb"}, holes)
		f.say(said{by: "a", start: "ACK", cseq: 2, tag: "tb"}, holes)
		f.down("tb")
	}},
	{"sound and fax offered, fax alone accepted", func(f *field) {
		f.say(said{
			by: "a", start: "INVITE",
			body: mediaLines(fieldA, "m=audio 40000 RTP/AVP 8", "m=image 41000 udptl t38"),
		}, "*>A:40000+ *>A:41000")
		f.say(said{
			by: "b", start: "200 OK", tag: "tb", body: mediaLines(fieldX, "m=audio 0 RTP/AVP 8", "m=image 7100 udptl t38"),
		}, "A>X:7100 X>A:41000")
		f.ack(1, "tb", "A>X:7100 X>A:41000")
		f.down("tb")
	}},
	{"a medium over TCP needs no hole", func(f *field) {
		f.say(said{
			by: "a", start: "INVITE",
			body: mediaLines(fieldA, "m=audio 40000 RTP/AVP 8", "m=message 7654 TCP/MSRP *", "m=image 41000 tcp t38"),
		}, "*>A:40000+")
		f.say(said{
			by: "b", start: "200 OK", tag: "tb",
			body: mediaLines(fieldX, "m=audio 7000 RTP/AVP 8", "m=message 7654 TCP/MSRP *", "m=image 0 tcp t38"),
		}, "A>X:7000+ X>A:40000+")
		f.ack(1, "tb", "A>X:7000+ X>A:40000+")
		f.down("tb")
	}},
	{"port 0 offered without an address, and answered", func(f *field) {
		offer := "v=0\r\no=- 1 1 IN IP4 " + fieldA + "\r\ns=-\r\nt=0 0\r\nm=audio 0 RTP/AVP 8\r\n" +
			"m=audio 40000 RTP/AVP 8\r\nc=IN IP4 " + fieldA + "\r\n"
		f.say(said{by: "a", start: "INVITE", body: offer}, "*>A:40000+")
		f.say(said{
			by: "b", start: "200 OK", tag: "tb", body: mediaLines(fieldX, "m=audio 7000 RTP/AVP 8", "m=audio 7200 RTP/AVP 8"),
		}, "A>X:7200+ X>A:40000+")
		f.ack(1, "tb", "A>X:7200+ X>A:40000+")
		f.down("tb")
	}},
	{"RTCP on RTP's port, if the answer says so", func(f *field) {
		f.say(said{by: "a", start: "INVITE", body: audio(fieldA, 40000, "a=rtcp-mux", "a=rtcp:41001")},
			"*>A:40000 *>A:41001")
		f.say(said{by: "b", start: "183 Session Progress", tag: "tx", body: audio(fieldX, 7000, "a=rtcp-mux")},
			"A>X:7000 X>A:40000")
		f.say(said{by: "b", start: "183 Session Progress", tag: "ty", body: audio(fieldY, 7100)},
			"A>X:7000 X>A:40000 A>Y:7100+ Y>A:40000 Y>A:41001")
		f.say(said{by: "b", start: "200 OK", tag: "ty", body: audio(fieldY, 7100)}, "A>Y:7100+ Y>A:40000 Y>A:41001")
		f.ack(1, "ty", "A>Y:7100+ Y>A:40000 Y>A:41001")
		f.down("ty")
	}},
	{"received with and without brackets", func(f *field) {
		f.say(said{
			by: "a", start: "INVITE", body: audio(fieldA, 40000), more: []string{
				"Via: SIP/2.0/UDP [2001:db8::1];received=[2001:db8::9];branch=z9hG4bKq1",
				"Via: SIP/2.0/UDP [2001:db8::1];received=2001:db8::9;branch=z9hG4bKq2",
			},
		}, "*>A:40000+")
		f.say(said{by: "b", start: "486 Busy Here", tag: "tb"}, "")
		f.ack(1, "tb", "")
	}},
	{"a header field of 4 KB, a token of 2 KB, a Call-ID of 130 bytes, over UDP", func(f *field) {
		f.id = strings.Repeat("c", 130)
		f.say(said{
			by: "a", start: "INVITE", body: audio(fieldA, 40000),
			more: []string{"X-Long: " + strings.Repeat("long ", 800), "P-Token: " + strings.Repeat("t", 2048)},
		}, "*>A:40000+")
		f.say(said{by: "b", start: "200 OK", tag: strings.Repeat("b", 200), body: audio(fieldX, 7000)},
			"A>X:7000+ X>A:40000+")
		f.ack(1, strings.Repeat("b", 200), "A>X:7000+ X>A:40000+")
		f.down(strings.Repeat("b", 200))
	}},
	{"a transfer: the new call stays when the old one ends", func(f *field) {
		holes := f.up()
		f.say(said{by: "a", start: "REFER", cseq: 2, tag: "tb", more: []string{"Refer-To: <sip:carl@" + fieldB + ">"}}, holes)
		f.say(said{by: "b", start: "202 Accepted", of: "REFER", cseq: 2, tag: "tb"}, holes)
		both := holes + " B>A:43000+ A>B:9000+"
		replaces := []string{"Replaces: " + f.id + ";to-tag=caller;from-tag=tb"}
		f.say(said{
			by: "b", start: "INVITE", caller: "b", callID: f.id + "-new", more: replaces, body: audio(fieldB, 9000),
		}, holes+" *>B:9000+")
		f.say(said{
			by: "a", start: "200 OK", caller: "b", callID: f.id + "-new", tag: "tc", body: audio(fieldA, 43000),
		}, both)
		f.say(said{by: "b", start: "ACK", caller: "b", callID: f.id + "-new", tag: "tc", branch: "new-ack"}, both)
		f.say(said{by: "a", start: "BYE", cseq: 3, tag: "tb"}, both)
		f.say(said{by: "b", start: "200 OK", of: "BYE", cseq: 3, tag: "tb"}, "B>A:43000+ A>B:9000+")
		f.say(said{by: "b", start: "BYE", caller: "b", callID: f.id + "-new", cseq: 2, tag: "tc"}, "B>A:43000+ A>B:9000+")
		f.say(said{by: "a", start: "200 OK", of: "BYE", caller: "b", callID: f.id + "-new", cseq: 2, tag: "tc"}, "")
	}},
	{"a description with bare line feeds", func(f *field) {
		f.say(said{by: "a", start: "INVITE", body: strings.ReplaceAll(audio(fieldA, 40000), "\r\n", "\n")}, "*>A:40000+")
		f.say(said{by: "b", start: "486 Busy Here", tag: "tb"}, "")
		f.ack(1, "tb", "")
	}},
	{"a blank after the version", func(f *field) {
		before := callsStatus(f.t, f.l.Edge("a")).Unread["loose_start_line"]
		text := f.text(said{by: "a", start: "INVITE", body: audio(fieldA, 40000)})
		f.pass("a", strings.Replace(text, "SIP/2.0\r\n", "SIP/2.0 \r\n", 1), "")
		assert.Equal(f.t, before+1, callsStatus(f.t, f.l.Edge("a")).Unread["loose_start_line"])
	}},
	{"addresses in candidates alone", func(f *field) {
		candidates := func(address string, port int) string {
			return mediaLines(address, "m=audio 9 RTP/AVP 8",
				fmt.Sprintf("a=candidate:1 1 UDP 2130706431 %s %d typ host", address, port),
				fmt.Sprintf("a=candidate:1 2 UDP 2130706430 %s %d typ host", address, port+1),
				"a=candidate:2 1 UDP 1694498815 192.0.2.99 3478 typ srflx raddr 0.0.0.0 rport 0")
		}
		f.say(said{by: "a", start: "INVITE", body: candidates(fieldA, 40000)}, "*>A:40000+")
		f.say(said{by: "b", start: "200 OK", tag: "tb", body: candidates(fieldX, 7000)}, "A>X:7000+ X>A:40000+")
		f.ack(1, "tb", "A>X:7000+ X>A:40000+")
		f.down("tb")
	}},
	{"a CANCEL that comes too late", func(f *field) {
		f.say(said{by: "a", start: "INVITE", body: audio(fieldA, 40000)}, "*>A:40000+")
		f.say(said{by: "a", start: "CANCEL"}, "*>A:40000+")
		f.say(said{by: "b", start: "200 OK", tag: "tb", body: audio(fieldX, 7000)}, "A>X:7000+ X>A:40000+")
		f.say(said{by: "b", start: "200 OK", of: "CANCEL", tag: "tb"}, "A>X:7000+ X>A:40000+")
		f.ack(1, "tb", "A>X:7000+ X>A:40000+")
		f.down("tb")
	}},
	{"qualified at one server, called over another", func(f *field) {
		// Case 33. The SRV record has p and q. p answers OPTIONS, and has no room for the call; q takes it.
		f.far = "p"
		f.say(said{by: "a", start: "OPTIONS", callID: f.id + "-q"}, "")
		f.say(said{by: "b", start: "200 OK", of: "OPTIONS", callID: f.id + "-q", tag: "tp"}, "")
		f.say(said{by: "a", start: "INVITE", body: audio(fieldA, 40000)}, "*>A:40000+")
		f.say(said{by: "b", start: "503 Service Unavailable", tag: "tp"}, "")
		f.ack(1, "tp", "")
		f.far = "q"
		f.say(said{by: "a", start: "INVITE", branch: f.id + "-at-q", body: audio(fieldA, 40000)}, "*>A:40000+")
		holes := "A>Q:7000+ Q>A:40000+"
		f.say(said{by: "b", start: "200 OK", branch: f.id + "-at-q", tag: "tq", body: audio(fieldQ, 7000)}, holes)
		f.ack(1, "tq", holes)

		// The call is q's: nothing that p says of it counts, or arrives.
		refused := callsStatus(f.t, f.l.Edge("b")).Refused["foreign_hop"]
		bye := said{by: "b", start: "BYE", cseq: 2, tag: "tq"}
		f.far = "p"
		sendUDP(f.t, f.ends["p"], fieldA+":5060", f.text(bye))
		require.True(f.t, polled(4*time.Second, func() bool {
			return callsStatus(f.t, f.l.Edge("b")).Refused["foreign_hop"] == refused+1
		}), "a BYE of the other server is refused")
		f.far = "q"
		f.say(said{by: "b", start: "UPDATE", cseq: 3, tag: "tq"}, holes) // the first that arrives
		f.say(said{by: "a", start: "200 OK", of: "UPDATE", cseq: 3, tag: "tq"}, holes)
		f.say(said{by: "b", start: "BYE", cseq: 4, tag: "tq"}, holes)
		f.say(said{by: "a", start: "200 OK", of: "BYE", cseq: 4, tag: "tq"}, "")
	}},
	{"a server that does not answer, then another", func(f *field) {
		// Case 33 again. The first INVITE has no answer: what it asked for stays, and the call is that of the second.
		f.far = "p"
		f.say(said{by: "a", start: "INVITE", body: audio(fieldA, 40000)}, "*>A:40000+")
		f.far = "q"
		f.say(said{by: "a", start: "INVITE", branch: f.id + "-at-q", body: audio(fieldA, 40000)}, "*>A:40000+")
		f.say(said{by: "b", start: "200 OK", branch: f.id + "-at-q", tag: "tq", body: audio(fieldQ, 7000)}, "?")
		f.ack(1, "tq", "*>A:40000+ A>Q:7000+ Q>A:40000+")
		f.far = "p"
		f.say(said{by: "a", start: "CANCEL"}, "?") // as a phone does that goes on elsewhere
		f.say(said{by: "b", start: "200 OK", of: "CANCEL", tag: "tp"}, "?")
		f.say(said{by: "b", start: "487 Request Terminated", tag: "tp"}, "A>Q:7000+ Q>A:40000+")
		f.ack(1, "tp", "A>Q:7000+ Q>A:40000+")
		f.far = "q"
		f.down("tq")
	}},
	{"a phone that challenges a BYE learns nothing, and ends nothing", func(f *field) {
		holes := f.up()
		f.say(said{by: "a", start: "BYE", cseq: 2, tag: "tb"}, holes)
		challenge := f.text(said{by: "b", start: "407 Proxy Authentication Required", of: "BYE", cseq: 2, tag: "tb"})
		_, err := f.ends["b"].WriteTo([]byte(challenge), f.ends["a"].LocalAddr())
		require.NoError(f.t, err)
		f.say(said{by: "b", start: "100 Trying", of: "BYE", cseq: 2, tag: "tb"}, holes) // the first that arrives
		f.down("tb")
	}},
}

// Calls whose end is never said end by their timers, and leave no hole: a session that expires, a 200 without an ACK, a
// BYE and an INVITE without a response. One that is refreshed goes on.
func TestLongCallsThatNobodyEnds(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	ends := map[string]net.PacketConn{
		"a": udpOn(t, l.Host(lab.PhoneA), fieldA+":5060"), "b": udpOn(t, l.Host(lab.PhoneB), fieldB+":5060"),
	}
	one := func(id string) *field { return &field{t: t, l: l, ends: ends, id: id} }
	answered := func(id string, n int, more ...string) *field {
		f := one(id)
		f.say(said{by: "a", start: "INVITE", body: audio(fieldA, 40000+n)}, "?")
		f.say(said{by: "b", start: "200 OK", tag: "tb", more: more, body: audio(fieldX, 7000+n)}, "?")
		return f
	}
	answered("expires", 0, "Session-Expires: 1").ack(1, "tb", "?")
	refreshed := answered("refreshed", 100, "Session-Expires: 1")
	refreshed.ack(1, "tb", "?")
	refreshed.say(said{by: "a", start: "UPDATE", cseq: 2, tag: "tb", more: []string{"Session-Expires: 90"}}, "?")
	refreshed.say(said{
		by: "b", start: "200 OK", of: "UPDATE", cseq: 2, tag: "tb", more: []string{"Session-Expires: 90"},
	}, "?")
	answered("unacknowledged", 200)
	bye := answered("bye", 300)
	bye.ack(1, "tb", "?")
	bye.say(said{by: "a", start: "BYE", cseq: 2, tag: "tb"}, "?")
	one("invite").say(said{by: "a", start: "INVITE", body: audio(fieldA, 40400)}, "?")

	stays := "A>X:7100+ X>A:40100+"
	for _, side := range []string{"a", "b"} {
		require.True(t, polled(45*time.Second, func() bool {
			return slices.Equal(expandHoles(t, stays), holesOf(t, l.Edge(side)))
		}), "edge-%s: %v", side, holesOf(t, l.Edge(side)))
		why := map[string]string{}
		for _, c := range callsOf(t, l.Edge(side), "--ended") {
			why[c.CallID] = c.Why
		}
		assert.Equal(t, map[string]string{
			"expires": "session_expired", "unacknowledged": "unacknowledged", "bye": "bye_unanswered", "invite": "unanswered",
		}, why, "edge-%s", side)
	}
	refreshed.down("tb")
}

// Signalling on one TCP connection, in the segments that peers make of it.
func TestSegmentsOfTheField(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	far := tcpPeer(t, l.Host(lab.PhoneB), "")
	near := tcpPeer(t, l.Host(lab.PhoneA), fieldB+":5060").conn
	there := <-far.accepted
	t.Cleanup(func() { there.Close() })
	f := &field{t: t, l: l, id: "segments"}
	pass := func(pieces ...string) { // each in a segment of its own: the connection has no delay (Go's default)
		t.Helper()
		for _, p := range pieces {
			_, err := near.Write([]byte(p))
			require.NoError(t, err)
		}
		expectText(t, there, strings.Join(pieces, ""))
	}
	options := func(n int) string {
		return f.text(said{by: "a", start: "OPTIONS", callID: fmt.Sprintf("o%d", n), cseq: n})
	}
	pass(options(1) + options(2) + options(3))
	pass("\r\n\r\n" + f.text(said{by: "a", start: "REGISTER", more: []string{"Contact: <sip:anna@" + fieldA + ">"}}))
	pass("\r\n", "\r\n")

	invite := f.text(said{by: "a", start: "INVITE", body: audio(fieldA, 40000)})
	head, body, _ := strings.Cut(invite, "\r\n\r\n")
	line := strings.Index(body, "\r\n")
	pass(head[:40], head[40:]+"\r\n\r", "\n"+body[:line], "\r\n", body[line+2:])
	f.has("INVITE", "*>A:40000+")
	reply := f.text(said{by: "b", start: "486 Busy Here", tag: "tb"})
	_, err := there.Write([]byte(reply))
	require.NoError(t, err)
	expectText(t, near, reply) // and nothing before it: nobody but the far phone answers a ping
	f.has("486", "")

	// A header that never ends is bounded.
	endless := "OPTIONS sip:ben@" + fieldB + " SIP/2.0\r\nVia: SIP/2.0/TCP " + fieldA + ";branch=z9hG4bKe\r\nX: "
	_, _ = near.Write([]byte(endless + strings.Repeat("e", 100<<10))) // it may be closed in the middle
	for name, c := range map[string]net.Conn{"near": near, "far": there} {
		require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
		_, err := io.Copy(io.Discard, c)
		assert.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the %s end is not closed", name)
	}
}
