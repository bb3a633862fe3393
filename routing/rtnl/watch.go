package rtnl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"ringway/debounce"
	"ringway/routing"
)

// Event says what kinds of things changed since the last one, whoever changed them: Apply's own changes are
// reported too, and an Observe after them finds no difference.
type Event struct {
	Links     bool // also a cable plugged or pulled, a device made or removed
	Addresses bool
	Routes    bool // Ringway's own, default routes, and those that somebody set by hand
	Rules     bool
	Sysctls   bool // those of routing.Sysctl.Notified
	Lost      bool // the kernel dropped messages: anything may have changed
	// CarrierUp names the links that got a carrier since Watch began: a cable was plugged in, a device was
	// set up or appeared with one. Sorted; a link may have lost it again since.
	CarrierUp []string
}

func (e Event) any() bool {
	return e.Links || e.Addresses || e.Routes || e.Rules || e.Sysctls || e.Lost
}

// timing joins a burst (a device that goes takes hundreds of routes along), and reports twice a second on a
// machine that never rests.
var timing = debounce.Timing{Quiet: 50 * time.Millisecond, Longest: 500 * time.Millisecond}

const watchBuffer = 1 << 20 // bytes

// Watch calls f from its own goroutine, one call at a time, after links, addresses, Ringway's routes, rules or
// sysctls have changed, until ctx ends. The first call comes at once, with Lost set: what happened before the
// subscription is unknown. It returns nil when ctx ends.
func Watch(ctx context.Context, f func(Event)) error {
	err := watch(ctx, f)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("watch network changes: %w", err)
	}
	return nil
}

func watch(ctx context.Context, f func(Event)) error {
	sock, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE,
		unix.RTNLGRP_IPV6_IFINFO, // an MTU that a router advertised
		unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, sock.Close) // ends the blocking read
	defer func() {
		if stop() {
			sock.Close()
		}
	}()
	if err := sock.SetReceiveBufferSize(watchBuffer, true); err != nil {
		// Without CAP_NET_ADMIN a smaller buffer has to do; overruns are reported as Lost.
		_ = sock.SetReceiveBufferSize(watchBuffer, false)
	}
	links, err := watchCarriers()
	if err != nil {
		return err
	}
	defer links.handle.Close()

	var events collector
	changes := debounce.New(timing)
	receiving, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		cancel(receive(sock, links, func(e Event) {
			events.add(e)
			changes.Trigger()
		}))
	}()

	f(Event{Lost: true})
	changes.Run(receiving, func() {
		// An event that comes between a trigger and its call is in this call already, and the next has
		// nothing to say.
		if e := events.take(); e.any() {
			f(e)
		}
	})
	<-done
	return context.Cause(receiving)
}

// collector joins events.
type collector struct {
	mu     sync.Mutex
	joined Event
}

func (c *collector) add(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := &c.joined
	j.Links = j.Links || e.Links
	j.Addresses = j.Addresses || e.Addresses
	j.Routes = j.Routes || e.Routes
	j.Rules = j.Rules || e.Rules
	j.Sysctls = j.Sysctls || e.Sysctls
	j.Lost = j.Lost || e.Lost
	j.CarrierUp = append(j.CarrierUp, e.CarrierUp...)
}

func (c *collector) take() Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.joined
	c.joined = Event{}
	slices.Sort(e.CarrierUp)
	e.CarrierUp = slices.Compact(e.CarrierUp)
	return e
}

func receive(sock *nl.NetlinkSocket, links *carriers, report func(Event)) error {
	for {
		msgs, from, err := sock.Receive()
		var e Event
		switch {
		case errors.Is(err, unix.ENOBUFS):
			e.Lost = true
			e.CarrierUp, _ = links.list() // if it fails, later messages say the same
		case err != nil:
			return err
		case from.Pid != 0:
			continue // not from the kernel
		}
		for _, m := range msgs {
			e.note(m)
			if name := links.note(m); name != "" {
				e.CarrierUp = append(e.CarrierUp, name)
			}
		}
		if e.any() {
			report(e)
		}
	}
}

func (e *Event) note(m syscall.NetlinkMessage) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		e.Links = true
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		e.Addresses = true
	case unix.RTM_NEWNETCONF: // not when it is deleted: the device goes, too
		e.Sysctls = true
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		e.Rules = true
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		// There may be very many routes of others, from routing daemons, which do not matter here.
		if len(m.Data) < unix.SizeofRtMsg {
			return
		}
		msg := nl.DeserializeRtMsg(m.Data)
		table := tableOf(msg, m.Data)
		ours := msg.Protocol == routing.Protocol || routing.OwnTable(table)
		e.Routes = e.Routes || ours || table == routing.TableMain && byHand(msg)
	}
}

// byHand reports whether a route is a default route, or one that somebody set: it may take packets of ours.
func byHand(msg *nl.RtMsg) bool {
	static := msg.Protocol == unix.RTPROT_BOOT || msg.Protocol == unix.RTPROT_STATIC
	return (static || msg.Dst_len < 8) && msg.Flags&unix.RTM_F_CLONED == 0
}

func tableOf(msg *nl.RtMsg, data []byte) uint32 {
	attrs, err := nl.ParseRouteAttr(data[msg.Len():])
	if err != nil {
		return 0
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.RTA_TABLE && len(a.Value) >= 4 {
			return nl.NativeEndian().Uint32(a.Value)
		}
	}
	return uint32(msg.Table)
}

// carriers remembers which links have a carrier: a message says only how it is, not how it was.
type carriers struct {
	handle *netlink.Handle // of the watched namespace, which the reading goroutine may not be in
	up     map[int32]bool
}

func watchCarriers() (*carriers, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	c := &carriers{handle: h, up: map[int32]bool{}}
	if _, err := c.list(); err != nil {
		h.Close()
		return nil, err
	}
	return c, nil
}

// list reads all links and returns those that have a carrier now and had none before.
func (c *carriers) list() ([]string, error) {
	links, err := dump(c.handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list network devices: %w", err)
	}
	var came []string
	now := map[int32]bool{}
	for _, l := range links {
		a := l.Attrs()
		i := int32(a.Index)
		if now[i] = a.RawFlags&unix.IFF_LOWER_UP != 0; now[i] && !c.up[i] {
			came = append(came, a.Name)
		}
	}
	c.up = now
	return came, nil
}

// note returns the name of the link that got a carrier according to m.
func (c *carriers) note(m syscall.NetlinkMessage) string {
	if t := m.Header.Type; t != unix.RTM_NEWLINK && t != unix.RTM_DELLINK || len(m.Data) < unix.SizeofIfInfomsg {
		return ""
	}
	msg := nl.DeserializeIfInfomsg(m.Data)
	if msg.Family != unix.AF_UNSPEC {
		return "" // about a bridge port: the device has a message of its own
	}
	before := c.up[msg.Index]
	if m.Header.Type == unix.RTM_DELLINK {
		delete(c.up, msg.Index)
		return ""
	}
	c.up[msg.Index] = msg.Flags&unix.IFF_LOWER_UP != 0
	if before || !c.up[msg.Index] {
		return ""
	}
	attrs, err := nl.ParseRouteAttr(m.Data[msg.Len():])
	if err != nil {
		return ""
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFLA_IFNAME {
			return unix.ByteSliceToString(a.Value)
		}
	}
	return ""
}
