// Package line follows the lines of the WANs: which have a carrier, and which addresses. The kernel's routes choose
// among them. Engines, which send to each site from the address where it was heard last, are told at once when such an
// address has gone or its line has lost its carrier, and when a better line is back.
package line

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/appliance/task"
	"ringway/routing/rtnl"
	"ringway/tunnel"
)

// Name is the component's name, and that of its section of the status.
const Name = "lines"

// tellLimit bounds how long an engine may take to answer: other lines may go meanwhile.
const tellLimit = time.Second

// repeatAfter is how long after a line was found silent engines are told once more to leave it. A silent line has a
// carrier, so that it is the routes that lead to another one, and a reconciliation has to change them before.
const repeatAfter = time.Second

// Options say who is told what.
type Options struct {
	Log *slog.Logger
	// Reroute has the engine of a class choose its addresses again.
	Reroute func(ctx context.Context, c tunnel.Class, r tunnel.Reroute) error
	// Flush ends the connections of LANs that were translated to an address which they cannot use any more, and says
	// how many there were.
	Flush func(netip.Addr) (int, error)
	// Changed has the routes follow which lines are silent.
	Changed func()
}

// Lines is the component.
type Lines struct {
	options Options
	again   task.Signal // carriers, addresses or the config have changed

	mu      sync.Mutex // guards what follows
	names   []string   // of the WANs' interfaces, in order of preference
	dialled []tunnel.PublicKey
	lines   []rtnl.Line
	since   map[string]time.Time // when a line got or lost its carrier
	failed  error                // why the lines cannot be read

	deliveries deliveries
	usable     []rtnl.Line // as lines, but a silent one has no carrier

	// Run's goroutine alone:
	chooser chooser
	repeat  time.Time // when engines are told once more, since routes have followed by then; zero: they need not
}

// New returns the component.
func New(o Options) *Lines {
	return &Lines{options: o, again: task.NewSignal(), since: map[string]time.Time{}}
}

// Name is the component's name.
func (l *Lines) Name() string { return Name }

// Follow takes up which lines there are, and which sites are dialled.
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
	if !slices.Equal(l.names, names) {
		l.names = names
		l.again.Raise()
	}
}

// Run follows the lines until ctx ends.
func (l *Lines) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watched := make(chan error, 1)
	go func() { watched <- rtnl.WatchLines(ctx, l.again.Raise) }()

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
		next := l.look(ctx, time.Now())
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
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.deliveries.observe(time.Now(), peers) {
		l.again.Raise()
	}
}

// Silent are the interfaces of the lines that have a carrier and deliver nothing.
func (l *Lines) Silent() (names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if line.Carrier && l.deliveries.isSilent(line) {
			names = append(names, line.Name)
		}
	}
	return names
}

// look reads the lines and tells the engines what follows. It returns when to look again.
func (l *Lines) look(ctx context.Context, now time.Time) (next time.Time) {
	l.mu.Lock()
	names, before := l.names, l.usable
	l.mu.Unlock()

	lines, err := rtnl.Lines(names)
	l.mu.Lock()
	news := (err == nil) != (l.failed == nil)
	changed := false
	if l.failed = err; err == nil {
		changed = l.noteLocked(now, lines)
	}
	dialled, usable := l.dialled, l.usable
	l.mu.Unlock()
	if err != nil {
		if news {
			l.options.Log.Error("cannot follow the lines of the WANs, will retry", "error", err)
		}
		return now.Add(time.Second)
	}

	if changed {
		l.options.Changed()
		l.repeat = now.Add(repeatAfter)
	}
	moves := l.chooser.look(now, usable)
	if !l.repeat.IsZero() && !now.Before(l.repeat) {
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
		l.tell(ctx, r)
	}
	l.flush(before, usable)
	next = l.chooser.next()
	if !l.repeat.IsZero() && (next.IsZero() || l.repeat.Before(next)) {
		next = l.repeat
	}
	return next
}

// noteLocked takes over how the lines are, and logs what has changed. silent is whether other lines are silent now.
func (l *Lines) noteLocked(now time.Time, lines []rtnl.Line) (silent bool) {
	usable := slices.Clone(lines)
	for i, line := range lines {
		if !line.Carrier || !l.deliveries.isSilent(line) {
			continue
		}
		usable[i].Carrier = false
	}
	for i, line := range lines {
		was := slices.IndexFunc(l.lines, func(b rtnl.Line) bool { return b.Name == line.Name })
		before := was >= 0 && l.lines[was].Carrier && !l.usable[was].Carrier
		after := line.Carrier && !usable[i].Carrier
		if before == after {
			continue
		}
		silent = true
		l.since[line.Name] = now
		if after {
			l.options.Log.Warn("a WAN's line delivers nothing: no site is heard by it, and others are by another line",
				"interface", line.Name)
		} else {
			l.options.Log.Info("a WAN's line delivers again", "interface", line.Name)
		}
	}
	l.usable = usable
	for _, line := range lines {
		i := slices.IndexFunc(l.lines, func(b rtnl.Line) bool { return b.Name == line.Name })
		if i >= 0 && l.lines[i].Carrier == line.Carrier {
			continue
		}
		l.since[line.Name] = now
		if i >= 0 && line.Carrier {
			l.options.Log.Info("a WAN's line is back", "interface", line.Name)
		} else if i >= 0 {
			l.options.Log.Warn("a WAN's line has no carrier", "interface", line.Name)
		}
	}
	l.lines = lines
	return silent
}

func (l *Lines) tell(ctx context.Context, r tunnel.Reroute) {
	ctx, cancel := context.WithTimeout(ctx, tellLimit)
	defer cancel()
	var all sync.WaitGroup
	for _, c := range tunnel.Classes {
		all.Go(func() {
			if err := l.options.Reroute(ctx, c, r); err != nil {
				l.options.Log.Warn("cannot have a tunnel choose its address again; it finds out when a packet cannot leave",
					"class", c, "error", err)
			}
		})
	}
	all.Wait()
}

// flush ends connections that were translated to the addresses of lines that went: their packets would leave by
// another line with an address that is not its.
func (l *Lines) flush(before, now []rtnl.Line) {
	if len(now) < 2 {
		return
	}
	for _, b := range before {
		for _, a := range b.Addresses {
			stays := slices.ContainsFunc(now, func(n rtnl.Line) bool {
				return n.Carrier && slices.Contains(n.Addresses, a)
			})
			if stays || !b.Carrier {
				continue
			}
			switch n, err := l.options.Flush(a); {
			case err != nil:
				l.options.Log.Warn("cannot end the connections of a line that went", "address", a, "error", err)
			case n > 0:
				l.options.Log.Info("connections of a line that went were ended, so that they begin on another one",
					"address", a, "connections", n)
			}
		}
	}
}

// Problems lists the lines that carry nothing.
func (l *Lines) Problems() (all []problem.Problem) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if line.Carrier && l.deliveries.isSilent(line) {
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
		if !slices.ContainsFunc(l.lines, func(o rtnl.Line) bool { return o.Carrier }) {
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
			Interface: line.Name, Carrier: line.Carrier, Silent: line.Carrier && l.deliveries.isSilent(line),
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
