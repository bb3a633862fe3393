package dtls_test

import (
	"encoding/binary"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/dtls"
)

// record makes one in clear, with a sequence number that was not used.
func record(content byte, epoch uint16, body ...byte) []byte {
	r := []byte{content, 0xfe, 0xfd, byte(epoch >> 8), byte(epoch), 0, 0, 0, 1, 0, byte(mathrand.IntN(256))}
	return append(binary.BigEndian.AppendUint16(r, uint16(len(body))), body...)
}

// forgeries are what anyone can send, and would end a handshake or an association if it were believed.
var forgeries = map[string][]byte{
	"close_notify":           record(21, 0, 1, 0),
	"fatal alert":            record(21, 0, 2, 40),
	"half an alert":          record(21, 0, 2),
	"close_notify encrypted": record(21, 1, make([]byte, 26)...),
	"data in clear":          record(23, 0, 1, 2, 3),
	"no ChangeCipherSpec":    record(20, 0, 9, 9),
	"heartbeat":              record(24, 0, 1, 0, 0),
	"unknown type":           record(63, 0, 1),
	"of epoch 2":             record(22, 2, make([]byte, 40)...),
	"empty":                  record(22, 0),
	"short":                  {22, 0xfe},
	"too long":               {22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 1},
	"TLS":                    {22, 3, 3, 0, 5, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0},
	"unknown handshake":      record(22, 0, append([]byte{99, 0, 0, 1, 0, 50, 0, 0, 0, 0, 0, 1}, 7)...),
	// The library would take all that comes afterwards for old.
	"last sequence number": slices.Concat([]byte{22, 0xfe, 0xfd, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 13},
		[]byte{11, 0, 0, 1, 0, 50, 0, 0, 0, 0, 0, 1, 7}),
}

// Each forgery, from the peer's address, before every datagram of a handshake and after it.
func TestForgeriesEndNothing(t *testing.T) {
	for name, forged := range forgeries {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(t)
				w.filter(func(from *end, _ []byte) (int, time.Duration) {
					to := w.other(from)
					time.AfterFunc(latency/2, func() { to.Receive(to.leg, from.address, forged) })
					return 1, 0
				})
				w.start(w.box, dtls.Server)
				w.start(w.phone, dtls.Client)
				w.established(2 * time.Second)
				for range 10 {
					w.box.Receive(boxLeg, phoneAddress, forged)
					w.phone.Receive(3, boxAddress, forged)
					time.Sleep(time.Second)
				}
				assert.Empty(t, w.box.take())
				assert.Empty(t, w.phone.take())
				_, kept, err := w.box.Start(boxLeg, w.agreement(w.box, dtls.Server))
				require.NoError(t, err)
				assert.True(t, kept)
			})
		})
	}
}

// A forged alert in the middle of a handshake whose keys are held afterwards: they are there when the answer comes, and
// what the client repeats is answered.
func TestForgedAlertBeforeTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		require.NoError(t, w.box.Offer(boxLeg, nil))
		w.start(w.phone, dtls.Client)
		time.Sleep(90 * time.Millisecond)
		w.box.Receive(boxLeg, phoneAddress, forgeries["fatal alert"])
		phone := w.phone.one(t, time.Second)
		require.NoError(t, phone.Err)
		time.Sleep(10 * time.Second)
		w.start(w.box, dtls.Server)
		box := w.box.one(t, 0)
		require.NoError(t, box.Err)
		sameKeys(t, box.Keys, phone.Keys)
	})
}

