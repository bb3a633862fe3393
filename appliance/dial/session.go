package dial

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ringway/appliance/secrets"
	"ringway/appliance/task"
	"ringway/durable"
	"ringway/process"
	"ringway/routing/advert"
	"ringway/routing/pppoe"
)

const (
	// endPatience is how long pppd has to tell the other end.
	endPatience = 3 * time.Second
	// lookDialing and lookUp are how often pppd's log is read.
	lookDialing = 100 * time.Millisecond
	lookUp      = time.Second
	// waitUnder is how often the network card is looked for.
	waitUnder = time.Second
	maxLog    = 64 << 10 // bytes of a log, which is emptied then
)

// The phases of a session.
const (
	phaseDialing = "dialing"
	phaseUp      = "up"
	phaseWaiting = "waiting" // for the next try
)

// state is what is known of a session.
type state struct {
	phase      string
	since      time.Time // of the phase
	downSince  time.Time // when the last session ended, or the first try began; zero: it is up
	dials      int
	reason     string // why the last try or session ended; "": it has not
	err        error  // of ours, if that is the reason
	progress   pppoe.Progress
	advertised advert.Result
	advertNote string // what was refused of advertisements
}

// session keeps one session up.
type session struct {
	dialer *Dialer
	wish   wish
	hurry  task.Signal
	ctx    context.Context
	quit   context.CancelFunc // of what ctx is not: the session is to end
	ending context.Context
	work   sync.WaitGroup
	advert *advert.Client

	state state // guarded by dialer.mu
}

func (d *Dialer) newSession(ctx context.Context, w wish) *session {
	s := &session{dialer: d, wish: w, hurry: task.NewSignal(), ctx: ctx}
	s.ending, s.quit = context.WithCancel(context.WithoutCancel(ctx))
	s.advert = &advert.Client{
		Interface: w.Device, File: advertFile(d.options.Adverts, w.Device), Log: d.options.Log, Refuse: d.refusePrefix,
		Report: func(r advert.Result) { s.note(func(st *state) { st.advertised = r }); d.options.Changed() },
		Note:   func(text string) { s.note(func(st *state) { st.advertNote = text }) },
	}
	s.state.advertised = advert.Last(s.advert.File, w.Device, d.refusePrefix)
	return s
}

func (s *session) start() {
	s.work.Go(s.run)
	s.work.Go(func() {
		ctx, cancel := context.WithCancel(s.ctx)
		defer cancel()
		defer context.AfterFunc(s.ending, cancel)()
		_ = s.advert.Run(ctx) // it ends with ctx alone
	})
}

// end ends the session and waits until it is gone.
func (s *session) end() {
	s.quit()
	s.work.Wait()
}

func (s *session) note(f func(*state)) {
	s.dialer.mu.Lock()
	defer s.dialer.mu.Unlock()
	f(&s.state)
}

func (s *session) file(kind string) string { return s.dialer.file(s.wish.Device, kind) }

// run dials again and again, until the daemon or the session is to end.
func (s *session) run() {
	var tries pauses
	for s.ctx.Err() == nil && s.ending.Err() == nil {
		up, refused := s.once()
		if s.ctx.Err() != nil || s.ending.Err() != nil {
			break
		}
		s.wait(tries.next(up, refused))
	}
	if s.ctx.Err() == nil {
		if err := quit(s.dialer.options.Dir, s.wish.Device); err != nil {
			s.dialer.options.Log.Warn("cannot end a PPPoE session", "interface", s.wish.Device, "error", err)
		}
	}
}

// wait waits for the next try.
func (s *session) wait(pause time.Duration) {
	if pause == 0 {
		return
	}
	s.note(func(st *state) { st.phase, st.since = phaseWaiting, clock() })
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-s.ctx.Done():
	case <-s.ending.Done():
	case <-s.hurry:
	case <-timer.C:
	}
}

// once dials, and returns when the session is over: whether it was up, and whether it was refused.
func (s *session) once() (up time.Duration, refused bool) {
	p, err := s.dial()
	if err != nil {
		s.failed(pppoe.Progress{}, err)
		return 0, false
	}
	if p == nil {
		return 0, false
	}
	defer p.Release()

	log := s.dialer.options.Log.With("interface", s.wish.Device)
	var began time.Time
	var last pppoe.Progress
	for {
		last = s.read(last)
		if last.Up() && began.IsZero() {
			began = clock()
			s.note(func(st *state) {
				*st = state{
					phase: phaseUp, since: began, dials: st.dials, progress: last,
					advertised: st.advertised, advertNote: st.advertNote,
				}
			})
			log.Info("PPPoE session up", "address", last.Address, "peer", last.Peer, "ipv6", last.IPv6)
			s.advert.Recheck() // the prefix may be another one than in the last session
			s.dialer.options.Changed()
		} else {
			s.note(func(st *state) { st.progress = last })
		}
		err := s.dialer.check(last.Address, last.Peer)
		if err != nil {
			err = fmt.Errorf("refused: %w", err)
			if eerr := p.End(endPatience); eerr != nil {
				log.Error("cannot end a PPPoE session whose address is refused", "error", eerr)
			}
		}
		pause := lookDialing
		if !began.IsZero() {
			pause = lookUp
		}
		timer := time.NewTimer(pause)
		select {
		case <-p.Exited():
			timer.Stop()
			last = s.read(last).Ended(p.Status())
			_ = os.Remove(s.file(processFile)) // the pid may be somebody else's soon
			s.failed(last, err)
			if began.IsZero() {
				return 0, last.Failure == pppoe.Refused
			}
			return clock().Sub(began), false
		case <-s.ending.Done():
			timer.Stop()
			return 0, false
		case <-s.ctx.Done():
			timer.Stop()
			return 0, false
		case <-timer.C:
		}
	}
}

