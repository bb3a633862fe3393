package figures

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestPreemptionModelIsNamed(t *testing.T) {
	for _, c := range []struct{ version, debugfs, realtime, cmdline, want string }{
		{"#1 SMP PREEMPT_DYNAMIC @0", "", "", "", "dynamic"},
		{"#1 SMP PREEMPT_DYNAMIC Debian", "none voluntary (full)", "", "", "full"},
		{"#1 SMP PREEMPT_DYNAMIC Debian", "", "", "quiet preempt=lazy", "lazy"},
		{"#1 SMP PREEMPT_RT Debian", "", "1\n", "", "rt"},
		{"#1 SMP PREEMPT Debian", "", "", "", "full"},
		{"#1 SMP Debian", "", "", "", "none or voluntary"},
	} {
		assert.Equal(t, c.want, preemption(c.version, c.debugfs, c.realtime, c.cmdline), c.version)
	}
	m := ThisMachine()
	assert.NotEmpty(t, m.Kernel)
	assert.Positive(t, m.Cores)
}
