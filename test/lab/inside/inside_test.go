package inside

import (
	"context"
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/netnstest"
)

func TestDoAndRunAreInsideAndNobodyElseIs(t *testing.T) {
	n := netnstest.New(t)
	path := fmt.Sprintf("/proc/self/fd/%d", n.FD())
	before, err := os.Readlink("/proc/thread-self/ns/net")
	require.NoError(t, err)

	var within string
	require.NoError(t, Do(path, func() (err error) {
		within, err = os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		links, err := net.Interfaces()
		assert.Len(t, links, 1, "only loopback")
		return err
	}))
	assert.NotEqual(t, before, within)
	out, err := Run(context.Background(), path, "readlink", "/proc/self/ns/net")
	require.NoError(t, err)
	assert.Equal(t, within+"\n", out)
	for range 100 { // no thread that was inside serves another goroutine
		done := make(chan string)
		go func() {
			here, _ := os.Readlink("/proc/thread-self/ns/net")
			done <- here
		}()
		assert.Equal(t, before, <-done)
	}

	require.NoError(t, Do("", func() error { within, err = os.Readlink("/proc/thread-self/ns/net"); return err }))
	assert.Equal(t, before, within)
}

func TestErrorsSayWhatWasAttempted(t *testing.T) {
	err := Do("/run/netns/no-such", func() error { return nil })
	assert.ErrorContains(t, err, "open network namespace: open /run/netns/no-such")
	err = Do("/dev/null", func() error { return nil })
	assert.ErrorContains(t, err, "enter network namespace /dev/null")
	n := netnstest.New(t)
	_, err = Run(context.Background(), fmt.Sprintf("/proc/self/fd/%d", n.FD()), "ip", "link", "show", "dev", "eth9")
	assert.ErrorContains(t, err, "ip link show dev eth9: exit status 1: Device \"eth9\" does not exist")
}
