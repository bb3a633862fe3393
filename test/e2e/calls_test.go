package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/calls"
	"ringway/qos"
	"ringway/sip/call"
	"ringway/sip/record"
	"ringway/test/lab"
	"ringway/test/polltest"
)

// reading has both edges read signalling.
func reading(mode string, more map[string]string) func(string, map[string]string) {
	return func(_ string, values map[string]string) {
		values["sip.mode"], values["sip.unread"], values["sip.limits.phone"] = mode, "deny", "1000"
		values["calls.privacy"] = "show"
		maps.Copy(values, more)
	}
}

// callsOf is what `ringway calls --json` prints.
func callsOf(t *testing.T, e *lab.Edge, flags ...string) (list []call.Call) {
	t.Helper()
	out, err := e.Ringway(within(t, 5*time.Second), append([]string{"calls", "--json"}, flags...)...)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal([]byte(out), &list), out)
	return list
}

// callsStatus is the edge's section of the status about calls.
func callsStatus(t *testing.T, e *lab.Edge) calls.Status {
	t.Helper()
	out, err := e.StatusJSON(within(t, 5*time.Second))
	require.NoError(t, err)
	var st struct{ Calls calls.Status }
	require.NoError(t, json.Unmarshal(out, &st))
	return st.Calls
}

// holesOf lists the holes of an edge, as `nft list set` shows them.
func holesOf(t *testing.T, e *lab.Edge) (all []string) {
	t.Helper()
	table, err := e.Run(within(t, 5*time.Second), "nft", "list", "table", "inet", "ringway")
	require.NoError(t, err)
	for _, set := range regexp.MustCompile(`(?s)set media[46](_\d+)? \{.*?\n\t\}`).FindAllString(table, -1) {
		_, elements, _ := strings.Cut(set, "elements = {")
		elements, _, _ = strings.Cut(elements, "}")
		for element := range strings.SplitSeq(elements, ",") {
			key, _, found := strings.Cut(strings.TrimSpace(element), " timeout")
			if found {
				all = append(all, key)
			}
		}
	}
	slices.Sort(all)
	return all
}

// holesSettle demands that a box comes to have n holes, within a second, and returns them. A message goes on after 5 ms
// even if the holes that it asks for are not open yet, so that at the phones it may be a moment ahead of them.
func holesSettle(t *testing.T, e *lab.Edge, n int) (all []string) {
	t.Helper()
	polled(holeLeft, func() bool {
		all = holesOf(t, e)
		return len(all) == n
	})
	assert.Len(t, all, n)
	return all
}

// polled reports whether f becomes true in time.
func polled(limit time.Duration, f func() bool) bool {
	return polltest.Until(f, limit, 20*time.Millisecond)
}

// Calls cross two boxes that read their signalling and let nothing pass but what the calls need, and go on as
// if there were none: not a packet is lost, nor anything left behind.
func TestCallsThroughBoxesThatReadThem(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mode string
		ip   lab.Family
	}{{"observe", lab.IPv4}, {"enforce", lab.IPv4}, {"enforce", lab.IPv6}} {
		t.Run(fmt.Sprintf("%s, %s", c.mode, c.ip), func(t *testing.T) {
			l := branches(t, lab.Options{WAN: twenty, Overlay: c.ip, EdgeConfig: reading(c.mode, nil)})
			talk := talking(t, l, 4, 6*time.Second)
			for _, side := range []string{"a", "b"} {
				e := l.Edge(side)
				list := callsOf(t, e)
				require.Len(t, list, 4, "edge-%s", side)
				var want []string
				for _, x := range list {
					assert.Equal(t, []string{"phone-a", "phone-b", "confirmed"}, []string{x.From, x.To, x.State})
					assert.Equal(t, []string{"PCMA"}, x.Codecs)
					assert.Len(t, x.Flows, 4, "RTP and RTCP, both ways")
					for _, f := range x.Flows {
						host, port, _ := cutLast(f.To, ":")
						want = append(want, fmt.Sprintf("%s . %s . %s", f.From, strings.Trim(host, "[]"), port))
					}
				}
				slices.Sort(want)
				assert.Equal(t, want, holesSettle(t, e, len(want)), "edge-%s opens what the calls need, and nothing else", side)
			}
			talk.unharmed()

			for _, side := range []string{"a", "b"} {
				e := l.Edge(side)
				assert.Empty(t, callsOf(t, e), "edge-%s", side)
				holesSettle(t, e, 0)
				ended := callsOf(t, e, "--ended")
				require.Len(t, ended, 4)
				assert.Equal(t, "bye", ended[0].Why)
				assertKept(t, e, ended)
				assertMeasured(t, e, ended)
				st := callsStatus(t, e)
				assert.True(t, st.Reading)
				assert.Zero(t, st.Flows+st.Holes+st.Calls)
				assert.Empty(t, st.NotOpen)
				assert.Zero(t, st.Restarts)
			}
		})
	}
}

