package line

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"ringway/routing/echo"
)

// How targets are asked. On a metered line two targets and a gateway cost 10 MB a month.
const (
	askEvery        = time.Second
	askEveryMetered = 30 * time.Second
	// askMisses is how many questions in a row stay without an answer until the line counts as silent.
	askMisses = 3
	// askTick is how often it is looked whether a line is silent.
	askTick = 250 * time.Millisecond
)

// asked is a line that has targets.
type asked struct {
	targets  []netip.Addr
	gateways []netip.Addr // asked as well, to tell what is silent: that a gateway answers is no proof of what is behind it
	every    time.Duration
}

// limit is how long targets may be silent.
func (a asked) limit() time.Duration { return askMisses * a.every }

// judge finds out which lines deliver by their targets. It is pure.
type judge struct {
	lines map[string]*judgement
}

type judgement struct {
	began  time.Time // when the line was first asked with its carrier; zero: it has none
	last   time.Time // when a target last answered
	up     time.Time // since when targets answer without a gap; zero: they do not
	silent bool
	mute   bool // no target answers, and no other line is known to be better
}

// judged is a line as judge takes it.
type judged struct {
	name    string
	carrier bool
	limit   time.Duration // 0: it has no targets, and delivers as far as anybody knows
	last    time.Time     // when a target last answered; zero: never
	heard   bool          // a site is heard by it, which says more than targets
	metered bool          // it costs: without an answer or a site it is no line to change to
}

// look reports whether the silent lines have changed.
//
// A line is silent when none of its targets has answered for its limit while another line delivers: if none does, the
// targets may have gone, and there is nothing to change to. It delivers again after healthTime of answers, or at once
// if there is no better line. A site that is heard by a line is as good as an answer: sites are not given up for hosts.
func (j *judge) look(now time.Time, lines []judged) (changed bool) {
	if j.lines == nil {
		j.lines = map[string]*judgement{}
	}
	for name, v := range j.lines {
		if !slices.ContainsFunc(lines, func(l judged) bool { return l.name == name && l.limit > 0 }) {
			changed = changed || v.silent
			delete(j.lines, name)
		}
	}
	for _, l := range lines {
		if l.limit == 0 {
			continue
		}
		v := j.lines[l.name]
		if v == nil {
			v = &judgement{}
			j.lines[l.name] = v
		}
		v.last = l.last
		switch {
		case !l.carrier:
			v.began, v.up = time.Time{}, time.Time{}
		case v.began.IsZero():
			v.began = now
		}
		switch {
		case !v.answers(now, l):
			v.up = time.Time{}
		case v.up.IsZero():
			v.up = now
		}
	}
	for _, l := range lines {
		v := j.lines[l.name]
		if v == nil {
			continue
		}
		answers := v.answers(now, l)
		gone := l.carrier && !answers && now.Sub(v.began) >= l.limit
		switch {
		case !l.carrier:
			changed = changed || v.silent
			v.silent = false // that it has no carrier says more
		case gone && !v.silent && j.other(now, lines, l.name, false):
			v.silent, changed = true, true
		case v.silent && answers && (now.Sub(v.up) >= healthTime || !j.other(now, lines, l.name, true)):
			v.silent, changed = false, true
		}
		v.mute = gone && !v.silent
	}
	return changed
}

// answers reports whether the line's targets or sites do.
func (v *judgement) answers(now time.Time, l judged) bool {
	return l.carrier && (l.heard || !l.last.IsZero() && now.Sub(l.last) < l.limit)
}

// other reports whether another line than name delivers, as far as is known; trusted: and has done so for long.
func (j *judge) other(now time.Time, lines []judged, name string, trusted bool) bool {
	return slices.ContainsFunc(lines, func(l judged) bool {
		if l.name == name || !l.carrier {
			return false
		}
		v := j.lines[l.name]
		if v == nil {
			return l.heard || !l.metered
		}
		return v.answers(now, l) && !(trusted && v.silent)
	})
}

