package admission

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/sip/dialog"
	"ringway/sip/emergency"
	"ringway/sip/message"
	"ringway/sip/sdp"
	"ringway/tunnel"
)

// hosts of the tests: phones A, B and a PBX L of this branch, a PBX P and phones X, Y at branch-2, phone V at
// branch-3, and a trunk T in the internet.
var hosts = map[string]netip.Addr{
	"A": netip.MustParseAddr("10.1.10.10"), "B": netip.MustParseAddr("10.1.10.11"), "L": netip.MustParseAddr("10.1.20.5"),
	"P": netip.MustParseAddr("10.2.10.5"), "X": netip.MustParseAddr("10.2.10.31"), "Y": netip.MustParseAddr("10.2.10.44"),
	"V": netip.MustParseAddr("10.3.10.31"), "T": netip.MustParseAddr("203.0.113.5"),
}

// envelope is what package qos reckons with by hand: G.711 takes 112,800 bit/s in it, G.729 55,200.
var envelope = qos.Envelope{MTU: 1420, Wire: func(n qos.ByteCount) qos.ByteCount { return n + 14 }}

const (
	g711 = qos.BitRate(112800)
	g729 = qos.BitRate(55200)
)

// budget carries so many calls of G.711.
func budget(calls int) qos.Budget {
	b := qos.Budget{Envelope: envelope}
	b.Rate = b.MinRate(qos.G711, calls)
	return b
}

// untunnelledBudget carries so many calls of G.711 to the internet: 200 bytes and 14 of Ethernet each, 85,600
// bit/s.
func untunnelledBudget(calls int) qos.Budget {
	return qos.Budget{Rate: qos.BitRate(calls*85600*105+99) / 100, Envelope: envelope}
}

