package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"golang.org/x/sys/unix"
)

// Client keeps the lease of one interface. The states are those of RFC 2131, figure 5:
//
//	held lease of this boot ──────────────┐
//	last lease ── INIT-REBOOT ── ack ──┐  │
//	                   │ nak, silence  ▼  ▼
//	INIT ─ discover, offer, request ─ BOUND ─ T1 ─ RENEWING ─ T2 ─ REBINDING ─ expiry ─ lost ─ INIT
//	  ▲                                 ▲────── ack ───┴──────────────┘ │
//	  └──────────────────────────── nak: lost ──────────────────────────┘
type Client struct {
	Interface string
	File      string      // keeps the last lease; empty: none is kept
	Report    func(Lease) // called from Run, when a lease is got, when it changes or its expiry moves, and when it is lost
	Log       *slog.Logger

	// Timeout is how long to wait for a first answer; it doubles with each try. 0: RFC 2131's 4 s.
	Timeout time.Duration
	// Longest is how long a lease is held without asking again. 0: a day.
	Longest time.Duration

	told    Lease // last reported
	once    sync.Once
	recheck chan struct{}
}

const (
	firstTimeout = 4 * time.Second // RFC 2131 section 4.1
	tries        = 4               // 4, 8, 16, 32 s
	rebootTries  = 2               // a server that does not know the box keeps silent: do not wait a minute for it
	pause        = 10 * time.Second
	renewAtLeast = 60 * time.Second // RFC 2131 section 4.4.5: half of what is left, but not below a minute
)

func (c *Client) String() string { return "DHCP client on " + c.Interface }

// Run keeps the lease until ctx ends. It gives nothing back to the server then: the lease is the
// box's until it runs out, and the next start goes on with it. (Released, it would come back as
// another address, and the far sites would have to find the box again.)
func (c *Client) Run(ctx context.Context) error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.init()
	lease, ok := c.recalled(ctx)
	for ctx.Err() == nil {
		if !ok {
			if lease, ok = c.obtain(ctx); !ok {
				c.waitOrRecheck(ctx, c.spread(min(pause, 3*c.timeout()))) // a cable that comes back ends the pause
				continue
			}
			c.bind(lease)
		}
		lease, ok = c.keep(ctx, lease)
	}
	return nil
}

// recalled is what the last run left: a lease that still holds is told at once, any other is asked for (INIT-REBOOT).
func (c *Client) recalled(ctx context.Context) (Lease, bool) {
	if c.File == "" {
		return Lease{}, false
	}
	last, held, err := recall(c.File, c.Interface)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			c.Log.Warn("no last lease", "interface", c.Interface, "error", err)
		}
		return Lease{}, false
	}
	if held {
		c.bind(last)
		return last, true
	}
	lease, err := c.ask(ctx, reboot, last)
	if err != nil {
		c.Log.Info("last lease not confirmed", "interface", c.Interface, "address", last.Address, "error", err)
		return Lease{}, false
	}
	c.bind(lease)
	return lease, true
}

// obtain goes from INIT to BOUND.
func (c *Client) obtain(ctx context.Context) (Lease, bool) {
	var lease Lease
	given := time.Now()
	err := c.exchange(tries, func(x *nclient4.Client, mac net.HardwareAddr) error {
		discover, err := dhcpv4.NewDiscovery(mac, wanted, dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(nclient4.MaxMessageSize)))
		if err != nil {
			return err
		}
		// A bad offer is passed over: another server's may be good.
		offer, err := x.SendAndRead(ctx, nclient4.DefaultServers, discover, func(p *dhcpv4.DHCPv4) bool {
			if p.MessageType() != dhcpv4.MessageTypeOffer {
				return false
			}
			_, err := leaseOf(c.Interface, p, given, c.longest())
			if err != nil {
				c.Log.Debug("offer refused", "interface", c.Interface, "server", p.ServerIdentifier(), "error", err)
			}
			return err == nil
		})
		if err != nil {
			return fmt.Errorf("discover: %w", err)
		}
		given = time.Now()
		got, err := x.RequestFromOffer(ctx, offer, wanted)
		if err != nil {
			return err
		}
		lease, err = leaseOf(c.Interface, got.ACK, given, c.longest())
		return err
	})
	if err != nil {
		if ctx.Err() == nil {
			c.Log.Warn("no lease", "interface", c.Interface, "error", err)
		}
		return Lease{}, false
	}
	return lease, true
}

