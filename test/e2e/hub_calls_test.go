package e2e

import (
	"encoding/binary"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/qos"
	"ringway/test/lab"
	"ringway/test/polltest"
)

// A call at a hub of 500 sites costs what it costs at a box with one: its holes are there while it is up and gone
// after the BYE, and for that nothing is compared with the config, no rule is written and no queue is touched.
//
//	phone-a --- edge-a, the hub --- provider --- edge-b --- phone-b
//	                 499 sites that never dial in
func TestLongACallAtAHubReconcilesNothing(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: qos.Gbit, EdgeConfig: reading("enforce", nil)})
	e := l.Edge("a")
	one := callsLeaveAlone(t, l)
	hub(t, l)
	require.NoError(t, l.Host(lab.PhoneA).WaitReach(within(t, 30*time.Second), "10.2.10.10", "0xb8"))
	polltest.Require(t, func() bool { return callsStatus(t, e).Reading }, 10*time.Second, 50*time.Millisecond)
	lines, _ := classes(t, e)
	require.Len(t, lines, 2+4+5*hubSites, "the root, local internet and the sites")
	many := callsLeaveAlone(t, l)

	for _, what := range []string{"INVITE", "200"} {
		a, b := middle(one[what]), middle(many[what])
		t.Logf("%s in to %s out, median of %d and %d: %s with one site, %s with %d, ratio %.2f", what, what,
			len(one[what]), len(many[what]), a, b, hubSites, float64(b)/float64(a))
	}
}

// hubCalls is how many calls one attempt places.
const hubCalls = 20

// callsLeaveAlone places calls, and demands that nothing at edge-a changes by them but the elements of sets whose
// elements expire. It returns how long the edge kept each INVITE and each 200.
func callsLeaveAlone(t *testing.T, l *lab.Lab) (kept map[string][]time.Duration) {
	t.Helper()
	e := l.Edge("a")
	var runs []uint64
	// The daemon compares all once a minute. That can fall into one of two attempts that follow each other within
	// seconds, and not into both.
	for range 2 {
		before := roundsOf(t, e)
		rules, queues := rulesOf(t, e), queuesOf(t, e)
		w := listenAt(t, e.Host, "")
		k := dialled(t, l, hubCalls, 1500*time.Millisecond, lab.Dialing{Ramp: time.Second})
		holesSettle(t, e, 4*hubCalls) // RTP and RTCP of each call, both ways
		assert.Equal(t, rules, rulesOf(t, e), "with the calls up")
		completed(t, l, k)
		noHoles(t, l)
		after := roundsOf(t, e)
		assert.Equal(t, rules, rulesOf(t, e), "after the calls")
		assert.Equal(t, queues, queuesOf(t, e))
		assert.Equal(t, before.Changes, after.Changes, "what reconciliations set")
		runs = append(runs, after.Runs-before.Runs)
		kept = keptBy(w)
		for _, what := range []string{"INVITE", "200"} {
			assert.Len(t, kept[what], hubCalls, what)
		}
		if after.Runs == before.Runs {
			t.Logf("%d calls: %d reconciliations before and %d after, %d lines of rules and %d of queues unchanged",
				hubCalls, before.Runs, after.Runs, strings.Count(rules, "\n"), strings.Count(queues, "\n"))
			return kept
		}
	}
	t.Errorf("calls started reconciliations: %v in two attempts", runs)
	return kept
}

// completed demands that all calls were set up and ended, and that no voice packet was lost, unless a hole was late,
// which is the machine's doing: a message waits 5 ms at most.
func completed(t *testing.T, l *lab.Lab, k *talk) {
	t.Helper()
	h, result := k.heard()
	sent, lost := count(h)
	late := callsStatus(t, l.Edge("a")).LateFlows + callsStatus(t, l.Edge("b")).LateFlows
	assert.Equal(t, k.calls.Placed, result.Completed, "calls completed (%s)", result.Why)
	if late == 0 {
		assert.Zero(t, lost, "voice packets lost of %d: %s", sent, losses(h))
	}
	t.Logf("%d voice packets, %d lost; holes late for %d messages", sent, lost, late)
}

