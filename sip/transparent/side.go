package transparent

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A peer that does not answer for two minutes is gone: the TCP connections of both sides end then, whether they are
// idle (keep-alives) or have data under way. Without a relay SIP would have given up after 32 s (RFC 3261, timer B);
// much longer, and a phone goes on sending to a relay that acknowledges for a dead PBX.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4}

const userTimeout = 2 * time.Minute

// side is one TCP connection of a pair. Nothing else reads from it or writes to it.
type side struct {
	p    *pair
	conn *net.TCPConn // nil: not dialed yet
	raw  syscall.RawConn
	tls  *tls.Conn // on conn; nil: what it carries is not decrypted

	// Reading, by one direction.
	into    *buffer
	err     error
	receive func(fd uintptr) bool

	// Writing, by both directions: replies go back.
	mu     sync.Mutex
	unsent []byte // left when the pair was paused; first to be written
}

func newSide(p *pair) *side {
	s := &side{p: p}
	s.receive = s.receiveInto
	return s
}

// tune sets what both sides of a pair have.
func tune(conn *net.TCPConn, raw syscall.RawConn) {
	_ = conn.SetNoDelay(true)
	_ = conn.SetKeepAliveConfig(keepAlive)
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	})
}

// read waits until the peer has sent something, and adds it to b, which takes no memory before that.
func (s *side) read(b *buffer) error {
	if s.tls != nil {
		return s.readTLS(b)
	}
	s.into, s.err = b, nil
	if err := s.raw.Read(s.receive); err != nil {
		return err
	}
	return s.err
}

// readTLS holds memory while it waits: nobody can know whether TLS has something decrypted left.
func (s *side) readTLS(b *buffer) error {
	space, ok := b.space()
	if !ok {
		return failure(memoryExhausted)
	}
	n, err := s.tls.Read(space)
	b.added(n)
	if n > 0 { // also where the end came right behind it, which the next read finds again
		return nil
	}
	return tlsError(err)
}

// tlsError tells what ended a connection from what waits.
func tlsError(err error) error {
	var op *net.OpError
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case errors.As(err, &op) && op.Op != "remote error" && op.Op != "local error":
		return failure(peerReset)
	}
	return failure(tlsBroken)
}

// receiveInto is called when there may be something to read. It returns false if there is not.
func (s *side) receiveInto(fd uintptr) bool {
	space, ok := s.into.space()
	if !ok {
		s.err = failure(memoryExhausted)
		return true
	}
	n, err := unix.Read(int(fd), space)
	for err == unix.EINTR {
		n, err = unix.Read(int(fd), space)
	}
	s.into.added(max(n, 0))
	switch {
	case err == unix.EAGAIN:
		return false
	case err != nil:
		s.err = failure(peerReset)
	case n == 0:
		s.err = io.EOF
	}
	return true
}

// write sends b to the peer, as one piece among what both directions write. When the pair is paused it keeps what is
// unsent, and returns errPaused: b is taken in any case.
func (s *side) write(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.flushLocked(); err != nil {
		if errors.Is(err, errPaused) {
			s.unsent = append(s.unsent, b...)
		}
		return err
	}
	n, err := s.send(b)
	if errors.Is(err, errPaused) {
		s.unsent = append(s.unsent, b[n:]...)
	}
	return err
}

// flush sends what an earlier process could not.
func (s *side) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flushLocked()
}

func (s *side) flushLocked() error {
	if len(s.unsent) == 0 {
		return nil
	}
	n, err := s.send(s.unsent)
	if s.unsent = s.unsent[n:]; len(s.unsent) == 0 {
		s.unsent = nil
	}
	return err
}

// send returns errPaused or a failure unless all of b was sent.
func (s *side) send(b []byte) (n int, err error) {
	if err := s.p.arm(s.conn.SetWriteDeadline, time.Now().Add(s.p.r.config.Limits.Stall)); err != nil {
		return 0, err
	}
	if s.tls != nil {
		n, err = s.tls.Write(b)
		_ = s.p.arm(s.conn.SetWriteDeadline, time.Time{}) // reading may have to answer
	} else {
		n, err = s.conn.Write(b)
	}
	switch {
	case err == nil:
		return n, nil
	case !errors.Is(err, os.ErrDeadlineExceeded):
		return n, failure(peerReset)
	case s.p.isPaused():
		return n, errPaused
	}
	return n, failure(stalled)
}

// closeWrite passes on that the other peer sends no more.
func (s *side) closeWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.flushLocked(); err != nil {
		return err
	}
	if s.tls != nil {
		_ = s.tls.CloseWrite() // close_notify; if it cannot be sent, neither can the end of the connection
	}
	// A connection that both ends have closed already is not one: the relay before this one has passed it on.
	if err := s.conn.CloseWrite(); err != nil && !errors.Is(err, unix.ENOTCONN) {
		return failure(peerReset)
	}
	return nil
}

// close ends the connection so that the peer sees a regular end.
func (s *side) close() {
	if s.tls != nil {
		_ = s.tls.Close()
		return
	}
	s.conn.Close()
}

// detach gives a descriptor of the connection to another process, and closes this one's. The connection stays.
func (s *side) detach() (fd int, err error) {
	if s.conn == nil {
		return -1, nil
	}
	fd = -1
	controlErr := s.raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) })
	if err = errors.Join(controlErr, err); err != nil {
		return -1, err
	}
	s.conn.Close()
	return fd, nil
}
