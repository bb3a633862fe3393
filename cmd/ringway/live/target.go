package live

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"ringway/appliance"
	"ringway/appliance/control"
	"ringway/appliance/status"
	"ringway/qos"
	"ringway/stamp"
	"ringway/tunnel"
)

// parseTarget reads ADDRESS or ADDRESS:PORT; a site's name is neither.
func parseTarget(s string) (netip.AddrPort, bool) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap, ap.Port() != 0
	}
	a, err := netip.ParseAddr(s)
	return netip.AddrPortFrom(a, stamp.Port), err == nil
}

// findSite asks the daemon which networks the site has, and those networks who the box is.
func findSite(ctx context.Context, p stamp.Probe, paths appliance.Paths, site string) (netip.AddrPort, error) {
	st, err := control.NewClient(paths.Socket()).Status(ctx)
	if errors.Is(err, control.ErrNotRunning) {
		return netip.AddrPort{}, fmt.Errorf(
			"look up site %s: %w; without it, name the far box by its address: ringway bench live ADDRESS",
			site,
			err,
		)
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("look up site %s: %w", site, err)
	}
	var networks []netip.Prefix
	var sites []string
	for _, t := range st.Tunnels {
		for _, peer := range t.Peers {
			if peer.Site == site {
				networks = append(networks, peer.AllowedIPs...)
			}
			sites = append(sites, peer.Site)
		}
	}
	slices.Sort(sites)
	sites = slices.Compact(sites)
	if len(networks) == 0 {
		return netip.AddrPort{}, UsageError{
			fmt.Errorf(
				"%q is neither a site of this box nor an address (allowed: %s, or an address)",
				site,
				strings.Join(sites, ", "),
			),
		}
	}
	if err := fitsBudget(p, st, site); err != nil {
		return netip.AddrPort{}, UsageError{err}
	}
	var names []string
	for _, hosts := range likelyBoxes(networks) {
		if to := firstAnswer(ctx, p, hosts); to.IsValid() {
			return to, nil
		}
		for _, h := range hosts {
			names = append(names, h.Addr().String())
		}
	}
	return netip.AddrPort{}, unlessInterrupted(
		ctx,
		fmt.Errorf(
			"%s: none of %s answers probes (check the tunnel: `ringway status`; the far end must run Ringway with "+
				"control.reflector: true; if its box has another address: ringway bench live ADDRESS)",
			site,
			strings.Join(names, ", "),
		),
	)
}

// fitsBudget refuses what would push calls out of the site's voice budget by itself. What calls that are up
// take of it is not known here.
func fitsBudget(p stamp.Probe, st status.Status, site string) error {
	if p.DSCP != dscpOf[string(tunnel.Voice)] {
		return nil
	}
	for _, q := range st.Queues {
		rate := float64(p.Streams) / p.Interval.Seconds() * 8 * float64(p.Size+wireOverhead)
		if q.Class == qos.Media && q.Site == site && q.Ceil > 0 && rate > float64(q.Ceil) {
			return fmt.Errorf(
				"%d streams of %d bytes every %s take %.1f Mbit/s, more than the voice budget of %s to %s, %s: calls "+
					"would be lost (allowed: up to %d streams)",
				p.Streams,
				p.Size,
				p.Interval,
				rate/1e6,
				q.WAN,
				site,
				q.Ceil,
				int(float64(p.Streams)*float64(q.Ceil)/rate),
			)
		}
	}
	return nil
}

// wireOverhead is what a probe's payload gains until the WAN: IPv4 and UDP inside, WireGuard, UDP, IPv4 and
// Ethernet outside, and padding to 16 bytes at its mean.
const wireOverhead = 28 + 8 + 32 + 28 + 14

// maxBoxes bounds whom a look-up asks at once.
const maxBoxes = 16

// likelyBoxes are the addresses that a network's router usually has: the first host, IPv4 before IPv6; and,
// to be asked when none of them answers, since it may well be a phone, the last.
func likelyBoxes(networks []netip.Prefix) [2][]netip.AddrPort {
	var first4, first6, last4 []netip.AddrPort
	add := func(to *[]netip.AddrPort, a netip.Addr) { *to = append(*to, netip.AddrPortFrom(a, stamp.Port)) }
	for _, n := range networks {
		n = n.Masked()
		host := n.Addr()
		if n.Bits() < n.Addr().BitLen()-1 { // a network of one or two has no address of its own (RFC 3021)
			host = host.Next()
		}
		if n.Addr().Is6() {
			add(&first6, host)
			continue
		}
		add(&first4, host)
		if n.Bits() < 31 {
			a := n.Addr().As4()
			for i := n.Bits(); i < 31; i++ { // all ones but the last: that one is the broadcast's
				a[i/8] |= 0x80 >> (i % 8)
			}
			add(&last4, netip.AddrFrom4(a))
		}
	}
	var out [2][]netip.AddrPort
	for i, hosts := range [][]netip.AddrPort{append(first4, first6...), last4} {
		for _, a := range hosts {
			if !slices.Contains(out[i], a) && len(out[i]) < maxBoxes {
				out[i] = append(out[i], a)
			}
		}
	}
	return out
}

// firstAnswer asks all at once, with probes as those that follow, and takes the first of the list that
// answers. Zero: none did.
func firstAnswer(ctx context.Context, p stamp.Probe, hosts []netip.AddrPort) netip.AddrPort {
	p.Streams, p.Count, p.Interval, p.Timeout = 1, 5, 100*time.Millisecond, 2*time.Second
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	answered := make([]chan bool, len(hosts))
	for i, h := range hosts {
		answered[i] = make(chan bool, 1)
		asking.Go(func() {
			q := p
			q.To = h
			res, err := stamp.Measure(ctx, q)
			if err != nil {
				answered[i] <- false
				return
			}
			lost := res.Figures().Lost
			answered[i] <- lost.Total < lost.Sent
		})
	}
	var found netip.AddrPort
	for i, h := range hosts {
		if <-answered[i] {
			found = h
			break
		}
	}
	return found
}
