package wireguardgo

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.zx2c4.com/wireguard/device"

	"ringway/tunnel"
)

// newCrossings makes crossings that call wake when there is something in late.
func newCrossings(wake func()) *crossings {
	return &crossings{
		sent:  map[netip.AddrPort]*initiation{},
		seen:  map[netip.AddrPort]incoming{},
		peers: map[tunnel.PublicKey]time.Time{},
		late:  make(chan heldBack, keptInitiations),
		wake:  wake,
	}
}

// crossings resolves handshakes that cross. When both ends initiate within one round trip (two boxes that
// boot together), each answers the other's initiation and forgets its own, so neither accepts the answer, and
// the tunnel is dead until the next try, five seconds later, which may cross again. So the end with the
// higher public key, while its own initiation is on the way, holds back that of the peer: to the other end it
// looks as if it were on the way itself. It is dropped when the answer comes, and given to the device if none
// does.
type crossings struct {
	mu   sync.Mutex
	own  *tunnel.PublicKey
	sent map[netip.AddrPort]*initiation // by destination; unanswered
	late chan heldBack                  // what was held back, and its answer did not come
	wake func()                         // makes the receivers read late

	seen map[netip.AddrPort]incoming // by source; given to the device a moment ago

	peers map[tunnel.PublicKey]time.Time // the device's; not zero: when it was told of a peer that it may not have yet
}

// initiation is what is kept of one that was sent. Its first MAC alone says which peer it is for (WireGuard
// paper, section 5.4.4).
type initiation struct {
	at   time.Time
	head [device.MessageInitiationSize - 2*blake2s.Size128]byte
	mac1 [blake2s.Size128]byte
	held bool
}

// incoming is an initiation of a peer, or of someone who forges its address.
type incoming struct {
	at     time.Time
	spared time.Time // when one of ours was dropped that would have crossed it
}

// heldBack is an initiation of a peer.
type heldBack struct {
	message [device.MessageInitiationSize]byte
	from    *endpoint
}

// crossingTime is the longest round trip for which crossings are resolved, and so the longest that an initiation
// is held back.
const crossingTime = 300 * time.Millisecond

// settleAfter is the longest that a device takes to have peers that it is told of.
const settleAfter = 5 * time.Second

// takingIn is the longest that a device takes to process an initiation on a busy machine. sparedFor is longer
// than its own interval between two tries.
const (
	takingIn  = 50 * time.Millisecond
	sparedFor = 12 * time.Second
)

// keptInitiations is how many are kept before old ones are removed, maxSeen how many of those that strangers
// can cause.
const (
	keptInitiations = 64
	maxSeen         = 4096
)

func (c *crossings) setOwn(k tunnel.PublicKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own = &k
	clear(c.sent)
	clear(c.seen)
}

// expect notes the peers of a set operation's body before the device has them: it initiates while it takes
// them over.
func (c *crossings) expect(body []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for line := range bytes.Lines(body) {
		if value, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("public_key=")); ok {
			var k tunnel.PublicKey
			if n, err := hex.Decode(k[:], value); err == nil && n == len(k) {
				c.peers[k] = time.Now()
			}
		}
	}
}

// settle takes over the peers that the device has.
func (c *crossings) settle(seen []tunnel.PeerStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.peers, func(_ tunnel.PublicKey, told time.Time) bool { return time.Since(told) > settleAfter })
	for _, p := range seen {
		if _, ok := c.peers[p.PublicKey]; !ok {
			c.peers[p.PublicKey] = time.Time{}
		}
	}
}

// leave notes what is about to be sent, and reports whether it may be. An initiation may not while the device
// is processing that of the same peer, which it got just before it made its own. But not twice in a row, or
// whoever can forge that peer's address could keep us from ever initiating.
func (c *crossings) leave(to netip.AddrPort, bufs [][]byte) (goes bool) {
	if len(bufs) != 1 || len(bufs[0]) != device.MessageInitiationSize ||
		binary.LittleEndian.Uint32(bufs[0]) != device.MessageInitiationType {
		return true // the device sends handshake messages alone
	}
	i := &initiation{at: time.Now()}
	copy(i.mac1[:], bufs[0][copy(i.head[:], bufs[0]):])
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.sent) >= keptInitiations {
		for to, old := range c.sent {
			if i.at.Sub(old.at) > crossingTime {
				delete(c.sent, to)
			}
		}
	}
	if in, ok := c.seen[to]; ok && i.at.Sub(in.at) < takingIn && i.at.Sub(in.spared) > sparedFor {
		in.spared = i.at
		c.seen[to] = in
		return false
	}
	c.sent[to] = i
	return true
}

// answered notes a response: what comes after it is a new handshake.
func (c *crossings) answered(from netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sent, from)
}

// holdBack reports whether the initiation in p is held back. It copies p.
func (c *crossings) holdBack(p []byte, from *endpoint) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	i := c.sent[from.dst]
	if i == nil || c.own == nil || now.Sub(i.at) >= crossingTime || !c.higherThan(i) {
		c.letIn(from.dst, now)
		return false
	}
	rest := crossingTime - now.Sub(i.at)
	if !i.held { // one is enough: several of one peer say the same
		i.held = true
		h := heldBack{from: from}
		copy(h.message[:], p)
		time.AfterFunc(rest, func() { c.giveBack(i, h) })
	}
	return true
}

// letIn notes that an initiation is given to the device.
func (c *crossings) letIn(from netip.AddrPort, now time.Time) {
	if len(c.seen) >= keptInitiations {
		maps.DeleteFunc(c.seen, func(_ netip.AddrPort, i incoming) bool {
			return now.Sub(i.at) > takingIn && now.Sub(i.spared) > sparedFor
		})
	}
	if in, ok := c.seen[from]; ok || len(c.seen) < maxSeen {
		in.at = now
		c.seen[from] = in
	}
}

// higherThan reports whether our key is higher than that of the peer that i is for.
func (c *crossings) higherThan(i *initiation) bool {
	for k := range c.peers {
		if i.isFor(k) {
			return bytes.Compare(c.own[:], k[:]) > 0
		}
	}
	return false
}

// giveBack gives a peer's initiation to the device, since our own, i, was not answered.
func (c *crossings) giveBack(i *initiation, h heldBack) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sent[h.from.dst] != i {
		return
	}
	delete(c.sent, h.from.dst)
	select {
	case c.late <- h:
		c.wake()
	default: // nobody receives: the device is down, or overloaded
	}
}

// isFor reports whether the initiation is for the peer with that key.
func (i *initiation) isFor(k tunnel.PublicKey) bool {
	label, _ := blake2s.New256(nil) // fails for no key that is nil
	label.Write([]byte(device.WGLabelMAC1))
	label.Write(k[:])
	mac, _ := blake2s.New128(label.Sum(nil))
	mac.Write(i.head[:])
	return bytes.Equal(mac.Sum(nil), i.mac1[:])
}
