package tc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/qos"
	"ringway/test/netnstest"
)

//	ns c: lan0 ---- lan0 :ns a: wan0 ==== wan0 :ns b (captures)
//	10.9.1.2       10.9.1.1   10.9.0.1   10.9.0.2

// wan is the link with the tree on a's side, addresses, and a capture on b's.
type wan struct {
	t    testing.TB
	a, b *netnstest.NS
	in   qos.Input
}

const farAddress = "10.9.0.2"

func newWAN(t testing.TB, uplink qos.BitRate) *wan {
	w := &wan{t: t, in: input(uplink)}
	w.a, w.b = pair(t)
	w.a.Run("ip", "address", "add", "10.9.0.1/24", "dev", "wan0")
	w.b.Run("ip", "address", "add", farAddress+"/24", "dev", "wan0")
	// Neighbours are known, so that no first packet waits for an answer; and what b refuses
	// (ports without a socket) it refuses silently.
	w.b.Run("ip", "link", "set", "wan0", "address", "02:00:00:00:00:02")
	w.a.Run("ip", "neighbour", "replace", farAddress, "dev", "wan0", "lladdr", "02:00:00:00:00:02")
	w.b.Run("sysctl", "-q", "-w", "net.ipv4.icmp_ratemask=8") // limits destination unreachable
	w.b.Run("sysctl", "-q", "-w", "net.ipv4.icmp_ratelimit=100000")
	reconcile(t, w.a, qos.Want(w.in))
	return w
}

// frame is one skb as the far end got it.
type frame struct {
	at      time.Time // the kernel's receive timestamp
	len     int
	port    uint16 // UDP destination, 0 for anything else
	payload []byte // the first 16 bytes
}

// capture collects all frames that come in at b until stop is called. A frame here is what left
// HTB on the other side: a veth hands skbs over as they are, super-packets too.
func (w *wan) capture() (stop func() []frame) {
	w.t.Helper()
	var fd int
	require.NoError(w.t, w.b.Do(func() (err error) {
		const proto = unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		index, err := linkIndex("wan0")
		if err != nil {
			return err
		}
		for opt, v := range map[int]int{unix.SO_TIMESTAMPNS: 1, unix.SO_RCVBUFFORCE: 256 << 20} {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, v); err != nil {
				return err
			}
		}
		if err := unix.SetsockoptTimeval(
			fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20000},
		); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: index})
	}))
	var frames []frame
	var stopped atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer unix.Close(fd)
		buf, oob := make([]byte, 128), make([]byte, 128)
		for {
			n, oobn, _, from, err := unix.Recvmsg(fd, buf, oob, unix.MSG_TRUNC)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				if stopped.Load() {
					return
				}
				continue
			}
			if err != nil {
				return
			}
			if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			f := frame{len: n}
			msgs, _ := unix.ParseSocketControlMessage(oob[:oobn])
			for _, m := range msgs {
				if m.Header.Type == unix.SCM_TIMESTAMPNS {
					f.at = time.Unix(
						int64(binary.NativeEndian.Uint64(m.Data)),
						int64(binary.NativeEndian.Uint64(m.Data[8:])),
					)
				}
			}
			if n >= 58 && buf[23] == unix.IPPROTO_UDP {
				f.port = binary.BigEndian.Uint16(buf[36:])
				f.payload = slices.Clone(buf[42:58])
			}
			frames = append(frames, f)
		}
	}()
	return func() []frame {
		stopped.Store(true)
		<-done
		return frames
	}
}

// dial opens a UDP socket in a, in a class's queue.
func (w *wan) dial(class qos.ClassName, port int, options map[[2]int]int) *net.UDPConn {
	w.t.Helper()
	return w.dialPriority(qos.ClassID(class), port, options)
}

// dialPriority opens a UDP socket in a whose packets have a priority.
func (w *wan) dialPriority(priority uint32, port int, options map[[2]int]int) *net.UDPConn {
	w.t.Helper()
	var c net.Conn
	require.NoError(w.t, w.a.Do(func() error {
		d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			cerr := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY, int(priority))
				for o, v := range options {
					err = errors.Join(err, unix.SetsockoptInt(int(fd), o[0], o[1], v))
				}
			})
			return errors.Join(cerr, err)
		}}
		var err error
		c, err = d.Dial("udp4", net.JoinHostPort(farAddress, fmt.Sprint(port)))
		return err
	}))
	w.t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

var superPackets = map[[2]int]int{
	{unix.SOL_UDP, unix.UDP_SEGMENT}:       1400,
	{unix.SOL_SOCKET, unix.SO_SNDBUFFORCE}: 4 << 20, // far more than the leaf holds: an unbounded sender
}

// flood sends super-packets of 45 segments, as wireguard-go does, until the flag is set. With a
// send buffer this large the leaf drops, and the socket never waits for long.
func flood(c *net.UDPConn, wg *sync.WaitGroup, stop *atomic.Bool) {
	wg.Go(func() {
		buf := make([]byte, 45*1400)
		for !stop.Load() {
			c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
			// Paced to about 250 Mbit/s, many times the link, so that the test's machine keeps up.
			if _, err := c.Write(buf); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !refused(err) {
				return
			}
			pace(2 * time.Millisecond)
		}
	})
}

func refused(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOBUFS)
}

// pace is the sender's clock.
func pace(d time.Duration) { <-time.After(d) }

