package abuse

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"ringway/sip/message"
)

// Whatever is sent, by whom, and naming whom: a ban is only of an address on a LAN or the WAN that has sent
// packets itself, from its own side; and what a PBX, a trunk or the far site sends at a modest rate passes,
// unless it is a challenge to a phone.
func TestNobodyIsBannedWhoMustNotBe(t *testing.T) {
	everybody := []netip.Addr{phoneA, phoneB, localPBX, pbx, tunneled, farSite, trunk, stranger, cloud, addr("172.16.0.1")}
	methods := []string{"INVITE", "BYE", "REGISTER", "OPTIONS", "SUBSCRIBE", "MESSAGE", "ACK", "CANCEL", "UPDATE"}
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t, func(l *Limits) {
			l.Phones.Block = Toll{PerMinute: rapid.IntRange(0, 3).Draw(rt, "per minute"), Abroad: time.Minute}
			l.Scan.Block, l.Guess.Block, l.Malformed.Block, l.Flood.Dropped.Block = 5, 5, 5, 10
		})
		sent := map[key]bool{}
		host := rapid.SampledFrom(everybody)
		user := rapid.SampledFrom([]string{"101", "102", pbx.String(), phoneB.String(), "00441234567", "0301234567"})
		steps := rapid.IntRange(1, 200).Draw(rt, "steps")
		burst := rapid.IntRange(1, 60)
		for range steps {
			q := r.fill(req{
				from: host.Draw(rt, "from"), to: host.Draw(rt, "to"), method: rapid.SampledFrom(methods).Draw(rt, "method"),
				user: user.Draw(rt, "user"), target: user.Draw(rt, "target"), far: rapid.Bool().Draw(rt, "far"),
				credentials: rapid.Bool().Draw(rt, "credentials"), toTag: rapid.SampledFrom([]string{"", "b"}).Draw(rt, "tag"),
				call: rapid.SampledFrom([]string{"", "c1", "c2"}).Draw(rt, "call"),
				more: "Contact: <sip:" + host.Draw(rt, "contact").String() + ">\r\n",
			})
			near := func(a netip.Addr) bool { return !q.far && lan.Contains(a) }
			for range burst.Draw(rt, "burst") {
				sent[key{q.from, near(q.from)}] = true
				switch rapid.IntRange(0, 4).Draw(rt, "what") {
				case 0:
					r.send(q.from, q.to, near(q.from), "x\r\n\r\n", false)
				case 1:
					sent[key{q.to, lan.Contains(q.to)}] = true
					r.answer(q, rapid.SampledFrom([]int{180, 200, 401, 403, 404, 407, 486, 604}).Draw(rt, "status"))
				case 2:
					r.ask(q)
				default:
					q.cseq++
					q.target = fmt.Sprint(rapid.IntRange(200, 250).Draw(rt, "extension"))
					sent[key{q.to, lan.Contains(q.to)}] = true
					r.ask(q)
					r.answer(q, 401)
				}
			}
			r.after(time.Duration(rapid.IntRange(0, 20).Draw(rt, "seconds")) * time.Second)
			if rapid.IntRange(0, 9).Draw(rt, "expire") == 0 {
				r.expire()
			}
			for _, e := range r.ev {
				if e.Action != Ban {
					continue
				}
				place := where(e.Source)
				require.True(rt, place == LAN || place == WAN, "%v is %v", e.Source, place)
				require.True(rt, sent[key{e.Source, place == LAN}], "%v has sent nothing", e.Source)
				require.Equal(rt, place == LAN, place == LAN && e.InRelay, "a phone's ban is the relay's")
			}
			r.ev = nil
		}
		for _, b := range r.w.Bans(r.now) {
			require.False(rt, where(b.Source).peer())
			require.True(rt, b.Action == Throttle || where(b.Source) == LAN && b.Near || where(b.Source) == WAN && !b.Near)
		}
		r.after(time.Minute)
		for _, peer := range []netip.Addr{pbx, localPBX, trunk, farSite} {
			_, got := r.ask(req{from: peer, to: phoneA, method: "INVITE"})
			require.Equal(rt, Pass, got.Verdict, peer)
		}
	})
}

