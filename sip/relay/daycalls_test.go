package relay

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"ringway/sip/dialog"
	"ringway/sip/message"
	"ringway/sip/transparent"
)

// The addresses of a day: phones here, a PBX of this box, a PBX at the far site, a trunk in the internet.
var (
	dayPBX    = netip.MustParseAddrPort("10.1.20.5:5060")
	dayFarPBX = netip.MustParseAddrPort("10.2.20.5:5060")
	dayTrunk  = netip.MustParseAddrPort("203.0.113.9:5060")
)

const (
	dayPhones = 200
	caller    = 0
	callee    = 1
)

func dayPhone(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 10, byte(2 + n%dayPhones)}), 5060)
}

// sipEnd is one end of a call.
type sipEnd struct {
	user, tag string
	media     netip.Addr
	port      int
}

// dayCall is one call of a day. Its messages go over all hops of its path, so that one over two crosses the box twice.
type dayCall struct {
	d    *day
	rng  *rand.Rand
	n    int
	id   string
	path []netip.AddrPort
	tcp  bool

	ends     [2]sipEnd
	cseq     [2]uint32
	branches int
	session  string // its Session-Expires; empty: it has no session timer
	held     bool
}

// newCall makes the call of a number: the same seed and number make the same call.
func (d *day) newCall(n int) *dayCall {
	rng := rand.New(rand.NewPCG(d.seed, uint64(n)))
	c := &dayCall{d: d, rng: rng, n: n, id: fmt.Sprintf("%d-%x@ringway", n, rng.Uint32()), tcp: rng.IntN(4) == 0}
	here := dayPhone(rng.IntN(dayPhones))
	farPhone := netip.AddrFrom4([4]byte{10, 2, 10, byte(2 + rng.IntN(200))})
	media := [2]netip.Addr{here.Addr(), farPhone}
	switch rng.IntN(6) {
	case 0, 1: // to the far site
		c.path = []netip.AddrPort{here, dayFarPBX}
	case 2: // from there
		c.path, media = []netip.AddrPort{dayFarPBX, here}, [2]netip.Addr{farPhone, here.Addr()}
	case 3: // to the internet, by the PBX of this box: the call crosses it twice
		c.path, media[callee] = []netip.AddrPort{here, dayPBX, dayTrunk}, dayTrunk.Addr()
	case 4: // from the internet
		c.path, media = []netip.AddrPort{dayTrunk, here}, [2]netip.Addr{dayTrunk.Addr(), here.Addr()}
	case 5: // within the LANs
		c.path, media[callee] = []netip.AddrPort{here, dayPBX}, dayPhone(rng.IntN(dayPhones)).Addr()
	}
	for i := range c.ends {
		c.ends[i] = sipEnd{
			user: fmt.Sprint(1000 + rng.IntN(dayPhones)), media: media[i], port: 10000 + 2*rng.IntN(20000),
		}
	}
	c.ends[caller].tag = fmt.Sprintf("a%d", n)
	switch {
	case rng.IntN(60) == 0:
		c.ends[callee].user = "112"
	case len(c.path) == 3:
		c.ends[callee].user = fmt.Sprintf("00%d%07d", 43+rng.IntN(3), rng.IntN(1e7))
	}
	if rng.IntN(3) == 0 {
		c.session = fmt.Sprint(90 + rng.IntN(900))
	}
	return c
}

func (c *dayCall) chance(percent float64) bool { return c.rng.Float64()*100 < percent }

// pause waits between two durations, to the nanosecond: hardly two of a day's moments are the same, so that a seed
// means one order of the messages.
func (c *dayCall) pause(least, most time.Duration) {
	time.Sleep(least + time.Duration(c.rng.Int64N(int64(most-least))))
}

// request is a request of one end, which its responses belong to.
type request struct {
	c      *dayCall
	by     int
	method string
	cseq   uint32
	branch string
	toTag  string
}

func (c *dayCall) newRequest(by int, method string) request {
	c.cseq[by]++
	c.branches++
	return request{c, by, method, c.cseq[by], fmt.Sprintf("z9hG4bK%d-%d", c.n, c.branches), c.ends[1-by].tag}
}

// ask sends a new request. It reports whether it went over all hops.
func (c *dayCall) ask(by int, method, extra, body string) (request, bool) {
	r := c.newRequest(by, method)
	return r, r.send(method, extra, body)
}

