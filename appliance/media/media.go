// Package media is the component that has the media of calls re-keyed (package srtp/plane), where the config wants
// SRTP.
//
// What a call needs comes from the relay of signalling as pairs of legs (package sip/terminate), with the keys of
// phones in them. Keys between two boxes come from the key channel to the other box (package appliance/keychannel),
// which this component ties to the media plane. Nothing of that is in a file: the media process has it when the
// daemon restarts, and the daemon when the process does.
package media

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/keychannel"
	"ringway/appliance/problem"
	"ringway/appliance/task"
	"ringway/appliance/wanted"
	"ringway/durable"
	"ringway/firewall"
	"ringway/process"
	"ringway/qos"
	"ringway/sip/relay"
	"ringway/sip/terminate"
	"ringway/srtp/dtls"
	"ringway/srtp/keys"
	"ringway/srtp/keys/channel"
	"ringway/srtp/plane"
	"ringway/srtp/suite"
	"ringway/tunnel"
)

// Name is the component's name, and that of its section of the status.
const Name = "media"

// Intervals and limits.
const (
	againAfter   = time.Second            // a process that did not start is started again
	countEvery   = time.Second            // how far keys between boxes are used is looked at
	upEvery      = 200 * time.Millisecond // which key channels are up is looked at
	requestLimit = 3 * time.Second
	certificate  = "media.pem" // of DTLS, in RunDir
)

// Options are what the component needs.
type Options struct {
	RunDir string // of the process
	Log    *slog.Logger
	// Wanted is what a config wants of media; nil: nothing. Follow calls it.
	Wanted func(*config.Config) (*wanted.Media, error)
	// Identity is this box's for key channels; zero: none. Follow calls it.
	Identity func() tunnel.PrivateKey
	// Changed is called when Relay has become another. It must not block.
	Changed func()
	Network keychannel.Network // nil: the machine's
}

// Media is the component.
type Media struct {
	o        Options
	log      *slog.Logger
	plane    *plane.Supervisor
	channels *keychannel.Channels
	carrier  carrier
	again    task.Signal
	running  atomic.Bool // the process was started, and pairs may be set

	mu       sync.Mutex // guards what follows
	world    world
	wanted   *wanted.Media
	own      *channel.Identity
	agreeing keychannel.Settings
	err      error // why the process does not run
	relay    *relay.Media
	ready    bool             // relay is what it has to be
	der      []byte           // the certificate of DTLS
	used     []netip.AddrPort // ports of the box that the process had when it was met
	up       map[string]bool  // key channels, as Relay has them
	pairs    pairs
	refused  uint64
	stats    plane.Status // as of the last look
}

// New makes the component. It starts nothing.
func New(o Options) (*Media, error) {
	m := &Media{o: o, log: o.Log, again: task.NewSignal(), up: map[string]bool{}, pairs: newPairs()}
	m.carrier = newCarrier(m)
	m.channels = keychannel.New(keychannel.Options{
		Log: o.Log, Plane: &m.carrier, Network: o.Network, Began: m.endOthersOf,
	})
	var err error
	m.plane, err = plane.New(plane.Config{
		RunDir: o.RunDir, Log: o.Log, Open: openSockets, Certificate: m.readCertificate, Spent: m.carrier.Spent,
	})
	return m, err
}

func openSockets() ([]process.File, error) {
	return plane.Open(plane.Side{Mark: uint32(qos.MarkMediaLAN), Port: firewall.MediaPortLAN},
		plane.Side{Mark: uint32(qos.MarkMediaTunnel), Port: firewall.MediaPortTunnel})
}

