package abuse

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestNumbers(t *testing.T) {
	germany := Numbers{Country: "49", International: []string{"00"}, Internal: 5}
	america := Numbers{Country: "1", International: []string{"011"}, Internal: 4}
	line := Numbers{Country: "49", International: []string{"00"}, Line: "0"}
	for _, test := range []struct {
		numbers Numbers
		user    string
		want    number
	}{
		{germany, "", number{}},
		{germany, "101", number{}},
		{germany, "12345", number{}},
		{germany, "alice", number{}},
		{germany, "*7200441234567", number{}},
		{germany, "0301234567", number{national, "49301234567", ""}},
		{germany, "+49301234567", number{national, "49301234567", ""}},
		{germany, "0049301234567", number{national, "49301234567", ""}},
		{germany, "00441234567890", number{foreign, "441234567890", "44"}},
		{germany, "+44 (1234) 567-890", number{foreign, "441234567890", "44"}},
		{germany, "+44.1234.567890;ext=1", number{foreign, "441234567890", "44"}},
		{germany, "+12125550100", number{foreign, "12125550100", "1"}},
		{germany, "+18765550100", number{foreign, "18765550100", "1876"}},
		{germany, "+77272000000", number{foreign, "77272000000", "7"}},
		{germany, "+3545551234", number{foreign, "3545551234", "354"}},
		{germany, "+88213000000", number{foreign, "88213000000", "882"}},
		{germany, "+1", number{foreign, "1", "1"}},
		{germany, "+", number{}},
		{germany, "+441234567890123456789012345678901234567890", number{}},
		{america, "2125550100", number{national, "12125550100", ""}},
		{america, "12125550100", number{national, "12125550100", ""}},
		{america, "+12125550100", number{national, "12125550100", ""}},
		{america, "18765550100", number{foreign, "18765550100", "1876"}},
		{america, "8765550100", number{foreign, "18765550100", "1876"}},
		{america, "+18765550100", number{foreign, "18765550100", "1876"}},
		{america, "01149301234567", number{foreign, "49301234567", "49"}},
		{line, "1234567", number{}},
		{line, "0", number{}},
		{line, "00301234567", number{national, "49301234567", ""}},
		{line, "000441234567890", number{foreign, "441234567890", "44"}},
		{line, "+441234567890", number{foreign, "441234567890", "44"}},
		{Numbers{}, "+49301234567", number{foreign, "49301234567", "49"}},
	} {
		assert.Equal(t, test.want, test.numbers.read([]byte(test.user)), "%+v %s", test.numbers, test.user)
	}
}

// dial begins a call of a phone to a number.
func (r *rig) dial(number string) (req, Verdict) {
	r.t.Helper()
	q, got := r.ask(req{from: phoneA, to: pbx, method: "INVITE", user: "101", target: number})
	return q, got.Verdict
}

// registered is a rig with phone A registered as 101.
func registered(t *testing.T, change func(l *Limits)) *rig {
	t.Helper()
	r := newRig(t, change)
	r.register(phoneA, pbx, "101")
	return r
}

func TestNewCallsAMinute(t *testing.T) {
	r := registered(t, nil)
	for i := range 5 {
		r.dial(fmt.Sprint("030123456", i))
		r.after(5 * time.Second)
	}
	for range 10 {
		r.dial("102") // an inside call
	}
	assert.Empty(t, r.events())
	_, v := r.dial("0301234569")
	assert.Equal(t, Pass, v, "warned, not blocked, unless asked")
	assert.Equal(t, "10.1.10.10 toll_rate warn alarm user 101: 6 new outside calls within a minute", r.events())
	r.after(time.Second)
	r.dial("0301234569")
	assert.Empty(t, r.events(), "said once a minute")
	r.after(time.Minute)
	for i := range 20 {
		r.dial(fmt.Sprint("030123456", i))
		r.after(13 * time.Second)
	}
	assert.Empty(t, r.events(), "fewer than five a minute")
}

// The same call in other messages is one call.
func TestACallIsCountedOnce(t *testing.T) {
	r := registered(t, nil)
	for i := range 5 {
		q, _ := r.dial(fmt.Sprint("030123456", i))
		r.ask(q) // a retransmission
		r.answer(q, 407)
		q.cseq, q.credentials, q.branch = 2, true, q.branch+"x"
		r.ask(q)
		q.from, q.to = pbx, trunk // its second leg, over a proxy
		r.ask(q)
		r.after(time.Second)
	}
	assert.Empty(t, r.events())

	r.after(time.Minute)
	for range 12 { // digit by digit
		q, _ := r.ask(req{from: phoneA, to: pbx, method: "INVITE", target: "0301234", call: "overlap"})
		r.answer(q, 484)
	}
	assert.Empty(t, r.events())
}

