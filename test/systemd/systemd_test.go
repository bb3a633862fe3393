// Package systemd holds the tests that run inside the container that run.sh boots: the Debian package under a real
// systemd, whose defaults would kill planes and remove their sockets. Elsewhere there is nothing to run on;
// `make test-systemd` (also in CI) is what runs them.
//
//	phone 10.1.10.9 -- voice0 \                                                / voice0 -- farphone 10.2.10.9
//	                           berlin (this container, systemd) -- wan0 -- far (namespace, by hand)
//	pc    10.1.20.9 -- data0  /  198.51.100.2                  198.51.100.3    \ data0  -- farpc    10.2.20.9
//
// Four streams of numbered packets, voice and data in both directions, run through the whole of it.
package systemd

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/appliance/status"
	"ringway/configs"
	"ringway/test/polltest"
	"ringway/test/streamtest"
	"ringway/tunnel"
)

const (
	conf = "/etc/ringway/ringway.yaml"
	far  = "far"
)

// life is one test, since each part starts from where the one before left the box, as in a box's life.
type life struct {
	*testing.T
	top     *testing.T // of the whole; streams live as long
	streams streamtest.Streams
	clean   map[string]string // what traces shows before the first start
}

func TestPackageUnderSystemd(t *testing.T) {
	if os.Getenv("TEST_SYSTEMD") == "" {
		t.Skip("runs inside the container of `make test-systemd`")
	}
	l := &life{T: t, top: t}
	l.topology()
	for _, step := range []struct {
		name string
		run  func(*life)
	}{
		{"the package installs and starts nothing", (*life).install},
		{"a start with a bad config says what is wrong", (*life).startWithBadConfig},
		{"start", (*life).start},
		{"the daemon and its planes are confined", (*life).confined},
		{"traffic flows in both tunnels", (*life).traffic},
		{"restart", (*life).restart},
		{"kill -9", (*life).killed},
		{"SIGTERM to the daemon", (*life).terminated},
		{"systemctl kill", (*life).killedAll},
		{"systemd is reloaded and executed again", (*life).reexec},
		{"reload", (*life).reload},
		{"SIGHUP", (*life).hangUp},
		{"a config on trial outlives a restart, and goes back", (*life).onTrial},
		{"a reload with a bad config changes nothing", (*life).reloadWithBadConfig},
		{"a restart with a bad config leaves the planes", (*life).restartWithBadConfig},
		{"a daemon that hangs is replaced", (*life).watchdog},
		{"the package is upgraded", (*life).upgrade},
		{"planes are upgraded", (*life).upgradePlanes},
		{"a plane is killed", (*life).planeKilled},
		{"stop leaves nothing", (*life).stop},
		{"ringway stop ends the unit", (*life).stopByHand},
		{"isolate leaves nothing", (*life).isolate},
		{"the package is removed", (*life).remove},
		{"ready for the shutdown", (*life).beforeShutdown},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			(&life{T: t, top: l.top, streams: l.streams,
				clean: l.clean}).step(l, step.run)
		}) {
			_ = os.WriteFile(filepath.Join(results, "ringway.journal"),
				[]byte(journal(t, time.Time{}.AddDate(2000, 0, 0))), 0o644)
			t.FailNow()
		}
	}
}

// step hands back what a step found.
func (l *life) step(all *life, f func(*life)) {
	f(l)
	all.streams, all.clean = l.streams, l.clean
}