// keep stays BOUND, renews, rebinds. It returns the lease to go on with, or false when it is lost.
func (c *Client) keep(ctx context.Context, lease Lease) (Lease, bool) {
	at := lease.given.Add(lease.Renew)
	for {
		woken, recheck := c.waitOrRecheck(ctx, time.Until(at))
		if !woken {
			return lease, true
		}
		if recheck {
			next, err := c.ask(ctx, reboot, lease)
			var nak *nclient4.ErrNak
			switch {
			case err == nil:
				c.bind(next)
				return next, true
			case errors.As(err, &nak):
				c.lose(nak.Error())
				return Lease{}, false
			}
			continue // silence says nothing: the lease holds until its time
		}
		how, until := renew, lease.given.Add(lease.Rebind)
		if !time.Now().Before(until) {
			how, until = rebind, lease.Expiry
		}
		if !time.Now().Before(lease.Expiry) {
			c.lose("it has run out")
			return Lease{}, false
		}
		asking, cancel := context.WithDeadline(ctx, until)
		next, err := c.ask(asking, how, lease)
		cancel()
		var nak *nclient4.ErrNak
		switch {
		case err == nil:
			c.bind(next)
			return next, true
		case ctx.Err() != nil:
			return lease, true
		case errors.As(err, &nak):
			c.lose(nak.Error())
			return Lease{}, false
		}
		c.Log.Warn("lease not renewed", "interface", c.Interface, "state", string(how), "error", err)
		// Half of what is left, at least a minute, but never past the next state (section 4.4.5).
		left := time.Until(until)
		if at = time.Now().Add(max(left/2, min(renewAtLeast, lease.Duration/20))); at.After(until) {
			at = until
		}
	}
}

func (c *Client) bind(l Lease) {
	if err := remember(c.File, l); err != nil {
		c.Log.Warn("lease not kept for the next start", "interface", c.Interface, "error", err)
	}
	if !c.told.same(l) {
		c.Log.Info("lease", "interface", c.Interface, "address", l.Address, "gateways", l.Gateways, "server", l.Server, "expiry", l.Expiry)
	}
	c.told = l
	c.Report(l)
}

func (c *Client) lose(why string) {
	c.Log.Error("lease lost", "interface", c.Interface, "address", c.told.Address, "reason", why)
	c.told = Lease{}
	if c.File != "" {
		_ = os.Remove(c.File) // else a restart would go on with it
	}
	c.Report(Lease{Interface: c.Interface, Lost: true})
}

func (c *Client) timeout() time.Duration {
	if c.Timeout > 0 {
		return c.Timeout
	}
	return firstTimeout
}

func (c *Client) longest() time.Duration {
	if c.Longest > 0 {
		return c.Longest
	}
	return longest
}

// spread keeps a street full of boxes from asking in step after a power cut (section 4.1).
func (c *Client) spread(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2+1)
}

// Recheck has the lease confirmed soon, or asked for at once where there is none: after the cable was out, the box
// may be in another network.
// It never blocks, and may be called before Run.
func (c *Client) Recheck() {
	c.init()
	select {
	case c.recheck <- struct{}{}:
	default:
	}
}

func (c *Client) init() { c.once.Do(func() { c.recheck = make(chan struct{}, 1) }) }

func (c *Client) waitOrRecheck(ctx context.Context, d time.Duration) (woken, recheck bool) {
	t := time.NewTimer(max(d, 0))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false, false
	case <-c.recheck:
		return ctx.Err() == nil, true
	case <-t.C:
		return ctx.Err() == nil, false
	}
}

// state is from where a lease is asked for again; each makes another request (RFC 2131 section 4.3.6, table 4).
type state string

const (
	reboot state = "init-reboot" // broadcast, requested address, no client address, no server
	renew  state = "renewing"    // to the server alone, client address
	rebind state = "rebinding"   // broadcast, client address
)

