// Package enginetest is the wire on which userspace engines are tested: two boxes, each with a tunnel device
// and sockets as the daemon opens them, and an engine of the test's choice, in the test's process or in one
// of its own, or stock wireguard-go.
//
//	box a                                         box b
//	  rw0 10.66.0.1, fd66::1 -- wire0 192.0.2.1 === wire0 192.0.2.2 -- rw0 10.66.0.2, fd66::2
//	                              2001:db8::1         2001:db8::2
//
// Only tests import it. It needs root.
package enginetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/netnstest"
	"ringway/test/polltest"
	"ringway/tunnel"
	"ringway/tunnel/descriptor"
)

// Wide are bounds that bound nothing a test looks at.
var Wide = tunnel.Bounds{TxQueueLen: 500, InFlight: 256, SendBuffer: 1 << 20, ReceiveBuffer: 1 << 20,
	SuperPacket: 65000}

// Engine is what these tests use of an engine.
type Engine interface {
	Set(r io.Reader) error
	Get(w io.Writer) error
	ServeUAPI(l net.Listener) error
	Status() tunnel.DeviceStatus
	Handshake(keys ...tunnel.PublicKey)
	Reroute(r tunnel.Reroute)
	Endpoints() <-chan map[tunnel.PublicKey]netip.AddrPort
	SetMTU(mtu int) error
	SetBounds(b tunnel.Bounds) error
	Close() error
	Done() <-chan struct{}
}

// Start is what an engine is made from.
type Start struct {
	TUN, UDP4, UDP6 *os.File
	Bounds          tunnel.Bounds
	MTU             int
	Log             *slog.Logger
	Alone           bool // in a process of its own
}

// NewEngine makes an engine.
type NewEngine func(Start) (Engine, error)

// Box is one end.
type Box struct {
	T   testing.TB
	NS  *netnstest.NS
	N   int // 1 or 2
	Key tunnel.PrivateKey
	E   Engine

	TUN, UDP4, UDP6 *os.File
	make            NewEngine
}

// Wire makes two boxes whose engines, when they are started, newEngine makes.
func Wire(t testing.TB, newEngine NewEngine) (a, b *Box) {
	t.Helper()
	nsA, nsB := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, nsA, "wire0", nsB, "wire0")
	boxes := [2]*Box{}
	for i, ns := range []*netnstest.NS{nsA, nsB} {
		ns.Run("ip", "address", "add", fmt.Sprintf("192.0.2.%d/24", i+1), "dev", "wire0")
		ns.Run("ip", "address", "add", fmt.Sprintf("2001:db8::%d/64", i+1), "dev", "wire0", "nodad")
		k, err := tunnel.NewPrivateKey()
		require.NoError(t, err)
		boxes[i] = &Box{T: t, NS: ns, N: i + 1, Key: k, make: newEngine}
	}
	return boxes[0], boxes[1]
}

// Pair is Wire with both engines running and each other's peers.
func Pair(t testing.TB, newEngine NewEngine, bounds tunnel.Bounds) (a, b *Box) {
	t.Helper()
	a, b = Wire(t, newEngine)
	for _, x := range []*Box{a, b} {
		x.Open(0, 0, bounds)
		x.Start(bounds)
	}
	a.Set(a.Peer(b, "192.0.2.2:51820"))
	b.Set(b.Peer(a, "192.0.2.1:51820"))
	return a, b
}

// Open makes the descriptors as the daemon does.
func (b *Box) Open(mark uint32, tos uint8, bounds tunnel.Bounds) {
	b.T.Helper()
	require.NoError(b.T, b.NS.Do(func() (err error) {
		if b.TUN, err = descriptor.OpenTUN("rw0"); err != nil {
			return err
		}
		b.UDP4, b.UDP6, err = descriptor.OpenUDP(51820, mark, tos, bounds)
		return err
	}))
	b.T.Cleanup(func() {
		for _, f := range []*os.File{b.TUN, b.UDP4, b.UDP6} {
			if f != nil {
				f.Close()
			}
		}
	})
	if bounds.TxQueueLen > 0 {
		b.NS.Run("ip", "link", "set", "rw0", "txqueuelen", strconv.Itoa(bounds.TxQueueLen))
	}
	b.address()
}

func (b *Box) address() {
	b.NS.Run("ip", "address", "add", fmt.Sprintf("10.66.0.%d/24", b.N), "dev", "rw0")
	b.NS.Run("ip", "address", "add", fmt.Sprintf("fd66::%d/64", b.N), "dev", "rw0", "nodad")
	b.NS.Run("ip", "link", "set", "rw0", "up", "mtu", "1420")
}

