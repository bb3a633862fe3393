package reflector

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/test/netnstest"
	"ringway/tunnel"
)

// The reflector follows the config and the devices: it listens on a device that appears, opens one that was replaced
// again, and leaves nothing open.
func TestReflectorFollows(t *testing.T) {
	defer goleak.VerifyNone(t)
	ns := netnstest.New(t)
	r := New(slog.New(slog.DiscardHandler))
	cfg := &config.Config{Control: config.Control{Reflector: true}, Tunnels: map[tunnel.Class]tunnel.Settings{
		tunnel.Voice: {Interface: "rw-voice"}, tunnel.Data: {Interface: "rw-data"},
	}}
	look := func() (Status, []problem.Problem) {
		t.Helper()
		r.Follow(cfg)
		// Sockets and device names are those of the thread's namespace.
		require.NoError(t, ns.Do(func() error { r.look(); return nil }))
		return r.Status().(Status), r.Problems()
	}
	st, wrong := look()
	assert.Empty(t, st.Devices)
	assert.Empty(t, wrong)
	assert.Equal(t, "Probes from sites: not answered", st.String())

	ns.Run("ip", "tuntap", "add", "rw-voice", "mode", "tun")
	st, _ = look()
	assert.Equal(t, []string{"rw-voice"}, st.Devices)
	ns.Run("ip", "tuntap", "add", "rw-data", "mode", "tun")
	st, _ = look()
	assert.Equal(t, []string{"rw-data", "rw-voice"}, st.Devices)
	assert.Equal(t, "Probes from sites: answered on rw-data, rw-voice, UDP port 862; "+
		"0 answers, 0 active sessions; drops 0", st.String())
	sockets := ns.Run("ss", "-Hunl")
	for _, d := range []string{"rw-voice", "rw-data"} {
		assert.Contains(t, sockets, fmt.Sprintf("0.0.0.0%%%s:862", d))
		assert.Contains(t, sockets, fmt.Sprintf("[::]%%%s:862", d))
	}

	// With no ruleset at all: who comes in from another device finds nobody.
	require.NoError(t, ns.Do(func() error {
		c, err := net.Dial("udp4", "127.0.0.1:862")
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err = c.Write(make([]byte, 44)); err == nil {
			_, err = c.Read(make([]byte, 44))
		}
		assert.ErrorIs(t, err, unix.ECONNREFUSED)
		return nil
	}))

	before := r.listeners["rw-voice"]
	look()
	assert.Same(t, before.Listener, r.listeners["rw-voice"].Listener, "nothing changed")
	ns.Run("ip", "link", "del", "rw-voice")
	ns.Run("ip", "tuntap", "add", "rw-voice", "mode", "tun")
	look()
	assert.NotSame(t, before.Listener, r.listeners["rw-voice"].Listener, "a device of the same name")

	cfg.Control.Reflector = false
	st, _ = look()
	assert.Empty(t, st.Devices)
	assert.Empty(t, ns.Run("ss", "-Hunl"))

	// A port that somebody has is a problem with a way out, and does not keep the daemon from running.
	cfg.Control.Reflector = true
	other := New(slog.New(slog.DiscardHandler))
	other.Follow(cfg)
	require.NoError(t, ns.Do(func() error { other.look(); return nil }))
	defer other.close()
	st, wrong = look()
	assert.Empty(t, st.Devices)
	require.Len(t, wrong, 2)
	assert.Contains(t, fmt.Sprint(wrong), "listen for probes on rw-voice, port 862")
	assert.Contains(t, wrong[0].String(),
		"address already in use; stop the program that uses the port, or set control.reflector: false")
}

func TestReflectorRunsUntilItIsStopped(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := New(slog.New(slog.DiscardHandler))
	r.Follow(&config.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.NoError(t, r.Run(ctx, cancel), "it is ready, and ends when it is told to")
}