// A million addresses, each with its own users, targets and calls, from a LAN, the WAN and a tunnel. (With Alloc in
// its name it does not run under the race detector, where it would take minutes.)
func TestAllocatedMemoryIsBoundedUnderAMillionSources(t *testing.T) {
	sources := 1_000_000
	if testing.Short() {
		sources = 100_000
	}
	l := Defaults()
	l.Numbers.Country = "49"
	l.MaxSources, l.MaxUsers, l.MaxCalls = 2048, 1024, 2048
	w, err := New(l, func(a netip.Addr) Place {
		if a.Is4() {
			return where(a)
		}
		return []Place{LAN, WAN, Tunnel}[a.As16()[15]%3]
	})
	require.NoError(t, err)
	guard := addr("10.1.10.10") // banned before, and still at the end
	now := monday
	w.Restore(now, []Standing{{guard, true, Guess, Ban, now.Add(24 * time.Hour), true, 3}})

	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var m message.Message
	var last int
	for i := range sources {
		var b [16]byte
		b[0], b[1] = 0x20, 0x01
		binary.BigEndian.PutUint64(b[8:], uint64(i))
		from := netip.AddrFrom16(b)
		in := Input{Now: now, From: from, To: pbx, Near: i%3 == 0, Message: &m}
		for _, text := range []string{
			"INVITE sip:0044%d@x SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=%d\r\nFrom: <sip:u%d@x>\r\nTo: <sip:a@x>\r\n" +
				"Call-ID: %d\r\nCSeq: 1 INVITE\r\nAuthorization: x\r\n\r\n",
			"SIP/2.0 40%[1]d x\r\nVia: SIP/2.0/UDP h;branch=%[2]d\r\nFrom: <sip:u%d@x>\r\nTo: <sip:a@x>\r\nCall-ID: %d\r\n" +
				"CSeq: 1 INVITE\r\n\r\n",
			"x\r\n\r\n",
		} {
			n := i
			if text[0] == 'S' {
				n = 1 + i%4
				in.From, in.To, in.Near = in.To, in.From, !in.Near
			}
			in.Why = m.Scan(fmt.Appendf(nil, text, n, i, i, i))
			w.Message(in)
		}
		now = now.Add(100 * time.Microsecond)
		if i%10_000 == 0 {
			w.Expire(now)
			last = i
		}
	}
	require.NotZero(t, last)
	sizes := w.Sizes()
	assert.LessOrEqual(t, sizes.Sources, 2*2048)
	assert.LessOrEqual(t, sizes.Users, 1024)
	assert.LessOrEqual(t, sizes.Calls, 2048)
	assert.NotZero(t, sizes.SourcesGone)
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%+v, %d KiB", sizes, grown>>10)
	assert.Less(t, grown, int64(8<<20))

	bans := w.Bans(now)
	require.Len(t, bans, 1, "the ban of before was not pushed out")
	assert.Equal(t, guard, bans[0].Source)
}

// A ban, a throttle and a registration outlive any number of others that send.
func TestOthersPushOutNoBan(t *testing.T) {
	r := newRig(t, func(l *Limits) { l.MaxSources = 16 })
	r.register(phoneB, pbx, "102")
	r.guess(stranger, pbx, 10)
	r.guess(tunneled, pbx, 10)
	for i := range 1000 {
		r.ask(req{from: netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}), to: pbx, method: "OPTIONS"})
	}
	assert.Len(t, r.w.Bans(r.now), 2)
	assert.True(t, r.w.sources.all[key{phoneB, true}].registered(r.w.now))
	assert.LessOrEqual(t, r.w.Sizes().Sources, 32)
}

