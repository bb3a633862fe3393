package plane

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"ringway/tunnel"
	"ringway/tunnel/realtime"
	"ringway/tunnel/wireguardgo"
)

// The test binary is the plane, too: a Supervisor executes its own program with the first argument "plane".
// With "daemon" it is a whole daemon, to be killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "plane":
			engines := map[tunnel.EngineName]NewEngine{
				"fake": newFake, tunnel.EngineRealtime: newRealtimeFake, tunnel.EngineWireGuardGo: newWireGuardGo,
			}
			if os.Getenv("TEST_ENGINES") == "real" {
				engines[tunnel.EngineRealtime] = newRealtime
			}
			if err := Main(Options{Engines: engines, Build: os.Getenv("TEST_BUILD")}); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "daemon":
			os.Exit(testDaemon())
		}
	}
	os.Exit(m.Run())
}

func newWireGuardGo(s Start) (Engine, error) {
	files := wireguardgo.Files{TUN: s.Files.TUN, UDP4: s.Files.UDP4, UDP6: s.Files.UDP6}
	return wireguardgo.New(files, s.Class, s.Bounds, s.MTU, s.Log)
}

func newRealtime(s Start) (Engine, error) {
	return realtime.New(realtime.Options{
		TUN: s.Files.TUN, UDP4: s.Files.UDP4, UDP6: s.Files.UDP6,
		Class: s.Class, Bounds: s.Bounds, MTU: s.MTU, Log: s.Log, Alone: true,
	})
}

// fake is an engine without cryptography: it keeps what it is told, counts sets, and does odd things
// when told to by a peer's endpoint port or by text in `set`.
type fake struct {
	mu        sync.Mutex
	conf      map[string][]string // by public key: lines
	device    []string
	order     []string
	sets      int
	shaken    int
	mtu       int
	done      chan struct{}
	closing   sync.Once
	endpoints chan map[tunnel.PublicKey]netip.AddrPort
	rerouted  []tunnel.Reroute
	hang      chan struct{}
	spin      chan struct{}
}

func newFake(s Start) (Engine, error) {
	s.Log.Info("fake engine starts", "mtu", s.MTU)
	return &fake{conf: map[string][]string{}, mtu: s.MTU, done: make(chan struct{}),
		endpoints: make(chan map[tunnel.PublicKey]netip.AddrPort, 4),
		hang:      make(chan struct{}), spin: make(chan struct{})}, nil
}

// realtimeFake is the fake with what the realtime engine shows of itself: it marks packet by packet, and has
// forwarding threads, which do nothing but have their names.
type realtimeFake struct {
	*fake
	outer tunnel.Outer // under mu
	admit tunnel.Admission

	reserved []tunnel.ReservationStatus
	measured tunnel.Measured

	probed, confirmed int
}

func (f *realtimeFake) SetMeasured(m tunnel.Measured) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := m.Check(); err != nil {
		return err
	}
	f.measured = m
	return nil
}

// Series has one series on each of three pages. What is measured shows in the first.
func (f *realtimeFake) Series(from int) (tunnel.SeriesPage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	page := tunnel.SeriesPage{Next: from + 1, Series: []tunnel.SeriesStatus{{
		Source: uint32(from), Expected: uint32(f.measured.Series), Site: key(7).Public(), Flow: tunnel.Flow{
			Source:      netip.MustParseAddrPort("10.1.10.20:5000"),
			Destination: netip.MustParseAddrPort("10.2.10.31:5000"),
		},
	}}}
	if from == 2 {
		page.Next, page.Beyond = 0, 9
	}
	return page, nil
}

func newRealtimeFake(s Start) (Engine, error) {
	e, err := newFake(s)
	if err != nil {
		return nil, err
	}
	f := &realtimeFake{fake: e.(*fake)}
	named := make(chan error)
	for _, name := range forwardingThreads {
		go func() {
			runtime.LockOSThread()
			n, err := unix.BytePtrFromString(name)
			if err == nil {
				err = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(n)), 0, 0, 0)
			}
			named <- err
			select {
			case <-f.done:
			case <-f.spin:
				runAway()
			}
		}()
	}
	for range forwardingThreads {
		err = errors.Join(err, <-named)
	}
	return f, err
}

