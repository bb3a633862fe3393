// Package realtime is Ringway's own forwarding core: all of WireGuard in userspace, made for voice. A locked
// thread takes a packet from its arrival to its departure without handing it over: no goroutine, channel or
// allocation is in between (outbound.go, inbound.go). Each direction has such a thread on each processor, and
// the first to wake takes what arrived (package turn).
//
// Everything but data packets is left to the control side, ordinary goroutines under one mutex: handshakes
// (handshake.go), timers (timers.go), configuration (configure.go), voice budgets (reserve.go). Both meet at
// atomic pointers and two rings of handshake messages. Keys are wiped when no thread can hold them any more
// (retire.go).
//
// The privileged daemon opens the descriptors (tunnel/descriptor) and makes the threads real-time. Of
// wireguard-go this package uses what that exports: cookies, time stamps, key derivation.
package realtime

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/ratelimiter"
	"golang.zx2c4.com/wireguard/tai64n"

	"ringway/tunnel"
	"ringway/tunnel/datagram"
	"ringway/tunnel/descriptor"
	"ringway/tunnel/ledger"
	"ringway/tunnel/turn"
	"ringway/tunnel/uapi"
)

// Options is what an engine is made from. New duplicates the files: the caller may close them, or keep them.
type Options struct {
	TUN        *os.File // IFF_TUN|IFF_NO_PI|IFF_VNET_HDR, attached to its device
	UDP4, UDP6 *os.File // bound; mark, TOS and buffers are set; one of them may be nil
	Class      tunnel.Class
	Bounds     tunnel.Bounds
	MTU        int // of the tunnel device, bytes
	Log        *slog.Logger

	// Alone: the engine has the process to itself. Forwarding threads are pinned (package turn), and the engine runs
	// the garbage collector.
	Alone bool
	// Threads of each direction, 1 to 4; 0: one for each processor, up to that many (package turn).
	Threads int
}

// outerHeader is tunnel.Outer, ready for a look-up: how packets look from outside.
type outerHeader struct {
	socket uint8     // TOS octet that the sockets put on packets by themselves
	tos    [64]uint8 // by inner DSCP
	padTo  int
}

// Engine is a running WireGuard device.
type Engine struct {
	class tunnel.Class
	log   *slog.Logger
	since time.Time
	name  string // of the tunnel device
	port  uint16
	mark  uint32 // of the sockets
	alone bool
	clock func() int64
	stamp func() tai64n.Timestamp

	tun         int
	udp         [2]int // IPv4, IPv6; -1: none
	threadsEach int    // of a direction; 0: as many as it chooses
	out         *outbound
	in          *inbound

	// What forwarding threads read.
	flowSeed    ledger.Seed
	indices     *indices
	routes      atomic.Pointer[routes]
	outer       atomic.Pointer[outerHeader]
	known       atomic.Pointer[knownEndpoints]
	budgets     atomic.Pointer[ledger.Budgets] // nil: no peer has had a voice budget yet
	measuring   atomic.Pointer[measuring]      // nil: media is not counted
	lines       atomic.Pointer[lineAddresses]  // nil: there is one, or none is known
	mtu         atomic.Int64
	superPacket atomic.Int64
	probeMTU    atomic.Int64 // the longest packet that peers are probed for; 0: none is

	// What forwarding threads write.
	drops        drops
	fromPeers    messageRing // handshake messages from where peers are known to be
	fromOthers   messageRing
	reports      reportRing  // what peers tell of media
	rtcp         reportRing  // what far phones do
	pathMessages pathRing    // what peers say of paths
	moved        atomic.Bool // a peer's endpoint changed

	reservations reservations
	exchange     *exchange

	mu          sync.Mutex // of what follows, and of control in every peer
	self        identity
	peers       map[tunnel.PublicKey]*peer
	peersMade   uint32
	table       *routes  // the next routes
	cookies     *cookies // nil: no key
	limiter     ratelimiter.Ratelimiter
	loadUntil   int64           // of the engine's clock: until then cookies are asked for
	handshakes  bucket          // those above it are load
	longProbes  bucket          // of the lengths that paths take
	admission   *ledger.Budgets // as they were set last; nil: no peer has a voice budget
	retired     []retired
	paths       *pathSettings  // never nil
	calling     map[*peer]bool // peers with calls: their paths are looked at often
	pathMessage pathMessage    // memory for reading them
	lastEnds    map[tunnel.PublicKey]netip.AddrPort
	copyPlan    *copyPlan // nil: nothing is sent twice
	copyLoad    copyLoad

	endpoints     chan map[tunnel.PublicKey]netip.AddrPort
	notifications *os.File // eventfd: forwarding threads have something for the control side
	notifyFD      int
	stopOnce      sync.Once
	called        chan struct{} // a peer has come into calling
	closed        chan struct{}
	running       sync.WaitGroup // forwarding threads
	tasks         sync.WaitGroup
	done          chan struct{}
	collector     turn.Collector
}

