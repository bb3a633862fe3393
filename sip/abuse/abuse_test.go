package abuse

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/message"
)

// Hosts of the tests.
var (
	phoneA   = addr("10.1.10.10")
	phoneB   = addr("10.1.10.11")
	localPBX = addr("10.1.10.2")
	pbx      = addr("10.2.10.5")
	tunneled = addr("10.2.10.31") // a phone of the far site
	farSite  = addr("203.0.113.1")
	trunk    = addr("198.51.100.5")
	stranger = addr("192.0.2.66") // on the WAN
	cloud    = addr("192.0.2.10") // a registrar that is not configured
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

var (
	lan    = netip.MustParsePrefix("10.1.10.0/24")
	tunnel = netip.MustParsePrefix("10.2.10.0/24")
)

func where(a netip.Addr) Place {
	switch {
	case a == pbx || a == localPBX:
		return PBX
	case a == trunk:
		return Trunk
	case a == farSite:
		return FarSite
	case lan.Contains(a):
		return LAN
	case tunnel.Contains(a):
		return Tunnel
	case a.Is4() && a.As4()[0] == 172:
		return Elsewhere
	}
	return WAN
}

// rig is a Watch with a clock and the events so far.
type rig struct {
	t   *testing.T
	w   *Watch
	now time.Time
	n   int // of the latest request
	ev  []Event
}

// monday is a morning of work.
var monday = time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC)

func newRig(t *testing.T, change func(l *Limits)) *rig {
	t.Helper()
	l := Defaults()
	l.Numbers.Country = "49"
	if change != nil {
		change(&l)
	}
	w, err := New(l, where)
	require.NoError(t, err)
	return &rig{t: t, w: w, now: monday}
}

// req is a request; zero fields have a default.
type req struct {
	from, to    netip.Addr
	method      string
	user        string // the caller
	target      string // the callee
	call        string // Call-ID
	cseq        int
	branch      string
	toTag       string
	credentials bool
	emergency   bool
	far         bool // it comes in on the far side, whatever its address
	more        string
}

func (r *rig) fill(q req) req {
	r.n++
	if q.call == "" {
		q.call = fmt.Sprint("call", r.n)
	}
	if q.branch == "" {
		q.branch = fmt.Sprint("z9hG4bK", r.n)
	}
	if q.cseq == 0 {
		q.cseq = 1
	}
	if q.user == "" {
		q.user = "101"
	}
	if q.target == "" {
		q.target = q.user
	}
	return q
}

func (q *req) common() string {
	to := q.target
	if q.method == "REGISTER" {
		to = q.user
	}
	tag := ""
	if q.toTag != "" {
		tag = ";tag=" + q.toTag
	}
	return fmt.Sprintf("Via: SIP/2.0/UDP h;branch=%s\r\nFrom: <sip:%s@x>;tag=a\r\nTo: <sip:%s@x>%s\r\nCall-ID: %s\r\n"+
		"CSeq: %d %s\r\n", q.branch, q.user, to, tag, q.call, q.cseq, q.method)
}

// send has the Watch see a message.
func (r *rig) send(from, to netip.Addr, near bool, text string, emergency bool) Result {
	r.t.Helper()
	var m message.Message
	why := m.Scan([]byte(text))
	got := r.w.Message(Input{Now: r.now, From: from, To: to, Near: near, Message: &m, Why: why, Emergency: emergency})
	r.ev = append(r.ev, got.Events...)
	return got
}

// ask sends a request and returns it, filled in, for its answers.
func (r *rig) ask(q req) (req, Result) {
	r.t.Helper()
	q = r.fill(q)
	uri := "sip:" + q.target + "@x"
	if q.method == "REGISTER" {
		uri = "sip:x"
	}
	text := q.method + " " + uri + " SIP/2.0\r\n" + q.common() + q.more
	if q.credentials {
		text += "Authorization: Digest username=\"" + q.user + "\"\r\n"
	}
	return q, r.send(q.from, q.to, !q.far && lan.Contains(q.from), text+"\r\n", q.emergency)
}

// answer sends a response to a request.
func (r *rig) answer(q req, status int, more ...string) Result {
	r.t.Helper()
	if q.toTag == "" {
		q.toTag = "b"
	}
	text := fmt.Sprintf("SIP/2.0 %d x\r\n", status) + q.common() + strings.Join(more, "") + "\r\n"
	return r.send(q.to, q.from, lan.Contains(q.to), text, false)
}

// refuse sends a request and has it refused.
func (r *rig) refuse(q req, status int, more ...string) {
	r.t.Helper()
	q, _ = r.ask(q)
	r.answer(q, status, more...)
}

func (r *rig) after(d time.Duration) { r.now = r.now.Add(d) }

func (r *rig) expire() {
	r.ev = append(r.ev, r.w.Expire(r.now)...)
}

// register has a phone register with a challenge first.
func (r *rig) register(phone, registrar netip.Addr, user string) {
	r.t.Helper()
	r.refuse(req{from: phone, to: registrar, method: "REGISTER", user: user}, 401)
	q, _ := r.ask(req{from: phone, to: registrar, method: "REGISTER", user: user, credentials: true})
	r.answer(q, 200, "Contact: <sip:"+user+"@h>;expires=3600\r\n")
}

