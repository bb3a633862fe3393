// Package lease keeps a DHCP lease for each WAN whose address comes from one.
package lease

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/appliance/task"
	"ringway/routing"
	"ringway/routing/dhcp"
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

	mu     sync.Mutex            // guards what follows
	leases map[string]dhcp.Lease // by interface, for each WAN that wants one; the zero Lease until there is one

	clients map[string]*client // by interface; only Run's goroutine uses the map, under mu
}

type client struct {
	dhcp *dhcp.Client
	stop context.CancelFunc
	done chan struct{}
}

// New returns a keeper with its files in dir. changed is called when a lease is obtained, changes or is lost.
func New(dir string, log *slog.Logger, changed func()) *Keeper {
	return &Keeper{
		dir:     dir,
		log:     log,
		changed: changed,
		again:   task.NewSignal(),
		leases:  map[string]dhcp.Lease{},
		clients: map[string]*client{},
	}
}

// Name is the component's name.
func (k *Keeper) Name() string { return Name }

// Follow takes up which WANs want a lease.
func (k *Keeper) Follow(cfg *config.Config) {
	k.mu.Lock()
	defer k.mu.Unlock()

	wanted := map[string]bool{}
	for _, w := range cfg.WANs {
		if !w.DHCP {
			continue
		}
		wanted[w.Interface] = true
		if _, known := k.leases[w.Interface]; !known {
			// A lease that an earlier daemon of this boot obtained is still valid. The first reconciliation must
			// know it, or it would remove the WAN's address under running calls.
			held, _ := dhcp.LastLease(k.file(w.Interface), w.Interface)
			k.leases[w.Interface] = held
		}
	}

	maps.DeleteFunc(k.leases, func(name string, _ dhcp.Lease) bool { return !wanted[name] })
	k.again.Raise()
}

func (k *Keeper) file(iface string) string { return filepath.Join(k.dir, iface+".json") }

// Run keeps a client running for each WAN that wants a lease, until ctx ends. The leases are kept: they are the box's
// until they expire, and the daemon's last reconciliation must not remove their addresses.
func (k *Keeper) Run(ctx context.Context, ready func()) error {
	err := k.again.Loop(ctx, ready, k.look)
	for name := range k.clients {
		k.stopClient(name)
	}
	return err
}

// look starts the clients that are wanted and stops the others.
func (k *Keeper) look(ctx context.Context) {
	k.mu.Lock()
	wanted := slices.Collect(maps.Keys(k.leases))
	k.mu.Unlock()

	for name := range k.clients {
		if !slices.Contains(wanted, name) {
			k.stopClient(name)
		}
	}
	for _, name := range wanted {
		if k.clients[name] == nil {
			k.startClient(ctx, name)
		}
	}
}

func (k *Keeper) startClient(ctx context.Context, iface string) {
	ctx, stop := context.WithCancel(ctx)
	c := &client{stop: stop, done: make(chan struct{})}
	c.dhcp = &dhcp.Client{
		Interface: iface, File: k.file(iface), Log: k.log,
		Report: func(l dhcp.Lease) { k.take(c, l) },
	}

	k.mu.Lock()
	k.clients[iface] = c
	k.mu.Unlock()

	go func() {
		defer close(c.done)
		task.Restart(ctx, restartPause, c.dhcp.Run, func(err error) {
			k.log.Error("DHCP client failed, restarting", "interface", iface, "error", err)
		})
	}()
}

// stopClient waits for the client's end. k.mu must not be held: the client may be about to report.
func (k *Keeper) stopClient(iface string) {
	c := k.clients[iface]
	c.stop()
	<-c.done

	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.clients, iface)
}

// take notes what a client reports, unless its WAN wants no lease by now.
func (k *Keeper) take(from *client, l dhcp.Lease) {
	k.mu.Lock()
	iface := from.dhcp.Interface
	_, wanted := k.leases[iface]
	if wanted {
		k.leases[iface] = l
	}
	k.mu.Unlock()

	if wanted {
		k.changed()
	}
}

// Recheck confirms the leases of links that got a carrier: the cable may lead to another network now.
func (k *Keeper) Recheck(links []string) {
	k.mu.Lock()
	defer k.mu.Unlock()

	for _, name := range links {
		if c := k.clients[name]; c != nil {
			c.dhcp.Recheck()
		}
	}
}

// Held is what routing needs to know of each valid lease, by interface.
func (k *Keeper) Held() map[string]routing.Lease {
	k.mu.Lock()
	defer k.mu.Unlock()

	held := map[string]routing.Lease{}
	for name, l := range k.leases {
		if valid(l) {
			held[name] = routing.Lease{Address: l.Address, Gateways: l.Gateways}
		}
	}
	return held
}

// HeldFor is what Held returns once Follow was called with cfg.
func (k *Keeper) HeldFor(cfg *config.Config) map[string]routing.Lease {
	k.mu.Lock()
	defer k.mu.Unlock()

	held := map[string]routing.Lease{}
	for _, w := range cfg.WANs {
		l, known := k.leases[w.Interface]
		if w.DHCP && !known {
			l, _ = dhcp.LastLease(k.file(w.Interface), w.Interface)
		}
		if w.DHCP && valid(l) {
			held[w.Interface] = routing.Lease{Address: l.Address, Gateways: l.Gateways}
		}
	}
	return held
}

// NameServers are those of all valid leases.
func (k *Keeper) NameServers() []netip.Addr {
	k.mu.Lock()
	defer k.mu.Unlock()

	var servers []netip.Addr
	for _, l := range k.leases {
		if valid(l) {
			servers = append(servers, l.DNS...)
		}
	}
	slices.SortFunc(servers, netip.Addr.Compare)
	return slices.Compact(servers)
}

func valid(l dhcp.Lease) bool { return l.Address.IsValid() && !l.Lost }

// Problems lists the WANs without a lease.
func (k *Keeper) Problems() []problem.Problem {
	k.mu.Lock()
	defer k.mu.Unlock()

	var problems []problem.Problem
	for name, l := range k.leases {
		if !valid(l) {
			problems = append(problems, problem.Problem{
				Subject: name, Severity: problem.Critical, Text: "no DHCP lease",
				Action: "check the cable and the provider's modem; the client keeps asking",
			})
		}
	}
	return problems
}

// Status lists the WANs that want a lease.
func (k *Keeper) Status() fmt.Stringer {
	k.mu.Lock()
	defer k.mu.Unlock()

	st := Status{}
	for _, name := range slices.Sorted(maps.Keys(k.leases)) {
		w := WAN{Interface: name}
		if l := k.leases[name]; valid(l) {
			w.Address, w.Gateways, w.NameServers = l.Address, l.Gateways, l.DNS
			w.Expiry = l.Expiry
		}
		st = append(st, w)
	}
	return st
}
