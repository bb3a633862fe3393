package lease

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/boottime"
	"ringway/routing"
	"ringway/routing/dhcp"
	"ringway/routing/dhcp6"
	"ringway/tunnel"
)

// releaseTime bounds how long a server is told that a prefix is not used any more.
const releaseTime = 20 * time.Second

func (k *Keeper) file6(iface string) string { return filepath.Join(k.dir, iface+".dhcp6.json") }

// duidFile has the identifier of this box towards servers, the same for all WANs (RFC 8415, section 11).
func (k *Keeper) duidFile() string { return filepath.Join(k.dir, "duid") }

func want6Of(w config.WAN) dhcp6.Want {
	if !w.DHCP6 {
		return dhcp6.Want{}
	}
	return dhcp6.Want{PrefixBits: w.PrefixBits, Address: w.DHCP6Address}
}

// foreignOf are the addresses that the config gives to WANs and to the sites' endpoints.
func foreignOf(cfg *config.Config) (all []routing.Network) {
	for _, w := range cfg.WANs {
		for _, a := range w.Addresses {
			all = append(all, routing.Network{Prefix: a.Masked(), Name: w.Interface})
		}
		for _, g := range w.Gateways {
			all = append(all, routing.Network{Prefix: host(g), Name: "the gateway of " + w.Interface})
		}
	}
	for _, s := range cfg.Sites {
		for _, e := range s.Endpoints() {
			if a, err := netip.ParseAddr(e); err == nil {
				all = append(all, routing.Network{Prefix: host(a), Name: "the endpoint of site " + s.Name})
			}
		}
	}
	return all
}

func host(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	return netip.PrefixFrom(a, a.BitLen())
}

func subnetsOf(cfg *config.Config) map[string][]routing.Subnet {
	all := map[string][]routing.Subnet{}
	for _, l := range slices.Concat(cfg.Voice, cfg.Data) {
		if l.Subnet.WAN != "" {
			all[l.Subnet.WAN] = append(all[l.Subnet.WAN], l.Subnet)
		}
	}
	return all
}

func (k *Keeper) newClient6(iface string, want dhcp6.Want) *dhcp6.Client {
	return &dhcp6.Client{
		Interface: iface, File: k.file6(iface), Want: want, Log: k.log,
		Refuse:        func(p netip.Prefix) error { return k.refuseDelegated(iface, p) },
		RefuseAddress: func(a netip.Addr) error { return k.refusePrefix(host(a)) },
		Report:        func(l dhcp6.Lease) { k.take(iface, func(w *wan) { w.lease6 = l }) },
		Note:          func(text string) { k.take(iface, func(w *wan) { w.lease6Note = text }) },
	}
}

// run6 runs a client once this box has its identifier.
func (k *Keeper) run6(c *dhcp6.Client) func(context.Context) error {
	return func(ctx context.Context) (err error) {
		if c.DUID, err = dhcp6.LoadDUID(k.duidFile()); err != nil {
			return err
		}
		return c.Run(ctx)
	}
}

// serves reports whether the client is the one that the WAN wants.
func (c *client) serves(w wan) bool {
	return w.dhcp == (c.dhcp != nil) && w.want6 == c.want6 &&
		slices.EqualFunc(w.options, c.options, dhcp.Option.Equal)
}

func (c *client) recheck() {
	if c.dhcp != nil {
		c.dhcp.Recheck()
	}
	if c.dhcp6 != nil {
		c.dhcp6.Recheck()
	}
	c.adverts.Recheck()
}

// release gives back what the config wants no more. At a stop nothing is given back: the provider might delegate
// another prefix at the next start.
func (k *Keeper) release(ctx context.Context, c *client) {
	if c.dhcp6 == nil || c.dhcp6.DUID == nil || ctx.Err() != nil {
		return
	}
	k.releases.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, releaseTime)
		defer cancel()
		c.dhcp6.Release(ctx)
	})
}

// refuseDelegated says why a prefix must not be a WAN's for the LANs. All of it that no LAN has leads nowhere, so a
// server that delegates others' addresses would cut this box off from them.
func (k *Keeper) refuseDelegated(iface string, p netip.Prefix) error {
	k.mu.Lock()
	sites, where, remotes := k.sites, k.Where, k.Remotes
	err := k.overlapsLocked(iface, p)
	k.mu.Unlock()
	if err != nil {
		return err
	}
	for _, s := range sites {
		for _, c := range tunnel.Classes {
			var at []netip.AddrPort
			if where != nil {
				a, _ := where(c, s)
				at = append(at, a)
			}
			if remotes != nil {
				at = append(at, remotes(c, s)...)
			}
			for _, a := range at {
				if a.IsValid() && p.Contains(a.Addr().Unmap().WithZone("")) {
					return fmt.Errorf("%s holds %s, where site %s is", p, a.Addr(), s.Name)
				}
			}
		}
	}
	return nil
}

