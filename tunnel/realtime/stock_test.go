package realtime

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"ringway/tunnel"
	"ringway/tunnel/datagram"
)

// mixed is a bare engine and stock wireguard-go's device, both in this process, at the two ends of a wire of
// the test's. Stock does not know clock but the machine's, so time is real here.
//
//	bare engine --- socket, delay --- Bind --- device --- channel TUN
type mixed struct {
	t       *testing.T
	us      *bare
	p       *peer
	stock   *device.Peer
	tun     *tuntest.ChannelTUN
	bind    *wireBind
	socket  *bare // the wire's: what we send to stock arrives there
	delay   time.Duration
	stalled time.Time // until then nothing reaches stock, as if it were given no processor
	toUs    []late
	toStock []late
	feed    chan []byte

	sent   [2]uint32 // by us, by stock
	mu     sync.Mutex
	seen   [2]map[uint32]bool
	talk   time.Time
	ticked time.Time
	read   int64 // when stock's initiation before its last one was taken
}

type late struct {
	due time.Time
	b   []byte
}

// wireBind is stock's socket.
type wireBind struct {
	in, out chan []byte
	closed  chan struct{}
}

func (b *wireBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	return []conn.ReceiveFunc{func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case <-b.closed:
			return 0, net.ErrClosed
		case m := <-b.in:
			sizes[0], eps[0] = copy(packets[0], m), wireEnd{}
			return 1, nil
		}
	}}, 1, nil
}
func (b *wireBind) Close() error         { return nil } // also called before Open
func (b *wireBind) SetMark(uint32) error { return nil }
func (b *wireBind) Send(bufs [][]byte, _ conn.Endpoint) error {
	for _, p := range bufs {
		b.out <- append([]byte(nil), p...)
	}
	return nil
}
func (b *wireBind) ParseEndpoint(string) (conn.Endpoint, error) { return wireEnd{}, nil }
func (b *wireBind) BatchSize() int                              { return 1 }

// wireEnd is the wire's only other end.
type wireEnd struct{}

func (wireEnd) ClearSrc()           {}
func (wireEnd) SrcToString() string { return "" }
func (wireEnd) DstToString() string { return "192.0.2.1:1" }
func (wireEnd) DstToBytes() []byte  { return []byte{192, 0, 2, 1} }
func (wireEnd) DstIP() netip.Addr   { return netip.AddrFrom4([4]byte{192, 0, 2, 1}) }
func (wireEnd) SrcIP() netip.Addr   { return netip.Addr{} }

func newMixed(t *testing.T, delay time.Duration) *mixed {
	r := &rig{t: t, now: 1}
	m := &mixed{t: t, us: r.engine(1), socket: r.engine(9), delay: delay, feed: make(chan []byte, 1<<12),
		tun:  tuntest.NewChannelTUN(),
		bind: &wireBind{in: make(chan []byte, 1<<12), out: make(chan []byte, 1<<12), closed: make(chan struct{})},
		seen: [2]map[uint32]bool{{}, {}}}
	m.us.clock, m.us.stamp = sinceEpoch, tai64n.Now
	key, err := tunnel.NewPrivateKey()
	require.NoError(t, err)
	d := device.NewDevice(m.tun.TUN(), m.bind, device.NewLogger(device.LogLevelSilent, ""))
	require.NoError(t, d.IpcSet(fmt.Sprintf("private_key=%s\npublic_key=%s\n"+
		"allowed_ip=10.0.1.0/24\nendpoint=192.0.2.1:1\n", key.Hex(), m.us.key.Public().Hex())))
	require.NoError(t, d.Up())
	m.stock = d.LookupPeer(device.NoisePublicKey(m.us.key.Public()))
	set := fmt.Sprintf("private_key=%s\npublic_key=%s\nallowed_ip=10.0.2.0/24\nendpoint=%s\n",
		m.us.key.Hex(), key.Public().Hex(), m.socket.at)
	require.NoError(t, m.us.Set(strings.NewReader(set)))
	m.p = m.us.peers[key.Public()]
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case p := <-m.feed:
				select {
				case <-done:
					return
				case m.tun.Outbound <- p:
				}
			}
		}
	})
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case p := <-m.tun.Inbound:
				m.mu.Lock()
				m.seen[0][binary.BigEndian.Uint32(p[28:])] = true
				m.mu.Unlock()
			}
		}
	})
	t.Cleanup(func() {
		close(m.bind.closed)
		d.Close()
		close(done)
		wg.Wait()
	})
	return m
}

const (
	mixedTalk = 4 * time.Millisecond // a packet each way
	mixedStep = 100 * time.Microsecond
)

