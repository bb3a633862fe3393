package qos

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// The wire takes a packet in the order of tc-cake(8): overhead, then the least, then cells.
func TestWireSizes(t *testing.T) {
	for _, c := range []struct {
		name      string
		ip, count int
	}{
		{"kernel", 200, 214}, {"ip", 200, 200}, {"ethernet", 200, 238}, {"ethernet", 40, 84}, {"ethernet", 46, 84}, {"ethernet", 47, 85},
		{"vlan", 1500, 1542}, {"docsis", 40, 64}, {"docsis", 1500, 1518},
		{"pppoe-ptm", 1492, 1522}, {"bridged-ptm", 1500, 1522},
		{"pppoa-vcmux", 38, 53}, {"pppoa-vcmux", 39, 106}, {"pppoa-llc", 1478, 32 * 53},
		{"pppoe-llcsnap", 1492, 32 * 53}, {"pppoe-vcmux", 40, 2 * 53}, {"ipoa-vcmux", 40, 53}, {"ipoa-vcmux", 41, 106},
		{"ipoa-llcsnap", 32, 53}, {"bridged-vcmux", 24, 53}, {"bridged-llcsnap", 16, 53}, {"conservative", 1, 106},
	} {
		l, err := ParseLink(c.name)
		require.NoError(t, err)
		assert.EqualValues(t, c.count, l.Wire(ByteCount(c.ip+EthernetHeader)), "%s %d", c.name, c.ip)
	}
	_, err := ParseLink("pigeon")
	assert.ErrorContains(t, err, `"pigeon" is no link layer (allowed: kernel, ip, ethernet`)
	for _, n := range LinkNames() {
		_, err := ParseLink(n)
		assert.NoError(t, err)
	}
}

func TestWireSizesOfEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, n := drawLink(t), ByteCount(rapid.IntRange(34, 9018).Draw(t, "frame"))
		w := l.Wire(n)
		bare := LinkLayer{Overhead: l.Overhead, MPU: l.MPU}.Wire(n)
		require.GreaterOrEqual(t, int(bare), l.MPU)
		require.GreaterOrEqual(t, int(bare), int(n)+l.Overhead)
		require.True(t, int(bare) == l.MPU || int(bare) == int(n)+l.Overhead)
		if l.Cells == ATM {
			require.Zero(t, w%53)
			require.GreaterOrEqual(t, w/53*48, bare)
			require.Less(t, w/53*48, bare+48)
		} else {
			require.Equal(t, bare, w)
		}
		require.GreaterOrEqual(t, l.Wire(n+1), w, "a longer packet never counts less")
		r := BitRate(rapid.Uint64Range(uint64(64*Kbit), uint64(100*Gbit)).Draw(t, "rate"))
		shaped := l.Shape(r, 0)
		if l.Cells == PTM {
			require.LessOrEqual(t, shaped*65, r*64, "64 bytes in 65")
			require.Greater(t, (shaped+80)*65, r*64)
		} else {
			require.Equal(t, whole(r), shaped)
		}
	})
}