// topology builds what stands around the box, and starts the far end.
func (l *life) topology() {
	t := l.T
	for _, ns := range []string{far, "phone", "pc", "farphone", "farpc"} {
		run(t, "ip", "netns", "add", ns)
		run(t, "ip", "-n", ns, "link", "set", "lo", "up")
	}
	veth := func(nsA, a, nsB, b string) {
		run(t, "ip", "link", "add", a, "netns", nsA, "type", "veth", "peer", "name", b, "netns", nsB)
		run(t, "ip", "-n", nsA, "link", "set", a, "up")
		run(t, "ip", "-n", nsB, "link", "set", b, "up")
	}
	host := func(ns, addr, gw string) {
		run(t, "ip", "-n", ns, "addr", "add", addr, "dev", "eth0")
		run(t, "ip", "-n", ns, "route", "add", "default", "via", gw)
	}
	run(t, "ip", "netns", "attach", "box", "1")
	veth("box", "wan0", far, "wan0")
	veth("box", "voice0", "phone", "eth0")
	veth("box", "data0", "pc", "eth0")
	veth(far, "voice0", "farphone", "eth0")
	veth(far, "data0", "farpc", "eth0")
	host("phone", "10.1.10.9/24", "10.1.10.1")
	host("pc", "10.1.20.9/24", "10.1.20.1")
	host("farphone", "10.2.10.9/24", "10.2.10.1")
	host("farpc", "10.2.20.9/24", "10.2.20.1")

	here, there := newKey(t), newKey(t)
	polltest.Require(t, func() bool {
		return !strings.Contains(run(t, "ip", "-6", "address", "show"), "tentative")
	}, 10*time.Second, 100*time.Millisecond)
	writeFile(t, "/etc/far/private.key", []byte(there.Base64()+"\n"), 0o600)
	writeFile(t, "/etc/far/ringway.yaml", variant(t, "branch-munich.yaml", map[string]string{
		"sites[berlin].public_key": here.Public().String(), "wan[wan0].address": "198.51.100.3/24",
		"wan[wan0].gateway": "198.51.100.2",
		"key_file":          "/etc/far/private.key",
	}), 0o644)
	spawnFar(t, far, filepath.Join(given, "ringway"), "run", "--run-dir", "/run/far", "--state-dir",
		"/var/lib/far", "/etc/far/ringway.yaml")

	// The operator's part of an installation.
	writeFile(t, "/etc/ringway/private.key", []byte(here.Base64()+"\n"), 0o600)
	writeFile(t, conf, variant(t, "branch-berlin.yaml", map[string]string{
		"sites[munich].public_key": there.Public().String(), "sites[munich].endpoint": "198.51.100.3",
		"wan[wan0].gateway": "198.51.100.3",
	}), 0o644)
}

func newKey(t *testing.T) tunnel.PrivateKey {
	t.Helper()
	k, err := tunnel.NewPrivateKey()
	require.NoError(t, err)
	return k
}

func variant(t *testing.T, name string, values map[string]string) []byte {
	t.Helper()
	b, err := configs.Variant(name, values)
	require.NoError(t, err)
	return b
}

func (l *life) install() {
	before := traces(l.T)
	run(l.T, "dpkg", "-i", filepath.Join(given, "first.deb"))
	for _, u := range []string{"ringway-voice", "ringway-data"} {
		run(l.T, "id", u)
	}
	assert.Equal(l.T, "inactive", property(l.T, "ActiveState"))
	l.clean = traces(l.T)
	l.same(before)
	out, _ := try("systemd-analyze", "verify", "--man=no", "/usr/lib/systemd/system/ringway.service")
	assert.Empty(l.T, out, "systemd understands every line of the unit")
	rating, _ := try("systemd-analyze", "security", "--no-pager", "ringway.service")
	lines := strings.Split(strings.TrimSpace(rating), "\n")
	l.Log(lines[len(lines)-1])
}

// breakConfig makes two mistakes and gives the way back.
func (l *life) breakConfig() (repair func()) {
	good, err := os.ReadFile(conf)
	require.NoError(l.T, err)
	edit(l.T, conf, "uplink: 20mbit", "uplink: fast")
	edit(l.T, conf, "endpoint:", "endpiont:")
	return func() { writeFile(l.T, conf, good, 0o644) }
}

// wantsErrors holds that text names both mistakes of breakConfig by file and line.
func (l *life) wantsErrors(text string) {
	l.T.Helper()
	assert.Regexp(l.T, `/etc/ringway/ringway\.yaml:\d+: .*uplink: .*"fast"`, text)
	assert.Regexp(l.T, `/etc/ringway/ringway\.yaml:\d+: .*endpiont.*endpoint`, text)
}

