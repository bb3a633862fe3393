package plane

import (
	"bufio"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/tunnel"
)

// olderCommit is the last release that speaks protocol 1.2. Its planes run wherever it is upgraded from.
const olderCommit = "7d11954"

// buildOlder builds the release from the repository's history.
func buildOlder(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		t.Skipf("no git repository here, so planes of the release before cannot be built: %v", err)
	}
	root := strings.TrimSpace(string(out))
	if err := exec.Command("git", "-C", root, "cat-file", "-e", olderCommit+"^{commit}").Run(); err != nil {
		t.Skipf("commit %s is not in this clone (fetch the history: git fetch --unshallow), "+
			"so planes of the release before cannot be built", olderCommit)
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "source.tar")
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), out)
	}
	run("git", "-C", root, "archive", "--format=tar", "-o", source, olderCommit)
	run("tar", "-xf", source)
	// Without -trimpath the build cache would depend on the directory, and help nobody.
	run("go", "build", "-trimpath", "-o", "ringway", "./cmd/ringway")
	return filepath.Join(dir, "ringway")
}

// olderDaemon runs the supervision of that release with a voice plane of its own in berlin. The returned
// function kills it as kill -9 does.
func (b *branches) olderDaemon(t *testing.T, program string) (kill func()) {
	t.Helper()
	peer := b.berlinDevice.Peers[0]
	config, err := json.Marshal(map[string]any{ // as `ringway bench` told an edge
		"private_key": b.berlinDevice.PrivateKey.Base64(), "peer": peer.PublicKey, "networks": peer.AllowedIPs,
		"endpoint": netip.MustParseAddrPort("192.0.2.2:51820"),
		"port":     voicePort, "device": "rw-voice", "engine": string(tunnel.EngineRealtime),
		"denied": filepath.Join(b.berlin.run, "denied"),
	})
	require.NoError(t, err)
	for _, dir := range []string{b.berlin.run, b.berlin.dir} {
		require.NoError(t, os.MkdirAll(dir, 0o700))
	}
	file := filepath.Join(t.TempDir(), "edge.json")
	require.NoError(t, os.WriteFile(file, config, 0o600))

	// Its directories are fixed: it gets the bench's under their names.
	script := `mount -t tmpfs none /run && mkdir -p /run/ringway/planes /run/wireguard &&
		mount --bind "$1" /run/ringway/planes && mount --bind "$2" /run/wireguard && exec "$3" bench edge "$4"`
	cmd := b.berlin.ns.Command("unshare", "-m", "sh", "-c", script, "sh", b.berlin.run, b.berlin.dir, program, file)
	cmd.Stderr = b.berlin.log
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	kill = func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	t.Cleanup(kill)
	_, err = bufio.NewReader(stdout).ReadString('\n') // it says when its plane forwards
	require.NoError(t, err, "%s", b.berlin.log)
	return kill
}

