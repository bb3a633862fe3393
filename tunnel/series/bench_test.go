package series

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/chacha20poly1305"
)

// What every packet needs lies in one cache line, and each bitmap in another.
func TestEntriesFitCacheLines(t *testing.T) {
	var e entry
	assert.EqualValues(t, 64, unsafe.Offsetof(e.arrived))
	assert.EqualValues(t, 128, unsafe.Offsetof(e.passed))
	assert.EqualValues(t, 320, unsafe.Sizeof(e))
	table := New(seed, MaxSeries)
	assert.Zero(t, uintptr(unsafe.Pointer(&table.entries[0]))%64)
}

// BenchmarkSeries is what counting one packet costs, arrival and going on, beside the seal of the same packet, which
// is there before and after so that a machine whose speed changes shows itself. The flows take turns, as those of calls
// do. ratio is the cost as a part of the seal's.
func BenchmarkSeries(b *testing.B) {
	for _, family := range []string{"IPv4", "IPv6"} {
		for _, flows := range []int{1, 200, 8000} {
			b.Run(fmt.Sprintf("%s/%d flows", family, flows), func(b *testing.B) {
				table := New(seed, MaxSeries)
				packets := make([][]byte, flows)
				for f := range packets {
					packets[f] = rtp(family == "IPv6", uint32(f), uint32(f), 0, 0, 0)
				}
				at := len(packets[0]) - 160 - headerRTP
				sequence := uint16(0)
				prepare := func() { // the next packet of each flow
					sequence++
					for _, p := range packets {
						binary.BigEndian.PutUint16(p[at+2:], sequence)
						binary.BigEndian.PutUint32(p[at+4:], 160*uint32(sequence))
					}
				}
				aead, err := chacha20poly1305.New(make([]byte, chacha20poly1305.KeySize))
				require.NoError(b, err)
				var nonce [chacha20poly1305.NonceSize]byte
				out := make([]byte, 256)

				// Many rounds between two looks at the clock, so that it does not count.
				rounds := max(2000/flows, 1)
				var counting, nothing, sealing time.Duration
				n, now := 0, int64(0)
				for b.Loop() {
					start := time.Now()
					for range rounds {
						prepare()
					}
					empty := time.Now()
					for range rounds {
						prepare()
						now += gap
						for _, p := range packets {
							table.Pass(table.Arrive(p, 0, now))
						}
					}
					counted := time.Now()
					for i := range rounds * flows {
						binary.LittleEndian.PutUint64(nonce[4:], uint64(i))
						aead.Seal(out[:0], nonce[:], packets[i%flows][:200], nil)
					}
					nothing += empty.Sub(start)
					counting += counted.Sub(empty)
					sealing += time.Since(counted)
					n += rounds * flows
				}
				cost := float64(counting-nothing) / float64(n)
				seal := float64(sealing) / float64(n)
				b.ReportMetric(cost, "ns/packet")
				b.ReportMetric(seal, "seal-ns/packet")
				b.ReportMetric(cost/seal, "ratio")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
