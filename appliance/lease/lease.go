// Package lease keeps, for each WAN whose address comes from its network, a DHCP lease and what routers advertise. Both
// are input from an untrusted network: what overlaps a network of this box or of a site is refused and reported.
package lease

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/endpoint"
	"ringway/appliance/problem"
	"ringway/appliance/task"
	"ringway/boottime"
	"ringway/routing"
	"ringway/routing/advert"
	"ringway/routing/dhcp"
	"ringway/routing/dhcp6"
	"ringway/tunnel"
)

// Name is the component's name, and that of its section of the status.
const Name = "leases"

// restartPause is how long after a client failed it is started again.
const restartPause = 5 * time.Second

// Keeper is the component.
type Keeper struct {
	dir     string // of the files that keep the last leases
	log     *slog.Logger
	changed func()      // called after every report of a client; must not block
	again   task.Signal // the config may want other clients

	// Where, if set, says where a site is. No prefix may be delegated that holds such an address.
	Where func(tunnel.Class, tunnel.Site) (netip.AddrPort, uint64)
	// Remotes, if set, says where a site's endpoints lead, names included. It holds for them, too.
	Remotes func(tunnel.Class, tunnel.Site) []netip.AddrPort

	releases sync.WaitGroup // of leases that the config wants no more

	mu      sync.Mutex // guards what follows
	private []routing.Network
	foreign []routing.Network // configured addresses of WANs and sites, which nobody delegates to us
	sites   []tunnel.Site
	subnets map[string][]routing.Subnet // by WAN
	cfg     *config.Config
	wans    map[string]*wan // by interface, for each WAN that wants a lease

	clients map[string]*client // by interface; only Run's goroutine uses the map, under mu
}

// wan is what is known of a WAN that wants a lease.
type wan struct {
	dhcp  bool       // it wants a lease of DHCPv4
	want6 dhcp6.Want // what it wants by DHCPv6; zero: nothing

	lease6     dhcp6.Lease
	lease6Note string // what keeps the client from a part of it

	options    []dhcp.Option
	lease      dhcp.Lease // zero until there is one
	leaseNote  string     // what keeps the client from one
	advertised advert.Result
	advertNote string // what was refused of advertisements
}

type client struct {
	dhcp    *dhcp.Client  // nil: none is wanted
	dhcp6   *dhcp6.Client // likewise
	adverts *advert.Client
	want6   dhcp6.Want
	options []dhcp.Option
	stop    context.CancelFunc
	done    sync.WaitGroup
}

// New returns a keeper with its files in dir. changed is called when a lease is obtained, changes or is lost, and when
// something else is advertised.
func New(dir string, log *slog.Logger, changed func()) *Keeper {
	return &Keeper{
		dir:     dir,
		log:     log,
		changed: changed,
		again:   task.NewSignal(),
		wans:    map[string]*wan{},
		clients: map[string]*client{},
	}
}

// Name is the component's name.
func (k *Keeper) Name() string { return Name }

// Follow takes up which WANs want a lease, and which networks must not be theirs.
func (k *Keeper) Follow(cfg *config.Config) {
	k.mu.Lock()
	defer k.mu.Unlock()

	private := cfg.PrivateNetworks()
	renetworked := !slices.Equal(k.private, private)
	k.private = private
	k.cfg = cfg
	k.foreign, k.sites, k.subnets = foreignOf(cfg), cfg.TunnelSites(), subnetsOf(cfg)

	wanted := map[string]bool{}
	for _, w := range cfg.WANs {
		if !w.DHCP && !w.DHCP6 {
			continue
		}
		wanted[w.Interface] = true
		if k.wans[w.Interface] == nil {
			// What an earlier daemon of this boot obtained is still valid. The first reconciliation must know it, or
			// it would remove the WAN's addresses under running calls.
			k.wans[w.Interface] = k.remembered(w.Interface)
		}
		k.wans[w.Interface].dhcp, k.wans[w.Interface].want6 = w.DHCP, want6Of(w)
		k.wans[w.Interface].options = nil
		for _, o := range w.DHCPOptions {
			k.wans[w.Interface].options = append(k.wans[w.Interface].options, dhcp.Option(o))
		}
	}
	maps.DeleteFunc(k.wans, func(name string, _ *wan) bool { return !wanted[name] })

	if renetworked {
		for _, c := range k.clients {
			c.recheck()
		}
	}
	k.again.Raise()
}