// Copies of the handshake's own datagrams with a few bytes changed. A storm of them may spoil handshakes, since the
// first messages are not authenticated by themselves, but nothing crashes, both ends have the same keys, and nothing
// runs on. Where one follows each datagram, hardly any handshake suffers.
func TestMutatedDatagrams(t *testing.T) {
	for name, c := range map[string]struct{ copies, after, whole int }{
		"storm": {3, 0, 0}, "copies": {1, 20, 36},
	} {
		t.Run(name, func(t *testing.T) {
			whole := 0
			for seed := range uint64(40) {
				synctest.Test(t, func(t *testing.T) {
					w, random := newWire(t), mathrand.New(mathrand.NewPCG(seed, 1))
					w.filter(func(from *end, datagram []byte) (int, time.Duration) {
						to := w.other(from)
						for range c.copies {
							d := mutated(datagram, random)
							late := time.Duration(c.after+random.IntN(60)) * time.Millisecond
							time.AfterFunc(late, func() { to.Receive(to.leg, from.address, d) })
						}
						return 1, 0
					})
					w.start(w.box, dtls.Server)
					w.start(w.phone, dtls.Client)
					time.Sleep(2 * time.Minute)
					box, phone := w.box.take(), w.phone.take()
					require.Len(t, box, 1)
					require.Len(t, phone, 1)
					if box[0].Keys != nil && phone[0].Keys != nil {
						sameKeys(t, box[0].Keys, phone[0].Keys)
						whole++
					}
				})
			}
			assert.GreaterOrEqual(t, whole, c.whole, "of 40")
			t.Logf("%d of 40", whole)
		})
	}
}

func mutated(datagram []byte, random *mathrand.Rand) []byte {
	d := slices.Clone(datagram)
	for range 1 + random.IntN(4) {
		d[random.IntN(len(d))] = byte(random.IntN(256))
	}
	return d[:len(d)-random.IntN(len(d))*random.IntN(2)]
}

// firstHello returns the ClientHello that the phone begins with.
func (w *wire) firstHello() []byte {
	w.filter(func(*end, []byte) (int, time.Duration) { return 0, 0 })
	w.start(w.phone, dtls.Client)
	synctest.Wait()
	hellos := w.outgoing(w.phone)
	require.Len(w.t, hellos, 1)
	w.phone.Close(w.phone.leg)
	w.phone.take()
	w.filter(func(*end, []byte) (int, time.Duration) { return 1, 0 })
	return hellos[0]
}

// helloWith is a ClientHello with another random.
func helloWith(first []byte, random uint64) []byte {
	h := slices.Clone(first)
	binary.BigEndian.PutUint64(h[13+12+2+8:], random)
	return h
}

func stranger(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 666)
}

// A flood of ClientHellos from forged addresses at a leg that waits: little is begun, little is sent, and the peer
// gets through at once. Other legs do not notice.
func TestFloodOfHellos(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		first := w.firstHello()
		w.start(w.box, dtls.Server)
		w.outgoing(w.box)
		for i := range 2000 {
			w.box.Receive(boxLeg, stranger(i), helloWith(first, uint64(i)))
			time.Sleep(time.Millisecond)
		}
		c := w.box.Counters()
		assert.LessOrEqual(t, c.Started, uint64(4+2*2))
		assert.Equal(t, c.Started, uint64(len(w.outgoing(w.box))), "one HelloVerifyRequest each")
		assert.GreaterOrEqual(t, c.LegLimited, uint64(1990))

		stop := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := 5000; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
					w.box.Receive(boxLeg, stranger(i), helloWith(first, uint64(i)))
				}
			}
		}()
		w.start(w.phone, dtls.Client)
		w.established(300 * time.Millisecond)
		close(stop)
		<-done
	})
}

// Thirty handshakes a second begin, however many ask at once: those that we begin wait, the others repeat their
// hello.
func TestHandshakesASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		first := w.firstHello()
		before := w.box.Counters().Started
		for i := range 100 {
			a := w.agreement(w.box, dtls.Server)
			a.Remote = stranger(i)
			_, _, err := w.box.Start(boxLeg+dtls.Leg(i), a)
			require.NoError(t, err)
			w.box.Receive(boxLeg+dtls.Leg(i), stranger(i), helloWith(first, uint64(i)))
		}
		synctest.Wait()
		assert.Equal(t, uint64(3), w.box.Counters().Started-before)
		assert.Equal(t, uint64(97), w.box.Counters().RateLimited)
		for i := range 100 {
			w.box.Close(boxLeg + dtls.Leg(i))
		}
		before = w.box.Counters().Started
		for i := range 100 {
			a := w.agreement(w.box, dtls.Client)
			a.Remote = stranger(i)
			_, _, err := w.box.Start(1000+dtls.Leg(i), a)
			require.NoError(t, err)
		}
		for second := uint64(1); second <= 3; second++ {
			time.Sleep(time.Second)
			began := w.box.Counters().Started - before
			assert.LessOrEqual(t, began, 30*second+3)
			assert.GreaterOrEqual(t, began, 25*second)
		}
	})
}

