package plane

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ringway/process"
	"ringway/test/netnstest"
	"ringway/test/polltest"
	"ringway/tunnel"
	"ringway/tunnel/descriptor"
)

// patience bounds what must happen; how long it took is measured and printed, not asserted.
const patience = 20 * time.Second

// bench is one machine: a namespace with the directories of one daemon.
type bench struct {
	t        *testing.T
	ns       *netnstest.NS
	run, dir string
	log      *testLog
}

// testLog collects what is logged; it outlives the test's own log.
type testLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *testLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func newBench(t *testing.T) *bench {
	t.Helper()
	var ignored goleak.Option
	before := openFiles(t)
	t.Cleanup(func() { // registered first, runs last
		assert.NoError(t, goleak.Find(ignored))
		polltest.Assert(t, func() bool { return openFiles(t) <= before }, patience, time.Millisecond,
			"descriptors are left open")
	})
	ignored = goleak.IgnoreCurrent()
	b := &bench{t: t, ns: netnstest.New(t), log: &testLog{}}
	d, err := os.MkdirTemp("/tmp", "rwp") // short: a unix socket's path has 108 bytes
	require.NoError(t, err)
	b.run, b.dir = filepath.Join(d, "run"), filepath.Join(d, "wg")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		for _, c := range tunnel.Classes {
			assert.NoError(t, Quit(ctx, b.run, b.dir, c))
		}
		if t.Failed() {
			t.Log(b.log.String())
		}
		os.RemoveAll(d)
	})
	return b
}

func openFiles(t *testing.T) int {
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	n := 0
	for _, fd := range fds {
		// The runtime's own (epoll, eventfd, cgroup files) come when first needed and stay.
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		own := func(prefix string) bool { return strings.HasPrefix(to, prefix) }
		if err == nil && !own("anon_inode:[event") && !own("/sys/") && !own("/proc/") {
			n++
		}
	}
	return n
}

// config is a supervisor's configuration whose devices are in the bench's namespace.
func (b *bench) config(c tunnel.Class) Config {
	return Config{
		Class: c, RunDir: b.run, UAPIDir: b.dir, Engine: "fake", Env: []string{"GORACE=" + os.Getenv("GORACE")},
		OpenTUN: func(name string) (f *os.File, err error) {
			derr := b.ns.Do(func() error { f, err = descriptor.OpenTUN(name); return err })
			return f, derr
		},
		OpenUDP: func(port uint16, mark uint32, tos uint8, bd tunnel.Bounds) (u4, u6 *os.File, err error) {
			derr := b.ns.Do(func() error { u4, u6, err = descriptor.OpenUDP(port, mark, tos, bd); return err })
			return u4, u6, derr
		},
		Log: slog.New(slog.NewTextHandler(b.log, nil)),
	}
}

