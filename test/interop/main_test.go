// Package interop holds Ringway to what other WireGuards do: a stock far end with one tunnel, run by the
// stock program and wg(8), against an edge that runs for real. It has tests alone.
//
//	phone-a ---                                             --- phone-b
//	            edge-a (ringway) --- provider --- edge-b (wireguard-go, one tunnel)
//	pc-a    ---                                             --- pc-b
package interop

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/test/lab"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

// The programs under test, built once for all.
var ringway, helper, wireguardGo string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if code, done := netnstest.Isolate(); done {
		return code
	}
	dir, remove, err := netnstest.Dir("ringway-interop-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer remove()
	ringway, helper, wireguardGo = filepath.Join(dir, "ringway"), filepath.Join(dir,
		"ringway-lab"), filepath.Join(dir, "wireguard-go")
	for out, what := range map[string]string{ringway: "ringway/cmd/ringway", helper: "ringway/cmd/ringway-lab",
		wireguardGo: "golang.zx2c4.com/wireguard"} {
		cmd := exec.Command("go", "build", "-o", out, what)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as it ships
		if text, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", what, err, text)
			return 1
		}
	}
	return m.Run()
}

// within is a deadline for one step.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("not done after %s", d))
	t.Cleanup(cancel)
	return ctx
}

// branches builds a lab. When the test fails, it prints what the edges said.
func branches(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	o.Binary, o.Helper, o.WireGuardGo = ringway, helper, wireguardGo
	l, err := lab.New(within(t, time.Minute), o)
	require.NoError(t, err)
	t.Cleanup(l.Close)
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, side := range []string{"a", "b"} {
			if text, err := os.ReadFile(l.Edge(side).Log()); err == nil {
				t.Logf("edge-%s said:\n%s", side, text)
			}
		}
	})
	return l
}

// Where things are, on either side.
const (
	stockDevice = "wg0"
	configFile  = "/etc/ringway/ringway.yaml"
	addressA    = "198.51.100.2"
	addressB    = "203.0.113.2"
)

// stock builds a pair whose far end is stock, joined to berlin's tunnel of a class ("voice" or "data").
func stock(t *testing.T, class string, more map[string]string) *lab.Lab {
	t.Helper()
	return branches(t, lab.Options{StockFarEnd: true, EdgeConfig: func(site string, values map[string]string) {
		values["sites[munich].tunnels"] = class
		values["sites[munich]."+class+"_port"] = "51820"
		for k, v := range more {
			values[k] = v
		}
	}})
}

func device(class string) string { return "rw-" + class }

// sh runs a command on a host and fails the test when it fails.
func sh(t *testing.T, h *lab.Host, name string, args ...string) string {
	t.Helper()
	out, err := h.Run(within(t, 20*time.Second), name, args...)
	require.NoError(t, err)
	return strings.TrimSpace(out)
}

// field reads what `wg show DEVICE FIELD` says of the only peer.
func field(t *testing.T, h *lab.Host, device, name string) string {
	t.Helper()
	out := sh(t, h, "wg", "show", device, name)
	_, value, ok := strings.Cut(out, "\t")
	require.True(t, ok, "wg show %s %s: %q", device, name, out)
	return value
}

// change rewrites values of edge-a's config and has it reloaded.
func change(t *testing.T, l *lab.Lab, values map[string]string) {
	t.Helper()
	e := l.Edge("a")
	text, err := e.Config()
	require.NoError(t, err)
	text, err = config.SetValues(text, values)
	require.NoError(t, err)
	require.NoError(t, e.WriteConfig(text))
	sh(t, e.Host, ringway, "reload")
}

// reaches waits until a ping gets through.
func reaches(t *testing.T, from *lab.Host, to string) {
	t.Helper()
	polltest.Require(t, func() bool {
		_, err := from.Run(t.Context(), "ping", "-n", "-q", "-c", "1", "-W", "1", to)
		return err == nil
	}, 20*time.Second, 50*time.Millisecond, "%s does not reach %s", from.Name, to)
}
