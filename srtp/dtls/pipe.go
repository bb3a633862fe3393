package dtls

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// pipe is the socket of one handshake, as the library sees it.
type pipe struct {
	peer net.Addr
	send func(datagram []byte)

	in     chan []byte
	left   int // bytes that it may still take: what is kept until a message is whole is bounded by that
	closed chan struct{}
	once   sync.Once
	muted  atomic.Bool

	mu      sync.Mutex
	expired chan struct{} // closed when reads end
}

func newPipe(peer net.Addr, send func([]byte)) *pipe {
	return &pipe{
		peer: peer, send: send, in: make(chan []byte, queued), left: maxReceived,
		closed: make(chan struct{}), expired: make(chan struct{}),
	}
}

// deliver takes over the datagram, unless the queue or the budget is full. One goroutine calls it.
func (p *pipe) deliver(datagram []byte) bool {
	if len(datagram) > p.left {
		return false
	}
	select {
	case p.in <- datagram:
		p.left -= len(datagram)
		return true
	default:
		return false
	}
}

// mute keeps the library from sending: it would say goodbye to a peer with whom the association goes on.
func (p *pipe) mute() { p.muted.Store(true) }

// ReadFrom returns a datagram.
func (p *pipe) ReadFrom(b []byte) (int, net.Addr, error) {
	p.mu.Lock()
	expired := p.expired
	p.mu.Unlock()
	select {
	case d := <-p.in:
		return copy(b, d), p.peer, nil
	case <-expired:
		return 0, nil, os.ErrDeadlineExceeded
	case <-p.closed:
		return 0, nil, net.ErrClosed
	}
}

// WriteTo sends a datagram to the peer, whoever the library names.
func (p *pipe) WriteTo(b []byte, _ net.Addr) (int, error) {
	select {
	case <-p.closed:
		return 0, net.ErrClosed
	default:
	}
	if !p.muted.Load() {
		p.send(b)
	}
	return len(b), nil
}

// SetReadDeadline ends reads where t has passed; with the zero time they wait again. The library asks for nothing
// else.
func (p *pipe) SetReadDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Now().Before(t) {
		return errors.ErrUnsupported
	}
	select {
	case <-p.expired:
		if t.IsZero() {
			p.expired = make(chan struct{})
		}
	default:
		if !t.IsZero() {
			close(p.expired)
		}
	}
	return nil
}

// SetDeadline is SetReadDeadline: writes do not wait.
func (p *pipe) SetDeadline(t time.Time) error { return p.SetReadDeadline(t) }

// SetWriteDeadline does nothing: writes do not wait.
func (p *pipe) SetWriteDeadline(time.Time) error { return nil }

// LocalAddr is of no use to anyone, but has to be there.
func (p *pipe) LocalAddr() net.Addr { return p.peer }

// Close ends reads and writes.
func (p *pipe) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

var _ net.PacketConn = (*pipe)(nil)