func (r request) send(method, extra, body string) bool {
	c := r.c
	start := fmt.Sprintf("%s sip:%s@%s SIP/2.0", method, c.ends[1-r.by].user, c.path[(1-r.by)*(len(c.path)-1)])
	return c.pass(r.by, r.text(start, method, r.branch, r.toTag, extra, body), method == "INVITE" && r.toTag == "")
}

// answer sends a response to the request.
func (r request) answer(status int, extra, body string) bool {
	tag := r.toTag
	if tag == "" {
		tag = r.c.ends[1-r.by].tag
	}
	if status == 100 {
		tag = ""
	}
	return r.c.pass(1-r.by, r.text(fmt.Sprintf("SIP/2.0 %d Status", status), r.method, r.branch, tag, extra, body), false)
}

// ack acknowledges an answer: a 2xx by a transaction of its own (RFC 3261, section 13.2.2.4).
func (r request) ack(accepted bool, body string) {
	r.toTag = r.c.ends[1-r.by].tag
	if accepted {
		r.c.branches++
		r.branch = fmt.Sprintf("z9hG4bK%d-%d", r.c.n, r.c.branches)
	}
	r.send("ACK", "", body)
}

func (r request) text(start, method, branch, toTag, extra, body string) string {
	from, to := r.c.ends[r.by], r.c.ends[1-r.by]
	if toTag != "" {
		toTag = ";tag=" + toTag
	}
	if body != "" {
		extra += "Content-Type: application/sdp\r\n"
	}
	return fmt.Sprintf("%s\r\nVia: SIP/2.0/%s 10.1.10.9:5060;branch=%s\r\nFrom: <sip:%s@ringway>;tag=%s\r\n"+
		"To: <sip:%s@ringway>%s\r\nCall-ID: %s\r\nCSeq: %d %s\r\nMax-Forwards: 70\r\n%sContent-Length: %d\r\n\r\n%s",
		start, map[bool]string{false: "UDP", true: "TCP"}[r.c.tcp], branch, from.user, from.tag,
		to.user, toTag, r.c.id, r.cseq, method, extra, len(body), body)
}

// pass takes a message over the hops of the path. If one is refused on its way, whoever sent it there has the answer,
// and acknowledges the one to an INVITE; a proxy passes it back.
func (c *dayCall) pass(by int, text string, isFirst bool) bool {
	path := c.path
	if by == callee {
		path = []netip.AddrPort{}
		for i := range c.path {
			path = append(path, c.path[len(c.path)-1-i])
		}
	}
	for i := range len(path) - 1 {
		hop := strings.Replace(text, ";branch=", fmt.Sprintf(";branch=z9hG4bKh%d-", i), 1)
		a := c.d.pass(path[i], path[i+1], c.tcp, hop)
		if !c.tcp && c.chance(3) { // it comes again
			c.pause(400*time.Millisecond, 600*time.Millisecond)
			again := c.d.pass(path[i], path[i+1], c.tcp, hop)
			a.Drop = a.Drop || again.Drop && len(again.Reply) > 0
		}
		if !a.Drop {
			c.pause(time.Millisecond, 20*time.Millisecond)
			continue
		}
		c.d.count("refused here")
		if len(a.Reply) > 0 && isFirst {
			c.backward(path[:i+1], path[i+1], hop, string(a.Reply))
		}
		return false
	}
	return true
}

