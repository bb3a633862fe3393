package appliance

import (
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// softirqBudget is how many packets the kernel takes from its network cards before a thread that waits may run, while Ringway
// does (machine.tune). The kernel's 300 are a millisecond and more in which no forwarding thread of calls gets the core that
// took them, where the kernel is not preemptible; fewer cost a busy box some throughput.
const softirqBudget = 16

// preemption says when the kernel lets a thread that woke up go before what it does itself: none (only where it ends or
// sleeps), voluntary (at some points), lazy and full (nearly everywhere), rt; empty where that cannot be told. version is uname's,
// debug the kernel's own word (/sys/kernel/debug/sched/preempt, often for root alone), command its command line.
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
	case "PREEMPT_DYNAMIC": // chosen at boot, and what the kernel was built with is not told
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

// machineLacks is what of the machine itself stands in the way of calls, and what to do. It is looked at once: a kernel that is
// locked down (secure boot) notes in its log whoever asks its debugging files.
var machineLacks = sync.OnceValue(func() []FeatureStatus {
	var u unix.Utsname
	version := ""
	if unix.Uname(&u) == nil {
		version = unix.ByteSliceToString(u.Version[:])
	}
	read := func(path string) string {
		b, _ := os.ReadFile(path) // what cannot be read says nothing
		return string(b)
	}
	return preemptionLacks(preemption(version, read("/sys/kernel/debug/sched/preempt"), read("/proc/cmdline")))
})

func preemptionLacks(model string) []FeatureStatus {
	switch model {
	case "none", "voluntary":
		return []FeatureStatus{{"a preemptible kernel", "a call's packet waits for what the kernel does, some milliseconds on a busy box " +
			"(boot with preempt=full, or take a kernel with CONFIG_PREEMPT)"}}
	}
	return nil
}