func TestCallsAtOnceToOneForeignPrefix(t *testing.T) {
	r := registered(t, func(l *Limits) { l.Phones.Warn.PerMinute = 0 })
	var open []req
	for i := range 3 {
		q, _ := r.dial(fmt.Sprint("00441234567", i))
		r.answer(q, 200)
		open = append(open, q)
	}
	r.dial("0033123456789") // another prefix
	r.dial("0301234567")
	assert.Empty(t, r.events())
	busy, _ := r.dial("00441234567999")
	assert.Equal(t, "10.1.10.10 toll_at_once warn alarm user 101: 4 calls at once to +44", r.events())
	r.answer(busy, 486)

	bye, _ := r.ask(req{from: phoneA, to: pbx, method: "BYE", call: open[0].call, toTag: "b"})
	r.answer(bye, 407)
	r.after(quiet)
	refused, _ := r.dial("00441234567999")
	assert.Contains(t, r.events(), "4 calls at once", "a BYE that was challenged ends nothing")
	r.answer(refused, 603)
	bye, _ = r.ask(req{from: phoneA, to: pbx, method: "BYE", call: open[0].call, cseq: 3, toTag: "b"})
	r.answer(bye, 200)
	r.after(quiet)
	r.dial("00441234567999")
	assert.Empty(t, r.events())
}

func TestMinutesAbroad(t *testing.T) {
	r := newRig(t, func(l *Limits) { l.Phones.Block.Abroad = 90 * time.Minute })
	r.w.Registered(r.now, phoneA, true, "101", pbx, r.now.Add(7*24*time.Hour))
	talk := func(minutes int) {
		q, v := r.dial("00441234567890")
		require.Equal(t, Pass, v)
		r.answer(q, 200)
		r.after(time.Duration(minutes) * time.Minute / 2)
		again, _ := r.ask(req{from: phoneA, to: pbx, method: "INVITE", call: q.call, cseq: 7, toTag: "b"})
		r.answer(again, 200)
		forged, _ := r.ask(req{from: stranger, to: phoneA, method: "BYE", call: q.call, toTag: "b"})
		r.answer(forged, 200)
		r.after(time.Duration(minutes) * time.Minute / 2)
		r.expire()
		bye, _ := r.ask(req{from: pbx, to: phoneA, method: "BYE", call: q.call, toTag: "b"})
		r.answer(bye, 200)
	}
	talk(40)
	for range 3 {
		q, _ := r.dial("0301234567") // not abroad
		r.answer(q, 200)
		r.after(time.Hour)
		r.w.Ended(r.now, q.call)
	}
	assert.Empty(t, r.events())
	talk(25)
	assert.Equal(t, "10.1.10.10 toll_abroad warn alarm user 101: 65 minutes of calls abroad today", r.events(),
		"while the call goes on")
	talk(20)
	assert.Empty(t, r.events(), "once a day")

	q, v := r.dial("00441234567890")
	require.Equal(t, Pass, v)
	r.answer(q, 200)
	r.after(10 * time.Minute)
	r.expire()
	_, v = r.dial("0033123456789")
	assert.Equal(t, Reject, v, "a new call")
	assert.Contains(t, r.events(), "toll_abroad block refuse user 101: 95 minutes of calls abroad today")
	for _, method := range []string{"INVITE", "UPDATE", "INFO", "ACK"} {
		_, got := r.ask(req{from: phoneA, to: pbx, method: method, target: "00441234567890", call: q.call, toTag: "b"})
		assert.Equal(t, Pass, got.Verdict, "%s of the call in progress", method)
	}
	_, v = r.dial("0301234567")
	assert.Equal(t, Pass, v, "not abroad")
	_, got := r.ask(req{from: phoneA, to: pbx, method: "INVITE", target: "00441234567890", emergency: true})
	assert.Equal(t, Pass, got.Verdict, "an emergency call")

	r.w.Ended(r.now, q.call)
	r.after(20 * time.Hour)
	r.expire()
	_, v = r.dial("00441234567890")
	assert.Equal(t, Pass, v, "the next day")
	assert.Empty(t, r.events())
}

