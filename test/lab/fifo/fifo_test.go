package fifo

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The main goroutine stays on the main thread, so no test's goroutine ever runs there: a test below makes its
// thread real-time and another looks whether the main thread is not.
func init() { runtime.LockOSThread() }

// slept is how often a thread has gone to sleep.
func slept(t *testing.T, tid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/status", tid))
	require.NoError(t, err)
	m := regexp.MustCompile(`(?m)^voluntary_ctxt_switches:\s+(\d+)`).FindSubmatch(text)
	require.NotNil(t, m)
	n, err := strconv.Atoi(string(m[1]))
	require.NoError(t, err)
	return n
}

// used is the CPU time that this process has spent outside the kernel, in ns.
func used(t *testing.T) int64 {
	t.Helper()
	var u unix.Rusage
	require.NoError(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return u.Utime.Nano()
}

// The monitor looks around every ten milliseconds at least while a goroutine computes; no other thread has
// anything to do then.
func TestTheMonitorIsFound(t *testing.T) {
	require.NotZero(t, monitor)
	before := slept(t, monitor)
	began := used(t)
	for sum := 0; used(t) < began+3e8; {
		for i := range 1 << 20 { // compute: a system call gives the processor's time to the kernel
			sum += i
		}
	}
	assert.Greater(t, slept(t, monitor), before+5)
}

func TestAThreadGoesBeforeOthersAndTheMonitorBeforeIt(t *testing.T) {
	policies := make(chan [2]*unix.SchedAttr)
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := RealTime(); err != nil {
			t.Log(err)
			close(policies)
			return
		}
		own, _ := unix.SchedGetAttr(0, 0)
		other, _ := unix.SchedGetAttr(monitor, 0)
		policies <- [2]*unix.SchedAttr{own, other}
	}()
	p, ok := <-policies
	if !ok {
		t.Skip("this machine refuses real-time scheduling")
	}
	assert.Equal(t, uint32(unix.SCHED_FIFO), p[0].Policy)
	assert.Equal(t, uint32(unix.SCHED_FIFO), p[1].Policy)
	assert.Greater(t, p[1].Priority, p[0].Priority)
	main, err := unix.SchedGetAttr(os.Getpid(), 0)
	require.NoError(t, err)
	assert.NotEqual(t, uint32(unix.SCHED_FIFO), main.Policy, "nobody else")
}
