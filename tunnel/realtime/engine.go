// Package realtime is Ringway's own forwarding core: a whole WireGuard in userspace that is made for voice. A locked thread runs a packet to
// its end, without handing it to anybody: no goroutine, channel or allocation stands in its way (outbound.go, inbound.go). Each direction has such
// a thread on each processor, and the first to wake takes what came (way.go). Everything that is no packet of data is the control side's: handshakes (handshake.go),
// timers (timers.go), configuration (configure.go), on ordinary goroutines under one mutex. The two meet at atomic pointers and one
// ring; keys are wiped when no thread can hold them any more (retire.go).
//
// The privileged daemon opens the descriptors (tunnel/descriptor) and makes the threads real-time. Only cmd/ringway imports it, and
// tests; of wireguard-go it uses what that exports: cookies, replay window, time stamps, key derivation.
package realtime

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/ratelimiter"
	"golang.zx2c4.com/wireguard/tai64n"

	"ringway/tunnel"
	"ringway/tunnel/descriptor"
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
	// Alone says that the process is the engine's: forwarding threads are pinned (pin.go), and the collector is the engine's to run.
	Alone bool
	// Threads of each direction, 1 to 4; 0: one for each processor, as far as that goes (way.go).
	Threads int
}

// shape is how packets look from outside: tunnel.Outer, ready for a look-up.
type shape struct {
	socket uint8     // what the sockets put on what says nothing else
	tos    [64]uint8 // TOS octet by inner DSCP
	padTo  int
}

// Engine is a running WireGuard device.
type Engine struct {
	class  tunnel.Class
	log    *slog.Logger
	since  time.Time
	alone  bool
	clock  func() int64
	stamp  func() tai64n.Timestamp
	name   string
	port   uint16
	perWay int // threads of each direction; 0: its own choice
	tun    int
	udp    [2]int // IPv4, IPv6; -1: none

	// For forwarding threads.
	indices     *indices
	routes      atomic.Pointer[routes]
	shape       atomic.Pointer[shape]
	homes       atomic.Pointer[homes] // where peers are known to be
	guard       atomic.Pointer[guard] // of media; nil: no peer has a budget yet
	mtu         atomic.Int64
	superPacket atomic.Int64
	drops       drops
	ring        ring        // handshake messages from where peers are known to be
	crowd       ring        // all others
	moved       atomic.Bool // a peer's endpoint changed

	out *outbound
	in  *inbound

	mu        sync.Mutex // what follows, and control in every peer
	self      identity
	peers     map[tunnel.PublicKey]*peer
	table     *routes  // the next routes
	cookies   *cookies // nil: no key
	limiter   ratelimiter.Ratelimiter
	loadUntil int64 // of the engine's clock: until then cookies are asked for
	budget    bucket
	budgets   map[tunnel.PublicKey]*budget // of media
	retired   []retired
	mark      uint32
	lastEnds  map[tunnel.PublicKey]netip.AddrPort

	endpoints chan map[tunnel.PublicKey]netip.AddrPort
	knocks    *os.File // eventfd: something for the control side
	knockFD   int
	stopOnce  sync.Once
	closed    chan struct{}
	running   sync.WaitGroup // forwarding threads
	tasks     sync.WaitGroup
	done      chan struct{}
	collected atomic.Uint64
}

// sinceEpoch is the engine's clock: monotonic, in ns, never 0.
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
	if e.alone {
		aloneInProcess(len(e.threads()))
	}
	e.running.Add(len(e.threads()))
	e.out.start(e.out.loop, e.running.Done)
	e.in.start(e.in.loop, e.running.Done)
	e.tasks.Go(e.answerKnocks)
	e.tasks.Go(e.watchTimers)
	if e.alone {
		e.tasks.Go(e.collect)
	}
	go func() {
		<-e.closed
		for _, t := range e.threads() {
			t.stop.Store(true)
		}
		e.rouse()
		e.running.Wait()
		e.knocks.Close()
		e.tasks.Wait()
		e.mu.Lock()
		e.forget()
		e.release() // under the mutex: what is asked of the engine from now on finds no sockets
		e.mu.Unlock()
		e.limiter.Close()
		close(e.done)
	}()
	return e, nil
}