// runAway takes the core of the calling thread for good, in such a way that neither a signal nor the Go
// scheduler gets it back.
func runAway() {
	all := ^uint64(0)
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_BLOCK, uintptr(unsafe.Pointer(&all)), 0, 8, 0, 0)
	for n := 0; ; n++ {
	}
}

func (f *realtimeFake) SetOuter(o tunnel.Outer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o.PadTo == refusedPadding {
		return errors.New("refused as asked")
	}
	f.outer = o
	return nil
}

func (f *realtimeFake) SetAdmission(a tunnel.Admission) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := a.Check(); err != nil {
		return err
	}
	f.admit = a
	return nil
}

// Reserve holds one reservation, and refuses a second one.
func (f *realtimeFake) Reserve(r tunnel.Reservation) (tunnel.ReservationState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := r.Check(); err != nil {
		return "", err
	}
	if len(f.reserved) > 0 {
		return tunnel.SiteBudgetFull, nil
	}
	f.reserved = append(f.reserved, tunnel.ReservationStatus{Reservation: r, State: tunnel.ReservationHeld})
	return tunnel.ReservationHeld, nil
}

func (f *realtimeFake) Release(tunnel.Flow) (known bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known, f.reserved = len(f.reserved) > 0, nil
	return known, nil
}

func (f *realtimeFake) Reservations() []tunnel.ReservationStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reserved
}

// refusedPadding is what no fake takes.
const refusedPadding = 666

func (f *realtimeFake) Status() tunnel.DeviceStatus {
	s := f.fake.Status()
	f.mu.Lock()
	defer f.mu.Unlock()
	s.Drops[f.outer.Words()] = 1
	s.Drops[admitted(f.admit)] = 1
	s.Drops["probed"], s.Drops["confirmed"] = uint64(f.probed), uint64(f.confirmed)
	return s
}

func (f *realtimeFake) SetProbeMTU(most int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if most == 99 {
		return errors.New("refused")
	}
	f.probed = most
	return nil
}

func (f *realtimeFake) ConfirmMTU(keys ...tunnel.PublicKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.confirmed += len(keys)
}

func (e *fake) Set(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sets++
	peer := ""
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch k {
		case "public_key":
			if peer = v; e.conf[peer] == nil {
				e.conf[peer] = []string{}
				e.order = append(e.order, v)
			}
		case "update_only":
		case "remove":
			delete(e.conf, peer)
		case "x_roam": // the peer is seen elsewhere
			key := hexKey(peer)
			at := netip.MustParseAddrPort(v)
			e.put(peer, "endpoint", v)
			e.endpoints <- map[tunnel.PublicKey]netip.AddrPort{key: at}
		case "x_try":
			if err := try(v); err != nil {
				return err
			}
			return fmt.Errorf("%s worked", v)
		case "x_exit":
			os.Exit(7)
		case "x_end":
			e.Close()
		case "x_hang":
			e.mu.Unlock()
			<-e.hang
			e.mu.Lock()
		case "x_spin":
			close(e.spin)
		case "x_refuse":
			return fmt.Errorf("refused as asked")
		default:
			if peer == "" {
				e.device = []string{k + "=" + v}
			} else {
				e.put(peer, k, v)
			}
		}
	}
	return nil
}

func (e *fake) put(peer, k, v string) {
	lines := e.conf[peer]
	if k == "allowed_ip" {
		e.conf[peer] = append(lines, k+"="+v)
		return
	}
	for i, l := range lines {
		if strings.HasPrefix(l, k+"=") {
			lines[i] = k + "=" + v
			return
		}
	}
	e.conf[peer] = append(lines, k+"="+v)
}

func (e *fake) Get(w io.Writer) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var b bytes.Buffer
	for _, l := range e.device {
		fmt.Fprintln(&b, l)
	}
	for k, lines := range e.conf {
		fmt.Fprintf(&b, "public_key=%s\n%s\n", k, strings.Join(lines, "\n"))
	}
	_, err := w.Write(b.Bytes())
	return err
}

func (e *fake) Status() tunnel.DeviceStatus {
	var b bytes.Buffer
	_ = e.Get(&b)
	o, _ := tunnel.ParseUAPI(&b)
	s := o.Status()
	e.mu.Lock()
	defer e.mu.Unlock()
	s.Drops = map[string]uint64{
		"sets": uint64(e.sets), "handshakes": uint64(e.shaken), "mtu": uint64(e.mtu),
		"rerouted":   uint64(len(e.rerouted)),
		"processors": uint64(runtime.GOMAXPROCS(0)),
	}
	return s
}