func (l *life) startWithBadConfig() {
	repair := l.breakConfig()
	defer repair()
	since := time.Now()
	_, err := try("systemctl", "start", "ringway")
	require.Error(l.T, err)
	l.wantsErrors(journal(l.T, since))
	assert.Equal(l.T, "failed", property(l.T, "ActiveState"), "a mistake in the file does not go away by trying again")
	assert.Equal(l.T, "0", property(l.T, "NRestarts"))
	run(l.T, "systemctl", "reset-failed", "ringway")
	l.same(l.clean)
}

func (l *life) start() {
	began := time.Now()
	run(l.T, "systemctl", "start", "ringway")
	l.Logf("systemctl start: %s", time.Since(began).Round(time.Millisecond))
	assert.Equal(l.T, "active running notify", property(
		l.T, "ActiveState")+" "+property(l.T, "SubState")+" "+property(l.T, "Type"))
	st := daemonStatus(l.T)
	assert.True(l.T, st.Ready)
	assert.Empty(l.T, st.Problems)
}

func (l *life) confined() {
	st := daemonStatus(l.T)
	for _, f := range st.Missing {
		l.Logf("lacks %s: %s", f.Name, f.Cost)
		switch {
		case strings.HasPrefix(f.Name, "landlock") && !haveLandlock(),
			(strings.HasPrefix(f.Name, "memory shortage") || strings.HasPrefix(f.Name, "coming back to real-time")) &&
				!haveCapability(l.T, unix.CAP_SYS_RESOURCE):
			// The machine that the container runs on has it not.
		default:
			assert.NotContains(l.T, f.Name, "plane", "%s: %s", f.Name, f.Cost)
		}
	}
	daemon := processStatus(l.T, mainPID(l.T))
	assert.Equal(l.T, "1", daemon["NoNewPrivs"])
	assert.Equal(l.T, "2", daemon["Seccomp"])
	for class, pid := range planes(l.T) {
		p := processStatus(l.T, pid)
		uid := strings.TrimSpace(run(l.T, "id", "-u", "ringway-"+string(class)))
		assert.Equal(l.T, []string{uid, uid, uid, uid}, strings.Fields(p["Uid"]), class)
		assert.Empty(l.T, p["Groups"], class)
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
			assert.Equal(l.T, strings.Repeat("0", 16), p[set], "%s of plane %s", set, class)
		}
		assert.Equal(l.T, "1", p["NoNewPrivs"], class)
		assert.Equal(l.T, "2", p["Seccomp"], class)
	}
	show := run(l.T, "wg", "show")
	assert.Contains(l.T, show, "rw-voice")
	assert.Contains(l.T, show, "rw-data")
}

func haveLandlock() bool {
	const versionOnly = 1 // LANDLOCK_CREATE_RULESET_VERSION
	_, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, versionOnly)
	return errno == 0
}

func haveCapability(t *testing.T, c uint) bool {
	t.Helper()
	set, err := strconv.ParseUint(processStatus(t, 1)["CapBnd"], 16, 64)
	require.NoError(t, err)
	return set&(1<<c) != 0
}