// events are those so far, in short, and forgotten then.
func (r *rig) events() string {
	var all []string
	for _, e := range r.ev {
		text := fmt.Sprintf("%v %v %v %v", e.Source, e.Kind, e.Level, e.Action)
		if e.For > 0 {
			text += fmt.Sprint(" ", e.For)
		}
		if e.InRelay {
			text += " in relay"
		}
		if e.User != "" {
			text += " user " + e.User
		}
		all = append(all, text+": "+e.Text)
	}
	r.ev = nil
	return strings.Join(all, "\n")
}

const (
	scanWarned = "10.1.10.10 scan warn alarm: 5 users or targets refused within 1m0s"
	scanBanned = "10.1.10.10 scan block ban 10m0s in relay: 10 users or targets refused within 1m0s"
)

func TestGuessingExtensions(t *testing.T) {
	r := newRig(t, nil)
	for i := range 9 {
		r.refuse(req{from: phoneA, to: pbx, method: "INVITE", target: fmt.Sprint(200 + i)}, 404)
	}
	assert.Equal(t, scanWarned, r.events())
	r.refuse(req{from: phoneA, to: pbx, method: "INVITE", target: "209"}, 404)
	assert.Equal(t, scanBanned, r.events())
	_, got := r.ask(req{from: phoneA, to: pbx, method: "INVITE", target: "210"})
	assert.Equal(t, Result{Verdict: Drop, Why: Scan}, got)
	_, got = r.ask(req{from: phoneB, to: pbx, method: "INVITE", target: "210"})
	assert.Equal(t, Pass, got.Verdict, "somebody else")
	r.after(10 * time.Minute)
	_, got = r.ask(req{from: phoneA, to: pbx, method: "INVITE", target: "210"})
	assert.Equal(t, Pass, got.Verdict)
	assert.Empty(t, r.events())
}

func TestWhatIsNoScan(t *testing.T) {
	for name, do := range map[string]func(r *rig, i int){
		"one wrong number again and again": func(r *rig, _ int) {
			r.refuse(req{from: phoneA, to: pbx, method: "INVITE", target: "200"}, 404)
		},
		"wrong numbers, one in 15 s": func(r *rig, i int) {
			r.refuse(req{from: phoneA, to: pbx, method: "INVITE", target: fmt.Sprint(200 + i)}, 404)
			r.after(15 * time.Second)
		},
		"busy": func(r *rig, i int) {
			r.refuse(req{from: phoneA, to: pbx, method: "INVITE", target: fmt.Sprint(200 + i)}, 486)
		},
		"digits one by one (RFC 3578)": func(r *rig, i int) {
			r.refuse(req{from: phoneA, to: pbx, method: "INVITE", target: strings.Repeat("1", i+1)}, 484)
		},
		"the ports of an adapter, each challenged": func(r *rig, i int) {
			r.register(phoneA, pbx, fmt.Sprint(200+i))
		},
		"a PBX that asks for users of a trunk": func(r *rig, i int) {
			r.refuse(req{from: pbx, to: trunk, method: "INVITE", target: fmt.Sprint(200 + i)}, 404)
		},
		"a PBX that asks phones which are not there": func(r *rig, i int) {
			r.ask(req{from: localPBX, to: addr(fmt.Sprint("10.1.10.", 100+i)), method: "OPTIONS"})
			r.after(time.Second)
			r.expire()
		},
		"many targets that answer": func(r *rig, i int) {
			q, _ := r.ask(req{from: phoneA, to: addr(fmt.Sprint("10.2.10.", 100+i)), method: "OPTIONS"})
			r.answer(q, 200)
		},
		"many targets of which the answers are slow": func(r *rig, i int) {
			q, _ := r.ask(req{from: phoneA, to: addr(fmt.Sprint("10.2.10.", 100+i)), method: "INVITE"})
			r.answer(q, 180)
			r.after(10 * time.Second)
			r.expire()
		},
		"answers that nobody asked for": func(r *rig, i int) {
			q := r.fill(req{from: phoneA, to: stranger, method: "INVITE", target: fmt.Sprint(200 + i)})
			r.answer(q, 404)
		},
		"answers from somebody else than who was asked": func(r *rig, i int) {
			q, _ := r.ask(req{from: phoneA, to: pbx, method: "INVITE", target: fmt.Sprint(200 + i)})
			q.to = stranger
			r.answer(q, 404)
		},
		"requests within a call": func(r *rig, i int) {
			r.refuse(req{from: phoneA, to: pbx, method: "BYE", target: fmt.Sprint(200 + i), toTag: "b"}, 404)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			for i := range 20 {
				do(r, i)
				r.after(time.Millisecond * 500)
			}
			r.expire()
			assert.Empty(t, strings.ReplaceAll(r.events(), scanWarned, ""))
		})
	}
}

