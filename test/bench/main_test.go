package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"ringway/test/bench/rival"
)

// The programs under test, built once for all: the benchmark starts the program that it is part of as its holders, probes and planes.
var programs rival.Programs

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make network namespaces and need root (make test)")
		return 1
	}
	dir, err := os.MkdirTemp("", "ringway-bench-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	programs.Ringway, programs.WireGuardGo = filepath.Join(dir, "ringway"), filepath.Join(dir, "wireguard-go")
	for _, b := range []struct{ out, pkg string }{{programs.Ringway, "ringway/cmd/ringway"}, {programs.WireGuardGo, "golang.zx2c4.com/wireguard"}} {
		cmd := exec.Command("go", "build", "-o", b.out, b.pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as it ships
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", b.pkg, err, out)
			return 1
		}
	}
	return m.Run()
}
