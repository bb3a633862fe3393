package rival

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ringway/test/lab/host"
	"ringway/test/lab/program"
)

// Programs are the files that Up runs.
type Programs struct {
	Ringway     string // to be measured; default: the one that belongs to this program
	Helper      string // whose `lab holder` and `bench …` run on the hosts; default: this program
	OtherBuild  bool   // Ringway is another build than this program's
	Version     string // required of a Ringway that is not given; empty: any
	WireGuardGo string // default: beside Ringway, else in PATH
	Nebula      string // default: built by Find
	NebulaCert  string
	OpenVPN     string
	Cores       int // GOMAXPROCS of rivals written in Go; 0: all
}

// goEnv is the additional environment of a rival written in Go.
func (p *Programs) goEnv() []string {
	if p.Cores == 0 {
		return nil
	}
	return []string{fmt.Sprintf("GOMAXPROCS=%d", p.Cores)}
}

// tool is a program that is needed, and its Debian package.
type tool struct{ program, pkg string }

// Find completes p with what the kinds need, and reports everything that is missing at once. It builds Nebula
// if needed and reports that to say.
func (p *Programs) Find(ctx context.Context, kinds []Kind, say func(format string, args ...any)) error {
	if os.Geteuid() != 0 {
		return errors.New("the benchmark creates network namespaces and needs root (try: sudo ringway bench jitter)")
	}
	need := []tool{
		{"ip", "iproute2"},
		{"ss", "iproute2"},
		{"ping", "iputils-ping"},
		{"iperf3", "iperf3"},
		{"wg", "wireguard-tools"},
	}
	if slices.Contains(kinds, OpenVPN) && p.OpenVPN == "" {
		need = append(need, tool{"openvpn", "openvpn"})
	}
	var programs, packages []string
	for _, t := range need {
		path, err := host.LookPath(t.program)
		if err != nil {
			programs, packages = append(programs, t.program), append(packages, t.pkg)
		} else if t.program == "openvpn" {
			p.OpenVPN = path
		}
	}
	if len(programs) > 0 {
		slices.Sort(packages)
		return fmt.Errorf(
			"the benchmark needs %s (on Debian: apt-get install %s)",
			strings.Join(programs, ", "),
			strings.Join(slices.Compact(packages), " "),
		)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("the benchmark needs TUN devices: %w (try: modprobe tun)", err)
	}
	if err := p.findRingway(); err != nil {
		return err
	}
	if err := p.findWireGuardGo(); err != nil {
		return err
	}
	if slices.Contains(kinds, Nebula) && p.Nebula == "" {
		return p.buildNebula(ctx, say)
	}
	return nil
}

func (p *Programs) findRingway() (err error) {
	if p.Ringway == "" {
		if p.Ringway, err = program.Find(p.Version); err != nil {
			return err
		}
	}
	if p.Helper == "" {
		if p.Helper, err = os.Executable(); err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
	}
	return nil
}

func (p *Programs) findWireGuardGo() error {
	if p.WireGuardGo != "" {
		path, err := filepath.Abs(p.WireGuardGo)
		if err == nil {
			_, err = os.Stat(path)
		}
		if err != nil {
			return fmt.Errorf("the stock program wireguard-go: %w", err)
		}
		p.WireGuardGo = path
		return nil
	}
	beside := filepath.Join(filepath.Dir(p.Ringway), "wireguard-go")
	if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() {
		p.WireGuardGo = beside
		return nil
	}
	path, err := host.LookPath("wireguard-go")
	if err != nil {
		return fmt.Errorf(
			"the benchmark needs the stock program wireguard-go, which carries the bulk traffic and was found "+
				"neither as %s nor in PATH (`make build` makes it, Debian has it as apt-get install wireguard-go, or "+
				"say --wireguard-go PATH)",
			beside,
		)
	}
	p.WireGuardGo = path
	return nil
}

