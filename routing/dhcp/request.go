package dhcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"golang.org/x/sys/unix"

	"ringway/routing/rawudp"
)

// state is one in which a lease is asked for again; each makes another request (RFC 2131, section 4.3.6,
// table 4).
type state string

const (
	initial state = "init"        // no lease is known
	reboot  state = "init-reboot" // broadcast, requested address, no client address, no server
	renew   state = "renewing"    // to the server only, client address
	rebind  state = "rebinding"   // broadcast, client address
	expired state = "expired"     // nothing is asked for
)

// nakError says that a server refused to renew a lease: it must not be used any more.
type nakError struct {
	server netip.Addr
	text   string // of the server
}

func (e *nakError) Error() string {
	text := "refused by server " + e.server.String()
	if e.text != "" {
		text += fmt.Sprintf(" (%q)", e.text)
	}
	return text
}

func nakOf(p *dhcpv4.DHCPv4) *nakError {
	return &nakError{server: addrOf(p.ServerIdentifier()), text: p.Message()}
}

// ask asks again for a lease that the client has or had. Any server may answer, by unicast or broadcast: a server
// broadcasts its DHCPNAK, also of a request that was sent to it alone (RFC 2131, section 4.1), and the server of the
// lease may have been replaced.
func (c *Client) ask(ctx context.Context, how state, l Lease) (next Lease, err error) {
	given := time.Now()
	to, n := nclient4.DefaultServers, tries
	switch how {
	case reboot:
		n = rebootTries
	case renew:
		to = &net.UDPAddr{IP: l.Server.AsSlice(), Port: nclient4.ServerPort}
	}

	err = c.exchange(how, l, n, func(x *nclient4.Client, mac net.HardwareAddr) error {
		request, err := c.request(how, l, mac)
		if err != nil {
			return err
		}

		waiting, stop := context.WithCancel(ctx)
		defer stop()
		refusals := refusals{note: func(err error) { c.noteRefusal(fmt.Errorf("not renewed: %w", err)) }}
		var refused *nakError
		_, err = x.SendAndRead(waiting, to, request, func(p *dhcpv4.DHCPv4) bool {
			switch p.MessageType() {
			case dhcpv4.MessageTypeNak:
				if addrOf(p.ServerIdentifier()) == l.Server {
					refused = nakOf(p)
					return true
				}
				if refused == nil { // where there are two servers, one may refuse what the other granted
					refused = nakOf(p)
					time.AfterFunc(c.nakPatience(), stop)
				}
				return false
			case dhcpv4.MessageTypeAck:
				got, err := c.check(p, given)
				if refusals.accept(err) {
					next = got
				}
				return err == nil
			}
			return false
		})
		switch {
		case next.Address.IsValid():
			return nil
		case refused != nil:
			return refused
		}
		return errors.New(refusals.reason(err))
	})
	return next, err
}

func (c *Client) request(how state, l Lease, mac net.HardwareAddr) (*dhcpv4.DHCPv4, error) {
	address := l.Address.Addr().AsSlice()
	mods := []dhcpv4.Modifier{dhcpv4.WithHwAddr(mac), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest)}
	if how == reboot {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(address)))
	} else {
		mods = append(mods, dhcpv4.WithClientIP(address))
	}
	return dhcpv4.New(append(mods, c.modifiers()...)...)
}

// exchange opens a packet socket, which no route or firewall rule applies to: there may be no address yet, and the
// server may have one that is a site's here. It is for this exchange only: a packet socket is dead once its interface
// has been down.
func (c *Client) exchange(how state, l Lease, tries int, f func(*nclient4.Client, net.HardwareAddr) error) error {
	ifc, err := c.ethernet()
	if err != nil {
		return err
	}

	o := rawudp.Options{
		Interface: c.Interface, Local: netip.AddrPortFrom(netip.IPv4Unspecified(), nclient4.ClientPort),
	}
	if how == renew || how == rebind {
		o = l.socketOptions(nclient4.ClientPort)
		// The kernel gets a copy of what is sent to the lease's address. Without a socket it would answer with ICMP.
		if taken, err := listenOn(c.Interface, o.Local); err == nil {
			defer taken.Close()
		}
	}
	conn, err := rawudp.Listen(o)
	if err != nil {
		return err
	}
	timeout := nclient4.WithTimeout(c.spread(c.timeout()))
	x, err := nclient4.NewWithConn(conn, ifc.HardwareAddr, timeout, nclient4.WithRetry(tries))
	if err != nil {
		conn.Close()
		return err
	}
	defer x.Close()
	return f(x, ifc.HardwareAddr)
}

// Socket says how servers of the lease are reached: by its interface, from its address, whatever routes there are.
func (l Lease) Socket() rawudp.Options { return l.socketOptions(0) }

func (l Lease) socketOptions(port uint16) rawudp.Options {
	o := rawudp.Options{
		Interface: l.Interface, Local: netip.AddrPortFrom(l.Address.Addr(), port), Network: l.Address.Masked(),
	}
	if len(l.Gateways) > 0 {
		o.Gateway = l.Gateways[0]
	}
	return o
}

func (c *Client) ethernet() (*net.Interface, error) {
	ifc, err := net.InterfaceByName(c.Interface)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", c.Interface, err)
	case ifc.Flags&net.FlagUp == 0:
		return nil, fmt.Errorf("%s is down", c.Interface)
	case len(ifc.HardwareAddr) != 6:
		return nil, fmt.Errorf("%s is not an Ethernet interface", c.Interface)
	}
	return ifc, nil
}

func listenOn(iface string, a netip.AddrPort) (net.PacketConn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "dhcp")
	defer f.Close() // FilePacketConn duplicates the descriptor
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

// Option is an option that a provider asks for, as it is sent.
type Option struct {
	Code  uint8
	Value []byte
}

// Equal reports whether they are the same.
func (o Option) Equal(p Option) bool { return o.Code == p.Code && bytes.Equal(o.Value, p.Value) }

// modifiers are what every message has: what leaseOf reads is asked for, and the options of the config are sent.
func (c *Client) modifiers() []dhcpv4.Modifier {
	mods := []dhcpv4.Modifier{
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionClasslessStaticRoute,
			dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer),
		dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(nclient4.MaxMessageSize)),
	}
	for _, o := range c.Options {
		mods = append(mods, dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(o.Code), o.Value))
	}
	return mods
}
