package wireguardgo

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"ringway/tunnel/descriptor"
)

// tunDevice is between the tunnel device and the device package. It makes packets wait at the gate, and keeps
// from the device those that it would only hold or drop.
type tunDevice struct {
	hub    *hub
	native *tun.NativeTun
	name   string
	mtu    atomic.Int32
	place  turnstile
	fair   *fair
	poll   int // the TUN's descriptor, for the reader alone
	last   int // at most so many buffers were replaced by the device since the last read
	errs   int // errors in a row

	mu     sync.Mutex // of events
	events chan tun.Event
	shut   bool

	segmented atomic.Bool
}

// segmentedFrom is the gate's size from which the TUN may give segmented packets: one read of
// 64 KiB makes up to 48 packets at once.
const segmentedFrom = 128

func newTUN(f *os.File, h *hub, mtu int) (*tunDevice, error) {
	fd, err := descriptor.Duplicate(f)
	if err != nil {
		return nil, fmt.Errorf("duplicate the tunnel device: %w", err)
	}
	// Takes fd over, and makes the open file non-blocking, for the daemon as well.
	d, name, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		if d == nil {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("take over the tunnel device: %w", err)
	}
	t := &tunDevice{hub: h, native: d.(*tun.NativeTun), name: name, events: make(chan tun.Event, 4)}
	t.place = turnstile{g: h.out, stuck: h.peers.forsake}
	t.fair, t.poll = h.fair, fd
	h.fair.wakeup = func() { _ = t.native.File().SetReadDeadline(time.Unix(1, 0)) }
	t.mtu.Store(int32(mtu))
	t.segmented.Store(true) // as CreateUnmonitoredTUNFromFD leaves it
	return t, nil
}

// setSegmented sets whether the kernel may hand over segmented packets. Reading single packets costs
// throughput, and on a slow link keeps the queue within its bound.
func (t *tunDevice) setSegmented(on bool) error {
	if t.segmented.Load() == on {
		return nil
	}
	flags := []int{unix.TUN_F_CSUM}
	if on {
		const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
		flags = []int{tcp | unix.TUN_F_USO4 | unix.TUN_F_USO6, tcp} // USO is of Linux 6.2
	}
	c, err := t.native.File().SyscallConn()
	if err != nil {
		return err
	}
	for _, f := range flags {
		e := c.Control(func(fd uintptr) { err = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, f) })
		if e != nil {
			return e
		}
		if err == nil {
			t.segmented.Store(on)
			return nil
		}
	}
	return fmt.Errorf("set the offloads of %s: %w", t.name, err)
}

// Read gives the device packets that it can send. Those that it must not see have size 0.
func (t *tunDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	returned := t.hub.reclaim(bufs[:t.last])
	last := t.last
	t.last = 0
	if t.fair.ready() {
		return t.readFair(bufs, sizes, offset, last, returned)
	}
	if !t.place.pass(last, returned) { // once: packets that go nowhere must not use up a full gate's rare turns
		return 0, os.ErrClosed
	}
	for {
		n, err := t.take(bufs, sizes, offset)
		if err != nil {
			return 0, err
		}
		if t.admit(bufs[:n], sizes, offset) > 0 {
			t.last = n
			return n, nil
		}
		if t.fair.ready() {
			return 0, nil
		}
	}
}

// took handles the result of a read. An error ends the device.
func (t *tunDevice) took(n int, err error) (int, error) {
	switch {
	case err == nil:
		t.errs = 0
	case errors.Is(err, tun.ErrTooManySegments):
		t.hub.drops.add(dropSegments, 1)
	case errors.Is(err, os.ErrClosed):
		return 0, err
	default: // a packet that cannot be cut; the device would close for it
		t.hub.drops.add(dropTUNRead, 1)
		if t.errs++; t.errs > 100 {
			return 0, fmt.Errorf("read from %s: %w", t.name, err)
		}
		if t.errs > 10 {
			select {
			case <-t.hub.closed:
				return 0, os.ErrClosed
			case <-time.After(10 * time.Millisecond):
			}
		}
		return 0, nil
	}
	return max(n, 0), nil
}

// admit tags the packets that may enter, and sets the size of the others to 0.
func (t *tunDevice) admit(bufs [][]byte, sizes []int, offset int) (entered int) {
	var (
		table = t.hub.peers.now.Load()
		last  netip.Addr
		to    *peer

		charged int // in all
		given   int // of that, to the same site in a row
		queued  = t.fair.now.on
	)
	account := func() { // not for each packet: the sender writes beside it
		if given > 0 {
			to.account.given.Add(int64(given))
			given = 0
		}
	}
	for i, b := range bufs {
		if sizes[i] > maxPacket {
			t.hub.drops.add(dropOversized, 1)
			sizes[i] = 0
		}
		dst, ok := destination(b[offset:][:sizes[i]])
		if !ok {
			sizes[i] = 0
			continue
		}
		if i == 0 || dst != last {
			account()
			last, to = dst, table.lookup(dst)
		}
		if to == nil {
			t.hub.drops.add(dropNoSite, 1)
			sizes[i] = 0
			continue
		}
		if !table.admit(to) {
			t.hub.drops.add(dropNoSession, 1)
			sizes[i] = 0
			continue
		}
		t.hub.claim(b, tagPeer+to.slot)
		entered++
		cost := 0 // 0 for one that waits for a session: nothing behind the flow queues waits for it
		if to.fresh.Load() {
			cost = charge(sizes[i])
			charged += cost
			given += cost
			if queued {
				t.fair.give(cost, sizes[i])
			}
		}
		setCharge(b, cost)
	}
	account()
	t.hub.out.enter(entered, charged)
	return entered
}

func destination(p []byte) (netip.Addr, bool) {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(p[16:20])), true
	case len(p) >= 40 && p[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(p[24:40])), true
	}
	return netip.Addr{}, false
}

func source(p []byte) (netip.Addr, bool) {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(p[12:16])), true
	case len(p) >= 40 && p[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(p[8:24])), true
	}
	return netip.Addr{}, false
}

// Write gets packets that the device has authenticated, and whose source it has checked.
func (t *tunDevice) Write(bufs [][]byte, offset int) (int, error) {
	if len(bufs) > 0 {
		if src, ok := source(bufs[0][offset:]); ok { // one peer's, all of them
			if p := t.hub.peers.now.Load().lookup(src); p != nil {
				p.rx.Add(uint64(len(bufs)))
				if !p.fresh.Load() { // it has a session, then
					t.hub.peers.kick()
				}
			}
		}
	}
	n, err := t.native.Write(bufs, offset)
	for _, b := range bufs {
		setTag(b, tagNone)
	}
	if err != nil {
		t.hub.drops.add(dropTUNWrite, 1)
	}
	return n, err
}

func (t *tunDevice) event(e tun.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shut {
		return
	}
	select {
	case t.events <- e:
	default: // four are pending: this one is among them
	}
}

func (t *tunDevice) setMTU(mtu int) {
	t.mtu.Store(int32(mtu))
	t.event(tun.EventMTUUpdate)
}

// MTU is what the daemon says. Asking the kernel by name would fail in another network namespace.
func (t *tunDevice) MTU() (int, error)        { return int(t.mtu.Load()), nil }
func (t *tunDevice) File() *os.File           { return t.native.File() }
func (t *tunDevice) Name() (string, error)    { return t.name, nil }
func (t *tunDevice) Events() <-chan tun.Event { return t.events }
func (t *tunDevice) BatchSize() int           { return t.native.BatchSize() }

func (t *tunDevice) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shut {
		return nil
	}
	t.shut = true
	close(t.events)
	return t.native.Close()
}
