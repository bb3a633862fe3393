package offer

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"ringway/sip/sdp"
)

// maxBranches bounds the forks of a call.
const maxBranches = 16

// Call is what is known of one call: the legs of each of its branches. It is not safe for concurrent use.
//
// A branch is a dialog, named by the tag of the callee (RFC 3261 section 12). The offer of the first INVITE has no such
// tag yet: it is the same for all branches (tag ""), each of which answers it for itself.
type Call struct {
	config   Config
	places   [2]Place
	initial  *branch
	branches map[string]*branch
	ports    map[netip.AddrPort]int // how many legs hold each
	epoch    uint32
}

// branch is a dialog, or the offer that is to become some.
type branch struct {
	legs [2][]leg
	// exchange is the last offer.
	exchange exchange
	// before is what Reject returns to; nil: every offer has its answer.
	before *agreed
	// told is the o= of the last offer that was passed on, by the end that got it. That end may take another offer with
	// the same one for the same, and pass over it (RFC 3264 section 8).
	told [2]string
}

// agreed is what was agreed before an offer. It has neither legs nor lines if nothing was.
type agreed struct {
	legs     [2][]leg
	exchange exchange
}

// exchange is an offer, and what was made of it.
type exchange struct {
	from   End
	pass   bool   // the bodies are passed on as they are
	passed []Line // if so
	lines  []offered
}

type offered struct {
	fate     fate
	kind     sdp.Kind
	protocol string // as offered, which the answer repeats
	class    class
	off      bool // port 0
	mux      bool
	offer    terms
	answer   terms

	// Of a line that is left alone.
	passes    bool // neither the offer nor the answer has port 0
	encrypted bool
}

// terms are what one description says about packets.
type terms struct {
	direction       sdp.Direction
	held            bool
	codecs          []Codec
	ptime, maxPtime int
}

func (s *section) terms() terms {
	return terms{s.Direction, s.held(), s.codecs(), s.Ptime, s.MaxPtime}
}

// sends and receives are of the end that wrote the description.
func (t *terms) sends() bool {
	return t.direction == sdp.SendRecv || t.direction == sdp.SendOnly
}

func (t *terms) receives() bool {
	return !t.held && (t.direction == sdp.SendRecv || t.direction == sdp.RecvOnly)
}

// NewCall begins a call between these two places.
func NewCall(config Config, caller, callee Place) *Call {
	return &Call{
		config: config, places: [2]Place{caller, callee},
		branches: map[string]*branch{}, ports: map[netip.AddrPort]int{},
	}
}

// SetPlace changes what is known of an end, for offers and answers to come. An answer is checked against the policy of
// its own time, not that of its offer. What was agreed before goes on: whether it may, is what Allowed is for.
func (c *Call) SetPlace(end End, p Place) { c.places[end] = p }

// Allowed says whether what a branch has agreed on is allowed yet. If it is not, the error is a *Refusal: none of its
// media may pass from now on, and the call is to be ended unless another offer is made.
func (c *Call) Allowed(tag string) error {
	b := c.branches[tag]
	if b == nil {
		return nil
	}
	inForce := agreed{b.legs, b.exchange}
	if b.before != nil {
		inForce = *b.before
	}
	if r := c.allowed(&inForce); r != nil {
		return r
	}
	return nil
}

// allowed is nil if policy allows what was agreed.
func (c *Call) allowed(a *agreed) *Refusal {
	switch {
	case !c.required():
		return nil
	case a.exchange.pass:
		return notAcceptable("SRTP is required by now, and the call's media is not relayed")
	}
	for i := range a.exchange.lines {
		o := &a.exchange.lines[i]
		if o.fate == untouched && o.passes && (o.class != other || !o.encrypted) {
			return notAcceptable("SRTP is required by now, and a media line is not RTP")
		}
		for e := range a.legs {
			if l := &a.legs[e][i]; o.fate == relayed && l.live && !c.places[e].permits(l) {
				return notAcceptable("SRTP is required by now, and a media line has none that is acceptable")
			}
		}
	}
	return nil
}

