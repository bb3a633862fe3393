package bench

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/bench/report"
)

func TestSharesOfTheProcessor(t *testing.T) {
	before, err := parseTicks("cpu  100 0 50 800 0 0 10 40 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
	require.NoError(t, err)
	after, err := parseTicks("cpu  400 0 150 1200 0 0 60 190 0 0\n")
	require.NoError(t, err)
	before.others = map[int]uint64{1: 1000, 2: 500, 3: 70}
	after.others = map[int]uint64{1: 1050, 3: 20, 4: 50} // 2 has ended, 3 is another now, 4 is new
	assert.Equal(t, report.CPU{SoftIRQ: 0.05, Stolen: 0.15, Others: 0.1}, after.since(before))
	assert.Equal(t, report.CPU{}, after.since(after))

	_, err = parseTicks("intr 5")
	assert.EqualError(t, err, `read the CPU counters: "intr 5" is not the first line of /proc/stat`)
}

func TestProcessTimes(t *testing.T) {
	for flags, kernel := range map[string]bool{"4194560": false, "69238880": true} {
		used, k, err := parseProcess(
			"4321 (a ) name) S 1 4321 4321 0 -1 " + flags + " 100 0 0 0 7 5 3 1 20 0 1 0 100 0 0\n",
		)
		require.NoError(t, err)
		assert.Equal(t, uint64(16), used)
		assert.Equal(t, kernel, k)
	}
	_, _, err := parseProcess("1 (x) S")
	assert.ErrorContains(t, err, "is not a line of /proc/PID/stat")
}