// sinceEpoch is the engine's clock: monotonic, in ns, never 0, which stands for no time.
func sinceEpoch() int64 { return int64(time.Since(epoch)) + 1 }

var epoch = time.Now()

func (e *Engine) now() int64 { return e.clock() }

// New starts an engine without key and peers.
func New(o Options) (_ *Engine, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("start the realtime engine: %w", err)
		}
	}()
	if o.TUN == nil {
		return nil, errors.New("no tunnel device was handed over")
	}
	if o.UDP4 == nil && o.UDP6 == nil {
		return nil, errors.New("no UDP socket was handed over")
	}
	e := newEngine(o)
	defer func() {
		if err != nil {
			e.limiter.Close()
			e.release()
		}
	}()
	if err := e.SetMTU(o.MTU); err != nil {
		return nil, err
	}
	if err := e.SetBounds(o.Bounds); err != nil {
		return nil, err
	}
	if err := e.open(o); err != nil {
		return nil, err
	}
	if err := e.equip(); err != nil {
		return nil, err
	}
	e.start()
	return e, nil
}

// start runs threads and tasks until the engine is closed.
func (e *Engine) start() {
	if e.alone {
		turn.Configure(len(e.out.Threads) + len(e.in.Threads))
	}
	e.running.Add(len(e.out.Threads) + len(e.in.Threads))
	e.out.Start(e.out.loop, e.running.Done)
	e.in.Start(e.in.loop, e.running.Done)

	e.tasks.Go(e.handleNotifications)
	e.tasks.Go(e.runTimers)
	e.tasks.Go(e.runExchange)
	e.tasks.Go(e.runPaths)
	if e.alone {
		e.tasks.Go(e.collector.Run)
	}
	go e.shutDown()
}

// shutDown waits for the engine to be closed, and releases what it has.
func (e *Engine) shutDown() {
	<-e.closed
	e.out.Stop()
	e.in.Stop()
	e.running.Wait()
	e.notifications.Close()
	e.tasks.Wait()

	e.mu.Lock()
	e.wipeAll()
	e.release() // under the mutex: later calls find no sockets
	e.mu.Unlock()
	e.limiter.Close()
	close(e.done)
}

func newEngine(o Options) *Engine {
	e := &Engine{
		class:       o.Class,
		log:         o.Log,
		since:       time.Now(),
		alone:       o.Alone,
		threadsEach: o.Threads,
		tun:         -1,
		udp:         [2]int{-1, -1},
		clock:       sinceEpoch,
		stamp:       tai64n.Now,
		flowSeed:    ledger.Seed{rand.Uint64(), rand.Uint64()},
		indices:     newIndices(),
		exchange:    newExchange(),
		peers:       map[tunnel.PublicKey]*peer{},
		table:       new(routes),
		endpoints:   make(chan map[tunnel.PublicKey]netip.AddrPort, 1),
		calling:     map[*peer]bool{},
		paths:       &pathSettings{},
		called:      make(chan struct{}, 1),
		closed:      make(chan struct{}),
		done:        make(chan struct{}),
	}
	e.routes.Store(new(routes))
	e.limiter.Init()
	return e
}

