package dhcp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"golang.org/x/sys/unix"
)

// state is one in which a lease is asked for again; each makes another request (RFC 2131, section 4.3.6,
// table 4).
type state string

const (
	reboot  state = "init-reboot" // broadcast, requested address, no client address, no server
	renew   state = "renewing"    // to the server only, client address
	rebind  state = "rebinding"   // broadcast, client address
	expired state = "expired"     // nothing is asked for
)

// ask asks again for a lease that the client has or had.
func (c *Client) ask(ctx context.Context, how state, l Lease) (next Lease, err error) {
	given := time.Now()
	ask := func(x *nclient4.Client, mac net.HardwareAddr, to *net.UDPAddr) error {
		address := l.Address.Addr().AsSlice()
		kind := dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest)
		mods := []dhcpv4.Modifier{dhcpv4.WithHwAddr(mac), kind, requestedOptions}
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
		next, err = leaseOf(c.Interface, answer, given, c.maxHold())
		return err
	}

	if how == renew {
		err = c.unicast(l, func(x *nclient4.Client, mac net.HardwareAddr) error {
			return ask(x, mac, &net.UDPAddr{IP: l.Server.AsSlice(), Port: nclient4.ServerPort})
		})
		return next, err
	}
	n := tries
	if how == reboot {
		n = rebootTries
	}
	err = c.exchange(n, func(x *nclient4.Client, mac net.HardwareAddr) error {
		return ask(x, mac, nclient4.DefaultServers)
	})
	return next, err
}

// exchange opens a packet socket: there may be no address yet, and no firewall rule applies. It is for this
// exchange only: a packet socket is dead once its interface has been down.
func (c *Client) exchange(tries int, f func(*nclient4.Client, net.HardwareAddr) error) error {
	ifc, err := c.ethernet()
	if err != nil {
		return err
	}
	timeout := nclient4.WithTimeout(c.spread(c.timeout()))
	x, err := nclient4.New(c.Interface, timeout, nclient4.WithRetry(tries))
	if err != nil {
		return fmt.Errorf("open a packet socket on %s: %w", c.Interface, err)
	}
	defer x.Close()
	return f(x, ifc.HardwareAddr)
}

// unicast opens a UDP socket on the leased address, which must be on the interface.
func (c *Client) unicast(l Lease, f func(*nclient4.Client, net.HardwareAddr) error) error {
	ifc, err := c.ethernet()
	if err != nil {
		return err
	}
	conn, err := listenOn(c.Interface, netip.AddrPortFrom(l.Address.Addr(), nclient4.ClientPort))
	if err != nil {
		return fmt.Errorf("open a socket on %s: %w", l.Address.Addr(), err)
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

// requestedOptions are those that leaseOf reads.
var requestedOptions = dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionClasslessStaticRoute,
	dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer)