// backward acknowledges what the box refused, and gives the hops before the answer of a proxy.
func (c *dayCall) backward(path []netip.AddrPort, to netip.AddrPort, invite, reply string) {
	ackOf := func(invite, reply string) string {
		s := strings.Replace(strings.Replace(invite, "INVITE sip", "ACK sip", 1), " INVITE\r\n", " ACK\r\n", 1)
		at := strings.Index(s, "\r\nContent-Type")
		if at < 0 {
			at = strings.Index(s, "\r\nContent-Length")
		}
		return replaceLine(s[:at]+"\r\nContent-Length: 0\r\n\r\n", "To: ", line(reply, "To: "))
	}
	c.pause(time.Millisecond, 9*time.Millisecond)
	c.d.pass(path[len(path)-1], to, c.tcp, ackOf(invite, reply))
	for i := len(path) - 1; i > 0; i-- {
		hop := strings.Replace(invite, "branch=z9hG4bKh", "branch=z9hG4bKh0-", 1)
		hop = strings.Replace(hop, fmt.Sprintf("h0-%d-", i), fmt.Sprintf("h%d-", i-1), 1)
		answer := "SIP/2.0 503 Service Unavailable" + hop[strings.Index(hop, "\r\n"):]
		at := strings.Index(answer, "\r\n\r\n")
		answer = replaceLine(answer[:at+4], "To: ", line(reply, "To: "))
		answer = replaceLine(strings.Replace(answer, "Content-Type: application/sdp\r\n", "", 1), "Content-Length: ", "0")
		c.d.pass(path[i], path[i-1], c.tcp, answer)
		c.pause(time.Millisecond, 9*time.Millisecond)
		c.d.pass(path[i-1], path[i], c.tcp, ackOf(hop, answer))
	}
}

func line(text, head string) string {
	_, rest, _ := strings.Cut(text, "\r\n"+head)
	value, _, _ := strings.Cut(rest, "\r\n")
	return value
}

func replaceLine(text, head, value string) string {
	return strings.Replace(text, head+line(text, head), head+value, 1)
}

// pass shows the core a message, as a datagram or in two pieces of a stream, and waits as long as the relay would.
func (d *day) pass(from, to netip.AddrPort, tcp bool, text string) transparent.Action {
	m := transparent.Message{
		From: from, To: to, FromNear: from.Addr().Is4() && from.Addr().As4()[0] == 10 && from.Addr().As4()[1] == 1,
		Raw: []byte(text), SIP: new(message.Message),
	}
	if tcp {
		m.Transport = transparent.TCP
		var f message.Framer
		n, why := f.Next(m.Raw[:len(m.Raw)/2], m.SIP)
		if n == 0 && why == message.None {
			n, why = f.Next(m.Raw, m.SIP)
		}
		if n == 0 && why == message.None {
			return transparent.Action{} // more is needed, and never comes
		}
		if m.Reason = why; n > 0 {
			m.Raw = m.Raw[:n]
		}
	} else {
		m.Reason = m.SIP.Scan(m.Raw)
	}
	r := d.reader()
	if r == nil {
		d.unread.Add(1)
		return transparent.Action{}
	}
	d.messages.Add(1)
	a := r.handle(&m)
	if a.Wait != nil {
		a.Wait()
	}
	return a
}

// offer is the description of one end, with a direction.
func (c *dayCall) offer(end int, direction string) string {
	e := c.ends[end]
	s := description(e.media.String(), e.port)
	if direction == "0.0.0.0" { // hold as RFC 2543 has it
		return strings.Replace(s, "c=IN IP4 "+e.media.String(), "c=IN IP4 0.0.0.0", 1)
	}
	if direction != "" {
		s += "a=" + direction + "\r\n"
	}
	return s
}

func (c *dayCall) timer() string {
	if c.session == "" {
		return ""
	}
	return "Session-Expires: " + c.session + ";refresher=uac\r\n"
}

// run is the call from its first message to the last one that is seen of it.
func (c *dayCall) run() {
	body := c.offer(caller, "")
	late := c.chance(3)
	if late {
		body = ""
	}
	invite, ok := c.ask(caller, "INVITE", c.timer(), body)
	if !ok {
		c.d.count("begin: refused")
		return
	}
	if c.chance(3) {
		c.d.count("begin: no response at all")
		return
	}
	if c.chance(15) {
		c.ends[callee].tag = "challenge"
		invite.answer(407, "Proxy-Authenticate: Digest realm=\"ringway\", nonce=\"n\"\r\n", "")
		invite.ack(false, "")
		c.ends[callee].tag = ""
		credentials := "Proxy-Authorization: Digest username=\"" + c.ends[caller].user + "\", response=\"r\"\r\n"
		if invite, ok = c.ask(caller, "INVITE", c.timer()+credentials, body); !ok {
			c.d.count("begin: refused with credentials")
			return
		}
	}
	invite.answer(100, "", "")
	c.pause(50*time.Millisecond, time.Second)
	c.ring(invite, late)
	c.pause(time.Second, 12*time.Second)
	c.conclude(invite, late)
}