// equip makes what works on the open descriptors.
func (e *Engine) equip() (err error) {
	if e.notifyFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("make an eventfd: %w", err)
	}
	e.notifications = os.NewFile(uintptr(e.notifyFD), "notifications")
	cpus, err := turn.UsableProcessors(e.threadsEach)
	if err != nil {
		return err
	}
	if e.out, err = newOutbound(e, cpus); err != nil {
		return err
	}
	if e.in, err = newInbound(e, cpus); err != nil {
		return err
	}
	e.collector.Directions, e.collector.Closed = []*turn.Direction{e.out.Direction, e.in.Direction}, e.closed
	return nil
}

// threadOptions are those of the threads of a direction.
func (e *Engine) threadOptions(name string) turn.Options {
	return turn.Options{Name: name, Clock: e.now, Alone: e.alone}
}

// open takes over the descriptors.
func (e *Engine) open(o Options) error {
	if err := e.openTUN(o.TUN); err != nil {
		return err
	}
	for i, f := range []*os.File{o.UDP4, o.UDP6} {
		if f == nil {
			continue
		}
		if err := e.openSocket(i, f); err != nil {
			return err
		}
	}
	return e.SetOuter(tunnel.Outer{TOS: e.socketTOS()})
}

func (e *Engine) openTUN(f *os.File) (err error) {
	if e.tun, err = descriptor.Duplicate(f); err != nil {
		return fmt.Errorf("duplicate the tunnel device: %w", err)
	}
	if err := unix.SetNonblock(e.tun, true); err != nil {
		return fmt.Errorf("make the tunnel device non-blocking: %w", err)
	}

	ifr, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(e.tun, unix.TUNGETIFF, ifr); err != nil {
		return fmt.Errorf("read the tunnel device's name: %w", err)
	}
	e.name = ifr.Name()

	// Single packets with their checksums: offloads that an earlier engine may have asked for are of no use to
	// voice.
	if err := unix.IoctlSetInt(e.tun, unix.TUNSETOFFLOAD, 0); err != nil {
		return fmt.Errorf("turn off the offloads of %s: %w", e.name, err)
	}
	return nil
}

// openSocket takes over the socket of IPv4 (0) or IPv6 (1).
func (e *Engine) openSocket(i int, f *os.File) (err error) {
	if e.udp[i], err = descriptor.Duplicate(f); err != nil {
		return fmt.Errorf("duplicate the UDP socket: %w", err)
	}
	if err := unix.SetNonblock(e.udp[i], true); err != nil {
		return fmt.Errorf("make the UDP socket non-blocking: %w", err)
	}
	if e.port, err = descriptor.Port(e.udp[i]); err != nil {
		return err
	}

	divideAgain(e.udp[i], i == 1)
	level, option := unix.IPPROTO_IP, unix.IP_RECVTOS
	if i == 1 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS
	}
	if err := unix.SetsockoptInt(e.udp[i], level, option, 1); err != nil {
		return fmt.Errorf("request the TOS octet of received packets: %w", err)
	}
	if mark, err := datagram.Mark(e.udp[i]); err == nil {
		e.mark = mark
	}
	return nil
}

// socketTOS is the TOS octet that the daemon has set on the sockets. It may change it while the engine runs.
func (e *Engine) socketTOS() (tos uint8) {
	for i, option := range [][2]int{{unix.IPPROTO_IP, unix.IP_TOS}, {unix.IPPROTO_IPV6, unix.IPV6_TCLASS}} {
		if e.udp[i] < 0 {
			continue
		}
		if v, err := unix.GetsockoptInt(e.udp[i], option[0], option[1]); err == nil {
			tos = uint8(v)
		}
	}
	return tos
}

// release closes the descriptors.
func (e *Engine) release() {
	for _, fd := range []*int{&e.tun, &e.udp[0], &e.udp[1]} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
	if e.notifications != nil {
		e.notifications.Close() // may be closed already
	}
	if e.out != nil {
		e.out.Close()
	}
	if e.in != nil {
		e.in.Close()
	}
}

// Close stops the engine and waits until it has released its descriptors.
func (e *Engine) Close() error {
	e.end()
	<-e.done
	return nil
}

