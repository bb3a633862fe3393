package wireguardgo

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"
	"golang.zx2c4.com/wireguard/device"

	"ringway/tunnel"
)

// The device package keeps packets for a peer without a session: 128 batches of them, each packet in 64 KiB,
// oldest out first. So that a dead site cannot fill the outbound gate, only a few packets at a time may wait
// there: they make the device shake hands, and the first of them that comes out at the socket shows that
// there is a session.

const (
	// freshFor is how long after a handshake a session is assumed to exist: the 180 s after which the device
	// rejects it (WireGuard paper, section 6.1), less what refresh may lag.
	freshFor = 175 * time.Second
	// waitersFor is how long the waiting packets wait before newer ones take their place.
	waitersFor    = 5 * time.Second
	maxWaiters    = 4   // of one peer
	maxAllWaiters = 256 // of all, down to one for each peer

	// Peers are refreshed every second, which is soon enough to see where one roamed to, and at once when an
	// authenticated packet shows that a session exists. Nothing that a stranger sends makes it more often.
	refreshEvery = time.Second
	refreshRest  = 10 * time.Millisecond // at least between two
	// The least between two is also so many times as long as one took: with many peers that is milliseconds.
	refreshShare = 20
)

// peer is one site.
type peer struct {
	key  tunnel.PublicKey
	slot uint32
	dev  *device.Peer

	tx, rx  atomic.Uint64 // packets
	account account       // what is under way to it (sites.go)

	fresh   atomic.Bool
	waiters atomic.Int32 // packets let in since one came out
	since   time.Time    // of the first waiter; the TUN's reader only

	handshake time.Time      // as the device says, by the wall clock; refresh only
	shaken    time.Time      // when refresh saw that, by the monotonic clock
	networks  []netip.Prefix // allowed IPs in the table; refresh only
}

// table is an immutable view of the peers.
type table struct {
	bySlot []*peer // nil: free
	byKey  map[tunnel.PublicKey]*peer
	routes *bart.Table[*peer] // allowed IPs
	few    int32              // packets of one peer that may wait for a session
}

type peers struct {
	now   atomic.Pointer[table]
	kicks chan struct{}

	refreshing sync.Mutex // held while the device is read and the table updated
}

func newPeers() *peers {
	p := &peers{kicks: make(chan struct{}, 1)}
	p.now.Store(&table{routes: new(bart.Table[*peer]), few: maxWaiters})
	return p
}

// kick has the peers refreshed soon. It never blocks. Only what is authenticated may cause it.
func (p *peers) kick() {
	select {
	case p.kicks <- struct{}{}:
	default:
	}
}

// lookup finds the peer behind an inner address; nil if there is none.
func (t *table) lookup(a netip.Addr) *peer {
	p, _ := t.routes.Lookup(a)
	return p
}

// admit decides whether a packet for the peer enters the device.
func (t *table) admit(p *peer) bool {
	if p.fresh.Load() {
		return true
	}
	if p.waiters.Load() == 0 {
		p.since = time.Now()
	} else if p.waiters.Load() >= t.few {
		now := time.Now()
		if now.Sub(p.since) < waitersFor {
			return false
		}
		p.dev.FlushStagedPackets()
		p.since = now
		p.waiters.Store(0)
	}
	p.waiters.Add(1)
	return true
}

// sent notes packets of a peer that reached the socket.
func (p *peers) sent(slot uint32, n int) {
	t := p.now.Load()
	if int(slot) >= len(t.bySlot) || t.bySlot[slot] == nil {
		return // the peer went meanwhile
	}
	peer := t.bySlot[slot]
	peer.tx.Add(uint64(n))
	if !peer.fresh.Load() {
		peer.waiters.Store(0)
		p.kick()
	}
}

// slot finds a peer by the number in a tag; nil if it was removed.
func (t *table) slot(n uint32) *peer {
	if int(n) >= len(t.bySlot) {
		return nil
	}
	return t.bySlot[n]
}

// forsake assumes that every session is lost, and drops what waits.
func (p *peers) forsake() {
	for _, peer := range p.now.Load().bySlot {
		if peer != nil {
			peer.fresh.Store(false)
			peer.waiters.Store(0)
			peer.dev.FlushStagedPackets()
		}
	}
}

// look takes over the state of the peer's session.
func (p *peer) look(s tunnel.PeerStatus, now time.Time) {
	if !s.LastHandshake.Equal(p.handshake) { // the wall clock may jump: only the change counts
		p.handshake, p.shaken = s.LastHandshake, now
	}
	p.fresh.Store(!p.handshake.IsZero() && now.Sub(p.shaken) < freshFor)
}

// holds reports whether the table has just these peers with these networks, as it does unless they were just set.
func (t *table) holds(d *device.Device, seen []tunnel.PeerStatus) bool {
	if len(seen) != len(t.byKey) {
		return false
	}
	for _, s := range seen {
		e := t.byKey[s.PublicKey]
		if e == nil || e.dev != d.LookupPeer(device.NoisePublicKey(s.PublicKey)) ||
			!slices.Equal(e.networks, s.AllowedIPs) {
			return false
		}
	}
	return true
}

// update takes over what the device says about its peers. The caller holds refreshing.
func (p *peers) update(d *device.Device, seen []tunnel.PeerStatus) {
	old, now := p.now.Load(), time.Now()
	if old.holds(d, seen) {
		for _, s := range seen {
			old.byKey[s.PublicKey].look(s, now)
		}
		return
	}
	t := &table{
		bySlot: make([]*peer, len(old.bySlot), max(len(old.bySlot), len(seen))),
		byKey:  make(map[tunnel.PublicKey]*peer, len(seen)),
		routes: new(bart.Table[*peer]),
		few:    int32(min(max(maxAllWaiters/max(len(seen), 1), 1), maxWaiters)),
	}
	var added []*peer
	for _, s := range seen {
		dev := d.LookupPeer(device.NoisePublicKey(s.PublicKey))
		if dev == nil {
			continue
		}
		e := old.byKey[s.PublicKey]
		if e == nil || e.dev != dev {
			e = &peer{key: s.PublicKey, dev: dev}
			added = append(added, e)
		} else {
			t.bySlot[e.slot] = e
		}
		t.byKey[s.PublicKey] = e
		e.look(s, now)
		e.networks = s.AllowedIPs
		for _, prefix := range s.AllowedIPs {
			t.routes.Insert(prefix, e)
		}
	}
	for _, e := range added {
		e.slot = uint32(len(t.bySlot))
		for i, free := range t.bySlot {
			if free == nil {
				e.slot = uint32(i)
			}
		}
		if int(e.slot) == len(t.bySlot) {
			t.bySlot = append(t.bySlot, nil)
		}
		t.bySlot[e.slot] = e
	}
	p.now.Store(t)
}
