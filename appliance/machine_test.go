package appliance

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestPreemptionIsReadOfWhatTheKernelTells(t *testing.T) {
	for _, x := range []struct{ version, debug, command, want string }{
		{"#1 SMP PREEMPT_DYNAMIC Debian 6.12.43-1 (2025-08-27)", "none voluntary (full) lazy\n", "preempt=none", "full"},
		{"#1 SMP PREEMPT_DYNAMIC Debian 6.12.43-1 (2025-08-27)", "none (voluntary) full lazy\n", "", "voluntary"},
		{"#1 SMP PREEMPT_DYNAMIC Debian 6.12.43-1 (2025-08-27)", "", "root=/dev/vda1 preempt=none quiet", "none"},
		{"#1 SMP PREEMPT_DYNAMIC Debian 6.12.43-1 (2025-08-27)", "", "root=/dev/vda1 quiet", ""},
		{"#1 SMP PREEMPT_RT Debian 6.12.43-1 (2025-08-27)", "", "", "rt"},
		{"#7 SMP PREEMPT Tue Mar 5 10:00:00 UTC 2024", "", "", "full"},
		{"#1 SMP PREEMPT_LAZY Tue Mar 5 10:00:00 UTC 2024", "", "", "lazy"},
		{"#1 SMP Debian 5.10.218-1 (2024-06-01)", "", "", "none"},
		{"", "", "", ""},
	} {
		assert.Equal(t, x.want, preemption(x.version, x.debug, x.command), x)
	}
	assert.Len(t, preemptionLacks("none"), 1)
	assert.Empty(t, preemptionLacks("full"))
	assert.Empty(t, preemptionLacks(""))
}
