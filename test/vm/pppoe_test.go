package vm

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/appliance/dial"
	"ringway/appliance/status"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

const (
	user     = `0021#0001@example.net`
	password = `correct "horse" \ battery`
)

// line is a branch on a line with PPPoE in VLAN 7, and a site at the provider's.
//
//	phone, pc -- berlin wan0 (.7: PPPoE, 198.51.100.10) -- eth0 provider eth1 192.0.2.1 -- wan0 192.0.2.2 munich -- …
type pppoeLine struct {
	*branches
	provider *netnstest.NS
	server   *exec.Cmd
}

func newLine(t *testing.T, berlin map[string]string) *pppoeLine {
	t.Helper()
	l := &pppoeLine{
		branches: &branches{t: t, berlin: newEdge(t, "berlin"), munich: newEdge(t, "munich"),
			phone: netnstest.New(t), pc: netnstest.New(t), farphone: netnstest.New(t), farpc: netnstest.New(t)},
		provider: netnstest.New(t),
	}
	t.Cleanup(func() {
		if t.Failed() {
			said, _ := os.ReadFile("/tmp/server.log")
			t.Logf("the provider's pppd said:\n%s", said)
		}
	})
	b := l.branches
	netnstest.Veth(t, b.berlin.NS, "wan0", l.provider, "eth0")
	netnstest.Veth(t, b.munich.NS, "wan0", l.provider, "eth1")
	netnstest.Veth(t, b.berlin.NS, "voice0", b.phone, "eth0")
	netnstest.Veth(t, b.berlin.NS, "data0", b.pc, "eth0")
	netnstest.Veth(t, b.munich.NS, "voice0", b.farphone, "eth0")
	netnstest.Veth(t, b.munich.NS, "data0", b.farpc, "eth0")
	for _, h := range []struct {
		ns       *netnstest.NS
		addr, gw string
	}{
		{b.phone, "10.1.10.9/24", "10.1.10.1"}, {b.pc, "10.1.20.9/24", "10.1.20.1"},
		{b.farphone, "10.2.10.9/24", "10.2.10.1"}, {b.farpc, "10.2.20.9/24", "10.2.20.1"},
	} {
		h.ns.Run("ip", "addr", "add", h.addr, "dev", "eth0")
		h.ns.Run("ip", "route", "add", "default", "via", h.gw)
	}
	for _, words := range []string{
		"ip link add link eth0 name eth0.7 type vlan id 7", "ip link set eth0.7 up",
		"ip addr add 192.0.2.1/24 dev eth1", "sysctl -qw net.ipv4.ip_forward=1",
	} {
		w := strings.Fields(words)
		l.provider.Run(w[0], w[1:]...)
	}
	secrets := `"` + user + `" * ` + `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(password) + `" *` + "\n"
	require.NoError(t, os.MkdirAll("/etc/ppp", 0o755))
	require.NoError(t, os.WriteFile("/etc/ppp/chap-secrets", []byte(secrets), 0o600))
	require.NoError(t, os.WriteFile("/etc/ppp/server", []byte("require-chap\nlcp-echo-interval 0\nms-dns 192.0.2.53\n"+
		"noipx\nnoccp\ndebug\nmtu 1492\nmru 1492\n+ipv6\nnodefaultroute\nlogfile /tmp/server.log\n"), 0o600))

	values := map[string]string{
		"sites[munich].public_key": b.munich.key.Public().String(), "sites[munich].endpoint": "192.0.2.2",
		"wan[wan0].address": "", "wan[wan0].gateway": "", "wan[wan0].vlan": "7",
		"wan[wan0].pppoe":      `{user: "` + user + `", password_file: line.password}`,
		"wan[wan0].priorities": "{media: 5, signalling: 3, control: 6}",
	}
	b.berlin.write("ringway.yaml", variant(t, "branch-berlin.yaml", berlin, values))
	b.munich.write("ringway.yaml", variant(t, "branch-munich.yaml", nil, map[string]string{
		"sites[berlin].public_key": b.berlin.key.Public().String(), "sites[berlin].endpoint": "",
		"wan[wan0].address": "192.0.2.2/24", "wan[wan0].gateway": "192.0.2.1",
	}))
	b.berlin.write("line.password", []byte(password+"\n"))
	return l
}

// serve starts the provider's access concentrator, which gives addresses from first on.
func (l *pppoeLine) serve(first string) {
	l.t.Helper()
	l.server = l.provider.Command("pppoe-server", "-F", "-I", "eth0.7", "-L", "203.0.113.1", "-R", first, "-N", "4",
		"-O", "/etc/ppp/server", "-C", "provider", "-q", "/usr/sbin/pppd", "-Q", "/usr/sbin/pppoe")
	require.NoError(l.t, l.server.Start())
	l.t.Cleanup(l.cut)
}