// ring rings: with early media, reliable provisional responses, several branches.
func (c *dayCall) ring(invite request, late bool) {
	branches := 1
	if c.chance(10) {
		branches = 2 + c.rng.IntN(3)
		c.d.count("ring: forks")
	}
	for i := range branches {
		c.ends[callee].tag = fmt.Sprintf("b%d-%d", c.n, i)
		if late || c.chance(60) {
			invite.answer(180, "", "")
			continue
		}
		c.d.count("ring: early media")
		reliable := c.chance(50)
		extra := ""
		if reliable {
			extra = "Require: 100rel\r\nRSeq: 1\r\n"
		}
		invite.answer(183, extra, c.offer(callee, ""))
		if reliable {
			c.d.count("ring: PRACK")
			if prack, ok := c.ask(caller, "PRACK", fmt.Sprintf("RAck: 1 %d INVITE\r\n", invite.cseq), ""); ok {
				prack.answer(200, "", "")
			}
		}
		if reliable && c.chance(30) {
			c.d.count("ring: UPDATE")
			c.update(caller, c.chance(50))
		}
	}
}

// conclude answers the call, or ends it.
func (c *dayCall) conclude(invite request, late bool) {
	final := func(status int) {
		invite.answer(status, "", "")
		if !c.chance(5) { // or the ACK is lost
			invite.ack(false, "")
		}
	}
	switch x := c.rng.IntN(100); {
	case x < 12:
		c.d.count("end: busy")
		final(486)
	case x < 16:
		c.d.count("end: rejected")
		final([]int{403, 404, 480, 488, 603}[c.rng.IntN(5)])
	case x < 18:
		c.d.count("end: redirected")
		final(302)
	case x < 28:
		c.d.count("end: cancelled")
		cancel := invite
		cancel.method, cancel.toTag = "CANCEL", ""
		cancel.send("CANCEL", "", "")
		cancel.answer(200, "", "")
		if c.chance(90) { // or the 487 is lost
			final(487)
		}
	case x < 30:
		c.d.count("end: rings on")
	case x < 31: // CANCEL and 200 cross
		c.d.count("end: cancelled and answered")
		cancel := invite
		cancel.method, cancel.toTag = "CANCEL", ""
		cancel.send("CANCEL", "", "")
		c.accept(invite, late)
	default:
		c.accept(invite, late)
	}
}

func (c *dayCall) accept(invite request, late bool) {
	body, answer := c.offer(callee, ""), ""
	if late {
		answer = c.offer(caller, "")
	}
	if !invite.answer(200, c.timer(), body) {
		c.d.count("end: the answer was refused")
	}
	if c.chance(3) {
		c.d.count("end: lost ACK")
		for range 3 {
			c.pause(500*time.Millisecond, 4*time.Second)
			invite.answer(200, c.timer(), body)
		}
		return
	}
	invite.ack(true, answer)
	if c.ends[callee].tag != fmt.Sprintf("b%d-0", c.n) && c.chance(30) {
		c.d.count("ring: two branches answer")
		kept := c.ends[callee].tag
		c.ends[callee].tag = fmt.Sprintf("b%d-0", c.n)
		invite.answer(200, c.timer(), body)
		invite.ack(true, answer)
		if c.chance(80) {
			c.bye(caller, true)
		}
		c.ends[callee].tag = kept
	}
	if c.talk() {
		c.hangUp()
	}
}

// talk reports whether somebody has to hang up.
func (c *dayCall) talk() bool {
	length := min(time.Duration(c.rng.ExpFloat64()*float64(110*time.Second)), time.Hour)
	if c.chance(1) {
		length += 20 * time.Minute
	}
	for length > 0 {
		step := min(length, 20*time.Second+time.Duration(c.rng.Int64N(int64(time.Minute))))
		length -= step
		time.Sleep(step)
		if c.session != "" && c.chance(60) {
			c.update(caller, false)
		}
		a, b := c.ends[caller], c.ends[callee]
		if r := c.d.reader(); r != nil {
			r.media([]dialog.Flow{
				dialog.NewFlow(a.media, netip.AddrPortFrom(b.media, uint16(b.port)), false),
				dialog.NewFlow(b.media, netip.AddrPortFrom(a.media, uint16(a.port)), false),
			})
		}
		switch x := c.rng.IntN(100); {
		case x < 8:
			c.hold()
		case x < 14:
			by := c.rng.IntN(2)
			c.ends[by].port = 10000 + 2*c.rng.IntN(20000)
			c.d.count("talk: a port moves")
			c.reinvite(by, "", 200)
		case x < 17:
			c.d.count("talk: UPDATE with an offer")
			c.update(c.rng.IntN(2), true)
		case x < 19:
			c.d.count("talk: 491")
			c.reinvite(c.rng.IntN(2), "", 491)
		case x < 20:
			if r, ok := c.ask(c.rng.IntN(2), "INFO", "", ""); ok {
				r.answer(200, "", "")
			}
		case x == 20 && !c.held:
			c.d.count("end: unknown there")
			c.reinvite(c.rng.IntN(2), "", 481)
			return false
		}
	}
	return true
}