func (l *life) traffic() {
	at := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	in := func(ns string) streamtest.Inside { return func(f func() error) error { return inNamespace(ns, f) } }
	const ef = 46 << 2
	l.streams = streamtest.Streams{
		streamtest.Start(l.top, "voice", in("phone"), at("10.1.10.9:20000"), in("farphone"), at("10.2.10.9:20000"), ef),
		streamtest.Start(l.top, "voice back", in("farphone"), at("10.2.10.9:20002"), in("phone"),
			at("10.1.10.9:20002"), ef),
		streamtest.Start(l.top, "data", in("pc"), at("10.1.20.9:20000"), in("farpc"), at("10.2.20.9:20000"), 0),
		streamtest.Start(l.top, "data back", in("farpc"), at("10.2.20.9:20002"), in("pc"), at("10.1.20.9:20002"), 0),
	}
	began := time.Now()
	for _, s := range l.streams {
		require.True(l.T, s.Arrives(30*time.Second), "stream %s does not get through", s.Name)
		l.Logf("%s gets through after %s", s.Name, time.Since(began).Round(time.Millisecond))
	}
	run(l.T, "ip", "netns", "exec", "phone", "ping", "-c1", "-W5", "10.2.10.9")
	l.lossless("nothing", func() {})
	for _, d := range daemonStatus(l.T).Tunnels {
		require.Len(l.T, d.Peers, 1)
		assert.False(l.T, d.Peers[0].LastHandshake.IsZero(), d.Class)
		assert.NotZero(l.T, d.Peers[0].RxBytes, d.Class)
	}
}

// flows waits until every stream gets through.
func (l *life) flows(limit time.Duration) {
	l.T.Helper()
	for _, s := range l.streams {
		require.True(l.T, s.Arrives(limit), "stream %s does not get through", s.Name)
	}
}

// lossless does something and holds that no stream lost a packet, and that the planes are those of before.
func (l *life) lossless(what string, f func()) {
	l.T.Helper()
	before := planes(l.T)
	lost := l.streams.During(f)
	sent := 0
	for name, x := range lost {
		assert.Zero(l.T, x.Lost, "%s: %s lost %d of %d packets (%d in a row)", what, name, x.Lost, x.Sent, x.Longest)
		sent += x.Sent
	}
	assert.Equal(l.T, before, planes(l.T), "%s: the planes are the same processes", what)
	if !l.T.Failed() {
		l.Logf("%s: 0 of %d packets lost in 4 streams, planes %v stay", what, sent, slices.Sorted(maps.Values(before)))
	}
}

// replaced is lossless for what ends in a new daemon.
func (l *life) replaced(what string, f func()) {
	l.T.Helper()
	l.lossless(what, func() {
		old := mainPID(l.T)
		f()
		waitActive(l.T, old)
	})
	for _, d := range daemonStatus(l.T).Tunnels {
		assert.True(l.T, d.Adopted, "%s: %s is adopted", what, d.Class)
		assert.Zero(l.T, d.Restarts, "%s: %s", what, d.Class)
	}
	assert.Empty(l.T, daemonStatus(l.T).Problems)
}

func (l *life) restart() {
	l.replaced("systemctl restart", func() { run(l.T, "systemctl", "restart", "ringway") })
}

func (l *life) killed() {
	l.replaced("kill -9 of the daemon", func() { require.NoError(l.T, unix.Kill(mainPID(l.T), unix.SIGKILL)) })
}

func (l *life) terminated() {
	l.replaced("systemctl kill --kill-whom=main", func() {
		run(
			l.T, "systemctl", "kill", "--kill-whom=main", "ringway")
	})
}

// killedAll: without --kill-whom, systemctl kill signals every process of the unit, planes too.
func (l *life) killedAll() {
	l.replaced("systemctl kill --signal=HUP", func() {
		old := mainPID(l.T)
		run(l.T, "systemctl", "kill", "--signal=HUP", "ringway")
		require.NoError(l.T, unix.Kill(old, unix.SIGKILL))
	})
	old := mainPID(l.T)
	lost := l.streams.During(func() {
		run(l.T, "systemctl", "kill", "ringway")
		waitActive(l.T, old)
		l.flows(10 * time.Second)
	})
	l.report("systemctl kill, planes included", lost, noRetry)
}

// noRetry bounds what is lost where handshakes are needed: the first one has to succeed, since WireGuard sends the
// next after five seconds. How much less it is, report prints; other programs may use this machine at the same time.
const noRetry = int(4 * time.Second / streamtest.Spacing)

