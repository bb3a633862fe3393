package plane

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"ringway/boottime"
	"ringway/process"
	"ringway/srtp/dtls"
	"ringway/srtp/media"
)

// Main is the process `ringway media-plane`. It returns when it is told to quit, or at SIGTERM.
func Main(build string) error { return run(build, 0) }

// run is Main; with longest, packets may have waited so long.
func run(build string, longest time.Duration) error {
	s := &server{longest: longest, book: newBook(), handshakes: map[uint64]uint64{},
		untold: map[uint64]*changedEvent{}, toTell: make(chan struct{}, 1)}
	child, err := process.NewChild(process.ChildOptions{
		Protocol:  process.Protocol{Major: ProtocolMajor, Minor: ProtocolMinor},
		EnvPrefix: envPrefix,
		Build:     build,
		Sandbox:   sandbox(),
		Hello:     s.hello,
		Handlers: map[string]process.Handler{
			typeStart:  s.handleStart,
			typeSet:    s.whileRunning(s.handleSet),
			typeRemove: s.whileRunning(s.handleRemove),
			typeKeys:   s.whileRunning(s.handleKeys),
			typeStatus: s.handleStatus,
			typePing: s.whileRunning(func(*process.Message) (process.Reply, error) {
				return process.Reply{}, s.relay.Ping()
			}),
			typeExport: s.whileRunning(s.handleExport),
			typeStop:   s.handleStop,
			typeKeep:   s.whileRunning(s.handleKeep),
			typeKept:   s.whileRunning(s.handleKept),
		},
	})
	if err != nil {
		return err
	}
	s.child = child
	return child.Run(s.shut)
}

// server is the process's side of the requests.
type server struct {
	child   *process.Child
	longest time.Duration

	// mu guards what follows. It is held while the relay and the endpoint change, and while an event is pushed, so that
	// events are in the order of what they tell. The relay is never closed with it held: it tells what is left first.
	mu       sync.Mutex
	about    about
	book     *book
	relay    *media.Relay
	stopped  bool
	endpoint *dtls.Endpoint // nil: no certificate
	end      context.CancelFunc
	running  sync.WaitGroup
	// handshakes are the numbers of associations, by leg.
	handshakes map[uint64]uint64
	kept       map[string][]byte // for the owner
	// untold is how far keys were used, as the daemon does not know yet.
	untold map[uint64]*changedEvent
	toTell chan struct{}
}

func (s *server) hello() any {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.about
	a.Pairs = len(s.book.pairs)
	return a
}

func (s *server) whileRunning(handle func(m *process.Message) (process.Reply, error)) process.Handler {
	return func(_ context.Context, m *process.Message) (process.Reply, error) {
		defer m.Wipe()
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.about.Running {
			return process.Reply{}, fmt.Errorf("request %q while no media is forwarded", m.Type)
		}
		return handle(m)
	}
}

