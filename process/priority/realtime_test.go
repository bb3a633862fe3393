package priority

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestTheBudgetFileOfACPUGroup(t *testing.T) {
	const v1 = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
		"34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n" +
		"32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
	container := strings.Replace(v1, "0:29 / ", "0:29 /box/7 ", 1)
	for _, x := range []struct{ groups, mounts, want string }{
		{"5:cpu,cpuacct:/system.slice/ringway.service\n", v1,
			"/sys/fs/cgroup/cpu,cpuacct/system.slice/ringway.service/cpu.rt_runtime_us"},
		{"3:cpuset:/x\n5:cpu,cpuacct:/\n", v1, "/sys/fs/cgroup/cpu,cpuacct/cpu.rt_runtime_us"},
		{"5:cpu,cpuacct:/box/7/inner\n", container, "/sys/fs/cgroup/cpu,cpuacct/inner/cpu.rt_runtime_us"},
		{"5:cpu,cpuacct:/elsewhere\n", container, ""},
		{"3:cpuset:/x\n", v1, ""},
		{"0::/system.slice/ringway.service\n", "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", ""},
		{"5:cpu,cpuacct:/\n", "garbage\n - \n", ""},
	} {
		assert.Equal(t, x.want, cpuBudget(x.groups, x.mounts), x.groups)
	}
}
