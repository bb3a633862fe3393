package lab

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/test/lab/host"
	"ringway/test/netnstest"
)

// wireguardGo finds or builds the stock program.
func wireguardGo(t *testing.T) string {
	t.Helper()
	netnstest.Root(t)
	if p, err := host.LookPath("wireguard-go"); err == nil {
		return p
	}
	p := filepath.Join(t.TempDir(), "wireguard-go")
	out, err := exec.Command("go", "build", "-o", p, "golang.zx2c4.com/wireguard").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return p
}

func baseline(t *testing.T, o Options) *Lab {
	t.Helper()
	o.Paths, o.WireGuardGo = []PathName{Baseline}, wireguardGo(t)
	l, err := New(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(l.Close)
	return l
}

// machine is the part of the machine's own state that the lab must never change.
func machine(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, c := range []string{"ip -o link", "ip rule", "ip -6 rule", "ip route show table all",
		"nft -s list ruleset", "ip netns list"} {
		args := strings.Fields(c)
		path, err := host.LookPath(args[0])
		require.NoError(t, err)
		out, err := exec.Command(path, args[1:]...).CombinedOutput()
		require.NoError(t, err, "%s: %s", c, out)
		b.WriteString(c + "\n" + string(out))
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	for _, dir := range []string{"/etc/ringway", "/var/lib/ringway", "/run/ringway", MachineDir} {
		_, err := os.Stat(dir)
		b.WriteString(dir + " " + strconv.FormatBool(err == nil) + "\n")
	}
	return b.String() + string(mounts)
}

// processes counts those of the lab whose process 1 this was.
func (l *Lab) processes(t *testing.T) int {
	t.Helper()
	n := 0
	own, err := os.Readlink(l.world.Namespace())
	require.NoError(t, err)
	all, _ := filepath.Glob("/proc/[0-9]*/ns/pid")
	for _, p := range all {
		if ns, err := os.Readlink(p); err == nil && ns == own {
			n++
		}
	}
	return n
}

//	phone-a --- edge-a === wireguard-go === edge-b --- phone-b      no bottleneck, nothing else: what the lab itself adds
//
// All calls complete, no packet is lost, and the audio's marks arrive.
func TestQuietBaselineIsClear(t *testing.T) {
	t.Parallel()
	l := baseline(t, Options{Calls: 4, Duration: 2 * time.Second})
	r, err := l.Measure(t.Context())
	require.NoError(t, err)
	require.Len(t, r.Report.Paths, 1)
	p := r.Report.Paths[0]
	assert.Equal(t, "baseline", p.Name)
	assert.Equal(t, 4, p.Calls.Placed)
	assert.Equal(t, 4, p.Calls.Completed)
	assert.Equal(t, 4*100, p.Voice.Sent, "four calls of 2 s at 50 packets a second")
	assert.Equal(t, 4*100, p.Voice.Received)
	assert.Equal(t, 4, p.Voice.Streams)
	assert.Zero(t, p.Voice.Unmatched)
	assert.Zero(t, p.Voice.WrongDSCP)
	assert.Zero(t, p.Voice.Negative)
	assert.Less(t, p.Voice.Delay.P50, 100_000.0, "µs: no FIFO is full")
	assert.Greater(t, p.Voice.Delay.Min, 10.0, "µs: encryption and six hops take longer than nothing")
	assert.Len(t, r.Series, 2)
	assert.Nil(t, p.Queues, "nothing is limited to a rate")
}

// The provider's FIFO of 300,000 bytes at 20 Mbit/s is 120 ms, and a flood keeps it full.
func TestTimedFloodedBaselineWaitsInTheProvidersFIFO(t *testing.T) {
	l := baseline(t, Options{Calls: 4, Duration: 5 * time.Second, WAN: 20 * qos.Mbit, Bulk: BulkUDP})
	r, err := l.Measure(t.Context())
	require.NoError(t, err)
	v := r.Report.Paths[0].Voice
	aToB, bToA := v.Directions[0], v.Directions[1]
	assert.InDelta(t, 120_000, aToB.Delay.P50, 15_000, "µs from phone-a, beside the bulk")
	assert.Positive(t, aToB.Loss, "how much is the flood's luck with the last free place")
	assert.Less(t, bToA.Delay.P50, 30_000.0, "µs against the bulk")
	assert.InDelta(t, 17.5, r.Report.Paths[0].Bulk.MbitPerS, 3)
}

// What the provider is told to add and to lose is what the phones see.
func TestProviderDelaysAndLoses(t *testing.T) {
	t.Parallel()
	l := baseline(t, Options{Calls: 10, Duration: 4 * time.Second, Delay: 30 * time.Millisecond, Loss: 0.05, Seed: 7})
	r, err := l.Measure(t.Context())
	require.NoError(t, err)
	for _, d := range r.Report.Paths[0].Voice.Directions {
		assert.GreaterOrEqual(t, d.Delay.Min, 30_000.0, d.Name)
		assert.Less(t, d.Delay.P50, 45_000.0, d.Name)
		assert.InDelta(t, 0.05, d.Loss, 0.025, d.Name)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	before := machine(t)
	l := baseline(t, Options{})
	calls, err := l.Pair(Baseline).StartCalls(t.Context(), 2, time.Minute)
	require.NoError(t, err)
	_, err = l.Pair(Baseline).StartBulk(t.Context(), BulkTCP)
	require.NoError(t, err)
	assert.Greater(t, l.processes(t), 12, "holders, provider, wireguard-go, SIPp, iperf3")
	assert.Equal(t, before, machine(t), "also while it stands")
	init := l.world.PID()
	l.Close()
	<-calls.caller.Ended
	assert.NoFileExists(t, "/proc/"+strconv.Itoa(init)+"/ns/pid")
	assert.Equal(t, before, machine(t))
}

// A lab that fails on the way up, or is interrupted there, leaves nothing either.
func TestInterruptedOnTheWayUp(t *testing.T) {
	before := machine(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := New(ctx, Options{Paths: []PathName{Baseline}, WireGuardGo: wireguardGo(t)})
	require.ErrorIs(t, err, context.Canceled)
	assert.Equal(t, before, machine(t))
}

func TestKeptLabStandsUntilDown(t *testing.T) {
	l := baseline(t, Options{})
	var said bytes.Buffer
	require.NoError(t, l.Keep(&said))
	phone := l.Host(PhoneA).PID
	init, err := os.FindProcess(l.world.PID())
	require.NoError(t, err)
	l.Close()
	assert.Contains(t, said.String(), "nsenter -t "+strconv.Itoa(phone))
	id := strconv.Itoa(init.Pid)
	assert.Contains(t, said.String(), "ringway lab --down "+id)

	_, err = l.Host(PhoneA).Run(t.Context(), "true")
	require.Error(t, err, "this process has released it")
	out, err := exec.Command("nsenter", "-t", strconv.Itoa(phone), "-a", "ping", "-c1", "-W5", "10.2.10.10").
		CombinedOutput()
	require.NoError(t, err, "%s", out)

	assert.EqualError(
		t,
		Down("0"),
		"wrong usage: \"0\" is not a lab (allowed: the number that `ringway lab --keep` printed)",
	)
	assert.ErrorContains(
		t,
		Down(strconv.Itoa(os.Getpid())),
		"lab "+strconv.Itoa(os.Getpid())+" is not running (running: ",
	)
	assert.Contains(t, kept(), id)
	require.NoError(t, Down(id))
	_, _ = init.Wait()
	assert.NoFileExists(t, "/proc/"+strconv.Itoa(phone)+"/ns/net")
}

// A host sees its own /run, /etc/ringway and /var/lib/ringway, and the machine's /etc otherwise.
func TestHostsFoldersAreTheirOwn(t *testing.T) {
	l := baseline(t, Options{})
	a, b := l.Host(EdgeA), l.Host(EdgeB)
	for _, dir := range []string{"/run", "/var/run/wireguard", "/etc/ringway", "/var/lib/ringway"} {
		_, err := a.Run(t.Context(), "touch", dir+"/mark")
		require.NoError(t, err)
		_, err = b.Run(t.Context(), "ls", dir+"/mark")
		require.Error(t, err, dir)
		assert.NoFileExists(t, dir+"/mark")
	}
	out, err := a.Run(t.Context(), "cat", "/etc/passwd")
	require.NoError(t, err)
	own, err := os.ReadFile("/etc/passwd")
	require.NoError(t, err)
	assert.Equal(t, string(own), out)
	out, err = a.Run(t.Context(), "sh", "-c", "hostname; ls /sys/class/net; echo $$")
	require.NoError(t, err)
	assert.Contains(t, out, "edge-a\n")
	assert.Contains(t, out, "wan0\n")
	assert.NotContains(t, out, "eth0")
}

// Without a tunnel the kernel's forwarding joins the branches (New waits for a packet in both classes), and
// what leaves the wire is counted.
func TestKernelPairForwards(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		family Family
		second string
		least  uint64 // 1000 bytes, ICMP, IP, Ethernet
	}{{IPv4, "10.2.20.11", 1042}, {IPv6, "2001:db8:2:20::11", 1062}} {
		l, err := New(
			t.Context(),
			Options{
				Paths:    []PathName{Kernel},
				Underlay: c.family,
				Overlay:  c.family,
				WAN:      2 * qos.Mbit,
				Wire:     true,
				NoCalls:  true,
			},
		)
		require.NoError(t, err)
		t.Cleanup(l.Close)
		p := l.Pair(Kernel)
		require.NoError(t, p.Alive(), "a pair without a program is alive")
		second, err := p.SecondPC(t.Context(), PCB)
		require.NoError(t, err)
		assert.Equal(t, c.second, second)
		toB, toA, err := p.Carried()
		require.NoError(t, err)
		_, err = p.Host(PCA).Run(t.Context(), "ping", "-c", "1", "-s", "1000", second)
		require.NoError(t, err)
		laterB, laterA, err := p.Carried()
		require.NoError(t, err)
		assert.GreaterOrEqual(t, laterB-toB, c.least)
		assert.GreaterOrEqual(t, laterA-toA, c.least)
	}
}

// Without IPv4: calls, bulk and the provider's relay work as with it.
func TestIPv6Lab(t *testing.T) {
	t.Parallel()
	l := baseline(
		t,
		Options{
			Underlay: IPv6,
			Overlay:  IPv6,
			Calls:    2,
			Duration: time.Second,
			WAN:      20 * qos.Mbit,
			Delay:    5 * time.Millisecond,
			Bulk:     BulkTCP,
		},
	)
	for _, name := range []string{PhoneA, PCA, EdgeA, Provider, EdgeB} {
		out, err := l.Host(name).Run(t.Context(), "ip", "-4", "-o", "address", "show", "scope", "global")
		require.NoError(t, err)
		assert.Empty(t, out, name)
	}
	r, err := l.Measure(t.Context())
	require.NoError(t, err)
	p := r.Report.Paths[0]
	assert.Equal(t, 2, p.Calls.Completed)
	assert.Equal(t, 2*50, p.Voice.Sent)
	assert.Zero(t, p.Voice.Unmatched)
	assert.Zero(t, p.Voice.WrongDSCP)
	assert.GreaterOrEqual(t, p.Voice.Delay.Min, 5000.0, "µs")
	assert.Greater(t, p.Bulk.MbitPerS, 5.0)
	assert.Equal(t, []string{"ipv6", "ipv6"}, []string{r.Report.Scenario.Underlay, r.Report.Scenario.Overlay})
	var table bytes.Buffer
	require.NoError(t, r.Table(&table))
	assert.Contains(t, table.String(), ", IPv6 in IPv6, +5.00 ms")
}

func TestPairsThatCannotBeAreRefused(t *testing.T) {
	_, err := New(t.Context(), Options{Paths: []PathName{Cake}})
	assert.ErrorContains(t, err, "the pair cake needs a rate for its WAN")
	_, err = New(t.Context(), Options{Paths: []PathName{"ipsec"}})
	assert.ErrorContains(t, err, "allowed: ringway, baseline, fq_codel, cake, kernel, single, duplicate-all")
}
