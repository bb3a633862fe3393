package registrar

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"ringway/sip/message"
)

// Two phones here, a PBX at another site and one in the cloud.
var hosts = map[string]netip.AddrPort{
	"A": netip.MustParseAddrPort("10.1.10.10:5062"), "B": netip.MustParseAddrPort("10.1.10.11:5060"),
	"P": netip.MustParseAddrPort("10.2.10.5:5060"), "Q": netip.MustParseAddrPort("203.0.113.5:5060"),
}

// script plays messages through a Table.
type script struct {
	t         *testing.T
	now       time.Time
	table     *Table
	st        Step
	transport Transport
}

func play(t *testing.T) *script {
	return &script{t: t, now: time.Unix(1_800_000_000, 0), table: New(100), transport: UDP}
}

// says is one message: `A>P 7` for a REGISTER from A to P with CSeq 7, `P>A 200 7` for a response to it.
// Behind it are header fields, each a word with an equals sign: m=<sip:a@10.1.10.10:5062>;expires=60 (Contact),
// e=300 (Expires), aor=201 (default: 200), id=2 (Call-ID).
func (s *script) says(line string) *script {
	s.t.Helper()
	words := strings.Fields(line)
	from, to, _ := strings.Cut(words[0], ">")
	start, words := "REGISTER sip:pbx SIP/2.0\r\n", words[1:]
	if len(words[0]) == 3 {
		start, words = "SIP/2.0 "+words[0]+" x\r\n", words[1:]
	}
	cseq, user, id, more := words[0], "200", "1", ""
	for _, w := range words[1:] {
		name, value, _ := strings.Cut(w, "=")
		switch name {
		case "m":
			more += "Contact: " + value + "\r\n"
		case "e":
			more += "Expires: " + value + "\r\n"
		case "aor":
			user = value
		case "id":
			id = value
		}
	}
	m := new(message.Message)
	text := fmt.Sprintf("%sVia: SIP/2.0/UDP h;branch=z9hG4bK%s-%s\r\nFrom: <sip:%s@pbx>;tag=1\r\n"+
		"To: \"x\" <sip:%s@PBX:5060;x=y>\r\nCall-ID: %s\r\nCSeq: %s REGISTER\r\n%s\r\n",
		start, id, cseq, user, user, id, cseq, more)
	require.Equal(s.t, message.None, m.Scan([]byte(text)), text)
	s.st = s.table.Message(s.now, Packet{hosts[from], hosts[to], s.transport}, m)
	return s
}

func (s *script) after(d time.Duration) *script {
	s.now = s.now.Add(d)
	s.st = s.table.Expire(s.now)
	return s
}

// has checks the bindings: `A>P 200@pbx sip:a@10.1.10.10 60` is for a contact that expires in 60 s.
func (s *script) has(want ...string) *script {
	s.t.Helper()
	assert.Equal(s.t, want, s.list())
	assert.Equal(s.t, len(want), s.table.Len())
	return s
}

func (s *script) list() (got []string) {
	for _, b := range s.table.Bindings() {
		got = append(got, fmt.Sprintf("%s>%s %s %s %d", name(b.Phone), name(b.PBX), b.AOR, b.Contact,
			int(b.Expires.Sub(s.now).Seconds())))
	}
	return got
}

func name(a netip.AddrPort) string {
	for n, h := range hosts {
		if h == a {
			return n
		}
	}
	return a.String()
}

const (
	contactA = "m=<sip:200@10.1.10.10:5062;line=a>"
	boundA   = "A>P 200@pbx sip:200@10.1.10.10:5062;line=a "
)

func registered(t *testing.T) *script {
	return play(t).says("A>P 1 " + contactA + " e=300").has().
		says("P>A 200 1 " + contactA + ";expires=300").has(boundA + "300")
}

func TestARegistrationAndItsEnd(t *testing.T) {
	s := registered(t)
	assert.Len(t, s.st.Bound, 1)
	assert.Equal(t, s.now.Add(300*time.Second), s.table.Next())
	s.after(299 * time.Second).has(boundA + "1").after(time.Second).has()
	assert.Len(t, s.st.Removed, 1)
	assert.Zero(t, s.table.Next())

	registered(t).says("A>P 2 " + contactA + ";expires=0").has(boundA + "300").says("P>A 200 2").has()
	registered(t).says("A>P 2 " + contactA + " e=0").says("P>A 200 2 e=0").has()
	registered(t).says("A>P 2 m=* e=0").says("P>A 200 2").has()
	registered(t).says("A>P 2 m=*").says("P>A 200 2").has(boundA + "300") // without Expires: 0 it means nothing
}

