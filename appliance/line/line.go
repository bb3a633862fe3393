// Package line follows the lines of the WANs: which have a carrier, which addresses, and which deliver. The kernel's
// routes choose among them. Engines, which send to each site from the address where it was heard last, are told at once
// when such an address has gone or its line has lost its carrier, and when a better line is back.
package line

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/appliance/task"
	"ringway/durable"
	"ringway/routing/rtnl"
	"ringway/tunnel"
)

// Name is the component's name, and that of its section of the status.
const Name = "lines"

const (
	// tellLimit bounds how long an engine may take to answer.
	tellLimit = time.Second
	// tellQueue is how many moves wait for an engine that is busy. The latest is what counts.
	tellQueue = 8
	// repeatAfter is how long after a line was found silent engines are told once more to leave it. A silent line has a
	// carrier, so that it is the routes that lead to another one, and a reconciliation has to change them before.
	repeatAfter = time.Second
)

// Options say who is told what.
type Options struct {
	Log *slog.Logger
	// File keeps which lines are silent over a restart of the daemon; "": nothing is kept.
	File string
	// Reroute has the engine of a class choose its addresses again.
	Reroute func(ctx context.Context, c tunnel.Class, r tunnel.Reroute) error
	// Changed has the routes follow which lines are silent.
	Changed func()
}

// Lines is the component.
type Lines struct {
	options Options
	again   task.Signal // carriers, addresses or the config have changed
	tellers map[tunnel.Class]chan tunnel.Reroute

	mu         sync.Mutex // guards what follows
	names      []string   // of the WANs' interfaces, in order of preference
	dialled    []tunnel.PublicKey
	lines      []seen
	since      map[string]time.Time // when a line got or lost its carrier, fell silent or delivered again
	failed     error                // why the lines cannot be read
	deliveries deliveries

	// Run's goroutine alone:
	chooser chooser
	repeat  time.Time // when engines are told once more; zero: they need not
}

// seen is a line at the last look.
type seen struct {
	rtnl.Line
	silent bool // it has a carrier, and delivers nothing
}

// usable is the line for those who choose one: a silent one is as good as one without a carrier.
func (l seen) usable() rtnl.Line {
	u := l.Line
	u.Carrier = u.Carrier && !l.silent
	return u
}

// New returns the component.
func New(o Options) *Lines {
	l := &Lines{
		options: o, again: task.NewSignal(), since: map[string]time.Time{},
		tellers: map[tunnel.Class]chan tunnel.Reroute{},
	}
	for _, c := range tunnel.Classes {
		l.tellers[c] = make(chan tunnel.Reroute, tellQueue)
	}
	return l
}

// Name is the component's name.
func (l *Lines) Name() string { return Name }

// Follow takes up which lines there are, and which sites are dialled. The first time it takes over which lines an
// earlier daemon has found silent: the first reconciliation must not lead everything to one of them.
func (l *Lines) Follow(cfg *config.Config) {
	var names []string
	for _, w := range cfg.WANs {
		names = append(names, w.Interface)
	}
	var dialled []tunnel.PublicKey
	for _, s := range cfg.Sites {
		if s.Endpoint != "" {
			dialled = append(dialled, s.PublicKey)
		}
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	l.dialled = dialled
	if slices.Equal(l.names, names) {
		return
	}
	if l.names == nil {
		l.deliveries.restore(time.Now(), l.load())
	}
	l.names = names
	if lines, err := rtnl.Lines(names); err == nil {
		l.noteLocked(time.Now(), lines)
	}
	l.again.Raise()
}

// load reads which addresses an earlier daemon of this boot has found silent.
func (l *Lines) load() (silent []netip.Addr) {
	text, err := os.ReadFile(l.options.File)
	if err != nil || json.Unmarshal(text, &silent) != nil {
		return nil // there is none, or none that can be read: what is silent is found again within seconds
	}
	return silent
}

func (l *Lines) save(silent []netip.Addr) {
	if l.options.File == "" {
		return
	}
	text, err := json.Marshal(silent)
	if err == nil {
		err = durable.WriteFile(l.options.File, text, 0o600)
	}
	if err != nil {
		l.options.Log.Warn("cannot keep which lines are silent for the next daemon", "error", err)
	}
}

// Run follows the lines until ctx ends.
func (l *Lines) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	watched := make(chan error, 1)
	go func() { watched <- rtnl.WatchLines(ctx, l.again.Raise) }()
	var tellers sync.WaitGroup
	for c, moves := range l.tellers {
		tellers.Go(func() { l.tellEngine(ctx, c, moves) })
	}
	defer tellers.Wait()
	defer cancel()

	timer := time.NewTimer(0)
	defer timer.Stop()
	for started := false; ; {
		select {
		case <-ctx.Done():
			return <-watched
		case err := <-watched:
			return err
		case <-l.again:
		case <-timer.C:
		}
		next := l.look(time.Now())
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
		if !started {
			ready()
			started = true
		}
	}
}