// terminates says whether media is relayed at all.
func (c *Call) terminates() bool {
	return c.places[Caller].Level != Off || c.places[Callee].Level != Off
}

func (c *Call) required() bool {
	return c.places[Caller].Level == Require || c.places[Callee].Level == Require
}

func (c *Call) nextEpoch() uint32 {
	c.epoch++
	return c.epoch
}

// Epochs are those that a Result may have from now on, in ascending order. Who keeps state by epoch (a sender with its
// indices, a receiver, an association) keeps these, also while no Result names them, and forgets all others: none of
// them comes back.
func (c *Call) Epochs() []uint32 {
	var all []uint32
	legs := func(legs [2][]leg) {
		for i := range legs {
			for j := range legs[i] {
				l := &legs[i][j]
				all = append(all, l.sendEpoch, l.receiveEpoch, l.dtls.Epoch)
				for _, a := range slices.Concat(l.lines, l.again) {
					if !a.left {
						all = append(all, a.epoch)
					}
				}
			}
		}
	}
	each := func(b *branch) {
		legs(b.legs)
		if b.before != nil {
			legs(b.before.legs)
		}
	}
	for _, b := range c.branches {
		each(b)
	}
	if c.initial != nil {
		each(c.initial)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	return slices.DeleteFunc(all, func(e uint32) bool { return e == 0 })
}

// take notes that a branch uses a key, and says whether another one has used it, if it was offered to several.
func (c *Call) take(end End, epoch uint32) (taken bool) {
	if c.initial == nil {
		return false
	}
	for i := range c.initial.legs[end] {
		lines := c.initial.legs[end][i].lines
		for j := range lines {
			if lines[j].epoch == epoch {
				taken, lines[j].taken = lines[j].taken, true
			}
		}
	}
	return taken
}

// Offer reads an offer of one end for the other. tag is the callee's, empty for that of the first INVITE. fresh says
// that the offer answers a request without one: it may be for another peer than the one before, so keys towards it are
// new. It is to be false for a message that is sent again. An offer that comes again gives the same result again. The
// error is a *Refusal; then the call is as it was.
//
// The line o= is not changed. So an offer with the o= of the one before is passed on as the same text, except for keys
// that must not be offered again: those that were in use (also an a=tls-id), those before fresh, and those that policy
// has ruled out.
func (c *Call) Offer(tag string, from End, body []byte, fresh bool) (Result, error) {
	b := c.branches[tag]
	if tag == "" {
		b = c.initial
	}
	passes := !c.terminates() && (b == nil || b.exchange.pass)
	full := b == nil && tag != "" && len(c.branches) >= maxBranches
	if b == nil {
		b = &branch{}
	}
	switch {
	case passes && full: // it passes all the same
		return Result{Body: body}, nil
	case passes:
		c.pass(tag, from, b)
		return Result{Body: body}, nil
	case full:
		return Result{}, &Refusal{503, "too many branches of a call"}
	}
	if b.before != nil && b.exchange.from != from {
		return Result{}, &Refusal{491, "the other end has made an offer"} // RFC 3261 section 14.2
	}
	d, err := read(body)
	if err != nil {
		return Result{}, notAcceptable(err.Error())
	}
	defer d.wipe()

	if d.needsICE(b.legs[from]) && !c.required() {
		n := c.pass(tag, from, b)
		n.exchange.passed = d.passed()
		n.told[from.other()] = d.origin()
		return Result{Body: body, Passed: n.exchange.passing()}, nil
	}
	n := &branch{exchange: exchange{from: from}, told: b.told}
	renews := make([]bool, len(d.sections))
	for i := range renews {
		renews[i] = fresh && (b.before == nil || b.lacks(i))
	}
	for e := range n.legs {
		n.legs[e] = c.nextLegs(b, End(e), len(d.sections))
	}
	changes, lines, refusal := c.offer(n, d, tag != "", renews)
	if refusal != nil {
		c.dropLegs(&n.legs)
		return Result{}, refusal
	}
	passed := d.splice(changes)
	if len(passed) > MaxPassed {
		c.dropLegs(&n.legs)
		return Result{}, notAcceptable(errUnreadable.Error())
	}
	n.told[from.other()] = d.origin()
	c.begin(b, n)
	c.keep(tag, n)
	return Result{Body: passed, Media: n.media(), Passed: n.exchange.passing(), Refused: lines}, nil
}

// pass makes an offer that is passed on as it is the last one of a branch.
func (c *Call) pass(tag string, from End, b *branch) *branch {
	n := &branch{exchange: exchange{from: from, pass: true}, told: b.told}
	c.begin(b, n)
	c.keep(tag, n)
	return n
}

// needsICE says whether a line can be reached by ICE alone, which the box does not do. One that is relayed already
// has an address: what looks like it is a hold.
func (d *description) needsICE(legs []leg) bool {
	for i := range d.sections {
		s := &d.sections[i]
		if s.Port != 0 && s.protocol.relayable() && s.onlyICE() && (i >= len(legs) || !legs[i].live) {
			return true
		}
	}
	return false
}

// begin makes n what follows b, whose legs are kept for Reject.
func (c *Call) begin(b, n *branch) {
	n.before = b.before
	if n.before == nil {
		n.before = &agreed{b.legs, b.exchange}
	} else {
		c.dropLegs(&b.legs)
	}
}

func (c *Call) keep(tag string, b *branch) {
	if tag == "" {
		c.initial = b
	} else {
		c.branches[tag] = b
	}
}

func (c *Call) cloneLegs(legs []leg, n int) []leg {
	all := make([]leg, n)
	for i := range min(n, len(legs)) {
		all[i] = c.cloneLeg(&legs[i])
	}
	return all
}

// lacks says whether a line is not relayed by the last offer, which has no answer. What was agreed on it is still in
// force.
func (b *branch) lacks(i int) bool {
	return b.before != nil && (i >= len(b.exchange.lines) || b.exchange.lines[i].fate != relayed)
}

// nextLegs are those that the next offer begins with: as after the last one or, of a line that this one lacks, as
// before it, which is what Reject would return to.
func (c *Call) nextLegs(b *branch, e End, n int) []leg {
	all := make([]leg, n)
	for i := range all {
		legs := b.legs[e]
		if b.lacks(i) {
			legs = b.before.legs[e]
		}
		if i < len(legs) {
			all[i] = c.cloneLeg(&legs[i])
		}
	}
	return all
}

func (c *Call) dropLegs(legs *[2][]leg) {
	for e := range legs {
		for i := range legs[e] {
			c.drop(&legs[e][i])
		}
	}
}

// passed are the lines of a body that is passed on as it is.
func (d *description) passed() []Line {
	var all []Line
	for i := range d.sections {
		if d.sections[i].Port != 0 {
			all = append(all, d.sections[i].line(i))
		}
	}
	return all
}

func (s *section) line(i int) Line {
	return Line{Index: i, Kind: s.Kind, Protocol: printable(string(s.Protocol)), Encrypted: s.encrypted()}
}

// printable is a protocol's name for people.
func printable(name string) string {
	name = name[:min(len(name), maxProtocol)]
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, name)
}