// silent are the names of the silent lines.
func (j *judge) silent() (names []string) {
	for name, v := range j.lines {
		if v.silent {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// mutes are the names of the lines that are mute.
func (j *judge) mutes() (names []string) {
	for name, v := range j.lines {
		if v.mute {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// restore takes over what an earlier daemon has found.
func (j *judge) restore(silent []string) {
	j.lines = map[string]*judgement{}
	for _, name := range silent {
		j.lines[name] = &judgement{silent: true}
	}
}

// asker asks the targets of lines, and notes who answers.
type asker struct {
	mu    sync.Mutex
	lines map[string]asked
	heard map[string]map[netip.Addr]time.Time // by interface, then by who answered

	open  func(device string, ipv6 bool) (*echo.Conn, error)
	socks map[sockKey]*askSock // asker.ask's goroutine alone
	next  map[string]time.Time // when a line is asked again
	seq   uint16
}

type sockKey struct {
	device string
	ipv6   bool
}

// askSock is a socket with the questions that may yet be answered.
type askSock struct {
	conn *echo.Conn
	id   uint16

	mu   sync.Mutex
	open map[uint16]question
	dead bool // its reader has ended
}

type question struct {
	to     netip.Addr
	cookie uint64
	sent   time.Time
}

// maxQuestions bounds those of a socket: those of a line for as long as an answer counts.
const maxQuestions = 64

func newAsker() *asker {
	return &asker{
		open:  echo.Open,
		heard: map[string]map[netip.Addr]time.Time{}, socks: map[sockKey]*askSock{}, next: map[string]time.Time{},
	}
}

// follow takes up which lines are asked.
func (a *asker) follow(lines map[string]asked) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lines = lines
	for device := range a.heard {
		if _, ok := lines[device]; !ok {
			delete(a.heard, device)
		}
	}
}

// last is when one of the hosts last answered by the line; zero: never.
func (a *asker) last(device string, hosts []netip.Addr) (last time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range hosts {
		if at := a.heard[device][h.WithZone("")]; at.After(last) {
			last = at
		}
	}
	return last
}

func (a *asker) note(device string, from netip.Addr, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.lines[device]; !ok {
		return
	}
	if a.heard[device] == nil {
		a.heard[device] = map[netip.Addr]time.Time{}
	}
	a.heard[device][from] = now
}

// run asks until ctx ends. tick is called after each look.
func (a *asker) run(ctx context.Context, tick func()) {
	ticker := time.NewTicker(askTick)
	defer ticker.Stop()
	var readers sync.WaitGroup
	defer readers.Wait()
	defer func() {
		for _, s := range a.socks {
			_ = s.conn.Close()
		}
	}()
	for {
		a.ask(time.Now(), &readers)
		tick()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// ask sends what is due, on sockets that are opened again where an interface has gone and come.
func (a *asker) ask(now time.Time, readers *sync.WaitGroup) {
	a.mu.Lock()
	lines := a.lines
	a.mu.Unlock()
	for key, s := range a.socks {
		if _, ok := lines[key.device]; !ok || s.ended() {
			_ = s.conn.Close()
			delete(a.socks, key)
		}
	}
	for device, l := range lines {
		if now.Before(a.next[device]) {
			continue
		}
		a.next[device] = now.Add(l.every)
		for _, host := range slices.Concat(l.targets, l.gateways) {
			key := sockKey{device, host.Is6()}
			s := a.socks[key]
			if s == nil {
				conn, err := a.open(device, key.ipv6)
				if err != nil {
					continue // the interface is not there: the next time, perhaps
				}
				s = &askSock{conn: conn, id: uint16(rand.Uint32()), open: map[uint16]question{}}
				a.socks[key] = s
				readers.Go(func() { s.read(func(from netip.Addr) { a.note(device, from, time.Now()) }, l.limit()) })
			}
			a.seq++
			if err := s.ask(host, device, a.seq, now, l.limit()); err != nil && s.conn.Stale() {
				_ = s.conn.Close()
				delete(a.socks, key)
			}
		}
	}
}

func (s *askSock) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dead
}

func (s *askSock) ask(to netip.Addr, device string, seq uint16, now time.Time, limit time.Duration) error {
	q := question{to.WithZone(""), rand.Uint64(), now}
	s.mu.Lock()
	for n, old := range s.open {
		if now.Sub(old.sent) > limit || len(s.open) >= maxQuestions {
			delete(s.open, n)
		}
	}
	s.open[seq] = q
	s.mu.Unlock()
	if to.IsLinkLocalUnicast() && to.Is6() {
		to = to.WithZone(device)
	}
	return s.conn.Send(to, echo.Message{ID: s.id, Seq: seq, Cookie: q.cookie})
}

// read notes who answers what was asked. Answers to anything else, or from anybody else, do not count.
func (s *askSock) read(note func(netip.Addr), limit time.Duration) {
	for {
		from, m, err := s.conn.Receive()
		if errors.Is(err, echo.ErrOther) {
			continue
		}
		if err != nil {
			s.mu.Lock()
			s.dead = true
			s.mu.Unlock()
			return
		}
		if s.answered(from, m, time.Now(), limit) {
			note(from)
		}
	}
}

func (s *askSock) answered(from netip.Addr, m echo.Message, now time.Time, limit time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, ok := s.open[m.Seq]
	if !ok || m.ID != s.id || m.Cookie != q.cookie || from != q.to || now.Sub(q.sent) > limit {
		return false
	}
	delete(s.open, m.Seq)
	return true
}