func newEngine(o Options) *Engine {
	e := &Engine{
		class: o.Class, log: o.Log, since: time.Now(), alone: o.Alone, perWay: o.Threads, tun: -1, udp: [2]int{-1, -1}, clock: sinceEpoch, stamp: tai64n.Now,
		indices: newIndices(), peers: map[tunnel.PublicKey]*peer{}, table: new(routes),
		endpoints: make(chan map[tunnel.PublicKey]netip.AddrPort, 1), closed: make(chan struct{}), done: make(chan struct{}),
	}
	e.routes.Store(new(routes))
	e.limiter.Init()
	return e
}

// equip makes what the open descriptors are worked on with.
func (e *Engine) equip() (err error) {
	if e.knockFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("make an eventfd: %w", err)
	}
	e.knocks = os.NewFile(uintptr(e.knockFD), "knocks")
	cpus, err := processors(e.perWay)
	if err != nil {
		return err
	}
	if e.out, err = newOutbound(e, cpus); err != nil {
		return err
	}
	e.in, err = newInbound(e, cpus)
	return err
}

// threads are all that forward.
func (e *Engine) threads() []*thread { return slices.Concat(e.out.threads, e.in.threads) }

// rouse wakes them all.
func (e *Engine) rouse() {
	e.out.rouse()
	e.in.rouse()
}

// aloneInProcess sets what a process needs in which threads are pinned.
func aloneInProcess(threads int) {
	const others = 2 // for handshakes, timers and the control socket
	runtime.GOMAXPROCS(threads + others)
	debug.SetMemoryLimit(math.MaxInt64) // the collector runs when collect says so, and only then
	debug.SetGCPercent(-1)              // waits for one that runs
	runtime.GC()
}

// open takes the descriptors over.
func (e *Engine) open(o Options) (err error) {
	if e.tun, err = descriptor.Duplicate(o.TUN); err != nil {
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
		return fmt.Errorf("ask the tunnel device for its name: %w", err)
	}
	e.name = ifr.Name()
	// Single packets with their checksums: what an engine before this one may have asked for is of no use to voice.
	if err := unix.IoctlSetInt(e.tun, unix.TUNSETOFFLOAD, 0); err != nil {
		return fmt.Errorf("set the offloads of %s: %w", e.name, err)
	}
	for i, f := range []*os.File{o.UDP4, o.UDP6} {
		if f == nil {
			continue
		}
		if e.udp[i], err = descriptor.Duplicate(f); err != nil {
			return fmt.Errorf("duplicate the UDP socket: %w", err)
		}
		if err := unix.SetNonblock(e.udp[i], true); err != nil {
			return fmt.Errorf("make the UDP socket non-blocking: %w", err)
		}
		if e.port, err = descriptor.Port(e.udp[i]); err != nil {
			return err
		}
		level, want := unix.IPPROTO_IP, unix.IP_RECVTOS
		if i == 1 {
			level, want = unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS
		}
		if err := unix.SetsockoptInt(e.udp[i], level, want, 1); err != nil {
			return fmt.Errorf("ask for the TOS octet of what arrives: %w", err)
		}
		if m, err := unix.GetsockoptInt(e.udp[i], unix.SOL_SOCKET, unix.SO_MARK); err == nil {
			e.mark = uint32(m)
		}
	}
	return e.SetOuter(tunnel.Outer{TOS: e.socketTOS()})
}

// socketTOS is the TOS octet that the daemon has set on the sockets; it may change it while the engine runs.
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
	if e.knocks != nil {
		e.knocks.Close() // twice does no harm
	}
	if e.out != nil {
		e.out.close()
	}
	if e.in != nil {
		e.in.close()
	}
}

