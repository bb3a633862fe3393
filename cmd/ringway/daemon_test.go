package main

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
)

// Every engine that a plane can run has told the daemon why it drops packets, so that each reason has its counter (docs/metrics.md).
func TestEveryEngineTellsItsDropReasons(t *testing.T) {
	reasons := dropReasons()
	assert.ElementsMatch(t, slices.Collect(maps.Keys(engines)), slices.Collect(maps.Keys(reasons)))
	for engine, r := range reasons {
		assert.Greater(t, len(r), 10, engine)
	}
}