// Start runs an engine on the box's descriptors, in this process.
func (b *Box) Start(bounds tunnel.Bounds) Engine {
	b.T.Helper()
	level := slog.LevelWarn
	if testing.Verbose() && os.Getenv("TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(b.T.Output(), &slog.HandlerOptions{Level: level}))
	e, err := b.make(Start{TUN: b.TUN, UDP4: b.UDP4, UDP6: b.UDP6, Bounds: bounds, MTU: 1420, Log: log})
	require.NoError(b.T, err)
	b.E = e
	b.T.Cleanup(func() { e.Close() })
	return e
}

// Inner is the box's inner addresses as allowed IPs of a set operation.
func (b *Box) Inner() string {
	return fmt.Sprintf("allowed_ip=10.66.0.%d/32\nallowed_ip=fd66::%d/128\n", b.N, b.N)
}

// Peer is a set operation that makes far a peer of b; endpoint may be empty.
func (b *Box) Peer(far *Box, endpoint string) string {
	s := fmt.Sprintf("private_key=%s\npublic_key=%s\nreplace_allowed_ips=true\n%s", b.Key.Hex(),
		far.Key.Public().Hex(), far.Inner())
	if endpoint != "" {
		s += "endpoint=" + endpoint + "\n"
	}
	return s
}

// Set carries out a set operation.
func (b *Box) Set(s string) {
	b.T.Helper()
	require.NoError(b.T, b.E.Set(strings.NewReader(s)))
}

// Ping sends three echo requests; all have to be answered.
func (b *Box) Ping(to string, extra ...string) error {
	_, err := b.NS.Try("ping", append([]string{"-n", "-c", "3", "-i", "0.05", "-W", "2", to}, extra...)...)
	return err
}

// Pings sends n echo requests, 10 ms apart, and returns how many were answered.
func (b *Box) Pings(to string, n int) (answers int) {
	b.T.Helper()
	out, _ := b.NS.Try("ping", "-n", "-q", "-c", strconv.Itoa(n), "-i", "0.01", "-W", "2", to) // an error: some were not
	m := regexp.MustCompile(`(\d+) received`).FindStringSubmatch(out)
	require.NotNil(b.T, m, out)
	answers, err := strconv.Atoi(m[1])
	require.NoError(b.T, err)
	return answers
}

// Iperf runs one flow from b to far for some seconds and returns Mbit/s.
func (b *Box) Iperf(far *Box, seconds int, args ...string) float64 {
	b.T.Helper()
	return b.iperf(far, append([]string{"-t", strconv.Itoa(seconds)}, args...)...)
}

// Transfer sends an amount of data from b to far, as iperf3 writes it ("8M"). It has to arrive, however slow the
// machine is: under the race detector an engine moves some 10 Mbit/s.
func (b *Box) Transfer(far *Box, amount string, args ...string) {
	b.T.Helper()
	require.Positive(b.T, b.iperf(far, append([]string{"-n", amount}, args...)...))
}

func (b *Box) iperf(far *Box, args ...string) float64 {
	b.T.Helper()
	server := far.NS.Command("iperf3", "-s", "-1", "-B", fmt.Sprintf("10.66.0.%d", far.N))
	require.NoError(b.T, server.Start())
	defer func() { server.Process.Kill(); server.Wait() }()
	polltest.Require(b.T, func() bool {
		out, _ := far.NS.Try("ss", "-Hltn", "sport", "=", ":5201")
		return out != ""
	}, 5*time.Second, 20*time.Millisecond)
	client := []string{"60", "iperf3", "-J", "-c", fmt.Sprintf("10.66.0.%d", far.N)}
	out, err := b.NS.Try("timeout", append(client, args...)...)
	require.NoError(b.T, err, out)
	var result struct {
		End struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
			Sum struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum"`
		}
	}
	require.NoError(b.T, json.Unmarshal([]byte(out), &result))
	return max(result.End.Received.Rate, result.End.Sum.Rate) / 1e6
}

