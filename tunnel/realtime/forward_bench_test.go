package realtime

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

// BenchmarkForward takes packets of a call from one engine's tunnel device to the other's, on one thread:
// read, admit, seal, send, receive, open, write, and what the test itself needs for that. cpu-ns/packet is
// the thread's CPU time, which a busy machine disturbs less than the time on the clock.
func BenchmarkForward(b *testing.B) {
	for _, c := range []struct {
		name    string
		batch   int
		counted bool
	}{{"alone", 1, false}, {"alone counted", 1, true}, {"batch", 16, false}, {"batch counted", 16, true}} {
		b.Run(c.name, func(b *testing.B) {
			r := newRig(b)
			r.talk()
			if c.counted { // at both ends
				require.NoError(b, r.a.SetMeasured(measured))
				require.NoError(b, r.b.SetMeasured(measured))
			}
			require.NoError(b, r.a.SetAdmission(tunnel.Admission{
				Media: 1 << 46,
				Lines: []tunnel.AdmissionLine{{Overhead: 14}},
				Sites: []tunnel.AdmissionSite{{Key: r.b.key.Public(), Rate: 1e9}},
			}))
			packet := append(make([]byte, vnetHeader), rtpPacket(5000, 0)...)
			sequence := uint16(0)
			buf := make([]byte, 2048)

			began, packets := cpuTime(), 0
			for b.Loop() {
				for range c.batch {
					sequence++
					binary.BigEndian.PutUint16(packet[vnetHeader+30:], sequence)
					_, _ = unix.Write(r.a.host, packet)
				}
				for !r.a.out.batch(r.now) {
				}
				for r.b.in.receive(r.b.udp[0], r.now) {
				}
				for range c.batch {
					if n, err := unix.Read(r.b.host, buf); err != nil || n != len(packet) {
						b.Fatalf("read %d bytes of a packet of %d: %v", n, len(packet), err)
					}
				}
				packets += c.batch
				r.now += int64(c.batch) * int64(20*time.Millisecond) / 100
			}
			b.ReportMetric(float64(cpuTime()-began)/float64(packets), "cpu-ns/packet")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func cpuTime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano())
}
