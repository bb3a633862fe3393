// Package dial keeps a PPPoE session up on each WAN that wants one: it runs pppd and says why there is none. Addresses
// are the kernel's, set by pppd; routes, rules and name servers follow from them as from a lease. What the provider
// gives is input from an untrusted network: what overlaps a network of this box or of a site ends the session.
package dial

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/endpoint"
	"ringway/appliance/lease"
	"ringway/appliance/problem"
	"ringway/appliance/task"
	"ringway/process"
	"ringway/routing"
	"ringway/routing/advert"
	"ringway/routing/pppoe"
	"ringway/routing/rawudp"
	"ringway/routing/rtnl"
)

// Name is the component's name, and that of its section of the status.
const Name = "pppoe"

// Options are what the component needs of the daemon.
type Options struct {
	Dir     string // of the sessions' files; they hold passwords, and are gone after a reboot
	Adverts string // directory of the files of what routers advertised
	Log     *slog.Logger
	Changed func() // called when a session comes up or goes, or something else is advertised; must not block
}

// Dialer is the component.
type Dialer struct {
	options Options
	again   task.Signal // the config may want other sessions

	mu      sync.Mutex // guards what follows
	private []routing.Network
	wanted  map[string]wish     // by PPP device
	running map[string]*session // likewise; only Run's goroutine changes the map
}

// wish is a session that the config wants.
type wish struct {
	pppoe.Options
	passwordFile string
}

// New returns the component.
func New(o Options) *Dialer {
	return &Dialer{options: o, again: task.NewSignal(), wanted: map[string]wish{}, running: map[string]*session{}}
}

// Name is the component's name.
func (d *Dialer) Name() string { return Name }

// Follow takes up which sessions there are to be, and which networks must not be theirs.
func (d *Dialer) Follow(cfg *config.Config) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.private = cfg.PrivateNetworks()
	d.wanted = map[string]wish{}
	for _, w := range cfg.WANs {
		if w.PPPoE == nil {
			continue
		}
		d.wanted[w.Interface] = wish{passwordFile: w.PPPoE.PasswordFile, Options: pppoe.Options{
			Device: w.Interface, Under: w.Under(), User: w.PPPoE.User, Service: w.PPPoE.Service, MTU: w.PPPoE.MTU,
			Log: d.file(w.Interface, logFile),
		}}
	}
	d.again.Raise()
}

// Names of a session's files, behind that of its device.
const (
	optionsFile = ".options" // for pppd, with the password
	logFile     = ".log"     // of pppd
	processFile = ".process" // which process it is
)

func (d *Dialer) file(device, kind string) string { return filepath.Join(d.options.Dir, device+kind) }

// Run keeps the sessions until ctx ends. They go on then: the next daemon adopts them.
func (d *Dialer) Run(ctx context.Context, ready func()) error {
	err := d.again.Loop(ctx, ready, d.look)
	for _, s := range d.running {
		s.work.Wait() // ctx has ended
	}
	return err
}

// look starts the sessions that are wanted and ends the others.
func (d *Dialer) look(ctx context.Context) {
	d.mu.Lock()
	wanted := maps.Clone(d.wanted)
	d.mu.Unlock()

	for device, s := range d.running {
		if w, ok := wanted[device]; !ok || !w.sameAs(s.wish) {
			s.end()
			d.mu.Lock()
			delete(d.running, device)
			d.mu.Unlock()
		}
	}
	d.endOthers(wanted)
	for device, w := range wanted {
		if d.running[device] == nil {
			s := d.newSession(ctx, w)
			d.mu.Lock()
			d.running[device] = s
			d.mu.Unlock()
			s.start()
		}
	}
}

// sameAs reports whether w asks for the same session, as far as the config says.
func (w wish) sameAs(o wish) bool { return w.Options == o.Options && w.passwordFile == o.passwordFile }