// assertKept demands a record and the messages of each of the calls.
func assertKept(t *testing.T, e *lab.Edge, ended []call.Call) {
	t.Helper()
	last := ended[0].Answered
	for _, x := range ended {
		if x.Answered.After(last) {
			last = x.Answered
		}
	}
	at := last.Add(time.Second).UTC().Format(time.RFC3339) // all are up
	var records []record.Record
	polltest.Require(t, func() bool {
		out, err := e.Ringway(within(t, 5*time.Second), "calls", "--json", "--at", at)
		return err == nil && json.Unmarshal([]byte(out), &records) == nil && len(records) == len(ended)
	}, 5*time.Second, 50*time.Millisecond, "records: %v", records)
	assert.Equal(t, []string{"phone-a", "phone-b", "PCMA"},
		[]string{records[0].Caller.Number, records[0].Callee.Number, records[0].Codec})
	assert.InDelta(t, 6.5, records[0].Duration, 2)
	for _, q := range []*record.Quality{records[0].Sent, records[0].Received} {
		require.NotNil(t, q)
		assert.Greater(t, q.Packets, uint64(250))
		assert.Greater(t, q.MOS, 4.0)
		assert.Positive(t, q.Delay)
	}

	out, err := e.Ringway(within(t, 5*time.Second), "calls", "show", ended[0].ID)
	require.NoError(t, err)
	for _, word := range []string{"INVITE", "180 Ringing", "200 OK", "ACK", "BYE", "PCMA"} {
		assert.Contains(t, out, word)
	}
}

// assertMeasured demands that both ends of each call's media were measured, and found without fault.
func assertMeasured(t *testing.T, e *lab.Edge, ended []call.Call) {
	t.Helper()
	for _, x := range ended {
		assert.Len(t, x.Media, 2)
		for _, q := range []*call.Quality{x.Sent, x.Received} {
			require.NotNil(t, q, "%s: %+v", x.ID, x.Media)
			assert.Greater(t, q.Packets, uint64(250))
			assert.Zero(t, q.Lost, q.Where)
			assert.Greater(t, q.MOS, 4.0)
			assert.Positive(t, q.Jitter)
			assert.Positive(t, q.Delay)
			assert.Less(t, q.Delay, 20.0, "ms")
		}
	}
	out, err := e.Ringway(within(t, 5*time.Second), "calls", "--ended")
	require.NoError(t, err)
	assert.Regexp(t, `(\d\.\d\d, 0\.0%, \d+\.\dms, delay \d+\.\dms\s+){2}`, out)
	text, err := e.Ringway(within(t, 5*time.Second), "status", "--metrics")
	require.NoError(t, err)
	for _, direction := range []string{"in", "out"} {
		assert.Regexp(t, `ringway_media_packets_total\{direction="`+direction+`",site="[a-z-]+"\} [0-9.e+]{4,}`, text)
	}
	st := callsStatus(t, e)
	assert.True(t, st.Media.Measured)
	assert.Zero(t, st.Media.Beyond)
}