func (k *Keeper) remembered(iface string) *wan {
	w := &wan{advertised: advert.Last(k.advertFile(iface), iface, accept)}
	w.lease, _ = dhcp.LastLease(k.file(iface), iface)
	w.lease6 = dhcp6.Last(k.file6(iface), iface)
	return w
}

// accept refuses nothing: what is used is checked where it is used.
func accept(netip.Prefix) error { return nil }

// refuse says why a lease must not be used.
func (k *Keeper) refuse(l dhcp.Lease) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return check(k.private, l)
}

func check(private []routing.Network, l dhcp.Lease) error {
	return routing.CheckLease(private, routing.Lease{Address: l.Address, Gateways: l.Gateways}, l.Routes)
}

// refusePrefix says why nothing of a prefix that is advertised may be used.
func (k *Keeper) refusePrefix(p netip.Prefix) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return routing.Overlap(k.private, "", p)
}

func (k *Keeper) file(iface string) string { return filepath.Join(k.dir, iface+".json") }
func (k *Keeper) advertFile(iface string) string {
	return filepath.Join(k.dir, iface+".advertised.json")
}

// Run keeps a client running for each WAN that wants a lease, until ctx ends. The leases are kept: they are the box's
// until they expire, and the daemon's last reconciliation must not remove their addresses.
func (k *Keeper) Run(ctx context.Context, ready func()) error {
	err := k.again.Loop(ctx, ready, k.look)
	for name := range k.clients {
		k.stopClient(name)
	}
	k.releases.Wait()
	return err
}

// look starts the clients that are wanted and stops the others.
func (k *Keeper) look(ctx context.Context) {
	k.mu.Lock()
	wanted := map[string]wan{}
	for name, w := range k.wans {
		wanted[name] = *w
	}
	k.mu.Unlock()

	for name, c := range k.clients {
		if w, ok := wanted[name]; !ok || !c.serves(w) {
			k.stopClient(name)
			if w.want6 == (dhcp6.Want{}) {
				k.release(ctx, c)
			}
		}
	}
	for name, w := range wanted {
		if k.clients[name] == nil {
			k.startClient(ctx, name, w)
		}
	}
}

func (k *Keeper) startClient(ctx context.Context, iface string, wants wan) {
	ctx, stop := context.WithCancel(ctx)
	c := &client{stop: stop, options: wants.options, want6: wants.want6}
	runs := map[string]func(context.Context) error{}
	if wants.dhcp {
		c.dhcp = &dhcp.Client{
			Interface: iface, File: k.file(iface), Log: k.log, Options: wants.options, Refuse: k.refuse,
			Report: func(l dhcp.Lease) { k.take(iface, func(w *wan) { w.lease = l }) },
			Note:   func(text string) { k.take(iface, func(w *wan) { w.leaseNote = text }) },
		}
		runs["DHCP client"] = c.dhcp.Run
	}
	if wants.want6 != (dhcp6.Want{}) {
		c.dhcp6 = k.newClient6(iface, wants.want6)
		runs["DHCPv6 client"] = k.run6(c.dhcp6)
	}
	c.adverts = &advert.Client{
		Interface: iface, File: k.advertFile(iface), Log: k.log, Refuse: k.refusePrefix,
		Report: func(r advert.Result) { k.take(iface, func(w *wan) { w.advertised = r }) },
		Note:   func(text string) { k.take(iface, func(w *wan) { w.advertNote = text }) },
	}

	k.mu.Lock()
	k.clients[iface] = c
	k.mu.Unlock()

	runs["router advertisements"] = c.adverts.Run
	for name, run := range runs {
		c.done.Go(func() {
			task.Restart(ctx, restartPause, run, func(err error) {
				k.log.Error(name+" failed, restarting", "interface", iface, "error", err)
			})
		})
	}
}