// Tool runs wg(8) against the engine's own socket.
func (b *Box) Tool(args ...string) (string, error) {
	dir := b.T.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "rw0.sock"))
	require.NoError(b.T, err)
	served := make(chan error, 1)
	go func() { served <- b.E.ServeUAPI(l) }()
	defer func() { l.Close(); require.NoError(b.T, <-served) }()
	cmd := exec.Command("unshare", append([]string{"-m", "sh", "-c",
		`mkdir -p /tmp && mount --bind "$0" /tmp && mount -t tmpfs tmpfs /run && mkdir /run/wireguard && mount --bind /tmp /run/wireguard && exec wg "$@"`, dir}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

const childEnv = "TEST_ENGINE"

// Child is for TestMain: in a process that Spawn started it runs the engine until that process's standard
// input is closed.
func Child(newEngine NewEngine) (ran bool, err error) {
	config := os.Getenv(childEnv)
	if config == "" {
		return false, nil
	}
	var b tunnel.Bounds
	if err := json.Unmarshal([]byte(config), &b); err != nil {
		return true, err
	}
	e, err := newEngine(Start{
		TUN: os.NewFile(3, "tun"), UDP4: os.NewFile(4, "udp4"), UDP6: os.NewFile(5,
			"udp6"), Bounds: b, MTU: 1420, Alone: true,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return true, err
	}
	defer e.Close()
	for { // a length and so much of a set operation; none asks for the status
		var size [8]byte
		if _, err := io.ReadFull(os.Stdin, size[:]); err != nil {
			return true, nil
		}
		n, err := strconv.ParseUint(strings.TrimSpace(string(size[:])), 10, 24)
		if err != nil {
			return true, err
		}
		one := make([]byte, n)
		if _, err := io.ReadFull(os.Stdin, one); err != nil {
			return true, err
		}
		if n == 0 {
			_ = json.NewEncoder(os.Stdout).Encode(e.Status())
			continue
		}
		if err := e.Set(bytes.NewReader(one)); err != nil {
			return true, err
		}
		fmt.Println("{}")
	}
}

// Process is an engine in a process of its own.
type Process struct {
	*exec.Cmd
	t   testing.TB
	in  io.WriteCloser
	out *json.Decoder
	mu  sync.Mutex
}

// Spawn starts the engine in a process of its own, where it may be alone, and sets it.
func (b *Box) Spawn(bounds tunnel.Bounds, set string, env ...string) *Process {
	b.T.Helper()
	config, err := json.Marshal(bounds)
	require.NoError(b.T, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), childEnv+"="+string(config)), env...)
	for _, f := range []*os.File{b.TUN, b.UDP4, b.UDP6} {
		fd, err := descriptor.Duplicate(f)
		require.NoError(b.T, err)
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fd), f.Name()))
	}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(b.T, err)
	out, err := cmd.StdoutPipe()
	require.NoError(b.T, err)
	require.NoError(b.T, cmd.Start())
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	b.T.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	p := &Process{Cmd: cmd, t: b.T, in: in, out: json.NewDecoder(out)}
	p.ask(set)
	return p
}

func (p *Process) ask(s string) (answer json.RawMessage) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := fmt.Fprintf(p.in, "%8d%s", len(s), s)
	require.NoError(p.t, err)
	require.NoError(p.t, p.out.Decode(&answer))
	return answer
}

// Threads finds the process's threads of a name.
func (p *Process) Threads(name string) (tids []int) {
	p.t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.Process.Pid))
	require.NoError(p.t, err)
	for _, task := range tasks {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/comm", p.Process.Pid, task.Name()))
		if strings.TrimSpace(string(comm)) == name {
			tid, _ := strconv.Atoi(task.Name())
			tids = append(tids, tid)
		}
	}
	require.NotEmpty(p.t, tids, "no thread %s", name)
	return tids
}

// RealTime puts the threads of the process that have one of these names under SCHED_FIFO, as the daemon does.
func (p *Process) RealTime(names ...string) {
	p.t.Helper()
	for _, name := range names {
		for _, tid := range p.Threads(name) {
			a := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 10}
			require.NoError(p.t, unix.SchedSetAttr(tid, &a, 0))
		}
	}
}

// Resident is how much memory the process has, in bytes.
func (p *Process) Resident() (bytes int) {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	require.NoError(p.t, err)
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	require.NotNil(p.t, m)
	kib, err := strconv.Atoi(string(m[1]))
	require.NoError(p.t, err)
	return kib << 10
}

// Policies says how many of the threads of a name are scheduled so.
func (p *Process) Policies(name string, policy uint32) (n int) {
	p.t.Helper()
	for _, tid := range p.Threads(name) {
		a, err := unix.SchedGetAttr(tid, 0)
		require.NoError(p.t, err)
		if a.Policy == policy {
			n++
		}
	}
	return n
}

// Ran is how much CPU time the threads of a name have had.
func (p *Process) Ran(name string) (ran time.Duration) {
	p.t.Helper()
	for _, tid := range p.Threads(name) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/schedstat", p.Process.Pid, tid))
		require.NoError(p.t, err)
		var one time.Duration
		_, err = fmt.Sscan(string(b), (*int64)(&one))
		require.NoError(p.t, err)
		ran += one
	}
	return ran
}