// handleStart makes the relay and takes up what an earlier process had.
func (s *server) handleStart(_ context.Context, m *process.Message) (process.Reply, error) {
	defer m.Wipe()
	var r startRequest
	if err := m.Decode(&r); err != nil {
		return process.Reply{}, err
	}
	if r.Certificate < 0 || r.Certificate > len(m.Attached()) {
		return process.Reply{}, errSecrets
	}
	pem, secrets := m.Attached()[:r.Certificate], m.Attached()[r.Certificate:]
	if err := unpackKeys(secrets, r.State.keys()); err != nil {
		return process.Reply{}, err
	}
	book, err := bookOf(&r.State)
	if err != nil {
		wipeKeys(r.State.keys())
		return process.Reply{}, err
	}
	var certificate *dtls.Certificate
	if len(pem) > 0 {
		if certificate, err = dtls.ParseCertificate(pem); err != nil {
			return process.Reply{}, err
		}
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.relay != nil || s.stopped {
		return process.Reply{}, errors.New("it was started before")
	}
	if err := lockMemory(); err != nil {
		s.about.Unlocked = err.Error()
	}
	s.book = book
	s.book.resume()
	var a startAnswer
	if a.Lost, err = s.forward(&r, certificate); err != nil {
		return process.Reply{}, err
	}
	s.about.Running = true
	if certificate != nil {
		s.about.Certificate = certificate.Fingerprint(nil).String()
	}
	for _, task := range []func(){s.tell, s.beat, s.learn} {
		s.child.Go(task)
	}
	return process.Reply{Body: a}, s.child.Open()
}

// forward makes the relay and the endpoint, which go on with the book. It returns the pairs with which they cannot.
func (s *server) forward(r *startRequest, certificate *dtls.Certificate) (lost []uint64, err error) {
	o := media.Options{
		Alone: true, Threads: r.Threads, Changed: s.changed, DTLS: s.receivedDTLS,
		Begin: func(relay *media.Relay) {
			s.relay = relay
			lost = s.takeUp()
		},
	}
	if s.longest > 0 {
		o.SetMaxWait(s.longest)
	}
	files, err := s.sockets(&o)
	defer closeAll(files)
	if err != nil {
		return nil, err
	}
	if certificate != nil {
		ctx, cancel := context.WithCancel(context.Background())
		s.end = cancel
		s.endpoint = dtls.New(dtls.Config{Certificate: certificate, Send: s.sendDTLS, Notify: s.established})
		s.running.Go(func() { _ = s.endpoint.Run(ctx) })
	}
	if _, err = media.New(o); err != nil {
		return nil, err
	}
	for _, l := range s.book.legs {
		if err := s.agree(l); err != nil {
			s.child.Log().Warn("an association is not taken up", "leg", l.ID, "error", err)
		}
	}
	return lost, nil
}

// sockets gives the options those that were handed over. They are duplicates: the relay duplicates them once more.
func (s *server) sockets(o *media.Options) (files []*os.File, err error) {
	open := func(name string) (*os.File, error) {
		f, err := process.AsFile(s.child.FD(name), name)
		if f != nil {
			files = append(files, f)
		}
		return f, err
	}
	for side := range fileIn {
		for v6 := range fileIn[side] {
			if o.Sockets[side].In[v6], err = open(fileIn[side][v6]); err != nil {
				return files, err
			}
			if o.Sockets[side].Out[v6], err = open(fileOut[side][v6]); err != nil {
				return files, err
			}
		}
	}
	if len(files) == 0 {
		return nil, errors.New("no socket for media was handed over")
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// takeUp goes on with every pair of the book. It returns those with which it cannot.
func (s *server) takeUp() (lost []uint64) {
	for _, p := range s.book.state().Pairs {
		at := s.book.pairs[p.ID]
		if err := s.apply(at); err != nil {
			s.child.Log().Warn("a pair of the process before is lost", "pair", p.ID, "error", err)
			s.book.remove(p.ID).commit(s.book)
			lost = append(lost, p.ID)
			continue
		}
		for _, l := range at.legs {
			if l.learned.RTP.IsValid() {
				if err := s.relay.RestoreLearned(l.learned); err != nil {
					s.child.Log().Warn("a leg is sent to where signalling said", "leg", l.ID, "error", err)
				}
			}
		}
	}
	return lost
}

func (s *server) handleSet(m *process.Message) (process.Reply, error) {
	var r setRequest
	if err := m.Decode(&r); err != nil {
		return process.Reply{}, err
	}
	p := r.Pair
	if err := unpackKeys(m.Attached(), p.keys()); err != nil {
		return process.Reply{}, err
	}
	defer p.Wipe()
	if s.endpoint == nil && (p.Legs[0].Keying == DTLS || p.Legs[1].Keying == DTLS) {
		return process.Reply{}, errors.New("there is no certificate for DTLS")
	}
	legs := s.legsOf(p.Legs[0].ID, p.Legs[1].ID)
	c, err := s.book.set(&p)
	if err != nil {
		return process.Reply{}, err
	}
	next := s.book.pairs[p.ID]
	if err := s.apply(next); err != nil {
		c.undo()
		return process.Reply{}, err
	}
	c.settle()
	s.ended(legs)
	c.commit(s.book)
	for _, l := range next.legs {
		if err := s.agree(l); err != nil { // as a handshake that has failed
			s.child.Push(eventDTLS, dtlsEvent{Leg: l.ID, Epoch: l.Association.Epoch, Failure: err.Error()})
		}
	}
	return process.Reply{}, nil
}

// legsOf are all legs of the pairs that these legs are in.
func (s *server) legsOf(ids ...uint64) (all []*leg) {
	for _, id := range ids {
		if l := s.book.legs[id]; l != nil {
			all = append(all, s.book.pairs[l.pair].legs[:]...)
		}
	}
	return all
}

// ended forgets the streams of legs that were replaced: the relay has wiped those that are in no pair any more.
func (s *server) ended(legs []*leg) {
	kept := map[*direction]bool{}
	for _, l := range legs {
		if now := s.book.legs[l.ID]; now != nil {
			kept[now.out], kept[now.in] = true, true
		} else {
			s.disagree(l.ID)
		}
	}
	for _, l := range legs {
		for _, d := range []*direction{l.out, l.in} {
			if d != nil && !kept[d] {
				d.sender, d.receiver = nil, nil
			}
		}
	}
}

func (s *server) handleRemove(m *process.Message) (process.Reply, error) {
	var r removeRequest
	if err := m.Decode(&r); err != nil {
		return process.Reply{}, err
	}
	return process.Reply{}, s.removePair(r.Pair)
}

func (s *server) removePair(id uint64) error {
	p := s.book.pairs[id]
	if p == nil {
		return nil
	}
	if err := s.relay.Remove(p.legs[0].ID); err != nil {
		return err
	}
	c := s.book.remove(id)
	c.settle()
	s.ended(p.legs[:])
	c.commit(s.book)
	return nil
}

// handleKeys carries an action of the key channel out.
func (s *server) handleKeys(m *process.Message) (process.Reply, error) {
	var a action
	if err := m.Decode(&a); err != nil {
		return process.Reply{}, err
	}
	if err := unpackKeys(m.Attached(), a.keys()); err != nil {
		return process.Reply{}, err
	}
	defer a.Key.Wipe()
	c, e, err := s.book.act(&a)
	if err != nil {
		return process.Reply{}, err
	}
	if err := s.carry(&a, e, c); err != nil {
		c.undo()
		return process.Reply{}, err
	}
	c.commit(s.book)
	return process.Reply{}, nil
}

// carry has the relay do what an action means for streams in use.
func (s *server) carry(a *action, e effect, c *change) error {
	ch := s.book.channels[a.Leg]
	if e == effectNone || ch == nil || ch.leg == nil {
		return nil
	}
	leg := ch.leg
	switch e {
	case effectAdd:
		k, err := a.Key.live()
		if err != nil {
			return err
		}
		if err := s.relay.AddKey(leg.ID, k); err != nil {
			k.Wipe()
			return err
		}
	case effectUse:
		k, err := a.Key.live()
		if err != nil {
			return err
		}
		if err := s.relay.UseKey(leg.ID, k); err != nil {
			k.Wipe()
			return err
		}
	case effectDrop:
		return s.relay.DropKey(leg.ID, a.Key.MKI)
	case effectOther:
		if err := s.apply(s.book.pairs[leg.pair]); err != nil {
			return err
		}
		for _, d := range c.dropped() {
			d.sender, d.receiver = nil, nil // the relay has wiped them
		}
	}
	return nil
}

// changed keeps how far keys were used, and has the daemon told soon.
func (s *server) changed(u media.Update) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := changedEvent{Leg: u.Leg, Sent: u.Sent, Heard: u.Heard}
	if !s.book.note(&e) {
		return
	}
	if before := s.untold[u.Leg]; before == nil {
		s.untold[u.Leg] = &e
	} else if e.Sent != nil {
		before.Sent = e.Sent
	} else {
		before.Heard = e.Heard
	}
	select {
	case s.toTell <- struct{}{}:
	default:
	}
}

// tellAfter is how long accounts are gathered. What is sealed meanwhile is far less than what the next process skips.
const tellAfter = 20 * time.Millisecond

// tell tells the daemon how far keys were used.
func (s *server) tell() {
	for {
		select {
		case <-s.child.Quitting():
			return
		case <-s.toTell:
		}
		s.mu.Lock()
		s.tellLocked()
		s.mu.Unlock()
		select {
		case <-s.child.Quitting():
			return
		case <-time.After(tellAfter):
		}
	}
}

func (s *server) tellLocked() {
	if len(s.untold) == 0 {
		return
	}
	var e changedEvents
	for _, one := range s.untold {
		e.Changed = append(e.Changed, *one)
	}
	clear(s.untold)
	s.child.Push(eventChanged, e)
}

// note keeps what an event says, and reports whether there is such a stream.
func (b *book) note(e *changedEvent) bool {
	known := false
	if e.Sent != nil {
		known = b.sent(e.Leg, *e.Sent)
	}
	if e.Heard != nil {
		known = b.heard(e.Leg, e.Heard) || known
	}
	return known
}

// beatEvery is how often the daemon is told that it knows everything. Where it has not heard so, it takes keys that are
// much used for spent.
const beatEvery = 250 * time.Millisecond

func (s *server) beat() {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.child.Quitting():
			return
		case <-tick.C:
			s.mu.Lock()
			if !s.stopped {
				s.tellLocked()
				s.child.Push(eventBeat, beatEvent{boottime.Now()})
			}
			s.mu.Unlock()
		}
	}
}