// readCertificate is the certificate of DTLS with its key. It is made once a boot: the directory is in memory.
func (m *Media) readCertificate() ([]byte, error) {
	file := filepath.Join(m.o.RunDir, certificate)
	pem, err := os.ReadFile(file)
	if err == nil {
		if _, err = dtls.ParseCertificate(pem); err == nil {
			return pem, nil
		}
		m.log.Warn("the certificate of DTLS is replaced", "file", file, "error", err)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if pem, err = dtls.NewCertificate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(m.o.RunDir, 0o700); err != nil {
		return nil, fmt.Errorf("keep the certificate of DTLS: %w", err)
	}
	return pem, durable.WriteFile(file, pem, 0o600)
}

// Name is the component's name.
func (m *Media) Name() string { return Name }

// Channels are the key channels, which are a component of their own.
func (m *Media) Channels() *keychannel.Channels { return m.channels }

// Follow takes up what cfg asks for.
func (m *Media) Follow(cfg *config.Config) {
	w, err := m.o.Wanted(cfg)
	if err != nil {
		m.log.Error("media is not re-keyed", "error", err)
		w = nil
	}
	var own *channel.Identity
	if key := m.o.Identity(); w != nil && key != (tunnel.PrivateKey{}) {
		if own, err = channel.NewIdentity(key[:]); err != nil {
			m.log.Error("no keys are agreed with other boxes", "error", err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.world = worldOf(cfg)
	m.wanted = w
	if m.own == nil || own == nil || m.own.Public() != own.Public() {
		m.own = own
	} else if own != nil {
		own.Wipe()
	}
	m.agreeing = m.channelsLocked(cfg)
	if w == nil && !m.ready { // nothing that signalling would have to wait for
		m.ready = true
	}
	m.again.Raise()
}

// channelsLocked are the key channels that are wanted.
func (m *Media) channelsLocked(cfg *config.Config) (s keychannel.Settings) {
	w := m.wanted
	if w == nil || m.own == nil || w.Ports.Low == 0 {
		return s
	}
	s.Own, s.Device = m.own, cfg.Tunnels[tunnel.Voice].Interface
	s.Keys = keys.Config{
		Every: w.RotateEvery, Packets: w.RotatePackets, Suites: []suite.Suite{suite.AEADAES128GCM, suite.AEADAES256GCM},
	}
	for _, b := range w.Boxes {
		s.Sites = append(s.Sites, keychannel.Site{Name: b.Site, Far: b.Identity, Local: b.Own, Remote: b.Far})
	}
	return s
}

// Run has media re-keyed until ctx ends. The process goes on then, for the next daemon.
func (m *Media) Run(ctx context.Context, ready func()) error {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	tasks.Go(func() { _ = m.plane.Run(ctx) })
	tasks.Go(func() { m.carrier.run(ctx) })
	tasks.Go(func() { m.count(ctx) })
	return m.again.Loop(ctx, ready, m.configure)
}

// configure has the process run where it is wanted. What it had before is known first: only then may pairs be set, and
// channels go on with what they had agreed.
func (m *Media) configure(ctx context.Context) {
	m.mu.Lock()
	run := m.wanted != nil && m.wanted.Ports.Low != 0
	m.mu.Unlock()
	var err error
	switch {
	case run:
		if err = m.plane.Start(ctx); err == nil && !m.running.Swap(true) {
			m.begin(ctx)
		}
	default:
		err = m.Stop(ctx)
		m.mu.Lock()
		m.pairs.forget()
		m.mu.Unlock()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
	if err != nil {
		m.log.Error("media is not re-keyed", "error", err)
		time.AfterFunc(againAfter, m.again.Raise)
	}
	if run && err == nil {
		m.channels.Set(m.agreeing)
	} else {
		m.channels.Set(keychannel.Settings{})
	}
	m.tellRelayLocked()
}

// begin takes down what the process has. One that was adopted has calls, which the relay of signalling will tell of
// again; where none was, keys that it tells of first may have been used by a process of which nothing is known.
func (m *Media) begin(ctx context.Context) {
	st, _ := m.plane.Status(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pairs.begin(m.plane.Generation(), st.Adopted)
	m.used = m.plane.Locals()
	m.readDER()
	m.carrier.begin()
}

// readDER reads the public half of the certificate, for session descriptions.
func (m *Media) readDER() {
	pem, err := m.readCertificate()
	defer clear(pem)
	if err == nil {
		var c *dtls.Certificate
		if c, err = dtls.ParseCertificate(pem); err == nil {
			m.der = c.DER()
			return
		}
	}
	m.der = nil
	m.log.Error("DTLS is not offered to phones", "error", err)
}

// Relay is what the relay of signalling is to know; nil: no media is re-keyed. It is ready when it was found out what
// the media process of an earlier daemon has: told something else before, the relay would end its calls.
func (m *Media) Relay() (r *relay.Media, ready bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.relay, m.ready
}

// tellRelayLocked says so when that has become another.
func (m *Media) tellRelayLocked() {
	next := m.relayLocked()
	if m.ready && sameRelay(m.relay, next) {
		return
	}
	m.relay, m.ready = next, true
	m.o.Changed()
}

// relayLocked: while the process does not run, no call is offered ports of it, and one that requires SRTP is refused.
func (m *Media) relayLocked() *relay.Media {
	w := m.wanted
	if w == nil || w.Policy == nil {
		return nil
	}
	r := &relay.Media{Certificate: m.der, Used: m.used}
	if m.running.Load() && m.err == nil {
		r.First, r.Last = w.Ports.Low, w.Ports.High
	}
	for _, n := range w.Policy.Networks() {
		p := n.Place
		if p.Box.IsValid() {
			p.ChannelUp = m.up[m.siteOf(p.Box)]
		}
		r.Places = append(r.Places, terminate.Place{Network: n.Prefix, Place: p})
	}
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		r.Places = append(r.Places, terminate.Place{Network: netip.MustParsePrefix(all), Place: w.Policy.Elsewhere()})
	}
	return r
}

func (m *Media) siteOf(box netip.Addr) string {
	i := slices.IndexFunc(m.wanted.Boxes, func(b wanted.Box) bool { return b.Far == box })
	if i < 0 {
		return ""
	}
	return m.wanted.Boxes[i].Site
}

// count looks, now and then, at which channels are up and how far their keys are used.
func (m *Media) count(ctx context.Context) {
	up, used := time.NewTicker(upEvery), time.NewTicker(countEvery)
	defer up.Stop()
	defer used.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-up.C:
			m.lookAtChannels()
		case <-used.C:
			if m.running.Load() {
				m.lookAtPlane(ctx)
			}
		}
	}
}

func (m *Media) lookAtChannels() {
	m.mu.Lock()
	w := m.wanted
	m.mu.Unlock()
	up := map[string]bool{}
	if w != nil {
		for _, b := range w.Boxes {
			up[b.Site] = m.channels.Up(b.Site)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.up = up
	if m.ready {
		m.tellRelayLocked()
	}
}

// lookAtPlane tells the channels how many packets each key has protected and opened.
func (m *Media) lookAtPlane(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	st, err := m.plane.Status(ctx)
	if err != nil {
		return // it is being replaced
	}
	m.mu.Lock()
	m.stats = st
	byLeg := m.pairs.channels()
	m.mu.Unlock()
	m.carrier.counted(st.Legs, byLeg)
}

// Seen tells of packets that arrived lately, as conntrack does of those that are forwarded.
func (m *Media) Seen(ctx context.Context, since time.Duration, yield func(from, to netip.AddrPort)) error {
	if !m.running.Load() {
		return nil
	}
	st, err := m.plane.Status(ctx)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for i := range st.Legs {
		l := &st.Legs[i]
		if local, is := m.pairs.local[l.ID]; is && !l.LastReceived.IsZero() && now.Sub(l.LastReceived) < since {
			yield(l.Remote, local)
		}
	}
	return nil
}

// Upgrade replaces the process by one of this build. Calls go on.
func (m *Media) Upgrade(ctx context.Context) error { return m.plane.Upgrade(ctx) }

// Stop ends the process and all media that it re-keys. Nothing of it is left.
func (m *Media) Stop(ctx context.Context) error {
	m.running.Store(false)
	return errors.Join(m.plane.Stop(ctx), removeCertificate(m.o.RunDir))
}

// Problems says what is wrong with media that is re-keyed.
func (m *Media) Problems() (all []problem.Problem) {
	m.mu.Lock()
	w, err := m.wanted, m.err
	m.mu.Unlock()
	if w == nil {
		return nil
	}
	if len(w.Missing) > 0 {
		all = append(all, problem.Problem{
			Severity: problem.Critical, Text: fmt.Sprintf("no media is re-keyed: the kernel lacks %v", w.Missing),
			Action: "calls that require SRTP are refused, others are in clear; use a kernel with these features of nftables",
		})
	}
	if err != nil {
		all = append(all, problem.Problem{
			Severity: problem.Critical, Text: "media is not re-keyed: " + err.Error(),
			Action: "it is tried again every second; calls that require SRTP are refused meanwhile",
		})
	}
	for _, text := range m.plane.Problems() {
		all = append(all, problem.Problem{Severity: problem.Critical, Text: text, Action: "see the log of the media process"})
	}
	return all
}

// Quit ends a process that no daemon supervises.
func Quit(ctx context.Context, runDir string) error {
	return errors.Join(plane.Quit(ctx, runDir), removeCertificate(runDir))
}

func removeCertificate(runDir string) error {
	if err := os.Remove(filepath.Join(runDir, certificate)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the certificate of DTLS: %w", err)
	}
	return nil
}
