package dialog

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/message"
	"ringway/sip/sdp"
)

// hosts of the tests: two phones of this branch, a PBX and two phones of another.
var hosts = map[string]netip.Addr{
	"A": netip.MustParseAddr("10.1.10.10"), "B": netip.MustParseAddr("10.1.10.11"),
	"P": netip.MustParseAddr("10.2.10.5"), "Q": netip.MustParseAddr("10.2.10.6"),
	"X": netip.MustParseAddr("10.2.10.31"), "Y": netip.MustParseAddr("10.2.10.44"),
	"Z": netip.MustParseAddr("10.9.9.9"),
}

// script plays messages through a Tracker.
type script struct {
	t   *testing.T
	now time.Time
	tr  *Tracker
	st  Step
}

func play(t *testing.T) *script {
	return &script{t: t, now: time.Unix(1_800_000_000, 0), tr: New(100)}
}

// says is one message. Its first line is `A>P INVITE a` for a request from host A to host P with From tag
// a, and a To tag behind it if there is one; `P>A 200 INVITE a b` for a response, with the tags of its
// request. Words with an equals sign may follow: cseq=2, branch=x, se=1800 (Session-Expires),
// c=10.1.10.10:5004 (a description with one m-line, more with another c=, further attributes with a=, blanks
// in them as _), n=media.example.com:5004 (the same with a name), m=18,0 (the formats of the latest m-line).
func (s *script) says(line string) *script {
	s.t.Helper()
	words := strings.Fields(line)
	from, to, _ := strings.Cut(words[0], ">")
	cseq, branch, more, body := "1", "", "", ""
	var plain []string
	for _, w := range words[1:] {
		key, value, is := strings.Cut(w, "=")
		switch {
		case !is:
			plain = append(plain, w)
		case key == "cseq":
			cseq = value
		case key == "branch":
			branch = value
		case key == "se":
			more += "Session-Expires: " + value + ";refresher=uac\r\n"
		case key == "c":
			if body == "" {
				body = "v=0\r\n"
			}
			at := netip.MustParseAddrPort(value)
			family := "IP4"
			if at.Addr().Is6() {
				family = "IP6"
			}
			body += fmt.Sprintf("m=audio %d RTP/AVP 0\r\nc=IN %s %s\r\n", at.Port(), family, at.Addr())
		case key == "n":
			host, port, _ := strings.Cut(value, ":")
			body = fmt.Sprintf("v=0\r\nm=audio %s RTP/AVP 0\r\nc=IN IP4 %s\r\n", port, host)
		case key == "m":
			at := strings.LastIndex(body, " 0\r\nc=")
			body = body[:at+1] + strings.ReplaceAll(value, ",", " ") + body[at+2:]
		case key == "a":
			body += "a=" + strings.ReplaceAll(value, "_", " ") + "\r\n"
		}
	}

	var text string
	if status := plain[0]; status[0] >= '1' && status[0] <= '6' {
		text = "SIP/2.0 " + status + " x\r\n"
		plain = plain[1:]
	} else {
		text = plain[0] + " sip:x@example.com SIP/2.0\r\n"
	}
	method, tag := plain[0], plain[1]
	toTag := ""
	if len(plain) > 2 {
		toTag = ";tag=" + plain[2]
	}
	if branch == "" {
		branch = cseq + tag
	}
	text += fmt.Sprintf("Via: SIP/2.0/UDP h;branch=z9hG4bK%s\r\nFrom: <sip:a@x>;tag=%s\r\n"+
		"To: <sip:b@x>%s\r\nCall-ID: 1\r\n"+
		"CSeq: %s %s\r\n%sContent-Type: application/sdp\r\n\r\n%s", branch, tag, toTag, cseq, method, more, body)

	var m message.Message
	require.Equal(s.t, message.None, m.Scan([]byte(text)), text)
	var d *sdp.Description
	if body != "" {
		d = new(sdp.Description)
		require.True(s.t, d.Read([]byte(body)))
	}
	next := s.restarted()
	s.st = s.tr.Message(s.now, hosts[from], hosts[to], &m, d)
	st := next.Message(s.now, hosts[from], hosts[to], &m, d)
	assert.Equal(s.t, essence(s.st), essence(st), "after a restart: %s", line)
	assert.Equal(s.t, flowsOf(s.tr), flowsOf(next), "after a restart: %s", line)
	return s
}

