package relay

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/sip/abuse"
	"ringway/sip/admission"
	"ringway/sip/dialog"
	"ringway/sip/message"
	"ringway/sip/transparent"
)

// narrow are the settings of a box whose line to the far site carries one call of G.711.
func narrow(mode func(*Settings)) Settings {
	net := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	s := Settings{
		Site: "berlin", Enforce: true, Admit: true, Privacy: "show", Abuse: AbuseBlock,
		Own: net("10.1.0.0/16"), Phones: net("10.1.10.0/24"), Inside: net("10.2.0.0/16"),
		Budgets: admission.Plan{
			Own:   net("10.1.0.0/16"),
			Lines: []admission.PlanLine{{Name: "wan0", Line: qos.Line{Uplink: qos.Mbit}}},
			Sites: []admission.PlanSite{{
				Name: "munich", Networks: net("10.2.0.0/16"), Ringway: true, Rate: 150 * qos.Kbit, MTU: 1420,
			}},
		},
	}
	mode(&s)
	return s
}

// ring is an INVITE of another call, to a number.
func ring(call, number string) string {
	s := strings.ReplaceAll(invite, "one@10.1.10.9", call)
	s = strings.Replace(s, "branch=z9hG4bK1", "branch=z9hG4bK"+call, 1)
	s = strings.Replace(s, "INVITE sip:bob@", "INVITE sip:"+number+"@", 1)
	return strings.ReplaceAll(s, "audio 4000", fmt.Sprintf("audio %d", 4000+2*len(call)))
}

// A call that does not fit is answered here, to a phone as a phone understands it, again and again alike; its ACK
// ends here. Nothing of it is left.
func TestACallThatDoesNotFitIsAnswered(t *testing.T) {
	synctest.Test(t, testACallThatDoesNotFitIsAnswered)
}

func testACallThatDoesNotFitIsAnswered(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, w.use(narrow(func(*Settings) {})))
	w.answer(func() { assert.False(t, w.pass(phone, pbx, invite).Drop) }, nil)

	second := ring("second", "bob")
	a := w.pass(phone, pbx, second)
	require.True(t, a.Drop)
	var reply message.Message
	require.Equal(t, message.None, reply.Scan(a.Reply))
	assert.Equal(t, 488, reply.Status)
	assert.Contains(t, string(a.Reply), `Warning: 370 berlin "Insufficient bandwidth"`)
	assert.Len(t, w.calls(), 2)

	to := string(reply.Header(message.To))
	ack := strings.Replace(second, "INVITE sip:", "ACK sip:", 1)
	ack = strings.Replace(ack, "To: <sip:bob@10.2.20.5>", "To: "+to, 1)
	ack = strings.Replace(ack, "1 INVITE", "1 ACK", 1)
	assert.True(t, w.pass(phone, pbx, ack).Drop, "the called party has not seen the INVITE")
	again := w.pass(phone, pbx, second)
	assert.Equal(t, a.Reply, again.Reply, "it comes again")

	far := w.pass(pbx, phone, strings.ReplaceAll(ring("third-call", "ann"), "IN IP4 10.1.10.9", "IN IP4 10.2.20.5"))
	require.Equal(t, message.None, reply.Scan(far.Reply))
	assert.Equal(t, 503, reply.Status, "to a PBX, which tries another way")
	assert.NotContains(t, string(far.Reply), "Retry-After")
}

// An emergency call passes, and the call that was there loses its media until there is room again.
func TestAnEmergencyCallPasses(t *testing.T) { synctest.Test(t, testAnEmergencyCallPasses) }

func testAnEmergencyCallPasses(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, w.use(narrow(func(*Settings) {})))
	w.answer(func() { w.pass(phone, pbx, invite) }, nil)
	w.answer(func() { w.pass(pbx, phone, okay) }, nil)
	w.answer(func() { assert.False(t, w.pass(phone, pbx, ring("help", "112")).Drop) }, nil)
	assert.Len(t, w.policy.muted, 1)
	assert.False(t, w.pass(phone, pbx, bye).Drop, "signalling goes on")
}

// A call that its far end does not know any more has ended for the watch for abuse as well, and so has one that time
// ended, with its last leg.
func TestTheWatchHearsOfEnds(t *testing.T) { synctest.Test(t, testTheWatchHearsOfEnds) }

func testTheWatchHearsOfEnds(t *testing.T) {
	w := newWorld(t)
	w.core.asker = newAsker(func(context.Context, flowsRequest) error { return nil }, w.flows)
	require.NoError(t, w.use(narrow(func(s *Settings) { s.Admit = false })))
	again := strings.Replace(text("INVITE sip:bob@10.2.20.5 SIP/2.0", ";tag=b", ""), "1 INVITE", "2 INVITE", 1)
	unknown := strings.Replace(text("SIP/2.0 481 Unknown", ";tag=b", ""), "1 INVITE", "2 INVITE", 1)
	w.pass(phone, pbx, invite)
	w.pass(pbx, phone, okay)
	w.pass(phone, pbx, again)
	require.Equal(t, 1, w.policy.watch.Sizes().Calls)
	w.pass(pbx, phone, unknown)
	require.Equal(t, string(dialog.Lost), w.calls()[0].Why)
	assert.Zero(t, w.policy.watch.Sizes().Calls)

	const proxied = "10.2.20.6:5060" // the PBX tries another one, too, who does not answer
	w.pass(phone, pbx, ring("forked", "bob"))
	w.pass(pbx, phone, strings.ReplaceAll(okay, "one@10.1.10.9", "forked"))
	w.pass(phone, pbx, strings.NewReplacer("1 INVITE", "1 ACK", "one@10.1.10.9", "forked").Replace(
		text("ACK sip:bob@10.2.20.5 SIP/2.0", ";tag=b", "")))
	w.pass(phone, proxied, ring("forked", "bob"))
	after := func(d time.Duration) {
		time.Sleep(d)
		w.core.mu.Lock()
		w.expireCalls(time.Now())
		w.core.mu.Unlock()
	}
	after(40 * time.Second)
	assert.Equal(t, 1, w.stats().Calls, "the other one has not answered")
	assert.Equal(t, 1, w.policy.watch.Sizes().Calls)
	after(dialog.DefaultIdle)
	assert.Zero(t, w.stats().Calls)
	assert.Zero(t, w.policy.watch.Sizes().Calls)
}

