package transparent

import (
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// dial connects the far side, unless an earlier process has. It returns nil, errPaused or a failure.
func (p *pair) dial() error {
	if p.dialed {
		return nil
	}
	if p.sides[far].conn == nil {
		if err := p.beginDial(); err != nil {
			return err
		}
	}
	if err := p.awaitDial(); err != nil {
		return err
	}
	p.dialed = true
	p.r.counts.add(dialed)
	return nil
}

// beginDial sends the first packet of a connection from the sender's own address and port.
func (p *pair) beginDial() error {
	kind := SocketKind{TCP, p.to.Addr().Is6(), p.r.config.Inside(p.to.Addr())}
	fd, ok := p.r.fresh.take(kind, p.r.config.Limits.Dial, p.stop)
	if !ok {
		if p.isPaused() {
			return errPaused
		}
		return failure(noFreshSocket)
	}
	if unix.Bind(fd, sockaddr(p.from)) != nil { // a port below 1024, or one that a server of this machine has
		p.r.fresh.giveBack(kind, fd)
		return failure(bindFailed)
	}
	if err := p.firstPacket(fd); err != nil {
		unix.Close(fd)
		return err
	}
	conn, err := tcpConn(fd)
	if err != nil {
		return failure(dialFailed)
	}
	return p.setConn(far, conn)
}

// A sender that resets its connection and opens the same again at once may be faster than the relay, whose own
// connection has the same addresses and is closed a moment later.
const (
	takenPause    = 5 * time.Millisecond
	takenAttempts = 40
)

// firstPacket begins to connect a bound socket.
func (p *pair) firstPacket(fd int) error {
	for attempt := 1; ; attempt++ {
		_, err := p.connect(fd)
		if err != failure(dialAddressTaken) || attempt == takenAttempts {
			return err
		}
		if err := p.pauseFor(takenPause); err != nil {
			return err
		}
	}
}

// connect begins to connect a socket, or looks how far it has come: a second call to connect(2) gives the result of
// the first one, as soon as there is one.
func (p *pair) connect(fd int) (connected bool, err error) {
	switch err := unix.Connect(fd, sockaddr(p.to)); {
	case err == nil, errors.Is(err, unix.EISCONN):
		return true, nil
	case errors.Is(err, unix.EINPROGRESS), errors.Is(err, unix.EALREADY), errors.Is(err, unix.EINTR):
		return false, nil
	case errors.Is(err, unix.ECONNREFUSED):
		return false, failure(dialRefused)
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.ECONNABORTED): // it had accepted
		return false, failure(peerReset)
	case errors.Is(err, unix.ETIMEDOUT):
		return false, failure(dialTimedOut)
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EACCES),
		errors.Is(err, unix.EPERM):
		return false, failure(dialUnreachable)
	case errors.Is(err, unix.EADDRNOTAVAIL): // an earlier connection has the same addresses, or is in TIME_WAIT
		return false, failure(dialAddressTaken)
	default:
		return false, failure(dialFailed)
	}
}

// awaitDial waits until the far end has accepted the connection.
func (p *pair) awaitDial() error {
	deadline := time.Now().Add(p.r.config.Limits.Dial)
	for {
		if err := p.arm(p.sides[far].conn.SetWriteDeadline, deadline); err != nil {
			return err
		}
		var connected bool
		var result error
		err := p.sides[far].raw.Write(func(fd uintptr) bool {
			connected, result = p.connect(int(fd))
			return connected || result != nil
		})
		switch {
		case err == nil:
			return result
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return failure(dialFailed)
		case p.isPaused():
			return errPaused
		case !time.Now().Before(deadline):
			return failure(dialTimedOut)
		}
	}
}

// isUnreachable reports whether a failed dial is the destination's fault, and not this machine's.
func isUnreachable(err error) bool {
	switch err {
	case failure(dialRefused), failure(dialTimedOut), failure(dialUnreachable):
		return true
	}
	return false
}

// tcpConn makes a connection of fd, and closes fd.
func tcpConn(fd int) (*net.TCPConn, error) {
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, errors.New("it is not a TCP connection")
	}
	return tcp, nil
}
