// Package calls is the component that has the signalling of calls read (package sip/relay), and opens and
// closes the holes that calls need.
//
// What the rules of the firewall do depends on sets that this component keeps alive, so that nothing has to be
// changed when the relay or the daemon dies: signalling is taken on devices that are in a set as long as the
// relay works, and what sip.mode: enforce closes is open again when its set runs dry (sip.on_failure: open).
package calls

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/appliance/secrets"
	"ringway/appliance/task"
	"ringway/appliance/wanted"
	"ringway/firewall"
	"ringway/firewall/conntrack"
	"ringway/firewall/nft"
	"ringway/qos"
	"ringway/sip/admission"
	"ringway/sip/call"
	"ringway/sip/record"
	"ringway/sip/registrar"
	"ringway/sip/relay"
	"ringway/sip/terminate"
)

// Name is the component's name, and that of its section of the status.
const Name = "calls"

const (
	// lifeEvery is how often devices are given their life again.
	lifeEvery = 400 * time.Millisecond
	// renewPatience is how long that waits for the kernel: a relay that is silent is noticed in the same loop.
	renewPatience = 20 * time.Millisecond
	// takenLife is how long signalling is taken after the daemon died, with a relay that still works: the next
	// daemon comes in time to keep its TCP connections. If the relay is dead, too, nobody listens, and packets
	// pass unread at once.
	takenLife = 10 * time.Second
	// enforcedLife is how long what sip.mode: enforce closes stays closed without a daemon or a relay.
	enforcedLife = 2 * time.Second
	// mediaEvery is how often it is looked which calls still have media. The kernel forgets a connection of UDP
	// after two minutes without packets.
	mediaEvery = 45 * time.Second
	// bypassLife is how long a server that did not answer is left to the phones themselves.
	bypassLife = 30 * time.Second
	// bypassPatience is how long the phone waits for that at most.
	bypassPatience = 100 * time.Millisecond
	// failAfter is how long nothing may read signalling before that is a problem.
	failAfter = 2 * time.Second
)

// Options are what the component needs.
type Options struct {
	RunDir    string
	RecordDir string // of the records of calls; made 0700
	Log       *slog.Logger
	Sets      func(name string) (Set, bool) // the firewall's, by name
	Seen      func(yield func(from, to netip.AddrPort)) error
	Extend    func(from, to netip.AddrPort, life time.Duration) error
	FindTCP   func(from, to netip.AddrPort) error
	Engine    Engine // of the voice tunnel

	// Queues reads the counters of the WANs' queues.
	Queues func() ([]qos.QueueStats, error)

	// OnLANs, if set, adds the networks that LANs have by now to a config. Follow calls it.
	OnLANs func(*config.Config) *config.Config

	// Budgets is what calls may take. Follow calls it.
	Budgets func(*config.Config) admission.Plan

	// Media has the media plane relay these pairs from now on; whole: and no others. The keys in them are overwritten
	// when it returns. nil: there is none.
	Media func(ctx context.Context, changes []terminate.Change, whole bool) error
	// Relayed is for whom media is relayed; it may be nil, as what it returns. Until it is ready, nothing that is read
	// signalling by changes: a relay of an earlier daemon goes on as that one told it. Follow calls it.
	Relayed func() (m *relay.Media, ready bool)
	// SeenHere tells of packets of relayed media, which conntrack does not see; nil: there is none.
	SeenHere func(ctx context.Context, since time.Duration, yield func(from, to netip.AddrPort)) error
}

