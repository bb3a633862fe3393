package relay

import (
	"context"
	"encoding/hex"
	"errors"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ringway/sip/admission"
	"ringway/sip/body"
	"ringway/sip/call"
	"ringway/sip/certificate"
	"ringway/sip/dialog"
	"ringway/sip/emergency"
	"ringway/sip/ladder"
	"ringway/sip/message"
	"ringway/sip/privacy"
	"ringway/sip/refusal"
	"ringway/sip/sdp"
	"ringway/sip/terminate"
	"ringway/sip/transparent"
)

// Bounds of ours.
const (
	maxLegs  = 16384
	maxEnded = 512 // calls that ended and are still shown
	maxName  = 64  // bytes of a party's name that are kept
	maxCodec = 32  // bytes of a codec's name that are kept
)

// core follows the calls whose messages pass.
type core struct {
	now   func() time.Time
	asker *asker

	unread, refused counters
	messages, late  atomic.Uint64

	mirrored, unmirrored atomic.Uint64 // messages to a Homer server

	security atomic.Pointer[transparent.Security] // nil: no TLS is read

	mu      sync.Mutex // guards what follows
	tracker *dialog.Tracker
	policy  policy
	sdp     sdp.Description
	known   map[*dialog.Leg]*about
	dirty   map[*dialog.Leg]bool // not in the journal as they are; false: they have ended
	reports []Report             // for the daemon
	records []Ended              // likewise

	relayed *terminate.Calls
	ports   *ports

	latestNoMedia *NoMedia

	ladder   *ladder.Ring
	redactor privacy.Redactor
	homer    *homer // nil: nothing is sent to one
	homerIs  Homer

	certificates *certificate.Set
	tls          []TLSServer // one for each source of the settings

	codecs codecNames

	ended []endedLeg // a ring, the oldest at first once it is full
	first int
	woken chan struct{} // a leg may expire sooner than was known
}

func newCore(now func() time.Time) *core {
	c := &core{
		now: now, tracker: dialog.New(maxLegs), known: map[*dialog.Leg]*about{}, dirty: map[*dialog.Leg]bool{},
		woken: make(chan struct{}, 1), policy: newPolicy(), ladder: ladder.New(ladder.Defaults()), ports: newPorts(now),
	}
	c.relayed = terminate.New(terminate.Config{Offer: c.offerConfig(nil), NewID: rand.Uint64})
	return c
}

// counters are counters by name.
type counters struct {
	mu sync.Mutex
	n  map[string]uint64
}

func (c *counters) add(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]uint64{}
	}
	c.n[name]++
}

func (c *counters) all() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.n)
}

// handle decides about one message. It is called by the goroutine that read it.
func (c *core) handle(m *transparent.Message) (action transparent.Action) {
	action, done := c.judge(m)
	switch {
	case done == nil:
	case isFirst(m.SIP):
		action.Wait = c.asker.soon
	default:
		action.Wait = func() { c.wait(done) }
	}
	return action
}

// isFirst reports whether a message is the INVITE that begins a call. It does not wait for the flows of its offer: who
// is called has yet to read it, and to find out who he is, before he sends anything. The answer waits.
func isFirst(m *message.Message) bool {
	if !m.Request || m.Method != message.INVITE {
		return false
	}
	to, _ := message.ParseAddress(m.Header(message.To))
	return len(to.Tag()) == 0
}

// wait returns when the daemon has what a message needs, or after a moment.
func (c *core) wait(done <-chan struct{}) {
	if !c.asker.wait(done) {
		c.late.Add(1)
	}
}

// judge takes a message into account. done is closed when the daemon has what its call needs from now on; nil:
// nothing new.
func (c *core) judge(m *transparent.Message) (action transparent.Action, done <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, verdict := c.now(), m.Reason.Verdict()
	sign := emergency.None
	if verdict == message.Read && m.SIP.Method == message.INVITE {
		sign = c.policy.emergency.Sign(m.SIP)
	}
	// Anybody may write a To or a Priority: they except from no limit on fraud.
	if action, stop := c.watch(now, m, sign == emergency.Dialled); stop {
		return action, nil
	}
	switch verdict {
	case message.Refused:
		if !c.policy.settings.Enforce && !c.mayHideOffer(m) { // a datagram goes on; a stream ends
			c.unread.add(m.Reason.String())
			return action, nil
		}
		c.refused.add(m.Reason.String())
		return transparent.Action{Drop: true, Close: true}, nil
	case message.Unread:
		if c.mayHideOffer(m) {
			c.refused.add(srtpUnreadable)
			return transparent.Action{Drop: true}, nil
		}
		c.unread.add(m.Reason.String())
		return action, nil
	}
	c.messages.Add(1)
	return c.follow(now, m, sign != emergency.None)
}