// rounds is how often an edge compared the machine with its config, and what it set.
type rounds struct{ Runs, Changes uint64 }

// roundsOf is the edge's count of reconciliations.
func roundsOf(t *testing.T, e *lab.Edge) rounds {
	t.Helper()
	out, err := e.StatusJSON(within(t, 20*time.Second))
	require.NoError(t, err)
	var st struct{ Reconcile rounds }
	require.NoError(t, json.Unmarshal(out, &st))
	return st.Reconcile
}

// rulesOf is the whole ruleset as text, without counts, and without the elements of sets whose elements expire.
func rulesOf(t *testing.T, e *lab.Edge) string {
	t.Helper()
	out, err := e.Run(within(t, 20*time.Second), "nft", "-s", "list", "ruleset")
	require.NoError(t, err)
	return withoutExpiring(out)
}

var expires = regexp.MustCompile(`^(flags .*(timeout|dynamic)|timeout )`)

// withoutExpiring leaves out what is in sets whose elements expire.
func withoutExpiring(ruleset string) string {
	var kept strings.Builder
	expiring, elements := false, false
	for line := range strings.Lines(ruleset) {
		word := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(word, "set "), strings.HasPrefix(word, "map "):
			expiring = false
		case expires.MatchString(word):
			expiring = true
		case expiring && strings.HasPrefix(word, "elements = "):
			elements = true
		}
		if !elements {
			kept.WriteString(line)
		}
		if elements && strings.HasSuffix(word, "}") {
			elements = false
		}
	}
	return kept.String()
}

// queuesOf is the classes and queues of all devices of an edge, without counts.
func queuesOf(t *testing.T, e *lab.Edge) string {
	t.Helper()
	lines, _ := classes(t, e)
	var all []string
	for _, line := range lines {
		all = append(all, line)
	}
	slices.Sort(all)
	out, err := e.Run(within(t, 20*time.Second), "tc", "qdisc", "show")
	require.NoError(t, err)
	return strings.Join(all, "") + out
}

var (
	ofInvite = regexp.MustCompile(`\nCSeq: *\d+ INVITE\r`)
	callID   = regexp.MustCompile(`\nCall-ID: *(\S+)\r`)
)

// keptBy is how long a box kept each INVITE and each 200 to one: from its arrival at one interface to its departure
// through another one, in clear both times.
func keptBy(w *wire) map[string][]time.Duration {
	type message struct{ what, call string }
	came, kept := map[message]time.Time{}, map[string][]time.Duration{}
	w.each(func(packet []byte, outgoing bool, at time.Time) {
		text := sipText(packet)
		id := callID.FindStringSubmatch(text)
		if id == nil || !ofInvite.MatchString(text) {
			return
		}
		m := message{call: id[1]}
		switch {
		case strings.HasPrefix(text, "INVITE "):
			m.what = "INVITE"
		case strings.HasPrefix(text, "SIP/2.0 200 "):
			m.what = "200"
		default:
			return
		}
		arrived, there := came[m]
		switch {
		case !outgoing && !there:
			came[m] = at
		case outgoing && there && !arrived.IsZero():
			kept[m.what] = append(kept[m.what], at.Sub(arrived))
			came[m] = time.Time{} // a retransmission does not count
		}
	})
	return kept
}

// sipText is a datagram of IPv4 from or to port 5060, as text.
func sipText(packet []byte) string {
	if len(packet) < 28 || packet[0]>>4 != 4 || packet[9] != unix.IPPROTO_UDP {
		return ""
	}
	udp := packet[int(packet[0]&15)*4:]
	if len(udp) < 8 || binary.BigEndian.Uint16(udp) != 5060 && binary.BigEndian.Uint16(udp[2:]) != 5060 {
		return ""
	}
	return string(udp[8:])
}

func middle(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}