// cut ends the access concentrator and its sessions silently.
func (l *pppoeLine) cut() {
	if l.server == nil {
		return
	}
	_ = l.server.Process.Kill()
	_ = l.server.Wait()
	l.server = nil
	// Its sessions' processes are no children of it: they are the ones in its network namespace.
	var here string
	require.NoError(l.t, l.provider.Do(func() (err error) {
		here, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}))
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	require.NoError(l.t, err)
	killed := 0
	for _, link := range links {
		pid, _ := strconv.Atoi(strings.Split(link, "/")[2])
		name, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "comm"))
		there, err := os.Readlink(link)
		if err == nil && there == here && strings.HasPrefix(string(name), "ppp") {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended with the one before
			killed++
		}
	}
	l.t.Logf("the provider ends: %d processes killed", killed)
}

func (l *pppoeLine) session() dial.WAN {
	l.t.Helper()
	var st struct {
		PPPoE dial.Status `json:"pppoe"`
	}
	require.NoError(l.t, json.Unmarshal([]byte(l.berlin.run("ringway", "status", "--json")), &st))
	require.Len(l.t, st.PPPoE, 1)
	return st.PPPoE[0]
}

func (l *pppoeLine) until(what string, within time.Duration, is func(dial.WAN) bool) (took time.Duration) {
	l.t.Helper()
	began := time.Now()
	var last dial.WAN
	polltest.Require(l.t, func() bool { last = l.session(); return is(last) }, within, time.Second,
		"%s: %+v", what, &last)
	return time.Since(began)
}

func isUp(w dial.WAN) bool { return w.State == "up" && w.Address.IsValid() }

// problemOf is the text of the problem of a component.
func problemOf(st status.Status, component string) string {
	for _, p := range st.Problems {
		if p.Component == component {
			return p.Text
		}
	}
	return ""
}

// A line with PPPoE in a VLAN: refused, dialed, cut off, dialed again with another address, stopped.
func TestPPPoEIsDialed(t *testing.T) {
	inGuest(t)
	if os.Getenv("TEST_VM_PPPOE") == "" {
		t.Skip("runs under the kernel of `make test-pppoe`")
	}
	l := newLine(t, nil)
	b := l.branches
	before := b.berlin.state()
	b.berlin.write("line.password", []byte("wrong\n")) // read for each dial
	b.berlin.start()
	l.until("no access concentrator", time.Minute, func(w dial.WAN) bool {
		return strings.Contains(w.Reason, "no PADO")
	})
	assert.Contains(t, problemOf(b.berlin.status(), dial.Name), "no PADO")

	l.serve("198.51.100.10")
	l.until("refused", time.Minute, func(w dial.WAN) bool {
		return strings.Contains(w.Reason, "refuses user or password")
	})
	assert.Contains(t, problemOf(b.berlin.status(), dial.Name), "refuses user or password")

	b.berlin.write("line.password", []byte(password+"\n"))
	t.Logf("up %s after the right password", l.until("up", time.Minute, isUp).Round(100*time.Millisecond))
	w := l.session()
	assert.Regexp(t, `^198\.51\.100\.1[0-3]$`, w.Address.String())
	assert.Equal(t, "203.0.113.1", w.Peer.String())
	assert.True(t, w.IPv6)
	require.Len(t, w.NameServers, 1)
	assert.Equal(t, "192.0.2.53", w.NameServers[0].String())
	polltest.Require(t, func() bool {
		return strings.Contains(b.berlin.run("ip", "route", "show", "default"), "default dev ppp-wan0.7 ")
	}, 10*time.Second, 100*time.Millisecond)
	assert.NoFileExists(t, "/etc/resolv.conf", "the provider's name servers are not the machine's")

	t.Run("its MTU is seen", func(t *testing.T) {
		assert.Contains(t, b.berlin.run("ip", "link", "show", "ppp-wan0.7"), "mtu 1492")
		assert.Contains(t, b.berlin.run("ip", "link", "show", "rw-data"), "mtu 1408")
		assert.Contains(t, b.berlin.run("tc", "class", "show", "dev", "ppp-wan0.7"), "1:10")
		// 8 of PPPoE and PPP, 14 of Ethernet, 4 of the tag: the queue counts the packet alone.
		assert.Contains(t, b.berlin.run("tc", "class", "show", "dev", "ppp-wan0.7"), "overhead 26")
	})
	t.Run("the password is nowhere", func(t *testing.T) {
		text := b.berlin.run("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; ringway status; ringway status --json")
		log, err := os.ReadFile(b.berlin.log)
		require.NoError(t, err)
		assert.NotContains(t, text+string(log), "horse")
		assert.Equal(t, "600\n", b.berlin.run("stat", "-c", "%a", "/run/ringway/pppoe/ppp-wan0.7.options"))
	})
	t.Run("pppd holds no more than it needs", func(t *testing.T) {
		pid := pidOf(t, b.berlin)
		text := b.berlin.run("cat", "/proc/"+pid+"/status")
		const netAdminAndRaw = "0000000000003000"
		assert.Regexp(t, regexp.MustCompile(`CapBnd:\s+`+netAdminAndRaw), text)
		assert.Regexp(t, regexp.MustCompile(`NoNewPrivs:\s+1`), text)
	})

	l.cut()
	t.Logf("the end was found after %s", l.until("the end is found", time.Minute, func(w dial.WAN) bool {
		return w.State != "up"
	}).Round(100*time.Millisecond))
	assert.NotEmpty(t, l.session().Reason)
	l.serve("198.51.100.20")
	t.Logf("up again %s after the provider", l.until("dialed again", time.Minute, isUp).Round(100*time.Millisecond))
	assert.Regexp(t, `^198\.51\.100\.2[0-3]$`, l.session().Address.String())
	polltest.Assert(t, func() bool { return problemOf(b.berlin.status(), dial.Name) == "" }, time.Minute, time.Second)

	b.berlin.stop()
	assert.Equal(t, before, b.berlin.state())
	assert.NoDirExists(t, "/run/ringway/pppoe")
	_, err := b.berlin.try("pgrep", "-f", "pppd file")
	assert.Error(t, err, "a pppd is left")
}

