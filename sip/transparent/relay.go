package transparent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ringway/sip/message"
)

// Relay carries what comes to its listeners. Make one with New.
type Relay struct {
	config  Config
	began   time.Time // beats and times of activity count from here
	counts  counters
	memory  memory
	scratch sync.Pool // of *scratch

	readers   []*reader
	acceptors []*acceptor
	fresh     *pool
	egress    *egressTable
	gate      *gate
	unread    unreadServers

	ready    chan struct{} // closed when Run reads
	quit     chan struct{} // closed when the relay is to end
	quitOnce sync.Once
	ended    chan struct{} // closed when Run has returned, or will never run
	endOnce  sync.Once

	loops    sync.WaitGroup // of listeners
	carriers sync.WaitGroup // of pairs

	mu      sync.Mutex // guards what follows
	running bool
	ending  bool // Run must not begin any more
	closed  bool // no pair is added any more
	pairs   map[*pair]struct{}
	sources map[netip.Addr]int // pairs of each sender
}

var (
	errTwice  = errors.New("run a transparent relay: it was run before")
	errClosed = errors.New("transparent relay is closed")
)

// New takes over listeners. Nothing is read before Run.
func New(c Config) (*Relay, error) {
	if c.Handle == nil || c.Open == nil {
		return nil, errors.New("make a transparent relay: Handle and Open must be given")
	}
	r := &Relay{
		config: c.withDefaults(), began: time.Now(),
		ready: make(chan struct{}), quit: make(chan struct{}), ended: make(chan struct{}),
		pairs: map[*pair]struct{}{}, sources: map[netip.Addr]int{},
	}
	r.memory.limit = r.config.Limits.Memory
	r.scratch.New = func() any { return new(scratch) }
	r.gate = newGate(r.config.Limits)
	r.fresh = newPool(r)
	r.egress = newEgressTable(r)

	for _, l := range c.Listeners {
		if err := r.addListener(l); err != nil {
			r.closeListeners()
			return nil, fmt.Errorf("make a transparent relay: listener %d: %w", l.FD, err)
		}
	}
	return r, nil
}

// addListener makes a loop for a listener.
func (r *Relay) addListener(l Listener) error {
	socketType, err := unix.GetsockoptInt(l.FD, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("read its type: %w", err)
	}
	name, err := unix.Getsockname(l.FD)
	if err != nil {
		return fmt.Errorf("read its address: %w", err)
	}
	at, ok := addrPort(name)
	if !ok {
		return fmt.Errorf("its family %T is not IP", name)
	}
	from := source{near: l.Near, at: at, maxPerSource: l.PerSource}
	set(&from.maxPerSource, r.config.Limits.PerSource)

	duplicate, err := unix.FcntlInt(uintptr(l.FD), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("duplicate it: %w", err)
	}
	f := os.NewFile(uintptr(duplicate), "listener")
	defer f.Close()
	switch socketType {
	case unix.SOCK_DGRAM:
		rd, err := newReader(r, from, f)
		if err != nil {
			return err
		}
		r.readers = append(r.readers, rd)
	case unix.SOCK_STREAM:
		a, err := newAcceptor(r, from, f)
		if err != nil {
			return err
		}
		r.acceptors = append(r.acceptors, a)
	default:
		return fmt.Errorf("its type %d is neither UDP's nor TCP's", socketType)
	}
	return nil
}

// source is what is known of all that a listener brings.
type source struct {
	near         bool
	at           netip.AddrPort // the listener's own address
	maxPerSource int            // connections of one address at once
}

func addrPort(name unix.Sockaddr) (netip.AddrPort, bool) {
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), true
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)), true
	}
	return netip.AddrPort{}, false
}

// refuses says why something that came by the listener is not relayed, by its sender and destination; none: it is.
func (s *source) refuses(from, to netip.AddrPort) event {
	switch {
	case to.Port() == s.at.Port() && (s.at.Addr().IsUnspecified() || s.at.Addr() == to.Addr()):
		return sentToRelay // not by TPROXY: it would come back to the listener, over and over
	case !usable(from) || !usable(to):
		return unusableAddress
	}
	return none
}

// usable reports whether a router may carry packets from and to an address.
func usable(a netip.AddrPort) bool {
	ip := a.Addr()
	return a.Port() != 0 && !ip.IsUnspecified() && !ip.IsLoopback() && !ip.IsMulticast() && !ip.IsLinkLocalUnicast()
}

// longestStart is how long Run waits for the first sockets before it reads all the same.
const longestStart = time.Second

// Run carries until ctx ends, Close or Export is called, or a listener fails for good. It is called once.
func (r *Relay) Run(ctx context.Context) error {
	r.mu.Lock()
	if r.running || r.ending {
		defer r.mu.Unlock()
		if r.running {
			return errTwice
		}
		return nil
	}
	r.running = true
	r.mu.Unlock()
	defer r.endOnce.Do(func() { close(r.ended) })

	opening, stopOpening := context.WithCancel(context.Background())
	r.fresh.start(opening)
	select { // what came while nobody read must not be dropped for want of sockets
	case <-r.fresh.filled:
	case <-time.After(longestStart):
	case <-ctx.Done():
	case <-r.quit:
	}
	failed := r.startLoops()
	close(r.ready)

	var err error
	select {
	case <-ctx.Done():
	case <-r.quit:
	case err = <-failed:
	}
	r.stop()
	stopOpening()
	r.release()
	return err
}