// supervise runs a supervisor; the returned function lets it go, as a daemon that ends.
func (b *bench) supervise(cfg Config) (*Supervisor, func()) {
	b.t.Helper()
	s, err := NewSupervisor(cfg)
	require.NoError(b.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var once sync.Once
	release := func() { once.Do(func() { cancel(); assert.NoError(b.t, <-done) }) }
	b.t.Cleanup(release)
	return s, release
}

func key(n byte) (k tunnel.PrivateKey) {
	for i := range k {
		k[i] = n
	}
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

// recordedPID is the pid of the plane that runs, as its daemon recorded it; 0 if there is none.
func (b *bench) recordedPID(c tunnel.Class) int {
	text, err := os.ReadFile(filepath.Join(b.run, "plane-"+string(c)+".pid"))
	require.NoError(b.t, err)
	var pid int
	_, err = fmt.Sscanf(string(text), "%d", &pid)
	require.NoError(b.t, err)
	return pid
}

// tellEngine sends text to the engine of the plane that runs, past the supervisor.
func tellEngine(s *Supervisor, text string) error {
	return s.current().Ask(context.Background(), process.Request{Type: typeSet, Body: uapiText{text}, Long: true}, nil)
}

func device(c tunnel.Class) tunnel.Device {
	return tunnel.Device{
		Class: c,
		Settings: tunnel.Settings{
			Interface: "rw-" + string(c), ListenPort: 51820, Engine: tunnel.EngineAuto, MTU: 1420,
		},
		FwMark: 1 << 13, Outer: tunnel.Outer{TOS: 0xb8}, PrivateKey: key(1),
		Peers: []tunnel.Peer{
			{Site: "munich", PublicKey: key(2).Public(), Endpoint: netip.MustParseAddrPort("203.0.113.2:51820"),
				AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}, Keepalive: 25 * time.Second},
			{Site: "roamer", PublicKey: key(3).Public(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.3.0.0/16")}},
		},
		Bounds: tunnel.Bounds{TxQueueLen: 100, InFlight: 128, SendBuffer: 1 << 16, ReceiveBuffer: 1 << 18},
	}
}

func status(t *testing.T, s *Supervisor) tunnel.DeviceStatus {
	t.Helper()
	d, err := s.Status(context.Background())
	require.NoError(t, err)
	return d
}

// memory is where peers were last heard, as the daemon keeps it.
type memory struct {
	mu     sync.Mutex
	places map[tunnel.PublicKey]netip.AddrPort
}

// remember gives a supervisor's planes a memory.
func remember(cfg *Config) *memory {
	m := &memory{places: map[tunnel.PublicKey]netip.AddrPort{}}
	cfg.OnEndpoints = func(heard map[tunnel.PublicKey]netip.AddrPort) {
		m.mu.Lock()
		defer m.mu.Unlock()
		maps.Copy(m.places, heard)
	}
	cfg.Latest = func(d tunnel.Device) tunnel.Device {
		d.Peers = slices.Clone(d.Peers)
		for i, p := range d.Peers {
			if at := m.of(p.PublicKey); at.IsValid() {
				d.Peers[i].Endpoint = at
			}
		}
		return d
	}
	return m
}

func (m *memory) of(k tunnel.PublicKey) netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.places[k]
}

// kill9 kills a plane and waits until another answers; it returns how long that took.
func kill9(t *testing.T, s *Supervisor) time.Duration {
	t.Helper()
	old := status(t, s).PlanePID
	began := time.Now()
	require.NoError(t, unix.Kill(old, unix.SIGKILL))
	polltest.Require(t, func() bool {
		d, err := s.Status(context.Background())
		return err == nil && d.PlanePID != old
	}, patience, time.Millisecond)
	took := time.Since(began)
	assert.ErrorIs(t, unix.Kill(old, 0), unix.ESRCH, "reaped, no zombie")
	return took
}

func TestAPlaneThatDiesIsBackWithWhatItKnew(t *testing.T) {
	b := newBench(t)
	cfg := b.config(tunnel.Voice)
	places := remember(&cfg)
	s, release := b.supervise(cfg)
	ctx := context.Background()
	require.NoError(t, s.Configure(ctx, device(tunnel.Voice)))
	<-s.Ready()
	index := b.ns.Run("cat", "/proc/net/dev")
	require.Contains(t, index, "rw-voice")
	link := b.ns.Run("ip", "-o", "link", "show", "rw-voice")

	// The site that dials in shows up at an address that no configuration names.
	roamed := netip.MustParseAddrPort("198.51.100.77:4242")
	err := tellEngine(s, fmt.Sprintf("public_key=%s\nx_roam=%s\n", key(3).Public().Hex(), roamed))
	require.NoError(t, err)
	polltest.Require(t, func() bool {
		return places.of(key(3).Public()) == roamed
	}, patience, time.Millisecond)

	var took []time.Duration
	for range 3 {
		took = append(took, kill9(t, s))
		d := status(t, s)
		require.Len(t, d.Peers, 2)
		for _, p := range d.Peers {
			want := netip.MustParseAddrPort("203.0.113.2:51820")
			if p.PublicKey == key(3).Public() {
				want = roamed
			}
			assert.Equal(t, want, p.Endpoint)
		}
		assert.EqualValues(t, 1, d.Drops["handshakes"], "a new plane shakes hands at once")
	}
	t.Logf("back after kill -9: %v", took)
	assert.Equal(t, 3, status(t, s).Restarts)
	assert.Equal(t, link, b.ns.Run("ip", "-o", "link", "show", "rw-voice"), "the device outlives its planes")

	require.NoError(t, s.Stop(ctx))
	release()
	_, err = b.ns.Try("ip", "link", "show", "rw-voice")
	assert.Error(t, err, "the device is gone")
	for _, d := range []string{b.run, b.dir} {
		left, err := os.ReadDir(d)
		require.NoError(t, err)
		assert.Empty(t, left)
	}
}

func TestADaemonThatComesBackAdoptsAndChangesNothing(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	first, release := b.supervise(b.config(tunnel.Data))
	require.NoError(t, first.Configure(ctx, device(tunnel.Data)))
	before := status(t, first)
	// A release before this one left path MTU discovery at the kernel's default.
	require.NoError(t, unix.SetsockoptInt(first.res.udp4, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_WANT))
	release()

	second, release := b.supervise(b.config(tunnel.Data))
	require.NoError(t, second.Configure(ctx, device(tunnel.Data)))
	mode, err := unix.GetsockoptInt(second.res.udp4, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER)
	require.NoError(t, err)
	assert.Equal(t, unix.IP_PMTUDISC_OMIT, mode, "the socket that was adopted ignores ICMP about the path's MTU")
	after := status(t, second)
	assert.Equal(t, before.PlanePID, after.PlanePID)
	assert.True(t, after.Adopted)
	assert.Equal(t, before.Drops["sets"], after.Drops["sets"], "the same device changes nothing")
	require.NoError(t, second.Configure(ctx, device(tunnel.Data)))
	assert.Equal(t, before.Drops["sets"], status(t, second).Drops["sets"])

	// Only the difference is told.
	d := device(tunnel.Data)
	d.Peers = d.Peers[:1]
	require.NoError(t, second.Configure(ctx, d))
	assert.Len(t, status(t, second).Peers, 1)
	assert.Equal(t, before.Drops["sets"]+1, status(t, second).Drops["sets"])

	t.Logf("adopted plane back after kill -9: %v", kill9(t, second))
	assert.False(t, status(t, second).Adopted)
	assert.Len(t, status(t, second).Peers, 1)

	pid := status(t, second).PlanePID
	release()
	third, _ := b.supervise(b.config(tunnel.Data))
	require.NoError(t, third.Stop(ctx), "stop ends a plane that was never adopted")
	assert.ErrorIs(t, unix.Kill(pid, 0), unix.ESRCH)
}

func TestReloadReplacesOnlyWhatMust(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	s, _ := b.supervise(b.config(tunnel.Data))
	d := device(tunnel.Data)
	require.NoError(t, s.Configure(ctx, d))
	pid := status(t, s).PlanePID
	link := b.ns.Run("ip", "-o", "link", "show", "rw-data")
	index := strings.Fields(link)[0]

	d.Settings.MTU, d.Bounds.TxQueueLen, d.Outer.TOS, d.FwMark = 1300, 50, 0, 2<<13
	require.NoError(t, s.Configure(ctx, d))
	assert.Equal(t, pid, status(t, s).PlanePID, "in place")
	assert.EqualValues(t, 1300, status(t, s).Drops["mtu"])
	assert.Equal(t, link, b.ns.Run("ip", "-o", "link", "show", "rw-data"), "MTU and queue length are package routing's")
	_, mark, tos := socketParameters(s.res)
	assert.EqualValues(t, 2<<13, mark)
	assert.EqualValues(t, 0, tos)

	d.Settings.ListenPort = 51999
	require.NoError(t, s.Configure(ctx, d))
	assert.NotEqual(t, pid, status(t, s).PlanePID)
	assert.Equal(t, index, strings.Fields(b.ns.Run("ip", "-o", "link", "show", "rw-data"))[0], "the device stays")
	assert.Contains(t, b.ns.Run("ss", "-Hnul"), ":51999")
	assert.NotContains(t, b.ns.Run("ss", "-Hnul"), ":51820")

	// A port that is taken changes nothing.
	var taken *os.File
	require.NoError(t, b.ns.Do(func() (err error) {
		taken, _, err = descriptor.OpenUDP(52000, 0, 0, tunnel.Bounds{})
		return err
	}))
	defer taken.Close()
	pid = status(t, s).PlanePID
	bad := d
	bad.Settings.ListenPort = 52000
	require.ErrorIs(t, s.Configure(ctx, bad), unix.EADDRINUSE)
	assert.Equal(t, pid, status(t, s).PlanePID)

	d.Settings.Interface = "rw-other"
	require.NoError(t, s.Configure(ctx, d))
	_, err := b.ns.Try("ip", "link", "show", "rw-data")
	assert.Error(t, err)
	left, err := os.ReadDir(b.dir)
	require.NoError(t, err)
	require.Len(t, left, 1)
	assert.Equal(t, "rw-other.sock", left[0].Name())

	pid = status(t, s).PlanePID
	require.NoError(t, s.Upgrade(ctx))
	assert.NotEqual(t, pid, status(t, s).PlanePID)
	assert.Zero(t, status(t, s).Restarts, "wanted replacements are no restarts")
}

func TestAPlaneThatCannotStayUpDoesNotBurnTheCore(t *testing.T) {
	b := newBench(t)
	s, _ := b.supervise(b.config(tunnel.Data))
	require.NoError(t, s.Configure(context.Background(), device(tunnel.Data)))
	began := time.Now()
	for range 5 {
		kill9(t, s)
	}
	took := time.Since(began)
	t.Logf("five deaths in a row took %v", took)
	assert.Greater(t, took, 10*time.Millisecond*(1+2+4+8), "the wait before a start doubles")
}

func TestWhatFailsLeavesNothingOpenAndIsTriedAgain(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	cfg := b.config(tunnel.Data)
	good, bad := cfg.OpenTUN, fmt.Errorf("no device today")
	fail := true
	cfg.OpenTUN = func(n string) (*os.File, error) {
		if fail {
			return nil, bad
		}
		return good(n)
	}
	s, _ := b.supervise(cfg)
	for range 5 {
		require.ErrorIs(t, s.Configure(ctx, device(tunnel.Data)), bad)
	}
	assert.NotContains(t, b.ns.Run("ss", "-Hnul"), ":51820", "the sockets that could be opened are closed again")
	_, err := s.Status(ctx)
	assert.EqualError(t, err, "plane data is not running")

	fail = false
	d := device(tunnel.Data)
	d.Settings.Engine = "perpetuum"
	require.ErrorContains(t, s.Configure(ctx, d), `this build has no engine "perpetuum"`)
	require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
	pid := status(t, s).PlanePID
	require.ErrorContains(t, s.Configure(ctx, d), `this build has no engine "perpetuum"`)
	require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
	assert.NotEqual(t, pid, status(t, s).PlanePID)

	wrong := device(tunnel.Voice)
	require.EqualError(t, s.Configure(ctx, wrong), `configure plane data: the device is of class "voice"`)

	// A plane that dies in the middle of a reload: the next one has what is wanted now.
	d = device(tunnel.Data)
	d.Peers = d.Peers[:1]
	require.NoError(t, unix.Kill(status(t, s).PlanePID, unix.SIGKILL))
	require.NoError(t, s.Configure(ctx, d))
	polltest.Require(t, func() bool {
		st, err := s.Status(ctx)
		return err == nil && len(st.Peers) == 1
	}, patience, time.Millisecond)

	require.NoError(t, s.Stop(ctx))
	require.NoError(t, s.Stop(ctx), "twice is not an error")
	assert.ErrorIs(t, s.Configure(ctx, d), errStopped)
}

func TestAnotherProgramsSocketIsLeftAlone(t *testing.T) {
	b := newBench(t)
	require.NoError(t, os.MkdirAll(b.dir, 0o700))
	l, err := net.Listen("unix", uapiPath(b.dir, "rw-data"))
	require.NoError(t, err)
	defer l.Close()
	s, _ := b.supervise(b.config(tunnel.Data))
	err = s.Configure(context.Background(), device(tunnel.Data))
	require.ErrorContains(t, err, "another program listens there")
	c, err := net.Dial("unix", uapiPath(b.dir, "rw-data"))
	require.NoError(t, err)
	c.Close()
}

func TestAPlaneEndsWithItsEngine(t *testing.T) {
	b := newBench(t)
	s, _ := b.supervise(b.config(tunnel.Data))
	ctx := context.Background()
	require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
	for _, how := range []string{"x_end=1\n", "x_exit=1\n"} {
		pid := status(t, s).PlanePID
		_ = tellEngine(s, how)
		polltest.Require(t, func() bool {
			d, err := s.Status(ctx)
			return err == nil && d.PlanePID != pid
		}, patience, time.Millisecond, how)
	}
	assert.Contains(t, b.log.String(), "the engine stopped unexpectedly")
	assert.Contains(t, b.log.String(), "exit status 7")
}

// testDaemon is a daemon of one class as a process of its own: it configures, says so and waits to be killed.
func testDaemon() int {
	var d struct{ Run, UAPI string }
	if err := json.Unmarshal([]byte(os.Args[2]), &d); err != nil {
		return 2
	}
	s, err := NewSupervisor(Config{Class: tunnel.Voice, RunDir: d.Run, UAPIDir: d.UAPI, Engine: "fake",
		OpenTUN: descriptor.OpenTUN, OpenUDP: descriptor.OpenUDP, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() { _ = s.Run(context.Background()) }()
	if err := s.Configure(context.Background(), device(tunnel.Voice)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	st, err := s.Status(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_ = json.NewEncoder(os.Stdout).Encode(st)
	select {}
}

// daemon starts testDaemon in the bench's namespace and returns its plane's status.
func (b *bench) daemon() (*exec.Cmd, tunnel.DeviceStatus) {
	b.t.Helper()
	arg, _ := json.Marshal(map[string]string{"Run": b.run, "UAPI": b.dir})
	self, err := os.Executable()
	require.NoError(b.t, err)
	cmd := b.ns.Command(self, "daemon", string(arg))
	cmd.Stderr = b.log
	out, err := cmd.StdoutPipe()
	require.NoError(b.t, err)
	require.NoError(b.t, cmd.Start())
	b.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var st tunnel.DeviceStatus
	require.NoError(b.t, json.NewDecoder(out).Decode(&st), "%s", b.log)
	return cmd, st
}

func TestADaemonKilledTakesNothingWithIt(t *testing.T) {
	b := newBench(t)
	cmd, st := b.daemon()
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	require.NoError(t, unix.Kill(st.PlanePID, 0), "the plane lives on")
	assert.Contains(t, b.ns.Run("ip", "-o", "link"), "rw-voice")

	again, second := b.daemon()
	assert.Equal(t, st.PlanePID, second.PlanePID)
	assert.True(t, second.Adopted)
	assert.Equal(t, st.Drops["sets"], second.Drops["sets"])

	// The second daemon, not the parent, sees it die and brings it back.
	require.NoError(t, unix.Kill(st.PlanePID, unix.SIGKILL))
	polltest.Require(t, func() bool {
		pid := b.recordedPID(tunnel.Voice)
		return pid != st.PlanePID && unix.Kill(pid, 0) == nil
	}, patience, 5*time.Millisecond)
	require.NoError(t, again.Process.Kill())
}

func TestSocketsOfAPlaneAreRootsAlone(t *testing.T) {
	b := newBench(t)
	s, _ := b.supervise(b.config(tunnel.Data))
	require.NoError(t, s.Configure(context.Background(), device(tunnel.Data)))
	for _, path := range []string{filepath.Join(b.run, "plane-data.sock"), uapiPath(b.dir, "rw-data")} {
		st, err := os.Stat(path)
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), st.Mode().Perm(), path)
	}
}

func TestAPlaneRefusesWhatItDoesNotKnowOrTwice(t *testing.T) {
	b := newBench(t)
	s, _ := b.supervise(b.config(tunnel.Data))
	ctx := context.Background()
	require.NoError(t, s.Configure(ctx, device(tunnel.Data)))
	r := s.current()
	assert.EqualError(t, r.Ask(ctx, process.Request{Type: "dance"}, nil),
		fmt.Sprintf(`plane-data refused "dance": unknown request "dance" (plane-data speaks protocol 1.%d)`, ProtocolMinor))
	assert.EqualError(t, r.Ask(ctx, process.Request{Type: typeStart}, nil),
		`plane-data refused "start": started already`)
	assert.EqualError(t, r.Ask(ctx, process.Request{Type: olderBounds}, nil),
		`plane-data refused "bounds": request "bounds": missing payload`)
	assert.Equal(t, r.PID(), status(t, s).PlanePID)
}
