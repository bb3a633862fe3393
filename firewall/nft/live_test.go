package nft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestLiveSetExpires(t *testing.T) {
	t.Parallel()
	at := time.Unix(1000, 0)
	s := newLiveSet(3)
	k := func(i byte) Key { return Key([]byte{i}) }
	s.put(k(1), time.Second, at)
	s.put(k(2), 3*time.Second, at)
	s.put(k(1), 2*time.Second, at.Add(500*time.Millisecond))
	s.take()

	assert.NotNil(t, s.live(k(1), at.Add(2400*time.Millisecond)), "its life began again")
	fresh, ok := s.fits([]Key{k(2), k(3), k(3)}, at)
	assert.Equal(t, 1, fresh, "one is there, one is named twice")
	assert.True(t, ok)
	_, ok = s.fits([]Key{k(3), k(4)}, at)
	assert.False(t, ok)

	later := at.Add(2500 * time.Millisecond)
	assert.Nil(t, s.live(k(1), later))
	_, ok = s.fits([]Key{k(3), k(4)}, later)
	assert.True(t, ok, "what has expired frees a place")
	assert.EqualValues(t, 1, s.expired)
	assert.Empty(t, s.changed, "the kernel's copy ends by itself")
	assert.False(t, s.remove(k(1), later))
	assert.True(t, s.remove(k(2), later))
	assert.Equal(t, map[Key]struct{}{k(2): {}}, s.changed)
}

func TestChangesThatWaitAreBounded(t *testing.T) {
	t.Parallel()
	at := time.Unix(1000, 0)
	s := newLiveSet(4)
	i := byte(0)
	for ; !s.backlog(); i++ {
		k := Key([]byte{i})
		s.put(k, time.Minute, at)
		s.remove(k, at)
	}
	assert.EqualValues(t, 8, i, "twice what the set holds")
}
