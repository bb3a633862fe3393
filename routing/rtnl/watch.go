package rtnl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"ringway/routing"
)

// Event says what kinds of things changed since the last one. It says nothing of who changed
// them: Apply's own changes are told too, and an Observe after them finds no difference.
type Event struct {
	Links     bool // also a cable pulled or put in, a device made or gone
	Addresses bool
	Routes    bool // Ringway's own only
	Rules     bool
	Lost      bool // the kernel dropped messages: anything may have changed
	// CarrierUp names the links that got a carrier: a cable put in, a device that was set up or came
	// with one. What was there when Watch began is not named. Sorted; a name may have lost it again since.
	CarrierUp []string
}

func (e Event) any() bool { return e.Links || e.Addresses || e.Routes || e.Rules || e.Lost }

// How long Watch collects: a burst (a device that goes takes hundreds of routes along) is one
// event, and a box that never rests is told twice a second all the same.
const (
	watchQuiet   = 50 * time.Millisecond
	watchLongest = 500 * time.Millisecond
	watchBuffer  = 1 << 20 // bytes
)

// Watch calls f from its own goroutine, one call at a time, after links, addresses, Ringway's
// routes or rules have changed, until ctx ends. The first call comes at once, with Lost set: what
// happened before the subscription stood is unknown. It returns nil when ctx ends.
func Watch(ctx context.Context, f func(Event)) error {
	sock, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		return fmt.Errorf("watch network changes: %w", err)
	}
	if err := sock.SetReceiveBufferSize(watchBuffer, true); err != nil {
		_ = sock.SetReceiveBufferSize(watchBuffer, false) // without CAP_NET_ADMIN a smaller buffer has to do; overruns are told as Lost
	}
	lines, err := watchCarriers()
	if err != nil {
		sock.Close()
		return fmt.Errorf("watch network changes: %w", err)
	}
	defer lines.handle.Close()
	events := make(chan Event)
	failed := make(chan error, 1)
	inner, cancel := context.WithCancel(ctx)
	go func() {
		defer close(events)
		failed <- receive(inner, sock, lines, events)
	}()
	stop := context.AfterFunc(inner, sock.Close) // ends the blocking read
	defer func() {
		cancel()
		stop()
		sock.Close()
		for range events { // until the reader has gone
		}
	}()

	f(Event{Lost: true})
	for {
		var e Event
		select {
		case <-ctx.Done():
			return nil
		case first, ok := <-events:
			if !ok {
				if ctx.Err() != nil {
					return nil
				}
				return fmt.Errorf("watch network changes: %w", <-failed)
			}
			e = first
		}
		e = collect(ctx, events, e)
		if ctx.Err() == nil {
			f(e)
		}
	}
}

// collect joins what follows e closely.
func collect(ctx context.Context, events <-chan Event, e Event) Event {
	longest := time.NewTimer(watchLongest)
	defer longest.Stop()
	quiet := time.NewTimer(watchQuiet)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return e
		case <-longest.C:
			return e
		case <-quiet.C:
			return e
		case n, ok := <-events:
			if !ok {
				return e // the caller finds the channel closed and says why
			}
			up := append(e.CarrierUp, n.CarrierUp...)
			slices.Sort(up)
			e = Event{Links: e.Links || n.Links, Addresses: e.Addresses || n.Addresses, Routes: e.Routes || n.Routes,
				Rules: e.Rules || n.Rules, Lost: e.Lost || n.Lost, CarrierUp: slices.Compact(up)}
			quiet.Reset(watchQuiet)
		}
	}
}

func receive(ctx context.Context, sock *nl.NetlinkSocket, lines *carriers, events chan<- Event) error {
	for {
		msgs, from, err := sock.Receive()
		var e Event
		switch {
		case errors.Is(err, unix.ENOBUFS):
			e.Lost = true
			e.CarrierUp, _ = lines.list() // where the list fails, later messages tell the same
		case err != nil:
			return err
		case from.Pid != 0:
			continue // not from the kernel
		}
		for _, m := range msgs {
			e.note(m)
			if name := lines.note(m); name != "" && !slices.Contains(e.CarrierUp, name) {
				e.CarrierUp = append(e.CarrierUp, name)
			}
		}
		slices.Sort(e.CarrierUp)
		if !e.any() {
			continue
		}
		select {
		case events <- e:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (e *Event) note(m syscall.NetlinkMessage) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		e.Links = true
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		e.Addresses = true
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		e.Rules = true
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		// Others' routes are no business of ours, and there may be very many.
		if len(m.Data) < unix.SizeofRtMsg {
			return
		}
		msg := nl.DeserializeRtMsg(m.Data)
		e.Routes = e.Routes || msg.Protocol == routing.Protocol || routing.OwnTable(tableOf(msg, m.Data))
	}
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

// carriers remembers which links have a carrier, for a message tells only how it is, not how it was.
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

// list asks for all links anew and names those that have a carrier and had none when last heard of.
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

// note names the link that got a carrier by what m tells.
func (c *carriers) note(m syscall.NetlinkMessage) string {
	if t := m.Header.Type; t != unix.RTM_NEWLINK && t != unix.RTM_DELLINK || len(m.Data) < unix.SizeofIfInfomsg {
		return ""
	}
	msg := nl.DeserializeIfInfomsg(m.Data)
	if msg.Family != unix.AF_UNSPEC {
		return "" // a bridge's port: the device itself has a message of its own
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
