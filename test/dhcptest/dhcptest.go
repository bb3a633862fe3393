// Package dhcptest is a DHCP server that answers as a test wants: wrongly, late, or with what no client should take.
// It serves the network namespace of the calling thread.
package dhcptest

import (
	"context"
	"net"
	"syscall"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

// Answer is one message to a client: by broadcast, or to where the client's message came from.
type Answer struct {
	Message *dhcpv4.DHCPv4
	Unicast bool
}

// Listen opens the server's socket on a device.
func Listen(device string) (net.PacketConn, error) {
	var l net.ListenConfig
	l.Control = func(_, _ string, c syscall.RawConn) error {
		var err error
		controlErr := c.Control(func(fd uintptr) {
			if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err == nil {
				err = unix.BindToDevice(int(fd), device)
			}
		})
		if controlErr != nil {
			return controlErr
		}
		return err
	}
	return l.ListenPacket(context.Background(), "udp4", ":67")
}

// Serve answers clients until the socket is closed.
func Serve(conn net.PacketConn, answers func(*dhcpv4.DHCPv4) []Answer) {
	b := make([]byte, 2000)
	for {
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		request, err := dhcpv4.FromBytes(b[:n])
		if err != nil {
			continue
		}
		for _, a := range answers(request) {
			var to net.Addr = &net.UDPAddr{IP: net.IPv4bcast, Port: 68}
			if a.Unicast {
				to = from
			}
			_, _ = conn.WriteTo(a.Message.ToBytes(), to)
		}
	}
}

// IP reads an IPv4 address.
func IP(s string) net.IP { return net.ParseIP(s).To4() }

// Reply is a server's message: an address in a /24, by a server that is also the gateway, for an hour.
func Reply(
	request *dhcpv4.DHCPv4, kind dhcpv4.MessageType, address, server string, mods ...dhcpv4.Modifier,
) *dhcpv4.DHCPv4 {
	p, err := dhcpv4.NewReplyFromRequest(request, append([]dhcpv4.Modifier{
		dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(IP(address)), dhcpv4.WithLeaseTime(3600),
		dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(IP(server))),
		dhcpv4.WithOption(dhcpv4.OptRouter(IP(server))),
	}, mods...)...)
	if err != nil {
		panic(err) // of the identifier, for which no randomness was found
	}
	return p
}

// KindOf is what a server answers a request with: an offer, or an acknowledgement.
func KindOf(request *dhcpv4.DHCPv4) dhcpv4.MessageType {
	if request.MessageType() == dhcpv4.MessageTypeDiscover {
		return dhcpv4.MessageTypeOffer
	}
	return dhcpv4.MessageTypeAck
}