// stopClient waits for the client's end. k.mu must not be held: the client may be about to report.
func (k *Keeper) stopClient(iface string) {
	c := k.clients[iface]
	c.stop()
	c.done.Wait()

	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.clients, iface)
}

// take notes what a client reports, unless its WAN wants no lease by now.
func (k *Keeper) take(iface string, note func(*wan)) {
	k.mu.Lock()
	w := k.wans[iface]
	if w != nil {
		note(w)
	}
	k.mu.Unlock()

	if w != nil {
		k.changed()
	}
}

// Recheck confirms the leases of links that got a carrier: the cable may lead to another network now.
func (k *Keeper) Recheck(links []string) {
	k.mu.Lock()
	defer k.mu.Unlock()

	for _, name := range links {
		if c := k.clients[name]; c != nil {
			c.recheck()
		}
	}
}

// Facts are what the WANs of a config have from their networks, by interface.
type Facts struct {
	Leases     map[string]routing.Lease
	Advertised map[string]routing.Advertised // also what DHCPv6 assigned
	Delegated  map[string][]routing.Delegation
}

// Held is what routing needs to know of what is valid and may be used.
func (k *Keeper) Held() Facts {
	k.mu.Lock()
	defer k.mu.Unlock()

	return facts(k.private, k.wans)
}

// HeldFor is what Held returns once Follow was called with cfg.
func (k *Keeper) HeldFor(cfg *config.Config) Facts {
	k.mu.Lock()
	defer k.mu.Unlock()

	return facts(cfg.PrivateNetworks(), k.wansOf(cfg))
}

func (k *Keeper) wansOf(cfg *config.Config) map[string]*wan {
	wans := map[string]*wan{}
	for _, w := range cfg.WANs {
		if !w.DHCP && !w.DHCP6 {
			continue
		}
		if wans[w.Interface] = k.wans[w.Interface]; wans[w.Interface] == nil {
			wans[w.Interface] = k.remembered(w.Interface)
		}
		known := *wans[w.Interface]
		known.dhcp, known.want6 = w.DHCP, want6Of(w)
		wans[w.Interface] = &known
	}
	return wans
}

// Remembered is what a daemon with cfg would start with.
func Remembered(dir string, cfg *config.Config) Facts {
	return New(dir, nil, nil).HeldFor(cfg)
}

// facts leaves out what overlaps a private network. The clients refuse that, too, but the config may have changed
// since.
func facts(private []routing.Network, wans map[string]*wan) Facts {
	f := Facts{
		Leases: map[string]routing.Lease{}, Advertised: map[string]routing.Advertised{},
		Delegated: map[string][]routing.Delegation{},
	}
	for name, w := range wans {
		if w.dhcp && valid(w.lease) && check(private, w.lease) == nil {
			f.Leases[name] = forRouting(w.lease)
		}

		a := routing.Advertised{Gateway: w.advertised.Gateway}
		f.add6(name, w, private, &a)
		for _, p := range w.advertised.Addresses {
			if routing.Overlap(private, "", p.Masked()) == nil {
				a.Addresses = append(a.Addresses, p)
			}
		}
		if len(a.Addresses) > 0 || a.Gateway.IsValid() {
			f.Advertised[name] = a
		}
	}
	return f
}

func forRouting(l dhcp.Lease) routing.Lease {
	return routing.Lease{Address: l.Address, Gateways: l.Gateways, Server: l.Server, DNS: l.DNS}
}

