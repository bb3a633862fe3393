package wireguardgo

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"

	"ringway/tunnel"
	"ringway/tunnel/descriptor"
)

// Engines in processes of their own: ours as a child of the test, and stock wireguard-go.

const childEnv = "RINGWAY_TEST_ENGINE"

// child is this test binary as an engine: descriptors 3 to 5, bounds in the environment, a set
// operation on standard input, and then it runs until that is closed.
func child() {
	var b tunnel.Bounds
	if err := json.Unmarshal([]byte(os.Getenv(childEnv)), &b); err != nil {
		fatal(err)
	}
	files := Files{TUN: os.NewFile(3, "tun"), UDP4: os.NewFile(4, "udp4"), UDP6: os.NewFile(5, "udp6")}
	e, err := New(files, tunnel.Data, b, 1420, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		fatal(err)
	}
	pr, pw := io.Pipe()
	go func() {
		_, err := io.Copy(pw, os.Stdin)
		pw.CloseWithError(err)
		e.Close()
	}()
	if err := e.Set(pr); err != nil {
		fatal(err)
	}
	fmt.Println("ready")
	go io.Copy(io.Discard, pr)
	<-e.Done()
	_ = json.NewEncoder(os.Stderr).Encode(e.hub.drops.all())
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// spawn starts our engine in a process of its own and returns it.
func (b *box) spawn(bounds tunnel.Bounds, set string) *exec.Cmd {
	b.t.Helper()
	config, err := json.Marshal(bounds)
	require.NoError(b.t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+string(config))
	for _, f := range []*os.File{b.files.TUN, b.files.UDP4, b.files.UDP6} {
		fd, err := descriptor.Duplicate(f)
		require.NoError(b.t, err)
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fd), f.Name()))
	}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(b.t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(b.t, err)
	require.NoError(b.t, cmd.Start())
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	b.t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	_, err = io.WriteString(in, set+"\n")
	require.NoError(b.t, err)
	ready := make([]byte, 6)
	_, err = io.ReadFull(out, ready)
	require.NoError(b.t, err)
	return cmd
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

func removeStock() {
	if stockDir != "" {
		os.RemoveAll(stockDir)
	}
}

// stockBox runs stock wireguard-go on the box, in a mount namespace of its own, and returns how
// to run a program there.
func (b *box) stock(config string) (run func(name string, args ...string) (string, error)) {
	b.t.Helper()
	path, err := stock()
	require.NoError(b.t, err)
	cmd := b.ns.Command("unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /run && mkdir /run/wireguard && exec "+path+" -f rw0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), "LOG_LEVEL=error")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	require.NoError(b.t, cmd.Start())
	b.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	run = func(name string, args ...string) (string, error) {
		c := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(cmd.Process.Pid), "-m", "-n", name}, args...)...)
		c.Stdin = strings.NewReader(config)
		out, err := c.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
		}
		return string(out), err
	}
	require.Eventually(b.t, func() bool {
		_, err := run("wg", "show", "rw0")
		return err == nil
	}, 10*time.Second, 50*time.Millisecond)
	_, err = run("wg", "setconf", "rw0", "/dev/stdin")
	require.NoError(b.t, err)
	b.address()
	return run
}

// wgConf is a wg(8) configuration that makes far a peer of b.
func (b *box) wgConf(far *box, endpoint string) string {
	s := fmt.Sprintf("[Interface]\nPrivateKey=%s\nListenPort=51820\n[Peer]\nPublicKey=%s\nAllowedIPs=10.66.0.%d/32,fd66::%d/128\n",
		b.key.Base64(), far.key.Public(), far.n, far.n)
	if endpoint != "" {
		s += "Endpoint=" + endpoint + "\n"
	}
	return s
}
