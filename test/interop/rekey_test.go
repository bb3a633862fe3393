package interop

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/lab"
	"ringway/test/lab/capture"
)

// A session lives 120 s until its initiator makes the next (REKEY_AFTER_TIME); nothing of that is shortened here.
const (
	rekeyAfter = 120 * time.Second
	rekeyTime  = rekeyAfter + 30*time.Second
	packetTime = 20 * time.Millisecond
)

// Both sides talk at 50 packets a second, both ways, across a re-key that the stock side makes and one that Ringway
// makes. Not one packet is lost.
func TestRekeyLosesNothing(t *testing.T) {
	t.Parallel()
	if os.Getenv("TEST_REKEY") == "" {
		t.Skip("waits for WireGuard's real timers, two and a half minutes: make test-rekey")
	}
	for _, c := range []struct{ class, initiator, near, far, nearAddr, farAddr string }{
		{"data", "ringway", lab.PCA, lab.PCB, "10.1.20.10", "10.2.20.10"},
		{"voice", "ringway", lab.PhoneA, lab.PhoneB, "10.1.10.10", "10.2.10.10"},
		{"voice", "stock", lab.PhoneA, lab.PhoneB, "10.1.10.10", "10.2.10.10"},
	} {
		t.Run(c.initiator+" initiates, tunnel "+c.class, func(t *testing.T) {
			t.Parallel()
			l := stock(t, c.class, nil)
			if c.initiator == "stock" {
				stockInitiates(t, l, c.class)
			}
			wan := watchWAN(t, l)
			reaches(t, l.Host(c.far), c.nearAddr)
			handshake := func() string { return field(t, l.Host(lab.EdgeB), stockDevice, "latest-handshakes") }
			ours := func() string { return field(t, l.Host(lab.EdgeA), device(c.class), "latest-handshakes") }
			first, firstOurs := handshake(), ours()
			began := time.Now()

			var wg sync.WaitGroup
			var ab, ba count
			wg.Go(func() { ab = stream(l.Host(c.near), c.nearAddr, l.Host(c.far), c.farAddr, rekeyTime) })
			wg.Go(func() { ba = stream(l.Host(c.far), c.farAddr, l.Host(c.near), c.nearAddr, rekeyTime) })
			wg.Wait()
			assert.NotEqual(t, first, handshake(), "the stock side saw no new handshake")
			assert.NotEqual(t, firstOurs, ours(), "Ringway saw no new handshake")
			frames, err := wan.Stop()
			require.NoError(t, err)
			want := map[string]int{map[string]string{"ringway": addressA, "stock": addressB}[c.initiator]: 1}
			assert.Equal(t, want, initiations(frames, began.Add(rekeyAfter/2)), "initiations of the re-key, by source")
			for name, n := range map[string]count{"ringway to stock": ab, "stock to ringway": ba} {
				require.NoError(t, n.err, name)
				assert.GreaterOrEqual(t, n.sent, int(0.9*float64(rekeyTime/packetTime)), name)
				assert.Zero(t, n.sent-n.received, "%s: packets lost of %d", name, n.sent)
				t.Logf("%s, re-keyed by %s: %d sent, %d lost, %d out of order", name, c.initiator, n.sent,
					n.sent-n.received, n.late)
			}
		})
	}
}

// watchWAN records what crosses the far end's WAN.
func watchWAN(t *testing.T, l *lab.Lab) *capture.Frames {
	t.Helper()
	f, err := capture.StartFrames(fmt.Sprintf("/proc/%d/ns/net", l.Host(lab.EdgeB).PID), "wan0")
	require.NoError(t, err)
	return f
}

// lastInitiation is where the last handshake initiation came from.
func lastInitiation(frames []capture.Frame) (source string) {
	for _, f := range frames {
		if f.Kind == capture.WireGuard && f.Type == 1 {
			source = f.Source.Addr().String()
		}
	}
	return source
}

// initiations counts handshake initiations since then, by who sent them.
func initiations(frames []capture.Frame, since time.Time) map[string]int {
	by := map[string]int{}
	for _, f := range frames {
		if f.Kind == capture.WireGuard && f.Type == 1 && int64(f.At) > since.UnixNano() {
			by[f.Source.Addr().String()]++
		}
	}
	return by
}

type count struct {
	sent, received, late int
	err                  error
}

// stream sends numbered packets at 50 a second for a while and counts which arrive.
func stream(from *lab.Host, fromAddr string, to *lab.Host, toAddr string, length time.Duration) (n count) {
	const port = 7000
	listen := func(h *lab.Host, addr string) (c *net.UDPConn, err error) {
		err = h.Do(func() error {
			c, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(addr), Port: port})
			return err
		})
		return c, err
	}
	in, err := listen(to, toAddr)
	if err != nil {
		return count{err: err}
	}
	defer in.Close()
	var out net.Conn
	err = from.Do(func() (err error) {
		out, err = net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(fromAddr)}, in.LocalAddr().(*net.UDPAddr))
		return err
	})
	if err != nil {
		return count{err: err}
	}
	defer out.Close()
	if raw, err := out.(*net.UDPConn).SyscallConn(); err == nil { // as a phone marks its media
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, 46<<2) })
	}

	heard := make(chan struct{})
	seen := map[uint64]bool{}
	go func() {
		defer close(heard)
		var highest uint64
		b := make([]byte, 2048)
		for {
			size, err := in.Read(b)
			if err != nil {
				return
			}
			seq := binary.BigEndian.Uint64(b[:size])
			if seq < highest {
				n.late++
			}
			highest = max(highest, seq)
			seen[seq] = true
		}
	}()
	tick := time.NewTicker(packetTime)
	defer tick.Stop()
	payload := make([]byte, 172)
	for end := time.Now().Add(length); time.Now().Before(end); <-tick.C {
		binary.BigEndian.PutUint64(payload, uint64(n.sent))
		if _, err := out.Write(payload); err != nil {
			n.err = err
			break
		}
		n.sent++
	}
	_ = in.SetReadDeadline(time.Now().Add(2 * time.Second)) // what is on the way
	<-heard
	n.received = len(seen)
	return n
}