// report prints what was lost and holds a bound.
func (l *life) report(what string, lost map[string]streamtest.Loss, most int) {
	l.T.Helper()
	for _, name := range slices.Sorted(maps.Keys(lost)) {
		x := lost[name]
		l.Logf("%s: %s lost %d of %d packets, %d in a row (%s)", what, name, x.Lost, x.Sent, x.Longest,
			time.Duration(x.Longest)*streamtest.Spacing)
		assert.LessOrEqual(l.T, x.Lost, most, "%s: %s", what, name)
	}
}

func (l *life) reexec() {
	l.lossless("systemctl daemon-reload and daemon-reexec", func() {
		run(l.T, "systemctl", "daemon-reload")
		run(l.T, "systemctl", "daemon-reexec")
		assert.Equal(l.T, "active", property(l.T, "ActiveState"))
	})
}

func (l *life) reload() {
	old := mainPID(l.T)
	l.lossless("systemctl reload", func() {
		edit(l.T, conf, "data_networks: [10.2.20.0/24,", "data_networks: [10.2.20.0/24, 10.2.30.0/24,")
		run(l.T, "systemctl", "reload", "ringway")
	})
	assert.Equal(l.T, old, mainPID(l.T))
	assert.Contains(l.T, run(l.T, "wg", "show", "rw-data", "allowed-ips"), "10.2.30.0/24")
	assert.Contains(l.T, run(l.T, "wg", "show", "rw-voice", "allowed-ips"), "10.2.30.0/24")
	assert.Equal(l.T, "nothing to change\n", run(l.T, "ringway", "reload"))
}

func (l *life) hangUp() {
	old := mainPID(l.T)
	l.lossless("SIGHUP", func() {
		edit(l.T, conf, " 10.2.30.0/24,", "")
		require.NoError(l.T, unix.Kill(old, unix.SIGHUP))
		polltest.Require(l.T, func() bool {
			return !strings.Contains(run(l.T, "wg", "show", "rw-data", "allowed-ips"), "10.2.30.0/24")
		}, 10*time.Second, 50*time.Millisecond)
		polltest.Require(l.T, func() bool { return property(l.T, "ActiveState") == "active" }, 5*time.Second,
			50*time.Millisecond)
	})
	assert.Equal(l.T, old, mainPID(l.T))
}

// onTrial: the unit lets the daemon replace its config file, with the owner that it has, and put it back.
func (l *life) onTrial() {
	require.NoError(l.T, os.Chown(conf, 1, 1))
	defer func() { require.NoError(l.T, os.Chown(conf, 0, 0)) }()
	before, err := os.ReadFile(conf)
	require.NoError(l.T, err)
	writeFile(l.T, "/root/new.yaml", []byte(strings.Replace(
		string(before), "data_networks: [10.2.20.0/24,", "data_networks: [10.2.20.0/24, 10.2.30.0/24,", 1)), 0o600)
	taken := func() bool {
		return strings.Contains(run(l.T, "wg", "show", "rw-data", "allowed-ips"), "10.2.30.0/24")
	}
	l.lossless("a config on trial", func() { run(l.T, "ringway", "apply", "--confirm", "1h", "/root/new.yaml") })
	assert.True(l.T, taken())
	l.replaced("systemctl restart with a config on trial", func() { run(l.T, "systemctl", "restart", "ringway") })
	assert.True(l.T, taken())
	if c := daemonStatus(l.T).Confirmation; assert.NotNil(l.T, c) {
		assert.Equal(l.T, status.Waiting, c.State)
	}
	l.lossless("a config taken back", func() { run(l.T, "ringway", "confirm", "--undo") })
	assert.False(l.T, taken())
	after, err := os.ReadFile(conf)
	require.NoError(l.T, err)
	assert.Equal(l.T, string(before), string(after))
	assert.Equal(l.T, "644 1:1\n", run(l.T, "stat", "-c", "%a %u:%g", conf))
}