// Of a call over midnight, only the part after it counts for the new day, which begins by the local clock.
func TestMidnight(t *testing.T) {
	r := registered(t, func(l *Limits) {
		l.Location = time.FixedZone("", 2*3600)
		l.Phones.Warn.OutOfHours = false
	})
	r.now = time.Date(2026, 11, 30, 21, 30, 0, 0, time.UTC) // half an hour before midnight
	q, _ := r.dial("00441234567890")
	r.answer(q, 200)
	r.after(85 * time.Minute)
	r.expire()
	assert.Empty(t, r.events())
	r.after(10 * time.Minute)
	r.expire()
	assert.Contains(t, r.events(), "65 minutes of calls abroad today")
}

func TestOutOfHours(t *testing.T) {
	for _, test := range []struct {
		at   time.Time
		want bool
	}{
		{monday, false},
		{time.Date(2026, 11, 30, 5, 59, 0, 0, time.UTC), true},
		{time.Date(2026, 11, 30, 21, 59, 0, 0, time.UTC), false},
		{time.Date(2026, 11, 30, 22, 0, 0, 0, time.UTC), true},
		{time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC), true}, // a Sunday
	} {
		r := newRig(t, nil)
		r.now = test.at
		r.register(phoneA, pbx, "101")
		_, v := r.dial("00441234567890")
		assert.Equal(t, Pass, v)
		want := ""
		if test.want {
			want = "10.1.10.10 toll_out_of_hours warn alarm user 101: a call abroad out of hours"
		}
		assert.Equal(t, want, r.events(), test.at)
		r.after(quiet)
		r.dial("0301234567")
		assert.Empty(t, r.events())
	}
}

func TestPremiumNumbers(t *testing.T) {
	r := registered(t, nil)
	r.dial("0900123456")
	assert.Empty(t, r.events(), "off until there is a list")
	r = registered(t, func(l *Limits) {
		l.Premium = []string{"49900", "88"}
		l.Phones.Block.Premium = true
	})
	for _, number := range []string{"0900123456", "+49900123456", "0088213000000"} {
		_, v := r.dial(number)
		assert.Equal(t, Reject, v, number)
		assert.Equal(t, "10.1.10.10 toll_premium block refuse user 101: a call to a premium number", r.events())
		r.after(quiet)
	}
	_, v := r.dial("0301234567")
	assert.Equal(t, Pass, v)
}

// Each limit blocks if asked, and blocks nothing but new outside calls.
func TestBlocking(t *testing.T) {
	block := Toll{PerMinute: 2, AtOnce: 1, OutOfHours: true}
	r := registered(t, func(l *Limits) { l.Phones.Block = block })
	r.dial("0301234567")
	r.dial("0301234568")
	q, v := r.dial("0301234569")
	assert.Equal(t, Reject, v)
	assert.Equal(t, "10.1.10.10 toll_rate block refuse user 101: 3 new outside calls within a minute", r.events())
	_, got := r.ask(req{from: phoneA, to: pbx, method: "ACK", call: q.call})
	assert.Equal(t, Pass, got.Verdict)
	_, v = r.dial("102")
	assert.Equal(t, Pass, v)
	r.after(time.Minute)
	_, v = r.dial("0301234569")
	assert.Equal(t, Pass, v, "calls that were refused do not count")

	_, v = r.dial("00441234567890")
	assert.Equal(t, Pass, v)
	r.after(time.Minute)
	_, v = r.dial("00441234567891")
	assert.Equal(t, Reject, v)
	assert.Contains(t, r.events(), "toll_at_once block refuse")
	r.now = time.Date(2026, 11, 30, 23, 0, 0, 0, time.UTC)
	r.register(phoneA, pbx, "101")
	_, v = r.dial("0033123456789")
	assert.Equal(t, Reject, v)
	assert.Contains(t, r.events(), "toll_out_of_hours block refuse")
}

