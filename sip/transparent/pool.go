package transparent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// pool keeps fresh sockets of each kind that the listeners need, so that a message seldom waits for the daemon.
type pool struct {
	r       *Relay
	sockets [socketKinds]chan int
	failing [socketKinds]atomic.Bool // the latest Open failed: waiting is useless
	refills sync.WaitGroup
	filled  chan struct{} // closed when there are sockets of each kind, or Open has failed once
}

const (
	firstOpenPause = 20 * time.Millisecond
	lastOpenPause  = time.Second
)

func newPool(r *Relay) *pool {
	p := &pool{r: r, filled: make(chan struct{})}
	for i := range p.sockets {
		p.sockets[i] = make(chan int, r.config.Limits.Fresh)
	}
	return p
}

// start opens sockets until ctx ends.
func (p *pool) start(ctx context.Context) {
	var first sync.WaitGroup
	for _, kind := range p.r.kinds() {
		first.Add(1)
		p.refills.Go(func() { p.refill(ctx, kind, sync.OnceFunc(first.Done)) })
	}
	p.refills.Go(func() {
		first.Wait()
		close(p.filled)
	})
}

// kinds are those that may be needed: of every transport and family that a listener has. An imported connection
// of another kind has its sockets, or is reset.
func (r *Relay) kinds() (kinds []SocketKind) {
	have := map[SocketKind]bool{}
	add := func(t Transport, s source) {
		for _, inside := range []bool{false, true} {
			kind := SocketKind{t, s.at.Addr().Is6(), inside}
			if !have[kind] {
				have[kind] = true
				kinds = append(kinds, kind)
			}
		}
	}
	for _, rd := range r.readers {
		add(UDP, rd.source)
	}
	for _, a := range r.acceptors {
		add(TCP, a.source)
	}
	return kinds
}

// refill keeps the channel of a kind full. It holds one socket more, which waits for a place there. It calls tried
// after each attempt.
func (p *pool) refill(ctx context.Context, kind SocketKind, tried func()) {
	sockets, pause := p.sockets[kind.index()], firstOpenPause
	defer tried()
	for ctx.Err() == nil {
		fds, err := p.open(ctx, kind, max(1, cap(sockets)-len(sockets)))
		if ctx.Err() == nil && err != nil {
			p.failed(kind, err)
		}
		if len(fds) == 0 {
			tried()
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, lastOpenPause)
			continue
		}
		pause = firstOpenPause
		if p.failing[kind.index()].Swap(false) {
			p.r.config.Log.Info("egress sockets are available again", "kind", kind)
		}
		for _, fd := range fds {
			select {
			case sockets <- fd:
			case <-ctx.Done():
				unix.Close(fd)
			}
		}
		tried()
	}
}

// open gets sockets and prepares them. It may give some and an error.
func (p *pool) open(ctx context.Context, kind SocketKind, n int) ([]int, error) {
	fds, err := p.r.config.Open(ctx, kind, n)
	if err == nil && len(fds) == 0 {
		err = errors.New("none was given")
	}
	ready := fds[:0]
	for _, fd := range fds {
		if e := prepare(fd, kind); e != nil {
			unix.Close(fd)
			err = e
			continue
		}
		ready = append(ready, fd)
	}
	return ready, err
}

func (p *pool) failed(kind SocketKind, err error) {
	p.r.counts.add(openFailed)
	if !p.failing[kind.index()].Swap(true) { // once, until it works again
		p.r.config.Log.Warn("cannot open egress sockets; will retry", "kind", kind, "reason", err)
	}
}

// prepare sets the options of a fresh socket that take no privilege.
func prepare(fd int, kind SocketKind) error {
	// Two relays during an upgrade, and for TCP two connections of one source port, bind the same address.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fmt.Errorf("prepare an egress socket: set SO_REUSEADDR: %w", err)
	}
	if kind.Transport == TCP {
		return nil
	}

	// What is sent to this machine's own addresses may arrive here. Nobody reads it, so nothing must wait here
	// either.
	nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	program := unix.SockFprog{Len: uint16(len(nothing)), Filter: &nothing[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		return fmt.Errorf("prepare an egress socket: set a filter that drops all: %w", err)
	}

	// A router on the way may fragment what is too long for it: the error would go to the sender's address, which
	// is not ours, so that this machine never learns the path's MTU.
	level, option, value := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT
	if kind.V6 {
		level, option, value = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT
	}
	if err := unix.SetsockoptInt(fd, level, option, value); err != nil {
		return fmt.Errorf("prepare an egress socket: turn off path MTU discovery: %w", err)
	}
	return nil
}

// take gives a fresh socket, which is the caller's then. It waits for one as long as Open works, unless stop is
// closed.
func (p *pool) take(kind SocketKind, wait time.Duration, stop <-chan struct{}) (fd int, ok bool) {
	sockets := p.sockets[kind.index()]
	select {
	case fd = <-sockets:
		return fd, true
	default:
	}
	if p.failing[kind.index()].Load() {
		return -1, false
	}

	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case fd = <-sockets:
		return fd, true
	case <-t.C:
	case <-stop:
	}
	return -1, false
}

// giveBack returns a socket that was taken and not bound.
func (p *pool) giveBack(kind SocketKind, fd int) {
	select {
	case p.sockets[kind.index()] <- fd:
	default:
		unix.Close(fd)
	}
}

// close closes what is left, after the context of start has ended and nobody takes sockets any more.
func (p *pool) close() {
	p.refills.Wait()
	for _, sockets := range p.sockets {
		for len(sockets) > 0 {
			unix.Close(<-sockets)
		}
	}
}