// follow takes a message that was read into account.
func (c *core) follow(
	now time.Time, m *transparent.Message, emergency bool,
) (action transparent.Action, done <-chan struct{}) {
	if m.SIP.Method == message.REGISTER {
		c.register(now, m)
		return action, nil
	}
	if refusal.IsAcknowledged(c.policy.secret, m.SIP) {
		return transparent.Action{Drop: true}, nil // the called party has not seen the INVITE
	}
	if reply := c.policy.refusals.again(now, m); reply != nil {
		return transparent.Action{Drop: true, Reply: reply}, nil
	}

	var description *sdp.Description
	text, found := body.Description(m.SIP)
	switch {
	case found == body.Unreadable:
		c.unread.add("body")
	case found == body.Plain && c.sdp.Read(text):
		description = &c.sdp
	}

	before := c.tracker.Next()
	st := c.tracker.Message(now, m.From.Addr(), m.To.Addr(), m.SIP, description)
	if st.Drop != "" && c.policy.settings.Enforce {
		c.refused.add(string(st.Drop))
		return transparent.Action{Drop: true}, nil
	}
	c.note(now, &st, m, emergency, description)
	var change Change
	action, refused := c.relayMedia(now, &st, m, text, found, description != nil, emergency)
	if r := c.admit(now, &st, m, emergency, &change); refused == nil && r != nil {
		clear(action.Raw)
		action, refused = transparent.Action{}, r
	}
	done, queued := c.settle(&st, &change)
	if next := c.tracker.Next(); next.Before(before) || before.IsZero() && !next.IsZero() {
		c.wakeUp()
	}
	if refused == nil && !action.Drop && (len(st.Opened)+len(st.Shared) > 0 || adds(change.Media)) {
		return action, done
	}
	if queued { // and need not be waited for
		c.asker.kick()
	}
	if refused != nil {
		c.policy.refusals.remember(now, m, refused)
		return transparent.Action{Drop: true, Reply: refused}, nil
	}
	return action, nil
}

func (c *core) wakeUp() {
	select {
	case c.woken <- struct{}{}:
	default:
	}
}

// note keeps what people want to know of a call.
func (c *core) note(
	now time.Time, st *dialog.Step, m *transparent.Message, emergency bool, d *sdp.Description,
) {
	if st.Leg == nil {
		return
	}
	x := c.known[st.Leg]
	if x == nil {
		x = &about{from: c.party(m.SIP, message.From), to: c.party(m.SIP, message.To)}
		c.known[st.Leg] = x
	}
	if x.answered.IsZero() && !m.SIP.Request && m.SIP.Method == message.INVITE && m.SIP.Status/100 == 2 {
		x.answered = now
	}
	x.emergency = x.emergency || emergency
	c.draw(now, st.Leg.CallID, m)
	if d != nil {
		x.codecs = c.codecs.of(d)
	}
}

// settle queues what changed for the daemon, as asker.put says, and takes ended legs off.
func (c *core) settle(st *dialog.Step, change *Change) (done <-chan struct{}, queued bool) {
	c.relayed.Follow(st)
	change.Media = c.relayed.Changes()
	change.saved = c.relayed.Unsaved()
	change.Open, change.Close = slices.Concat(st.Opened, st.Shared), st.Closed
	more := len(change.Open) > 0
	if more && st.Leg != nil {
		change.Hops, change.Via = st.Leg.Hops, c.tracker.Hops(st.Leg)
		if c.policy.muted[st.Leg] {
			change.Open = nil
		}
	}
	if len(change.Open)+len(change.Close)+len(change.Places) > 0 || change.hasMedia() {
		done, queued = c.asker.put(*change)
	}
	if st.Leg != nil {
		c.dirty[st.Leg] = true
		if x := c.known[st.Leg]; x != nil {
			x.holes = max(x.holes, st.Leg.Needs())
		}
		if more {
			c.noteMedia(st.Leg)
		}
	}
	for _, l := range st.Others {
		c.dirty[l] = true
		if more {
			c.noteMedia(l)
		}
	}
	for _, l := range st.Ended {
		c.dirty[l] = false
		delete(c.policy.muted, l)
		c.endWatched(l)
		x := c.known[l]
		delete(c.known, l)
		if x == nil {
			continue
		}
		e := endedLeg{
			about: *x, callID: l.CallID, tag: l.Tag, hops: l.Hops, began: l.Began(), ended: c.now(),
			why: l.Why(), status: l.Status(),
		}
		c.record(&e)
		if len(c.ended) < maxEnded {
			c.ended = append(c.ended, e)
			continue
		}
		c.ended[c.first] = e
		c.first = (c.first + 1) % maxEnded
	}
	return done, queued
}

