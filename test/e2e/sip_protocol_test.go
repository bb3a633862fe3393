package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/relay"
	"ringway/test/lab"
	"ringway/test/polltest"
)

// A daemon of another build finds a process that reads signalling and speaks another protocol. It says so, and ends it.
// Until its own process is ready, which takes a second here, signalling passes unread: a call begins and ends. Those
// that were up notice nothing: no packet of theirs is lost, their ends are seen, and nothing of them is left.
func TestLongARelayOfAnotherProtocolIsReplacedInACall(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", map[string]string{"sip.abuse": "off"})})
	a, b := l.Edge("a"), l.Edge("b")
	const started = lab.MachineDir + "/started"
	another := ofProtocol(t, relay.ProtocolMajor+1, started)
	at, err := l.Pair(lab.Ringway).SecondPC(t.Context(), lab.PhoneB) // SIPp has the first address's port
	require.NoError(t, err)
	ends := map[string]net.PacketConn{
		"a": udpOn(t, l.Host(lab.PhoneA), fieldA+":5070"), "b": udpOn(t, l.Host(lab.PhoneB), at+":5060"),
	}
	talk := dialled(t, l, 2, 8*time.Second, lab.Dialing{Ramp: 200 * time.Millisecond})
	old := callsStatus(t, a).PID
	require.Positive(t, old)
	const twoLengths = "repeated_content_length"
	// refusedBy demands that a message which nobody lets pass who reads it ends at this box.
	refusedBy := func(e *lab.Edge, id string) {
		t.Helper()
		f := &field{t: t, id: id}
		before := callsStatus(t, e).Refused[twoLengths]
		sendUDP(t, ends["a"], at+":5060", f.text(said{by: "a", start: "OPTIONS", more: []string{"Content-Length: 5"}}))
		require.True(t, polled(5*time.Second, func() bool { return callsStatus(t, e).Refused[twoLengths] == before+1 }),
			"%s reads: %v", e.Name, callsStatus(t, e).Refused)
	}
	refusedBy(a, "before")

	require.NoError(t, a.Terminate(within(t, 10*time.Second)))
	a.Binary = another
	require.NoError(t, a.Start(t.Context()))
	reason := fmt.Sprintf(`level=WARN msg="the relay of an earlier daemon is replaced: it speaks another protocol" `+
		`pid=%d build=1.0.0-test protocol=%d supported=%d`, old, relay.ProtocolMajor, relay.ProtocolMajor+1)
	require.True(t, polled(10*time.Second, func() bool {
		text, err := os.ReadFile(a.Log())
		require.NoError(t, err)
		return strings.Contains(string(text), reason)
	}), "no %s", reason)
	require.True(t, polled(5*time.Second, func() bool {
		_, err := a.Run(within(t, 5*time.Second), "test", "-e", fmt.Sprintf("/proc/%d", old))
		return err != nil
	}), "the old process ends")

	// What comes at once may wait in the sockets of the process to come, as where one has died.
	began, tries := time.Now(), 0
	require.True(t, polled(time.Second, func() bool {
		tries++
		sendUDP(t, ends["a"], at+":5060", (&field{t: t, id: fmt.Sprint("try", tries)}).text(said{by: "a", start: "OPTIONS"}))
		return waiting(t, ends["b"]) != ""
	}), "signalling does not pass")
	for waiting(t, ends["b"]) != "" {
	}
	t.Logf("signalling passes unread after %s", time.Since(began).Round(time.Millisecond))
	f := &field{t: t, l: l, ends: ends, id: "unread"}
	f.say(said{by: "a", start: "INVITE", body: audio(fieldA, 40000)}, "?")
	f.say(said{by: "b", start: "200 OK", tag: "tb", body: audio(at, 7000)}, "?")
	f.ack(1, "tb", "?")
	f.say(said{by: "a", start: "BYE", cseq: 2, tag: "tb"}, "?")
	f.say(said{by: "b", start: "200 OK", of: "BYE", cseq: 2, tag: "tb"}, "?")
	refusedBy(b, "meanwhile")

	require.NoError(t, os.WriteFile(a.Path(started), nil, 0o644))
	require.NoError(t, a.WaitReady(within(t, 15*time.Second)))
	polltest.Require(t, func() bool { return callsStatus(t, a).Reading }, 10*time.Second, 20*time.Millisecond)
	assert.NotEqual(t, old, callsStatus(t, a).PID)
	refusedBy(a, "after")
	assert.Len(t, callsOf(t, a), 2, "the calls are known")
	holesSettle(t, a, 8)
	heardAll(t, l, talk, "")
	noHoles(t, l)
	for side, want := range map[string]int{"a": 2, "b": 3} {
		ended := callsOf(t, l.Edge(side), "--ended")
		assert.Len(t, ended, want, "edge-%s has read these", side)
		for _, c := range ended {
			assert.Equal(t, "bye", c.Why, "edge-%s, %s", side, c.CallID)
		}
	}
}

// ofProtocol builds the program with another protocol between the daemon and the process that reads signalling. That
// process starts once there is a file.
func ofProtocol(t *testing.T, major int, file string) (program string) {
	t.Helper()
	dir, replace := t.TempDir(), map[string]string{}
	for name, change := range map[string][2]string{
		"relay.go": {fmt.Sprintf("ProtocolMajor = %d\n", relay.ProtocolMajor), fmt.Sprintf("ProtocolMajor = %d\n", major)},
		"child.go": {"s := &server{}\n", "s := &server{}\n" +
			fmt.Sprintf("for unix.Access(%q, unix.F_OK) != nil { time.Sleep(time.Millisecond) }\n", file)},
	} {
		source, err := filepath.Abs("../../sip/relay/" + name)
		require.NoError(t, err)
		text, err := os.ReadFile(source)
		require.NoError(t, err)
		require.Equal(t, 1, strings.Count(string(text), change[0]), "%q in %s", change[0], name)
		replace[source] = filepath.Join(dir, name)
		changed := strings.Replace(string(text), change[0], change[1], 1)
		require.NoError(t, os.WriteFile(replace[source], []byte(changed), 0o644))
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o644))
	program = filepath.Join(filepath.Dir(ringway), "ringway-protocol") // where the other programs are
	cmd := exec.CommandContext(t.Context(), "go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", program,
		"-ldflags", "-X main.version=1.2.0-test", "ringway/cmd/ringway")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return program
}
