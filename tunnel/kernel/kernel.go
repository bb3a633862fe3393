// Package kernel is the engine "kernel": WireGuard in the Linux kernel, through rtnetlink and
// wgctrl. It needs no process; the device and its sessions outlive the daemon by themselves.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"ringway/tunnel"
)

// Supported says whether this kernel can make WireGuard devices, by making one and removing it: a module
// that can be loaded is loaded by that, and one that is compiled in is found. An error is anything but "no".
func Supported() (bool, error) {
	name := fmt.Sprintf("rwprobe%d", os.Getpid()%100000)
	link := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: name}}
	err := netlink.LinkAdd(link)
	switch {
	case err == nil:
		return true, netlink.LinkDel(link)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTSUP):
		return false, nil
	}
	return false, fmt.Errorf("probe the kernel for WireGuard: %w", err)
}

// Device drives one WireGuard device of the kernel. Its methods may be called from any goroutine.
type Device struct {
	mu      sync.Mutex
	want    tunnel.Device // as last configured
	latest  func(tunnel.Device) tunnel.Device
	started time.Time
	adopted bool
}

// New makes a driver; nothing is done until Configure. latest returns a device with each peer where it was
// last heard, for a kernel device that is made now.
func New(latest func(tunnel.Device) tunnel.Device) *Device { return &Device{latest: latest} }

// Configure makes the device be as d says. Peers that stay keep their sessions, and a peer that roamed keeps
// the endpoint it roamed to unless d names another than at the last call. Returns wrapped errors of netlink
// and wgctrl.
func (k *Device) Configure(_ context.Context, d tunnel.Device) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	name := d.Settings.Interface
	link, err := netlink.LinkByName(name)
	created := false
	var notFound netlink.LinkNotFoundError
	switch {
	case errors.As(err, &notFound):
		w := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}}
		if err := netlink.LinkAdd(w); err != nil {
			return fmt.Errorf("add WireGuard device %s: %w", name, err)
		}
		link, k.started, k.adopted, created = w, time.Now(), false, true
	case err != nil:
		return fmt.Errorf("look for device %s: %w", name, err)
	case link.Type() != "wireguard":
		return fmt.Errorf("device %s exists and is a %s, not WireGuard "+
			"(remove it, or set tunnels[%s].interface to another name)", name, link.Type(), d.Class)
	default:
		if k.started.IsZero() {
			k.started, k.adopted = time.Now(), true
		}
	}
	c, err := wgctrl.New()
	if err != nil {
		return fmt.Errorf("open WireGuard control: %w", err)
	}
	defer c.Close()
	have, err := c.Device(name)
	if err != nil {
		return fmt.Errorf("read WireGuard device %s: %w", name, err)
	}
	tell := d
	if created {
		tell = k.latest(d)
	}
	cfg, changed := difference(tell, have, k.want.Peers)
	if changed {
		if err := c.ConfigureDevice(name, cfg); err != nil {
			return fmt.Errorf("configure WireGuard device %s: %w", name, err)
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
	}
	k.want = d
	return nil
}