func (k *Keeper) overlapsLocked(iface string, p netip.Prefix) error {
	if err := routing.Overlap(k.private, "", p); err != nil {
		return err
	}
	if err := routing.Overlap(k.foreign, "", p); err != nil {
		return err
	}
	for name, w := range k.wans {
		var theirs []netip.Prefix
		for _, a := range w.advertised.Addresses {
			theirs = append(theirs, a.Masked())
		}
		for _, a := range w.lease6.Addresses {
			theirs = append(theirs, host(a.Address))
		}
		if name == iface {
			// A provider may take the WAN's own network out of the prefix (RFC 6603), but none of a LAN's.
			if err := k.takenLocked(iface, p, theirs); err != nil {
				return err
			}
			continue
		}
		for _, d := range w.lease6.Prefixes {
			theirs = append(theirs, d.Prefix)
		}
		for _, t := range theirs {
			if err := routing.Overlap([]routing.Network{{Prefix: t, Name: name}}, "", p); err != nil {
				return err
			}
		}
	}
	return nil
}

// takenLocked says which LAN's part of a prefix is the network of the WAN itself.
func (k *Keeper) takenLocked(iface string, p netip.Prefix, theirs []netip.Prefix) error {
	for _, n := range k.subnets[iface] {
		own, ok := n.In(p)
		for _, t := range theirs {
			if ok && own.Overlaps(t) {
				return fmt.Errorf("its subnet %d overlaps %s of %s itself; give that LAN another subnet", n.Number, t, iface)
			}
		}
	}
	return nil
}

// add6 adds what DHCPv6 gave a WAN. What overlaps a private network is left out: the client refuses that, too, but the
// config may have changed since.
func (f Facts) add6(name string, w *wan, private []routing.Network, a *routing.Advertised) {
	now := boottime.Now()
	held := w.lease6.At(now)
	if w.want6.PrefixBits > 0 {
		for _, p := range held.Prefixes {
			if routing.Overlap(private, "", p.Prefix) == nil {
				f.Delegated[name] = append(f.Delegated[name],
					routing.Delegation{Prefix: p.Prefix, Deprecated: p.Preferred <= now})
			}
		}
	}
	if w.want6.Address {
		for _, x := range held.Addresses {
			// A server may give the address that the prefix of an advertisement makes: the kernel has each once.
			advertised := slices.ContainsFunc(w.advertised.Addresses, func(p netip.Prefix) bool { return p.Addr() == x.Address })
			if !advertised && routing.Overlap(private, "", host(x.Address)) == nil {
				a.Addresses = append(a.Addresses, host(x.Address))
			}
		}
	}
}

// Delegated is what WANs have by DHCPv6, by interface, as far as it may be used.
func (k *Keeper) Delegated() map[string]dhcp6.Lease {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := map[string]dhcp6.Lease{}
	for name, w := range k.wans {
		if w.want6.PrefixBits == 0 {
			continue
		}
		l := w.lease6.At(boottime.Now())
		l.Prefixes = slices.DeleteFunc(l.Prefixes, func(p dhcp6.Prefix) bool {
			return routing.Overlap(k.private, "", p.Prefix) != nil
		})
		all[name] = l
	}
	return all
}

// problems6 are those of DHCPv6.
func (w *wan) problems6(name string) (problems []problem.Problem) {
	if w.want6 == (dhcp6.Want{}) {
		return nil
	}
	held := w.lease6.At(boottime.Now())
	text := ""
	switch {
	case w.want6.PrefixBits > 0 && len(held.Prefixes) == 0:
		text = "no prefix was delegated"
	case held.Empty():
		text = "no DHCPv6 lease"
	case w.lease6Note != "":
		text = "DHCPv6"
	default:
		return nil
	}
	if w.lease6Note != "" {
		text += ": " + w.lease6Note
	}
	return []problem.Problem{{
		Subject: name, Severity: problem.Warning, Text: text,
		Action: "ask the provider which prefix it delegates; hosts are without IPv6 to the internet meanwhile, calls " +
			"through tunnels go on; the client keeps asking",
	}}
}

// short are the LANs whose subnet a prefix does not have.
func shortProblems(short []config.Short) (problems []problem.Problem) {
	for _, s := range short {
		problems = append(problems, problem.Problem{
			Subject: s.LAN.Device(), Severity: problem.Warning,
			Text:   fmt.Sprintf("the delegated prefix %s has no subnet %d", s.Prefix, s.LAN.Subnet.Number),
			Action: "choose a smaller subnet for this network, or ask the provider for a larger prefix",
		})
	}
	return problems
}

// Delegated is a prefix that was delegated to a WAN.
type Delegated struct {
	Prefix         netip.Prefix `json:"prefix"`
	PreferredUntil time.Time    `json:"preferred_until"` // nothing new begins with it afterwards
	ValidUntil     time.Time    `json:"valid_until"`
}

func (w *WAN) add6(l dhcp6.Lease) {
	now := boottime.Now()
	at := func(t time.Duration) time.Time { return time.Now().Add(t - now).Truncate(time.Second) }
	for _, p := range l.At(now).Prefixes {
		w.Delegated = append(w.Delegated, Delegated{p.Prefix, at(p.Preferred), at(p.Valid)})
	}
	for _, a := range l.At(now).Addresses {
		w.Assigned = append(w.Assigned, a.Address)
	}
}

func (w WAN) text6() (text string) {
	for _, a := range w.Assigned {
		text += " and " + a.String()
	}
	for _, d := range w.Delegated {
		text += ", prefix " + d.Prefix.String()
	}
	if w.DHCP6Note != "" {
		text += " (" + w.DHCP6Note + ")"
	}
	return text
}
