package appliance

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"ringway/appliance/config"
	"ringway/tunnel"
)

const (
	resolveInterval = 30 * time.Second // a moved endpoint is found within this
	resolveSoon     = 2 * time.Second  // while a name does not resolve, as at boot before the WAN is up
	resolveTimeout  = 5 * time.Second
)

// resolver finds the address of a site's endpoint.
type resolver struct {
	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
	haveV4 bool // whether a WAN can reach IPv4 and IPv6 at all
	haveV6 bool
	// A WAN with a lease may have IPv6 besides, by the kernel's autoconfiguration, of which the config says nothing: it is what is
	// left where a name has no address of IPv4.
	mayHaveV6 bool
}

// newResolver asks the name servers that DHCP named, in turn, or the system's where it named none.
func newResolver(servers []netip.Addr) resolver {
	var r net.Resolver
	if len(servers) > 0 {
		var turn atomic.Uint32
		r.PreferGo = true
		r.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			server := servers[int(turn.Add(1)-1)%len(servers)]
			return d.DialContext(ctx, network, netip.AddrPortFrom(server, 53).String())
		}
	}
	return resolver{lookup: r.LookupNetIP}
}

// resolve gives the address of host: itself if it is one, else an answer of a family that a WAN has, IPv4 before
// IPv6 (its header is 20 bytes shorter, which a voice packet feels). Among several answers the address in use stays,
// whatever the order in which a server gives them; where the peer is silent there, the one after it is tried.
func (r resolver) resolve(ctx context.Context, host string, inUse netip.Addr, silent bool) (netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Unmap(), nil
	}
	addrs, err := r.lookup(ctx, "ip", host)
	if err != nil {
		return netip.Addr{}, err
	}
	var v4, v6 []netip.Addr
	for _, a := range addrs {
		switch a = a.Unmap(); {
		case a.Is4() && r.haveV4:
			v4 = append(v4, a)
		case a.Is6() && (r.haveV6 || r.mayHaveV6):
			v6 = append(v6, a)
		}
	}
	slices.SortFunc(v4, netip.Addr.Compare)
	slices.SortFunc(v6, netip.Addr.Compare)
	usable := v4
	if r.haveV6 || len(v4) == 0 {
		usable = append(v4, v6...)
	}
	if len(usable) == 0 {
		return netip.Addr{}, &net.DNSError{Err: "no address of a family that the WAN has", Name: host}
	}
	at := slices.Index(usable, inUse)
	if at >= 0 && silent {
		at = (at + 1) % len(usable)
	}
	return usable[max(at, 0)], nil
}

// lookUpAll resolves all endpoints at once, so that ten dead names cost one timeout and not ten.
// d.mu must not be held: a slow name server must not hold up anything else.
func (d *Daemon) lookUpAll(ctx context.Context, cfg *config.Config) (found map[string]netip.Addr, failed map[string]error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	r := newResolver(d.leases.nameServers())
	r.haveV4, r.haveV6, r.mayHaveV6 = families(cfg)
	d.mu.Lock()
	inUse := map[string]netip.Addr{}
	for host, a := range d.resolved {
		inUse[host] = a
	}
	young := map[string]bool{} // not tried for long enough to be called silent
	for host, at := range d.moved {
		young[host] = time.Since(at) < tryFor
	}
	d.mu.Unlock()
	for _, s := range cfg.Sites {
		if !inUse[s.Endpoint].IsValid() { // a daemon that has just started: its planes may have a session there
			inUse[s.Endpoint], young[s.Endpoint] = d.endpoints.lastMeant(s.PublicKey), true
		}
	}
	silent := d.silentEndpoints(ctx, cfg)
	maps.DeleteFunc(silent, func(host string, _ bool) bool { return young[host] })
	type answer struct {
		host string
		addr netip.Addr
		err  error
	}
	answers := make(chan answer)
	hosts := map[string]bool{}
	for _, s := range cfg.Sites {
		if s.Endpoint != "" && !hosts[s.Endpoint] {
			hosts[s.Endpoint] = true
			go func() {
				a, err := r.resolve(ctx, s.Endpoint, inUse[s.Endpoint], silent[s.Endpoint])
				answers <- answer{s.Endpoint, a, err}
			}()
		}
	}
	found, failed = map[string]netip.Addr{}, map[string]error{}
	for range hosts {
		if a := <-answers; a.err != nil {
			failed[a.host] = a.err
		} else {
			found[a.host] = a.addr
		}
	}
	return found, failed
}

