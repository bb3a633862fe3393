package main

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
)

// Every drop reason of every engine has a counter before the first drop (docs/metrics.md).
func TestEveryEngineListsItsDropReasons(t *testing.T) {
	reasons := dropReasons()
	assert.ElementsMatch(t, slices.Collect(maps.Keys(engines)), slices.Collect(maps.Keys(reasons)))
	for engine, r := range reasons {
		assert.Greater(t, len(r), 10, engine)
	}
}
