package e2e

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/sip/call"
	"ringway/test/lab"
)

// The line is full, and the PBX has a rule that takes off a 9. Emergency calls get sound nevertheless, each at the cost
// of the newest call, and whatever a rule has made of the number: 911 is known before the 9 is taken off it, also
// where only the To still has it, and a service needs no number. The same digits that nobody dialled as a call for
// help are refused like any other call. Case 35.
func TestEmergencyCallsOnAFullLine(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: 1500 * qos.Kbit, EdgeConfig: reading("enforce", map[string]string{
		"sip.prefixes": `["9"]`,
	})})
	ends := map[string]net.PacketConn{
		"a": udpOn(t, l.Host(lab.PhoneA), fieldA+":5060"), "b": udpOn(t, l.Host(lab.PhoneB), fieldB+":5060"),
	}
	one := func(name string) *field { return &field{t: t, l: l, ends: ends, id: name} }
	k := newTalkers(t, l)
	port := 40000
	// begins places a call, and is what it sounds like; nil if the box refused it.
	begins := func(f *field, m said) *talker {
		t.Helper()
		port += 10
		m.by, m.start, m.body = "a", "INVITE", audio(fieldA, port)
		invite := f.text(m)
		sendUDP(t, ends["a"], fieldB+":5060", invite)
		var refused string
		require.True(t, polled(5*time.Second, func() bool {
			if got := waiting(t, ends["b"]); got != "" {
				require.Equal(t, invite, got)
				return true
			}
			refused = waiting(t, ends["a"])
			return refused != ""
		}), "neither arrived nor refused: %s", invite)
		if refused != "" {
			require.Regexp(t, `(?s)^SIP/2\.0 488 .*\r\nWarning: 370 `, refused)
			return nil
		}
		f.say(said{by: "b", start: "200 OK", to: m.to, tag: "tb", body: audio(fieldB, port)}, "?")
		f.say(said{by: "a", start: "ACK", to: m.to, uri: m.uri, tag: "tb", branch: f.id + "-ack"}, "?")
		return k.add(port)
	}
	// sounds has a call speak for a fifth of a second, and is how many of its packets come. The box counts the others.
	const packets = 10
	sounds := func(x *talker) (came int) {
		t.Helper()
		before, closed := x.came.Load(), packetsOf(t, l.Edge("a"), "sip_closed")
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for range packets {
			x.send()
			<-tick.C
		}
		polled(2*time.Second, func() bool {
			came = int(x.came.Load() - before)
			return came+int(packetsOf(t, l.Edge("a"), "sip_closed")-closed) == packets
		})
		return came
	}

	var usual []*talker
	for {
		require.Less(t, len(usual), 20, "the line never is full")
		x := begins(one(fmt.Sprintf("usual%d", len(usual))), said{})
		if x == nil {
			break
		}
		usual = append(usual, x)
	}
	require.GreaterOrEqual(t, len(usual), 3)
	for n, x := range usual {
		assert.Equal(t, packets, sounds(x), "packets of call %d before the emergencies", n)
	}

	var help []*talker
	for _, m := range []struct{ name, uri, to string }{
		{"dialled as it is", "sip:911@" + fieldB, "sip:911@" + fieldB},
		{"a rule made 11 of it", "sip:11@" + fieldB, "sip:911@" + fieldB},
		{"a service", "urn:service:sos", "urn:service:sos"},
	} {
		x := begins(one("help"+fmt.Sprint(len(help))), said{uri: m.uri, to: m.to})
		require.NotNil(t, x, m.name)
		help = append(help, x)
		assert.Equal(t, packets, sounds(x), "packets of the emergency call, %s", m.name)
		newest := len(usual) - len(help)
		assert.Zero(t, sounds(usual[newest]), "call %d makes way, %s", newest, m.name)
		assert.Nil(t, begins(one(fmt.Sprintf("refused%d", len(help))), said{}), "an ordinary call is refused")
	}
	assert.Nil(t, begins(one("eleven"), said{uri: "sip:11@" + fieldB, to: "sip:11@" + fieldB}), "11 is nobody's emergency")
	for n := range len(usual) - len(help) {
		assert.Equal(t, packets, sounds(usual[n]), "packets of call %d after the emergencies", n)
	}
	for _, side := range []string{"a", "b"} {
		emergencies := 0
		for _, c := range callsOf(t, l.Edge(side)) {
			if c.Emergency {
				emergencies++
			}
		}
		assert.Equal(t, len(help), emergencies, "edge-%s", side)
	}

	// Signalling of a call without sound goes on.
	muted := one(fmt.Sprintf("usual%d", len(usual)-1))
	muted.say(said{by: "a", start: "BYE", cseq: 2, tag: "tb"}, "?")
	muted.say(said{by: "b", start: "200 OK", of: "BYE", cseq: 2, tag: "tb"}, "?")
	require.True(t, polled(holeLeft, func() bool {
		for _, c := range callsOf(t, l.Edge("a")) {
			if c.CallID == muted.id {
				return false
			}
		}
		return true
	}), "it ends: %v", callIDs(callsOf(t, l.Edge("a"))))
}

func callIDs(list []call.Call) (all []string) {
	for _, c := range list {
		all = append(all, c.CallID)
	}
	return all
}

// waiting is the message that has come to a socket; empty if there is none yet.
func waiting(t *testing.T, c net.PacketConn) string {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
	b := make([]byte, 1<<16)
	n, _, err := c.ReadFrom(b)
	if timeout, is := err.(net.Error); is && timeout.Timeout() {
		return ""
	}
	require.NoError(t, err)
	return string(b[:n])
}