// hasEnded reports whether the engine ends or has ended. From then on it has no peers, which does not mean that it
// knows none.
func (e *Engine) hasEnded() bool {
	select {
	case <-e.closed:
		return true
	default:
		return false
	}
}

func (e *Engine) end() { e.stopOnce.Do(func() { close(e.closed) }) }

// tunnelDeviceLost ends the engine from a forwarding thread. A goroutine does what takes locks.
func (e *Engine) tunnelDeviceLost(errno unix.Errno) {
	go func() {
		e.log.Warn("tunnel device lost", "interface", e.name, "reason", errno)
		e.end()
	}()
}

// Done is closed when the engine has ended, also where it ended by itself because it lost its tunnel device.
func (e *Engine) Done() <-chan struct{} { return e.done }

// notify wakes the control side. It is for forwarding threads: a raw write to an eventfd wakes a goroutine
// without the scheduler.
func (e *Engine) notify() {
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(e.notifyFD), uintptr(unsafe.Pointer(&eventfdOne)), 8)
}

var eventfdOne uint64 = 1

// ServeUAPI speaks wg(8)'s protocol on a listening socket until it or the engine closes.
func (e *Engine) ServeUAPI(l net.Listener) error {
	s := uapi.Server{Device: settable{e}, Log: e.log}
	return s.Serve(l)
}

// settable is the engine as the UAPI server wants it.
type settable struct{ *Engine }

func (s settable) Set(body []byte) error { return s.set(body) }

// SetMTU tells the engine the MTU of the tunnel device. The daemon sets it on the device.
func (e *Engine) SetMTU(mtu int) error {
	if mtu < 576 || mtu > maxPacket {
		return fmt.Errorf("set MTU %d (allowed 576-%d)", mtu, maxPacket)
	}
	e.mtu.Store(int64(mtu))
	return nil
}

// SetBounds changes the bound that the engine itself keeps, the size of super-packets. It has no queue of its
// own; queue length and socket buffers are the daemon's.
func (e *Engine) SetBounds(b tunnel.Bounds) error {
	if b.SuperPacket < 0 {
		return fmt.Errorf("super-packets of at most %d bytes (allowed 0 and more)", b.SuperPacket)
	}
	e.superPacket.Store(int64(b.SuperPacket))
	return nil
}

// SetOuter changes how packets look from outside, from the next packet on.
func (e *Engine) SetOuter(o tunnel.Outer) error {
	if o.PadTo < 0 || o.PadTo > maxPacket {
		return fmt.Errorf("pad packets to %d bytes (allowed 0-%d)", o.PadTo, maxPacket)
	}
	h := &outerHeader{padTo: o.PadTo, socket: e.socketTOS()}
	for i := range h.tos {
		h.tos[i] = o.TOS &^ ecnMask
	}
	for _, m := range o.Marks {
		if m.Inner > 63 || m.Outer > 63 {
			return fmt.Errorf("mark DSCP %d as %d (allowed 0-63)", m.Inner, m.Outer)
		}
		h.tos[m.Inner] = m.Outer << 2
	}
	e.outer.Store(h)
	return nil
}

// Endpoints sends the endpoints of all peers that have one, whenever one has changed. A late reader gets the
// newest.
func (e *Engine) Endpoints() <-chan map[tunnel.PublicKey]netip.AddrPort { return e.endpoints }

// publishEndpointsLocked tells the inbound threads and the reader of Endpoints where the peers are.
func (e *Engine) publishEndpointsLocked() {
	ends := make(map[tunnel.PublicKey]netip.AddrPort, len(e.peers))
	for k, p := range e.peers {
		if to := p.endpoint.Load(); to != nil {
			ends[k] = to.raw.AddrPort()
		}
	}
	e.publishKnownEndpointsLocked()
	if maps.Equal(ends, e.lastEnds) {
		return
	}
	e.lastEnds = ends
	select {
	case <-e.endpoints: // nobody has read the last one
	default:
	}
	e.endpoints <- maps.Clone(ends) // never blocks: it has a buffer of one, and only this sends, under the mutex
}