// One source with many legs' ports in reach.
func TestHandshakesOfASource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		first := w.firstHello()
		for i := range 100 {
			require.NoError(t, w.box.Offer(100+dtls.Leg(i), nil))
			w.box.Receive(100+dtls.Leg(i), netip.AddrPortFrom(otherAddress.Addr(), uint16(1000+i)), helloWith(first, uint64(i)))
			time.Sleep(40 * time.Millisecond) // 25 a second in all
		}
		assert.Positive(t, w.box.Counters().SourceLimited)
		assert.LessOrEqual(t, w.box.Counters().Started, uint64(30+10*4+1))
		assert.Zero(t, w.box.Counters().RateLimited)
	})
}

// Handshakes whose cookie never comes back are bounded, over all legs.
func TestUnprovenAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		first := w.firstHello()
		for i := range 200 {
			require.NoError(t, w.box.Offer(100+dtls.Leg(i), nil))
			w.box.Receive(100+dtls.Leg(i), stranger(i), helloWith(first, uint64(i)))
			time.Sleep(40 * time.Millisecond)
		}
		c := w.box.Counters()
		assert.Equal(t, uint64(64), c.Started)
		assert.Equal(t, uint64(200-64), c.Full)
		time.Sleep(30 * time.Second) // then they are given up
		w.box.Receive(299, stranger(0), helloWith(first, 1))
		synctest.Wait()
		assert.Equal(t, uint64(65), w.box.Counters().Started)
	})
}

// A stranger who knows the peer's address sends other ClientHellos and wrong cookies. In the middle of its handshake
// they do nothing. Before it, the peer takes the cookie that answers the stranger's hello for its own, as any client
// of DTLS does; its next attempt succeeds.
func TestForgedHellos(t *testing.T) {
	for delay := time.Duration(0); delay < 140*time.Millisecond; delay += 7 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			w := newWire(t)
			first := w.firstHello()
			wrong := withCookie(first)
			w.start(w.box, dtls.Server)
			w.start(w.phone, dtls.Client)
			time.Sleep(delay)
			w.box.Receive(boxLeg, phoneAddress, helloWith(first, 77))
			w.box.Receive(boxLeg, phoneAddress, wrong)
			w.box.Receive(boxLeg, phoneAddress, helloWith(wrong, 77))
			if delay > latency {
				w.established(time.Second)
			} else {
				w.established(15 * time.Second)
			}
		})
	}
}

// withCookie is the ClientHello with a cookie that nobody has given, as the second message.
func withCookie(first []byte) []byte {
	h := slices.Clone(first)
	at := 13 + 12 + 2 + 32
	at += 1 + int(h[at]) // session
	cookie := append([]byte{20}, make([]byte, 20)...)
	h = slices.Concat(h[:at], cookie, h[at+1:])
	binary.BigEndian.PutUint16(h[11:], uint16(len(h)-13))
	n := len(h) - 13 - 12
	h[14], h[15], h[16] = 0, byte(n>>8), byte(n)
	h[22], h[23], h[24] = h[14], h[15], h[16]
	h[10], h[18] = 9, 1
	return h
}

// The library would end the handshake for a wrong cookie.
func TestWrongCookie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		var first []byte
		w.filter(func(from *end, datagram []byte) (int, time.Duration) {
			if from != w.phone || first != nil {
				return 1, 0
			}
			first = datagram
			time.AfterFunc(latency+5*time.Millisecond, func() { w.box.Receive(boxLeg, phoneAddress, withCookie(first)) })
			return 1, 0
		})
		w.start(w.box, dtls.Server)
		w.start(w.phone, dtls.Client)
		w.established(time.Second)
		assert.Equal(t, uint64(1), w.box.Counters().WrongCookie)
		assert.Equal(t, uint64(1), w.box.Counters().Started)
	})
}