// silentEndpoints are those where no tunnel of any site has shaken hands within a session's life.
func (d *Daemon) silentEndpoints(ctx context.Context, cfg *config.Config) map[string]bool {
	host := map[tunnel.PublicKey]string{}
	out := map[string]bool{}
	for _, s := range cfg.Sites {
		host[s.PublicKey], out[s.Endpoint] = s.Endpoint, true
	}
	for _, c := range tunnel.Classes {
		st, err := d.slots[c].status(ctx)
		if err != nil {
			continue
		}
		for _, p := range st.Peers {
			if time.Since(p.LastHandshake) < silentAfter {
				delete(out, host[p.PublicKey])
			}
		}
	}
	return out
}

// takeNamesLocked takes what was found. A name that does not resolve keeps what is known of it.
func (d *Daemon) takeNamesLocked(found map[string]netip.Addr, failed map[string]error) (changed bool) {
	for host, a := range found {
		if d.resolved[host] != a {
			if old := d.resolved[host]; old.IsValid() {
				d.log.Info("endpoint has a new address", "endpoint", host, "was", old, "is", a)
			}
			d.resolved[host], d.moved[host], changed = a, time.Now(), true
		}
		delete(d.problems, "endpoint "+host)
	}
	for host, err := range failed {
		if d.problems["endpoint "+host] == "" {
			d.log.Warn("endpoint name does not resolve", "endpoint", host, "error", err)
		}
		d.setProblemLocked("endpoint "+host, err)
	}
	return changed
}

// takeAddressesLocked takes the endpoints that are addresses already, which no name server is needed for.
func (d *Daemon) takeAddressesLocked(cfg *config.Config) {
	for _, s := range cfg.Sites {
		if a, err := netip.ParseAddr(s.Endpoint); err == nil {
			d.resolved[s.Endpoint] = a.Unmap()
		}
	}
}

// families says which address families the WANs have, and whether one may have IPv6 that is not in the config. DHCP here is DHCPv4.
func families(cfg *config.Config) (v4, v6, mayV6 bool) {
	for _, w := range cfg.WANs {
		v4, mayV6 = v4 || w.DHCP, mayV6 || w.DHCP
		for _, a := range w.Addresses {
			v4, v6 = v4 || a.Addr().Is4(), v6 || a.Addr().Is6()
		}
	}
	return v4, v6, mayV6
}

// lookSoon asks for a look at the names, without making anybody wait.
func (d *Daemon) lookSoon() {
	select {
	case d.lookAgain <- struct{}{}:
	default:
	}
}

// keepNames looks the names up at once, then each resolveInterval, and soon again while one of them fails.
func (d *Daemon) keepNames(ctx context.Context, ready func()) error {
	ready()
	for {
		d.mu.Lock()
		cfg := d.cfg
		d.mu.Unlock()
		found, failed := d.lookUpAll(ctx, cfg)
		if ctx.Err() != nil {
			return nil
		}
		d.mu.Lock()
		if d.cfg == cfg && d.takeNamesLocked(found, failed) {
			d.touch()
		}
		d.mu.Unlock()
		wait := resolveInterval
		if len(failed) > 0 {
			wait = resolveSoon
		}
		select {
		case <-ctx.Done():
			return nil
		case <-d.lookAgain:
		case <-time.After(wait):
		}
	}
}
