package rtnl

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"ringway/debounce"
)

// Line is whether a WAN's device can carry anything, and from which addresses.
type Line struct {
	Name      string
	Exists    bool
	Carrier   bool         // it is up and has a carrier
	Addresses []netip.Addr // of this machine; not those of the link alone, and none that is still tentative
}

// Lines reads the devices of names, in that order.
func Lines(names []string) (all []Line, err error) {
	for _, name := range names {
		l := Line{Name: name}
		link, err := netlink.LinkByName(name)
		var missing netlink.LinkNotFoundError
		switch {
		case errors.As(err, &missing):
			all = append(all, l)
			continue
		case err != nil:
			return nil, fmt.Errorf("read network device %s: %w", name, err)
		}
		l.Exists = true
		flags := link.Attrs().RawFlags
		l.Carrier = flags&unix.IFF_UP != 0 && flags&unix.IFF_LOWER_UP != 0
		addresses, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, unix.AF_UNSPEC) })
		if err != nil {
			return nil, fmt.Errorf("list the addresses of %s: %w", name, err)
		}
		for _, a := range addresses {
			ip := addrOf(a.IP).Unmap()
			tentative := a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0
			if ip.IsValid() && !ip.IsLinkLocalUnicast() && !tentative {
				l.Addresses = append(l.Addresses, ip)
			}
		}
		all = append(all, l)
	}
	return all, nil
}

// lineTiming joins what changes together: an address is replaced by a removal and an addition. Calls wait meanwhile.
var lineTiming = debounce.Timing{Quiet: 5 * time.Millisecond, Longest: 30 * time.Millisecond}

// WatchLines calls f at once, and then a few milliseconds after carriers or addresses have changed, from one goroutine,
// until ctx ends. It returns nil then.
func WatchLines(ctx context.Context, f func()) error {
	sock, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return fmt.Errorf("watch carriers and addresses: %w", err)
	}
	stop := context.AfterFunc(ctx, sock.Close) // ends the blocking read
	defer func() {
		if stop() {
			sock.Close()
		}
	}()

	changes := debounce.New(lineTiming)
	receiving, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			// What was lost (ENOBUFS) may have been a change, too.
			if _, _, err := sock.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
				cancel(err)
				return
			}
			changes.Trigger()
		}
	}()
	f()
	changes.Run(receiving, f)
	<-done
	if err := context.Cause(receiving); ctx.Err() == nil {
		return fmt.Errorf("watch carriers and addresses: %w", err)
	}
	return nil
}

// PointToPoint returns the IPv4 addresses of the two ends of a link that has no others, as pppd sets them; zero: it has
// none.
func PointToPoint(name string) (local, peer netip.Addr, err error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return local, peer, fmt.Errorf("read network device %s: %w", name, err)
	}
	addresses, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, unix.AF_INET) })
	if err != nil {
		return local, peer, fmt.Errorf("list the addresses of %s: %w", name, err)
	}
	for _, a := range addresses {
		if a.Peer != nil && link.Attrs().Flags&net.FlagPointToPoint != 0 {
			return addrOf(a.IP).Unmap(), addrOf(a.Peer.IP).Unmap(), nil
		}
	}
	return local, peer, nil
}
