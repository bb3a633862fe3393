package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"ringway/process"
	"ringway/sip/hep"
	"ringway/sip/transparent"
)

// homer sends what is kept of messages to a Homer server. Datagrams that cannot be sent at once are lost, and counted.
type homer struct {
	fd      int
	encoder *hep.Encoder
	buffer  []byte
}

// Homer says where messages are sent to.
type Homer struct {
	Server netip.AddrPort `json:"server,omitzero"` // invalid: nowhere
	Agent  uint32         `json:"agent,omitempty"`
}

// useHomer opens the way to another server, or closes it. open asks the daemon for a socket that is connected to it.
func (c *core) useHomer(h Homer, open func(netip.AddrPort) (int, error)) error {
	c.mu.Lock()
	same := c.homerIs == h
	c.mu.Unlock()
	if same {
		return nil
	}
	var next *homer
	if h.Server.IsValid() {
		e, err := hep.NewEncoder(h.Agent, "")
		if err != nil {
			return err
		}
		fd, err := open(h.Server)
		if err != nil {
			return fmt.Errorf("reach the Homer server %s: %w", h.Server, err)
		}
		next = &homer{fd: fd, encoder: e}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.homer != nil {
		process.Close(c.homer.fd)
	}
	c.homer, c.homerIs = next, h
	return nil
}

// mirror sends a message that was made safe to keep to the Homer server.
func (c *core) mirror(now time.Time, callID string, m *transparent.Message) {
	if c.homer == nil {
		return
	}
	h := c.homer
	b, err := h.encoder.Append(h.buffer[:0], &hep.Packet{
		At: now, From: m.From, To: m.To, Stream: m.Transport != transparent.UDP, Call: callID,
		Text: c.redactor.Redact(m.SIP, m.Reason),
	})
	h.buffer = b
	if err == nil {
		err = unix.Sendto(h.fd, b, unix.MSG_DONTWAIT, nil)
	}
	if errors.Is(err, unix.ECONNREFUSED) { // of the datagram before
		err = unix.Sendto(h.fd, b, unix.MSG_DONTWAIT, nil)
	}
	if err != nil {
		c.unmirrored.Add(1)
		return
	}
	c.mirrored.Add(1)
}

// OpenHomer opens a socket to a Homer server, in the network namespace of the calling thread. Its packets are data.
func OpenHomer(server netip.AddrPort) (fd int, err error) {
	domain := unix.AF_INET6
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: server.Addr().As16(), Port: int(server.Port())}
	if server.Addr().Is4() {
		domain, to = unix.AF_INET, &unix.SockaddrInet4{Addr: server.Addr().As4(), Port: int(server.Port())}
	}
	fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, to); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
