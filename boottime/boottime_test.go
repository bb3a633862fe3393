package boottime

import (
	"math"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestNowIsTheKernelsUptime(t *testing.T) {
	before := Now()
	text, err := os.ReadFile("/proc/uptime")
	require.NoError(t, err)
	after := Now()

	seconds, err := strconv.ParseFloat(strings.Fields(string(text))[0], 64)
	require.NoError(t, err)
	uptime := time.Duration(math.Round(seconds*100)) * 10 * time.Millisecond
	assert.GreaterOrEqual(t, uptime, before.Truncate(10*time.Millisecond))
	assert.LessOrEqual(t, uptime, after)
}

func TestIDIsTheSameUntilTheNextBoot(t *testing.T) {
	id, err := ID()
	require.NoError(t, err)
	again, err := ID()
	require.NoError(t, err)
	assert.Equal(t, id, again)
	assert.Len(t, id, 36)
}