// Observe takes what the engine of the voice tunnel says of its peers.
func (l *Lines) Observe(peers []tunnel.PeerStatus) {
	if silent, changed := l.observe(peers); changed {
		l.save(silent)
		l.options.Changed()
		l.again.Raise()
	}
}

func (l *Lines) observe(peers []tunnel.PeerStatus) (silent []netip.Addr, changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ours := map[netip.Addr]bool{}
	lines := make([]rtnl.Line, 0, len(l.lines))
	for _, line := range l.lines {
		lines = append(lines, line.Line)
		for _, a := range line.Addresses {
			ours[a] = true
		}
	}
	if !l.deliveries.observe(time.Now(), ours, peers) {
		return nil, false
	}
	l.noteLocked(time.Now(), lines)
	return l.deliveries.all(), true
}

// Silent are the interfaces of the lines that have a carrier and deliver nothing.
func (l *Lines) Silent() (names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if line.silent {
			names = append(names, line.Name)
		}
	}
	return names
}

// look reads the lines and tells the engines what follows. It returns when to look again.
func (l *Lines) look(now time.Time) (next time.Time) {
	usable, dialled, err := l.read(now)
	if err != nil {
		return now.Add(time.Second)
	}
	moves := l.chooser.look(now, usable)
	if len(moves) > 0 && !moves[0].Dialled {
		l.repeat = now.Add(repeatAfter)
	} else if !l.repeat.IsZero() && !now.Before(l.repeat) {
		l.repeat = time.Time{}
		moves = append(moves, move{Reroute: tunnel.Reroute{From: slices.Clone(l.chooser.gone)}})
	}
	for _, m := range moves {
		r := m.Reroute
		if m.Dialled {
			if len(dialled) == 0 {
				continue
			}
			r.Keys = dialled
			l.options.Log.Info("sites return to the preferred line", "from", r.From)
		}
		for _, queue := range l.tellers {
			select {
			case queue <- r:
			default: // the engine does not answer; it finds out by itself what cannot be sent
			}
		}
	}
	next = l.chooser.next()
	if !l.repeat.IsZero() && (next.IsZero() || l.repeat.Before(next)) {
		next = l.repeat
	}
	return next
}

// read reads the lines.
func (l *Lines) read(now time.Time) (usable []rtnl.Line, dialled []tunnel.PublicKey, err error) {
	l.mu.Lock()
	names := l.names
	l.mu.Unlock()
	lines, err := rtnl.Lines(names)

	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil && l.failed == nil {
		l.options.Log.Error("cannot follow the lines of the WANs, will retry", "error", err)
	}
	if l.failed = err; err != nil {
		return nil, nil, err
	}
	l.noteLocked(now, lines)
	for _, line := range l.lines {
		usable = append(usable, line.usable())
	}
	return usable, l.dialled, nil
}