// Calls is the component.
type Calls struct {
	o      Options
	log    *slog.Logger
	relay  *relay.Supervisor
	holes  *holes
	places *places
	meter  *meter
	again  task.Signal // the config may have changed
	moved  task.Signal // a WAN may have another address

	certificates *certificates

	mu       sync.Mutex // guards what follows
	cfg      config.SIP
	devices  []string // that signalling is taken on
	phones   []string // those of voice networks
	settings relay.Settings
	followed bool      // a config, so that there are settings
	applied  bool      // the process has the settings
	err      error     // why it does not
	worked   time.Time // last
	silent   bool      // datagrams pass unread
	gone     bool      // connections, too
	met      bool      // a process of an earlier daemon was looked for
	stats    relay.Stats

	records   *record.Log
	recordsOf config.Records        // that records are kept by
	wantCalls config.Records        // that they are to be kept by
	reported  map[string]uint64     // abuse, by kind
	said      quota                 // of it, in the log
	banKinds  map[netip.Addr]string // what the firewall bans addresses for
	unmapped  map[mapping]bool      // registrations over a WAN that no call can come by any more
}

// New makes the component. It starts nothing.
func New(o Options) (*Calls, error) {
	if o.Seen == nil {
		o.Seen, o.Extend, o.FindTCP = conntrack.EachUDP, conntrack.ExtendUDP, conntrack.FindTCP
	}
	c := &Calls{
		o: o, log: o.Log, holes: newHoles(o.Sets), places: newPlaces(o.Engine, o.Log),
		meter: newMeter(o.Engine), again: task.NewSignal(), moved: task.NewSignal(),
		worked: time.Now(), silent: true, gone: true, certificates: newCertificates(secrets.Below("")),
	}
	c.cfg.Mode, c.meter.queues.read = config.SIPOff, o.Queues
	var err error
	c.relay, err = relay.NewSupervisor(relay.Config{
		RunDir: o.RunDir, Log: o.Log, Listen: relay.Listen, Open: relay.Open,
		Flows: c.change, Unreachable: c.unreachable, Reports: c.takeReports,
	})
	return c, err
}

// change carries out what calls need from now on. The places follow; the holes are there when it returns.
func (c *Calls) change(ctx context.Context, changes []relay.Change, whole bool) error {
	defer relay.WipeKeys(changes)
	c.places.change(changes, whole)
	return errors.Join(c.media(ctx, changes, whole), c.holes.change(ctx, changes, whole))
}

// media has the media plane follow.
func (c *Calls) media(ctx context.Context, changes []relay.Change, whole bool) error {
	var pairs []terminate.Change
	for i := range changes {
		pairs = append(pairs, c.holes.allowed(changes[i].Media)...)
	}
	switch {
	case len(pairs) == 0 && !whole:
		return nil
	case c.o.Media != nil:
		return c.o.Media(ctx, pairs, whole)
	case len(pairs) > 0:
		return errors.New("relay media: there is no media plane")
	}
	return nil
}

// Name is the component's name.
func (c *Calls) Name() string { return Name }

// Follow takes up what cfg asks for.
func (c *Calls) Follow(cfg *config.Config) {
	if c.o.OnLANs != nil {
		cfg = c.o.OnLANs(cfg)
	}
	w, settings := worldOf(cfg), c.settingsOf(cfg)
	if c.o.Relayed != nil && cfg.SIP.Mode != config.SIPOff {
		var ready bool
		if settings.Media, ready = c.o.Relayed(); !ready {
			return
		}
	}
	w.relayed = relayedBy(settings.Media)
	c.mu.Lock()
	defer c.mu.Unlock()
	same := c.applied && c.recordsOf == cfg.Records && c.cfg.Mode == cfg.SIP.Mode &&
		reflect.DeepEqual(c.settings, settings)
	c.cfg, c.settings, c.wantCalls, c.followed = cfg.SIP, settings, cfg.Records, true
	c.devices, c.phones = wanted.SignallingDevices(cfg), wanted.PhoneDevices(cfg)
	c.holes.follow(w)
	c.moved.Raise()
	if !same {
		c.applied = false
		c.again.Raise()
	}
}

