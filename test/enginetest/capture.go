package enginetest

import (
	"encoding/binary"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Frame is one outer packet as it leaves a box: a super-packet is one frame.
type Frame struct {
	TOS     byte
	Size    int    // of the IP packet
	Payload []byte // of UDP, its first 200 bytes
}

// Capture collects the UDP packets that leave the box on wire0, until stop.
func (b *Box) Capture() (stop func() []Frame) {
	b.T.Helper()
	var fd int
	require.NoError(b.T, b.NS.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		return err
	}))
	tv := unix.Timeval{Usec: 50000}
	require.NoError(b.T, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	var frames []Frame
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		buf := make([]byte, 70000)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err == unix.EINTR { // by the runtime's own signals: there may be more to read
				continue
			}
			if err != nil {
				select {
				case <-done:
					return
				default:
					continue
				}
			}
			if ll := from.(*unix.SockaddrLinklayer); ll.Pkttype != unix.PACKET_OUTGOING {
				continue
			}
			p := buf[:n]
			switch {
			case n > 28 && p[0]>>4 == 4 && p[9] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(p[20:]) == 51820:
				frames = append(frames, Frame{p[1], n, append([]byte(nil), p[28:min(n, 28+200)]...)})
			case n > 48 && p[0]>>4 == 6 && p[6] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(p[40:]) == 51820:
				frames = append(frames, Frame{p[0]<<4 | p[1]>>4, n, append([]byte(nil), p[48:min(n, 48+200)]...)})
			}
		}
	})
	return func() []Frame {
		close(done)
		wg.Wait()
		unix.Close(fd)
		return frames
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// Flood sends what next returns to address from inside the box until stop is called, rate datagrams per millisecond
// (0: without a limit).
func (b *Box) Flood(address string, rate int, next func() []byte) (stop func() int) {
	b.T.Helper()
	var c net.Conn
	require.NoError(b.T, b.NS.Do(func() (err error) { c, err = net.Dial("udp", address); return err }))
	done := make(chan struct{})
	var n atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for i := 1; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			if rate > 0 && i%rate == 0 {
				<-tick.C
			}
			if _, err := c.Write(next()); err == nil {
				n.Add(1)
			}
		}
	})
	return func() int { close(done); wg.Wait(); c.Close(); return int(n.Load()) }
}

// Call sends n packets of voice (172 bytes) from b to far's inner address, one in every, and returns how many
// arrived and how long each took, by the kernel's time at its arrival.
func (b *Box) Call(far *Box, n int, every time.Duration) (arrived int, delays []time.Duration) {
	b.T.Helper()
	var in, out int
	at := unix.SockaddrInet4{Port: 20000, Addr: [4]byte{10, 66, 0, byte(far.N)}}
	require.NoError(b.T, far.NS.Do(func() (err error) {
		if in, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(in, &at)
	}))
	defer unix.Close(in)
	require.NoError(b.T, b.NS.Do(func() (err error) {
		if out, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Connect(out, &at)
	}))
	defer unix.Close(out)
	require.NoError(b.T, unix.SetsockoptInt(in, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1))
	_ = unix.SetsockoptInt(in, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	tv := unix.NsecToTimeval(int64(2 * time.Second))
	require.NoError(b.T, unix.SetsockoptTimeval(in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
	var wg sync.WaitGroup
	wg.Go(func() {
		buf, oob := make([]byte, 2048), make([]byte, 256)
		seen := make([]bool, n)
		for arrived < n {
			_, k, _, _, err := unix.Recvmsg(in, buf, oob, 0)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return // two seconds of silence
			}
			i := binary.BigEndian.Uint64(buf)
			if i >= uint64(n) || seen[i] {
				continue
			}
			seen[i] = true
			arrived++
			messages, err := unix.ParseSocketControlMessage(oob[:k])
			if err != nil || len(messages) == 0 || len(messages[0].Data) < 16 {
				continue
			}
			got := int64(binary.NativeEndian.Uint64(messages[0].Data))*1e9 +
				int64(binary.NativeEndian.Uint64(messages[0].Data[8:]))
			delays = append(delays, time.Duration(got-int64(binary.BigEndian.Uint64(buf[8:]))))
		}
	})
	wg.Go(func() {
		// The thread ends with this goroutine. It is real-time, so that only the time on the way is measured.
		runtime.LockOSThread()
		_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
		packet := make([]byte, 172)
		at := time.Now()
		for i := range n {
			at = at.Add(every)
			ts := unix.NsecToTimespec(int64(time.Until(at)))
			if ts.Nano() > 0 {
				_ = unix.Nanosleep(&ts, nil)
			}
			binary.BigEndian.PutUint64(packet, uint64(i))
			binary.BigEndian.PutUint64(packet[8:], uint64(time.Now().UnixNano()))
			_, _ = unix.Write(out, packet)
		}
	})
	wg.Wait()
	slices.Sort(delays)
	return arrived, delays
}