// hold holds, and resumes. A call on hold without a session timer whose BYE is lost never ends, by design: nothing of
// it is seen, and nothing has to be. There is none of these here: see hangUp.
func (c *dayCall) hold() {
	c.d.count("talk: hold")
	by := c.rng.IntN(2)
	how := []string{"inactive", "0.0.0.0", "sendonly"}[c.rng.IntN(3)]
	c.held = c.held || how != "sendonly"
	c.reinvite(by, how, 200)
	c.pause(5*time.Second, 90*time.Second)
	if c.session != "" && c.chance(10) {
		return
	}
	if c.reinvite(by, "", 200) {
		c.resumed()
	}
}

// resumed notes that the call is not on hold any more. Where a process may have missed that, it is for this one.
func (c *dayCall) resumed() { c.held = c.held && c.d.replaces }

var heldAnswer = map[string]string{"inactive": "inactive", "0.0.0.0": "inactive", "sendonly": "recvonly", "": ""}

func (c *dayCall) reinvite(by int, direction string, status int) bool {
	r, ok := c.ask(by, "INVITE", c.timer(), c.offer(by, direction))
	if !ok {
		return false
	}
	body := ""
	if status == 200 {
		body = c.offer(1-by, heldAnswer[direction])
	}
	ok = r.answer(status, c.timer(), body)
	if status != 481 || c.chance(90) {
		r.ack(status == 200, "")
	}
	return ok
}

func (c *dayCall) update(by int, offers bool) {
	offer, answer := "", ""
	if offers {
		offer, answer = c.offer(by, ""), c.offer(1-by, "")
	}
	if r, ok := c.ask(by, "UPDATE", c.timer(), offer); ok {
		r.answer(200, c.timer(), answer)
		if offers {
			c.resumed()
		}
	}
}

func (c *dayCall) hangUp() {
	by := c.rng.IntN(2)
	switch x := c.rng.IntN(100); {
	case x < 4 && (!c.held || c.session != ""):
		c.d.count("end: lost BYE")
	case x < 8:
		c.d.count("end: lost answer to BYE")
		c.bye(by, false)
	case x < 10:
		c.d.count("end: both hang up")
		c.ask(by, "BYE", "", "")
		c.bye(1-by, true)
	default:
		c.d.count("end: BYE")
		c.bye(by, true)
	}
}

func (c *dayCall) bye(by int, answered bool) {
	for {
		generation := c.d.generation.Load()
		r, ok := c.ask(by, "BYE", "", "")
		if !ok { // the box follows one of its legs alone: then the other end can hang up
			c.pause(time.Second, 2*time.Second)
			r, _ = c.ask(1-by, "BYE", "", "")
		}
		if answered {
			r.answer(200, "", "")
		}
		if !c.d.replaces || !c.held || c.session != "" {
			return
		}
		// A call on hold without a session timer whose end is not seen, or is not in the journal yet when the process
		// dies, never ends, by design: see hold. So there is none.
		c.pause(2*journalEvery, 3*journalEvery)
		if generation%2 == 0 && c.d.generation.Load() == generation {
			return
		}
	}
}