// restarted is the tracker of a process that takes over here.
func (s *script) restarted() *Tracker {
	next := New(s.tr.MaxLegs)
	next.Idle = s.tr.Idle
	s.tr.Legs(func(l *Leg) {
		saved, err := l.Save()
		require.NoError(s.t, err)
		_, err = next.Load(s.now, saved)
		require.NoError(s.t, err, "%s", saved)
	})
	return next
}

// essence is what a step says, without the legs themselves. Legs of one call may come in another order.
func essence(st Step) [8]any {
	var ends []End
	for _, l := range st.Ended {
		ends = append(ends, l.Why())
	}
	slices.Sort(ends)
	opened, closed := slices.Clone(st.Opened), slices.Clone(st.Closed)
	slices.SortFunc(opened, compare)
	slices.SortFunc(closed, compare)
	return [8]any{
		st.Leg != nil, st.Drop, st.Offered, ends, opened, closed, exchanges(st), endings(st),
	}
}

func flowsOf(t *Tracker) []Flow {
	return slices.SortedFunc(maps.Keys(t.flows.first), compare)
}

// after lets time go by.
func (s *script) after(d time.Duration) *script {
	if next := s.tr.Next(); next.After(s.now.Add(d)) {
		assert.Equal(s.t, Step{}, s.tr.Expire(s.now.Add(d)), "nothing happens before %s", next)
	}
	s.now = s.now.Add(d)
	s.st = s.tr.Expire(s.now)
	return s
}

