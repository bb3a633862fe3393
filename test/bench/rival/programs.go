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
)

// Programs are the files that Up runs.
type Programs struct {
	Ringway     string // default: this program
	WireGuardGo string // default: beside Ringway, else in PATH
	Nebula      string // default: built by Find
	NebulaCert  string
	OpenVPN     string
	Cores       int // that a rival written in Go is told it has (GOMAXPROCS); 0: those that there are
}

// goEnv is the environment that a rival written in Go has besides.
func (p *Programs) goEnv() []string {
	if p.Cores == 0 {
		return nil
	}
	return []string{fmt.Sprintf("GOMAXPROCS=%d", p.Cores)}
}

// tool is a program that is needed, and the Debian package that has it.
type tool struct{ program, pkg string }

// Find completes p with what the kinds need; what is missing is named all at once. Nebula is built where it is wanted: say
// is told of it.
func (p *Programs) Find(ctx context.Context, kinds []Kind, say func(format string, args ...any)) error {
	if os.Geteuid() != 0 {
		return errors.New("the benchmark makes network namespaces and needs root (try: sudo ringway bench jitter)")
	}
	need := []tool{{"ip", "iproute2"}, {"ss", "iproute2"}, {"ping", "iputils-ping"}, {"iperf3", "iperf3"}, {"wg", "wireguard-tools"}}
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
		return fmt.Errorf("the benchmark needs %s (on Debian: apt-get install %s)", strings.Join(programs, ", "), strings.Join(slices.Compact(packages), " "))
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("the benchmark needs TUN devices: %w (try: modprobe tun)", err)
	}
	if p.Ringway == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the program ringway: %w", err)
		}
		p.Ringway = self
	}
	if err := p.findWireGuardGo(); err != nil {
		return err
	}
	if slices.Contains(kinds, Nebula) && p.Nebula == "" {
		return p.buildNebula(ctx, say)
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
		return fmt.Errorf("the benchmark needs the stock program wireguard-go, which carries the bulk traffic and is neither %s nor in PATH (`make build` makes it, Debian has it as apt-get install wireguard-go, or say --wireguard-go PATH)", beside)
	}
	p.WireGuardGo = path
	return nil
}

// wireguardGoVersion is the module's version in the binary; its --version is a number that nobody raises.
func (p *Programs) wireguardGoVersion(ctx context.Context) string {
	if info, err := buildinfo.ReadFile(p.WireGuardGo); err == nil {
		if info.Main.Path == "golang.zx2c4.com/wireguard" && info.Main.Version != "" && info.Main.Version != "(devel)" {
			return info.Main.Version
		}
	}
	out, err := exec.CommandContext(ctx, p.WireGuardGo, "--version").Output()
	if fields := strings.Fields(string(out)); err == nil && len(fields) > 1 {
		return fields[1]
	}
	return "of unknown version"
}

// nebulaVersions are tried in this order: a newer one may want a newer Go, or modules that the proxy does not have.
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
		return errors.New("the path nebula is built from its source and needs go in PATH (install Go, say --nebula PROGRAM where you have one, or leave nebula out of --vs)")
	}
	var tried []string
	for _, v := range nebulaVersions {
		say("building Nebula %s from the module proxy, once: go install %s/cmd/{nebula,nebula-cert}@%s", v, nebulaModule, v)
		dir := filepath.Join(cache, "nebula-"+v)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make a folder for Nebula: %w", err)
		}
		// Outside any module, and with whatever Go is here: another toolchain would be another thing to compare.
		cmd := exec.CommandContext(ctx, goTool, "install", "-trimpath", nebulaModule+"/cmd/nebula@"+v, nebulaModule+"/cmd/nebula-cert@"+v)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOTOOLCHAIN=local", "GOFLAGS=", "GOWORK=off")
		// Asked to end, go takes away what it has half built; killed, it would not.
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
	return fmt.Errorf("build Nebula (module %s) with %s: none of these could be built (say --nebula PROGRAM where you have one, or leave nebula out of --vs):\n  %s", nebulaModule, goTool, strings.Join(tried, "\n  "))
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

// UseNebula takes a program that is there, and nebula-cert beside it.
func (p *Programs) UseNebula(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	cert := filepath.Join(filepath.Dir(path), "nebula-cert")
	for _, f := range []string{path, cert} {
		if _, err := os.Stat(f); err != nil {
			return fmt.Errorf("nebula: %w (nebula and nebula-cert stand in one folder)", err)
		}
	}
	p.Nebula, p.NebulaCert = path, cert
	return nil
}

// lastLine is where go says what went wrong.
func lastLine(out string, err error) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if last := strings.TrimSpace(lines[len(lines)-1]); last != "" {
		return last
	}
	if err == nil {
		return "the programs are not where they were to be built"
	}
	return err.Error()
}