// A challenge that is never answered is what guessing extensions by REGISTER looks like.
func TestChallengesWithoutCredentials(t *testing.T) {
	r := newRig(t, nil)
	for i := range 10 {
		r.refuse(req{from: phoneA, to: pbx, method: "REGISTER", user: fmt.Sprint(200 + i)}, 401)
		r.after(100 * time.Millisecond)
	}
	r.expire()
	assert.Empty(t, r.events(), "credentials may follow")
	r.after(4 * time.Second)
	r.expire()
	assert.Equal(t, scanBanned, r.events())
	r.after(time.Second)
	r.expire()
	assert.Empty(t, r.events(), "once")
}

// A sweep over addresses where nobody answers, and one where some refuse.
func TestSweepOverAddresses(t *testing.T) {
	r := newRig(t, nil)
	for i := range 10 {
		q, _ := r.ask(req{from: stranger, to: addr(fmt.Sprint("10.1.10.", 100+i)), method: "OPTIONS", target: "100"})
		if i%2 == 0 {
			r.answer(q, 403)
		}
	}
	r.after(4 * time.Second)
	r.expire()
	assert.Equal(t, "192.0.2.66 scan warn alarm: 5 users or targets refused within 1m0s\n"+
		"192.0.2.66 scan block ban 10m0s: 10 users or targets refused within 1m0s", r.events())
}

// A phone with many keys for extensions that the PBX does not let it watch is not scanning.
func TestKeysOfARegisteredPhone(t *testing.T) {
	subscribe := func(r *rig) {
		for i := range 20 {
			r.refuse(req{from: phoneA, to: pbx, method: "SUBSCRIBE", target: fmt.Sprint(200 + i)}, 404)
		}
	}
	r := newRig(t, nil)
	r.register(phoneA, pbx, "101")
	subscribe(r)
	assert.Empty(t, r.events())
	r = newRig(t, nil)
	subscribe(r)
	assert.Equal(t, scanWarned+"\n"+scanBanned, r.events(), "not registered")
}

// guess sends so many requests with wrong credentials.
func (r *rig) guess(from, to netip.Addr, n int) {
	r.t.Helper()
	for range n {
		r.refuse(req{from: from, to: to, method: "REGISTER", user: "101", credentials: true}, 401)
		r.after(500 * time.Millisecond)
	}
}

func TestPasswordGuessing(t *testing.T) {
	r := newRig(t, nil)
	minutes := []int{10, 20, 40, 80, 160, 320, 640, 1280, 1440, 1440}
	for _, m := range minutes {
		r.guess(phoneA, pbx, 10)
		ban := time.Duration(m) * time.Minute
		assert.Equal(t, "10.1.10.10 password_guessing warn alarm: 5 requests with wrong credentials within 10m0s\n"+
			fmt.Sprintf("10.1.10.10 password_guessing block ban %v in relay: ", ban)+
			"10 requests with wrong credentials within 10m0s", r.events())
		r.guess(phoneA, pbx, 1)
		assert.Empty(t, r.events(), "what is dropped does not count")
		r.after(ban)
		r.expire()
	}
	r.after(25 * time.Hour)
	r.guess(phoneA, pbx, 10)
	assert.Contains(t, r.events(), "ban 10m0s", "after a quiet day")
	r.after(25 * time.Hour)
	r.expire()
	assert.Zero(t, r.w.Sizes().Sources, "everything is forgotten some time")
}

// What comes twice, since an answer was lost, counts once, and pushes nothing out.
func TestRetransmissions(t *testing.T) {
	r := newRig(t, nil)
	for i := range 4 {
		first, _ := r.ask(req{from: phoneA, to: pbx, method: "REGISTER", credentials: true})
		other, _ := r.ask(req{from: phoneA, to: pbx, method: "MESSAGE"})
		for range 40 {
			r.ask(other)
			r.after(200 * time.Millisecond)
		}
		for range 3 {
			r.answer(first, 401)
		}
		if i < 3 {
			assert.Empty(t, r.events())
		}
	}
	s := r.w.sources.all[key{phoneA, true}]
	assert.Len(t, s.failures, 4)
}

// A source behind a tunnel that has earned a ban is slowed down, and judged from the start again.
func TestThrottle(t *testing.T) {
	r := newRig(t, nil)
	r.guess(tunneled, pbx, 10)
	require.Contains(t, r.events(), "10.2.10.31 password_guessing block throttle 10m0s")
	passed := 0
	for range 60 {
		if _, got := r.ask(req{from: tunneled, to: pbx, method: "OPTIONS"}); got.Verdict == Pass {
			passed++
		} else {
			assert.Equal(t, Result{Verdict: Drop, Why: Guess}, got)
		}
		r.after(500 * time.Millisecond)
	}
	assert.InDelta(t, 37, passed, 3, "ten, and one a second")
	r.after(20 * time.Second)
	for range 3 {
		r.guess(tunneled, pbx, 1)
		r.after(time.Second)
	}
	assert.Empty(t, r.events())
	r.after(10 * time.Minute)
	for range 30 {
		_, got := r.ask(req{from: tunneled, to: pbx, method: "OPTIONS"})
		assert.Equal(t, Pass, got.Verdict)
	}
}