// Whoever begins calls that nobody answers pushes out no call in progress.
func TestOthersPushOutNoCall(t *testing.T) {
	r := newRig(t, func(l *Limits) { l.MaxCalls = 16 })
	call := r.call(req{from: phoneA, to: pbx, target: "102"})
	for range 30 {
		r.ask(req{from: phoneB, to: pbx, method: "INVITE", target: "102"})
	}
	require.Equal(t, 16, r.w.Sizes().Calls)
	r.guess(phoneA, pbx, 10)
	_, got := r.ask(req{from: phoneA, to: pbx, method: "BYE", call: call.call, toTag: "b"})
	assert.Equal(t, Pass, got.Verdict)

	for range 30 {
		call = r.call(req{from: pbx, to: phoneB, target: "102"})
		assert.NotNil(t, r.w.calls.find(r.w.sum([]byte(call.call))), "the latest call is remembered")
	}
	assert.Equal(t, 16, r.w.Sizes().Calls)
	assert.NotZero(t, r.w.Sizes().CallsGone)
}

// What one source can have remembered is bounded as well.
func TestOneSourceIsBounded(t *testing.T) {
	r := newRig(t, func(l *Limits) {
		l.Flood.Phone = Rate{PerSecond: 100_000, Burst: 100_000}
		l.Scan.Block, l.Guess.Block, l.Malformed.Block = 0, 0, 0
	})
	for i := range 5000 {
		q, _ := r.ask(req{from: phoneA, to: addr(fmt.Sprintf("192.0.2.%d", i%250)), method: "INVITE",
			target: fmt.Sprint("0301234", i), credentials: true})
		if i%2 == 0 {
			r.answer(q, 401)
		}
		r.send(phoneA, pbx, true, "x\r\n\r\n", false)
	}
	s := r.w.sources.all[key{phoneA, true}]
	assert.LessOrEqual(t, len(s.asked), maxAsked)
	assert.LessOrEqual(t, len(s.probes), 4*5)
	assert.LessOrEqual(t, len(s.failures), 5)
	assert.LessOrEqual(t, len(s.malformed), 5)
}

func TestMessageOfAPhoneAllocatesNothing(t *testing.T) {
	r := newRig(t, func(l *Limits) { l.Flood.Phone = Rate{PerSecond: 100_000, Burst: 100_000} })
	var m message.Message
	why := m.Scan([]byte("OPTIONS sip:102@x SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=1\r\nFrom: <sip:101@x>;tag=a\r\n" +
		"To: <sip:102@x>\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\n\r\n"))
	in := Input{Now: r.now, From: phoneA, To: pbx, Near: true, Message: &m, Why: why}
	r.w.Message(in)
	assert.Zero(t, testing.AllocsPerRun(100, func() { r.w.Message(in) }))
}

func BenchmarkMessage(b *testing.B) {
	l := Defaults()
	l.Flood.Phone = Rate{PerSecond: 100_000, Burst: 100_000}
	w, err := New(l, where)
	require.NoError(b, err)
	var m message.Message
	why := m.Scan([]byte("INVITE sip:102@x SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=1\r\nFrom: <sip:101@x>;tag=a\r\n" +
		"To: <sip:102@x>\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\n\r\n"))
	in := Input{Now: monday, From: phoneA, To: pbx, Near: true, Message: &m, Why: why}
	for b.Loop() {
		in.Now = in.Now.Add(time.Millisecond)
		w.Message(in)
	}
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte("INVITE sip:0044123456@x SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=1\r\nFrom: <sip:101@x>;tag=a\r\n"+
		"To: <sip:102@x>\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\n\r\n"), []byte("SIP/2.0 407 x\r\n\r\n"), uint8(3))
	f.Fuzz(func(t *testing.T, a, b []byte, hosts uint8) {
		l := Defaults()
		w, err := New(l, where)
		require.NoError(t, err)
		all := []netip.Addr{phoneA, pbx, tunneled, stranger}
		from, to := all[hosts&3], all[hosts>>2&3]
		for i := range 50 {
			var m message.Message
			text := a
			if i%2 == 1 {
				text, from, to = b, to, from
			}
			why := m.Scan(text)
			got := w.Message(Input{Now: monday.Add(time.Duration(i) * time.Second), From: from, To: to,
				Near: lan.Contains(from), Message: &m, Why: why})
			for _, e := range got.Events {
				assert.False(t, e.Action == Ban && where(e.Source) != LAN && where(e.Source) != WAN)
			}
		}
	})
}
