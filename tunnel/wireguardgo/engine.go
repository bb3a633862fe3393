// Package wireguardgo is the userspace engine of a tunnel: the device package of wireguard-go between a
// tunnel device and the class's UDP sockets, as a library for an unprivileged plane process.
//
// It adds what the device package lacks here: a bind with batches, segmentation offload up to a size, and the
// choice of source address (bind.go, inbound.go, outbound.go); bounded memory (gate.go, buffers.go); flow
// queues (fair.go, sites.go); a counter for every dropped packet (drops.go); the resolution of handshakes
// that cross (crossing.go); and wg(8)'s protocol with bounds, which refuses what needs privilege. The
// privileged daemon opens the descriptors (tunnel/descriptor) and keeps them.
package wireguardgo

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"ringway/tunnel"
	"ringway/tunnel/uapi"
)

// Files are the descriptors that the daemon opened. New duplicates what it needs: the caller may close them,
// or keep them for the next engine.
type Files struct {
	TUN        *os.File // IFF_TUN|IFF_NO_PI|IFF_VNET_HDR, attached to its device
	UDP4, UDP6 *os.File // bound; mark, TOS and buffers are set; one of them may be nil
}

// Engine is a running WireGuard device.
type Engine struct {
	class tunnel.Class
	since time.Time
	hub   *hub
	tun   *tunDevice
	bind  *bind
	dev   *device.Device

	endpoints chan map[tunnel.PublicKey]netip.AddrPort
	lastEnds  map[tunnel.PublicKey]netip.AddrPort // refresh only

	boundsMu sync.Mutex
	bounds   tunnel.Bounds

	setMu sync.Mutex // one set operation at a time
	own   tunnel.PublicKey
	pair  atomic.Pointer[keyPair]

	stop  sync.Once
	tasks sync.WaitGroup
	done  chan struct{}
}

// New starts an engine without key and peers.
func New(f Files, class tunnel.Class, b tunnel.Bounds, mtu int, log *slog.Logger) (*Engine, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	e, err := newEngine(f, class, b, mtu, log)
	if err != nil {
		return nil, fmt.Errorf("start wireguard-go: %w", err)
	}

	e.tasks.Go(e.refreshLoop)
	e.tasks.Go(e.hub.fair.run)
	go func() {
		<-e.dev.Wait() // also when the tunnel device is lost
		e.stop.Do(func() { close(e.hub.closed) })
		e.tasks.Wait()
		e.bind.release()
		close(e.done)
	}()
	return e, nil
}

// newEngine makes an engine whose device is up.
func newEngine(f Files, class tunnel.Class, b tunnel.Bounds, mtu int, log *slog.Logger) (_ *Engine, err error) {
	if f.TUN == nil {
		return nil, errors.New("no tunnel device was handed over")
	}
	if mtu < 576 || mtu > maxPacket {
		return nil, fmt.Errorf("MTU %d (allowed 576-%d)", mtu, maxPacket)
	}

	h := &hub{log: log, peers: newPeers(), closed: make(chan struct{}), began: time.Now()}
	bind, err := newBind(f, h)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			bind.release()
		}
	}()

	h.cross = newCrossings(bind.wake)
	h.out = newGate(h.closed, b.InFlight, func() bool { return bind.blocked.Load() > 0 })
	if h.fair, err = newFair(h, bind); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			h.fair.close()
		}
	}()

	t, err := newTUN(f.TUN, h, mtu)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		class: class, since: time.Now(), hub: h, tun: t, bind: bind,
		endpoints: make(chan map[tunnel.PublicKey]netip.AddrPort, 1),
		done:      make(chan struct{}),
	}
	if err := e.SetBounds(b); err != nil {
		t.Close()
		return nil, err
	}

	e.dev = device.NewDevice(t, bind, newDeviceLog(h))
	err = boundBuffers(e.dev, maxBuffers)
	close(bind.bounded)
	if err == nil {
		err = e.dev.Up()
	}
	if err != nil {
		e.dev.Close()
		return nil, err
	}
	return e, nil
}

// Close stops the engine and waits until it has released its descriptors.
func (e *Engine) Close() error {
	e.stop.Do(func() { close(e.hub.closed) }) // readers at the gates first: the device waits for them
	e.bind.interrupt()
	e.dev.Close()
	<-e.done
	return nil
}

// Done is closed when the engine has ended, also where it ended by itself because it lost its tunnel device.
func (e *Engine) Done() <-chan struct{} { return e.done }