// settleAlone is settle for what no message waits for.
func (c *core) settleAlone(st *dialog.Step, change Change) {
	if _, queued := c.settle(st, &change); queued {
		c.asker.kick()
	}
}

// noteMedia keeps which flows of RTP a call has had: what they were like is known by their addresses.
func (c *core) noteMedia(l *dialog.Leg) {
	if x := c.known[l]; x != nil {
		x.had(l)
	}
}

// expire ends what time ends, until ctx does.
func (c *core) expire(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var looked time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.woken:
		case <-timer.C:
		}
		c.mu.Lock()
		now := c.now()
		if now.Sub(looked) >= watchEvery {
			looked = now
			c.expireRest(now)
		}
		next := c.expireCalls(now)
		c.mu.Unlock()
		wait := watchEvery
		if !next.IsZero() {
			wait = min(max(next.Sub(now), expireEvery), watchEvery)
		}
		timer.Reset(wait)
	}
}

// expireEvery is the least time between two looks at what calls wait for: with many calls one of them always waits.
// watchEvery is how often it is looked at what else is too old, which takes a look at all of it.
const (
	expireEvery = 20 * time.Millisecond
	watchEvery  = 2 * time.Second
)

// expireCalls ends calls, and says when it is to be called again. The caller holds the lock.
func (c *core) expireCalls(now time.Time) (next time.Time) {
	st := c.tracker.Expire(now)
	var change Change
	c.carryOut(&change, c.policy.ledger.Follow(now, st, admission.Info{}))
	c.settleAlone(&st, change)
	return c.tracker.Next()
}

// expireRest forgets registrations, refusals, and what sources of abuse did. The caller holds the lock.
func (c *core) expireRest(now time.Time) {
	c.ports.expire()
	c.policy.phones.Expire(now)
	c.policy.refusals.expire(now)
	if c.policy.watch != nil {
		c.report(c.policy.watch.Expire(now))
	}
}

// load takes the calls over that an earlier process has left in the journal.
func (c *core) load(legs []entry) (failed error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range legs {
		st, err := c.tracker.Load(c.now(), l.Leg)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		if l.About != nil {
			c.known[st.Leg] = l.About.load()
		}
		var change Change
		c.carryOut(&change, c.policy.ledger.Settle(st.Leg.Began(), admission.Update{
			Leg: st.Leg, Streams: st.Leg.Streams(), Emergency: l.About != nil && l.About.Emergency,
		}))
		c.settleAlone(&st, change)
	}
	return failed
}

// keep writes to the journal what has changed, until ctx ends. It holds the lock for one leg at a time.
func (c *core) keep(ctx context.Context, j *journal, failed func(error)) {
	tick := time.NewTicker(journalEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		j.mu.Lock()
		err := c.keepOnce(j)
		j.mu.Unlock()
		tick.Reset(journalEvery)
		if err != nil {
			failed(err)
			tick.Reset(journalAgain)
		}
	}
}

func (c *core) keepOnce(j *journal) error {
	if j.handedOver {
		return nil
	}
	c.mu.Lock()
	dirty := c.dirty
	c.dirty = map[*dialog.Leg]bool{}
	c.mu.Unlock()
	if j.bloated() {
		if err := j.clear(); err != nil {
			return err
		}
		c.mu.Lock()
		c.tracker.Legs(func(l *dialog.Leg) { dirty[l] = true })
		c.mu.Unlock()
	}
	defer j.buffer.Reset() // also of half of it
	n := 0
	for l, lives := range dirty {
		if err := c.keepLeg(j, l, lives); err != nil {
			j.spoiled = true
			return err
		}
		if n++; n%keepAtOnce == 0 {
			time.Sleep(keepPause)
		}
	}
	return j.write()
}