// worst is by how many bytes the frames exceed the rate in a window, counted as the provider does:
// with overhead and the least size. It leaves out the worst hundredth of the windows: where
// the machine itself stands still, frames get their timestamp too late.
func (w *wan) worst(frames []frame, window time.Duration) float64 {
	allowed := float64(w.in.WANs[0].Shaped().Bytes(window))
	var excess []float64
	sum, first := 0, 0
	for _, f := range frames {
		sum += w.wire(f)
		for f.at.Sub(frames[first].at) >= window {
			sum -= w.wire(frames[first])
			first++
		}
		excess = append(excess, float64(sum)-allowed)
	}
	slices.Sort(excess)
	return excess[len(excess)*99/100]
}

// providerWaits sends the frames through the provider's FIFO as it follows from their times: how
// long each call's packet waits there for what was sent before it. Sorted.
func (w *wan) providerWaits(frames []frame, uplink qos.BitRate) []time.Duration {
	var out []time.Duration
	free := frames[0].at
	for _, f := range frames {
		start := f.at
		if free.After(start) {
			start = free
		}
		if f.port == mediaPort {
			out = append(out, start.Sub(f.at))
		}
		free = start.Add(uplink.Serialization(qos.ByteCount(w.wire(f))))
	}
	slices.Sort(out)
	return out
}

func (w *wan) wire(f frame) int { return int(w.in.WANs[0].Wire(qos.ByteCount(f.len))) }

// throughput is the mean rate between the first and the last frame.
func (w *wan) throughput(frames []frame) float64 {
	sum := 0
	for _, f := range frames[1:] {
		sum += w.wire(f)
	}
	return float64(sum) * 8 / frames[len(frames)-1].at.Sub(frames[0].at).Seconds()
}

// settled cuts the first 200 ms off: a full bucket and an empty queue are no steady state.
func settled(t testing.TB, frames []frame) []frame {
	t.Helper()
	rest := steady(frames)
	require.NotEmpty(t, rest, "too little was captured: %d frames", len(frames))
	return rest
}

// steady is settled, and empty where too little was captured.
func steady(frames []frame) []frame {
	for i, f := range frames {
		if f.at.Sub(frames[0].at) > 200*time.Millisecond {
			return frames[i:]
		}
	}
	return nil
}

func assertWirePackets(t testing.TB, frames []frame) {
	t.Helper()
	for _, f := range frames {
		require.LessOrEqual(t, f.len, 1514, "a super-packet left the shaped class")
	}
}

// few are the packets that a window may hold beyond the rate: the parent's bucket (1.6 packets at
// 20 Mbit/s), the packet that overdraws it, and one of each class within its own rate.
const few = 5 * 1542

func TestFloodOfSuperPacketsLeavesAsWirePacketsAtTheRate(t *testing.T) {
	w := newWAN(t, 20*qos.Mbit)
	stop := w.capture()
	var wg sync.WaitGroup
	var end atomic.Bool
	for i, c := range []qos.ClassName{qos.Signalling, qos.Data, qos.Background} {
		flood(w.dial(c, 9001+i, superPackets), &wg, &end)
	}
	pace(1200 * time.Millisecond)
	end.Store(true)
	wg.Wait()
	frames := settled(t, stop())

	assertWirePackets(t, frames)
	for _, window := range []time.Duration{10 * time.Millisecond, 100 * time.Millisecond} {
		worst := w.worst(frames, window)
		t.Logf("worst window of %s: %+.0f bytes of %d", window, worst, w.in.WANs[0].Shaped().Bytes(window))
		assert.LessOrEqual(t, worst, float64(few), "three classes together, each within or beyond its own rate")
	}
	got := w.throughput(frames)
	t.Logf("%.2f Mbit/s on the meter of %s", got/1e6, w.in.WANs[0].Shaped())
	assert.LessOrEqual(t, got, 1.01*float64(w.in.WANs[0].Shaped()), "never more than the parent's rate")
	assert.GreaterOrEqual(t, got, 0.8*float64(w.in.WANs[0].Shaped()))

	// Who got what: signalling preempts data beyond its own rate, data keeps its guaranteed rate.
	sent := map[uint16]int{}
	for _, f := range frames {
		sent[f.port] += w.wire(f)
	}
	total := sent[9001] + sent[9002] + sent[9003]
	t.Logf(
		"shares: signalling %d%%, data %d%%, background %d%%", 100*sent[9001]/total, 100*sent[9002]/total,
		100*sent[9003]/total,
	)
	assert.GreaterOrEqual(t, 100*sent[9002]/total, 45, "data's guarantee")
	assert.GreaterOrEqual(t, 100*sent[9003]/total, 4, "background's guarantee")
	assert.GreaterOrEqual(t, 100*sent[9001]/total, 35, "signalling borrows first")

	var stats []qos.QueueStats
	require.NoError(
		t, w.a.Do(func() (err error) { stats, err = Stats([]string{"wan0", "none"}, nil); return err }),
	)
	require.Len(t, stats, 4)
	for _, s := range stats[1:] {
		assert.Positive(t, s.Sent, "%s", s.Class)
		assert.Positive(t, s.Drops, "%s", s.Class)
		assert.Positive(t, s.Overlimits, "%s", s.Class)
		assert.LessOrEqual(t, s.Backlog, s.Limit, "%s", s.Class)
		assert.Positive(t, s.Rate, "%s", s.Class)
	}
	assert.Zero(t, stats[0].Drops)
}
