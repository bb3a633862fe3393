package realtime

import (
	"crypto/cipher"
	"encoding/binary"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/unix"

	"ringway/test/netnstest"
	"ringway/tunnel/datagram"
	"ringway/tunnel/descriptor"
)

// What a packet of G.711 (200 bytes of IP, padded to 208 in the tunnel) costs at the least: the seal alone,
// the system calls alone, and both as the engine makes them. docs/jitter.md compares them with a plane's own
// profile.

const (
	voicePacket = 200
	voicePadded = 208
)

func benchAEAD(b *testing.B) cipher.AEAD {
	aead, err := chacha20poly1305.New(make([]byte, chacha20poly1305.KeySize))
	require.NoError(b, err)
	return aead
}

func BenchmarkSealVoice(b *testing.B) {
	aead := benchAEAD(b)
	var nonce [chacha20poly1305.NonceSize]byte
	buf := make([]byte, voicePadded+tagSize)
	b.SetBytes(voicePacket)
	for i := 0; b.Loop(); i++ {
		binary.LittleEndian.PutUint64(nonce[4:], uint64(i))
		aead.Seal(buf[:0], nonce[:], buf[:voicePadded], nil)
	}
}

func BenchmarkOpenVoice(b *testing.B) {
	aead := benchAEAD(b)
	var nonce [chacha20poly1305.NonceSize]byte
	sealed := aead.Seal(nil, nonce[:], make([]byte, voicePadded), nil)
	buf := make([]byte, len(sealed))
	b.SetBytes(voicePacket)
	for b.Loop() {
		copy(buf, sealed) // opening is in place
		if _, err := aead.Open(buf[:0], nonce[:], buf, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// bareway is what the engine's threads stand between: a tunnel device whose packets the kernel makes, and a
// UDP socket.
//
//	source --- rw0 (TUN) --- read … sendmmsg --- veth --- far socket
//	                         write … recvmmsg
type bareway struct {
	source, tun, near, far, inner int
	msgs                          [outBatch]datagram.Message
	iovs                          [outBatch]unix.Iovec
	control                       [datagram.ControlSize]byte
	bufs                          [outBatch][2048]byte
}

func newBareway(b *testing.B) *bareway {
	b.Helper()
	w := &bareway{}
	edge, other := netnstest.New(b), netnstest.New(b)
	netnstest.Veth(b, edge, "eth0", other, "eth0")
	other.Run("ip", "addr", "add", "192.0.2.2/24", "dev", "eth0")
	other.Run("ip", "link", "set", "eth0", "up")
	edge.Run("ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
	edge.Run("ip", "link", "set", "eth0", "up")
	socket := func(local, remote [4]byte, port int) (fd int, err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return -1, err
		}
		b.Cleanup(func() { unix.Close(fd) })
		for _, o := range []int{unix.SO_SNDBUFFORCE, unix.SO_RCVBUFFORCE} {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, 8<<20); err != nil {
				return -1, err
			}
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: local, Port: port}); err != nil {
			return -1, err
		}
		if remote != [4]byte{} {
			err = unix.Connect(fd, &unix.SockaddrInet4{Addr: remote, Port: 9999})
		}
		return fd, err
	}
	require.NoError(b, edge.Do(func() error {
		tun, err := descriptor.OpenTUN("rw0")
		if err != nil {
			return err
		}
		defer tun.Close()
		if w.tun, err = descriptor.Duplicate(tun); err != nil {
			return err
		}
		w.near, err = socket([4]byte{192, 0, 2, 1}, [4]byte{192, 0, 2, 2}, 9999)
		return err
	}))
	b.Cleanup(func() { unix.Close(w.tun) })
	// Otherwise the kernel's search for routers would be read among the packets.
	edge.Run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
	edge.Run("ip", "addr", "add", "10.66.0.1/24", "dev", "rw0")
	edge.Run("ip", "link", "set", "rw0", "mtu", "1420", "txqueuelen", "1000", "up")
	require.NoError(b, edge.Do(func() (err error) {
		if w.source, err = socket([4]byte{10, 66, 0, 1}, [4]byte{10, 66, 0, 2}, 0); err == nil {
			w.inner, err = socket([4]byte{10, 66, 0, 1}, [4]byte{}, 7777)
		}
		return err
	}))
	require.NoError(b, other.Do(func() (err error) {
		w.far, err = socket([4]byte{192, 0, 2, 2}, [4]byte{192, 0, 2, 1}, 9999)
		return err
	}))
	return w
}

// drain takes what is there.
func (w *bareway) drain(fd int) {
	for {
		if _, err := unix.Read(fd, w.bufs[0][:]); err != nil {
			return
		}
	}
}

// mmsg sends or receives n messages of size bytes each, as one if joined, and returns how many there were.
func (w *bareway) mmsg(b *testing.B, call uintptr, fd, n, size int, joined bool) int {
	for i := range n {
		w.iovs[i].Base = &w.bufs[i][headerSize]
		w.iovs[i].SetLen(size)
		h := &w.msgs[i].Header
		*h = unix.Msghdr{Iov: &w.iovs[i]}
		h.SetIovlen(1)
	}
	if joined {
		w.msgs[0].Header.SetIovlen(n)
		w.msgs[0].Header.Control = &w.control[0]
		w.msgs[0].Header.SetControllen(datagram.PutSegment(w.control[:], 0, size))
		n = 1
	}
	done, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&w.msgs[0])), uintptr(n),
		unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		b.Fatalf("send or receive %d messages: %v", n, errno)
	}
	return int(done)
}