// passing are the lines that are left alone.
func (x *exchange) passing() []Line {
	if x.pass {
		return slices.Clone(x.passed)
	}
	var all []Line
	for i := range x.lines {
		if o := &x.lines[i]; o.fate == untouched && o.passes {
			all = append(all, Line{Index: i, Kind: o.kind, Protocol: printable(o.protocol), Encrypted: o.encrypted})
		}
	}
	return all
}

// offer decides about each line. equip says that the legs to who offers get their ports and keys now, renews which
// lines get new keys towards the other end. gone are the lines that it refuses.
func (c *Call) offer(n *branch, d *description, equip bool, renews []bool) (changes []change, gone []Line, _ *Refusal) {
	x := n.exchange.from
	changes = make([]change, len(d.sections))
	why := "" // a line is refused: the first one with sound, or the first
	live, sound, soundLive := false, false, false
	for i := range d.sections {
		s := &d.sections[i]
		o := offered{
			kind: s.Kind, protocol: string(s.Protocol), class: s.protocol.class, off: s.Port == 0,
			mux: s.mux, offer: s.terms(), passes: s.Port != 0, encrypted: s.encrypted(),
		}
		reason, refusal := c.offerLine(n, d, i, equip, renews[i])
		if refusal != nil {
			return nil, nil, refusal
		}
		lx, ly := &n.legs[x][i], &n.legs[x.other()][i]
		switch {
		case reason != "":
			o.fate = refused
			changes[i] = change{fate: refused}
			line := s.line(i)
			line.Reason = reason
			gone = append(gone, line)
			why = cmp.Or(why, reason)
			if s.Kind == sdp.Audio && !sound {
				sound, why = true, reason
			}
		case lx.live:
			o.fate = relayed
			changes[i] = change{
				fate: relayed, local: ly.local, protocol: ly.protocol.String(), mux: s.mux || ly.offersDTLS,
				add: c.offerTo(ly),
			}
			live = true
			soundLive = soundLive || s.Kind == sdp.Audio
		case s.Port == 0 && s.protocol.relayable():
			o.fate = refused // no change but of keys, which nobody needs
			changes[i] = change{fate: refused}
		case o.passes:
			live = true
		}
		if o.fate != relayed {
			c.drop(lx)
			c.drop(ly)
		}
		n.exchange.lines = append(n.exchange.lines, o)
	}
	if len(gone) > 0 && !live || sound && !soundLive {
		return nil, nil, notAcceptable(why)
	}
	return changes, gone, nil
}