// failed notes why there is no session.
func (s *session) failed(p pppoe.Progress, err error) {
	reason := string(p.Failure)
	if p.Detail != "" {
		reason += fmt.Sprintf(": %q", p.Detail)
	}
	if err != nil {
		reason = err.Error()
	}
	changed := false
	s.note(func(st *state) {
		changed = st.reason != reason
		if st.downSince.IsZero() {
			st.downSince = clock()
		}
		st.phase, st.since, st.reason, st.err, st.progress = phaseDialing, clock(), reason, err, p
	})
	if changed {
		s.dialer.options.Log.Warn("no PPPoE session", "interface", s.wish.Device, "reason", reason)
	}
	s.dialer.options.Changed()
}

// dial returns the pppd of the session: one that an earlier daemon has started for the same session, or a new one. What
// else differs, a password or what another release sets, is no reason to end one that is up: it holds for the next.
// dial returns nil when it had to wait for the network card until the end.
func (s *session) dial() (*process.Running, error) {
	if p := recall(s.file(processFile)); p != nil {
		if old, err := os.ReadFile(s.file(optionsFile)); err == nil && s.wish.SameSession(string(old)) {
			return p, nil
		}
		err := p.End(endPatience)
		p.Release()
		if err != nil {
			return nil, fmt.Errorf("end the session with other options: %w", err)
		}
	}
	if !s.waitUnder() {
		return nil, nil
	}
	password, err := secrets.ReadPassword(secrets.Below(""), s.wish.passwordFile)
	if err != nil {
		return nil, err
	}
	o := s.wish.Options
	o.Password = password
	s.note(func(st *state) {
		st.phase, st.since = phaseDialing, clock()
		st.dials++
		if st.downSince.IsZero() {
			st.downSince = clock()
		}
	})
	if err := os.MkdirAll(s.dialer.options.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := durable.WriteFile(s.file(optionsFile), []byte(o.Text()), 0o600); err != nil {
		return nil, err
	}
	// Appended to, as pppd itself does: what it writes before it has read its options goes there, too.
	output, err := os.OpenFile(s.file(logFile), os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	pppd := process.Program{
		Name: "pppd", Args: []string{"file", s.file(optionsFile)},
		Capabilities: []int{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW},
	}
	p, err := pppd.Start(output)
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(s.file(processFile), []byte(p.ID()), 0o600); err != nil {
		// The next daemon could not adopt it, and would dial beside it.
		_ = p.End(endPatience)
		p.Release()
		return nil, err
	}
	return p, nil
}

// waitUnder waits until the network card, or the VLAN on it, is there and up; false: the end came first.
func (s *session) waitUnder() bool {
	for {
		ifc, err := net.InterfaceByName(s.wish.Under)
		switch {
		case err == nil && ifc.Flags&net.FlagUp != 0 && ifc.Flags&net.FlagRunning != 0:
			return true
		case err != nil:
			err = fmt.Errorf("%s does not exist", s.wish.Under)
		case ifc.Flags&net.FlagUp == 0:
			err = fmt.Errorf("%s is down", s.wish.Under)
		default:
			err = fmt.Errorf("%s has no carrier", s.wish.Under)
		}
		s.note(func(st *state) {
			st.phase, st.err = phaseWaiting, err
			if st.reason != err.Error() {
				st.since, st.reason = clock(), err.Error()
			}
			if st.downSince.IsZero() {
				st.downSince = clock()
			}
		})
		timer := time.NewTimer(waitUnder)
		select {
		case <-s.ctx.Done():
		case <-s.ending.Done():
		case <-s.hurry:
		case <-timer.C:
		}
		timer.Stop()
		if s.ctx.Err() != nil || s.ending.Err() != nil {
			return false
		}
	}
}

// read reads how far the session is. A log that has become long is emptied but for that, which the next daemon needs.
func (s *session) read(last pppoe.Progress) pppoe.Progress {
	f, err := os.Open(s.file(logFile))
	if err != nil {
		return last
	}
	defer f.Close()
	text := make([]byte, maxLog)
	n, _ := f.Read(text)
	p := pppoe.Read(string(text[:n]))
	if last.Up() && !p.Up() {
		last.Failure, last.Detail = p.Failure, p.Detail
		p = last
	}
	if n == maxLog {
		if short, err := os.OpenFile(s.file(logFile), os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600); err == nil {
			_, _ = short.WriteString(p.Log())
			_ = short.Close()
		}
	}
	return p
}

// pauses are those between tries: none after a session, then a second, doubled up to a minute.
type pauses struct{ last time.Duration }

const (
	firstPause   = time.Second
	longestPause = time.Minute
	// refusedPause is the least after a refusal: providers block lines that try too often.
	refusedPause = 10 * time.Second
	// steady is how long a session has to last that it is no failed try.
	steady = 10 * time.Second
)

// next is the pause after a session that was up for so long, 0 for a try without one.
func (p *pauses) next(up time.Duration, refused bool) time.Duration {
	if up >= steady {
		p.last = 0
		return 0
	}
	switch {
	case p.last == 0:
		p.last = firstPause
	default:
		p.last = min(2*p.last, longestPause)
	}
	if refused {
		p.last = max(p.last, refusedPause)
	}
	return p.last
}
