package appliance

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ringway/appliance/config"
	"ringway/test/netnstest"
	"ringway/tunnel"
)

// The reflector follows the config and the devices: one that is not there yet is taken up when it comes, one that comes anew is
// opened anew, and nothing is left open.
func TestReflectorFollows(t *testing.T) {
	defer goleak.VerifyNone(t)
	ns := netnstest.New(t)
	r := newReflector(slog.New(slog.DiscardHandler))
	cfg := &config.Config{Control: config.Control{Reflector: true}, Tunnels: map[tunnel.Class]tunnel.Settings{
		tunnel.Voice: {Interface: "rw-voice"}, tunnel.Data: {Interface: "rw-data"},
	}}
	look := func() (ReflectorStatus, []string) {
		t.Helper()
		r.follow(cfg)
		require.NoError(t, ns.Do(func() error { r.look(); return nil })) // sockets and names are those of the thread's namespace
		return r.status()
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
	assert.Equal(t, "Probes from sites: answered on rw-data, rw-voice, UDP port 862; 0 answers, 0 sessions now; drops 0", st.String())
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

	before := r.ears["rw-voice"]
	look()
	assert.Same(t, before.Listener, r.ears["rw-voice"].Listener, "nothing changed")
	ns.Run("ip", "link", "del", "rw-voice")
	ns.Run("ip", "tuntap", "add", "rw-voice", "mode", "tun")
	look()
	assert.NotSame(t, before.Listener, r.ears["rw-voice"].Listener, "a device of the same name")

	cfg.Control.Reflector = false
	st, _ = look()
	assert.Empty(t, st.Devices)
	assert.Empty(t, ns.Run("ss", "-Hunl"))

	// A port that somebody has is a problem with a way out, and does not keep the daemon from running.
	cfg.Control.Reflector = true
	other := newReflector(slog.New(slog.DiscardHandler))
	other.follow(cfg)
	require.NoError(t, ns.Do(func() error { other.look(); return nil }))
	defer other.close()
	st, wrong = look()
	assert.Empty(t, st.Devices)
	require.Len(t, wrong, 2)
	assert.Contains(t, wrong[0]+wrong[1], "listen for probes on rw-voice, port 862")
	assert.Contains(t, wrong[0], "address already in use; end what has the port, or set control.reflector: false")
}

func TestReflectorIsATask(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := newReflector(slog.New(slog.DiscardHandler))
	r.follow(&config.Config{})
	ended := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- r.Run(ctx) }()
	select {
	case <-r.Ready():
	case <-time.After(10 * time.Second):
		t.Fatal("not ready")
	}
	cancel()
	require.NoError(t, <-ended)
	assert.Equal(t, "reflector", r.String())
}
