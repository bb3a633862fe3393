package figures

import (
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is where the figures come from: delays of one machine are not those of another.
type Machine struct {
	CPU      string `json:"cpu"`
	Cores    int    `json:"cores"`
	MemoryMB uint64 `json:"memory_mb"`
	Kernel   string `json:"kernel"`
	Arch     string `json:"arch"`
	// none, voluntary, full, lazy, rt; "dynamic" where the kernel doesn't tell which
	Preemption string  `json:"preemption"`
	Virtual    bool    `json:"virtual"` // a hypervisor's guest: its scheduling is part of every delay
	Load1      float64 `json:"load_1m"` // when the run began
	Go         string  `json:"go"`
}

// ThisMachine describes the machine that it runs on. What cannot be found stays empty.
func ThisMachine() Machine {
	m := Machine{Cores: runtime.NumCPU(), Arch: runtime.GOARCH, Go: runtime.Version()}
	for line := range strings.Lines(read("/proc/cpuinfo")) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "model name":
			m.CPU = value
		case "flags":
			for f := range strings.FieldsSeq(value) {
				m.Virtual = m.Virtual || f == "hypervisor"
			}
		}
	}
	var version string
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
		version = unix.ByteSliceToString(u.Version[:])
	}
	m.Preemption = preemption(
		version,
		read("/sys/kernel/debug/sched/preempt"),
		read("/sys/kernel/realtime"),
		read("/proc/cmdline"),
	)
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.MemoryMB = uint64(info.Totalram) * uint64(info.Unit) >> 20
	}
	if f := strings.Fields(read("/proc/loadavg")); len(f) > 0 {
		m.Load1, _ = strconv.ParseFloat(f[0], 64)
	}
	return m
}

// preemption names the kernel's preemption model. A dynamic kernel's uname says only that it can be chosen:
// the choice is in debugfs (in parentheses: "none voluntary (full)"), else on the command line.
func preemption(version, debugfs, realtime, cmdline string) string {
	if strings.TrimSpace(realtime) == "1" {
		return "rt"
	}
	if _, rest, ok := strings.Cut(debugfs, "("); ok {
		if name, _, ok := strings.Cut(rest, ")"); ok {
			return name
		}
	}
	for arg := range strings.FieldsSeq(cmdline) {
		if v, ok := strings.CutPrefix(arg, "preempt="); ok {
			return v
		}
	}
	words := strings.Fields(version)
	for _, w := range []struct{ word, model string }{
		{"PREEMPT_RT", "rt"}, {"PREEMPT_DYNAMIC", "dynamic"}, {"PREEMPT_LAZY", "lazy"}, {"PREEMPT", "full"},
	} {
		for _, have := range words {
			if have == w.word || strings.HasPrefix(have, w.word+"_") && w.word != "PREEMPT" {
				return w.model
			}
		}
	}
	return "none or voluntary"
}

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}