// difference is the smallest wgtypes.Config that turns have into want. before are the peers as last wanted.
// It is pure.
func difference(want tunnel.Device, have *wgtypes.Device, before []tunnel.Peer) (cfg wgtypes.Config, changed bool) {
	if key := wgtypes.Key(want.PrivateKey); key != have.PrivateKey {
		cfg.PrivateKey, changed = &key, true
	}
	if port := int(want.Settings.ListenPort); port != have.ListenPort {
		cfg.ListenPort, changed = &port, true
	}
	if mark := int(want.FwMark); mark != have.FirewallMark {
		cfg.FirewallMark, changed = &mark, true
	}
	wanted := map[tunnel.PublicKey]*tunnel.Peer{}
	for i, p := range before {
		wanted[p.PublicKey] = &before[i]
	}
	old := map[wgtypes.Key]wgtypes.Peer{}
	for _, p := range have.Peers {
		old[p.PublicKey] = p
	}
	for _, p := range want.Peers {
		pub, psk, alive := wgtypes.Key(p.PublicKey), wgtypes.Key(p.PresharedKey), p.Keepalive
		h, ok := old[pub]
		delete(old, pub)
		pc := wgtypes.PeerConfig{PublicKey: pub, UpdateOnly: ok}
		touch := !ok
		if !ok || h.PresharedKey != psk {
			pc.PresharedKey, touch = &psk, true
		}
		// An endpoint is told when it must be; otherwise the kernel's own, learnt from the latest packet,
		// stands.
		mustTell := p.MustTellEndpoint(wanted[p.PublicKey]) && !sameEndpoint(h.Endpoint, p.Endpoint)
		if p.Endpoint.IsValid() && (!ok || h.Endpoint == nil || mustTell) {
			pc.Endpoint, touch = net.UDPAddrFromAddrPort(p.Endpoint), true
		}
		if !ok || h.PersistentKeepaliveInterval != alive {
			pc.PersistentKeepaliveInterval, touch = &alive, true
		}
		if !ok || !samePrefixes(h.AllowedIPs, p.AllowedIPs) {
			pc.ReplaceAllowedIPs, touch = true, true
			for _, a := range p.AllowedIPs {
				mask := net.CIDRMask(a.Bits(), a.Addr().BitLen())
				pc.AllowedIPs = append(pc.AllowedIPs, net.IPNet{IP: a.Addr().AsSlice(), Mask: mask})
			}
		}
		if touch {
			cfg.Peers, changed = append(cfg.Peers, pc), true
		}
	}
	for _, p := range have.Peers { // in the kernel's order, so that the plan prints the same twice
		if _, gone := old[p.PublicKey]; gone {
			cfg.Peers, changed = append(cfg.Peers, wgtypes.PeerConfig{PublicKey: p.PublicKey, Remove: true}), true
		}
	}
	return cfg, changed
}

func sameEndpoint(have *net.UDPAddr, want netip.AddrPort) bool {
	if have == nil {
		return false
	}
	at := have.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()) == want
}

func samePrefixes(have []net.IPNet, want []netip.Prefix) bool {
	a := prefixes(have)
	b := slices.Clone(want)
	slices.SortFunc(b, netip.Prefix.Compare)
	return slices.Equal(a, b)
}

func prefixes(nets []net.IPNet) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(nets))
	for _, n := range nets {
		addr, ok := netip.AddrFromSlice(n.IP)
		if !ok {
			continue
		}
		ones, _ := n.Mask.Size()
		out = append(out, netip.PrefixFrom(addr.Unmap(), ones))
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out
}

var reasons = [...]string{"device_tx_dropped", "device_tx_errors", "device_rx_dropped", "device_rx_errors"}

// Reasons names what Status counts as drops. The kernel's WireGuard counts by device and says no more.
func Reasons() []string { return slices.Clone(reasons[:]) }