// A little above the rate, again and again, is no flood that is banned for.
func TestASmallExcessIsNotBanned(t *testing.T) {
	r := newRig(t, nil)
	for range 30 {
		for range 140 {
			r.ask(req{from: phoneA, to: pbx, method: "MESSAGE"})
		}
		r.after(time.Minute)
	}
	assert.NotContains(t, r.events(), "block")
}

func TestWhatIsNoGuess(t *testing.T) {
	for name, do := range map[string]func(r *rig){
		"a challenge": func(r *rig) {
			r.refuse(req{from: phoneA, to: pbx, method: "REGISTER"}, 401)
		},
		"an old nonce": func(r *rig) {
			r.refuse(req{from: phoneA, to: pbx, method: "REGISTER", credentials: true}, 401,
				"WWW-Authenticate: Digest realm=\"x\", stale=TRUE\r\n")
		},
		"wrong, then right": func(r *rig) {
			r.refuse(req{from: phoneA, to: pbx, method: "REGISTER", credentials: true}, 401)
			r.register(phoneA, pbx, "101")
		},
		"a call that is barred": func(r *rig) {
			if r.n == 0 {
				r.register(phoneA, pbx, "101")
			}
			r.refuse(req{from: phoneA, to: pbx, method: "INVITE", target: "0190123456", credentials: true}, 403)
		},
		"a wrong number": func(r *rig) {
			r.refuse(req{from: phoneA, to: pbx, method: "INVITE", target: "0190123456", credentials: true}, 404)
		},
		"one in two minutes": func(r *rig) {
			r.guess(phoneA, pbx, 1)
			r.after(2 * time.Minute)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			for range 20 {
				do(r)
				r.after(time.Second)
			}
			for line := range strings.Lines(r.events()) {
				assert.NotContains(t, line, "guessing block")
			}
			_, got := r.ask(req{from: phoneA, to: pbx, method: "OPTIONS"})
			assert.Equal(t, Pass, got.Verdict)
		})
	}
}

// Who has an account of his own does not get more tries at another one by it.
func TestSuccessForgivesItsOwnAccountOnly(t *testing.T) {
	r := newRig(t, nil)
	for range 10 {
		r.guess(phoneA, pbx, 1)
		q, _ := r.ask(req{from: phoneA, to: pbx, method: "REGISTER", user: "102", credentials: true})
		r.answer(q, 200)
	}
	assert.Contains(t, r.events(), "password_guessing block ban")
}

func Test403ToARegistrationIsAGuess(t *testing.T) {
	r := newRig(t, nil)
	for range 10 {
		r.refuse(req{from: phoneA, to: pbx, method: "REGISTER", credentials: true}, 403)
	}
	assert.Contains(t, r.events(), "password_guessing block ban 10m0s")
}

func TestWhereABanHits(t *testing.T) {
	for _, test := range []struct {
		from netip.Addr
		far  bool
		want string
	}{
		{phoneA, false, "ban 10m0s in relay"},
		{stranger, false, "ban 10m0s:"},
		{tunneled, false, "throttle 10m0s:"},
		{addr("172.16.0.1"), false, "throttle 10m0s:"},
		{phoneB, true, "throttle 10m0s:"}, // a LAN's address from outside
		{farSite, false, "warn alarm"},
		{trunk, false, "warn alarm"},
		{pbx, false, "warn alarm"},
		{localPBX, false, "warn alarm"},
	} {
		r := newRig(t, nil)
		for range 30 {
			q, _ := r.ask(req{from: test.from, far: test.far, to: trunk, method: "REGISTER", credentials: true})
			r.answer(q, 401)
			r.after(500 * time.Millisecond)
		}
		events := r.events()
		assert.Contains(t, events, test.want, test.from)
		for line := range strings.Lines(events) {
			if !strings.Contains(test.want, "ban") {
				assert.NotContains(t, line, " ban ")
			}
			if test.want == "warn alarm" {
				assert.NotContains(t, line, "block")
			}
		}
	}
}

// Somebody outside who takes the address of a phone does not slow that phone down.
func TestATakenAddressIsAnotherSource(t *testing.T) {
	r := newRig(t, nil)
	for range 100 {
		r.ask(req{from: phoneA, far: true, to: pbx, method: "OPTIONS"})
	}
	assert.Contains(t, r.events(), "flood warn throttle")
	_, got := r.ask(req{from: phoneA, to: pbx, method: "OPTIONS"})
	assert.Equal(t, Pass, got.Verdict)
}

