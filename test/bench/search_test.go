package bench

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestSearchFindsTheHighestRateThatHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Float64Range(200, 900_000).Draw(t, "limit")
		s := search{
			first:      rapid.Float64Range(100, 1e6).Draw(t, "first"),
			min:        100,
			max:        1e6,
			growth:     1.3,
			resolution: 0.02,
		}
		tries := 0
		f, err := s.run(func(rate float64) (verdict, error) {
			tries++
			require.GreaterOrEqual(t, rate, s.min)
			require.LessOrEqual(t, rate, s.max)
			if rate > limit {
				return lossy, nil
			}
			return held, nil
		})
		require.NoError(t, err)
		assert.LessOrEqual(t, f.rate, limit)
		assert.Greater(t, f.rate*1.0201, limit)
		assert.Equal(t, lossy, f.above)
		assert.Less(t, tries, 30)
	})
}

func TestSearchAtItsEnds(t *testing.T) {
	s := search{first: 1000, min: 100, max: 5000, growth: 2, resolution: 0.1}
	f, err := s.run(func(float64) (verdict, error) { return held, nil })
	require.NoError(t, err)
	assert.Equal(t, found{rate: 5000, above: unknown}, f)

	f, err = s.run(func(float64) (verdict, error) { return lossy, nil })
	require.NoError(t, err)
	assert.Equal(t, found{above: lossy}, f)

	f, err = s.run(func(rate float64) (verdict, error) {
		if rate > 1500 {
			return unsent, nil
		}
		return held, nil
	})
	require.NoError(t, err)
	assert.Equal(t, unsent, f.above)
	assert.InDelta(t, 1500, f.rate, 150)

	broken := errors.New("broken")
	_, err = s.run(func(float64) (verdict, error) { return held, broken })
	require.ErrorIs(t, err, broken)
	_, err = search{}.run(nil)
	require.Error(t, err)
}
