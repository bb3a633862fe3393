package relay

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPortsAreEvenFreeAndRest(t *testing.T) {
	now := time.Unix(0, 0)
	a, b := netip.MustParseAddr("10.1.10.1"), netip.MustParseAddr("10.9.0.1")
	p := newPorts(func() time.Time { return now })
	_, ok := p.Allocate(a)
	require.False(t, ok, "there is no range")
	p.use(20001, 20008) // 20002 to 20006: 20008 has none above it
	p.rest(netip.AddrPortFrom(a, 20004))
	p.rest(netip.AddrPortFrom(b, 20004))
	p.claim(netip.AddrPortFrom(b, 20004))

	got := map[uint16]bool{}
	for range 2 {
		port, ok := p.Allocate(a)
		require.True(t, ok)
		got[port] = true
	}
	assert.Equal(t, map[uint16]bool{20002: true, 20006: true}, got)
	_, ok = p.Allocate(a)
	assert.False(t, ok, "one rests")
	for range 2 {
		port, ok := p.Allocate(b)
		assert.True(t, ok, "another address has ports of its own")
		assert.NotEqual(t, uint16(20004), port)
	}
	assert.EqualValues(t, 2, p.refused)

	p.Release(netip.AddrPortFrom(a, 20002))
	now = now.Add(restFor - 1)
	_, ok = p.Allocate(a)
	assert.False(t, ok)
	now = now.Add(1)
	p.expire()
	assert.Empty(t, p.resting)
	first, _ := p.Allocate(a)
	second, _ := p.Allocate(a)
	assert.ElementsMatch(t, []uint16{20002, 20004}, []uint16{first, second})
}

func TestPortsAreAtRandom(t *testing.T) {
	a := netip.MustParseAddr("10.1.10.1")
	firsts := map[uint16]bool{}
	for range 20 {
		p := newPorts(time.Now)
		p.use(20000, 29999)
		port, ok := p.Allocate(a)
		require.True(t, ok)
		firsts[port] = true
	}
	assert.Greater(t, len(firsts), 15)
}
