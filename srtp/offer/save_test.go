package offer_test

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"ringway/srtp/offer"
)

// A call that was loaded says what the one that was saved would have said, with the same keys and the same epochs.
func TestALoadedCallGoesOn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		places := [2]offer.Place{drawPlace(t), drawPlace(t)}
		b, twin := newBench(tb{t}, places[0], places[1]), newBench(tb{t}, places[0], places[1])
		defer b.Close()
		offered := drawBody(t, nil)
		tags := []string{"a", "b"}
		r, err := b.Offer("", offer.Caller, []byte(offered), false)
		if err != nil {
			return
		}
		for range rapid.IntRange(0, 3).Draw(t, "answers") {
			tag := rapid.SampledFrom(tags).Draw(t, "tag")
			if rapid.IntRange(0, 2).Draw(t, "in dialog") == 0 {
				_, _ = b.Offer(tag, offer.Callee, []byte(drawBody(t, nil)), false)
				continue
			}
			_, _ = b.Answer(tag, offer.Callee, []byte(drawAnswer(t, r.Body)))
		}

		saved := b.Save()
		claimed := map[netip.AddrPort]bool{}
		twin.Call, err = offer.Load(twin.Config(), places[0], places[1], saved, func(a netip.AddrPort) { claimed[a] = true })
		require.NoError(t, err)
		clear(saved)
		assert.Equal(t, b.ports.out, claimed)
		twin.ports.out, twin.ports.next = claimed, b.ports.next
		twin.skip(b)
		assert.Equal(t, keysOf(b.Secrets()), keysOf(twin.Secrets()))

		next, from := drawBody(t, r.Body), rapid.SampledFrom([]offer.End{offer.Caller, offer.Callee}).Draw(t, "from")
		for _, tag := range tags {
			one, errOne := b.Answer(tag, offer.Callee, []byte(next))
			two, errTwo := twin.Answer(tag, offer.Callee, []byte(next))
			require.Equal(t, errOne, errTwo)
			assert.Equal(t, one, two)
			one, errOne = b.Offer(tag, from, []byte(next), false)
			two, errTwo = twin.Offer(tag, from, []byte(next), false)
			require.Equal(t, errOne, errTwo)
			assert.Equal(t, string(one.Body), string(two.Body))
			assert.Equal(t, one, two)
		}
		twin.Close()
		assert.Empty(t, twin.ports.out)
	})
}

func keysOf(all map[*byte][]byte) [][]byte {
	return slices.SortedFunc(maps.Values(all), bytes.Compare)
}

// What is cut, longer or another build's is refused.
func TestLoadRefusesWhatSaveHasNotMade(t *testing.T) {
	c := newCall(t)
	saved := c.Save()
	load := func(b []byte) error {
		_, err := offer.Load(c.Config(), phone(offer.Require), phone(offer.Require), b, func(netip.AddrPort) {})
		return err
	}
	require.NoError(t, load(saved))
	for n := range saved {
		require.Error(t, load(saved[:n]), n)
	}
	require.Error(t, load(append(slices.Clone(saved), 0)))
	saved[0]++
	require.ErrorContains(t, load(saved), "another build")
}

func FuzzLoad(f *testing.F) {
	f.Add(newCall(f).Save())
	f.Fuzz(func(t *testing.T, saved []byte) {
		b := newBench(t, phone(offer.Require), phone(offer.Require))
		_, _ = offer.Load(b.Config(), phone(offer.Require), phone(offer.Require), saved, func(netip.AddrPort) {})
	})
}

// skip has the bench make the keys and identifiers that another one would make next.
func (b *bench) skip(other *bench) {
	for range other.keys {
		b.Config().NewKey(cm80)
	}
	for range other.ids() {
		b.Config().NewID()
	}
}

// ids is the number of the identifier that it makes for it.
func (b *bench) ids() int {
	n, _ := strconv.ParseInt(b.Config().NewID(), 16, 64)
	return int(n)
}
