package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"ringway/test/bench/report"
)

// ticks are the counters of the first line of /proc/stat (proc_stat(5)): time of all cores by what they did.
// How busy the cores were is not among them: the spinners that keep them awake make that 100 %.
type ticks struct{ softirq, stolen, all uint64 }

func readTicks() (ticks, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return ticks{}, fmt.Errorf("read what the cores did: %w", err)
	}
	return parseTicks(string(text))
}

func parseTicks(text string) (t ticks, err error) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return t, fmt.Errorf("read what the cores did: %q is no first line of /proc/stat", line)
	}
	var v [8]uint64 // user nice system idle iowait irq softirq steal; guest time is in user already
	for i := range v {
		if v[i], err = strconv.ParseUint(fields[1+i], 10, 64); err != nil {
			return t, fmt.Errorf("read what the cores did: %w", err)
		}
		t.all += v[i]
	}
	t.softirq, t.stolen = v[6], v[7]
	return t, nil
}

// since is the shares of what happened between two looks.
func (t ticks) since(before ticks) report.CPU {
	all := float64(t.all - before.all)
	if all == 0 {
		return report.CPU{}
	}
	return report.CPU{
		SoftIRQ: float64(t.softirq-before.softirq) / all, Stolen: float64(t.stolen-before.stolen) / all,
	}
}