func (c *Calls) settingsOf(cfg *config.Config) (s relay.Settings) {
	s.Site, s.Enforce = cfg.Site, cfg.SIP.Mode == config.SIPEnforce
	s.Admit = s.Enforce && cfg.Class(qos.Media).Admission
	s.Country, s.AbuseLimits = cfg.SIP.Country, &cfg.SIP.AbuseLimits
	s.Homer = relay.Homer{Server: cfg.Records.HEP, Agent: cfg.Records.HEPID}
	s.Abuse, s.Privacy = cfg.SIP.Abuse, cfg.Records.Privacy
	s.PhoneLimit, s.ServerLimit = cfg.SIP.PhoneLimit, cfg.SIP.ServerLimit
	for _, x := range cfg.SIP.Servers {
		s.Servers = append(s.Servers, x.Addresses...)
	}
	s.EmergencyNumbers, s.EmergencyPrefixes = cfg.SIP.Emergency, cfg.SIP.Prefixes
	if cfg.SIP.Mode != config.SIPOff {
		s.Budgets = c.o.Budgets(cfg)
	}
	c.tlsOf(cfg, &s)
	for _, l := range cfg.Voice {
		s.Phones = append(s.Phones, l.Networks()...)
	}
	for _, x := range cfg.Sites {
		s.Inside = append(s.Inside, x.Networks()...)
	}
	for _, l := range slices.Concat(cfg.Voice, cfg.Data) {
		s.Own = append(s.Own, l.Networks()...)
	}
	return s
}

func worldOf(cfg *config.Config) (w world) {
	for _, l := range cfg.Voice {
		w.voice = append(w.voice, l.Networks()...)
	}
	for _, l := range slices.Concat(cfg.Voice, cfg.Data) {
		w.own = append(w.own, l.Networks()...)
		for _, a := range slices.Concat(l.Addresses, l.Delegated) {
			w.addresses = append(w.addresses, a.Addr())
		}
	}
	for _, x := range cfg.WANs {
		for _, a := range x.Addresses {
			w.addresses = append(w.addresses, a.Addr())
		}
	}
	for _, x := range cfg.Sites {
		w.sites = append(w.sites, x.Networks())
	}
	for _, x := range cfg.SIP.Servers {
		w.servers = append(w.servers, x.Addresses...)
	}
	return w
}

// Run has signalling read until ctx ends. The process goes on then, for the next daemon.
func (c *Calls) Run(ctx context.Context, ready func()) error {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	tasks.Go(func() { _ = c.relay.Run(ctx) })
	tasks.Go(func() { c.keepAlive(ctx) })
	tasks.Go(func() { c.places.run(ctx) })
	tasks.Go(func() { every(ctx, refreshEvery, func() { _ = c.holes.refresh() }) })
	tasks.Go(func() { every(ctx, measureEvery, func() { c.measure(ctx) }) })
	tasks.Go(func() { c.meter.queues.run(ctx, c.holes.busy) })
	tasks.Go(func() { every(ctx, expireEvery, c.expireRecords) })
	tasks.Go(func() { every(ctx, certificatesEvery, func() { c.lookAtTLS(ctx) }) })
	tasks.Go(func() { every(ctx, mediaEvery, func() { c.look(ctx) }) })
	tasks.Go(func() { c.runMappings(ctx) })
	return c.again.Loop(ctx, func() {}, func(ctx context.Context) {
		if c.configure(ctx) {
			ready()
		}
	})
}

func every(ctx context.Context, interval time.Duration, f func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f()
		}
	}
}