// A phone that has started again says hello with another random. What is on its way to it then belongs to its first
// handshake and may spoil the second, but not the third.
func TestPeerStartsAgain(t *testing.T) {
	for at := time.Duration(0); at < 80*time.Millisecond; at += 7 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			w := newWire(t)
			w.start(w.box, dtls.Server)
			w.start(w.phone, dtls.Client)
			time.Sleep(at)
			w.phone.Close(w.phone.leg)
			w.phone.take()
			w.start(w.phone, dtls.Client)
			phone := w.phone.one(t, 15*time.Second)
			require.NoError(t, phone.Err)
			box := w.box.one(t, 0)
			require.NoError(t, box.Err)
			sameKeys(t, box.Keys, phone.Keys)
		})
	}
}

// A phone that starts again and again, each time in the middle of a handshake: what it has given up takes no place.
func TestPeerStartsOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		w.start(w.box, dtls.Server)
		for range 8 {
			w.filter(func(_ *end, datagram []byte) (int, time.Duration) {
				if datagram[13] == 11 { // its certificate: the flight that would end the handshake
					return 0, 0
				}
				return 1, 0
			})
			w.start(w.phone, dtls.Client)
			time.Sleep(85 * time.Millisecond)
			w.phone.Close(w.phone.leg)
			w.phone.take()
			w.filter(func(*end, []byte) (int, time.Duration) { return 0, 0 })
			time.Sleep(time.Second)
		}
		w.filter(func(*end, []byte) (int, time.Duration) { return 1, 0 })
		w.start(w.phone, dtls.Client)
		w.established(15 * time.Second)
		assert.Zero(t, w.box.Counters().Full)
	})
}

// Datagrams that belong to nothing are counted, each with its reason.
func TestDropsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		first := w.firstHello()
		w.box.Receive(99, phoneAddress, first)
		require.NoError(t, w.box.Offer(boxLeg, nil))
		w.box.Receive(boxLeg, phoneAddress, record(22, 1, make([]byte, 40)...))
		w.box.Receive(boxLeg, phoneAddress, withCookie(first))
		w.box.Receive(boxLeg, phoneAddress, record(23, 0, 1))
		w.box.Receive(boxLeg, phoneAddress, make([]byte, dtls.MaxDatagram+1))
		synctest.Wait()
		assert.Equal(t, dtls.Counters{UnknownLeg: 1, Unexpected: 2, Unauthenticated: 1, Overflow: 1}, w.box.Counters())
	})
}

// What a handshake keeps of fragments that are never whole is bounded: the library would keep 2 MB.
func TestFragmentsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		w.start(w.box, dtls.Server)
		w.start(w.phone, dtls.Client)
		w.established(time.Second)
		for i := range 1000 {
			header := []byte{11, 0xff, 0xff, 0xff, 0, byte(20 + i%200), 0, byte(i), 0, 0, 0x03, 0xe8}
			w.box.Receive(boxLeg, phoneAddress, record(22, 0, append(header, make([]byte, 1000)...)...))
			time.Sleep(200 * time.Millisecond)
		}
		c := w.box.Counters()
		assert.GreaterOrEqual(t, c.QueueFull+c.Late, uint64(1000-65))
		assert.Positive(t, c.QueueFull)
	})
}

// The forwarding thread neither waits nor allocates, also when nobody takes what it hands over.
func TestReceiveDoesNotWait(t *testing.T) {
	e := dtls.New(dtls.Config{Certificate: newCertificate(t)}) // it does not run
	packet := forgeries["fatal alert"]
	assert.Zero(t, testing.AllocsPerRun(1000, func() { e.Receive(boxLeg, phoneAddress, packet) }))
	assert.Equal(t, uint64(1001-256), e.Counters().Overflow)
}