// endOthers ends sessions that an earlier daemon with another config has left.
func (d *Dialer) endOthers(wanted map[string]wish) {
	for _, device := range left(d.options.Dir) {
		if _, ok := wanted[device]; !ok {
			if err := quit(d.options.Dir, device); err != nil {
				d.options.Log.Warn("cannot end a PPPoE session of an earlier config", "interface", device, "error", err)
			}
		}
	}
}

// left lists the sessions that have files in dir.
func left(dir string) (devices []string) {
	entries, _ := os.ReadDir(dir) // none: there was no session yet
	for _, e := range entries {
		for _, kind := range []string{optionsFile, logFile, processFile} {
			if device, ok := strings.CutSuffix(e.Name(), kind); ok && !slices.Contains(devices, device) {
				devices = append(devices, device)
			}
		}
	}
	return devices
}

// Quit ends the sessions that a daemon has left, and removes their files.
func Quit(dir string) error {
	var errs []error
	for _, device := range left(dir) {
		errs = append(errs, quit(dir, device))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	_ = os.Remove(dir)
	return nil
}

func quit(dir, device string) error {
	if p := recall(filepath.Join(dir, device+processFile)); p != nil {
		defer p.Release()
		if err := p.End(endPatience); err != nil {
			return fmt.Errorf("end the PPPoE session of %s: %w", device, err)
		}
	}
	for _, kind := range []string{optionsFile, logFile, processFile} {
		_ = os.Remove(filepath.Join(dir, device+kind))
	}
	return nil
}

// recall adopts the process that a file names; nil: there is none.
func recall(file string) *process.Running {
	id, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	p, err := process.Adopt(string(id))
	if err != nil {
		return nil
	}
	return p
}

// check says why an address from the provider, or the other end's, must not be used.
func check(private []routing.Network, local, peer netip.Addr) error {
	for _, a := range []netip.Addr{local, peer} {
		if a.IsValid() {
			if err := routing.Overlap(private, "", netip.PrefixFrom(a, a.BitLen())); err != nil {
				return fmt.Errorf("its address %s: %w", a, err)
			}
		}
	}
	return nil
}

// Conflict says which session that is up must not go on with cfg: its WAN would be without one as long as cfg holds.
func (d *Dialer) Conflict(cfg *config.Config) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	private := cfg.PrivateNetworks()
	var errs []error
	for _, w := range cfg.WANs {
		s := d.running[w.Interface]
		if w.PPPoE == nil || s == nil || s.state.phase != phaseUp {
			continue
		}
		p := s.state.progress
		if check(d.private, p.Address, p.Peer) != nil {
			continue // it ends anyway
		}
		if err := check(private, p.Address, p.Peer); err != nil {
			errs = append(errs, fmt.Errorf("%s has a PPPoE session: %w", w.Interface, err))
		}
	}
	return errors.Join(errs...)
}

func (d *Dialer) check(local, peer netip.Addr) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return check(d.private, local, peer)
}

func (d *Dialer) refusePrefix(p netip.Prefix) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return routing.Overlap(d.private, "", p)
}

// Recheck has sessions that wait for their next try begin it: a cable was plugged in.
func (d *Dialer) Recheck(links []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.running {
		if slices.Contains(links, s.wish.Under) {
			s.hurry.Raise()
		}
	}
}

// AddTo adds to f what the sessions of cfg have: addresses as the kernel has them now, name servers as the provider
// gave them, and what is advertised.
func (d *Dialer) AddTo(f lease.Facts, cfg *config.Config) {
	d.mu.Lock()
	defer d.mu.Unlock()
	add(f, cfg, d.options.Adverts, func(device string) (dns []netip.Addr, a advert.Result, known bool) {
		s := d.running[device]
		if s == nil {
			return nil, a, false
		}
		return s.state.progress.DNS, s.state.advertised, true
	})
}

