package metered

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/routing/rtnl"
)

func at(text string) time.Time {
	t, err := time.Parse(time.DateTime, text)
	if err != nil {
		panic(err)
	}
	return t
}

func TestMonths(t *testing.T) {
	for _, c := range [][3]string{
		{"2026-11-30 12:00:00", "1", "2026-11-01 00:00:00"},
		{"2026-11-30 12:00:00", "28", "2026-11-28 00:00:00"},
		{"2026-11-10 12:00:00", "28", "2026-10-28 00:00:00"},
		{"2026-01-10 12:00:00", "28", "2025-12-28 00:00:00"},
		{"2026-03-01 00:00:00", "1", "2026-03-01 00:00:00"},
	} {
		from := map[string]int{"1": 1, "28": 28}[c[1]]
		assert.Equal(t, at(c[2]), monthOf(at(c[0]), from), "%s from day %d", c[0], from)
	}
}

// What is counted survives the daemon, a reboot, a stick that is plugged in again, steps of the clock and the month.
func TestWhatALineHasCarried(t *testing.T) {
	type reading struct {
		why     string
		now     string
		boot    string
		index   int
		counter uint64
		bytes   uint64
	}
	var u Usage
	for _, r := range []reading{
		{"the first reading only says where the counters are", "2026-11-01 10:00:00", "a", 3, 1000, 0},
		{"carried", "2026-11-01 10:00:10", "a", 3, 1500, 500},
		{"while no daemon ran", "2026-11-02 10:00:00", "a", 3, 2500, 1500},
		{"plugged in again", "2026-11-02 11:00:00", "a", 9, 100, 1600},
		{"after a reboot, with the same number", "2026-11-03 10:00:00", "b", 9, 300, 1900},
		{"counters that fell back", "2026-11-03 10:00:10", "b", 9, 50, 1950},
		{"the clock is a minute back, over midnight of the first", "2026-10-31 23:59:00", "b", 9, 60, 1960},
		{"and right again: a month begins", "2026-11-01 00:00:10", "b", 9, 70, 10},
		{"the clock is a year ahead", "2027-11-20 00:00:00", "b", 9, 90, 20},
		{"and right again: the month goes on", "2026-11-04 00:00:00", "b", 9, 100, 40},
		{"no second budget by another step", "2027-01-04 00:00:00", "b", 9, 110, 10},
		{"back", "2026-11-04 00:00:10", "b", 9, 120, 60},
		{"the next month", "2026-12-01 00:00:00", "b", 9, 130, 10},
	} {
		u = u.count(at(r.now), 1, r.boot, rtnl.Volume{Index: r.index, Bytes: r.counter})
		assert.Equal(t, r.bytes, u.Bytes, r.why)
	}
	u.Start = u.Start.Add(2 * time.Hour)
	u = u.count(at("2026-12-02 00:00:00"), 1, "b", rtnl.Volume{Index: 9, Bytes: 130})
	assert.EqualValues(t, 10, u.Bytes, "another time zone is not another month")
}

func TestBudgetsAreProblems(t *testing.T) {
	file := filepath.Join(t.TempDir(), "metered.json")
	m := New(file, slog.New(slog.DiscardHandler))
	m.Follow(&config.Config{WANs: []config.WAN{{Volume: &config.Volume{Budget: 1000, FromDay: 1}}, {}}})
	m.lines[0].name = "lte0"
	now := time.Now()
	use := func(bytes uint64) []string {
		m.usage["lte0"] = Usage{Start: now, Bytes: bytes}
		var texts []string
		for _, p := range m.Problems() {
			texts = append(texts, string(p.Severity)+": "+p.Text)
		}
		return texts
	}
	since := ", since " + now.Local().Format(time.DateOnly)
	assert.Empty(t, use(799))
	assert.Equal(t, []string{"warning: 80 % and more of the budget of 1 kB is used up" + since}, use(800))
	assert.Equal(t, []string{"critical: the budget of 1 kB is used up" + since}, use(1000))
	assert.Equal(t, "Metered WANs, calls only: lte0 1 kB of 1 kB (100 %) since "+now.Local().Format(time.DateOnly),
		m.Status().String())

	// The file is written for each percent, and otherwise once an hour.
	m.save(now, false)
	next := New(file, slog.New(slog.DiscardHandler))
	next.load()
	require.EqualValues(t, 1000, next.usage["lte0"].Bytes)
	for _, c := range []struct {
		used    uint64
		after   time.Duration
		written uint64
	}{{1009, time.Minute, 1000}, {1010, time.Minute, 1010}, {1011, 59 * time.Minute, 1010}, {1011, time.Hour, 1011}} {
		use(c.used)
		m.save(m.savedAt.Add(c.after), false)
		next.load()
		assert.Equal(t, c.written, next.usage["lte0"].Bytes, "%d after %s", c.used, c.after)
	}
}