func (l *life) reloadWithBadConfig() {
	old, before, since := mainPID(l.T), traces(l.T), time.Now()
	repair := l.breakConfig()
	defer repair()
	l.lossless("systemctl reload of a bad config", func() {
		_, err := try("systemctl", "reload", "ringway")
		assert.Error(l.T, err)
		out, err := try("ringway", "reload")
		assert.Error(l.T, err)
		l.wantsErrors(out)
		require.NoError(l.T, unix.Kill(old, unix.SIGHUP))
		polltest.Require(l.T, func() bool { return strings.Contains(journal(l.T, since), "reload refused") },
			10*time.Second, 100*time.Millisecond)
	})
	l.wantsErrors(journal(l.T, since))
	assert.Equal(l.T, old, mainPID(l.T))
	l.same(before)
}

// restartWithBadConfig: calls go on while the operator repairs the file, and the next start takes the planes over.
func (l *life) restartWithBadConfig() {
	before := planes(l.T)
	repair := l.breakConfig()
	lost := l.streams.During(func() {
		_, err := try("systemctl", "restart", "ringway")
		require.Error(l.T, err)
		assert.Equal(l.T, "failed", property(l.T, "ActiveState"))
		for class, pid := range before {
			assert.NoError(l.T, unix.Kill(pid, 0), "plane %s lives", class)
		}
		repair()
		run(l.T, "systemctl", "start", "ringway")
	})
	l.report("restart with a bad config, repaired, started", lost, 0)
	assert.Equal(l.T, before, planes(l.T))
}

func (l *life) watchdog() {
	const dropIn = "/run/systemd/system/ringway.service.d/watchdog.conf"
	writeFile(l.T, dropIn, []byte("[Service]\nWatchdogSec=2s\n"), 0o644)
	run(l.T, "systemctl", "daemon-reload")
	l.replaced("restart for a shorter watchdog", func() { run(l.T, "systemctl", "restart", "ringway") })
	assert.Equal(l.T, "2s", property(l.T, "WatchdogUSec"))
	began := time.Now()
	l.replaced("the daemon hangs (SIGSTOP)", func() {
		require.NoError(l.T, unix.Kill(mainPID(l.T), unix.SIGSTOP))
	})
	l.Logf("a daemon that hung was replaced after %s (WatchdogSec=2s)", time.Since(began).Round(100*time.Millisecond))
	require.NoError(l.T, os.Remove(dropIn))
	run(l.T, "systemctl", "daemon-reload")
	run(l.T, "systemctl", "restart", "ringway")
}

func (l *life) upgrade() {
	l.replaced("dpkg -i of a later version", func() { run(l.T, "dpkg", "-i", filepath.Join(given, "second.deb")) })
	st := daemonStatus(l.T)
	assert.Equal(l.T, "upgraded", st.Build)
	for _, d := range st.Tunnels {
		assert.NotEqual(l.T, "upgraded", d.PlaneBuild, "plane %s runs on as it is", d.Class)
	}
}

func (l *life) upgradePlanes() {
	before := planes(l.T)
	lost := l.streams.During(func() { run(l.T, "ringway", "upgrade-planes") })
	l.report("ringway upgrade-planes", lost, noRetry)
	for _, d := range daemonStatus(l.T).Tunnels {
		assert.NotEqual(l.T, before[d.Class], d.PlanePID, d.Class)
		assert.Equal(l.T, "upgraded", d.PlaneBuild, d.Class)
	}
	assert.Equal(l.T, 2, strings.Count(planeProcesses(), "\n"), "the old planes are gone: %s", planeProcesses())
}

func (l *life) planeKilled() {
	for _, class := range tunnel.Classes {
		lost := l.streams.During(func() {
			require.NoError(l.T, unix.Kill(planes(l.T)[class], unix.SIGKILL))
			l.flows(10 * time.Second)
		})
		for name, x := range lost {
			if !strings.HasPrefix(name, string(class)) {
				assert.Zero(l.T, x.Lost, "%s when plane %s dies", name, class)
			}
		}
		l.report("kill -9 of plane "+string(class), lost, noRetry)
	}
}