// What the config allows, the process takes.
func TestTheLargestLimitsAreTaken(t *testing.T) { synctest.Test(t, testTheLargestLimitsAreTaken) }

func testTheLargestLimitsAreTaken(t *testing.T) {
	require.NoError(t, newWorld(t).use(Settings{PhoneLimit: 100_000, ServerLimit: 100_000}))
}

// Where calls are not admitted, an emergency call takes nobody's media away.
func TestWithoutAdmissionNobodyIsMuted(t *testing.T) {
	synctest.Test(t, testWithoutAdmissionNobodyIsMuted)
}

func testWithoutAdmissionNobodyIsMuted(t *testing.T) {
	for _, mode := range []func(*Settings){
		func(s *Settings) { s.Admit = false }, func(s *Settings) { s.Enforce = false },
	} {
		w := newWorld(t)
		require.NoError(t, w.use(narrow(mode)))
		w.answer(func() { w.pass(phone, pbx, invite) }, nil)
		w.answer(func() { w.pass(pbx, phone, okay) }, nil)
		r := w.answer(func() { assert.False(t, w.pass(phone, pbx, ring("help", "112")).Drop) }, nil)
		assert.Empty(t, w.policy.muted)
		assert.Empty(t, r.Changes[0].Close)
	}

	w := newWorld(t) // and whoever was muted is no longer
	require.NoError(t, w.use(narrow(func(*Settings) {})))
	w.answer(func() { w.pass(phone, pbx, invite) }, nil)
	w.answer(func() { w.pass(phone, pbx, ring("help", "112")) }, nil)
	require.Len(t, w.policy.muted, 1)
	require.NoError(t, w.use(narrow(func(s *Settings) { s.Enforce = false })))
	flows := 0
	for _, c := range w.flows() {
		flows += len(c.Open)
	}
	assert.Equal(t, 4, flows)
}

// Observe refuses nothing, whatever it is.
func TestObserveRefusesNothing(t *testing.T) { synctest.Test(t, testObserveRefusesNothing) }

func testObserveRefusesNothing(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, w.use(narrow(func(s *Settings) { s.Enforce = false })))
	w.answer(func() { w.pass(phone, pbx, invite) }, nil)
	w.answer(func() { assert.False(t, w.pass(phone, pbx, ring("second", "bob")).Drop) }, nil)
}

// Limits on abuse are those of the settings, as they come over the wire. Others hold from then on, and bans stay.
func TestLimitsOnAbuseAreThoseOfTheSettings(t *testing.T) {
	synctest.Test(t, testLimitsOnAbuseAreThoseOfTheSettings)
}

func testLimitsOnAbuseAreThoseOfTheSettings(t *testing.T) {
	w := newWorld(t)
	use := func(change func(*abuse.Limits)) {
		l := abuse.Defaults()
		change(&l)
		b, err := json.Marshal(narrow(func(s *Settings) { s.AbuseLimits, s.Admit = &l, false }))
		require.NoError(t, err)
		var s Settings
		require.NoError(t, json.Unmarshal(b, &s))
		require.NoError(t, w.use(s))
	}
	use(func(l *abuse.Limits) { l.Phones.Block.PerMinute, l.Malformed.Block, l.Malformed.Warn = 1, 2, 1 })
	dial := func(call string) transparent.Action {
		m := transparent.Message{
			From: netip.MustParseAddrPort(phone), To: netip.MustParseAddrPort(pbx), FromNear: true,
			Raw: []byte(ring(call, "0301234567")), SIP: new(message.Message),
		}
		m.Reason = m.SIP.Scan(m.Raw)
		return w.handle(&m)
	}
	assert.False(t, dial("first").Drop)
	a := dial("second")
	require.True(t, a.Drop)
	assert.Contains(t, string(a.Reply), "SIP/2.0 403 ")

	const stranger = "192.0.2.66:5060"
	twice := strings.Replace(invite, "Content-Length:", "Content-Length: 0\r\nContent-Length:", 1)
	w.pass(stranger, pbx, twice)
	assert.Empty(t, w.standing())
	w.pass(stranger, pbx, twice)
	require.Len(t, w.standing(), 1)

	use(func(l *abuse.Limits) {})
	assert.Len(t, w.standing(), 1, "a ban stays for as long as it was given")
	assert.False(t, dial("third-one").Drop)

	require.ErrorContains(t, w.use(narrow(func(s *Settings) { s.AbuseLimits = &abuse.Limits{} })), "limits: scan.within")
}