func (e *fake) ServeUAPI(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		_, _ = io.WriteString(c, "errno=0\n\n")
		c.Close()
	}
}

func (e *fake) Handshake(...tunnel.PublicKey) { e.mu.Lock(); e.shaken++; e.mu.Unlock() }
func (e *fake) Reroute(r tunnel.Reroute) {
	e.mu.Lock()
	e.rerouted = append(e.rerouted, r)
	e.mu.Unlock()
}
func (e *fake) Endpoints() <-chan map[tunnel.PublicKey]netip.AddrPort {
	return e.endpoints
}
func (e *fake) SetMTU(mtu int) error          { e.mu.Lock(); e.mtu = mtu; e.mu.Unlock(); return nil }
func (e *fake) SetBounds(tunnel.Bounds) error { return nil }
func (e *fake) Close() error {
	e.closing.Do(func() {
		close(e.done)
	})
	return nil
}
func (e *fake) Done() <-chan struct{} { return e.done }

func hexKey(s string) (k tunnel.PublicKey) {
	_, _ = fmt.Sscanf(s, "%x", (*keyBytes)(&k))
	return k
}

type keyBytes [32]byte

func (k *keyBytes) Scan(st fmt.ScanState, _ rune) error {
	tok, err := st.Token(true, nil)
	if err != nil {
		return err
	}
	for i := range k {
		if _, err := fmt.Sscanf(string(tok[2*i:2*i+2]), "%02x", &k[i]); err != nil {
			return err
		}
	}
	return nil
}

// try does what a plane must not be able to do.
func try(what string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", what, err)
		}
	}()
	errno := func(e unix.Errno) error {
		if e != 0 {
			return e
		}
		return nil
	}
	switch what {
	case "exec":
		return unix.Exec("/bin/true", []string{"true"}, nil)
	case "fork":
		_, _, e := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		return errno(e)
	case "open":
		_, err := os.Open("/etc/passwd")
		return err
	case "create":
		return os.WriteFile("/tmp/plane-was-here", nil, 0o600)
	case "stat":
		_, err := os.Stat("/etc/passwd")
		return err
	case "socket":
		_, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		return err
	case "udp":
		_, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		return err
	case "ptrace":
		return unix.PtraceAttach(os.Getppid())
	case "kill":
		return unix.Kill(os.Getppid(), 0)
	case "setuid":
		_, _, e := unix.RawSyscall(unix.SYS_SETUID, 0, 0, 0)
		return errno(e)
	case "mount":
		return unix.Mount("none", "/tmp", "tmpfs", 0, "")
	case "unshare":
		return unix.Unshare(unix.CLONE_NEWUSER)
	case "exec-memory":
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_EXEC|unix.PROT_READ, unix.MAP_ANON|unix.MAP_PRIVATE)
		return err
	case "bpf":
		_, _, e := unix.RawSyscall(unix.SYS_BPF, 0, 0, 0)
		return errno(e)
	case "io_uring":
		_, _, e := unix.RawSyscall(unix.SYS_IO_URING_SETUP, 1, 0, 0)
		return errno(e)
	case "limit":
		return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 10, Max: 10})
	case "dumpable":
		return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	case "priority":
		return unix.Setpriority(unix.PRIO_PROCESS, 0, 5)
	case "priority-of-another":
		a := unix.SchedAttr{Policy: unix.SCHED_NORMAL}
		return unix.SchedSetAttr(os.Getpid(), &a, 0)
	case "give-way": // what it may
		a := unix.SchedAttr{Policy: unix.SCHED_NORMAL, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
		if err := unix.SchedSetAttr(0, &a, 0); err != nil {
			return err
		}
		if _, err := unix.SchedGetAttr(0, 0); err != nil {
			return err
		}
		var param int32
		_, _, e := unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER,
			0, unix.SCHED_NORMAL|unix.SCHED_RESET_ON_FORK, uintptr(unsafe.Pointer(&param)))
		return errno(e)
	case "ioctl-tun-persist":
		_, _, e := unix.RawSyscall(unix.SYS_IOCTL, 6, unix.TUNSETPERSIST, 1)
		return errno(e)
	}
	return nil
}
