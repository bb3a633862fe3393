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
	// maxFlush bounds the addresses whose connections wait to be forgotten.
	maxFlush = 64
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
	// Targets keeps which lines have silent targets over a restart of the daemon; "": nothing is kept.
	Targets string
	// Gateways are those that a lease or advertisements gave a WAN; nil: none.
	Gateways func(device string) []netip.Addr
	// Flush forgets the connections with an end in one of the networks; nil: nothing is forgotten.
	Flush func(networks []netip.Prefix) (int, error)
}

// Lines is the component.
type Lines struct {
	options Options
	again   task.Signal // carriers, addresses or the config have changed
	tellers map[tunnel.Class]chan tunnel.Reroute
	// forgetting has connections forgotten, which takes long where there are many: not by the goroutine that moves calls.
	forgetting task.Signal

	mu         sync.Mutex // guards what follows
	names      []string   // of the WANs' interfaces, in order of preference
	dialled    []tunnel.PublicKey
	lines      []seen
	since      map[string]time.Time // when a line got or lost its carrier, fell silent or delivered again
	failed     error                // why the lines cannot be read
	deliveries deliveries
	judge      judge
	config     []config.WAN
	// flush are the addresses of lines that have become useless. The routes lead elsewhere from the next round on; of
	// flush, the first flushTold were known when that round began, and the first flushReady are to be forgotten now.
	flush                 []netip.Prefix
	flushTold, flushReady int

	asker *asker

	// Run's goroutine alone:
	chooser chooser
	repeat  time.Time // when engines are told once more; zero: they need not
}

// seen is a line at the last look.
type seen struct {
	rtnl.Line
	silent bool // it has a carrier, and delivers nothing
	mute   bool // its targets do not answer, and nothing better is known
	judged bool // silent or mute by its targets
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
		options: o, again: task.NewSignal(), forgetting: task.NewSignal(), since: map[string]time.Time{},
		tellers: map[tunnel.Class]chan tunnel.Reroute{}, asker: newAsker(),
	}
	for _, c := range tunnel.Classes {
		l.tellers[c] = make(chan tunnel.Reroute, tellQueue)
	}
	return l
}

// Name is the component's name.
func (l *Lines) Name() string { return Name }

// Interface is that of the WAN with an address; "": there is none.
func (l *Lines) Interface(a netip.Addr) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if slices.Contains(line.Addresses, a) {
			return line.Name
		}
	}
	return ""
}