// offerLine brings both legs of a line up to date. Neither is live if the box leaves the line alone.
func (c *Call) offerLine(n *branch, d *description, i int, equip, fresh bool) (reason string, _ *Refusal) {
	s := &d.sections[i]
	x := n.exchange.from
	y := x.other()
	lx, ly := &n.legs[x][i], &n.legs[y][i]
	switch {
	case s.Port == 0, !c.required() && !s.protocol.relayable(), s.protocol.class == other && s.encrypted():
		c.drop(lx)
		c.drop(ly)
		return "", nil
	case s.protocol.class == other:
		return "SRTP is required, and a media line is not RTP and not encrypted by itself", nil
	case s.protocol.class == unknown:
		return "SRTP is required, and a media line has a protocol that the box does not speak", nil
	case s.onlyICE() && !lx.live:
		return "a media line can be reached by ICE alone", nil
	case s.Ports > 1:
		return "a media line has several ports", nil
	case c.alternative(x, lx, d, i):
		return "another media line has keys", nil
	}
	if reason := c.takeOffer(x, lx, s); reason != "" {
		return reason, nil
	}
	if equip {
		if r := c.equip(x, lx); r != nil {
			return "", r
		}
	}
	repeats := n.told[y] == d.origin()
	if reason := c.makeOffer(y, ly, s.protocol, fresh, repeats); reason != "" {
		return reason, nil
	}
	return "", c.place(ly, c.places[y].local(s.Address))
}

// alternative says whether line i, without keys, was offered beside one with keys for who cannot do SRTP: some phones
// did so before RFC 5939 and RFC 8643. The one with keys is taken.
func (c *Call) alternative(x End, l *leg, d *description, i int) bool {
	s := &d.sections[i]
	if s.protocol.class != avp || s.Kind != sdp.Audio && s.Kind != sdp.Video || s.named || c.places[x].isBox(s) {
		return false
	}
	for j := range d.sections {
		o := &d.sections[j]
		if j == i || o.Kind != s.Kind || o.Port == 0 || o.protocol.class != savp && o.protocol.class != tls {
			continue
		}
		if _, _, reason := c.choose(&c.places[x], l, o); reason == "" {
			return true
		}
	}
	return false
}