// Close stops the engine and waits until it has let go of its descriptors.
func (e *Engine) Close() error {
	e.end()
	<-e.done
	return nil
}

func (e *Engine) end() { e.stopOnce.Do(func() { close(e.closed) }) }

// tunGone ends the engine, by itself, from a forwarding thread: a goroutine does what takes locks.
func (e *Engine) tunGone(errno unix.Errno) {
	go func() {
		e.log.Warn("the tunnel device is gone", "interface", e.name, "reason", errno)
		e.end()
	}()
}

// Done is closed when the engine has ended, also by itself, because its tunnel device went.
func (e *Engine) Done() <-chan struct{} { return e.done }

// knock calls the control side. Forwarding threads use it: a raw write to an eventfd wakes a goroutine without the scheduler.
func (e *Engine) knock() {
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(e.knockFD), uintptr(unsafe.Pointer(&oneKnock)), 8)
}

var oneKnock uint64 = 1

// ServeUAPI speaks wg(8)'s protocol on a listening socket until it or the engine closes.
func (e *Engine) ServeUAPI(l net.Listener) error {
	s := uapi.Server{Device: settable{e}, Log: e.log}
	return s.Serve(l)
}

// settable is the engine as the UAPI server wants it.
type settable struct{ *Engine }

func (s settable) Set(body []byte) error { return s.set(body) }

// SetMTU tells the engine the tunnel device's MTU; the daemon sets it on the device.
func (e *Engine) SetMTU(mtu int) error {
	if mtu < 576 || mtu > maxPacket {
		return fmt.Errorf("set MTU %d (allowed 576-%d)", mtu, maxPacket)
	}
	e.mtu.Store(int64(mtu))
	return nil
}

// SetBounds changes what the engine holds of the bounds: the size of super-packets. It keeps no queue of its own; queue
// length and socket buffers are the daemon's.
func (e *Engine) SetBounds(b tunnel.Bounds) error {
	if b.SuperPacket < 0 {
		return fmt.Errorf("bound of %d bytes for a super-packet (allowed 0 and more)", b.SuperPacket)
	}
	e.superPacket.Store(int64(b.SuperPacket))
	return nil
}

// SetOuter changes how packets look from outside, from the next packet on.
func (e *Engine) SetOuter(o tunnel.Outer) error {
	if o.PadTo < 0 || o.PadTo > maxPacket {
		return fmt.Errorf("pad packets to %d bytes (allowed 0-%d)", o.PadTo, maxPacket)
	}
	s := &shape{padTo: o.PadTo, socket: e.socketTOS()}
	for i := range s.tos {
		s.tos[i] = o.TOS &^ ecnMask
	}
	for _, m := range o.Marks {
		if m.Inner > 63 || m.Outer > 63 {
			return fmt.Errorf("mark DSCP %d as %d (allowed 0-63)", m.Inner, m.Outer)
		}
		s.tos[m.Inner] = m.Outer << 2
	}
	e.shape.Store(s)
	return nil
}

// Endpoints gives the endpoints of all peers that have one, whenever one has changed. Who reads late gets the newest.
func (e *Engine) Endpoints() <-chan map[tunnel.PublicKey]netip.AddrPort { return e.endpoints }

// tellEndpointsLocked takes over where the peers are.
func (e *Engine) tellEndpointsLocked() {
	ends := make(map[tunnel.PublicKey]netip.AddrPort, len(e.peers))
	for k, p := range e.peers {
		if to := p.endpoint.Load(); to != nil {
			ends[k] = to.raw.AddrPort()
		}
	}
	e.settleHomesLocked()
	if maps.Equal(ends, e.lastEnds) {
		return
	}
	e.lastEnds = ends
	select {
	case <-e.endpoints: // the one that nobody has read is old
	default:
	}
	e.endpoints <- maps.Clone(ends) // room for one, and only this sends, under the mutex
}