// Whom a phone names in From changes nothing: it has the users that registered from it, or its address.
func TestWhoPays(t *testing.T) {
	r := registered(t, func(l *Limits) { l.Phones.Warn.PerMinute = 1 })
	call := func(from, to, user, more, number string) string {
		for range 2 {
			r.ask(req{from: addr(from), to: addr(to), method: "INVITE", user: user, target: number, more: more})
		}
		text := r.events()
		r.after(time.Minute)
		return text
	}
	a, p, tr := phoneA.String(), pbx.String(), trunk.String()
	const out = "0301234567"
	assert.Contains(t, call(a, p, "101", "", out), "user 101:")
	assert.Contains(t, call(a, p, "x", "P-Asserted-Identity: <sip:101@x>\r\n", out), "user 101:")
	assert.Contains(t, call(a, p, "102", "", out), "user 10.1.10.10:", "another user's name")
	assert.Contains(t, call(phoneB.String(), p, "101", "", out), "user 10.1.10.11:", "not registered from there")
	assert.Contains(t, call(tunneled.String(), p, "301", "", out), "user 10.2.10.31:", "from the far site to the PBX")
	assert.Empty(t, call(stranger.String(), a, "x", "", out), "a call from outside")
	assert.Empty(t, call(tr, p, "x", "", out), "a call from a trunk")
	assert.Empty(t, call(p, a, "x", "", out), "a call from a PBX to a phone")
	assert.Empty(t, call(p, tr, "101", "", out), "a PBX has limits of its own")
	assert.Empty(t, call(localPBX.String(), p, "x", "", out), "from a PBX to another")
	r.events()
	for i := range 31 {
		r.ask(req{from: pbx, to: trunk, method: "INVITE", user: "main", target: fmt.Sprint("49301234", i),
			more: "P-Asserted-Identity: <sip:103@x>\r\n"})
	}
	assert.Equal(t, "10.2.10.5 toll_rate warn alarm user pbx 103: 31 new outside calls within a minute", r.events())
}

// A registration that expires or is taken back ends what follows from it.
func TestRegistrations(t *testing.T) {
	r := newRig(t, func(l *Limits) { l.Phones.Warn.PerMinute = 1 })
	who := func() string {
		for range 2 {
			r.dial("0301234567")
		}
		user := r.ev[0].User
		r.ev = nil
		r.after(time.Minute)
		return user
	}
	answer := func(head string) {
		q, _ := r.ask(req{from: phoneA, to: pbx, method: "REGISTER", user: "101", credentials: true})
		r.answer(q, 200, head)
	}
	address := phoneA.String()
	answer("Contact: <sip:a>;expires=300\r\n")
	assert.Equal(t, "101", who())
	r.after(5 * time.Minute)
	assert.Equal(t, address, who(), "expired")
	answer("Contact: <sip:a>\r\nExpires: 300\r\n")
	assert.Equal(t, "101", who())
	answer("")
	assert.Equal(t, address, who(), "taken back")
	answer("Contact: <sip:a>;expires=10, <sip:b>;expires=4000\r\nContact: <sip:c>;expires=5\r\n")
	r.after(time.Hour)
	assert.Equal(t, "101", who())
	answer("Contact: <sip:a>\r\n")
	r.after(50 * time.Minute)
	assert.Equal(t, "101", who(), "an hour, if nobody says")
	answer("Contact: <sip:a>;expires=4294967295\r\n")
	r.after(8 * 24 * time.Hour)
	assert.Equal(t, address, who(), "a week at most")

	for i := range 100 {
		q, _ := r.ask(req{from: phoneA, to: addr(fmt.Sprint("10.2.10.", 50+i)), method: "REGISTER", user: fmt.Sprint(i)})
		r.answer(q, 200, "Contact: <sip:a>\r\n")
		r.after(time.Second)
	}
	p := r.w.sources.all[key{phoneA, true}].phone
	assert.Len(t, p.users, maxUsers)
	assert.Len(t, p.registrars, maxRegistrars)
}

// Calls of which no end is seen are forgotten some time.
func TestCallsExpire(t *testing.T) {
	r := registered(t, nil)
	r.dial("00441234567890")
	r.after(5 * time.Minute)
	r.expire()
	assert.Zero(t, r.w.Sizes().Calls, "never answered")
	q, _ := r.dial("00441234567890")
	r.answer(q, 200)
	r.after(23 * time.Hour)
	r.expire()
	assert.Equal(t, 1, r.w.Sizes().Calls)
	r.after(2 * time.Hour)
	r.expire()
	assert.Zero(t, r.w.Sizes().Calls)
	q, _ = r.dial("00441234567890")
	r.answer(q, 200)
	r.ask(req{from: phoneA, to: pbx, method: "BYE", call: q.call, toTag: "b"})
	r.after(33 * time.Second)
	r.expire()
	assert.Zero(t, r.w.Sizes().Calls, "its BYE was not answered")
	r.w.Ended(r.now, "nobody knows it")
	r.after(48 * time.Hour)
	r.expire()
	assert.Equal(t, Sizes{}, r.w.Sizes())
}
