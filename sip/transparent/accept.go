package transparent

import (
	"fmt"
	"net"
	"net/netip"
	"os"
)

// acceptor is the loop of a TCP listener.
type acceptor struct {
	r *Relay
	source
	listener *net.TCPListener
	beat     beat
}

// newAcceptor makes an acceptor of a duplicate of f.
func newAcceptor(r *Relay, s source, f *os.File) (*acceptor, error) {
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("accept from it: %w", err)
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("it is not a TCP socket")
	}
	return &acceptor{r: r, source: s, listener: tcp}, nil
}

// run accepts until the listener is closed. Errors are those of single connections (the peer has gone), or of a lack
// that passes (descriptors, memory).
func (a *acceptor) run() error {
	for {
		a.beat.wait()
		conn, err := a.listener.AcceptTCP()
		a.beat.work(a.r.now())
		switch {
		case err == nil:
			a.take(conn)
		case over(err):
			return nil
		default:
			a.r.counts.add(acceptFailed)
			a.r.pause()
		}
	}
}

// take starts to carry an accepted connection. TPROXY leaves the destination as the socket's own address.
func (a *acceptor) take(conn *net.TCPConn) {
	from, to := addressOf(conn.RemoteAddr()), addressOf(conn.LocalAddr())
	why := a.refuses(from, to)
	if why == none {
		p, err := newPair(a.r, from, to, a.near, conn)
		if err != nil {
			why = acceptFailed
		} else {
			why = a.r.admit(p, a.maxPerSource)
		}
	}
	if why != none {
		a.r.counts.add(why)
		reset(conn)
		return
	}
	a.r.counts.add(accepted)
}

func addressOf(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	at := tcp.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// reset closes a connection so that its peer sees that it failed, and nothing of it stays in TIME_WAIT.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	conn.Close()
}