func TestARefresh(t *testing.T) {
	s := registered(t).after(200 * time.Second).says("A>P 2 " + contactA + " e=300").has(boundA + "100").
		says("P>A 200 2 " + contactA + ";expires=280").has(boundA + "280")
	assert.Equal(t, s.now.Add(-200*time.Second), s.table.Bindings()[0].Since)
	assert.Equal(t, s.now, s.table.Bindings()[0].Refreshed)
	assert.Empty(t, s.st.Removed)
	// From another port after a restart of the phone.
	hosts["A'"] = netip.MustParseAddrPort("10.1.10.10:40000")
	defer delete(hosts, "A'")
	s.says("A'>P 3 " + contactA + " e=300").says("P>A' 200 3 " + contactA + ";expires=300").
		has("A'>P 200@pbx sip:200@10.1.10.10:5062;line=a 300")
}

// How long a binding lasts: what the PBX says of it counts.
func TestExpiries(t *testing.T) {
	for _, test := range []struct {
		asked, granted string
		want           int
	}{
		{contactA + " e=3600", contactA + ";expires=60", 60},                    // shorter
		{contactA + " e=60", contactA + ";expires=3600", 3600},                  // longer: the phone goes by it, too
		{contactA + " e=3600", contactA + " e=120", 120},                        // Expires of the response
		{contactA + ";expires=90 e=3600", contactA, 90},                         // the contact's own counts before Expires
		{contactA + ";expires=90", contactA + ";expires=80 e=70", 80},           // in the response as well
		{contactA + " e=600", "", 600},                                          // a PBX that lists nothing
		{contactA + " e=600", "e=500", 500},                                     // but says how long
		{contactA, contactA, 3600},                                              // nobody says (RFC 3261, section 10.2)
		{contactA + " e=soon", contactA, 3600},                                  // section 20.19
		{contactA + " e=4294967295", contactA, 7 * 24 * 3600},                   // bounded
		{contactA + " e=600", "m=<sip:200@198.51.100.7:4711>;expires=240", 240}, // rewritten behind a NAT
		{contactA + " e=200", "m=<sip:200@198.51.100.7:4711>;expires=240", 200},
		{contactA + " e=600", "m=<sip:200@10.1.10.10:5062;transport=udp;line=a>;expires=60", 60},
		{contactA + " e=600", "m=<sip:200@10.1.10.11>;expires=5,<SIP:200@10.1.10.10:5062>;expires=50", 50},
	} {
		s := play(t).says("A>P 1 " + test.asked).says("P>A 200 1 " + test.granted)
		s.has(fmt.Sprint(boundA, test.want))
	}
}

// What an earlier process knew goes on where it was: a refresh finds it, and it ends at its time.
func TestBindingsOfAnEarlierProcess(t *testing.T) {
	s := play(t)
	s.says("A>P 1 m=<sip:a@10.1.10.10:5062>;expires=600").says("P>A 200 1 m=<sip:a@10.1.10.10:5062>;expires=600")
	known := s.table.Bindings()
	require.Len(t, known, 1)

	s.table = New(100)
	for range 2 {
		s.table.Restore(s.now.Add(time.Minute), known[0])
	}
	assert.Equal(t, known, s.table.Bindings())
	assert.Equal(t, 1, s.table.Len())
	s.now = s.now.Add(5 * time.Minute)
	s.says("A>P 2 m=<sip:a@10.1.10.10:5062>;expires=600").says("P>A 200 2 m=<sip:a@10.1.10.10:5062>;expires=600")
	assert.Equal(t, 1, s.table.Len(), "refreshed")
	s.table.Expire(s.now.Add(time.Hour))
	assert.Zero(t, s.table.Len())

	s.table.Restore(s.now.Add(time.Hour), known[0])
	forever := known[0]
	forever.Expires = s.now.Add(1000 * time.Hour)
	s.table.Restore(s.now, Binding{Expires: forever.Expires})
	assert.Zero(t, s.table.Len(), "it has expired, or is none")
	s.table.Restore(s.now, forever)
	assert.Equal(t, s.now.Add(maxExpiry), s.table.Bindings()[0].Expires)
	full := New(0)
	full.Restore(s.now, forever)
	assert.EqualValues(t, 1, full.Beyond())
}

