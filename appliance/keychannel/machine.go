package keychannel

import (
	"context"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"ringway/qos"
)

// machine opens sockets of this machine.
type machine struct{}

func (machine) Listen(ctx context.Context, device string, local netip.AddrPort) (net.Listener, error) {
	l := net.ListenConfig{Control: control(device)}
	l.SetMultipathTCP(false)
	return l.Listen(ctx, "tcp", local.String())
}

func (machine) Dial(ctx context.Context, device string, local netip.Addr, remote netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{
		Control: control(device), LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0)),
		KeepAlive: -1, // the channel notices a silent far end itself, and sooner
	}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, "tcp", remote.String())
}

// control binds a socket to the device, and has its packets in the class of signalling.
func control(device string) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) (err error) {
		set := func(fd uintptr) {
			if err = unix.BindToDevice(int(fd), device); err != nil {
				return
			}
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(qos.MarkInner|qos.ClassMark(qos.Signalling)))
		}
		if failed := c.Control(set); failed != nil {
			return failed
		}
		return err
	}
}
