package appliance

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"ringway/appliance/config"
	"ringway/routing"
	"ringway/routing/dhcp"
)

// leases runs a DHCP client for each WAN that asks for its address.
type leases struct {
	dir     string
	log     *slog.Logger
	changed func() // called after every report; must not block

	mu      sync.Mutex
	clients map[string]*leaseClient // by interface
}

type leaseClient struct {
	client *dhcp.Client
	stop   context.CancelFunc
	done   chan struct{}
	lease  dhcp.Lease
}

func newLeases(dir string, log *slog.Logger, changed func()) *leases {
	return &leases{dir: dir, log: log, changed: changed, clients: map[string]*leaseClient{}}
}

// follow starts clients for WANs that want one and ends the others. life bounds the clients.
func (l *leases) follow(life context.Context, wans []config.WAN) {
	l.mu.Lock()
	defer l.mu.Unlock()
	wanted := map[string]bool{}
	for _, w := range wans {
		if w.DHCP {
			wanted[w.Interface] = true
			if l.clients[w.Interface] == nil {
				l.startLocked(life, w.Interface)
			}
		}
	}
	for name, c := range l.clients {
		if !wanted[name] {
			c.stop()
			delete(l.clients, name)
		}
	}
}

func (l *leases) startLocked(life context.Context, iface string) {
	ctx, stop := context.WithCancel(life)
	c := &leaseClient{stop: stop, done: make(chan struct{})}
	l.clients[iface] = c
	c.client = &dhcp.Client{Interface: iface, File: l.file(iface), Log: l.log, Report: func(lease dhcp.Lease) {
		l.mu.Lock()
		c.lease = lease
		l.mu.Unlock()
		l.changed()
	}}
	// What an earlier daemon of this boot got is still the box's, and the first reconciliation must know it, or it
	// would take the WAN's address away under running calls.
	if held, ok := dhcp.LastLease(l.file(iface), iface); ok {
		c.lease = held
	}
	go func() {
		defer close(c.done)
		for ctx.Err() == nil {
			if err := c.client.Run(ctx); err != nil && ctx.Err() == nil {
				l.log.Error("DHCP client failed and starts again", "interface", iface, "error", err)
				select {
				case <-ctx.Done():
				case <-time.After(5 * time.Second):
				}
			}
		}
	}()
}

func (l *leases) file(iface string) string { return filepath.Join(l.dir, iface+".json") }

// recheck has the leases of links that got a carrier confirmed: the cable may lead to another network now.
func (l *leases) recheck(links []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range links {
		if c := l.clients[name]; c != nil {
			c.client.Recheck()
		}
	}
}

// held is what routing needs to know of each lease.
func (l *leases) held() map[string]routing.Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string]routing.Lease{}
	for name, c := range l.clients {
		if c.lease.Address.IsValid() && !c.lease.Lost {
			out[name] = routing.Lease{Address: c.lease.Address, Gateways: c.lease.Gateways}
		}
	}
	return out
}

// nameServers are those that all leases name.
func (l *leases) nameServers() (out []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.clients {
		if !c.lease.Lost {
			out = append(out, c.lease.DNS...)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

func (l *leases) problems() (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, c := range l.clients {
		if !c.lease.Address.IsValid() || c.lease.Lost {
			out = append(out, name+" has no DHCP lease")
		}
	}
	return out
}

// end ends all clients and waits for them. The leases are kept: they are the box's until they run out.
func (l *leases) end() {
	l.mu.Lock()
	clients := l.clients
	l.clients = map[string]*leaseClient{}
	l.mu.Unlock()
	for _, c := range clients {
		c.stop()
		<-c.done
	}
}