func TestFlood(t *testing.T) {
	r := newRig(t, nil)
	passed := 0
	for range 100 {
		if _, got := r.ask(req{from: phoneA, to: pbx, method: "MESSAGE"}); got.Verdict == Pass {
			passed++
		} else {
			assert.Equal(t, Flooding, got.Why)
		}
	}
	assert.Equal(t, 40, passed)
	assert.Equal(t, "10.1.10.10 flood warn throttle: 1 messages above its rate within 1m0s", r.events())
	r.after(time.Second)
	passed = 0
	for range 100 {
		if _, got := r.ask(req{from: phoneA, to: pbx, method: "MESSAGE"}); got.Verdict == Pass {
			passed++
		}
	}
	assert.Equal(t, 10, passed)
	assert.Empty(t, r.events(), "said once a minute")
	for range 600 {
		r.ask(req{from: phoneA, to: pbx, method: "MESSAGE"})
	}
	assert.Equal(t, "10.1.10.10 flood block ban 5m0s in relay: 600 messages above its rate within 1m0s", r.events())
	r.after(5 * time.Minute)
	_, got := r.ask(req{from: phoneA, to: pbx, method: "MESSAGE"})
	assert.Equal(t, Pass, got.Verdict)
}

// Line ends between messages count as messages: a flood of them costs as much.
func TestFloodOfKeepAlives(t *testing.T) {
	r := newRig(t, nil)
	for range 1000 {
		r.send(phoneA, pbx, true, "\r\n\r\n", false)
	}
	assert.Contains(t, r.events(), "flood block ban")
}

func TestAPBXMaySendMore(t *testing.T) {
	r := newRig(t, nil)
	for range 10 {
		for range 200 {
			_, got := r.ask(req{from: pbx, to: phoneA, method: "OPTIONS"})
			require.Equal(t, Pass, got.Verdict)
		}
		r.after(time.Second)
	}
	for range 2000 {
		r.ask(req{from: pbx, to: phoneA, method: "OPTIONS"})
	}
	assert.Equal(t, "10.2.10.5 flood warn throttle: 1 messages above its rate within 1m0s", r.events(), "but not all")
}

// A phone that answers requests, as those of a PBX that restarts, spends nothing on it.
func TestAnswersCostNothing(t *testing.T) {
	r := newRig(t, nil)
	r.ask(req{from: phoneA, to: pbx, method: "OPTIONS"})
	for range 300 {
		q, _ := r.ask(req{from: pbx, to: phoneA, method: "NOTIFY"})
		require.Equal(t, Pass, r.answer(q, 200).Verdict)
	}
	assert.Empty(t, r.events())
}

// Two who send each other requests gain nothing by it.
func TestTwoWhoConspireAreLimited(t *testing.T) {
	r := newRig(t, nil)
	passed := 0
	for range 1000 {
		for _, hosts := range [][2]netip.Addr{{phoneA, phoneB}, {phoneB, phoneA}} {
			if _, got := r.ask(req{from: hosts[0], to: hosts[1], method: "OPTIONS"}); got.Verdict == Pass {
				passed++
			}
		}
	}
	assert.Equal(t, 80, passed)
}

// Answers that nobody waits for are messages like others.
func TestFloodOfAnswers(t *testing.T) {
	r := newRig(t, nil)
	r.ask(req{from: phoneB, to: phoneA, method: "OPTIONS"})
	q, _ := r.ask(req{from: phoneA, to: phoneB, method: "OPTIONS"})
	for range 2000 {
		r.answer(q, 200)
	}
	assert.Contains(t, r.events(), "10.1.10.11 flood block ban")
}

// A clock that is set back must not slow anybody down for hours, nor have old refusals count again.
func TestClockSetBack(t *testing.T) {
	r := newRig(t, nil)
	for range 40 {
		r.ask(req{from: phoneA, to: pbx, method: "OPTIONS"})
	}
	r.guess(phoneB, pbx, 9)
	r.events()
	r.after(-24 * time.Hour)
	for range 60 {
		_, got := r.ask(req{from: phoneA, to: pbx, method: "OPTIONS"})
		assert.Equal(t, r.now.After(monday.Add(-24*time.Hour+5*time.Second)), got.Verdict == Pass)
		r.after(time.Second)
		r.ev = nil
	}
	r.guess(phoneB, pbx, 4)
	assert.Empty(t, r.events())
}

func TestMalformed(t *testing.T) {
	r := newRig(t, nil)
	bad := func() Result { return r.send(stranger, pbx, false, "GET / HTTP/1.1\r\n\r\n", false) }
	for range 19 {
		bad()
		r.after(time.Second)
	}
	assert.Equal(t, "192.0.2.66 malformed warn alarm: 5 messages that cannot be framed within 30s", r.events())
	bad()
	assert.Equal(t, "192.0.2.66 malformed block ban 1m0s: 20 messages that cannot be framed within 30s", r.events())
	assert.Equal(t, Drop, bad().Verdict)
	r.after(time.Minute)
	for range 40 {
		assert.Equal(t, Pass, bad().Verdict)
		r.after(2 * time.Second)
	}
	assert.NotContains(t, r.events(), "block", "one in two seconds")
}

func TestOddMessagesAreNotMalformed(t *testing.T) {
	r := newRig(t, nil)
	for range 60 {
		r.send(phoneA, pbx, true, "OPTIONS sip:x SIP/2.0 \r\nno colon\r\n\r\n", false)
		r.send(phoneA, pbx, true, "\r\n\r\n", false)
		r.after(time.Second)
	}
	assert.Empty(t, r.events())
}

