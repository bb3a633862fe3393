package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"ringway/test/bench/rival"
	"ringway/test/netnstest"
)

// The programs under test, built once for all: the benchmark starts its own program as its helpers and
// probes, and the one beside it as planes.
var programs rival.Programs

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if code, done := netnstest.Isolate(); done {
		return code
	}
	dir, remove, err := netnstest.Dir("ringway-bench-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer remove()
	programs.Ringway, programs.Helper = filepath.Join(dir, "ringway"), filepath.Join(dir, "ringway-lab")
	programs.WireGuardGo = filepath.Join(dir, "wireguard-go")
	for _, b := range []struct{ out, pkg string }{{programs.Ringway, "ringway/cmd/ringway"},
		{programs.Helper, "ringway/cmd/ringway-lab"}, {programs.WireGuardGo, "golang.zx2c4.com/wireguard"}} {
		cmd := exec.Command("go", "build", "-o", b.out, b.pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as it ships
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", b.pkg, err, out)
			return 1
		}
	}
	return m.Run()
}