// learnEvery is how often it is looked what legs have learned.
const learnEvery = time.Second

func (s *server) learn() {
	tick := time.NewTicker(learnEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.child.Quitting():
			return
		case <-tick.C:
			s.noteLearned()
		}
	}
}

func (s *server) noteLearned() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	for _, at := range s.relay.Learned() {
		if l := s.book.legs[at.Leg]; l != nil && l.learned != at {
			l.learned = at
			s.child.Push(eventMoved, movedEvent{at})
		}
	}
}

// handleExport tells all.
func (s *server) handleExport(*process.Message) (process.Reply, error) { return s.export() }

// export is the book, with keys. The state is encoded now, since the book goes on.
func (s *server) export() (process.Reply, error) {
	s.tellLocked() // or it would be told later, and be older than this
	st := s.book.state()
	text, err := json.Marshal(st)
	if err != nil {
		return process.Reply{}, fmt.Errorf("encode the book: %w", err)
	}
	secrets := packKeys(nil, st.keys())
	return process.Reply{Body: json.RawMessage(text), Attached: secrets, After: func() { clear(secrets) }}, nil
}

// handleStop ends the relay: what is told then is the last that there is to say.
func (s *server) handleStop(_ context.Context, _ *process.Message) (process.Reply, error) {
	s.mu.Lock()
	if !s.about.Running {
		s.mu.Unlock()
		return process.Reply{}, errors.New("no media is forwarded")
	}
	s.stopped, s.about.Running = true, false
	s.mu.Unlock()
	s.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.export()
}