// call has a phone call and the other end answer.
func (r *rig) call(q req) req {
	r.t.Helper()
	q.method = "INVITE"
	q, got := r.ask(q)
	require.Equal(r.t, Pass, got.Verdict)
	r.answer(q, 180)
	r.answer(q, 200)
	_, got = r.ask(req{from: q.from, to: q.to, method: "ACK", target: q.target, call: q.call, toTag: "b"})
	require.Equal(r.t, Pass, got.Verdict)
	return q
}

func TestACallInProgressPassesABan(t *testing.T) {
	r := newRig(t, nil)
	call := r.call(req{from: phoneA, to: pbx, target: "102"})
	in := r.call(req{from: pbx, to: phoneA, target: "101"})
	r.guess(phoneA, pbx, 10)
	require.Contains(t, r.events(), "block ban 10m0s in relay")

	pass := func(q req) Verdict {
		_, got := r.ask(q)
		return got.Verdict
	}
	within := req{from: phoneA, to: pbx, call: call.call, toTag: "b"}
	for _, method := range []string{"INVITE", "ACK", "UPDATE", "INFO", "BYE"} {
		q := within
		q.method = method
		assert.Equal(t, Pass, pass(q), method)
		r.after(time.Second)
	}
	for _, method := range []string{"REGISTER", "OPTIONS", "MESSAGE", "SUBSCRIBE"} {
		q := within
		q.method = method
		assert.Equal(t, Drop, pass(q), method)
	}
	r.guess(phoneB, pbx, 10)
	require.Contains(t, r.events(), "10.1.10.11 password_guessing block ban")
	assert.Equal(t, Drop, pass(req{from: phoneB, to: pbx, method: "INFO", call: call.call, toTag: "b"}), "another's call")
	assert.Equal(t, Drop, pass(req{from: phoneA, to: pbx, method: "INVITE"}), "a new call")
	assert.Equal(t, Drop, pass(req{from: phoneA, to: pbx, method: "INVITE", call: call.call}), "a new try in an old call")
	q, _ := r.ask(req{from: pbx, to: phoneA, method: "BYE", call: in.call, toTag: "b"})
	assert.Equal(t, Pass, r.answer(q, 200).Verdict, "an answer within a call that came in")

	for range 100 {
		pass(within)
	}
	dropped := 0
	for range 100 {
		q := within
		q.method = "INFO"
		if pass(q) == Drop {
			dropped++
		}
	}
	assert.Greater(t, dropped, 90, "at a low rate")

	q, _ = r.ask(req{from: localPBX, to: phoneA, method: "BYE", call: in.call, toTag: "b"})
	r.answer(q, 200)
	r.w.Ended(r.now, call.call)
	r.after(20 * time.Second)
	within.method = "INFO"
	assert.Equal(t, Drop, pass(within), "the call has ended")
}

func TestAnEmergencyCallPasses(t *testing.T) {
	r := newRig(t, func(l *Limits) { l.Phones.Block = Toll{PerMinute: 1} })
	r.guess(phoneA, pbx, 10)
	require.Contains(t, r.events(), "block ban")
	for range 10 {
		q, got := r.ask(req{from: phoneA, to: pbx, method: "INVITE", target: "112", emergency: true})
		assert.Equal(t, Pass, got.Verdict)
		r.answer(q, 200)
		_, got = r.ask(req{from: phoneA, to: pbx, method: "ACK", call: q.call, toTag: "b"})
		assert.Equal(t, Pass, got.Verdict)
		r.after(time.Second)
	}
	assert.Empty(t, r.events())
}

// A source on the WAN with a call in progress is banned in the relay, since the kernel would cut the call.
func TestABanOfACallerOnTheWANIsTheRelays(t *testing.T) {
	r := newRig(t, nil)
	r.call(req{from: stranger, to: pbx, target: "102"})
	r.guess(stranger, pbx, 10)
	assert.Contains(t, r.events(), "192.0.2.66 password_guessing block ban 10m0s in relay")
}

