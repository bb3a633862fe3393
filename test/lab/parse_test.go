package lab

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseCallsTakesTheLastLine(t *testing.T) {
	got, err := parseCalls(strings.NewReader(
		"StartTime;OutgoingCall(P);OutgoingCall(C);SuccessfulCall(P);SuccessfulCall(C);\n" +
			"2026-11-22\t11:53:56;4;4;0;0;\n" +
			"2026-11-22\t11:53:59;0;10;9;9;\n"))
	require.NoError(t, err)
	assert.Equal(t, CallResult{Placed: 10, Completed: 9}, got)

	for text, want := range map[string]string{
		"":                          "SIPp wrote no statistics",
		"OutgoingCall(C);\n":        "SIPp wrote no statistics",
		"A;B;\n1;2;\n":              "SIPp's statistics have no column OutgoingCall(C)",
		"OutgoingCall(C);\nmany;\n": `read SIPp's statistics: OutgoingCall(C): strconv.Atoi: parsing "many": invalid syntax`,
	} {
		_, err := parseCalls(strings.NewReader(text))
		assert.EqualError(t, err, want)
	}
}

func TestOptionsAreHeldToTheirRange(t *testing.T) {
	for want, o := range map[string]Options{
		"501 calls at once (allowed: 1-500)":      {Calls: 501},
		"calls of 100ms (allowed: 1s-1h)":         {Duration: 100 * time.Millisecond},
		"a loss of 1 (allowed: 0 to less than 1)": {Loss: 1},
		"a delay of 1m0s (allowed: 0-5s)":         {Delay: time.Minute},
		`bulk "sctp" (allowed: none, tcp, udp)`:   {Bulk: "sctp"},
		`unknown pair "x" (allowed: ringway, baseline, fq_codel, cake, kernel, single, duplicate-all)`: {
			Paths: []PathName{"x"},
		},
	} {
		assert.EqualError(t, o.fill(), want)
	}
	var o Options
	require.NoError(t, o.fill())
	assert.Equal(t, []PathName{Ringway}, o.Paths)
	assert.Equal(t, DefaultBuffer, o.Buffer)
	o.Binary = "/bin/true"
	require.NoError(t, o.findPrograms())
	assert.NotEmpty(t, o.Helper)
}

func TestComplaintIsOneLine(t *testing.T) {
	assert.Equal(t, "SIPp does not say why", complaint("/nonexistent"))
}

// Where no terminal is, progress is one line a step and nothing moves.
func TestProgressWithoutATerminal(t *testing.T) {
	var b bytes.Buffer
	p := newProgress(&b)
	p.step("building %d hosts", 7)
	p.note("a remark")
	p.timed(20*time.Second, "calls")
	p.end()
	assert.Regexp(t, `^ +0\.\ds  building 7 hosts\n +0\.\ds  a remark\n +0\.\ds  calls \(about 20s\)\n$`, b.String())
}

func TestHolderRefusesToRunByHand(t *testing.T) {
	for _, args := range [][]string{nil, {"init"}, {"host", "phone-a"}, {"provider", "{}"}, {"x", "y", "z"}} {
		assert.EqualError(t, Holder(args, strings.NewReader(""), &bytes.Buffer{}),
			"only `ringway lab` starts the holder, in namespaces of its own")
	}
}