// Set carries out a set operation.
func (p *Process) Set(s string) { p.t.Helper(); p.ask(s) }

// Status is the engine's.
func (p *Process) Status() (s tunnel.DeviceStatus) {
	p.t.Helper()
	require.NoError(p.t, json.Unmarshal(p.ask(""), &s))
	return s
}

var stock = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "ringway-stock")
	if err != nil {
		return "", err
	}
	stockDir = dir
	path := filepath.Join(dir, "wireguard-go")
	out, err := exec.Command("go", "build", "-o", path, "golang.zx2c4.com/wireguard").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("build stock wireguard-go: %w: %s", err, out)
	}
	return path, err
})

var stockDir string

// RemoveStock removes the stock program, if it was built; for the end of TestMain.
func RemoveStock() {
	if stockDir != "" {
		os.RemoveAll(stockDir)
	}
}

// Stock runs stock wireguard-go on the box, in a mount namespace of its own, and returns how to run a program there.
func (b *Box) Stock(config string) (run func(name string, args ...string) (string, error)) {
	b.T.Helper()
	path, err := stock()
	require.NoError(b.T, err)
	cmd := b.NS.Command("unshare", "-m", "sh", "-c",
		"mount -t tmpfs tmpfs /run && mkdir /run/wireguard && exec "+path+" -f rw0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), "LOG_LEVEL=error")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	ended, err := startOnThread(cmd)
	require.NoError(b.T, err)
	b.T.Cleanup(func() { cmd.Process.Kill(); <-ended })
	run = func(name string, args ...string) (string, error) {
		c := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(cmd.Process.Pid), "-m", "-n", name}, args...)...)
		c.Stdin = strings.NewReader(config)
		out, err := c.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
		}
		return string(out), err
	}
	polltest.Require(b.T, func() bool {
		_, err := run("wg", "show", "rw0")
		return err == nil
	}, 10*time.Second, 50*time.Millisecond)
	_, err = run("wg", "setconf", "rw0", "/dev/stdin")
	require.NoError(b.T, err)
	b.address()
	return run
}

// Kernel has the kernel's WireGuard on the box; ok is false where it has none.
func (b *Box) Kernel(config string) (ok bool) {
	b.T.Helper()
	if _, err := b.NS.Try("ip", "link", "add", "rw0", "type", "wireguard"); err != nil {
		return false
	}
	file := filepath.Join(b.T.TempDir(), "conf")
	require.NoError(b.T, os.WriteFile(file, []byte(config), 0o600))
	b.NS.Run("wg", "setconf", "rw0", file)
	b.address()
	return true
}

// startOnThread starts a program that has a parent death signal, which the end of the thread sends that
// started it: that thread is kept until the program has ended.
func startOnThread(cmd *exec.Cmd) (ended chan struct{}, err error) {
	started := make(chan error)
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	return ended, <-started
}

// Conf is a wg(8) configuration that makes far a peer of b.
func (b *Box) Conf(far *Box, endpoint string, lines ...string) string {
	s := fmt.Sprintf(
		"[Interface]\nPrivateKey=%s\nListenPort=51820\n[Peer]\nPublicKey=%s\nAllowedIPs=10.66.0.%d/32,fd66::%d/128\n",
		b.Key.Base64(), far.Key.Public(), far.N, far.N)
	if endpoint != "" {
		s += "Endpoint=" + endpoint + "\n"
	}
	return s + strings.Join(lines, "\n") + "\n"
}

// Behind makes a third box, which a reaches through b:
//
//	box a -- 192.0.2.0/24 -- b -- wire1 198.51.100.2 === wire0 198.51.100.3, c -- rw0 10.66.0.3, fd66::3
func Behind(t testing.TB, a, b *Box) (c *Box) {
	t.Helper()
	ns := netnstest.New(t)
	netnstest.Veth(t, b.NS, "wire1", ns, "wire0")
	b.NS.Run("ip", "address", "add", "198.51.100.2/24", "dev", "wire1")
	b.NS.Run("sysctl", "-qw", "net.ipv4.ip_forward=1")
	ns.Run("ip", "address", "add", "198.51.100.3/24", "dev", "wire0")
	ns.Run("ip", "route", "add", "192.0.2.0/24", "via", "198.51.100.2")
	a.NS.Run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.2")
	k, err := tunnel.NewPrivateKey()
	require.NoError(t, err)
	return &Box{T: t, NS: ns, N: 3, Key: k, make: a.make}
}