// configure has the process run as the config wants it. There is nothing to do as long as it is not known what media is
// relayed.
func (c *Calls) configure(ctx context.Context) (known bool) {
	c.mu.Lock()
	mode, settings, wanted, followed := c.cfg.Mode, c.settings, c.wantCalls, c.followed
	have := c.records != nil && c.recordsOf == wanted
	c.mu.Unlock()
	if !followed {
		return false
	}
	var err error
	if !have && (mode != config.SIPOff || c.hasRecords()) {
		if err := c.useRecords(wanted); err != nil {
			c.log.Error("no records of calls are kept", "error", err)
		}
		c.expireRecords()
	}
	if mode == config.SIPOff {
		// The firewall has no rule for it any more: nothing is sent to sockets that close now.
		err = c.relay.Stop(ctx)
		_ = c.change(ended, nil, true) // no call needs anything any more
	} else {
		c.liftBans()
		err = c.relay.Configure(ctx, settings)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.applied, c.err = err == nil, err
	if err != nil {
		c.log.Error("signalling is not read", "error", err)
		time.AfterFunc(time.Second, c.again.Raise)
	}
	return true
}

// keepAlive keeps the sets alive that the rules depend on, as long as the process works, and empties them when
// it does not.
func (c *Calls) keepAlive(ctx context.Context) {
	last, pulse := time.Time{}, pulse{}
	every(ctx, relay.BeatInterval, func() {
		c.mu.Lock()
		mode, closed, devices, phones := c.cfg.Mode, c.cfg.Closed, c.devices, c.phones
		c.mu.Unlock()
		if mode == config.SIPOff {
			c.rest()
			return
		}
		beats, running := c.relay.Beats()
		works := running && pulse.alive(beats, time.Now())
		c.noteSilence(works, running)
		if !works {
			last = time.Time{}
			return
		}
		if time.Since(last) < lifeEvery {
			return
		}
		last = time.Now()
		c.renew(ctx, firewall.SetSIPUDP, takenLife, devices)
		c.renew(ctx, firewall.SetSIPTCP, takenLife, devices)
		if mode == config.SIPEnforce && !closed {
			c.renew(ctx, firewall.SetEnforced, enforcedLife, phones)
		}
	})
}

// rest notes that nothing is to read signalling, so that it is no problem.
func (c *Calls) rest() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.silent, c.gone, c.worked = true, true, time.Now()
}

// pulse finds out whether a process is silent for too long.
type pulse struct {
	beats  uint64
	at     time.Time     // of the last look
	silent time.Duration // in which no beat came
}

// alive takes a look at the number of beats so far. Where a look comes late, since this process had no processor, a
// beat may only wait to be read: no more counts than the time between two looks.
func (p *pulse) alive(beats uint64, now time.Time) bool {
	elapsed := min(now.Sub(p.at), 2*relay.BeatInterval)
	p.at = now
	if beats != p.beats {
		p.beats, p.silent = beats, 0
		return true
	}
	p.silent += elapsed
	return p.silent < relay.MaxSilence
}

// renew gives devices in a set a life from now on.
func (c *Calls) renew(ctx context.Context, set string, life time.Duration, devices []string) {
	s, ok := c.o.Sets(set)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, renewPatience)
	defer cancel()
	if err := s.Add(ctx, life, devices...); err != nil && !errors.Is(err, nft.ErrPending) && ctx.Err() == nil {
		c.log.Warn("cannot have signalling taken", "set", set, "error", err)
	}
}

// noteSilence has signalling pass unread while the process does not work: datagrams at once, connections when
// it is gone, since the other end knows nothing of what it has sent and acknowledged. An earlier daemon may have had
// signalling taken, for a process that is still to be found; where none is, or it does not fit, that ends.
func (c *Calls) noteSilence(works, running bool) {
	met := c.relay.Met()
	c.mu.Lock()
	wasSilent, wasGone := c.silent, c.gone
	c.silent, c.gone = !works, !running
	inherited := met && !c.met
	c.met = met
	if works {
		c.worked = time.Now()
	}
	c.mu.Unlock()
	if !works && (!wasSilent || inherited) {
		c.clear(firewall.SetSIPUDP)
	}
	if !works && !wasSilent {
		c.log.Warn("the relay of signalling does not work; signalling passes unread", "running", running)
	}
	if !running && (!wasGone || inherited) {
		c.clear(firewall.SetSIPTCP)
	}
}

func (c *Calls) clear(name string) {
	if s, ok := c.o.Sets(name); ok {
		_ = s.Clear(ended)
	}
}

// look finds out which calls have media.
func (c *Calls) look(ctx context.Context) {
	var err error
	flows := c.holes.seen(func(yield func(from, to netip.AddrPort)) {
		err = c.o.Seen(yield)
		if c.o.SeenHere != nil {
			err = errors.Join(err, c.o.SeenHere(ctx, 2*mediaEvery, yield))
		}
	})
	if len(flows) > 0 {
		err = errors.Join(err, c.relay.Media(ctx, flows))
	}
	if err != nil && ctx.Err() == nil {
		c.log.Warn("cannot find out which calls have media", "error", err)
	}
}