// Answer reads the answer of one end to the other's last offer. The tag of a callee that has none yet begins a branch.
// An answer that comes again, or another one, as a call's 183 and 200 may have, takes the place of the one before; it
// cannot go back to a key of the box that the one before has left. The error is a *Refusal; then the call is as it was.
func (c *Call) Answer(tag string, from End, body []byte) (Result, error) {
	b, known := c.branches[tag]
	last := b
	if !known {
		last = c.initial
	}
	if !c.terminates() && (last == nil || last.exchange.pass) {
		c.passAnswer(tag, from, b)
		return Result{Body: body, Settled: true}, nil
	}
	if !known {
		var refusal *Refusal
		if b, refusal = c.fork(from); refusal != nil {
			return Result{}, refusal
		}
	}
	r, err := c.answer(b, from, body)
	switch {
	case err != nil && !known:
		c.dropBranch(b)
	case err == nil && !known:
		c.branches[tag] = b
	}
	return r, err
}

// passAnswer notes an answer where nothing is relayed. The ends may do as they like.
func (c *Call) passAnswer(tag string, from End, b *branch) {
	switch {
	case b != nil:
		c.settle(b)
	case len(c.branches) < maxBranches:
		c.branches[tag] = &branch{exchange: exchange{from: from.other(), pass: true}}
	}
}

// settle forgets what was agreed before.
func (c *Call) settle(b *branch) {
	if b.before != nil {
		c.dropLegs(&b.before.legs)
		b.before = nil
	}
}

// fork makes a branch of the first INVITE's offer.
func (c *Call) fork(from End) (*branch, *Refusal) {
	switch {
	case c.initial == nil:
		return nil, notAcceptable("an answer without an offer")
	case len(c.branches) >= maxBranches:
		return nil, &Refusal{503, "too many branches of a call"}
	}
	b := &branch{exchange: c.initial.exchange, before: &agreed{}, told: c.initial.told}
	b.exchange.lines = append([]offered(nil), c.initial.exchange.lines...)
	for e := range b.legs {
		b.legs[e] = c.cloneLegs(c.initial.legs[e], len(c.initial.legs[e]))
	}
	for i := range b.legs[from.other()] {
		if l := &b.legs[from.other()][i]; l.live {
			if r := c.equip(from.other(), l); r != nil {
				c.dropBranch(b)
				return nil, r
			}
		}
	}
	return b, nil
}

func (c *Call) answer(b *branch, from End, body []byte) (Result, error) {
	switch x := &b.exchange; {
	case x.from == from:
		return Result{}, notAcceptable("an answer to an offer of its own")
	case x.pass:
		if r := c.allowed(&agreed{exchange: *x}); r != nil {
			return Result{}, r
		}
		c.settle(b)
		return Result{Body: body, Settled: true, Passed: x.passing()}, nil
	}
	d, err := read(body)
	if err != nil {
		return Result{}, notAcceptable(err.Error())
	}
	defer d.wipe()
	if len(d.sections) != len(b.exchange.lines) {
		return Result{}, notAcceptable("the answer has another number of media lines than the offer")
	}

	n := &branch{exchange: b.exchange, told: b.told}
	n.exchange.lines = append([]offered(nil), b.exchange.lines...)
	for e := range n.legs {
		n.legs[e] = c.cloneLegs(b.legs[e], len(b.legs[e]))
	}
	changes := make([]change, len(d.sections))
	for i := range d.sections {
		var reason string
		if changes[i], reason = c.answerLine(n, from, &d.sections[i], i); reason != "" {
			c.dropLegs(&n.legs)
			return Result{}, notAcceptable(reason)
		}
	}
	if r := c.allowed(&agreed{n.legs, n.exchange}); r != nil {
		c.dropLegs(&n.legs)
		return Result{}, r
	}
	passed := d.splice(changes)
	if len(passed) > MaxPassed {
		c.dropLegs(&n.legs)
		return Result{}, notAcceptable(errUnreadable.Error())
	}
	c.dropBranch(b)
	*b = *n
	return Result{Body: passed, Settled: true, Media: b.media(), Passed: b.exchange.passing()}, nil
}

