// Package oracle asks the machine itself whether an edge is what `ringway plan` says. It has tests alone.
//
// The edge runs for real, in the lab; beside it stands a namespace in which `ip`, `sysctl`, `tc` and `nft`
// were fed the plan's words. Both are read back by the same tools, as expressions and raw values, and must be
// the same. Then packets of every class are sent, and seen in the queue and with the mark that the plan gives
// them; and what somebody else breaks is repaired, while nothing leaves in clear.
//
//	phone-a ---                           --- phone-b
//	            edge-a --- provider --- edge-b
//	pc-a    ---                           --- pc-b
package oracle

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

	"ringway/qos"
	"ringway/test/lab"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

// ringway is the program under test, built once for all.
var ringway, helper string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if code, done := netnstest.Isolate(); done {
		return code
	}
	dir, remove, err := netnstest.Dir("ringway-oracle-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer remove()
	if err := os.Chmod(dir, 0o755); err != nil { // a user without rights runs it, too
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ringway, helper = filepath.Join(dir, "ringway"), filepath.Join(dir, "ringway-lab")
	cmd := exec.Command("go", "build", "-o", dir, "ringway/cmd/ringway", "ringway/cmd/ringway-lab")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as it ships
	if text, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, text)
		return 1
	}
	return m.Run()
}

const (
	wanRate    = 20 * qos.Mbit
	configFile = "/etc/ringway/ringway.yaml"
	addressA   = "198.51.100.2"
	addressB   = "203.0.113.2"
	// patience bounds what happens at once on an idle machine; a busy one may take its time.
	patience = 20 * time.Second
)

// within is a deadline for one step.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("not done after %s", d))
	t.Cleanup(cancel)
	return ctx
}

// branches builds a lab of two edges. When the test fails, it prints what they said.
func branches(t *testing.T) *lab.Lab {
	t.Helper()
	l, err := lab.New(within(t, time.Minute), lab.Options{Binary: ringway, Helper: helper, WAN: wanRate})
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

// sh runs a command line on a host and fails the test when it fails.
func sh(t *testing.T, h *lab.Host, line string) string {
	t.Helper()
	out, err := h.Run(within(t, patience), "sh", "-ec", line)
	require.NoError(t, err)
	return strings.TrimSpace(out)
}

// reaches waits until a ping gets through.
func reaches(t *testing.T, from *lab.Host, to string) {
	t.Helper()
	polltest.Require(t, func() bool {
		_, err := from.Run(t.Context(), "ping", "-n", "-q", "-c", "1", "-W", "1", to)
		return err == nil
	}, patience, 50*time.Millisecond, "%s does not reach %s", from.Name, to)
}

func netPath(h *lab.Host) string { return fmt.Sprintf("/proc/%d/ns/net", h.PID) }