// noteLocked takes over how the lines are, and logs what has changed.
func (l *Lines) noteLocked(now time.Time, lines []rtnl.Line) {
	before := l.lines
	l.lines = nil
	for _, line := range lines {
		s := seen{line, line.Carrier && l.deliveries.isSilent(line.Addresses)}
		l.lines = append(l.lines, s)
		i := slices.IndexFunc(before, func(b seen) bool { return b.Name == line.Name })
		if i < 0 {
			l.since[line.Name] = now
			continue
		}
		b := before[i]
		if b.Carrier == s.Carrier && b.silent == s.silent {
			continue
		}
		l.since[line.Name] = now
		switch {
		case !s.Carrier:
			l.options.Log.Warn("a WAN's line has no carrier", "interface", line.Name)
		case s.silent:
			l.options.Log.Warn("a WAN's line delivers nothing: no site is heard by it, and others are by another line",
				"interface", line.Name)
		default:
			l.options.Log.Info("a WAN's line has a carrier and delivers", "interface", line.Name)
		}
	}
}

// tellEngine tells the engine of a class, one move after the other, until ctx ends.
func (l *Lines) tellEngine(ctx context.Context, c tunnel.Class, moves <-chan tunnel.Reroute) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-moves:
			l.tell(ctx, c, r)
		}
	}
}

func (l *Lines) tell(ctx context.Context, c tunnel.Class, r tunnel.Reroute) {
	ctx, cancel := context.WithTimeout(ctx, tellLimit)
	defer cancel()
	if err := l.options.Reroute(ctx, c, r); err != nil && ctx.Err() == nil {
		l.options.Log.Warn("cannot have a tunnel choose its address again; it finds out when a packet cannot leave",
			"class", c, "error", err)
	}
}

// Problems lists the lines that carry nothing.
func (l *Lines) Problems() (all []problem.Problem) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if line.silent {
			all = append(all, problem.Problem{
				Subject: line.Name, Severity: problem.Warning, Since: l.since[line.Name],
				Text:   "delivers nothing: it has a carrier, and no site is heard by it",
				Action: "ask the provider; other WANs are used until sites have answered by it for half a minute",
			})
			continue
		}
		if !line.Exists || line.Carrier {
			continue // one that does not exist is the interfaces' problem
		}
		p := problem.Problem{
			Subject: line.Name, Severity: problem.Warning, Since: l.since[line.Name],
			Text:   "no carrier: nothing is received or sent by this WAN",
			Action: "check the cable and the modem; other WANs are used meanwhile",
		}
		if !slices.ContainsFunc(l.lines, func(o seen) bool { return o.Carrier }) {
			p.Severity, p.Action = problem.Critical, "check the cable and the modem: no WAN has a carrier, all sites are cut off"
		}
		all = append(all, p)
	}
	if l.failed != nil {
		all = append(all, problem.Problem{
			Severity: problem.Critical, Text: l.failed.Error(), Action: "it is tried again every second",
		})
	}
	return all
}

// Status is the section of the status.
func (l *Lines) Status() fmt.Stringer {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Status{}
	for _, line := range l.lines {
		s = append(s, WAN{
			Interface: line.Name, Carrier: line.Carrier, Silent: line.silent,
			Since: l.since[line.Name], Addresses: line.Addresses,
		})
	}
	return s
}

// Status are the lines, in the order of the config. Fields are added, never renamed.
type Status []WAN

// WAN is the line of one WAN.
type WAN struct {
	Interface string       `json:"interface"`
	Carrier   bool         `json:"carrier"`
	Silent    bool         `json:"silent"` // it has a carrier, and delivers nothing
	Since     time.Time    `json:"since"`  // when that changed, as far as the daemon knows
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

// String is a line of the status, empty where all is well with the only WAN.
func (s Status) String() string {
	var all []string
	down := false
	for _, w := range s {
		text := w.Interface + " up"
		switch {
		case w.Silent:
			down = true
			text = w.Interface + " silent since " + w.Since.Local().Format(time.DateTime)
		case !w.Carrier:
			down = true
			text = w.Interface + " without a carrier since " + w.Since.Local().Format(time.DateTime)
		}
		all = append(all, text)
	}
	if len(s) < 2 && !down {
		return ""
	}
	return "WAN lines: " + strings.Join(all, ", ")
}
