package advert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/mdlayher/ndp"
	"golang.org/x/net/ipv6"

	"ringway/boottime"
	"ringway/durable"
)

// Client asks for advertisements on one interface and takes them.
type Client struct {
	Interface string
	File      string // in which a result outlives the daemon, until the next boot; empty: none does
	Log       *slog.Logger

	Refuse func(netip.Prefix) error // says why a prefix must not be used
	Report func(Result)             // called from Run when the result changes
	Note   func(string)             // called from Run with what was refused; empty: nothing

	table    Table
	local    netip.Addr // link-local address of the interface, once it is known
	reported Result
	noted    string
	moved    time.Duration // when the cable was plugged in, while it is open which network it leads to; 0: it is not
	unsaved  bool          // an advertisement was heard since the file was written
	saveNext time.Duration // when it is to be written again

	once    sync.Once
	recheck chan struct{}
}

const (
	firstSolicitation = time.Second // the pause after it doubles (RFC 7559)
	maxSolicitation   = time.Minute
	answerWait        = 5 * time.Second // a router answers within half a second, or 3.5 (RFC 4861, section 6.2.6)
	longestWait       = time.Second     // until the interface, and what has expired, is looked at again
	saveInterval      = time.Minute     // at least, of lifetimes alone: the file is on flash
	perSecond         = 20              // advertisements that are read; what is beyond waits and is lost
)

func (c *Client) String() string { return "router advertisements on " + c.Interface }

// Run takes advertisements until ctx ends. What was taken stays: it is valid until its time.
func (c *Client) Run(ctx context.Context) error {
	c.init()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if m, ok := recall(c.File, c.Interface); ok {
		c.table, c.local = m.Table, m.LinkLocal
		c.update()
	}

	for ctx.Err() == nil {
		if err := c.listen(ctx); err != nil && ctx.Err() == nil {
			c.Log.Debug("router advertisements not read", "interface", c.Interface, "error", err)
		}
		c.update()
		wait(ctx, longestWait)
	}
	return nil
}

// listen reads from one socket until the interface is another one, or is down.
func (c *Client) listen(ctx context.Context) error {
	ifc, err := net.InterfaceByName(c.Interface)
	if err != nil {
		return err
	}
	if ifc.Flags&net.FlagUp == 0 {
		return fmt.Errorf("%s is down", c.Interface)
	}
	conn, local, err := open(ifc)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	c.local = local.WithZone("")
	c.update()

	ask, pause, forced := time.Now(), firstSolicitation, true
	for ctx.Err() == nil {
		if now, err := net.InterfaceByName(c.Interface); err != nil || now.Index != ifc.Index || now.Flags&net.FlagUp == 0 {
			return fmt.Errorf("%s has changed", c.Interface)
		}
		select {
		case <-c.recheck:
			ask, pause, forced = time.Now(), firstSolicitation, true
			c.moved = boottime.Now()
		default:
		}
		if !time.Now().Before(ask) && (forced || len(c.table.Routers) == 0) { // routers go on by themselves
			if err := solicit(conn, ifc); err != nil {
				return err
			}
			ask, pause, forced = time.Now().Add(pause), min(2*pause, maxSolicitation), false
		}

		if err := c.read(ctx, conn); err != nil {
			return err
		}
		c.update()
	}
	return nil
}

// open returns a socket that receives advertisements only.
func open(ifc *net.Interface) (*ndp.Conn, netip.Addr, error) {
	conn, local, err := ndp.Listen(ifc, ndp.LinkLocal)
	if err != nil {
		return nil, netip.Addr{}, err
	}

	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterAdvertisement)
	err = errors.Join(
		conn.SetICMPFilter(&filter),
		conn.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface, true),
		conn.JoinGroup(netip.IPv6LinkLocalAllNodes()),
	)
	if err != nil {
		conn.Close()
		return nil, netip.Addr{}, err
	}
	return conn, local, nil
}