// pass has the wire carry what is sent for a while.
func (m *mixed) pass(d time.Duration, talk bool) {
	m.t.Helper()
	from := datagram.RawSockaddr(m.socket.at)
	for end := time.Now().Add(d); ; {
		now := time.Now()
		if !now.Before(end) {
			return
		}
		if talk && now.Sub(m.talk) >= mixedTalk {
			m.talk = now
			for i, p := range [][]byte{packet(1, 2, 0, 100), packet(2, 1, 0, 100)} {
				binary.BigEndian.PutUint32(p[28:], m.sent[i])
				m.sent[i]++
				if i == 0 {
					m.us.send(p)
				} else {
					m.feed <- p
				}
			}
		}
		m.us.step()
		for _, b := range m.socket.wire() {
			m.toStock = append(m.toStock, late{now.Add(m.delay), b})
		}
		for more := true; more; {
			select {
			case b := <-m.bind.out:
				m.toUs = append(m.toUs, late{now.Add(m.delay), b})
			default:
				more = false
			}
		}
		if len(m.toStock) > 0 && now.After(m.toStock[0].due) && now.After(m.stalled) {
			m.bind.in <- m.toStock[0].b
			m.toStock = m.toStock[1:]
		}
		if len(m.toUs) > 0 && now.After(m.toUs[0].due) {
			b := m.toUs[0].b
			m.toUs = m.toUs[1:]
			m.us.in.datagram(append(make([]byte, 0, len(b)+64), b...), &from, &datagram.Arrival{}, m.us.now())
			m.us.step()
		}
		for _, p := range m.us.got() {
			m.seen[1][binary.BigEndian.Uint32(p[28:])] = true
		}
		if now.Sub(m.ticked) >= tick {
			m.ticked = now
			m.us.mu.Lock()
			m.us.checkTimersLocked(m.p, m.us.now())
			m.us.wipeRetiredLocked()
			m.us.mu.Unlock()
		}
		ts := unix.NsecToTimespec(int64(mixedStep))
		_ = unix.Nanosleep(&ts, nil)
	}
}

// ready waits until what either end has begun is over, and so long that a next one is no flood
// (initiationsEvery): in truth five seconds are between two of one end's.
func (m *mixed) ready() {
	for m.p.pending != nil && time.Duration(m.us.now()-m.p.initiated) < 300*time.Millisecond ||
		m.p.lastRead == m.read || time.Now().Before(m.stalled) {
		m.pass(time.Millisecond, true)
	}
	m.pass(2*m.delay+30*time.Millisecond, true)
}

// rekey has one end begin a new session, as if it had begun none in five seconds.
func (m *mixed) rekey(end int) {
	m.t.Helper()
	if end == 1 {
		// A thread without a processor begins nothing. (Two messages of handshakes that wait for stock together it
		// takes in any order, since it has a thread for each. Then it may drop a session that we have to send in,
		// and nothing that we do can help that.)
		for time.Now().Before(m.stalled) {
			m.pass(time.Millisecond, true)
		}
		m.pass(5*time.Millisecond, true)
		m.read = m.p.lastRead
		m.stock.ExpireCurrentKeypairs() // the only way to have it begin now: it is as if its sessions had been used up
		require.NoError(m.t, m.stock.SendHandshakeInitiation(false))
		return
	}
	for { // it may have to wait for stock's own
		m.us.mu.Lock()
		m.p.initiated = 0
		m.us.initiateLocked(m.p)
		begun := m.p.initiated != 0
		m.us.mu.Unlock()
		if begun {
			return
		}
		m.pass(time.Millisecond, true)
	}
}

// Fifty times one end begins a session, or each after the other, 0-200 ms after the last, while packets flow
// both ways and stock is given no processor now and then: none is lost.
func TestBurstsOfHandshakesWithStock(t *testing.T) {
	t.Parallel()
	for seed, delay := range []time.Duration{2 * time.Millisecond, 7 * time.Millisecond, 20 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(uint64(seed), 7))
			upTo := func(d time.Duration) time.Duration { return time.Duration(random.Int64N(int64(d))) }
			m := newMixed(t, delay)
			m.us.send(packet(1, 2, 0, 100)) // the first session
			m.sent[0]++
			for !m.p.current.Load().usable(m.us.now()) {
				m.pass(time.Millisecond, false)
			}
			m.read = -1
			for range 50 {
				m.ready()
				end := random.IntN(2)
				m.rekey(end)
				both := random.IntN(2) == 0
				// As in rekey: then an answer and an initiation of ours would wait together.
				if random.IntN(3) == 0 && !(both && end == 1) {
					m.stalled = time.Now().Add(upTo(80 * time.Millisecond))
				}
				if both {
					// Not crossing: a thread each of stock's would take our initiation and our answer, in any order, and in
					// one of them drops the session that we have to send in. Nothing that we do can help that
					// (TestCrossingHandshakesLoseNothing has two of ours).
					for end == 1 && m.p.lastRead == m.read || end == 0 && m.p.pending != nil &&
						time.Duration(m.us.now()-m.p.initiated) < 300*time.Millisecond {
						m.pass(time.Millisecond, true)
					}
					m.pass(upTo(5*time.Millisecond+3*delay), true)
					m.rekey(1 - end)
				}
				m.pass(upTo(200*time.Millisecond-2*delay-30*time.Millisecond), true)
			}
			m.ready()
			got := func(i int, sent uint32) bool {
				m.mu.Lock()
				defer m.mu.Unlock()
				return len(m.seen[i]) == int(sent)
			}
			for end := time.Now().Add(2 * time.Second); time.Now().Before(end) && !(got(0, m.sent[0]) && got(1, m.sent[1])); {
				m.pass(10*time.Millisecond, false)
			}
			assert.True(t, got(0, m.sent[0]), "lost on the way to stock: %d of %d", int(m.sent[0])-len(m.seen[0]), m.sent[0])
			assert.True(t, got(1, m.sent[1]), "lost on the way to us: %d of %d; drops %v", int(m.sent[1])-len(m.seen[1]),
				m.sent[1], m.us.drops.all())
		})
	}
}