func TestDigestLeak(t *testing.T) {
	const alarm = " digest_leak block alarm: it asked a phone for credentials within a call, " +
		"and is not the phone's registrar"
	for _, test := range []struct {
		name  string
		do    func(r *rig) Result
		leaks bool
		from  netip.Addr
	}{
		{"an attacker calls a phone and challenges its BYE", func(r *rig) Result {
			call := r.call(req{from: stranger, to: phoneA})
			q, _ := r.ask(req{from: phoneA, to: stranger, method: "BYE", call: call.call, toTag: "a"})
			return r.answer(q, 407)
		}, true, stranger},
		{"its UPDATE", func(r *rig) Result {
			q, _ := r.ask(req{from: phoneA, to: tunneled, method: "UPDATE", toTag: "a"})
			return r.answer(q, 401)
		}, true, tunneled},
		{"its re-INVITE", func(r *rig) Result {
			q, _ := r.ask(req{from: phoneA, to: stranger, method: "INVITE", toTag: "a"})
			return r.answer(q, 401)
		}, true, stranger},
		{"the phone of another site", func(r *rig) Result {
			q, _ := r.ask(req{from: tunneled, to: stranger, method: "BYE", toTag: "a"})
			return r.answer(q, 407)
		}, true, stranger},
		{"a BYE that was not seen", func(r *rig) Result {
			return r.answer(r.fill(req{from: phoneA, to: stranger, method: "BYE", toTag: "a"}), 407)
		}, true, stranger},
		{"the far site may not", func(r *rig) Result {
			q, _ := r.ask(req{from: phoneA, to: farSite, method: "BYE", toTag: "a"})
			return r.answer(q, 407)
		}, true, farSite},
		{"a trunk of the config may", func(r *rig) Result {
			q, _ := r.ask(req{from: phoneA, to: trunk, method: "BYE", toTag: "a"})
			return r.answer(q, 407)
		}, false, trunk},
		{"a registrar that the phone never asked", func(r *rig) Result {
			r.answer(r.fill(req{from: phoneA, to: stranger, method: "REGISTER"}), 200, "Contact: <sip:a>\r\n")
			q, _ := r.ask(req{from: phoneA, to: stranger, method: "BYE", toTag: "a"})
			return r.answer(q, 407)
		}, true, stranger},
		{"the PBX may", func(r *rig) Result {
			q, _ := r.ask(req{from: phoneA, to: pbx, method: "BYE", toTag: "a"})
			return r.answer(q, 407)
		}, false, pbx},
		{"the registrar may", func(r *rig) Result {
			r.register(phoneA, cloud, "101")
			q, _ := r.ask(req{from: phoneA, to: cloud, method: "BYE", toTag: "a"})
			return r.answer(q, 407)
		}, false, cloud},
		{"the registrar known from before may", func(r *rig) Result {
			r.w.Registered(r.now, phoneA, true, "101", cloud, r.now.Add(time.Hour))
			q, _ := r.ask(req{from: phoneA, to: cloud, method: "BYE", toTag: "a"})
			return r.answer(q, 407)
		}, false, cloud},
		{"outside a dialog anybody may", func(r *rig) Result {
			q, _ := r.ask(req{from: phoneA, to: cloud, method: "INVITE"})
			return r.answer(q, 407)
		}, false, cloud},
		{"a trunk and a PBX have it between them", func(r *rig) Result {
			q, _ := r.ask(req{from: pbx, to: trunk, method: "BYE", toTag: "a"})
			return r.answer(q, 407)
		}, false, trunk},
		{"another refusal", func(r *rig) Result {
			q, _ := r.ask(req{from: phoneA, to: stranger, method: "BYE", toTag: "a"})
			return r.answer(q, 403)
		}, false, stranger},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, nil)
			got := test.do(r)
			if !test.leaks {
				assert.Equal(t, Pass, got.Verdict)
				assert.Empty(t, r.events())
				return
			}
			assert.Equal(t, Drop, got.Verdict)
			assert.Equal(t, DigestLeak, got.Why)
			assert.Equal(t, test.from.String()+alarm, r.events())
			test.do(r)
			assert.Empty(t, r.events(), "once a minute")
		})
	}
}

func TestBansAreListedLiftedAndRestored(t *testing.T) {
	r := newRig(t, nil)
	assert.Equal(t, []Standing{}, r.w.Bans(r.now))
	r.guess(stranger, pbx, 10)
	r.guess(tunneled, pbx, 10)
	r.guess(phoneA, pbx, 10)
	until := r.now.Add(10*time.Minute - 500*time.Millisecond)
	want := []Standing{
		{phoneA, true, Guess, Ban, until, true, 1},
		{tunneled, false, Guess, Throttle, until.Add(-5 * time.Second), false, 1},
		{stranger, false, Guess, Ban, until.Add(-10 * time.Second), false, 1},
	}
	bans := r.w.Bans(r.now)
	for i := range bans {
		bans[i].Until = bans[i].Until.UTC()
	}
	assert.Equal(t, want, bans)

	again := newRig(t, nil)
	again.now = r.now
	again.w.Restore(again.now, append(bans, Standing{pbx, false, Guess, Ban, until, false, 1},
		Standing{phoneB, false, Guess, Ban, until, false, 1}, Standing{phoneB, true, Scan, Ban, again.now, false, 1}))
	var actions []Action
	for _, b := range again.w.Bans(again.now) {
		actions = append(actions, b.Action)
	}
	assert.Equal(t, []Action{Ban, Throttle, Throttle, Ban}, actions)
	_, got := again.ask(req{from: phoneA, to: pbx, method: "OPTIONS"})
	assert.Equal(t, Drop, got.Verdict)
	_, got = again.ask(req{from: pbx, to: phoneA, method: "OPTIONS"})
	assert.Equal(t, Pass, got.Verdict, "a PBX is not banned by an old list either")
	_, got = again.ask(req{from: phoneB, to: pbx, method: "OPTIONS"})
	assert.Equal(t, Pass, got.Verdict)

	assert.True(t, again.w.Unban(again.now, phoneA))
	assert.False(t, again.w.Unban(again.now, phoneA))
	assert.False(t, again.w.Unban(again.now, addr("10.1.10.99")))
	_, got = again.ask(req{from: phoneA, to: pbx, method: "OPTIONS"})
	assert.Equal(t, Pass, got.Verdict)
	again.guess(phoneA, pbx, 10)
	assert.Contains(t, again.events(), "ban 10m0s", "the first one again")
}