// Calls over the line have their tag; they outlive the daemon, and are back after the line was.
func TestPPPoECarriesCalls(t *testing.T) {
	inGuest(t)
	if os.Getenv("TEST_VM_PPPOE") == "" {
		t.Skip("runs under the kernel of `make test-pppoe`")
	}
	l := newLine(t, nil)
	b := l.branches
	b.munich.start()
	l.serve("198.51.100.10")
	b.berlin.start()
	l.until("up", time.Minute, isUp)
	streams := b.streams()
	t.Run("calls over it have their tag", func(t *testing.T) {
		tags := capturedTags(t, l.provider, "eth0", 400)
		assert.NotZero(t, tags["7 p 5 PPPoE"], "%v", tags)
		for tag := range tags {
			assert.True(t, strings.HasPrefix(tag, "7 "), "%v", tags)
		}
	})
	t.Run("a daemon that is killed leaves the session", func(t *testing.T) {
		pid := pidOf(t, b.berlin)
		lossless(t, "kill -9 and start of the daemon, a session of PPPoE", streams, func() {
			b.berlin.kill()
			b.berlin.start()
			l.until("adopted", 20*time.Second, isUp)
		})
		assert.Equal(t, pid, pidOf(t, b.berlin))
		assert.Zero(t, l.session().Dials)
	})

	l.cut()
	l.until("the end is found", time.Minute, func(w dial.WAN) bool { return w.State != "up" })
	l.serve("198.51.100.20")
	l.until("dialed again", time.Minute, isUp)
	for _, s := range streams {
		assert.True(t, s.Arrives(time.Minute), "the call is back")
	}
	b.berlin.stop()
	b.munich.stop()
}

// An address that the provider gives inside a network of ours ends the session, and nothing is led there.
func TestPPPoEWithAnAddressOfOurs(t *testing.T) {
	inGuest(t)
	if os.Getenv("TEST_VM_PPPOE") == "" {
		t.Skip("runs under the kernel of `make test-pppoe`")
	}
	l := newLine(t, nil)
	l.serve("10.2.10.7") // in munich's voice network
	l.berlin.start()
	l.until("refused", time.Minute, func(w dial.WAN) bool {
		return strings.Contains(w.Reason, "overlaps 10.2.10.0/24 of site munich")
	})
	assert.NotContains(t, l.berlin.run("ip", "route", "show", "table", "all"), "default dev ppp")
	l.berlin.stop()
}

func pidOf(t *testing.T, e *edge) string {
	t.Helper()
	text := e.run("cat", "/run/ringway/pppoe/ppp-wan0.7.process")
	pid, _, ok := strings.Cut(text, " ")
	require.True(t, ok, text)
	return pid
}

var frame = regexp.MustCompile(`vlan (\d+), p (\d)(?:, DEI)?, ethertype (PPPoE|IPv4|IPv6|ARP)`)

// capturedTags counts what tcpdump says of n frames: VLAN, priority and what is inside.
func capturedTags(t *testing.T, ns *netnstest.NS, device string, n int) map[string]int {
	t.Helper()
	words := []string{"20", "tcpdump", "-Z", "root", "-nn", "-e", "-Q", "in", "-i", device, "-c", strconv.Itoa(n)}
	var said strings.Builder
	cmd := ns.Command("timeout", words...)
	cmd.Stderr = &said
	out, err := cmd.Output()
	if len(out) == 0 {
		assert.NoError(t, err, "tcpdump: %s", &said)
	}
	tags := map[string]int{}
	for line := range strings.Lines(string(out)) {
		if m := frame.FindStringSubmatch(line); m != nil {
			tags[m[1]+" p "+m[2]+" "+m[3]]++
		} else {
			tags["other: "+strings.TrimSpace(line)]++
		}
	}
	return tags
}