// open are the flows that are needed now, RTP alone, with `any` for a source that is not known.
func (s *script) open() string {
	var all []string
	for f := range maps.Keys(s.tr.flows.first) {
		if !f.RTCP() {
			all = append(all, f.String())
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func (s *script) has(want string) *script {
	s.t.Helper()
	assert.Equal(s.t, want, s.open())
	return s
}

// ended checks that nothing is left, and why.
func (s *script) ended(why End) *script {
	s.t.Helper()
	if assert.Len(s.t, s.st.Ended, 1) {
		assert.Equal(s.t, why, s.st.Ended[0].ended)
	}
	assert.Empty(s.t, s.tr.flows.first)
	assert.Empty(s.t, s.tr.flows.others)
	assert.Empty(s.t, s.tr.calls)
	assert.Zero(s.t, s.tr.Len())
	assert.Zero(s.t, s.tr.Next())
	return s
}

const (
	offerOpen = "any(10.2.10.5)>10.1.10.10:5004"
	bothOpen  = "10.1.10.10>10.2.10.31:7000 10.2.10.31>10.1.10.10:5004"
)

// up is a call from A to X over the PBX P that is under way.
func up(t *testing.T) *script {
	return play(t).says("A>P INVITE a c=10.1.10.10:5004").has(offerOpen).
		says("P>A 100 INVITE a").has(offerOpen).
		says("P>A 180 INVITE a b").has(offerOpen).
		says("P>A 200 INVITE a b c=10.2.10.31:7000").has(bothOpen).
		says("A>P ACK a b").has(bothOpen)
}

func TestACallAndItsEnd(t *testing.T) {
	up(t).says("A>P BYE a b cseq=2").has(bothOpen).says("P>A 200 BYE a b cseq=2").ended(ByBye)
	up(t).says("P>A BYE b a").has(bothOpen).says("A>P 200 BYE b a").ended(ByBye)
	up(t).says("A>P BYE a b cseq=2").says("P>A 481 BYE a b cseq=2").ended(ByBye)
	up(t).says("A>P BYE a b cseq=2").says("P>A 408 BYE a b cseq=2").ended(ByBye)
	up(t).says("A>P BYE a b cseq=2").after(31 * time.Second).has(bothOpen).after(time.Second).
		ended(ByeUnanswered)
}

func TestAChallengedByeEndsNothing(t *testing.T) {
	up(t).says("A>P BYE a b cseq=2").says("P>A 407 BYE a b cseq=2").after(time.Minute).has(bothOpen).
		says("A>P BYE a b cseq=3").says("P>A 200 BYE a b cseq=3").ended(ByBye)
}

func TestRTCPIsOpenBesideRTP(t *testing.T) {
	s := up(t)
	assert.Contains(t, s.tr.flows.first, NewFlow(hosts["A"], netip.MustParseAddrPort("10.2.10.31:7001"), true))
	assert.Contains(t, s.tr.flows.first, NewFlow(hosts["X"], netip.MustParseAddrPort("10.1.10.10:5005"), true))
	assert.Len(t, s.tr.flows.first, 4)

	// Offered with rtcp-mux and an address of its own: it stays until mux is answered, and goes when it is.
	s = play(t).says("A>P INVITE a c=10.1.10.10:5004 a=rtcp:6001 a=rtcp-mux").
		says("P>A 200 INVITE a b c=10.2.10.31:7000")
	assert.Contains(t, s.tr.flows.first, NewFlow(hosts["X"], netip.MustParseAddrPort("10.1.10.10:6001"), true))
	s = play(t).says("A>P INVITE a c=10.1.10.10:5004 a=rtcp:6001 a=rtcp-mux").
		says("P>A 200 INVITE a b c=10.2.10.31:7000 a=rtcp-mux")
	assert.Len(t, s.tr.flows.first, 2, "RTCP goes with RTP")
}

func TestCallsThatCameToNothing(t *testing.T) {
	ringing := func() *script {
		return play(t).says("A>P INVITE a c=10.1.10.10:5004").says("P>A 180 INVITE a b")
	}
	ringing().says("A>P CANCEL a").says("P>A 200 CANCEL a").has(offerOpen).says("P>A 487 INVITE a b").
		ended(Cancelled)
	ringing().says("P>A 486 INVITE a b").ended(Rejected)
	ringing().says("P>A 302 INVITE a b").ended(Redirected)
	ringing().after(10 * time.Minute).ended(Idle)
	play(t).says("A>P INVITE a c=10.1.10.10:5004").after(32 * time.Second).ended(Unanswered)
	play(t).says("A>P INVITE a c=10.1.10.10:5004").says("P>A 200 INVITE a b c=10.2.10.31:7000").
		after(32 * time.Second).ended(Unacknowledged)
}

func TestAChallengedInviteComesAgain(t *testing.T) {
	play(t).says("A>P INVITE a c=10.1.10.10:5004").says("P>A 407 INVITE a p").ended(Rejected).
		says("A>P ACK a p").has("").
		says("A>P INVITE a cseq=2 c=10.1.10.10:5004").has(offerOpen).
		says("P>A 200 INVITE a b cseq=2 c=10.2.10.31:7000").has(bothOpen)
	// The old answer comes again when the new request is under way.
	play(t).says("A>P INVITE a c=10.1.10.10:5004").says("A>P INVITE a cseq=2 c=10.1.10.10:5004").
		says("P>A 407 INVITE a p").has(offerOpen)
}

func TestLateOffer(t *testing.T) {
	play(t).says("A>P INVITE a").has("").
		says("P>A 200 INVITE a b c=10.2.10.31:7000").has("any(10.1.10.10)>10.2.10.31:7000").
		says("P>A 200 INVITE a b c=10.2.10.31:7000").has("any(10.1.10.10)>10.2.10.31:7000").
		says("A>P ACK a b c=10.1.10.10:5004").has(bothOpen).
		says("A>P ACK a b c=10.1.10.10:5004").has(bothOpen)
}

func TestReliableProvisionalResponses(t *testing.T) {
	// RFC 3262: a late offer in the 183, answered in the PRACK.
	play(t).says("A>P INVITE a").says("P>A 183 INVITE a b c=10.2.10.31:7000").
		says("A>P PRACK a b cseq=2 c=10.1.10.10:5004").has(bothOpen).
		says("P>A 200 PRACK a b cseq=2").says("P>A 200 INVITE a b").has(bothOpen)
	// An answer in the 183, a new offer in the PRACK, answered in its 200.
	play(t).says("A>P INVITE a c=10.1.10.10:5004").says("P>A 183 INVITE a b c=10.2.10.31:7000").
		says("A>P PRACK a b cseq=2 c=10.1.10.10:5006").
		has("10.1.10.10>10.2.10.31:7000 10.2.10.31>10.1.10.10:5004 any(10.2.10.5)>10.1.10.10:5006").
		says("P>A 200 PRACK a b cseq=2 c=10.2.10.31:7000").after(2 * time.Second).
		has("10.1.10.10>10.2.10.31:7000 10.2.10.31>10.1.10.10:5006")
}

func TestForks(t *testing.T) {
	// Case 11.
	play(t).says("A>P INVITE a c=10.1.10.10:5004").
		says("P>A 183 INVITE a b c=10.2.10.31:7000").has(bothOpen).
		says("P>A 183 INVITE a y c=10.2.10.44:8000").
		has("10.1.10.10>10.2.10.31:7000 10.1.10.10>10.2.10.44:8000 10.2.10.31>10.1.10.10:5004 " +
			"10.2.10.44>10.1.10.10:5004").
		says("P>A 200 INVITE a y c=10.2.10.44:8000").says("A>P ACK a y").after(2 * time.Second).
		has("10.1.10.10>10.2.10.44:8000 10.2.10.44>10.1.10.10:5004").
		says("A>P BYE a y cseq=2").says("P>A 200 BYE a y cseq=2").ended(ByBye)

	// A proxy that forks through this box: one branch is busy, the other one answers.
	play(t).says("P>A INVITE a branch=1 c=10.2.10.31:7000").says("P>A INVITE a branch=2 c=10.2.10.31:7000").
		says("A>P 486 INVITE a m branch=1").has("any(10.1.10.10)>10.2.10.31:7000").
		says("A>P 200 INVITE a n branch=2 c=10.1.10.10:5004").has(bothOpen)
}

// Case 13: the description of the 200 is another one than that of the 183.
func TestTheNewerAnswerCounts(t *testing.T) {
	play(t).says("A>P INVITE a c=10.1.10.10:5004").says("P>A 183 INVITE a b c=10.2.10.31:7000").
		says("P>A 200 INVITE a b c=10.2.10.44:7000").
		has("10.1.10.10>10.2.10.31:7000 10.1.10.10>10.2.10.44:7000 10.2.10.31>10.1.10.10:5004 " +
			"10.2.10.44>10.1.10.10:5004").
		says("A>P ACK a b").has("10.1.10.10>10.2.10.44:7000 10.2.10.44>10.1.10.10:5004")
}

// Case 15.
func TestHold(t *testing.T) {
	s := up(t).says("A>P INVITE a b cseq=2 c=0.0.0.0:5004 a=inactive").has(bothOpen).
		says("P>A 200 INVITE a b cseq=2 c=10.2.10.31:7000 a=inactive").says("A>P ACK a b cseq=2").has("")
	assert.Contains(t, s.tr.flows.first, NewFlow(hosts["X"], netip.MustParseAddrPort("10.1.10.10:5005"), true))
	assert.Contains(t, s.tr.flows.first, NewFlow(hosts["A"], netip.MustParseAddrPort("10.2.10.31:7001"), true))
	s.after(heldIdle - time.Minute)
	assert.Equal(t, 1, s.tr.Len(), "a call on hold is idle for hours")
	s.says("A>P INVITE a b cseq=3 c=10.1.10.10:5004").has("any(10.2.10.5)>10.1.10.10:5004").
		says("P>A 200 INVITE a b cseq=3 c=10.2.10.31:7000").says("A>P ACK a b cseq=3").has(bothOpen)

	// With music: the holder sends, the other one does not.
	up(t).says("P>A INVITE b a c=10.2.10.31:7000 a=sendonly").
		says("A>P 200 INVITE b a c=10.1.10.10:5004 a=recvonly").
		says("P>A ACK b a").has("10.2.10.31>10.1.10.10:5004")
}

// Phones on hold may be gone: their place is given back some time.
func TestACallOnHoldEnds(t *testing.T) {
	up(t).says("A>P INVITE a b cseq=2 c=0.0.0.0:5004 a=inactive").
		says("P>A 200 INVITE a b cseq=2 c=10.2.10.31:7000 a=inactive").says("A>P ACK a b cseq=2").
		after(heldIdle).ended(Idle)
}

// Case 16: each end asks at the same time, both are told 491, and one asks again.
func TestCrossingReInvites(t *testing.T) {
	up(t).says("A>P INVITE a b cseq=2 c=10.1.10.10:5008").says("P>A INVITE b a cseq=7 c=10.2.10.31:7008").
		says("P>A 491 INVITE a b cseq=2").says("A>P 491 INVITE b a cseq=7").has(bothOpen).
		says("A>P INVITE a b cseq=3 c=10.1.10.10:5008").says("P>A 200 INVITE a b cseq=3 c=10.2.10.31:7000").
		says("A>P ACK a b cseq=3").has("10.1.10.10>10.2.10.31:7000 10.2.10.31>10.1.10.10:5008")
}

// Cases 17 and 18.
func TestReInvites(t *testing.T) {
	up(t).says("P>A INVITE b a c=10.2.10.31:25446").
		has("10.1.10.10>10.2.10.31:7000 10.2.10.31>10.1.10.10:5004 any(10.1.10.10)>10.2.10.31:25446").
		says("A>P 200 INVITE b a c=10.1.10.10:5004").
		has("10.1.10.10>10.2.10.31:25446 10.1.10.10>10.2.10.31:7000 10.2.10.31>10.1.10.10:5004").
		says("P>A ACK b a").has("10.1.10.10>10.2.10.31:25446 10.2.10.31>10.1.10.10:5004")
	up(t).says("A>P INVITE a b cseq=2 c=10.1.10.10:5008").says("P>A 488 INVITE a b cseq=2").has(bothOpen)
	up(t).says("A>P UPDATE a b cseq=2 c=10.1.10.10:5008").says("P>A 200 UPDATE a b cseq=2 c=10.2.10.31:7000").
		after(2 * time.Second).has("10.1.10.10>10.2.10.31:7000 10.2.10.31>10.1.10.10:5008")
	up(t).says("A>P INVITE a b cseq=2 c=10.1.10.10:5008").says("P>A 481 INVITE a b cseq=2").ended(Lost)
}

// Cases 20 and 21.
func TestRefusedMedia(t *testing.T) {
	play(t).says("A>P INVITE a c=10.1.10.10:5004 c=10.1.10.10:5006").
		says("P>A 200 INVITE a b c=10.2.10.31:0 c=10.2.10.31:7002").
		has("10.1.10.10>10.2.10.31:7002 10.2.10.31>10.1.10.10:5006")
	play(t).says("A>P INVITE a c=10.1.10.10:0").has("").says("P>A 200 INVITE a b c=10.2.10.31:7000").has("")
}

func TestSessionTimers(t *testing.T) {
	s := play(t).says("A>P INVITE a c=10.1.10.10:5004").
		says("P>A 200 INVITE a b c=10.2.10.31:7000 se=1800").says("A>P ACK a b")
	s.after(20 * time.Minute).says("A>P UPDATE a b cseq=2").says("P>A 200 UPDATE a b cseq=2 se=1800").
		after(30 * time.Minute).has(bothOpen).after(32 * time.Second).ended(Expired)
}

// Media over TCP need no flow; a call is on hold beside them, and idle with nothing else.
func TestMediaOverTCP(t *testing.T) {
	udp := party{direction: sdp.Inactive}
	tcp := party{tcp: true}
	assert.True(t, onHold([]party{udp, tcp}))
	assert.False(t, onHold([]party{tcp}))
	assert.False(t, onHold([]party{{}, tcp}))
	assert.True(t, onHold([]party{{refused: true}}))
}

// What a Session-Expires promises is bounded: the phones may disappear.
func TestASessionLastsADayAtMost(t *testing.T) {
	s := play(t).says("A>P INVITE a c=10.1.10.10:5004").
		says("P>A 200 INVITE a b c=10.2.10.31:7000 se=4294967295").says("A>P ACK a b")
	s.after(24 * time.Hour).has(bothOpen).after(sessionGrace).ended(Expired)
}

func TestIdleCalls(t *testing.T) {
	s := up(t).after(9 * time.Minute)
	s.tr.Media(s.now, NewFlow(hosts["A"], netip.MustParseAddrPort("10.2.10.31:7000"), false))
	s.after(9 * time.Minute).has(bothOpen).after(time.Minute).ended(Idle)
}

func TestForeignHops(t *testing.T) {
	for _, line := range []string{
		"Z>A BYE b a", "Z>P BYE a b cseq=2", "Z>A INVITE b a c=10.9.9.9:5004", "Z>P UPDATE a b cseq=2",
	} {
		s := up(t).says(line)
		assert.Equal(t, ForeignHop, s.st.Drop, line)
		s.after(time.Minute).has(bothOpen)
	}
	s := play(t).says("A>P INVITE a c=10.1.10.10:5004").says("Z>P CANCEL a")
	assert.Equal(t, ForeignHop, s.st.Drop)

	// Where there was no room for another leg of the call, its hops are not known.
	full := up(t)
	full.tr.MaxLegs = 1
	full.says("P>Z INVITE a c=10.2.10.31:7000")
	assert.Empty(t, full.says("Z>P BYE b a").st.Drop)

	// One that belongs to no call is not dropped.
	assert.Empty(t, play(t).says("Z>A BYE b a").st.Drop)

	// A call of his own with the same Call-ID makes nobody a hop of another one.
	for _, line := range []string{"Z>A BYE b a", "Z>P BYE a b cseq=2", "Z>A INVITE b a c=10.9.9.9:5004"} {
		s := up(t).says("Z>B INVITE y c=10.9.9.9:5004").says(line)
		assert.Equal(t, ForeignHop, s.st.Drop, line)
	}
	s = play(t).says("A>P INVITE a c=10.1.10.10:5004").says("Z>B INVITE y c=10.9.9.9:5004").says("Z>P CANCEL a")
	assert.Equal(t, ForeignHop, s.st.Drop)
}

// A proxy in another branch that passes the call through this box twice.
func TestTwoPhonesHereOverAProxyThere(t *testing.T) {
	const media = "10.1.10.10>10.1.10.11:6000 10.1.10.11>10.1.10.10:5004"
	s := play(t).says("A>P INVITE a c=10.1.10.10:5004").says("P>B INVITE a branch=2 c=10.1.10.10:5004").
		says("B>P 200 INVITE a b branch=2 c=10.1.10.11:6000").says("P>A 200 INVITE a b c=10.1.10.11:6000").
		has(media)
	assert.Equal(t, 2, s.tr.Len())
	assert.Empty(t, s.st.Opened)
	assert.Len(t, s.st.Shared, 4, "the second leg needs what the first one needs: RTP and RTCP, both ways")
	assert.ElementsMatch(t, []netip.Addr{hosts["A"], hosts["P"], hosts["B"]}, s.tr.Hops(s.st.Leg))
	s.says("A>P ACK a b").says("P>B ACK a b branch=4").
		says("A>P BYE a b cseq=2").says("P>B BYE a b cseq=2 branch=5").
		says("B>P 200 BYE a b cseq=2 branch=5").has(media).says("P>A 200 BYE a b cseq=2").ended(ByBye)

	// Without Record-Route: what follows goes from phone to phone.
	s = play(t).says("A>P INVITE a c=10.1.10.10:5004").says("P>B INVITE a branch=2 c=10.1.10.10:5004").
		says("B>P 200 INVITE a b branch=2 c=10.1.10.11:6000").says("P>A 200 INVITE a b c=10.1.10.11:6000").
		says("A>B ACK a b").says("B>A BYE b a").says("A>B 200 BYE b a")
	assert.Len(t, s.st.Ended, 2)
	assert.Zero(t, s.tr.Len())
	assert.Empty(t, s.tr.flows.first)
}

// Case 33: the first server does not answer.
func TestTheServerThatAnsweredHasTheDialog(t *testing.T) {
	play(t).says("A>P INVITE a c=10.1.10.10:5004").after(10 * time.Second).
		says("A>Q INVITE a branch=2 c=10.1.10.10:5004").says("Q>A 200 INVITE a b branch=2 c=10.2.10.31:7000").
		says("A>Q ACK a b").after(22 * time.Second).has(bothOpen).
		says("Q>A BYE b a").says("A>Q 200 BYE b a").ended(ByBye)
}

func TestWhatIsRefusedIsTakenBack(t *testing.T) {
	s := play(t).says("A>P INVITE a c=10.1.10.10:5004")
	assert.True(t, s.st.Offered)
	s.st = s.tr.Refuse(s.now, s.st)
	s.ended(Refused)

	s = up(t).says("A>P INVITE a b cseq=2 c=10.1.10.10:5008")
	assert.True(t, s.st.Offered)
	undone := s.tr.Refuse(s.now, s.st)
	s.has(bothOpen)
	assert.Len(t, undone.Closed, 2)
}

func TestBounds(t *testing.T) {
	s := play(t)
	s.tr.MaxLegs = 1
	s.says("A>P INVITE a c=10.1.10.10:5004").says("P>A 180 INVITE a").says("B>P INVITE z c=10.1.10.11:5004").has(offerOpen)
	assert.EqualValues(t, 1, s.tr.Beyond())
	for i := range 40 {
		s.says(fmt.Sprintf("P>A 183 INVITE a b%d c=10.2.10.31:%d", i, 7000+2*i))
		s.says(fmt.Sprintf("A>P INVITE a branch=x%d c=10.1.10.10:5004", i))
	}
	assert.Len(t, s.st.Leg.dialogs, maxDialogs)
	assert.Len(t, s.st.Leg.branches, maxBranches)
}

// Anybody can begin calls: one that nobody has responded to makes room for another.
func TestRoomForCalls(t *testing.T) {
	s := play(t)
	s.tr.MaxLegs = 2
	s.says("A>P INVITE a c=10.1.10.10:5004").says("P>A 180 INVITE a b")
	s.after(time.Second).says("Z>P INVITE y1 c=10.9.9.9:5004")
	s.after(time.Second).says("Z>P INVITE y2 c=10.9.9.9:5006")
	require.Len(t, s.st.Ended, 1)
	assert.Equal(t, Unanswered, s.st.Ended[0].Why())
	assert.Equal(t, "y1", s.st.Ended[0].Tag)
	assert.Equal(t, 2, s.tr.Len())
	assert.Zero(t, s.tr.Beyond())
	s.says("P>Z 180 INVITE y2")
	s.says("B>P INVITE z c=10.1.10.11:5004")
	assert.EqualValues(t, 1, s.tr.Beyond(), "all have been responded to")
	assert.Equal(t, 2, s.tr.Len())
}

// A request within a call that is not known begins one, but not for long if nobody responds.
func TestAnUnknownCallThatNobodyRespondsTo(t *testing.T) {
	for _, line := range []string{
		"A>P INVITE a b cseq=7 c=10.1.10.10:5004", "A>P INVITE a b cseq=7", "A>P UPDATE a b cseq=7 c=10.1.10.10:5004",
	} {
		play(t).says(line).after(timerB).ended(Unanswered)
		method := strings.Fields(line)[1]
		s := play(t).says(line).says("P>A 200 " + method + " a b cseq=7 c=10.2.10.31:7000").after(timerB)
		assert.Equal(t, 1, s.tr.Len(), line)
	}
	assert.Zero(t, play(t).says("A>P UPDATE a b cseq=7").tr.Len(), "without a description it has no media")
}

// A name that no peer writes is not kept.
func TestNamesAreBounded(t *testing.T) {
	long := strings.Repeat("x", maxName+1)
	for _, line := range []string{"A>P INVITE " + long, "A>P INVITE a " + long, "A>P INVITE " + long + " b"} {
		s := play(t).says(line + " c=10.1.10.10:5004")
		assert.Zero(t, s.tr.Len())
		assert.EqualValues(t, 1, s.tr.Beyond())
	}
	s := play(t).says("A>P INVITE a branch=" + long + " c=10.1.10.10:5004").
		says("P>A 183 INVITE a " + long + " c=10.2.10.31:7000")
	assert.Empty(t, s.tr.timers[0].branches)
	assert.Empty(t, s.tr.timers[0].dialogs)
}

// The next process does not know when media was seen last: it gives a call time to show some.
func TestACallOfAnEarlierProcessIsNotIdleAtOnce(t *testing.T) {
	s := up(t)
	s.now = s.now.Add(DefaultIdle - time.Second)
	s.tr = s.restarted()
	s.after(loadGrace - time.Second).has(bothOpen)
	s.after(2 * time.Second).ended(Idle)
}

func TestACallThatWasThereBefore(t *testing.T) {
	play(t).says("A>P INVITE a b cseq=7 c=10.1.10.10:5004").has(offerOpen).
		says("P>A 200 INVITE a b cseq=7 c=10.2.10.31:7000").has(bothOpen).
		says("A>P BYE a b cseq=8").says("P>A 200 BYE a b cseq=8").ended(ByBye)
}

// What comes again because something was lost on the way changes nothing.
func TestRepeatedMessages(t *testing.T) {
	const moved = "10.1.10.10>10.2.10.31:7000 10.2.10.31>10.1.10.10:5008"
	s := up(t).says("A>P INVITE a b cseq=2 c=10.1.10.10:5008").says("P>A 200 INVITE a b cseq=2 c=10.2.10.31:7000").
		says("P>A 200 INVITE a b cseq=2 c=10.2.10.31:7000").says("A>P ACK a b cseq=2").has(moved)
	s.says("P>A 200 INVITE a b cseq=2 c=10.2.10.31:7000").says("A>P ACK a b cseq=2").has(moved)
	s.says("A>P INVITE a b cseq=2 c=10.1.10.10:5008").has(moved)
	s.says("P>A 200 INVITE a b c=10.2.10.31:7000").has(moved) // of the first INVITE
	s.says("A>P INVITE a c=10.1.10.10:5004").has(moved)
	assert.False(t, s.st.Offered)

	play(t).says("A>P INVITE a").says("P>A 200 INVITE a b c=10.2.10.31:7000").says("A>P ACK a b c=10.1.10.10:5004").
		says("P>A 200 INVITE a b c=10.2.10.31:7000").has(bothOpen)
}

// An offer that gets no answer leaves no hole.
func TestOffersWithoutAnswer(t *testing.T) {
	up(t).says("A>P INVITE a b cseq=2").says("P>A 200 INVITE a b cseq=2 c=10.2.10.31:7010").
		says("A>P ACK a b cseq=2").has(bothOpen)
	up(t).says("A>P UPDATE a b cseq=2 c=10.1.10.10:5008").says("P>A 200 UPDATE a b cseq=2").has(bothOpen)
	play(t).says("A>P INVITE a b cseq=7 c=10.1.10.10:5004").has(offerOpen).says("P>A 488 INVITE a b cseq=7").has("")
	// Both ask with the same CSeq; one is refused, the other one is not.
	up(t).says("A>P UPDATE a b cseq=9 c=10.1.10.10:5008").says("P>A UPDATE b a cseq=9 c=10.2.10.31:7008").
		says("P>A 491 UPDATE a b cseq=9").says("A>P 200 UPDATE b a cseq=9 c=10.1.10.10:5004").after(2 * time.Second).
		has("10.1.10.10>10.2.10.31:7008 10.2.10.31>10.1.10.10:5004")
}
