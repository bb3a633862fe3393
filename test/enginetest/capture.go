package enginetest

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"net"

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

// Flood sends what next makes to address from inside the box until stop, so many a millisecond (0: as many as go).
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
