package appliance

import (
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"ringway/appliance/status"
)

// preemption returns when the kernel lets a thread that woke up preempt the kernel's own work: none (only
// where that ends or sleeps), voluntary (at some points), lazy and full (nearly everywhere), rt; empty if
// unknown. version is uname's, debug is /sys/kernel/debug/sched/preempt (often readable by root only),
// command is the kernel's command line.
func preemption(version, debug, command string) string {
	if _, rest, ok := strings.Cut(debug, "("); ok { // none voluntary (full) lazy
		model, _, _ := strings.Cut(rest, ")")
		return model
	}
	word := ""
	for _, f := range strings.Fields(version) {
		if strings.HasPrefix(f, "PREEMPT") {
			word = f
		}
	}
	switch word {
	case "PREEMPT_RT":
		return "rt"
	case "PREEMPT":
		return "full"
	case "PREEMPT_LAZY":
		return "lazy"
	case "PREEMPT_DYNAMIC": // chosen at boot; the default that the kernel was built with is not visible
		for _, f := range strings.Fields(command) {
			if model, ok := strings.CutPrefix(f, "preempt="); ok {
				return model
			}
		}
		return ""
	}
	if version == "" {
		return ""
	}
	return "none" // or voluntary: uname does not tell them apart
}

// machineLacks lists properties of the machine that harm calls, and what to do about them. It looks once: a
// kernel that is locked down (secure boot) logs every access to its debugging files.
var machineLacks = sync.OnceValue(func() []status.Missing {
	var u unix.Utsname
	version := ""
	if unix.Uname(&u) == nil {
		version = unix.ByteSliceToString(u.Version[:])
	}
	read := func(path string) string {
		b, _ := os.ReadFile(path) // an unreadable file counts as empty
		return string(b)
	}
	return preemptionLacks(preemption(version, read("/sys/kernel/debug/sched/preempt"), read("/proc/cmdline")))
})

func preemptionLacks(model string) []status.Missing {
	switch model {
	case "none", "voluntary":
		return []status.Missing{{
			Name: "a preemptible kernel",
			Cost: "voice packets wait for the kernel's own work, some milliseconds on a busy box " +
				"(boot with preempt=full, or use a kernel with CONFIG_PREEMPT)",
		}}
	}
	return nil
}