const (
	sealedSize = headerSize + voicePadded + tagSize
	udpOfVoice = voicePacket - 28
)

// BenchmarkOutboundBare is the way out without the seal: read from the tunnel device, send. One packet at a
// time, as voice mostly comes, in batches, and in batches as one UDP GSO message each.
func BenchmarkOutboundBare(b *testing.B) {
	for _, c := range []struct {
		name   string
		batch  int
		joined bool
		seal   bool
	}{{"alone", 1, false, false}, {"batch", outBatch, false, false}, {"GSO", outBatch, true,
		false}, {"alone sealed", 1, false, true}, {"GSO sealed", outBatch, true, true}} {
		b.Run(c.name, func(b *testing.B) {
			w := newBareway(b)
			aead := benchAEAD(b)
			var nonce [chacha20poly1305.NonceSize]byte
			var reading, sealing, sending time.Duration
			packets := 0
			for b.Loop() {
				w.mmsg(b, unix.SYS_SENDMMSG, w.source, c.batch, udpOfVoice, false)
				start := time.Now()
				for i := range c.batch {
					n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(w.tun),
						uintptr(unsafe.Pointer(&w.bufs[i][headerSize-vnetHeader])), 1500)
					if errno != 0 || n != vnetHeader+voicePacket {
						b.Fatalf("read %d bytes from the tunnel device: %v", n, errno)
					}
				}
				read := time.Now()
				if c.seal {
					for i := range c.batch {
						binary.LittleEndian.PutUint64(nonce[4:], uint64(packets+i))
						p := w.bufs[i][headerSize:]
						aead.Seal(p[:0], nonce[:], p[:voicePadded], nil)
					}
				}
				sealed := time.Now()
				w.mmsg(b, unix.SYS_SENDMMSG, w.near, c.batch, sealedSize, c.joined)
				reading, sealing, sending = reading+read.Sub(start), sealing+sealed.Sub(read), sending+time.Since(sealed)
				packets += c.batch
				w.drain(w.far)
			}
			per := func(d time.Duration) float64 { return float64(d) / float64(packets) }
			b.ReportMetric(per(reading), "read-ns/packet")
			if c.seal {
				b.ReportMetric(per(sealing), "seal-ns/packet")
			}
			b.ReportMetric(per(sending), "send-ns/packet")
			b.ReportMetric(per(reading+sealing+sending), "ns/packet")
			b.ReportMetric(1e9/per(reading+sealing+sending), "packets/s")
			b.ReportMetric(0, "ns/op") // with what the kernel makes the packets by
		})
	}
}

// BenchmarkInboundBare is the way in without opening: receive, write to the tunnel device, from where the
// kernel brings the packet to a socket.
func BenchmarkInboundBare(b *testing.B) {
	for _, c := range []struct {
		name  string
		batch int
	}{{"alone", 1}, {"batch", inBatch}} {
		b.Run(c.name, func(b *testing.B) {
			w := newBareway(b)
			inner := packet(0, 0, 0, voicePacket)
			copy(inner[12:], []byte{10, 66, 0, 2, 10, 66, 0, 1})
			inner[10], inner[11] = 0, 0
			var sum uint32
			for i := 0; i < 20; i += 2 {
				sum += uint32(binary.BigEndian.Uint16(inner[i:]))
			}
			binary.BigEndian.PutUint16(inner[10:], ^uint16(sum>>16+sum))
			binary.BigEndian.PutUint16(inner[20:], 7777)
			binary.BigEndian.PutUint16(inner[22:], 7777)
			binary.BigEndian.PutUint16(inner[24:], voicePacket-20)
			inner[26], inner[27] = 0, 0
			out := make([]byte, vnetHeader+voicePacket)
			copy(out[vnetHeader:], inner)
			var receiving, writing time.Duration
			packets := 0
			for b.Loop() {
				w.mmsg(b, unix.SYS_SENDMMSG, w.far, c.batch, sealedSize, false)
				start := time.Now()
				if n := w.mmsg(b, unix.SYS_RECVMMSG, w.near, c.batch, sealedSize, false); n != c.batch {
					b.Fatalf("%d of %d messages arrived", n, c.batch)
				}
				received := time.Now()
				for range c.batch {
					if _, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(w.tun), uintptr(unsafe.Pointer(&out[0])),
						uintptr(len(out))); errno != 0 {
						b.Fatalf("write to the tunnel device: %v", errno)
					}
				}
				receiving, writing = receiving+received.Sub(start), writing+time.Since(received)
				packets += c.batch
				if n, err := unix.Read(w.inner, w.bufs[0][:]); err != nil || n != udpOfVoice {
					b.Fatalf("the packet did not come out of the tunnel: %d bytes, %v", n, err)
				}
				w.drain(w.inner)
			}
			per := func(d time.Duration) float64 { return float64(d) / float64(packets) }
			b.ReportMetric(per(receiving), "receive-ns/packet")
			b.ReportMetric(per(writing), "write-ns/packet")
			b.ReportMetric(per(receiving+writing), "ns/packet")
			b.ReportMetric(1e9/per(receiving+writing), "packets/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}
