package cost

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestMaskOfOneCore(t *testing.T) {
	assert.Equal(t, "2", mask(1))
	assert.Equal(t, "80000000", mask(31))
	assert.Equal(t, "1,00000000", mask(32))
}

func TestQuantilesAndMedians(t *testing.T) {
	assert.Zero(t, Quantile[int](nil, 0.5))
	assert.Equal(t, 2, Quantile([]int{1, 2, 3}, 0.5))
	assert.Equal(t, 3, Quantile([]int{1, 2, 3}, 1))
	assert.Zero(t, Median(nil))
	assert.InDelta(t, 2.5, Median([]float64{4, 1, 3, 2}), 0)
}
