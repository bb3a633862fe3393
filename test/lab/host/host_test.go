package host

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"ringway/test/netnstest"
)

// The world starts the program that it is part of as its holders: here that is the test itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == "lab" && os.Args[2] == "holder" {
		if err := Hold(os.Args[3:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Whoever kills the program kills all of its world: no handler of ours runs then.
func TestKilledWorldLeavesNothing(t *testing.T) {
	netnstest.Root(t)
	self, err := os.Executable()
	require.NoError(t, err)
	w, err := NewWorld(self)
	require.NoError(t, err)
	h, err := w.NewHost("phone-a")
	require.NoError(t, err)
	defer h.Close()
	p, err := h.Spawn("sleep", h.Command("sleep", "1000"))
	require.NoError(t, err)
	// The kernel closes the pipe of a killed program; closing it is all that this test does, too.
	require.NoError(t, w.stdin.Close())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	require.Error(t, p.Wait(ctx))
	require.NoError(t, ctx.Err(), "sleep outlived the world")
	_ = w.cmd.Wait()
	w.pidNS.Close()
}