// ask asks for the lease that the box has or had.
func (c *Client) ask(ctx context.Context, how state, l Lease) (next Lease, err error) {
	given := time.Now()
	ask := func(x *nclient4.Client, mac net.HardwareAddr, to *net.UDPAddr) error {
		address := l.Address.Addr().AsSlice()
		mods := []dhcpv4.Modifier{dhcpv4.WithHwAddr(mac), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), wanted}
		if how == reboot {
			mods = append(mods, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(address)))
		} else {
			mods = append(mods, dhcpv4.WithClientIP(address))
		}
		request, err := dhcpv4.New(mods...)
		if err != nil {
			return err
		}
		answer, err := x.SendAndRead(ctx, to, request, func(p *dhcpv4.DHCPv4) bool {
			if how == renew && addrOf(p.ServerIdentifier()) != l.Server {
				return false
			}
			return p.MessageType() == dhcpv4.MessageTypeAck || p.MessageType() == dhcpv4.MessageTypeNak
		})
		if err != nil {
			return err
		}
		if answer.MessageType() == dhcpv4.MessageTypeNak {
			return &nclient4.ErrNak{Nak: answer}
		}
		next, err = leaseOf(c.Interface, answer, given, c.longest())
		return err
	}
	n := tries
	switch how {
	case renew:
		err = c.unicast(l, func(x *nclient4.Client, mac net.HardwareAddr) error {
			return ask(x, mac, &net.UDPAddr{IP: l.Server.AsSlice(), Port: nclient4.ServerPort})
		})
		return next, err
	case reboot:
		n = rebootTries
	}
	err = c.exchange(n, func(x *nclient4.Client, mac net.HardwareAddr) error { return ask(x, mac, nclient4.DefaultServers) })
	return next, err
}

// exchange opens a socket below IP (there may be no address yet, and no firewall rule stands in the
// way), for this exchange alone: one that lives on is dead after the interface was down once.
func (c *Client) exchange(tries int, f func(*nclient4.Client, net.HardwareAddr) error) error {
	ifc, err := c.ethernet()
	if err != nil {
		return err
	}
	x, err := nclient4.New(c.Interface, nclient4.WithTimeout(c.spread(c.timeout())), nclient4.WithRetry(tries))
	if err != nil {
		return fmt.Errorf("open a packet socket on %s: %w", c.Interface, err)
	}
	defer x.Close()
	return f(x, ifc.HardwareAddr)
}

// unicast opens a UDP socket on the leased address (which somebody must have put on the interface).
func (c *Client) unicast(l Lease, f func(*nclient4.Client, net.HardwareAddr) error) error {
	ifc, err := c.ethernet()
	if err != nil {
		return err
	}
	conn, err := listenOn(c.Interface, netip.AddrPortFrom(l.Address.Addr(), nclient4.ClientPort))
	if err != nil {
		return fmt.Errorf("open a socket on %s: %w", l.Address.Addr(), err)
	}
	x, err := nclient4.NewWithConn(conn, ifc.HardwareAddr, nclient4.WithTimeout(c.spread(c.timeout())), nclient4.WithRetry(tries))
	if err != nil {
		conn.Close()
		return err
	}
	defer x.Close()
	return f(x, ifc.HardwareAddr)
}

func (c *Client) ethernet() (*net.Interface, error) {
	ifc, err := net.InterfaceByName(c.Interface)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", c.Interface, err)
	case ifc.Flags&net.FlagUp == 0:
		return nil, fmt.Errorf("%s is down", c.Interface)
	case len(ifc.HardwareAddr) != 6:
		return nil, fmt.Errorf("%s is no Ethernet", c.Interface)
	}
	return ifc, nil
}

func listenOn(iface string, a netip.AddrPort) (net.PacketConn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "dhcp")
	defer f.Close() // FilePacketConn has a descriptor of its own
	if err := unix.BindToDevice(fd, iface); err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}); err != nil {
		return nil, err
	}
	return net.FilePacketConn(f)
}

// wanted asks for what leaseOf reads.
var wanted = dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer)