// keepAtOnce is how many legs are encoded before others may use the processor for a moment: where there is one, Go
// notices a message that has come only once nothing is to be done, or after 10 ms.
const (
	keepAtOnce = 16
	keepPause  = 50 * time.Microsecond
)

func (c *core) keepLeg(j *journal, l *dialog.Leg, lives bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !lives || l.Why() != "" {
		return j.forget(l)
	}
	return j.encode(l, c.known[l])
}

// media says that media of these flows was seen.
func (c *core) media(flows []dialog.Flow) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	for _, f := range flows {
		c.tracker.Media(now, f)
	}
}

// flows are all that calls need now, by leg.
func (c *core) flows() (all []Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if places := c.places(); len(places) > 0 {
		all = append(all, Change{Places: places})
	}
	if pairs, saved := c.relayed.Whole(), c.relayed.Saved(maxSavedAtOnce); len(pairs)+len(saved) > 0 {
		all = append(all, Change{Media: pairs, saved: saved})
	}
	c.tracker.Legs(func(l *dialog.Leg) {
		if flows := l.Flows(); len(flows) > 0 && !c.policy.muted[l] {
			all = append(all, Change{Hops: l.Hops, Via: c.tracker.Hops(l), Open: flows})
		}
	})
	return all
}

// calls are the calls that are followed, the oldest first, and after them those that ended, the latest last.
func (c *core) calls() []call.Call {
	live, ended := c.snapshot()
	slices.SortFunc(live, func(a, b told) int { return a.began.Compare(b.began) })
	all := make([]call.Call, 0, len(live)+len(ended))
	for _, part := range [][]told{live, ended} {
		for i := range part {
			all = append(all, part[i].call())
		}
	}
	return all
}

// snapshot takes down the legs that live, in no order, and those that have ended, the oldest first.
func (c *core) snapshot() (live, ended []told) {
	c.mu.Lock()
	defer c.mu.Unlock()
	live, ended = make([]told, 0, len(c.known)), make([]told, 0, len(c.ended))
	for l, x := range c.known {
		t := tell(l, x)
		t.srtp = c.relayed.Secured(l)
		live = append(live, t)
	}
	for e := range c.endedInOrder {
		ended = append(ended, told{endedLeg: *e, state: dialog.Ended.String()})
	}
	return live, ended
}

// endedInOrder calls f with each leg that has ended, the oldest first, until it returns false.
func (c *core) endedInOrder(f func(*endedLeg) bool) {
	for _, part := range [][]endedLeg{c.ended[c.first:], c.ended[:c.first]} {
		for i := range part {
			if !f(&part[i]) {
				return
			}
		}
	}
}

func (c *core) stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Stats{
		Calls: c.tracker.Len(), Messages: c.messages.Load(), Unread: c.unread.all(), Refused: c.refused.all(),
		LateFlows: c.late.Load(), Beyond: c.tracker.Beyond() + c.policy.ledger.Beyond(),
		Mirrored: c.mirrored.Load(), Unmirrored: c.unmirrored.Load(), TLS: c.tlsServers(),
		Phones: c.policy.phones.Len(), Budgets: c.policy.ledger.Budgets(),
		Relayed: c.relayed.Len(), MediaPorts: len(c.ports.out), NoMediaPorts: c.ports.refused,
		Barred: c.relayed.Barred(), NoMedia: c.latestNoMedia,
	}
}

// shortID names a leg: eight hexadecimal digits that a person can type.
func shortID(callID, tag string, hops [2]netip.Addr) string {
	h := fnv.New32a()
	for _, part := range []string{callID, tag, hops[0].String(), hops[1].String()} {
		_, _ = h.Write([]byte(part))
		_, _ = h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil))
}

// party is the user of an address as the policy shows it, or its host where it has none.
func (c *core) party(m *message.Message, k message.Kind) string {
	a, _ := message.ParseAddress(m.Header(k))
	uri, ok := message.ParseURI(a.URI)
	name := uri.User
	switch {
	case !ok:
		return ""
	case len(name) == 0:
		return string(uri.Host[:min(len(uri.Host), maxName)])
	}
	return privacy.Number(c.redactor.Policy, string(name[:min(len(name), maxName)]))
}