func (c *Call) answerLine(n *branch, from End, s *section, i int) (change, string) {
	o := &n.exchange.lines[i]
	lx, ly := &n.legs[from.other()][i], &n.legs[from][i]
	switch {
	case o.fate == untouched && o.off && s.Port != 0:
		return change{fate: refused}, "" // it was not offered
	case o.fate == untouched && s.Port != 0 && s.protocol.class != o.class,
		o.fate == relayed && s.Port != 0 && !s.protocol.relayable():
		return change{}, "a media line of the answer has another protocol than the offer's"
	case o.fate == untouched:
		o.passes = o.passes && s.Port != 0
		o.encrypted = o.encrypted && s.encrypted()
		return change{}, ""
	case s.Port == 0, !lx.live: // or it was refused in the offer
		c.drop(lx)
		c.setAside(ly)
		return change{fate: refused, protocol: o.protocol}, ""
	case s.onlyICE() && !s.held():
		return change{}, "a media line of the answer can be reached by ICE alone"
	case s.Ports > 1:
		return change{}, "a media line of the answer has several ports"
	}
	if reason := c.takeAnswer(from, ly, s, o.mux); reason != "" {
		return change{}, reason
	}
	o.answer = s.terms()
	return change{fate: relayed, local: lx.local, protocol: o.protocol, mux: o.mux, add: c.answerTo(lx)}, ""
}

// Reject ends the last offer of a branch without an answer: what was agreed before holds again (RFC 3261 section 14.1),
// which is what it returns. A branch that had agreed on nothing is forgotten. Where policy has changed and does not
// allow what was agreed before, the error is a *Refusal: then the branch is back there, but none of its media may pass,
// and the call is to be ended unless another offer is made.
func (c *Call) Reject(tag string) (Result, error) {
	b := c.branches[tag]
	switch {
	case b == nil || b.before == nil:
		return Result{}, nil
	case len(b.before.exchange.lines) == 0 && !b.before.exchange.pass:
		c.End(tag)
		return Result{}, nil
	}
	y := b.exchange.from.other()
	for e := range b.before.legs {
		for range len(b.legs[e]) - len(b.before.legs[e]) {
			b.before.legs[e] = append(b.before.legs[e], leg{})
		}
	}
	for i := range b.legs[y] {
		c.keepOffer(&b.before.legs[y][i], &b.legs[y][i])
	}
	c.dropLegs(&b.legs)
	b.legs, b.exchange, b.before = b.before.legs, b.before.exchange, nil
	if r := c.allowed(&agreed{b.legs, b.exchange}); r != nil {
		return Result{}, r
	}
	return Result{Settled: true, Media: b.media(), Passed: b.exchange.passing()}, nil
}

// End forgets a branch, as when another one was answered: its keys are overwritten, its ports given back.
func (c *Call) End(tag string) {
	if b := c.branches[tag]; b != nil {
		c.dropBranch(b)
		delete(c.branches, tag)
	}
}

// Settle ends every branch but one, and the first offer: no other branch can begin.
func (c *Call) Settle(tag string) {
	for t := range c.branches {
		if t != tag {
			c.End(t)
		}
	}
	if c.initial != nil {
		c.dropBranch(c.initial)
		c.initial = nil
	}
}

// Close ends the call.
func (c *Call) Close() {
	for t := range c.branches {
		c.End(t)
	}
	if c.initial != nil {
		c.dropBranch(c.initial)
		c.initial = nil
	}
}

func (c *Call) dropBranch(b *branch) {
	c.dropLegs(&b.legs)
	c.settle(b)
}