func prefixes(all ...string) (list []netip.Prefix) {
	for _, p := range all {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}

// world has a branch-2 with Ringway for calls calls, a branch-3 without it for 2 in each direction, and a line
// for 2 to the internet.
func testWorld(calls int) World {
	return World{
		Own: prefixes("10.1.0.0/16", "2001:db8:1::/48", "198.51.100.1/32"),
		Lines: []Line{{
			Name: "wan0", Out: untunnelledBudget(2), In: untunnelledBudget(2), Networks: prefixes("10.99.0.0/16"),
		}},
		Sites: []Site{
			{Name: "branch-2", Key: tunnel.PublicKey{2}, Networks: prefixes("10.2.0.0/16", "2001:db8:2::/48"),
				Ringway: true, Out: budget(calls)},
			{Name: "branch-3", Key: tunnel.PublicKey{3}, Networks: prefixes("10.3.0.0/16"),
				Out: budget(2), In: budget(2)},
		},
	}
}

// script plays messages through a Tracker and a Ledger, and carries the ledger's actions out on an engine.
type script struct {
	t         *testing.T
	now       time.Time
	tr        *dialog.Tracker
	ledger    *Ledger
	emergency *emergency.Set
	callee    netip.Addr         // the next message's Update.Callee
	edit      func(*dialog.Step) // what is done with a message's step before the ledger has it; nil: nothing
	engine    *engine
	d         Decision
}

func play(t *testing.T, w World) *script {
	set, err := emergency.New(nil, []string{"0"})
	require.NoError(t, err)
	return &script{
		t: t, now: time.Unix(1_800_000_000, 0), tr: dialog.New(1000), ledger: New(1000, w), emergency: set,
		engine: &engine{held: map[tunnel.Flow]Reservation{}},
	}
}

// engine holds what was reserved in it, as a plane does.
type engine struct{ held map[tunnel.Flow]Reservation }

// take carries out actions, each of which has to make sense when its turn comes, and no site ever holds more
// than limit says (0: not checked).
func (e *engine) take(t require.TestingT, actions []Action, limit func(site string) qos.BitRate) {
	before := map[string]qos.BitRate{}
	for _, r := range e.held {
		before[r.Site] += r.Rate
	}
	for _, a := range actions {
		old, has := e.held[a.Flow]
		switch a.Do {
		case Release:
			require.True(t, has, "release %v", a.Flow)
			require.Equal(t, old, a.Reservation)
			delete(e.held, a.Flow)
		case Settle:
			require.True(t, has, "settle %v", a.Flow)
			require.NotEqual(t, old.Rate, a.Rate)
			e.held[a.Flow] = a.Reservation
		case Reserve:
			require.False(t, has, "reserve %v again", a.Flow)
			e.held[a.Flow] = a.Reservation
		}
		require.NotZero(t, a.Rate)
		sums := map[string]qos.BitRate{}
		for _, r := range e.held {
			sums[r.Site] += r.Rate
		}
		for site, sum := range sums {
			if most := limit(site); most > 0 {
				require.LessOrEqual(t, sum, max(most, before[site]), "in the middle of %v", actions)
			}
		}
	}
}

// says is one message: `A>P INVITE a` for a request from host A to host P with From tag a, and a To tag behind
// it if there is one; `P>A 200 INVITE a b` for a response, with the tags of its request. Words with an equals
// sign may follow: id=2 (Call-ID), cseq=2, to=112 (the user of the Request-URI and of To), c=10.1.10.10:5004 (a
// description with an m-line, more with another c=; n= with a name), m=18,0 (the formats of the latest m-line),
// v= and i= (as c=, for video and T.38), a= (an attribute; blanks as _), b= (bandwidth).
func (s *script) says(line string) *script {
	s.t.Helper()
	words := strings.Fields(line)
	from, to, _ := strings.Cut(words[0], ">")
	x := &text{cseq: "1", id: "1", user: "b"}
	for _, w := range words[1:] {
		x.word(w)
	}
	m := new(message.Message)
	require.Equal(s.t, message.None, m.Scan([]byte(x.message())), x.message())
	var d *sdp.Description
	if x.body != "" {
		d = new(sdp.Description)
		require.True(s.t, d.Read([]byte(x.body)))
	}
	s.now = s.now.Add(time.Millisecond)
	st := s.tr.Message(s.now, hosts[from], hosts[to], m, d)
	if s.edit != nil {
		s.edit(&st)
	}
	known := st.Leg != nil && s.ledger.byLeg[st.Leg] != nil
	s.follow(st, Info{Refusable: Refusable(m), Emergency: s.emergency.Call(m), Callee: s.callee})
	s.callee = netip.Addr{}
	if s.d.Verdict == Refused {
		if st.Dialog != nil || !known {
			require.Empty(s.t, s.d.Actions, "a refused offer changes nothing")
		}
		s.tr.Refuse(s.now, st)
	}
	return s
}

func (s *script) follow(st dialog.Step, i Info) {
	s.t.Helper()
	s.d = s.ledger.Follow(s.now, st, i)
	s.engine.take(s.t, s.d.Actions, func(string) qos.BitRate { return 0 })
	require.Equal(s.t, len(s.engine.held), len(s.ledger.Reservations()))
	for _, r := range s.ledger.Reservations() {
		require.Equal(s.t, s.engine.held[r.Flow], r)
	}
}

// after lets time go by.
func (s *script) after(d time.Duration) *script {
	s.now = s.now.Add(d)
	s.follow(s.tr.Expire(s.now), Info{})
	return s
}

// text is a message that is being written.
type text struct {
	plain                []string
	cseq, id, user, body string
}

func (x *text) word(w string) {
	key, value, is := strings.Cut(w, "=")
	media := map[string]string{"c": "audio %d RTP/AVP 0", "v": "video %d RTP/AVP 96", "i": "image %d udptl t38"}
	switch {
	case !is:
		x.plain = append(x.plain, w)
	case key == "cseq":
		x.cseq = value
	case key == "id":
		x.id = value
	case key == "to":
		x.user = value
	case key == "n":
		x.add("m=audio 5004 RTP/AVP 0", "c=IN IP4 "+value)
	case media[key] != "":
		at := netip.MustParseAddrPort(value)
		family := "IP4"
		if at.Addr().Is6() {
			family = "IP6"
		}
		x.add("m="+fmt.Sprintf(media[key], at.Port()), "c=IN "+family+" "+at.Addr().String())
	case key == "m":
		at := strings.LastIndex(x.body, " 0\r\nc=")
		x.body = x.body[:at+1] + strings.ReplaceAll(value, ",", " ") + x.body[at+2:]
	default:
		x.add(key + "=" + strings.ReplaceAll(value, "_", " "))
	}
}

func (x *text) add(lines ...string) {
	if x.body == "" {
		x.body = "v=0\r\n"
	}
	x.body += strings.Join(lines, "\r\n") + "\r\n"
}

func (x *text) message() string {
	start, plain := "SIP/2.0 "+x.plain[0]+" x\r\n", x.plain[1:]
	if x.plain[0][0] > '9' {
		start, plain = x.plain[0]+" sip:"+x.user+"@example.com SIP/2.0\r\n", x.plain
	}
	method, tag, toTag := plain[0], plain[1], ""
	if len(plain) > 2 {
		toTag = ";tag=" + plain[2]
	}
	return start + fmt.Sprintf("Via: SIP/2.0/UDP h;branch=z9hG4bK%s%s\r\nFrom: <sip:a@x>;tag=%s\r\nTo: <sip:%s@x>%s\r\n"+
		"Call-ID: %s\r\nCSeq: %s %s\r\nContent-Type: application/sdp\r\n\r\n%s",
		x.cseq, tag, tag, x.user, toTag, x.id, x.cseq, method, x.body)
}

// takes checks what is taken of the budgets that anything is taken of, in the order of the configuration:
// `branch-2 112800`, `branch-3< 112800` inbound, `wan0 85600` and `wan0< 85600` for the internet.
func (s *script) takes(want ...string) *script {
	s.t.Helper()
	var got []string
	for _, b := range s.ledger.Budgets() {
		if b.Taken == 0 {
			continue
		}
		name := b.Site
		if name == "" {
			name = b.Line
			if !b.Internet {
				name += "*"
			}
		}
		if b.Inbound {
			name += "<"
		}
		got = append(got, fmt.Sprint(name, " ", uint64(b.Taken)))
	}
	assert.Equal(s.t, want, got)
	return s
}

// reserved checks what engines hold: `10.1.10.10:5004>10.2.10.31:7000 branch-2 112800`, with the line for what goes
// to no site.
func (s *script) reserved(want ...string) *script {
	s.t.Helper()
	var got []string
	for _, r := range s.engine.held {
		where := r.Site
		if where == "" {
			where = r.Line
		}
		got = append(got, fmt.Sprintf("%s>%s %s %d", r.Flow.Source, r.Flow.Destination, where, uint64(r.Rate)))
	}
	slices.Sort(got)
	assert.Equal(s.t, want, got)
	return s
}

func (s *script) admitted() *script {
	s.t.Helper()
	assert.Equal(s.t, Admitted, s.d.Verdict)
	assert.Empty(s.t, s.d.Reason)
	return s
}

func (s *script) refused(why Reason) *script {
	s.t.Helper()
	assert.Equal(s.t, Refused, s.d.Verdict)
	assert.Equal(s.t, why, s.d.Reason)
	return s
}

// up has call number n from A to X over P answered. Its phones' ports are 5000+2n and 7000+2n.
func (s *script) up(n int) *script {
	s.t.Helper()
	return s.says(fmt.Sprintf("A>P INVITE a id=%d c=10.1.10.10:%d", n, 5000+2*n)).
		says(fmt.Sprintf("P>A 200 INVITE a b id=%d c=10.2.10.31:%d", n, 7000+2*n)).
		says(fmt.Sprintf("A>P ACK a b id=%d", n))
}

// down ends it.
func (s *script) down(n int) *script {
	s.t.Helper()
	return s.says(fmt.Sprintf("A>P BYE a b cseq=90 id=%d", n)).says(fmt.Sprintf("P>A 200 BYE a b cseq=90 id=%d", n))
}

// empty checks that nothing is left of any call.
func (s *script) empty() *script {
	s.t.Helper()
	s.takes().reserved()
	l := s.ledger
	assert.Zero(s.t, l.Len())
	assert.Empty(s.t, l.byLeg)
	assert.Empty(s.t, l.places)
	assert.Empty(s.t, l.flows)
	assert.Zero(s.t, l.waiting)
	for _, b := range l.Budgets() {
		assert.Zero(s.t, b.Taken)
		assert.Zero(s.t, b.Places)
	}
	return s
}
