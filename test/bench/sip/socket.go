package sip

import (
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"ringway/test/lab/host"
)

const (
	buffer = 32 << 20 // of a socket of the ends, so that what is lost is not lost by them
	// lookEvery is how long a receiver waits until it looks whether the trial is over.
	lookEvery = 20_000 // microseconds
)

// socket is one end's socket. It sends from any of its host's addresses.
type socket struct{ fd int }

// listen opens the port of signalling on a host.
func listen(h *host.Host) (s socket, err error) {
	err = h.Do(func() error {
		if s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer),
			unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, buffer),
			unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1),
			unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: lookEvery}),
			unix.Bind(s.fd, &unix.SockaddrInet4{Port: sipPort}),
		)
	})
	if err != nil {
		return s, fmt.Errorf("open a socket on %s: %w", h.Name, err)
	}
	return s, nil
}

func (s socket) close() { unix.Close(s.fd) }

// source is the control message that has a datagram leave from an address.
func source(a netip.Addr) []byte {
	info := unix.Inet4Pktinfo{Spec_dst: a.As4()}
	return unix.PktInfo4(&info)
}

// send stamps a message and sends it.
func (s socket) send(b, from []byte, to *unix.SockaddrInet4) error {
	stamp(b)
	_, err := unix.SendmsgN(s.fd, b, from, to, 0)
	return err
}

// received is one datagram.
type received struct {
	b    []byte
	from *unix.SockaddrInet4
	at   int64 // when it came
}

// receive waits for a datagram a moment. Without one, b is nil.
func (s socket) receive(b, control []byte) (r received, overflow uint32, err error) {
	n, size, _, from, err := unix.Recvmsg(s.fd, b, control, 0)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNREFUSED):
		return r, 0, nil
	case err != nil:
		return r, 0, fmt.Errorf("receive signalling: %w", err)
	}
	r.b = b[:n]
	r.from, _ = from.(*unix.SockaddrInet4)
	for rest := control[:size]; len(rest) >= unix.SizeofCmsghdr; {
		h, data, next, err := unix.ParseOneSocketControlMessage(rest)
		if err != nil {
			break
		}
		switch {
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_TIMESTAMPNS && len(data) >= 16:
			r.at = (*unix.Timespec)(unsafe.Pointer(&data[0])).Nano()
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_RXQ_OVFL && len(data) >= 4:
			overflow = *(*uint32)(unsafe.Pointer(&data[0]))
		}
		rest = next
	}
	return r, overflow, nil
}
