package series

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/chacha20poly1305"
)

// What every packet needs lies in one cache line, and the bits of its word in another.
func TestEntriesFitCacheLines(t *testing.T) {
	var e entry
	assert.EqualValues(t, 64, unsafe.Offsetof(e.window))
	assert.EqualValues(t, 320, unsafe.Sizeof(e))
	table := New(seed, MaxSeries)
	assert.Zero(t, uintptr(unsafe.Pointer(&table.entries[0]))%64)
}

// BenchmarkSeries is what counting one packet costs, arrival and going on, beside the seal of the same packet. Both
// work on packets that were just written, as a thread's have just been read. The flows take turns, as those of calls
// do. Figures are medians of batches, which neighbours on the machine disturb less than means; ratio is the cost as a
// part of the seal's.
func BenchmarkSeries(b *testing.B) {
	for _, family := range []string{"IPv4", "IPv6"} {
		for _, flows := range []uint32{1, 200, 8000} {
			b.Run(fmt.Sprintf("%s/flows=%d", family, flows), func(b *testing.B) {
				const batch = 64
				table := New(seed, MaxSeries)
				var packets [batch][]byte
				v6 := family == "IPv6"
				at, address := headerIPv4+headerUDP, 12
				if v6 {
					at, address = headerIPv6+headerUDP, 20
				}
				for i := range packets {
					packets[i] = rtp(v6, 0, 0, 0, 0, 0)
				}
				flow, sequence := uint32(0), uint32(0)
				fill := func() {
					for _, p := range packets {
						if flow++; flow >= flows {
							flow = 0
							sequence++
						}
						binary.BigEndian.PutUint32(p[address:], flow)
						binary.BigEndian.PutUint16(p[at+2:], uint16(sequence))
						binary.BigEndian.PutUint32(p[at+4:], 160*sequence)
						binary.BigEndian.PutUint32(p[at+8:], flow)
					}
				}
				aead, err := chacha20poly1305.New(make([]byte, chacha20poly1305.KeySize))
				require.NoError(b, err)
				var nonce [chacha20poly1305.NonceSize]byte
				out := make([]byte, 256)

				var counting, sealing []time.Duration
				for b.Loop() {
					fill()
					start := time.Now()
					for _, p := range packets {
						table.Pass(table.Arrive(p, 0, int64(sequence)*gap))
					}
					counted := time.Now()
					for _, p := range packets {
						nonce[4]++
						aead.Seal(out[:0], nonce[:], p[:200], nil)
					}
					counting = append(counting, counted.Sub(start))
					sealing = append(sealing, time.Since(counted))
				}
				median := func(d []time.Duration) float64 {
					slices.Sort(d)
					return float64(d[len(d)/2]) / batch
				}
				cost, seal := median(counting), median(sealing)
				b.ReportMetric(cost, "ns/packet")
				b.ReportMetric(seal, "seal-ns/packet")
				b.ReportMetric(cost/seal, "ratio")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