func TestNoRegistration(t *testing.T) {
	for _, status := range []string{"401", "407", "403", "404", "423", "500", "503", "302"} {
		play(t).says("A>P 1 " + contactA + " e=300").says("P>A " + status + " 1").has().says("P>A 200 1").has()
		// Neither does it end one.
		registered(t).says("A>P 2 " + contactA + " e=300").says("P>A " + status + " 2").has(boundA + "300").
			says("A>P 3 " + contactA + " e=0").says("P>A " + status + " 3").has(boundA + "300")
	}
	// Challenged, then with credentials.
	play(t).says("A>P 1 " + contactA + " e=300").says("P>A 401 1").says("A>P 2 " + contactA + " e=300").
		says("P>A 100 2").has().says("P>A 200 2 " + contactA).has(boundA + "300")
	// Too short, and again with what the PBX wants.
	play(t).says("A>P 1 " + contactA + " e=60").says("P>A 423 1").says("A>P 2 " + contactA + " e=300").
		says("P>A 200 2 " + contactA + ";expires=300").has(boundA + "300")
	// An answer of another transaction, of another host, to another one, too late, or to nothing.
	asks := func() *script { return play(t).says("A>P 1 " + contactA + " e=300") }
	asks().says("P>A 200 2").has()
	asks().says("P>A 200 1 id=2").has()
	asks().says("Q>A 200 1").has()
	asks().says("P>B 200 1").has()
	asks().after(31 * time.Second).says("P>A 200 1").has(boundA + "300")
	asks().after(32 * time.Second).says("P>A 200 1").has()
	assert.Zero(t, asks().after(32*time.Second).table.Next())
	play(t).says("P>A 200 1 " + contactA + ";expires=300").has()
	// A query binds nothing.
	registered(t).says("A>P 2").says("P>A 200 2 " + contactA + ";expires=10").has(boundA + "300")
	play(t).says("B>P 2").says("P>B 200 2 " + contactA + ";expires=10").has()
}

func TestSeveralContacts(t *testing.T) {
	const both = "m=<sip:200@10.1.10.10:5062>;expires=300,<sips:200@10.1.10.10:5061>;expires=600"
	const first, second = "A>P 200@pbx sip:200@10.1.10.10:5062 ", "A>P 200@pbx sips:200@10.1.10.10:5061 "
	s := play(t).says("A>P 1 "+both).says("P>A 200 1 "+both).has(first+"300", second+"600")
	assert.Len(t, s.st.Bound, 2)
	s.says("A>P 2 m=<sip:200@10.1.10.10:5062>;expires=0 m=<sips:200@10.1.10.10:5061>;expires=900").
		says("P>A 200 2 m=<sips:200@10.1.10.10:5061>;expires=900").has(second + "900")
	// A phone that starts again with another contact: the PBX has but one.
	s.says("A>P 3 m=<sip:200@10.1.10.10:6000>;expires=300").
		says("P>A 200 3 m=<sip:200@10.1.10.10:6000>;expires=300").has("A>P 200@pbx sip:200@10.1.10.10:6000 300")
	assert.Len(t, s.st.Removed, 1)
	// It keeps both: both are listed. Where the PBX lists what it rewrote, nothing is concluded.
	s.says("A>P 4 m=<sip:200@10.1.10.10:6001>;expires=300").
		says("P>A 200 4 m=<sip:200@10.1.10.10:6001>;expires=300,<sip:200@10.1.10.10:6000>;expires=9").
		has("A>P 200@pbx sip:200@10.1.10.10:6000 300", "A>P 200@pbx sip:200@10.1.10.10:6001 300").
		says("A>P 5 m=<sip:200@10.1.10.10:6002>;expires=300").says("P>A 200 5 m=<sip:200@198.51.100.1>;expires=300")
	assert.Len(t, s.list(), 3)
	s.says("A>P 6 m=* e=0").says("P>A 200 6").has()
	assert.Len(t, s.st.Removed, 3)
}

// Two phones with one address of record do not touch each other's bindings.
func TestTwoPhonesWithOneAddressOfRecord(t *testing.T) {
	const contactB = "m=<sip:200@10.1.10.11>"
	const boundB = "B>P 200@pbx sip:200@10.1.10.11 "
	s := registered(t).says("B>P 1 id=2 "+contactB+" e=60").says("P>B 200 1 id=2 "+contactB+";expires=60").
		has(boundA+"300", boundB+"60")
	assert.Equal(t, []netip.Addr{hosts["A"].Addr(), hosts["B"].Addr()}, s.table.PhonesOf([]byte("sip:200@pbx")))
	s.says("A>P 2 " + contactA + ";expires=0").says("P>A 200 2 " + contactB + ";expires=60").has(boundB + "60")
}