// Set carries out the body of a UAPI set operation. A body with an invalid line changes nothing. The error has
// ErrorCode, like that of the device package.
func (e *Engine) Set(r io.Reader) error {
	body, err := uapi.ReadSet(r)
	if err != nil {
		return fmt.Errorf("set the WireGuard device: %w", err)
	}
	return e.set(body)
}

func (e *Engine) set(body []byte) error {
	e.setMu.Lock()
	defer e.setMu.Unlock()
	// The device's own lines go first: a new peer's keepalive starts a handshake at once, and its answer
	// is refused by a bind that does not know the new key yet (then voice waits five seconds for the next).
	peers := bytes.Index(body, []byte("public_key="))
	if peers < 0 {
		peers = len(body)
	}
	for _, part := range [][]byte{body[:peers], body[peers:]} {
		if len(part) == 0 {
			continue
		}
		e.hub.cross.expect(part)
		err := e.dev.IpcSetOperation(bytes.NewReader(part))
		e.refresh()
		if err != nil {
			return fmt.Errorf("set the WireGuard device: %w", err)
		}
	}
	return nil
}

// Get writes the body of a UAPI get operation, with keys, as wg(8) needs it.
func (e *Engine) Get(w io.Writer) error {
	var b bytes.Buffer
	if err := e.dev.IpcGetOperation(&b); err != nil {
		return fmt.Errorf("get the WireGuard device: %w", err)
	}
	body := b.Bytes()
	if mark := e.bind.mark(); mark != 0 {
		// The device does not know the mark of sockets that it was given.
		line := fmt.Appendf(nil, "fwmark=%d\n", mark)
		at := bytes.Index(body, []byte("public_key="))
		if at < 0 {
			at = len(body)
		}
		body = append(body[:at:at], append(line, body[at:]...)...)
	}
	if _, err := w.Write(body); err != nil {
		return fmt.Errorf("get the WireGuard device: %w", err)
	}
	return nil
}

// ServeUAPI speaks wg(8)'s protocol on a listening socket until it or the engine closes.
func (e *Engine) ServeUAPI(l net.Listener) error {
	s := uapi.Server{Device: settable{e}, Log: e.hub.log}
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
	e.tun.setMTU(mtu)
	e.setFair()
	return nil
}

// SetBounds changes the bounds that the engine holds: packets in flight and size of
// super-packets. Queue length and socket buffers are the daemon's.
func (e *Engine) SetBounds(b tunnel.Bounds) error {
	if b.InFlight < 1 {
		return fmt.Errorf("bound of %d packets in flight (allowed 1 and more)", b.InFlight)
	}
	if err := e.tun.setSegmented(b.InFlight >= segmentedFrom); err != nil {
		return err
	}
	e.boundsMu.Lock()
	e.bounds = b
	e.boundsMu.Unlock()
	e.setFair()
	inside := b.InFlight
	// What waits behind them is bounded more closely, and packets that wait for a session may not fill the gate.
	if b.FlowPackets > 0 {
		inside = max(inside, segmentedFrom)
	}
	e.hub.out.setLimit(inside)
	e.bind.superPacket.Store(int64(b.SuperPacket))
	return nil
}

// setFair applies bounds and MTU to the flow queues.
func (e *Engine) setFair() {
	e.boundsMu.Lock()
	defer e.boundsMu.Unlock()
	e.hub.fair.setBounds(e.bounds, int(e.tun.mtu.Load()))
}

// Handshake initiates handshakes at once with those peers that have an endpoint; with all if
// none is named. The device package holds it to one in five seconds for a peer.
func (e *Engine) Handshake(keys ...tunnel.PublicKey) {
	status, _, err := e.read()
	if err != nil {
		return
	}
	wanted := make(map[tunnel.PublicKey]bool, len(keys))
	for _, k := range keys {
		wanted[k] = true
	}
	for _, p := range status {
		if !p.Endpoint.IsValid() || len(keys) > 0 && !wanted[p.PublicKey] {
			continue
		}
		if dev := e.dev.LookupPeer(device.NoisePublicKey(p.PublicKey)); dev != nil {
			_ = dev.SendHandshakeInitiation(false) // the device has logged it
		}
	}
}

