package process

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/polltest"
)

func TestAProgramOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, whose capabilities it drops")
	}
	output, err := os.Create(filepath.Join(t.TempDir(), "output"))
	require.NoError(t, err)
	defer output.Close()
	p := Program{Name: "sh", Args: []string{"-c", "grep -E 'CapBnd|NoNewPrivs' /proc/self/status; sleep 100 & wait"},
		Capabilities: []int{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW}}
	p.Args[1] = "trap 'exit 19' TERM; " + p.Args[1]
	r, err := p.Start(output)
	require.NoError(t, err)
	defer r.Release()

	again, err := Adopt(r.ID())
	require.NoError(t, err)
	again.Release()
	_, err = Adopt(r.ID() + "1")
	assert.ErrorContains(t, err, "another one by now")
	_, err = Adopt("0 0")
	assert.Error(t, err)

	var text []byte
	polltest.Require(t, func() bool {
		text, _ = os.ReadFile(output.Name())
		return strings.Count(string(text), "\n") == 2
	}, 10*time.Second, 10*time.Millisecond)
	assert.Contains(t, string(text), "CapBnd:\t0000000000003000")
	assert.Contains(t, string(text), "NoNewPrivs:\t1")
	require.NoError(t, r.End(5*time.Second))
	assert.Equal(t, 19, r.Status())
	_, err = Program{Name: "no-such-program"}.Start(output)
	assert.ErrorIs(t, err, ErrNoProgram)
}