func TestQueries(t *testing.T) {
	s := registered(t).says("A>Q 7 id=3 aor=300 " + contactA).says("Q>A 200 7 id=3 aor=300 " + contactA + ";expires=60")
	a, b, p, q := hosts["A"].Addr(), hosts["B"].Addr(), hosts["P"].Addr(), hosts["Q"].Addr()
	assert.True(t, s.table.Known(a, p))
	assert.True(t, s.table.Known(netip.AddrFrom16(a.As16()), q), "IPv4 in IPv6")
	assert.False(t, s.table.Known(b, p))
	assert.False(t, s.table.Known(p, a))
	assert.Equal(t, []netip.Addr{p, q}, s.table.RegistrarsOf(a))
	assert.Empty(t, s.table.RegistrarsOf(b))
	for uri, want := range map[string]int{
		"sip:200@pbx": 1, "sips:200@PBX:5061;transport=tls": 1, "sip:300@pbx": 1, "sip:201@pbx": 0, "tel:200": 0, "": 0,
	} {
		assert.Len(t, s.table.PhonesOf([]byte(uri)), want, uri)
	}
	s.after(time.Minute)
	assert.Equal(t, []netip.Addr{p}, s.table.RegistrarsOf(a))
}

// Case 42: the mapping of a registration over a NAT is kept until the last binding on its path expires.
func TestMappingsToKeep(t *testing.T) {
	s := play(t).says("A>Q 1 " + contactA + " e=3600").says("Q>A 200 1 " + contactA + ";expires=3600").
		says("A>Q 1 id=2 aor=201 m=<sip:201@10.1.10.10:5062> e=300").
		says("Q>A 200 1 id=2 aor=201 m=<sip:201@10.1.10.10:5062>;expires=300")
	s.transport = TCP
	s.says("B>Q 1 id=3 aor=202 m=<sip:202@10.1.10.11> e=600").says("Q>B 200 1 id=3 aor=202")
	start := s.now
	want := []Mapping{{Phone: hosts["A"], PBX: hosts["Q"], Until: start.Add(time.Hour)}}
	assert.Equal(t, want, s.table.Mappings())
	s.after(150 * time.Second)
	assert.Equal(t, want, s.table.Mappings(), "conntrack forgets it after 120 s")
	s.after(350 * time.Second)
	assert.Equal(t, want, s.table.Mappings())
	s.after(3100 * time.Second)
	assert.Empty(t, s.table.Mappings())
}

func TestBounds(t *testing.T) {
	s := play(t)
	s.table.MaxBindings = 3
	for i := range 10 {
		s.says(fmt.Sprintf("A>P %d id=%d aor=%d %s e=300", i+1, i, i, contactA))
	}
	assert.Equal(t, 3, s.table.pending.order.Len())
	assert.Len(t, s.table.pending.byKey, 3)
	s.says("P>A 200 1 id=0 aor=0").has() // it made way
	for i := range 10 {
		s.says(fmt.Sprintf("A>P %d id=%d aor=%d %s e=300", i+1, i, i, contactA))
		s.says(fmt.Sprintf("P>A 200 %d id=%d aor=%d", i+1, i, i))
	}
	assert.Equal(t, 3, s.table.Len())
	assert.EqualValues(t, 7, s.table.Beyond())

	many := strings.TrimSuffix(strings.Repeat("<sip:a@10.1.10.10:%d>,", 20), ",")
	for i := range 20 {
		many = strings.Replace(many, "%d", fmt.Sprint(5060+i), 1)
	}
	s = play(t).says("A>P 1 m=" + many).says("P>A 200 1")
	assert.Equal(t, maxContacts, s.table.Len())
	play(t).says("A>P 1 m=<sip:" + strings.Repeat("a", 600) + "@x>").says("P>A 200 1").has()
	play(t).says("A>P 1 aor=" + strings.Repeat("a", 600) + " " + contactA).says("P>A 200 1").has()
	play(t).says("A>P 1 id=" + strings.Repeat("a", 600) + " " + contactA).says("P>A 200 1").has()
}

// A REGISTER that comes again does not get more time.
func TestARequestThatComesAgain(t *testing.T) {
	play(t).says("A>P 1 " + contactA).after(20 * time.Second).says("A>P 1 " + contactA).after(12 * time.Second).
		says("P>A 200 1").has()
	play(t).says("A>P 1 " + contactA).says("A>P 1 " + contactA).says("P>A 200 1").has(boundA + "3600").
		after(time.Second).says("P>A 200 1").has(boundA + "3599")
}