// Other limits hold for what was counted before, too. Bans and registrations stay.
func TestOtherLimits(t *testing.T) {
	r := registered(t, nil)
	r.guess(stranger, pbx, 10)
	r.guess(tunneled, pbx, 4)
	r.events()
	bans := r.w.Bans(r.now)

	l := Defaults()
	l.Guess.Warn, l.Guess.Block, l.Guess.Ban = 3, 5, 20*time.Minute
	l.Phones.Block.PerMinute = 1
	require.NoError(t, r.w.Use(l))
	assert.Equal(t, bans, r.w.Bans(r.now), "for as long as it was given")
	r.guess(tunneled, pbx, 1)
	assert.Contains(t, r.events(), "password_guessing block throttle 20m0s", "the fifth")
	r.dial("0301234567")
	_, v := r.dial("0301234568")
	assert.Equal(t, Reject, v)
	assert.Contains(t, r.events(), "user 101", "whose registration is known still")

	l.Guess.Warn = 6
	assert.EqualError(t, r.w.Use(l), "limits: guess.warn: 6 (allowed 0-5, not above block)")
	_, v = r.dial("0301234568")
	assert.Equal(t, Reject, v, "those before hold")
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Kinds() {
		assert.NotEmpty(t, k.String())
		assert.False(t, seen[k.String()])
		seen[k.String()] = true
	}
	assert.Equal(t, "warn block", Warn.String()+" "+Block.String())
	assert.Equal(t, "alarm throttle ban refuse", fmt.Sprint(Alarm, " ", Throttle, " ", Ban, " ", Refuse))
}

func TestLimits(t *testing.T) {
	l := Defaults()
	require.NoError(t, l.Validate())
	l.Scan.Warn, l.Guess.MaxBan, l.Malformed.Within = 11, time.Second, time.Millisecond
	l.Flood.Phone.PerSecond, l.Flood.Peer.Burst, l.Grace = 0, 0, time.Minute
	l.Phones.Warn.PerMinute, l.PBX.Block.Abroad = -1, -time.Hour
	l.Numbers = Numbers{Country: "4", International: []string{"x"}, Line: "1234", Internal: 99}
	l.Premium, l.Hours.To, l.MaxUsers = []string{"+49900"}, time.Hour, 1
	assert.EqualError(t, l.Validate(), strings.Join([]string{
		"scan.warn: 11 (allowed 0-10, not above block)",
		"guess.max_ban: 1s (allowed ban-168h0m0s)",
		"malformed.within: 1ms (allowed 1s-24h0m0s)",
		"flood.phone.per_second: 0 (allowed 0.1-100000)",
		"flood.peer.burst: 0 (allowed 1-1000000)",
		"grace: 1m0s (allowed 100ms-32s)",
		"phones.warn.per_minute: -1 (allowed 0-1000)",
		"pbx.block.abroad: -1h0m0s (allowed 0s-744h0m0s)",
		"country: 4 (allowed a country code, as 49)",
		"international: x (allowed 1-6 digits)",
		"line: 1234 (allowed 0-3 digits)",
		"internal: 99 (allowed 0-15)",
		"premium: +49900 (allowed 1-15 digits)",
		"hours: 6h0m0s-1h0m0s (allowed 0s-24h0m0s, from before to)",
		"max_users: 1 (allowed 16-1048576)",
	}, "\n"))
	_, err := New(l, where)
	assert.ErrorContains(t, err, "limits: scan.warn")
}

// Every rule can be switched off, warnings and bans apart.
func TestRulesCanBeSwitchedOff(t *testing.T) {
	everything := func(r *rig) string {
		for i := range 30 {
			r.refuse(req{from: stranger, to: pbx, method: "INVITE", target: fmt.Sprint(200 + i), credentials: true}, 401)
			r.send(stranger, pbx, false, "x\r\n\r\n", false)
			r.after(300 * time.Millisecond)
		}
		return r.events()
	}
	none := everything(newRig(t, func(l *Limits) {
		for _, rule := range []*Rule{&l.Scan, &l.Guess, &l.Malformed, &l.Flood.Dropped} {
			rule.Warn, rule.Block = 0, 0
		}
	}))
	assert.Empty(t, none)
	warned := everything(newRig(t, func(l *Limits) {
		for _, rule := range []*Rule{&l.Scan, &l.Guess, &l.Malformed, &l.Flood.Dropped} {
			rule.Block = 0
		}
	}))
	assert.Contains(t, warned, "scan warn")
	assert.Contains(t, warned, "guessing warn")
	assert.Contains(t, warned, "malformed warn")
	assert.NotContains(t, warned, "block")
}
