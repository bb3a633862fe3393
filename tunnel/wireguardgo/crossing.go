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
	return &crossings{sent: map[netip.AddrPort]*initiation{}, seen: map[netip.AddrPort]incoming{}, peers: map[tunnel.PublicKey]time.Time{}, late: make(chan heldBack, crossingMany), wake: wake}
}

// crossings settles handshakes that cross. When both ends initiate within one round trip (two boxes that
// boot together), each answers the other's initiation and forgets its own, so neither takes the answer, and the
// tunnel is dead until the next try, five seconds later, which may cross again. So the end with the higher public key,
// while its own initiation is on the way, keeps that peer's back: to the other end it is as if it were on the way
// itself. It is let go when the answer comes, and given to the device when none does.
type crossings struct {
	mu   sync.Mutex
	own  *tunnel.PublicKey
	sent map[netip.AddrPort]*initiation // by destination; unanswered
	late chan heldBack                  // what was kept back in vain
	wake func()                         // has the receivers look there

	seen map[netip.AddrPort]incoming // by source; given to the device a moment ago

	peers map[tunnel.PublicKey]time.Time // the device's, also those that it is just being told of: when it was
}

// initiation is what is kept of one that was sent: whom it is for is said by its first MAC alone
// (WireGuard paper, section 5.4.4).
type initiation struct {
	at   time.Time
	head [device.MessageInitiationSize - 2*blake2s.Size128]byte
	mac1 [blake2s.Size128]byte
	held bool
}

// incoming is an initiation of a peer, or of who forges its address.
type incoming struct {
	at     time.Time
	spared time.Time // when one of ours was kept from crossing it
}

// heldBack is an initiation of a peer.
type heldBack struct {
	message [device.MessageInitiationSize]byte
	from    *endpoint
}

// crossingTime is the longest round trip for which crossings are settled, and so the longest that one is kept back.
const crossingTime = 300 * time.Millisecond

// settleAfter is the longest that a device takes to take over peers that it is told of.
const settleAfter = 5 * time.Second

// takingIn is the longest that a device takes for an initiation on a busy machine. sparedFor is longer than
// its own time between two tries.
const (
	takingIn  = 50 * time.Millisecond
	sparedFor = 12 * time.Second
)

// crossingMany is how many are kept before old ones are looked for, crossingAll how many of what strangers can cause.
const (
	crossingMany = 64
	crossingAll  = 4096
)

func (c *crossings) setOwn(k tunnel.PublicKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own = &k
	clear(c.sent)
	clear(c.seen)
}

// expect notes the peers of a set operation's body before the device has them: it initiates while it takes them over.
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

// settle takes over whom the device has as peers.
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

// leave notes what is about to be sent. It says whether it may go: an initiation may not while the device is taking in
// that peer's, which it got a moment before it made its own. Not twice in a row, or whoever can forge that peer's
// address could keep us from ever initiating.
func (c *crossings) leave(to netip.AddrPort, bufs [][]byte) (goes bool) {
	if len(bufs) != 1 || len(bufs[0]) != device.MessageInitiationSize || binary.LittleEndian.Uint32(bufs[0]) != device.MessageInitiationType {
		return true // the device sends handshake messages alone
	}
	i := &initiation{at: time.Now()}
	copy(i.mac1[:], bufs[0][copy(i.head[:], bufs[0]):])
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.sent) >= crossingMany {
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

// keepBack says whether the initiation in p is kept back. p is copied.
func (c *crossings) keepBack(p []byte, from *endpoint) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	i := c.sent[from.dst]
	if i == nil || c.own == nil || now.Sub(i.at) >= crossingTime || !c.higherThan(i) {
		c.letIn(from.dst, now)
		return false
	}
	rest := crossingTime - now.Sub(i.at)
	if !i.held { // one is enough: a peer that sends several sends the same again
		i.held = true
		h := heldBack{from: from}
		copy(h.message[:], p)
		time.AfterFunc(rest, func() { c.giveBack(i, h) })
	}
	return true
}

// letIn notes that the device gets an initiation.
func (c *crossings) letIn(from netip.AddrPort, now time.Time) {
	if len(c.seen) >= crossingMany {
		maps.DeleteFunc(c.seen, func(_ netip.AddrPort, i incoming) bool {
			return now.Sub(i.at) > takingIn && now.Sub(i.spared) > sparedFor
		})
	}
	if in, ok := c.seen[from]; ok || len(c.seen) < crossingAll {
		in.at = now
		c.seen[from] = in
	}
}

// higherThan says whether our key is higher than that of the peer whom i is for.
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
	default: // nobody receives: the device is down, or drowned
	}
}

// isFor says whether the initiation is for the peer of that key.
func (i *initiation) isFor(k tunnel.PublicKey) bool {
	label, _ := blake2s.New256(nil) // fails for no key that is nil
	label.Write([]byte(device.WGLabelMAC1))
	label.Write(k[:])
	mac, _ := blake2s.New128(label.Sum(nil))
	mac.Write(i.head[:])
	return bytes.Equal(mac.Sum(nil), i.mac1[:])
}