func TestOtherMessages(t *testing.T) {
	s := registered(t)
	var m message.Message
	for _, text := range []string{"INVITE sip:a@x SIP/2.0\r\n", "SIP/2.0 200 OK\r\n"} {
		require.Equal(t, message.None, m.Scan([]byte(text+"Via: SIP/2.0/UDP h;branch=z9hG4bK1-1\r\nFrom: <sip:a@x>;tag=1\r\n"+
			"To: <sip:200@pbx>\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\nContact: *\r\nExpires: 0\r\n\r\n")))
		assert.Equal(t, Step{}, s.table.Message(s.now, Packet{hosts["P"], hosts["A"], UDP}, &m))
	}
	s.has(boundA + "300")
}

func TestSameURI(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"sip:a@x", "SIP:a@X", true}, {"sip:a@x", "sip:A@x", false}, {"sip:a@x", "sip:a@x:5060", false},
		{"sip:a@x;line=1", "sip:a@x;line=2", false}, {"sip:a@x;line=1", "sip:a@x;ob;LINE=1", true},
		{"sip:a@x;line=1", "sip:a@x", true}, {"sip:a@x;ob;transport=TCP", "sip:a@x;transport=tcp", true},
		{"sip:a@x;transport=udp", "sip:a@x;transport=tcp", false}, {"sip:a@x", "sips:a@x", false}, {"", "", true},
		{"?", "!", false},
	} {
		assert.Equal(t, test.want, sameURI(test.a, test.b), "%s %s", test.a, test.b)
		assert.Equal(t, test.want, sameURI(test.b, test.a), "%s %s", test.b, test.a)
	}
}

// Whatever comes: the indexes agree with each other, the bound holds, and in the end nothing is left.
func TestNothingIsLeft(t *testing.T) {
	names, most := []string{"A", "B"}, 0
	rapid.Check(t, func(rt *rapid.T) {
		s := play(t)
		s.table.MaxBindings = 5
		for range rapid.IntRange(0, 60).Draw(rt, "messages") {
			phone := rapid.SampledFrom(names).Draw(rt, "phone")
			pbx := rapid.SampledFrom([]string{"P", "Q"}).Draw(rt, "pbx")
			cseq := rapid.IntRange(1, 3).Draw(rt, "cseq")
			tail := fmt.Sprintf(" %d aor=%d", cseq, rapid.IntRange(1, 3).Draw(rt, "aor"))
			contacts := rapid.SampledFrom([]string{"", " m=* e=0", " m=<sip:a@x> e=60", " m=<sip:a@x>;expires=0",
				" m=<sip:a@x>,<sip:b@x>;expires=9", " m=<sip:b@x>"}).Draw(rt, "contacts")
			what := rapid.IntRange(0, 3).Draw(rt, "what") // a request, a response, or both
			if what != 0 {
				s.says(phone + ">" + pbx + tail + contacts)
			}
			if what != 1 {
				status := rapid.SampledFrom([]string{"200", "200", "401", "100"}).Draw(rt, "status")
				s.says(pbx + ">" + phone + " " + status + tail + contacts)
			}
			most = max(most, s.table.Len())
			s.after(time.Duration(rapid.IntRange(0, 10).Draw(rt, "s")) * time.Second)
			consistent(rt, s.table)
		}
		for !s.table.Next().IsZero() {
			s.now = s.table.Next()
			s.table.Expire(s.now)
			consistent(rt, s.table)
		}
		require.Zero(rt, s.table.Len())
		require.Empty(rt, s.table.byAOR)
		require.Empty(rt, s.table.byPhone)
		require.Empty(rt, s.table.pending.byKey)
	})
	t.Logf("up to %d bindings", most)
}

func consistent(t *rapid.T, table *Table) {
	require.LessOrEqual(t, table.Len(), table.MaxBindings)
	var first time.Time
	for _, b := range table.Bindings() {
		if first.IsZero() || b.Expires.Before(first) {
			first = b.Expires
		}
	}
	if oldest := table.pending.oldest(); oldest != nil && (first.IsZero() || oldest.until.Before(first)) {
		first = oldest.until
	}
	require.Equal(t, first, table.Next())
	byAOR, byPhone := 0, 0
	for _, all := range table.byAOR {
		byAOR += len(all)
	}
	for _, all := range table.byPhone {
		byPhone += len(all)
	}
	require.Equal(t, table.Len(), byAOR)
	require.Equal(t, table.Len(), byPhone)
	require.Equal(t, len(table.pending.byKey), table.pending.order.Len())
}