// unreachable leaves a server that did not answer a connection to the phones themselves for a while, so that
// they see its failure and go to another one.
func (c *Calls) unreachable(server netip.AddrPort) {
	name, key := firewall.Bypass(server)
	if s, ok := c.o.Sets(name); ok {
		ctx, cancel := context.WithTimeout(context.Background(), bypassPatience)
		defer cancel()
		_ = s.Add(ctx, bypassLife, key)
	}
}

// Calls are the calls that are followed now, and those that ended lately.
func (c *Calls) Calls(ctx context.Context) ([]call.Call, error) {
	all, err := c.relay.Calls(ctx)
	if err == nil {
		c.measure(ctx)
		c.meter.fill(all)
	}
	return all, err
}

// measure asks the engine what media went through, where calls are followed.
func (c *Calls) measure(ctx context.Context) {
	c.mu.Lock()
	mode := c.cfg.Mode
	c.mu.Unlock()
	if mode != config.SIPOff {
		c.meter.refresh(ctx)
	}
}

// Phones are the registrations that are known, each with the line that it goes over.
func (c *Calls) Phones(ctx context.Context) ([]registrar.Binding, error) {
	all, err := c.relay.Phones(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range all {
		b := &all[i]
		b.Site, b.Line = lineTo(&c.settings.Budgets, b.PBX.Addr())
		b.LineGone = b.Transport == registrar.UDP && c.unmapped[mapping{b.Phone, b.PBX}]
	}
	return all, err
}

// lineTo is the site that an address is at, and the WAN that leads there; neither for one of the branch's own.
func lineTo(p *admission.Plan, to netip.Addr) (site, line string) {
	if contains(p.Own, to) || len(p.Lines) == 0 {
		return "", ""
	}
	for _, s := range p.Sites {
		if contains(s.Networks, to) && s.Line < len(p.Lines) {
			return s.Name, p.Lines[s.Line].Name
		}
	}
	return "", p.Lines[0].Name
}

// Upgrade replaces the process by one of this build, without losing a TCP connection.
func (c *Calls) Upgrade(ctx context.Context) error { return c.relay.Upgrade(ctx) }

// Stop ends the process. Before, it has signalling pass unread: nothing is to be sent to sockets that close.
func (c *Calls) Stop(ctx context.Context) error {
	for _, name := range []string{firewall.SetSIPUDP, firewall.SetSIPTCP} {
		if s, ok := c.o.Sets(name); ok {
			bounded, cancel := context.WithTimeout(ctx, lifeEvery)
			_ = s.Clear(bounded)
			cancel()
		}
	}
	return c.relay.Stop(ctx)
}

// Problems says whether signalling is read.
func (c *Calls) Problems() []problem.Problem {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.cfg.Mode == config.SIPOff:
		return nil
	case c.err != nil:
		return []problem.Problem{{
			Severity: problem.Critical, Text: "signalling is not read: " + c.err.Error(),
			Action: "it is tried again every second; " + c.consequence(),
		}}
	case time.Since(c.worked) > failAfter:
		return []problem.Problem{{
			Severity: problem.Critical, Text: "signalling is not read: the relay does not work",
			Action: "it is started again by itself, its log says why; " + c.consequence(),
		}}
	}
	now := time.Now()
	return slices.Concat(c.lostMappings(), c.certificates.problems(now), c.failedTLS(now), c.withoutMedia(now))
}

func (c *Calls) consequence() string {
	switch {
	case c.cfg.Mode != config.SIPEnforce:
		return "calls go on as with sip.mode: off"
	case c.cfg.Closed:
		return "no new call has media (sip.on_failure: closed)"
	}
	return "media passes as with sip.mode: observe (sip.on_failure: open)"
}