// Status reads the device. Packets per peer are not counted by the kernel's WireGuard and stay zero.
func (k *Device) Status(context.Context) (tunnel.DeviceStatus, error) {
	k.mu.Lock()
	want, started, adopted := k.want, k.started, k.adopted
	k.mu.Unlock()
	st := tunnel.DeviceStatus{
		Class: want.Class, Interface: want.Settings.Interface, Engine: tunnel.EngineKernel,
		Since: started, Adopted: adopted,
	}
	if want.Settings.Interface == "" {
		return st, errors.New("WireGuard device is not up yet")
	}
	c, err := wgctrl.New()
	if err != nil {
		return st, fmt.Errorf("open WireGuard control: %w", err)
	}
	defer c.Close()
	have, err := c.Device(want.Settings.Interface)
	if err != nil {
		return st, fmt.Errorf("read WireGuard device %s: %w", want.Settings.Interface, err)
	}
	st.PublicKey, st.ListenPort = have.PublicKey.String(), uint16(have.ListenPort)
	for _, p := range have.Peers {
		ps := tunnel.PeerStatus{
			PublicKey: tunnel.PublicKey(p.PublicKey), LastHandshake: p.LastHandshakeTime,
			RxBytes: uint64(p.ReceiveBytes), TxBytes: uint64(p.TransmitBytes),
			AllowedIPs: prefixes(p.AllowedIPs), Keepalive: p.PersistentKeepaliveInterval,
		}
		if p.Endpoint != nil {
			ap := p.Endpoint.AddrPort()
			ps.Endpoint = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		}
		st.Peers = append(st.Peers, ps)
	}
	if link, err := netlink.LinkByName(want.Settings.Interface); err == nil {
		if s := link.Attrs().Statistics; s != nil {
			st.Drops = map[string]uint64{}
			for i, n := range [len(reasons)]uint64{s.TxDropped, s.TxErrors, s.RxDropped, s.RxErrors} {
				st.Drops[reasons[i]] = n
			}
		}
	}
	return st, nil
}

// Reroute has the kernel forget which address it sends to peers from, and says something to each. An endpoint that is
// told again clears the address (drivers/net/wireguard/socket.c), and an interval that begins has a keepalive sent at
// once (netlink.c). The kernel does not tell which address a peer is sent to from.
func (k *Device) Reroute(_ context.Context, r tunnel.Reroute) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	name := k.want.Settings.Interface
	if name == "" {
		return nil
	}
	c, err := wgctrl.New()
	if err != nil {
		return fmt.Errorf("open WireGuard control: %w", err)
	}
	defer c.Close()
	have, err := c.Device(name)
	if err != nil {
		return fmt.Errorf("read WireGuard device %s: %w", name, err)
	}
	for _, cfg := range reroute(have, r) {
		if err := c.ConfigureDevice(name, cfg); err != nil {
			return fmt.Errorf("have WireGuard device %s choose its address: %w", name, err)
		}
	}
	return nil
}

// reroute are the steps of Reroute. It is pure.
func reroute(have *wgtypes.Device, r tunnel.Reroute) []wgtypes.Config {
	var forget, say, restore wgtypes.Config
	off, on := time.Duration(0), time.Second
	for _, p := range have.Peers {
		if p.Endpoint == nil || !r.About(tunnel.PublicKey(p.PublicKey)) {
			continue
		}
		peer := wgtypes.PeerConfig{PublicKey: p.PublicKey, UpdateOnly: true}
		first, then := peer, peer
		first.Endpoint, first.PersistentKeepaliveInterval = p.Endpoint, &off
		then.PersistentKeepaliveInterval = &p.PersistentKeepaliveInterval
		forget.Peers = append(forget.Peers, first)
		if p.PersistentKeepaliveInterval > 0 {
			say.Peers = append(say.Peers, then)
			continue
		}
		if p.LastHandshakeTime.IsZero() {
			continue // it knows nothing of us
		}
		begin := peer
		begin.PersistentKeepaliveInterval = &on
		say.Peers = append(say.Peers, begin)
		restore.Peers = append(restore.Peers, then)
	}
	var steps []wgtypes.Config
	for _, s := range []wgtypes.Config{forget, say, restore} {
		if len(s.Peers) > 0 {
			steps = append(steps, s)
		}
	}
	return steps
}

// Stop removes the device and all its sessions. A device that is not there is no error.
func (k *Device) Stop(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return Remove(k.want.Settings.Interface)
}

// Remove deletes the WireGuard device name if there is one; a device of another kind is left alone.
func Remove(name string) error {
	link, err := netlink.LinkByName(name)
	var notFound netlink.LinkNotFoundError
	if errors.As(err, &notFound) || err == nil && link.Type() != "wireguard" {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("delete WireGuard device %s: %w", name, err)
	}
	return nil
}