// same holds that the box shows what it showed at another time, and else says in which lines it differs.
func (l *life) same(want map[string]string) {
	l.T.Helper()
	got := traces(l.T)
	for _, k := range slices.Sorted(maps.Keys(want)) {
		gone, come := lines(want[k]), lines(got[k])
		both := func(s string) bool { return slices.Contains(gone, s) && slices.Contains(come, s) }
		assert.Equal(l.T, slices.DeleteFunc(slices.Clone(gone), both), slices.DeleteFunc(slices.Clone(come), both), k)
	}
}

func lines(s string) []string { return slices.Collect(strings.Lines(s)) }

func (l *life) stop() {
	began := time.Now()
	run(l.T, "systemctl", "stop", "ringway")
	l.Logf("systemctl stop: %s", time.Since(began).Round(time.Millisecond))
	assert.Equal(l.T, "inactive", property(l.T, "ActiveState"))
	l.same(l.clean)
}

// startAgain starts and waits until traffic flows.
func (l *life) startAgain() {
	run(l.T, "systemctl", "start", "ringway")
	l.flows(20 * time.Second)
}

func (l *life) stopByHand() {
	l.startAgain()
	run(l.T, "ringway", "stop")
	polltest.Require(l.T, func() bool { return property(l.T, "ActiveState") == "inactive" }, 5*time.Second,
		50*time.Millisecond,
		"systemd does not start again what the operator stopped")
	l.same(l.clean)

	// A daemon that cannot come back leaves its planes; `ringway stop` takes them away also then.
	l.startAgain()
	repair := l.breakConfig()
	_, err := try("systemctl", "restart", "ringway")
	require.Error(l.T, err)
	require.NotEmpty(l.T, planeProcesses())
	repair()
	run(l.T, "ringway", "stop")
	run(l.T, "systemctl", "reset-failed", "ringway")
	l.same(l.clean)
}

func (l *life) isolate() {
	l.startAgain()
	writeFile(l.T, "/run/systemd/system/ringway-quiet.target",
		[]byte(
			"[Unit]\nDescription=Nothing but the base\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n"), 0o644)
	run(l.T, "systemctl", "daemon-reload")
	run(l.T, "systemctl", "isolate", "ringway-quiet.target")
	polltest.Require(l.T, func() bool { return property(l.T, "ActiveState") == "inactive" }, 20*time.Second,
		100*time.Millisecond)
	l.same(l.clean)
}

func (l *life) remove() {
	l.startAgain()
	run(l.T, "dpkg", "-r", "ringway")
	assert.NoFileExists(l.T, "/usr/bin/ringway")
	assert.FileExists(l.T, conf, "the operator's")
	assert.FileExists(l.T, "/etc/ringway/private.key")
	l.same(l.clean)
	run(l.T, "dpkg", "-i", filepath.Join(given, "second.deb"))
	l.startAgain()
	run(l.T, "dpkg", "--purge", "ringway")
	assert.NoDirExists(l.T, "/var/lib/ringway")
	l.same(l.clean)
}

// beforeShutdown leaves a running box, and a unit that is stopped after it at the shutdown and says what is
// left then; run.sh reads that.
func (l *life) beforeShutdown() {
	run(l.T, "dpkg", "-i", filepath.Join(given, "first.deb"))
	writeFile(l.T, "/run/systemd/system/ringway-witness.service", []byte(`[Unit]
Before=ringway.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/sh -c 'left=$(pgrep -a -u ringway-voice,ringway-data; ip -o link | grep rw-; ip rule | grep -E "^52"; nft list tables | grep ringway); echo "$${left:-clean}" > /ringway-results/after-shutdown'
`), 0o644)
	run(l.T, "systemctl", "daemon-reload")
	run(l.T, "systemctl", "start", "ringway-witness")
	l.startAgain()
	n, err := strconv.Atoi(strings.TrimSpace(run(l.T, "sh", "-c", "ip -o link | grep -c rw-")))
	require.NoError(l.T, err)
	require.Equal(l.T, 2, n, fmt.Sprintf("both tunnels stand: %s", planeProcesses()))
}
