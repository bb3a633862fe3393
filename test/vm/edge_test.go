package vm

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/appliance/status"
	"ringway/configs"
	"ringway/test/netnstest"
	"ringway/test/polltest"
	"ringway/test/streamtest"
	"ringway/tunnel"
)

// branches are two boxes that face each other on one wire, each with a phone and a PC:
//
//	phone 10.1.10.9 -- voice0 \                              / voice0 -- farphone 10.2.10.9
//	                           berlin wan0 -------- wan0 munich
//	pc    10.1.20.9 -- data0  /  198.51.100.2    198.51.100.3 \ data0 -- farpc    10.2.20.9
type branches struct {
	t                          *testing.T
	berlin, munich             *edge
	phone, pc, farphone, farpc *netnstest.NS
}

// edge is a box: a network namespace, and a mount namespace in which all default paths are its own.
type edge struct {
	*testing.T
	*netnstest.NS
	name   string
	dir    string // its /etc/ringway and /var/lib/ringway, seen from outside
	key    tunnel.PrivateKey
	holder int // process that keeps the namespaces
	daemon *exec.Cmd
	ended  chan struct{} // the daemon's process has
	log    string
}

func newEdge(t *testing.T, name string) *edge {
	t.Helper()
	e := &edge{T: t, NS: netnstest.New(t), name: name, dir: t.TempDir()}
	for _, d := range []string{"etc", "state"} {
		require.NoError(t, os.Mkdir(filepath.Join(e.dir, d), 0o700))
	}
	require.NoError(t, os.MkdirAll("/etc/ringway", 0o755))
	require.NoError(t, os.MkdirAll("/var/lib/ringway", 0o755))
	cmd := e.NS.Command("unshare", "--mount", "sh", "-c", `
		mount -t tmpfs tmpfs /run && mount --bind "$1/etc" /etc/ringway && mount --bind "$1/state" /var/lib/ringway &&
		mount -t sysfs sysfs /sys && echo held && exec sleep 100000`, "sh", e.dir)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	e.holder = cmd.Process.Pid
	t.Cleanup(func() {
		_, _ = e.try("ringway", "stop")
		if e.daemon != nil {
			_ = e.daemon.Process.Kill()
			<-e.ended
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(e.log)
			t.Logf("log of %s:\n%s", name, b)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "held\n", line)
	e.key, err = tunnel.NewPrivateKey()
	require.NoError(t, err)
	e.write("private.key", []byte(e.key.Base64()+"\n"))
	e.log = filepath.Join(e.dir, "log")
	return e
}

func (e *edge) write(name string, text []byte) {
	e.T.Helper()
	require.NoError(e.T, os.WriteFile(filepath.Join(e.dir, "etc", name), text, 0o600))
}

// command prepares a program that sees what the box sees.
func (e *edge) command(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--target", strconv.Itoa(
		e.holder), "--mount", "--net", "--"}, args...)...)
}

