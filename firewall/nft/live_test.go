package nft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestLiveSetExpires(t *testing.T) {
	at := time.Unix(1000, 0)
	s := newLiveSet(3, nil)
	k := func(i byte) rawKey { return rawKey{key: string([]byte{i})} }
	s.put(k(1), time.Second, at)
	s.put(k(2), 3*time.Second, at)
	s.put(k(1), 2*time.Second, at.Add(500*time.Millisecond))
	s.take()

	assert.NotNil(t, s.live(k(1), at.Add(2400*time.Millisecond)), "its life began again")
	fresh, ok := s.fits([]rawKey{k(2), k(3), k(3)}, at)
	assert.Equal(t, 1, fresh, "one is there, one is named twice")
	assert.True(t, ok)
	_, ok = s.fits([]rawKey{k(3), k(4)}, at)
	assert.False(t, ok)

	later := at.Add(2500 * time.Millisecond)
	assert.Nil(t, s.live(k(1), later))
	_, ok = s.fits([]rawKey{k(3), k(4)}, later)
	assert.True(t, ok, "what has expired frees a place")
	assert.EqualValues(t, 1, s.expired)
	assert.Empty(t, s.changed, "the kernel's copy ends by itself")
	assert.False(t, s.remove(k(1), later))
	assert.True(t, s.remove(k(2), later))
	assert.Equal(t, map[rawKey]struct{}{k(2): {}}, s.changed)
}

func TestChangesThatWaitAreBounded(t *testing.T) {
	at := time.Unix(1000, 0)
	s := newLiveSet(4, nil)
	i := byte(0)
	for ; !s.backlog(); i++ {
		k := rawKey{key: string([]byte{i})}
		s.put(k, time.Minute, at)
		s.remove(k, at)
	}
	assert.EqualValues(t, 8, i, "twice what the set holds")
}

func TestOverlap(t *testing.T) {
	at := time.Unix(1000, 0)
	s := newLiveSet(8, []int{1, 1})
	k := func(a, b, c, d byte) rawKey { return rawKey{string([]byte{a, b}), string([]byte{c, d})} }
	s.put(k(10, 5, 20, 5), time.Second, at)
	for _, c := range []struct {
		k    rawKey
		want bool
		why  string
	}{
		{k(10, 5, 20, 5), false, "the same"},
		{k(20, 5, 30, 5), true, "one end"},
		{k(10, 5, 10, 5), true, "within"},
		{k(1, 1, 99, 99), true, "around"},
		{k(21, 5, 30, 5), false, "beside, in the first part"},
		{k(10, 6, 20, 9), false, "beside, in the second part"},
	} {
		assert.Equal(t, c.want, s.overlap(c.k, at), c.why)
	}
	s.take()
	assert.False(t, s.overlap(k(10, 5, 10, 5), at.Add(time.Second)), "expired")
	assert.Contains(t, s.changed, k(10, 5, 20, 5), "and deleted, before the kernel refuses the other one")
}
