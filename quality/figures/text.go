package figures

import (
	"fmt"
)

// Duration prints microseconds with three digits and the unit that suits them.
func Duration(us float64) string {
	switch {
	case us < 1000:
		return fmt.Sprintf("%.0f µs", us)
	case us < 9995:
		return fmt.Sprintf("%.2f ms", us/1e3)
	case us < 99950:
		return fmt.Sprintf("%.1f ms", us/1e3)
	case us < 10e6:
		return fmt.Sprintf("%.0f ms", us/1e3)
	}
	return fmt.Sprintf("%.1f s", us/1e6)
}

// Percent never rounds a loss to none.
func Percent(share float64) string {
	p := share * 100
	switch {
	case p == 0:
		return "0 %"
	case p < 0.01:
		return "<0.01 %"
	case p < 1:
		return fmt.Sprintf("%.2f %%", p)
	}
	return fmt.Sprintf("%.1f %%", p)
}

func Thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Verdicts are by R, in the categories of ITU-T G.109.
func Satisfaction(r float64) string {
	switch {
	case r >= 90:
		return "very good"
	case r >= 80:
		return "good"
	case r >= 70:
		return "fair"
	case r >= 60:
		return "poor"
	case r >= 50:
		return "bad"
	}
	return "unusable"
}

// MachineLine is a machine in one line.
func MachineLine(m Machine) string {
	virtual := ""
	if m.Virtual {
		virtual = " (virtual machine)"
	}
	return fmt.Sprintf("%d × %s%s, Linux %s, preemption %s", m.Cores, m.CPU, virtual, m.Kernel, m.Preemption)
}