// Conflict says which lease that is held must not be used with cfg: its WAN would be without an address.
func (k *Keeper) Conflict(cfg *config.Config) error {
	k.mu.Lock()
	defer k.mu.Unlock()

	private := cfg.PrivateNetworks()
	var errs []error
	for name, w := range k.wansOf(cfg) {
		if valid(w.lease) && check(k.private, w.lease) == nil {
			if err := check(private, w.lease); err != nil {
				errs = append(errs, fmt.Errorf("%s has the lease %s: %w", name, w.lease.Address, err))
			}
		}
		for _, p := range w.lease6.At(boottime.Now()).Prefixes {
			if routing.Overlap(k.private, "", p.Prefix) == nil {
				if err := routing.Overlap(private, "", p.Prefix); err != nil {
					errs = append(errs, fmt.Errorf("%s has the delegated prefix %s: %w", name, p.Prefix, err))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// NameServers are those of all valid leases, with the WAN that each is reached by.
func (k *Keeper) NameServers() []endpoint.Server {
	k.mu.Lock()
	defer k.mu.Unlock()

	var servers []endpoint.Server
	for _, name := range slices.Sorted(maps.Keys(k.wans)) {
		l := k.wans[name].lease
		if !valid(l) || check(k.private, l) != nil {
			continue
		}
		for _, a := range l.DNS {
			servers = append(servers, endpoint.Server{Address: a, By: l.Socket()})
		}
	}
	return servers
}

func valid(l dhcp.Lease) bool { return l.Address.IsValid() && !l.Lost }

// Problems lists the WANs without a lease, those whose lease is lacking or not renewed, and what was refused.
func (k *Keeper) Problems() []problem.Problem {
	k.mu.Lock()
	defer k.mu.Unlock()

	var problems []problem.Problem
	if k.cfg != nil {
		_, short := k.cfg.Delegated(facts(k.private, k.wans).Delegated)
		problems = shortProblems(short)
	}
	for name, w := range k.wans {
		report := func(s problem.Severity, text, action string) {
			problems = append(problems, problem.Problem{Subject: name, Severity: s, Text: text, Action: action})
		}
		problems = append(problems, w.problems6(name)...)
		switch text := w.leaseNote; {
		case !w.dhcp:
		case !valid(w.lease) && text == "":
			report(problem.Critical, "no DHCP lease",
				"check the cable and the provider's modem; the client keeps asking")
		case !valid(w.lease):
			report(problem.Critical, "no DHCP lease: "+text,
				"check the cable and the provider's modem, and what grants leases in this network; the client keeps asking")
		case text != "":
			report(problem.Warning, fmt.Sprintf("lease of %s: %s; it expires at %s", w.lease.Address, text,
				w.lease.Expiry.Format(time.RFC3339)), "it is used until then; the client keeps asking")
		}
		if text := w.lease.Warning(); text != "" {
			report(problem.Critical, text, "only the WAN's own network is reachable; ask the provider for a default route")
		}
		if w.advertNote != "" {
			report(problem.Warning, w.advertNote,
				"find out who advertises it on the WAN's network, or give this network other addresses; it is not used")
		}
	}
	return problems
}

// Status lists the WANs that want a lease.
func (k *Keeper) Status() fmt.Stringer {
	k.mu.Lock()
	defer k.mu.Unlock()

	st := Status{}
	for _, name := range slices.Sorted(maps.Keys(k.wans)) {
		known := k.wans[name]
		w := WAN{Interface: name, Note: known.leaseNote, Refused: known.advertNote}
		if l := known.lease; valid(l) {
			w.Address, w.Gateways, w.NameServers = l.Address, l.Gateways, l.DNS
			w.Expiry = l.Expiry
			w.Note = cmp.Or(w.Note, l.Warning())
		}
		w.add6(known.lease6)
		w.Static, w.WantsPrefix = !known.dhcp, known.want6.PrefixBits > 0
		w.DHCP6Note = known.lease6Note
		w.Advertised, w.Router = known.advertised.Addresses, known.advertised.Gateway
		st = append(st, w)
	}
	return st
}
