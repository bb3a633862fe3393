package wireguardgo

import (
	"encoding/binary"
	"sync"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// frame is one outer packet as it leaves a box: a super-packet is one frame.
type frame struct {
	tos     byte
	size    int // of the IP packet
	payload []byte
}

// capture collects the UDP packets that leave the box on wire0, until stop.
func (b *box) capture() (stop func() []frame) {
	b.t.Helper()
	var fd int
	require.NoError(b.t, b.ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		return err
	}))
	tv := unix.Timeval{Usec: 50000}
	require.NoError(b.t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	var frames []frame
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
				frames = append(frames, frame{p[1], n, append([]byte(nil), p[28:min(n, 28+160)]...)})
			case n > 48 && p[0]>>4 == 6 && p[6] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(p[40:]) == 51820:
				frames = append(frames, frame{p[0]<<4 | p[1]>>4, n, append([]byte(nil), p[48:min(n, 48+160)]...)})
			}
		}
	})
	return func() []frame {
		close(done)
		wg.Wait()
		unix.Close(fd)
		return frames
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