func solicit(conn *ndp.Conn, ifc *net.Interface) error {
	rs := &ndp.RouterSolicitation{}
	if len(ifc.HardwareAddr) == 6 {
		rs.Options = []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: ifc.HardwareAddr}}
	}
	return conn.WriteTo(rs, nil, netip.IPv6LinkLocalAllRouters())
}

// read waits for one advertisement, but not for long.
func (c *Client) read(ctx context.Context, conn *ndp.Conn) error {
	if err := conn.SetReadDeadline(time.Now().Add(longestWait)); err != nil || ctx.Err() != nil {
		return err
	}
	m, control, from, err := conn.ReadFrom()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		return err
	}

	// Only a neighbour can send with a hop limit of 255 (RFC 4861, section 6.1.2).
	ra, ok := m.(*ndp.RouterAdvertisement)
	if !ok || control == nil || control.HopLimit != ndp.HopLimit || !from.IsLinkLocalUnicast() {
		return nil
	}
	c.table.Hear(boottime.Now(), from, ra, c.Refuse)
	c.unsaved = true
	wait(ctx, time.Second/perSecond)
	return nil
}

// update reports what has changed.
func (c *Client) update() {
	now := boottime.Now()
	c.table.Expire(now, c.Refuse)
	if c.moved != 0 && now > c.moved+answerWait {
		c.table.Moved(c.moved)
		c.moved = 0
	}

	text := strings.Join(c.table.Refusals(), "; ")
	if text != c.noted {
		if text != "" {
			c.Log.Warn("router advertisement", "interface", c.Interface, "problem", text)
		}
		c.noted = text
		c.Note(text)
	}

	var r Result
	if c.local.IsValid() {
		r = c.table.Result(now, c.local)
	}
	changed := !r.Equal(c.reported)
	if changed {
		c.Log.Info("router advertisements", "interface", c.Interface, "addresses", r.Addresses, "gateway", r.Gateway)
	}
	if changed || c.unsaved && now > c.saveNext {
		if err := remember(c.File, memory{Interface: c.Interface, LinkLocal: c.local, Table: c.table}); err != nil {
			c.Log.Warn("router advertisements not saved for the next start", "interface", c.Interface, "error", err)
		}
		c.unsaved, c.saveNext = false, now+max(saveInterval, c.table.left(now)/2)
	}
	if changed {
		c.reported = r
		c.Report(r)
	}
}

// Recheck makes Run ask at once: the machine may be in another network, or the config may be another one. It does not
// block, and may be called before Run.
func (c *Client) Recheck() {
	c.init()
	select {
	case c.recheck <- struct{}{}:
	default:
	}
}

func (c *Client) init() { c.once.Do(func() { c.recheck = make(chan struct{}, 1) }) }

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// memory is the file in which a table outlives the daemon.
type memory struct {
	Boot      string     `json:"boot"`
	Interface string     `json:"interface"`
	LinkLocal netip.Addr `json:"link_local"`
	Table     Table      `json:"table"`
}

func remember(file string, m memory) (err error) {
	if file == "" || !m.LinkLocal.IsValid() {
		return nil
	}
	if m.Boot, err = boottime.ID(); err != nil {
		return err
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return durable.WriteFile(file, b, 0o600)
}

func recall(file, iface string) (m memory, ok bool) {
	b, err := os.ReadFile(file)
	if file == "" || err != nil || json.Unmarshal(b, &m) != nil {
		return memory{}, false
	}
	boot, err := boottime.ID()
	return m, err == nil && m.Boot == boot && m.Interface == iface && m.LinkLocal.IsValid()
}

// Last is the result in the file, if it is of this boot: a daemon that starts again must not remove what is in use.
func Last(file, iface string, refuse func(netip.Prefix) error) Result {
	m, ok := recall(file, iface)
	if !ok {
		return Result{}
	}
	now := boottime.Now()
	m.Table.Expire(now, refuse)
	return m.Table.Result(now, m.LinkLocal)
}