// Gateway is the router that is advertised in the session of a WAN; zero: none is. The other end of PPP is not taken
// for one: pppd invents its address where the provider gives none.
func (d *Dialer) Gateway(device string) (g netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.running[device]; s != nil {
		g = s.state.advertised.Gateway
	}
	return g
}

// Remembered adds to f what a daemon with cfg would start with.
func Remembered(f lease.Facts, adverts string, cfg *config.Config) {
	add(f, cfg, adverts, func(string) (dns []netip.Addr, a advert.Result, known bool) { return nil, a, false })
}

// add leaves out what overlaps a private network.
func add(f lease.Facts, cfg *config.Config, adverts string,
	know func(device string) (dns []netip.Addr, a advert.Result, known bool),
) {
	private := cfg.PrivateNetworks()
	for _, w := range cfg.WANs {
		if w.PPPoE == nil {
			continue
		}
		dns, heard, known := know(w.Interface)
		if !known {
			heard = advert.Last(advertFile(adverts, w.Interface), w.Interface, func(netip.Prefix) error { return nil })
		}
		local, peer, err := rtnl.PointToPoint(w.Interface)
		if err != nil {
			continue // there is no session
		}
		if local.IsValid() && check(private, local, peer) == nil {
			f.Leases[w.Interface] = routing.Lease{
				Address: netip.PrefixFrom(local, local.BitLen()), Gateways: []netip.Addr{netip.IPv4Unspecified()}, DNS: dns,
			}
		}
		a := routing.Advertised{Gateway: heard.Gateway}
		for _, p := range heard.Addresses {
			if routing.Overlap(private, "", p.Masked()) == nil {
				a.Addresses = append(a.Addresses, p)
			}
		}
		if len(a.Addresses) > 0 || a.Gateway.IsValid() {
			f.Advertised[w.Interface] = a
		}
	}
}

func advertFile(dir, device string) string { return filepath.Join(dir, device+".advertised.json") }

// NameServers are those of all sessions, with the WAN that each is reached by.
func (d *Dialer) NameServers() (servers []endpoint.Server) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, device := range slices.Sorted(maps.Keys(d.running)) {
		st := d.running[device].state
		if st.phase != phaseUp || !st.progress.Address.IsValid() {
			continue
		}
		for _, a := range st.progress.DNS {
			servers = append(servers, endpoint.Server{Address: a, By: rawudp.Options{
				Interface: device, Local: netip.AddrPortFrom(st.progress.Address, 0),
				Network: netip.PrefixFrom(netip.IPv4Unspecified(), 0),
			}})
		}
	}
	return servers
}

// Problems lists the WANs without a session.
func (d *Dialer) Problems() (all []problem.Problem) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for device, s := range d.running {
		st := s.state
		if st.advertNote != "" {
			all = append(all, problem.Problem{Subject: device, Severity: problem.Warning, Text: st.advertNote,
				Action: "find out who advertises it on the WAN's network, or give this network other addresses; it is not used"})
		}
		if st.phase == phaseUp || st.since.IsZero() || st.reason == "" {
			continue
		}
		all = append(all, problem.Problem{
			Subject: device, Severity: problem.Critical, Since: st.downSince, Text: "no PPPoE session: " + st.reason,
			Action: action(st),
		})
	}
	return all
}

func action(st state) string {
	const again = "; it is tried again every minute at least"
	switch {
	case errors.Is(st.err, process.ErrNoProgram):
		return "install the package ppp" + again
	case st.err != nil:
		return "repair that" + again
	}
	switch st.progress.Failure {
	case pppoe.Refused:
		return "compare user and password_file with what the provider gave; the provider may have blocked the line" + again
	case pppoe.NoAnswer, pppoe.NoPPP:
		return "check the cable, the modem and vlan" + again
	case pppoe.NoKernelSupport:
		return "use a kernel with CONFIG_PPPOE (Debian: linux-image-amd64, not the cloud kernel)" + again
	}
	return "ask the provider" + again
}

// clock is replaced by tests.
var clock = time.Now