// Follow takes up which lines there are, and which sites are dialled. The first time it takes over which lines an
// earlier daemon has found silent: the first reconciliation must not lead everything to one of them.
func (l *Lines) Follow(cfg *config.Config) {
	var names []string
	lines := map[string]asked{}
	for _, w := range cfg.WANs {
		names = append(names, w.Interface)
		if len(w.Targets) > 0 {
			lines[w.Interface] = l.asked(w)
		}
	}
	l.asker.follow(lines)
	var dialled []tunnel.PublicKey
	for _, s := range cfg.Sites {
		if s.Endpoint != "" {
			dialled = append(dialled, s.PublicKey)
		}
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	l.dialled, l.config = dialled, cfg.WANs
	if l.flushTold > l.flushReady {
		l.flushReady = l.flushTold
		l.forgetting.Raise()
	}
	if slices.Equal(l.names, names) {
		return
	}
	if l.names == nil {
		l.deliveries.restore(time.Now(), l.load())
		l.judge.restore(l.loadTargets())
	}
	l.names = names
	if lines, err := rtnl.Lines(names); err == nil {
		l.noteLocked(time.Now(), lines)
	}
	l.again.Raise()
}

// asked is how a WAN with targets is asked.
func (l *Lines) asked(w config.WAN) asked {
	a := asked{targets: w.Targets, gateways: slices.Clone(w.Gateways), every: askEvery}
	if w.Volume != nil {
		a.every = askEveryMetered
	}
	if w.Autoconf() && l.options.Gateways != nil { // DHCP, PPPoE or DHCPv6: what leads out is not configured
		a.gateways = append(a.gateways, l.options.Gateways(w.Interface)...)
	}
	a.gateways = slices.DeleteFunc(a.gateways, func(g netip.Addr) bool { return slices.Contains(a.targets, g) })
	return a
}

// judgeTargets looks at who has answered.
func (l *Lines) judgeTargets() {
	names, changed := l.lookAtTargets(time.Now())
	if !changed {
		return
	}
	if l.options.Targets != "" {
		text, err := json.Marshal(names)
		if err == nil {
			err = durable.WriteFile(l.options.Targets, text, 0o600)
		}
		if err != nil {
			l.options.Log.Warn("cannot keep which lines are silent for the next daemon", "error", err)
		}
	}
	l.options.Changed()
	l.again.Raise()
}

func (l *Lines) lookAtTargets(now time.Time) (silent []string, changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lines []judged
	current := make([]rtnl.Line, 0, len(l.lines))
	for _, line := range l.lines {
		current = append(current, line.Line)
		usable := line.Carrier && len(line.Addresses) > 0 && !l.deliveries.isSilent(line.Addresses)
		j := judged{
			name: line.Name, carrier: usable, metered: l.costLocked(line.Name) > 0,
			heard: l.deliveries.isHeard(now, line.Addresses),
		}
		i := slices.IndexFunc(l.config, func(w config.WAN) bool { return w.Interface == line.Name })
		if i >= 0 && len(l.config[i].Targets) > 0 {
			a := l.asked(l.config[i])
			j.carrier = line.Carrier
			j.limit, j.last = a.limit(), l.asker.last(line.Name, a.targets)
		}
		lines = append(lines, j)
	}
	mute := l.judge.mutes()
	changed = l.judge.look(now, lines)
	if changed || !slices.Equal(mute, l.judge.mutes()) {
		l.noteLocked(now, current)
	}
	return l.judge.silent(), changed
}

func (l *Lines) loadTargets() (silent []string) {
	text, err := os.ReadFile(l.options.Targets)
	if err != nil || json.Unmarshal(text, &silent) != nil {
		return nil // as in load
	}
	return silent
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
	tellers.Go(func() { l.asker.run(ctx, l.judgeTargets) })
	tellers.Go(func() {
		_ = l.forgetting.Loop(ctx, func() {}, func(context.Context) { l.forget() }) // it ends with ctx alone
	})
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
	l.flushTold = len(l.flush) // the caller is about to lead the routes elsewhere
	for _, line := range l.lines {
		if line.silent {
			names = append(names, line.Name)
		}
	}
	return names
}

// forget removes the connections of lines that have become useless, once the routes lead elsewhere: NAT chooses an
// address again for the next packet of each, and those of other lines stay.
func (l *Lines) forget() {
	l.mu.Lock()
	networks := slices.Clone(l.flush[:l.flushReady])
	l.flush = slices.Delete(l.flush, 0, l.flushReady)
	l.flushTold, l.flushReady = l.flushTold-l.flushReady, 0
	l.mu.Unlock()
	if len(networks) == 0 || l.options.Flush == nil {
		return
	}
	n, err := l.options.Flush(networks)
	if err != nil {
		l.options.Log.Warn("cannot forget the connections of a line that delivers nothing; "+
			"each begins again with its next packet", "error", err)
	}
	if n > 0 {
		l.options.Log.Info("forgot the connections of a line that delivers nothing: they go on by another one",
			"connections", n)
	}
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
	slices.SortStableFunc(usable, func(a, b rtnl.Line) int { return l.costLocked(a.Name) - l.costLocked(b.Name) })
	return usable, l.dialled, nil
}

// costLocked is 1 for a metered line, to which every other one is preferred.
func (l *Lines) costLocked(name string) int {
	if slices.ContainsFunc(l.config, func(w config.WAN) bool { return w.Interface == name && w.Volume != nil }) {
		return 1
	}
	return 0
}

// noteLocked takes over how the lines are, and logs what has changed.
func (l *Lines) noteLocked(now time.Time, lines []rtnl.Line) {
	before := l.lines
	l.lines = nil
	for _, line := range lines {
		s := seen{Line: line}
		if line.Carrier {
			s.judged = slices.Contains(l.judge.silent(), line.Name)
			s.silent = s.judged || l.deliveries.isSilent(line.Addresses)
			s.mute = !s.silent && slices.Contains(l.judge.mutes(), line.Name)
		}
		l.lines = append(l.lines, s)
		i := slices.IndexFunc(before, func(b seen) bool { return b.Name == line.Name })
		if i < 0 {
			l.since[line.Name] = now
			continue
		}
		b := before[i]
		if b.Carrier == s.Carrier && b.silent == s.silent && b.mute == s.mute {
			continue
		}
		l.since[line.Name] = now
		if b.Carrier && !b.silent && (!s.Carrier || s.silent) && len(l.flush) < maxFlush {
			for _, a := range b.Addresses {
				l.flush = append(l.flush, netip.PrefixFrom(a, a.BitLen()))
			}
		}
		switch {
		case !s.Carrier:
			l.options.Log.Warn("a WAN's line has no carrier", "interface", line.Name)
		case s.mute:
			l.options.Log.Warn("no target of a WAN answers by its line, and none is known to be better", "interface", line.Name)
		case s.judged:
			l.options.Log.Warn("a WAN's line delivers nothing: none of its targets answers", "interface", line.Name)
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
		if line.judged || line.mute {
			all = append(all, l.targetsProblemLocked(line))
			continue
		}
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
	usable := func(s seen, cost int) bool { return s.Carrier && !s.silent && l.costLocked(s.Name) == cost }
	metered := slices.ContainsFunc(l.lines, func(s seen) bool { return usable(s, 1) })
	if metered && !slices.ContainsFunc(l.lines, func(s seen) bool { return usable(s, 0) }) {
		all = append(all, problem.Problem{
			Subject: "data", Severity: problem.Warning,
			Text:   "only metered WANs are left: calls go on, and the LANs' internet and the data tunnel stay closed",
			Action: "repair another WAN",
		})
	}
	if l.failed != nil {
		all = append(all, problem.Problem{
			Severity: problem.Critical, Text: l.failed.Error(), Action: "it is tried again every second",
		})
	}
	return all
}

// targetsProblemLocked says which of a line's targets are silent, and whether its gateway is, too.
func (l *Lines) targetsProblemLocked(line seen) problem.Problem {
	p := problem.Problem{
		Subject: line.Name, Severity: problem.Warning, Since: l.since[line.Name],
		Text:   "delivers nothing: it has a carrier, and none of its targets answers",
		Action: "ask the provider; other WANs are used until targets have answered by it for half a minute",
	}
	if line.mute {
		p.Text = "none of its targets answers, and no other WAN is known to deliver"
		p.Action = "ask the provider, or correct wan[].targets if these hosts have gone; the line is used meanwhile"
		p.Severity = problem.Critical
	}
	i := slices.IndexFunc(l.config, func(w config.WAN) bool { return w.Interface == line.Name })
	if i < 0 {
		return p
	}
	a := l.asked(l.config[i])
	switch last := l.asker.last(line.Name, a.gateways); {
	case len(a.gateways) == 0:
	case !last.IsZero() && time.Since(last) < a.limit():
		p.Text += "; its gateway does"
	default:
		p.Text += ", nor does its gateway"
	}
	return p
}

// Status is the section of the status.
func (l *Lines) Status() fmt.Stringer {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Status{}
	for _, line := range l.lines {
		s = append(s, WAN{
			Interface: line.Name, Carrier: line.Carrier, Silent: line.silent, Mute: line.mute,
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
	Mute      bool         `json:"mute"`   // no target answers, and no other line is known to deliver
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
		case w.Mute:
			down = true
			text = w.Interface + " without an answer since " + w.Since.Local().Format(time.DateTime)
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