func (e *edge) try(args ...string) (string, error) {
	out, err := e.command(args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %s: %w: %s", e.name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// run runs a program on the box.
func (e *edge) run(args ...string) string {
	e.T.Helper()
	out, err := e.try(args...)
	require.NoError(e.T, err)
	return out
}

// start starts the daemon and waits until it is ready.
func (e *edge) start() {
	e.T.Helper()
	log, err := os.OpenFile(e.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(e.T, err)
	defer log.Close()
	e.daemon = e.command("ringway", "run", "/etc/ringway/ringway.yaml")
	e.daemon.Stdout, e.daemon.Stderr = log, log
	require.NoError(e.T, e.daemon.Start())
	e.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) {
		_ = cmd.Wait()
		close(ended)
	}(e.daemon, e.ended)
	polltest.Require(e.T, func() bool {
		select {
		case <-e.ended:
			return true
		default:
		}
		out, err := e.try("ringway", "status", "--json")
		var st status.Status
		return err == nil && json.Unmarshal([]byte(out), &st) == nil && st.Ready
	}, 2*time.Minute, 200*time.Millisecond, "%s is not up", e.name)
	select {
	case <-e.ended:
		require.Fail(e.T, "the daemon ended", "%s: %s", e.name, e.daemon.ProcessState)
	default:
	}
}

// kill terminates the daemon with SIGKILL.
func (e *edge) kill() {
	e.T.Helper()
	require.NoError(e.T, e.daemon.Process.Kill())
	<-e.ended
	e.daemon = nil
}

// stop takes everything away.
func (e *edge) stop() {
	e.T.Helper()
	e.run("ringway", "stop")
	<-e.ended
	require.Zero(e.T, e.daemon.ProcessState.ExitCode())
	e.daemon = nil
}

func (e *edge) status() status.Status {
	e.T.Helper()
	var st status.Status
	require.NoError(e.T, json.Unmarshal([]byte(e.run("ringway", "status", "--json")), &st))
	return st
}

func (e *edge) tunnel(c tunnel.Class) tunnel.DeviceStatus {
	e.T.Helper()
	for _, d := range e.status().Tunnels {
		if d.Class == c {
			return d
		}
	}
	e.T.Fatalf("%s has no tunnel %s", e.name, c)
	return tunnel.DeviceStatus{}
}

// newBranches builds both boxes and what stands around them; the configs are the shipped ones with these changes.
func newBranches(t *testing.T, berlin, munich map[string]string) *branches {
	t.Helper()
	b := &branches{t: t, berlin: newEdge(t, "berlin"), munich: newEdge(t, "munich"),
		phone: netnstest.New(t), pc: netnstest.New(t), farphone: netnstest.New(t), farpc: netnstest.New(t)}
	netnstest.Veth(t, b.berlin.NS, "wan0", b.munich.NS, "wan0")
	netnstest.Veth(t, b.berlin.NS, "voice0", b.phone, "eth0")
	netnstest.Veth(t, b.berlin.NS, "data0", b.pc, "eth0")
	netnstest.Veth(t, b.munich.NS, "voice0", b.farphone, "eth0")
	netnstest.Veth(t, b.munich.NS, "data0", b.farpc, "eth0")
	host := func(ns *netnstest.NS, addr, gw string) {
		ns.Run("ip", "addr", "add", addr, "dev", "eth0")
		ns.Run("ip", "route", "add", "default", "via", gw)
	}
	host(b.phone, "10.1.10.9/24", "10.1.10.1")
	host(b.pc, "10.1.20.9/24", "10.1.20.1")
	host(b.farphone, "10.2.10.9/24", "10.2.10.1")
	host(b.farpc, "10.2.20.9/24", "10.2.20.1")
	b.berlin.write("ringway.yaml", variant(t, "branch-berlin.yaml", berlin, map[string]string{
		"sites[munich].public_key": b.munich.key.Public().String(), "sites[munich].endpoint": "198.51.100.3",
		"wan[wan0].gateway": "198.51.100.3"}))
	b.munich.write("ringway.yaml", variant(t, "branch-munich.yaml", munich, map[string]string{
		"sites[berlin].public_key": b.berlin.key.Public().String(), "wan[wan0].address": "198.51.100.3/24",
		"wan[wan0].gateway": "198.51.100.2"}))
	return b
}

func variant(t *testing.T, name string, more, values map[string]string) []byte {
	t.Helper()
	for k, v := range more {
		values[k] = v
	}
	text, err := configs.Variant(name, values)
	require.NoError(t, err)
	return text
}

const ef = 46 << 2

// streams are voice and data in both directions. Each one has to arrive before the next begins: where both ends send
// without a session, two WireGuards of the kernel initiate five seconds after their last initiation, to the
// millisecond, and initiations that crossed once cross every time (decision 35).
func (b *branches) streams() (s streamtest.Streams) {
	b.t.Helper()
	at := netip.MustParseAddrPort

	for _, x := range []struct {
		name     string
		from, to streamtest.Inside
		source   string
		dest     string
		tos      int
	}{
		{"voice", b.phone.Do, b.farphone.Do, "10.1.10.9:20000", "10.2.10.9:20000", ef},
		{"voice back", b.farphone.Do, b.phone.Do, "10.2.10.9:20002", "10.1.10.9:20002", ef},
		{"data", b.pc.Do, b.farpc.Do, "10.1.20.9:20000", "10.2.20.9:20000", 0},
		{"data back", b.farpc.Do, b.pc.Do, "10.2.20.9:20002", "10.1.20.9:20002", 0},
	} {
		stream := streamtest.Start(b.t, x.name, x.from, at(x.source), x.to, at(x.dest), x.tos)
		require.True(b.t, stream.Arrives(30*time.Second), "stream %s does not get through", x.name)
		s = append(s, stream)
	}
	return s
}

// seen counts IPv4 packets to a UDP port by their DSCP byte.
type seen map[uint16]map[uint8]int

// capture reads what comes in on an interface until n packets to UDP ports were seen.
func capture(t *testing.T, ns *netnstest.NS, dev string, n int) seen {
	t.Helper()
	out := seen{}
	require.NoError(t, ns.Do(func() error {
		const protocol = unix.ETH_P_IP>>8 | unix.ETH_P_IP&0xff<<8 // in network order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}); err != nil {
			return err
		}
		for buf := make([]byte, 2000); n > 0; {
			size, from, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EINTR) { // the runtime's own signals, since the socket has a timeout
				continue
			}
			if err != nil {
				return fmt.Errorf("capture on %s: %w", dev, err)
			}
			link, ok := from.(*unix.SockaddrLinklayer)
			if !ok || link.Pkttype != unix.PACKET_HOST || size < 28 || buf[9] != unix.IPPROTO_UDP {
				continue
			}
			if name, err := ifName(link.Ifindex); err != nil || name != dev {
				continue
			}
			header := int(buf[0]&15) * 4
			port := uint16(buf[header+2])<<8 | uint16(buf[header+3])
			if out[port] == nil {
				out[port] = map[uint8]int{}
			}
			out[port][buf[1]]++
			n--
		}
		return nil
	}))
	return out
}

// ifName is the name of an interface of the calling thread's namespace.
func ifName(index int) (string, error) {
	i, err := net.InterfaceByIndex(index)
	if err != nil {
		return "", err
	}
	return i.Name, nil
}
