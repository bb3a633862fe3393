// Package dhcp keeps a DHCPv4 lease for a WAN interface (RFC 2131): it asks, renews, rebinds,
// starts over, and tells whoever composes the network what it holds. It does not touch
// the interface: addresses and routes are package routing's. It is the only importer of
// insomniacslk/dhcp; the appliance imports it.
package dhcp

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

// Lease is what a server gave, or that it is gone (Lost: nothing else but Interface is set).
type Lease struct {
	Interface string         `json:"interface"`
	Address   netip.Prefix   `json:"address,omitzero"` // the box's own, with its network's length
	Gateways  []netip.Addr   `json:"gateways,omitempty"`
	DNS       []netip.Addr   `json:"dns,omitempty"`
	Server    netip.Addr     `json:"server,omitzero"`
	Duration  time.Duration  `json:"duration_ns,omitempty"` // as given
	Renew     time.Duration  `json:"renew_ns,omitempty"`    // T1, from when it was given
	Rebind    time.Duration  `json:"rebind_ns,omitempty"`   // T2
	Expiry    time.Time      `json:"expiry,omitzero"`
	Lost      bool           `json:"lost,omitempty"`
	given     time.Time      // when the request that got it was sent (RFC 2131 section 4.4.1: counts from there)
	ack       *dhcpv4.DHCPv4 // what renewals are made from
}

// same is whether nothing changed that the network's state depends on.
func (l Lease) same(o Lease) bool {
	return l.Address == o.Address && fmt.Sprint(l.Gateways, l.DNS) == fmt.Sprint(o.Gateways, o.DNS)
}

// A lease is asked for again after a day at the latest, also one that has no end (0xffffffff).
const longest = 24 * time.Hour

// leaseOf reads an acknowledgement, and refuses one that no address could come from.
func leaseOf(iface string, ack *dhcpv4.DHCPv4, given time.Time, longest time.Duration) (Lease, error) {
	l := Lease{Interface: iface, given: given, ack: ack, Server: addrOf(ack.ServerIdentifier())}
	a := addrOf(ack.YourIPAddr)
	if !usable(a) {
		return Lease{}, fmt.Errorf("it offers the address %s, which no host can have", ack.YourIPAddr)
	}
	if !l.Server.IsValid() || l.Server.IsUnspecified() {
		return Lease{}, errors.New("it names no server")
	}
	bits := 0
	switch mask := ack.SubnetMask(); {
	case mask == nil:
		bits, _ = ack.YourIPAddr.DefaultMask().Size() // RFC 950, as clients do where a server says nothing
	default:
		ones, of := mask.Size()
		if of != 32 || ones == 0 {
			return Lease{}, fmt.Errorf("its subnet mask %s is none", net.IP(mask))
		}
		bits = ones
	}
	l.Address = netip.PrefixFrom(a, bits)

	l.Duration = ack.IPAddressLeaseTime(0)
	if l.Duration <= 0 {
		return Lease{}, errors.New("it gives no lease time")
	}
	l.Duration = min(l.Duration, longest)
	l.Renew, l.Rebind = ack.IPAddressRenewalTime(l.Duration/2), ack.IPAddressRebindingTime(l.Duration*7/8)
	if l.Renew <= 0 || l.Renew >= l.Rebind || l.Rebind >= l.Duration {
		l.Renew, l.Rebind = l.Duration/2, l.Duration*7/8 // RFC 2131 section 4.4.5
	}
	l.Expiry = given.Add(l.Duration)

	// RFC 3442: where there are classless routes, the router option is to be ignored.
	if routes := ack.ClasslessStaticRoute(); len(routes) > 0 {
		for _, r := range routes {
			if ones, _ := r.Dest.Mask.Size(); ones == 0 {
				l.Gateways = appendUsable(l.Gateways, r.Router, a)
			}
		}
	} else {
		for _, r := range ack.Router() {
			l.Gateways = appendUsable(l.Gateways, r, a)
		}
	}
	for _, d := range ack.DNS() {
		l.DNS = appendUsable(l.DNS, d, netip.Addr{})
	}
	return l, nil
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip.To4())
	return a
}

func usable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && a.As4()[0] < 240 && a.As4()[0] != 0
}

func appendUsable(list []netip.Addr, ip net.IP, not netip.Addr) []netip.Addr {
	if a := addrOf(ip); usable(a) && a != not {
		return append(list, a)
	}
	return list
}

// memory is the file in which the last lease outlives the daemon.
type memory struct {
	Lease Lease  `json:"lease"`
	ACK   []byte `json:"ack"`
	// A lease of the same boot is held by the clock that counts since boot: the wall clock of a box
	// without a battery is not to be trusted.
	Boot      string        `json:"boot"`
	SinceBoot time.Duration `json:"since_boot_ns"` // when it was given
}

// LastLease is the lease in the file, and how much is left of it. It is good for going on with
// (ok) if it was given to the interface since the box has booted and has not run out: then the
// address is still the box's, and a daemon that starts again must not take it off the WAN.
func LastLease(file, iface string) (l Lease, ok bool) {
	l, ok, _ = recall(file, iface)
	return l, ok
}

// recall also gives a lease that may only be asked for again (held false, err nil).
func recall(file, iface string) (l Lease, held bool, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Lease{}, false, err
	}
	var m memory
	if err := json.Unmarshal(b, &m); err != nil {
		return Lease{}, false, fmt.Errorf("read the last lease in %s: %w", file, err)
	}
	ack, err := dhcpv4.FromBytes(m.ACK)
	if err != nil || m.Lease.Interface != iface {
		return Lease{}, false, fmt.Errorf("the last lease in %s is not %s's", file, iface)
	}
	given := time.Now()
	if m.Boot == bootID() {
		given = given.Add(m.SinceBoot - sinceBoot())
	}
	if l, err = leaseOf(iface, ack, given, longest); err != nil {
		return Lease{}, false, fmt.Errorf("the last lease in %s: %w", file, err)
	}
	return l, m.Boot == bootID() && time.Now().Before(l.Expiry), nil
}

func remember(file string, l Lease) error {
	if file == "" {
		return nil
	}
	b, err := json.Marshal(memory{Lease: l, ACK: l.ack.ToBytes(), Boot: bootID(), SinceBoot: sinceBoot() - time.Since(l.given)})
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("keep the lease: %w", err)
	}
	if err := os.Rename(tmp, file); err != nil {
		return fmt.Errorf("keep the lease: %w", err)
	}
	return nil
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

func sinceBoot() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