// close ends the endpoint and the relay. It is not called with mu held: both tell what is left.
func (s *server) close() {
	if s.end != nil {
		s.end()
		s.running.Wait()
	}
	if s.relay != nil {
		s.relay.Close()
	}
}

// shut ends the process.
func (s *server) shut() error {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.book.wipe()
	return nil
}

func (s *server) handleStatus(_ context.Context, _ *process.Message) (process.Reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.about.Running {
		return process.Reply{}, errors.New("no media is forwarded")
	}
	st := Stats{Totals: s.relay.Totals(), Drops: s.relay.Drops()}
	if s.endpoint != nil {
		st.DTLS = s.endpoint.Counters()
	}
	opened, err := s.relay.Opened()
	if err != nil {
		return process.Reply{}, err
	}
	byLeg := map[uint64]map[string]uint64{}
	for _, o := range opened {
		if byLeg[o.Leg] == nil {
			byLeg[o.Leg] = map[string]uint64{}
		}
		byLeg[o.Leg][hex.EncodeToString(o.MKI)] = o.Packets
	}
	for _, c := range s.relay.Counts() {
		l := s.book.legs[c.ID]
		if l == nil {
			continue
		}
		x := statsOf(&c)
		x.Pair, x.Keying, x.Opened = l.pair, l.Keying, byLeg[c.ID]
		x.Keyed = l.Keying == Clear || l.out != nil && l.in != nil
		if l.out != nil {
			x.SendMKI = hex.EncodeToString(l.out.Keys[0].MKI)
		}
		st.Legs = append(st.Legs, x)
	}
	return process.Reply{Body: st}, nil
}