// wireguardGoVersion is the module's version in the binary; the number that --version prints is never raised.
func (p *Programs) wireguardGoVersion(ctx context.Context) string {
	if info, err := buildinfo.ReadFile(p.WireGuardGo); err == nil {
		if info.Main.Path == "golang.zx2c4.com/wireguard" && info.Main.Version != "" &&
			info.Main.Version != "(devel)" {
			return info.Main.Version
		}
	}
	out, err := exec.CommandContext(ctx, p.WireGuardGo, "--version").Output()
	if fields := strings.Fields(string(out)); err == nil && len(fields) > 1 {
		return fields[1]
	}
	return "of unknown version"
}

// nebulaVersions are tried in this order: a newer one may need a newer Go, or modules that the proxy lacks.
var nebulaVersions = []string{"v1.12.0", "v1.11.2", "v1.11.1"}

const nebulaModule = "github.com/slackhq/nebula"

// buildNebula builds Nebula from the module proxy into the user's cache, once.
func (p *Programs) buildNebula(ctx context.Context, say func(format string, args ...any)) error {
	cache, err := os.UserCacheDir()
	if err != nil {
		// root without HOME, as from a service manager
		cache = "/var/cache"
	}
	cache = filepath.Join(cache, "ringway")
	for _, v := range nebulaVersions {
		if p.haveNebula(cache, v) {
			return nil
		}
	}
	goTool, err := exec.LookPath("go")
	if err != nil {
		return errors.New(
			"the path nebula is built from source and needs go in PATH (install Go, name one with --nebula " +
				"PROGRAM, or leave nebula out of --vs)",
		)
	}
	var tried []string
	for _, v := range nebulaVersions {
		say(
			"building Nebula %s from the module proxy, once: go install %s/cmd/{nebula,nebula-cert}@%s",
			v,
			nebulaModule,
			v,
		)
		dir := filepath.Join(cache, "nebula-"+v)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("create a directory for Nebula: %w", err)
		}
		// Outside any module, and with the installed Go: another toolchain would be another variable.
		cmd := exec.CommandContext(
			ctx,
			goTool,
			"install",
			"-trimpath",
			nebulaModule+"/cmd/nebula@"+v,
			nebulaModule+"/cmd/nebula-cert@"+v,
		)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOTOOLCHAIN=local", "GOFLAGS=", "GOWORK=off")
		// Interrupted, go removes partial builds; killed, it would not.
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		cmd.WaitDelay = 20 * time.Second
		out, err := cmd.CombinedOutput()
		if err == nil && p.haveNebula(cache, v) {
			return nil
		}
		_ = os.Remove(dir) // fails where it is not empty
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		why := lastLine(string(out), err)
		say("Nebula %s cannot be built here: %s", v, why)
		tried = append(tried, v+": "+why)
	}
	return fmt.Errorf(
		"build Nebula (module %s) with %s: none of these could be built (name one with --nebula PROGRAM, or "+
			"leave nebula out of --vs):\n  %s",
		nebulaModule,
		goTool,
		strings.Join(tried, "\n  "),
	)
}

func (p *Programs) haveNebula(cache, version string) bool {
	dir := filepath.Join(cache, "nebula-"+version)
	for _, name := range []string{"nebula", "nebula-cert"} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || !st.Mode().IsRegular() {
			return false
		}
	}
	p.Nebula, p.NebulaCert = filepath.Join(dir, "nebula"), filepath.Join(dir, "nebula-cert")
	return true
}

// UseNebula uses an existing program, and nebula-cert beside it.
func (p *Programs) UseNebula(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	cert := filepath.Join(filepath.Dir(path), "nebula-cert")
	for _, f := range []string{path, cert} {
		if _, err := os.Stat(f); err != nil {
			return fmt.Errorf("nebula: %w (nebula and nebula-cert must be in one directory)", err)
		}
	}
	p.Nebula, p.NebulaCert = path, cert
	return nil
}

// lastLine is the line in which go reports the error.
func lastLine(out string, err error) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if last := strings.TrimSpace(lines[len(lines)-1]); last != "" {
		return last
	}
	if err == nil {
		return "the build produced no programs"
	}
	return err.Error()
}