// A long line that loses packets, while one box floods its own WAN: calls show the delay, both ways and at both ends,
// and beside what the line lost what the box's own queues dropped meanwhile. The other box's dropped none.
func TestCallsOverABadLine(t *testing.T) {
	t.Parallel()
	const way = 40 * time.Millisecond
	l := branches(t, lab.Options{
		WAN: 4 * qos.Mbit, Delay: way, Loss: 0.03, Seed: 7, EdgeConfig: reading("observe", nil),
	})
	talk := talking(t, l, 2, 12*time.Second)
	// Through the tunnel a flood would be dropped before it is encrypted, and not in the WAN's queue.
	flood := fmt.Sprintf(`exec 3>/dev/udp/%s/9; p=$(printf %%01200d 0)
		while :; do for i in {1..20}; do printf %%s "$p" >&3; done; sleep 0.01; done`,
		l.Pair(lab.Ringway).WANAddress("b"))
	var flooding sync.WaitGroup
	flooding.Go(func() { _, _ = l.Edge("a").Run(t.Context(), "timeout", "10", "bash", "-c", flood) })
	talk.heard()
	flooding.Wait()

	for _, side := range []string{"a", "b"} {
		e := l.Edge(side)
		ended := callsOf(t, e, "--ended")
		require.Len(t, ended, 2)
		for _, x := range ended {
			for _, q := range []*call.Quality{x.Sent, x.Received} {
				require.NotNil(t, q)
				assert.InDelta(t, 45, q.Delay, 10, "ms, with what waits in queues")
				assert.Positive(t, q.Where[call.Line], q.Where)
				assert.Less(t, q.Loss(), 0.1)
			}
			assert.Nil(t, x.Received.WANDrops)
			require.NotNil(t, x.Sent.WANDrops)
			if side == "a" {
				assert.Greater(t, x.Sent.WANDrops["data"], uint64(100))
			} else {
				assert.Zero(t, x.Sent.WANDrops["data"])
			}
			assert.Zero(t, x.Sent.WANDrops["media"])
		}
		out, err := e.Ringway(within(t, 5*time.Second), "calls", "show", ended[0].ID)
		require.NoError(t, err)
		assert.Regexp(t, `sent: +MOS .* lost \(line \d+.*delay \d\d\.\d ms; `+
			`while the line lost packets, the WANs' queues dropped `+map[string]string{"a": `data \d+`, "b": "none"}[side], out)
		t.Logf("edge-%s: %s", side, out[:strings.Index(out, " ms  ")])
	}
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// The relay of signalling is killed in the middle of calls: no packet of media is lost, and calls that begin
// afterwards are read again.
func TestTheRelayOfSignallingKilledInACall(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	talk := talking(t, l, 4, 6*time.Second)
	for _, side := range []string{"a", "b"} {
		killProcess(t, l.Edge(side).Host, callsStatus(t, l.Edge(side)).PID)
	}
	polltest.Require(t, func() bool {
		a, b := callsStatus(t, l.Edge("a")), callsStatus(t, l.Edge("b"))
		return a.Reading && b.Reading && a.Restarts == 1 && b.Restarts == 1
	}, 10*time.Second, 50*time.Millisecond, "another one reads")
	for _, side := range []string{"a", "b"} {
		assert.Len(t, callsOf(t, l.Edge(side)), 4, "edge-%s knows the calls that were up", side)
		holesSettle(t, l.Edge(side), 16)
	}
	talk.unharmed()
	holesSettle(t, l.Edge("a"), 0) // their ends were seen

	again := talking(t, l, 2, 2*time.Second)
	assert.Len(t, callsOf(t, l.Edge("a")), 2)
	again.unharmed()
}

// More calls than the line carries: those that fit keep their quality, the others are told so at once, by this end
// or by the far one, and none of them takes a place from the others.
func TestCallsThatDoNotFitAreRefused(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: 4 * qos.Mbit, EdgeConfig: reading("enforce", nil)})
	p := l.Pair(lab.Ringway)
	ears, err := p.Listen()
	require.NoError(t, err)
	c, err := p.StartCalls(t.Context(), 15, 6*time.Second)
	require.NoError(t, err)
	result, err := c.Wait(t.Context())
	h, stopErr := ears.Stop()
	require.NoError(t, err)
	require.NoError(t, stopErr)
	assert.Equal(t, []int{15, 9, 6}, []int{result.Placed, result.Completed, result.Refused}, result.Why)
	sent, lost := count(h)
	assert.Zero(t, lost, "of %d voice packets", sent)
	assert.Greater(t, sent, 9*2*250)
	if lost > 0 {
		for _, side := range []string{"a", "b"} {
			out, _ := l.Edge(side).Ringway(within(t, 5*time.Second), "status")
			t.Logf("edge-%s: %s", side, out)
		}
	}

	for _, side := range []string{"a", "b"} {
		st := callsStatus(t, l.Edge(side))
		assert.Zero(t, st.Flows+st.Holes+st.Calls+st.Places, "edge-%s", side)
		for _, b := range st.Budgets {
			assert.Zero(t, b.Taken, "edge-%s: %v", side, b)
		}
	}
	st := callsStatus(t, l.Edge("a"))
	assert.EqualValues(t, 6, st.Refused["site_budget"]+st.Refused["line_budget"], "%v", st.Refused)
}