// Ready is closed when Run reads from the listeners.
func (r *Relay) Ready() <-chan struct{} { return r.ready }

// startLoops starts the listeners' loops. It returns where they report that they cannot go on.
func (r *Relay) startLoops() <-chan error {
	failed := make(chan error, len(r.readers)+len(r.acceptors))
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ending {
		return failed
	}
	loop := func(run func() error) {
		r.loops.Go(func() {
			if err := run(); err != nil {
				failed <- err
			}
		})
	}
	for _, rd := range r.readers {
		loop(rd.run)
	}
	for _, a := range r.acceptors {
		loop(a.run)
	}
	return failed
}

// Close ends the relay. TCP connections are reset: they exist only here, and both ends have to begin again. Close
// returns when Run has.
func (r *Relay) Close() {
	r.quitOnce.Do(func() { close(r.quit) })
	r.mu.Lock()
	r.ending = true
	running := r.running
	r.mu.Unlock()
	if !running {
		r.endOnce.Do(func() {
			r.stop()
			r.release()
			close(r.ended)
		})
	}
	<-r.ended
}

// stop ends all loops, and every pair that Export has not taken.
func (r *Relay) stop() {
	r.quitOnce.Do(func() { close(r.quit) })
	r.stopListening()
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	for _, p := range r.openPairs() {
		p.abort(failure(relayClosed))
	}
	r.carriers.Wait()
}

// release closes the sockets that nobody uses any more.
func (r *Relay) release() {
	r.fresh.close()
	r.egress.close()
}

// stopListening ends the listeners' loops. What was received has gone on; what was not waits in the sockets.
func (r *Relay) stopListening() {
	r.closeListeners()
	r.loops.Wait()
}

func (r *Relay) closeListeners() {
	for _, rd := range r.readers {
		rd.conn.Close()
	}
	for _, a := range r.acceptors {
		a.listener.Close()
	}
}

func (r *Relay) openPairs() []*pair {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*pair, 0, len(r.pairs))
	for p := range r.pairs {
		all = append(all, p)
	}
	return all
}

// Reset ends the connections between these ends, since the line that they go over is gone: both peers see a reset, and
// nothing of what is on its way goes on. It returns how many there were.
func (r *Relay) Reset(ends []Ends) (n int) {
	named := map[Ends]bool{}
	for _, e := range ends {
		named[e] = true
	}
	for _, p := range r.openPairs() {
		if named[Ends{p.from, p.to}] {
			p.abort(failure(lineGone))
			n++
		}
	}
	return n
}

// Ends are who connected, and to whom.
type Ends struct {
	From netip.AddrPort `json:"from"`
	To   netip.AddrPort `json:"to"`
}

// unlimited is for a pair that another process has carried.
const unlimited = -1

// admit counts a pair and starts it, or says why not. perSource is how many its sender may have.
func (r *Relay) admit(p *pair, perSource int) event {
	r.mu.Lock()
	defer r.mu.Unlock()
	source := p.from.Addr()
	switch {
	case r.closed:
		return relayClosed
	case perSource != unlimited && len(r.pairs) >= r.config.Limits.Connections:
		return tooManyConnections
	case perSource != unlimited && r.sources[source] >= perSource:
		return tooManyOfSource
	}
	r.pairs[p] = struct{}{}
	r.sources[source]++
	r.carriers.Go(p.run)
	return none
}

// forget takes back what admit counted.
func (r *Relay) forget(p *pair) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, there := r.pairs[p]; !there {
		return
	}
	delete(r.pairs, p)
	source := p.from.Addr()
	if r.sources[source]--; r.sources[source] == 0 {
		delete(r.sources, source)
	}
}

// now is the time since the relay was made, in nanoseconds.
func (r *Relay) now() int64 { return int64(time.Since(r.began)) }

// beat is when a loop began with what it works on, as now says; 0: it waits for input.
type beat struct{ since atomic.Int64 }

func (b *beat) work(now int64) { b.since.Store(max(now, 1)) }
func (b *beat) wait()          { b.since.Store(0) }

// Beat is how long the loop that has taken longest has worked on one message or one new connection; 0 if all
// wait for input. A Handler that hangs shows here, a peer that does not read does not. An owner who reads it
// every 50 ms knows within 200 ms that the relay hangs.
func (r *Relay) Beat() time.Duration {
	now, oldest := r.now(), int64(0)
	look := func(b *beat) {
		if since := b.since.Load(); since != 0 {
			oldest = max(oldest, now-since)
		}
	}
	for _, rd := range r.readers {
		look(&rd.beat)
	}
	for _, a := range r.acceptors {
		look(&a.beat)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.pairs {
		for _, d := range p.directions {
			look(&d.beat)
		}
	}
	return time.Duration(oldest)
}

// pause waits before a loop tries again what failed, so that an error that stays does not take a core.
func (r *Relay) pause() {
	t := time.NewTimer(10 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.quit:
	}
}

// over reports whether a loop ends because the relay does.
func over(err error) bool { return errors.Is(err, net.ErrClosed) }

// scratch is what judging one message on TCP takes; it is 3 KB.
type scratch struct {
	message Message
	sip     message.Message
}