// register is what a phone does once in an hour or sooner.
func (d *day) register(rng *rand.Rand, n int) {
	c := &dayCall{d: d, rng: rng, n: -n, id: fmt.Sprintf("reg-%d", n), path: []netip.AddrPort{dayPhone(n), dayPBX}}
	if n%3 == 0 {
		c.path[1] = dayFarPBX
	}
	user := fmt.Sprint(1000 + n%dayPhones)
	c.ends = [2]sipEnd{{user: user, tag: fmt.Sprintf("r%d", n)}, {user: user}}
	expires := 120 + rng.IntN(3480)
	if rng.IntN(10) == 0 {
		expires = 0
	}
	contact := fmt.Sprintf("Contact: <sip:%s@%s>;expires=%d\r\n", user, c.path[0], expires)
	r, ok := c.ask(caller, "REGISTER", contact, "")
	if !ok {
		return
	}
	c.ends[callee].tag = "reg"
	r.answer(401, "WWW-Authenticate: Digest realm=\"ringway\", nonce=\"n\"\r\n", "")
	c.ends[callee].tag = ""
	r, ok = c.ask(caller, "REGISTER", contact+"Authorization: Digest username=\""+user+"\", response=\"r\"\r\n", "")
	if !ok || c.chance(3) { // the answer is lost
		return
	}
	if expires == 0 {
		contact = ""
	}
	c.ends[callee].tag = "reg"
	r.answer(200, contact, "")
}

// garbage is what strangers send, and phones that are broken.
func (d *day) garbage(rng *rand.Rand, n int) {
	from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(rng.IntN(4)), byte(1 + rng.IntN(250))}), 5060)
	if rng.IntN(4) == 0 {
		from = dayPhone(rng.IntN(dayPhones))
	}
	to, tcp := []netip.AddrPort{dayPBX, dayFarPBX, dayPhone(n)}[rng.IntN(3)], rng.IntN(3) == 0
	c := &dayCall{d: d, rng: rng, n: n, id: fmt.Sprintf("stray-%d", n), path: []netip.AddrPort{from, to}, tcp: tcp}
	c.ends = [2]sipEnd{
		{user: "x", tag: fmt.Sprintf("s%d", n), media: from.Addr(), port: 4000}, {user: fmt.Sprint(rng.IntN(9999))},
	}
	good := c.newRequest(caller, "INVITE").text("INVITE sip:1@10.1.20.5 SIP/2.0", "INVITE", "z9hG4bKx", "", "",
		c.offer(caller, ""))
	switch rng.IntN(8) {
	case 0: // no SIP
		b := make([]byte, rng.IntN(400))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		d.pass(from, to, tcp, string(b))
	case 1: // an INVITE with faults
		b := []byte(good)
		for range 1 + rng.IntN(4) {
			b[rng.IntN(len(b))] = byte(rng.Uint32())
		}
		d.pass(from, to, tcp, string(b))
	case 2:
		d.pass(from, to, tcp, strings.Replace(good, "Content-Length:", "Content-Length: 0\r\nContent-Length:", 1))
	case 3: // cut off
		d.pass(from, to, tcp, good[:rng.IntN(len(good))])
	case 4:
		d.pass(from, to, tcp, "\r\n\r\n")
	case 5: // what belongs to no call
		c.ends[callee].tag = "nobody"
		method := []string{"BYE", "UPDATE", "INVITE", "PRACK", "ACK", "CANCEL"}[rng.IntN(6)]
		r, _ := c.ask(caller, method, "", []string{"", c.offer(caller, "")}[rng.IntN(2)])
		if rng.IntN(2) == 0 {
			r.answer([]int{100, 180, 200, 404, 481}[rng.IntN(5)], "", "")
		}
	case 6: // a sweep
		for range 1 + rng.IntN(20) {
			c.ends[callee].user = fmt.Sprint(rng.IntN(9999))
			c.id = fmt.Sprintf("sweep-%d-%d", n, rng.Uint32())
			r, ok := c.ask(caller, []string{"OPTIONS", "INVITE", "SUBSCRIBE"}[rng.IntN(3)], "", "")
			if ok {
				c.ends[callee].tag = "no"
				r.answer([]int{401, 403, 404}[rng.IntN(3)], "", "")
				c.ends[callee].tag = ""
			}
		}
	case 7: // passwords are guessed
		for range 1 + rng.IntN(12) {
			r, ok := c.ask(caller, "REGISTER", "Authorization: Digest username=\"1\", response=\"x\"\r\n"+
				"Contact: <sip:1@"+from.String()+">\r\n", "")
			if ok {
				c.ends[callee].tag = "no"
				r.answer(403, "", "")
				c.ends[callee].tag = ""
			}
		}
	}
}