// The relay of signalling is replaced by the next version while phones have TCP connections through it: none is
// reset, a message that was cut in two by it arrives whole, and calls that are up are known.
func TestTheRelayOfSignallingIsUpgraded(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	for _, side := range []string{"a", "b"} {
		e := l.Edge(side)
		require.NoError(t, e.Terminate(within(t, 10*time.Second)))
		e.Binary = upgraded
		require.NoError(t, e.Start(t.Context()))
		require.NoError(t, e.WaitReady(within(t, 10*time.Second)))
	}
	p := l.Pair(lab.Ringway)
	far := tcpPeer(t, p.Host(lab.PhoneB), "")
	near := tcpPeer(t, p.Host(lab.PhoneA), net.JoinHostPort(p.Address(lab.PhoneB), "5060"))
	there := <-far.accepted
	options := func(n int) string {
		return fmt.Sprintf("OPTIONS sip:b@example.com SIP/2.0\r\nVia: SIP/2.0/TCP x;branch=z9hG4bK%d\r\n"+
			"From: <sip:a@example.com>;tag=1\r\nTo: <sip:b@example.com>\r\nCall-ID: %d\r\nCSeq: %d OPTIONS\r\n"+
			"Content-Length: 0\r\n\r\n", n, n, n)
	}
	pass := func(from, to net.Conn, text string) {
		t.Helper()
		_, err := from.Write([]byte(text))
		require.NoError(t, err)
		expectText(t, to, text)
	}
	pass(near.conn, there, options(1))

	before := [2]calls.Status{callsStatus(t, l.Edge("a")), callsStatus(t, l.Edge("b"))}
	cut := options(2)
	_, err := near.conn.Write([]byte(cut[:40]))
	require.NoError(t, err)
	for i, side := range []string{"a", "b"} {
		out, err := l.Edge(side).Ringway(within(t, 15*time.Second), "upgrade-planes", "calls")
		require.NoError(t, err)
		assert.Equal(t, "calls: replaced\n", out)
		assert.NotEqual(t, before[i].PID, callsStatus(t, l.Edge(side)).PID)
	}
	_, err = near.conn.Write([]byte(cut[40:]))
	require.NoError(t, err)
	expectText(t, there, cut)
	pass(there, near.conn, options(3))
}

// peer is an end of a TCP connection on a host.
type peer struct {
	conn     net.Conn
	accepted chan net.Conn
}

// tcpPeer listens on SIP's port, or connects.
func tcpPeer(t *testing.T, h *lab.Host, to string) (p peer) {
	t.Helper()
	p.accepted = make(chan net.Conn, 1)
	require.NoError(t, h.Do(func() (err error) {
		if to != "" {
			p.conn, err = net.DialTimeout("tcp", to, 10*time.Second)
			return err
		}
		listener, err := net.Listen("tcp", ":5060")
		if err != nil {
			return err
		}
		t.Cleanup(func() { listener.Close() })
		go func() {
			if conn, err := listener.Accept(); err == nil {
				p.accepted <- conn
			}
		}()
		return nil
	}))
	if p.conn != nil {
		t.Cleanup(func() { p.conn.Close() })
	}
	return p
}

// expectText demands that a connection brings exactly this text.
func expectText(t *testing.T, c net.Conn, text string) {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	got := make([]byte, len(text))
	_, err := io.ReadFull(c, got)
	require.NoError(t, err)
	require.Equal(t, text, string(got))
}