// An upgrade of the package restarts the daemon and leaves the planes alone: the new daemon adopts and
// configures those of the release before, under calls, until the operator has them replaced.
func TestAPlaneOfTheReleaseBeforeIsAdoptedAndConfigured(t *testing.T) {
	mayBeRealtime(t)
	program := buildOlder(t)
	b := connectBranches(t)
	kill := b.olderDaemon(t, program)
	b.join(t)
	ctx := context.Background()
	cfg := b.engineConfig(b.berlin)
	cfg.Engine, cfg.Env = tunnel.EngineRealtime, append(cfg.Env, "TEST_ENGINES=real")

	c := b.call(t)
	c.after(t, 100)
	kill()
	s, _ := b.berlin.supervise(cfg)
	d := b.berlinDevice
	require.NoError(t, s.Configure(ctx, d))
	old := status(t, s)
	assert.True(t, old.Adopted)
	assert.Equal(t, minorSettings-1, s.current().Hello.Minor)

	d.Admission = tunnel.Admission{
		Media: 1 << 46, Lines: []tunnel.AdmissionLine{{Overhead: 14}},
		Sites: []tunnel.AdmissionSite{{Key: key(2).Public(), Rate: 600_000}},
	}
	d.Outer.Marks = []tunnel.OuterMark{{Inner: 46, Outer: 40}}
	d.Bounds.InFlight, d.Settings.MTU = 100, 1380
	d.Peers = append([]tunnel.Peer{{
		Site: "berne", PublicKey: key(9).Public(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")},
	}}, d.Peers...)
	require.NoError(t, s.Configure(ctx, d))
	require.NoError(t, s.Configure(ctx, d), "twice")
	c.after(t, 250)
	lost, _ := c.end(t)
	assert.Zero(t, lost, "neither the daemon's end nor its successor's config costs a packet")

	now := status(t, s)
	assert.Equal(t, old.PlanePID, now.PlanePID, "the plane is the same")
	assert.Len(t, now.Peers, 2)
	assert.EqualValues(t, 600_000, budgetOf(now, key(2).Public()))
	held := b.heldInBerlin(t, s)
	assert.Equal(t, d.Bounds, held.bounds())
	assert.Equal(t, 1380, held.mtu())
	assert.Equal(t, d.Outer, *held.Outer)
	assert.NotContains(t, b.berlin.log.String(), "replaced")

	// Only the operator's word replaces it; then all of the config holds in the new one.
	c = b.call(t)
	c.after(t, 100)
	require.NoError(t, s.Upgrade(ctx))
	c.after(t, 250)
	c.end(t)
	upgraded := status(t, s)
	assert.NotEqual(t, old.PlanePID, upgraded.PlanePID)
	assert.Equal(t, ProtocolMinor, s.current().Hello.Minor)
	assert.EqualValues(t, 600_000, budgetOf(upgraded, key(2).Public()))
	held.Measured = &d.Measured    // the release before counts no media
	held.Sources = &[]netip.Addr{} // and does not know lines
	held.ProbeMTU = &d.ProbeMTU    // nor what they take
	held.Paths = &tunnel.Paths{}
	held.Copies = &tunnel.Copies{} // nor copies
	assert.Equal(t, held, b.heldInBerlin(t, s))
}

// A downgrade of the package leaves the planes alone, too.
func TestADaemonOfTheReleaseBeforeAdoptsAPlane(t *testing.T) {
	mayBeRealtime(t)
	program := buildOlder(t)
	b := connectBranches(t)
	cfg := b.engineConfig(b.berlin)
	cfg.Engine, cfg.Env = tunnel.EngineRealtime, append(cfg.Env, "TEST_ENGINES=real")
	s, release := b.berlin.supervise(cfg)
	require.NoError(t, s.Configure(context.Background(), b.berlinDevice))
	b.join(t)
	pid := status(t, s).PlanePID

	c := b.call(t)
	c.after(t, 100)
	release()
	kill := b.olderDaemon(t, program) // says that it forwards when it has told the plane its config
	c.after(t, 250)
	lost, _ := c.end(t)
	// That release sets the device's queue length again, and the kernel drops what is sent while it does
	// (dev_qdisc_change_tx_queue_len): a packet or two. A plane that was replaced would lose them by the dozen.
	assert.LessOrEqual(t, lost[0], int64(2))
	assert.Zero(t, lost[1])
	kill()

	s, _ = b.berlin.supervise(cfg)
	require.NoError(t, s.Configure(context.Background(), b.berlinDevice))
	assert.Equal(t, pid, status(t, s).PlanePID)
	assert.NotContains(t, b.berlin.log.String(), "replaced")
}

// heldInBerlin is what the plane says that it holds.
func (b *branches) heldInBerlin(t *testing.T, s *Supervisor) Settings {
	t.Helper()
	r := s.current()
	require.NoError(t, s.procs.Refresh(context.Background(), r.Instance))
	var a about
	require.NoError(t, r.DecodeHello(&a))
	return a.Settings
}

// budgetOf is the voice budget that an engine keeps for a peer, 0 for none.
func budgetOf(st tunnel.DeviceStatus, k tunnel.PublicKey) uint64 {
	for _, p := range st.Peers {
		if p.PublicKey == k && p.Media != nil {
			return uint64(p.Media.Budget)
		}
	}
	return 0
}
