package transparent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/process"
)

const sandboxPrefix = "TEST_TRANSPARENT"

// The test binary is the sandboxed process, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "sandboxed" {
		if err := sandboxed(); err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// sandboxCalls are what a relay needs beyond what every process has.
var sandboxCalls = []process.Call{{Number: unix.SYS_BIND}, {Number: unix.SYS_CONNECT}}

// sandboxed runs a relay with no right and no system call but those of package process and sandboxCalls. It ends when
// the connection by which it asks for sockets does.
func sandboxed() error {
	child, err := process.NewChild(process.ChildOptions{
		EnvPrefix: sandboxPrefix,
		Sandbox:   process.Sandbox{OpenFiles: 512, Memory: 1 << 30, Calls: sandboxCalls},
	})
	if err != nil {
		return err
	}
	_, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	fmt.Println("user", os.Getuid(), "socket:", err)

	c := Config{Handle: func(m *Message) Action { return Action{} }}
	for i := range 8 {
		fd := child.FD(fmt.Sprint("listener", i))
		c.Listeners = append(c.Listeners, Listener{FD: fd, Near: i < 4})
	}
	f := os.NewFile(uintptr(child.FD("daemon")), "daemon")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return err
	}
	daemon := conn.(*net.UnixConn)
	ask := make(chan struct{}, 1) // one request at a time
	c.Open = func(_ context.Context, kind SocketKind, n int) ([]int, error) {
		ask <- struct{}{}
		defer func() { <-ask }()
		return askDaemon(daemon, kind, n)
	}
	relay, err := New(c)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	err = relay.Run(ctx)
	fmt.Println("ended", relay.Stats().Counts["udp_passed"], relay.Stats().Counts["tcp_passed"])
	return err
}

func askDaemon(daemon *net.UnixConn, kind SocketKind, n int) ([]int, error) {
	if _, err := daemon.Write([]byte{byte(kind.index()), byte(n)}); err != nil {
		return nil, err
	}
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4*64))
	_, oobn, _, _, err := daemon.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(err, errors.New("no descriptors came"))
	}
	return unix.ParseUnixRights(&messages[0])
}

// answer is the daemon's part.
func (r *rig) answer(conn *net.UnixConn) {
	kinds := map[int]SocketKind{}
	for _, transport := range []Transport{UDP, TCP} {
		for _, v6 := range []bool{false, true} {
			for _, inside := range []bool{false, true} {
				kind := SocketKind{transport, v6, inside}
				kinds[kind.index()] = kind
			}
		}
	}
	b := make([]byte, 2)
	for {
		if n, err := conn.Read(b); err != nil || n != 2 {
			return
		}
		fds, err := r.open(context.Background(), kinds[int(b[0])], int(b[1]))
		if !assert.NoError(r.t, err) {
			return
		}
		_, _, err = conn.WriteMsgUnix([]byte{'.'}, unix.UnixRights(fds...), nil)
		for _, fd := range fds {
			unix.Close(fd)
		}
		if err != nil {
			return
		}
	}
}

func TestInTheSandbox(t *testing.T) {
	r := newRig(t)
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	theirs, file := os.NewFile(uintptr(ends[1]), "theirs"), os.NewFile(uintptr(ends[0]), "ours")
	ours, err := net.FileConn(file)
	require.NoError(t, err)
	file.Close()
	answered := make(chan struct{})
	go func() {
		r.answer(ours.(*net.UnixConn))
		close(answered)
	}()

	cmd := exec.Command("/proc/self/exe", "sandboxed")
	var names []string
	for _, isNear := range []bool{true, false} {
		for _, l := range r.listeners {
			if l.Near == isNear {
				duplicate, err := unix.FcntlInt(uintptr(l.FD), unix.F_DUPFD_CLOEXEC, 3)
				require.NoError(t, err)
				f := os.NewFile(uintptr(duplicate), "listener")
				defer f.Close()
				names = append(names, fmt.Sprint("listener", len(names)))
				cmd.ExtraFiles = append(cmd.ExtraFiles, f)
			}
		}
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
	cmd.Env = append(os.Environ(), sandboxPrefix+"_NAME=calls", sandboxPrefix+"_OWNER=0",
		sandboxPrefix+"_FILES="+strings.Join(append(names, "daemon"), ","))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var out, failures strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &failures // where a test's coverage is counted, it says that it cannot write it
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	theirs.Close()

	for f := range families {
		a, b := r.udp(r.phone, at(phone[f], 5062)), r.udp(r.pbx, at(pbx[f], 5060))
		one := request("OPTIONS", "a", 3000)
		sendTo(t, a, at(pbx[f], 5060), one)
		raw, from := receive(t, b)
		assert.Equal(t, one, raw)
		assert.Equal(t, at(phone[f], 5062), from)
		sendTo(t, b, from, one)
		receive(t, a)

		for _, to := range []netip.Addr{pbx[f], inside[f]} {
			c, d := r.connect(at(phone[f], 5062), at(to, 5060))
			puts(t, c, one)
			gets(t, d, one)
			puts(t, d, one)
			gets(t, c, one)
			assert.Equal(t, at(phone[f], 5062).String(), d.RemoteAddr().String())
		}
	}
	stdin.Close()
	assert.NoError(t, cmd.Wait(), "%s", &failures)
	ours.Close()
	<-answered
	assert.Equal(t, "user 65534 socket: operation not permitted\nready\nended 4 8\n", out.String())
}