// Reroute stops sending from addresses of ours, and sends something at once to each peer, so that it knows where we
// are. The device does not tell which of our addresses it sends to a peer from.
func (e *Engine) Reroute(r tunnel.Reroute) {
	status, _, err := e.read()
	if err != nil {
		return
	}
	f := &former{}
	f.Set(r.From, int64(time.Since(e.hub.began)+tunnel.TrialTime))
	if len(r.Keys) > 0 {
		f.remotes = map[netip.AddrPort]bool{}
		for _, p := range status {
			if r.About(p.PublicKey) {
				f.remotes[p.Endpoint] = true
			}
		}
	}
	e.hub.former.Store(f)
	for _, p := range status {
		if !p.Endpoint.IsValid() || !r.About(p.PublicKey) || p.LastHandshake.IsZero() && p.Keepalive == 0 {
			continue
		}
		if dev := e.dev.LookupPeer(device.NoisePublicKey(p.PublicKey)); dev != nil {
			dev.SendKeepalive()
		}
	}
}

// Endpoints sends the endpoints of all peers that have one, whenever one has changed. A late reader gets the
// newest.
func (e *Engine) Endpoints() <-chan map[tunnel.PublicKey]netip.AddrPort { return e.endpoints }

// Status describes the device and its peers. It contains no secret.
func (e *Engine) Status() tunnel.DeviceStatus {
	s := tunnel.DeviceStatus{
		Class: e.class, Interface: e.tun.name, Engine: tunnel.EngineWireGuardGo,
		ListenPort: e.bind.port, PlanePID: os.Getpid(), Since: e.since, Drops: e.hub.drops.all(),
	}
	s.Queue = e.hub.fair.status()
	if n := e.bind.overflow(); n > 0 {
		s.Drops[dropSocketOverflow.String()] = n
	}
	peers, own, err := e.read()
	if err != nil {
		return s
	}
	s.PublicKey = own.String()
	t := e.hub.peers.now.Load()
	for i := range peers {
		if p := t.byKey[peers[i].PublicKey]; p != nil {
			peers[i].TxPackets, peers[i].RxPackets = p.tx.Load(), p.rx.Load()
		}
	}
	s.Peers = peers
	return s
}

// read asks the device for its peers and its public key.
func (e *Engine) read() ([]tunnel.PeerStatus, tunnel.PublicKey, error) {
	var b bytes.Buffer
	if err := e.dev.IpcGetOperation(&b); err != nil {
		return nil, tunnel.PublicKey{}, err
	}
	defer clear(b.Bytes()) // private and preshared keys
	return parseGet(b.Bytes(), e.public)
}

// public is k.Public, which is expensive, cached for the last key.
func (e *Engine) public(k tunnel.PrivateKey) tunnel.PublicKey {
	sum := sha256.Sum256(k[:]) // no second copy of the key itself
	if p := e.pair.Load(); p != nil && p.sum == sum {
		return p.public
	}
	p := &keyPair{sum: sum, public: k.Public()}
	e.pair.Store(p)
	return p.public
}

// keyPair is a public key and the digest of the private one.
type keyPair struct {
	sum    [sha256.Size]byte
	public tunnel.PublicKey
}

// refreshLoop keeps up to date what only the device knows: sessions and endpoints.
func (e *Engine) refreshLoop() {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		select {
		case <-e.hub.closed:
			return
		case <-tick.C:
		case <-e.hub.peers.kicks:
		}
		began := time.Now()
		e.refresh()
		rest.Reset(max(refreshRest, refreshShare*time.Since(began)))
		select {
		case <-e.hub.closed:
			return
		case <-rest.C:
		}
	}
}

func (e *Engine) refresh() {
	e.hub.peers.refreshing.Lock()
	defer e.hub.peers.refreshing.Unlock()
	status, own, err := e.read()
	if err != nil {
		return
	}

	if own != e.own {
		e.own = own
		e.hub.mac1.Init(device.NoisePublicKey(own))
		e.hub.cross.setOwn(own)
		e.hub.peers.forsake() // the device has made its sessions void
	}
	e.hub.peers.update(e.dev, status)
	e.hub.cross.settle(status)

	ends := make(map[tunnel.PublicKey]netip.AddrPort)
	for _, p := range status {
		if p.Endpoint.IsValid() {
			ends[p.PublicKey] = p.Endpoint
		}
	}
	if maps.Equal(ends, e.lastEnds) {
		return
	}
	e.lastEnds = ends
	select {
	case <-e.endpoints: // nobody has read the last one
	default:
	}
	e.endpoints <- maps.Clone(ends) // never blocks: it has a buffer of one, and only refresh sends
}
