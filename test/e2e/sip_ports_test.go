package e2e

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
)

const pbxAt = "10.2.20.10"

// A PBX that has another port beside the usual one, and connects to phones where their Contact says: calls are read on
// all of its ports, in both directions, over UDP and TCP.
func TestAPBXWithPortsOfItsOwn(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	for _, side := range []string{"a", "b"} {
		e := l.Edge(side)
		text, err := e.Config()
		require.NoError(t, err)
		servers := "sip:\n  servers:\n    - name: pbx\n      address: " + pbxAt +
			"\n      ports: [udp/5060, udp/7000, tcp/7000]\n"
		require.Contains(t, string(text), "\nsip:\n")
		require.NoError(t, e.WriteConfig([]byte(strings.Replace(string(text), "sip:\n", servers, 1))))
		out, err := e.Ringway(within(t, 10*time.Second), "reload")
		require.NoError(t, err, out)
	}
	f := &field{t: t, l: l}
	offer := f.text(said{by: "b", start: "INVITE", caller: "b", callID: "in", body: audio(pbxAt, 9000)})
	busy := f.text(said{by: "a", start: "486 Busy Here", caller: "b", callID: "in", tag: "ta"})
	ack := f.text(said{by: "b", start: "ACK", caller: "b", callID: "in", tag: "ta", branch: "in-1-INVITE"})
	const offered = "*>P:9000+"
	done := func(name string) {
		t.Helper()
		f.has(name, "")
		for _, side := range []string{"a", "b"} {
			ended := callsOf(t, l.Edge(side), "--ended")
			require.NotEmpty(t, ended, "edge-%s read %s", side, name)
			assert.Equal(t, "rejected", ended[len(ended)-1].Why, "edge-%s, %s", side, name)
		}
	}

	pbx, phone := udpOn(t, l.Host(lab.PCB), pbxAt+":7000"), udpOn(t, l.Host(lab.PhoneA), fieldA+":5062")
	arrives(t, pbx, phone, fieldA+":5062", offer)
	f.has("an INVITE from port 7000", offered)
	arrives(t, phone, pbx, pbxAt+":7000", busy)
	arrives(t, pbx, phone, fieldA+":5062", ack)
	done("UDP from port 7000")

	near, far := connected(t, l.Host(lab.PhoneA), fieldA+":58750", l.Host(lab.PCB), pbxAt+":7000")
	contact := []string{"Contact: <sip:anna@" + fieldA + ":5070>"}
	register := f.text(said{by: "a", start: "REGISTER", callID: "reg", more: contact})
	_, err := near.Write([]byte(register))
	require.NoError(t, err)
	expectText(t, far, register)
	assert.Equal(t, fieldA+":58750", far.RemoteAddr().String())

	pbxEnd, phoneEnd := connected(t, l.Host(lab.PCB), pbxAt+":0", l.Host(lab.PhoneA), fieldA+":5070")
	assert.Equal(t, pbxEnd.LocalAddr().String(), phoneEnd.RemoteAddr().String())
	for _, x := range []struct {
		from, to net.Conn
		text     string
		holes    string
	}{{pbxEnd, phoneEnd, offer, offered}, {phoneEnd, pbxEnd, busy, ""}, {pbxEnd, phoneEnd, ack, ""}} {
		text := strings.ReplaceAll(x.text, "Call-ID: in", "Call-ID: tc")
		_, err := x.from.Write([]byte(text))
		require.NoError(t, err)
		expectText(t, x.to, text)
		f.has(text, x.holes)
	}
	done("TCP to the phone's port 5070")
}

// connected is a TCP connection from one host to another.
func connected(t *testing.T, from *lab.Host, at string, to *lab.Host, where string) (near, far net.Conn) {
	t.Helper()
	var listener net.Listener
	require.NoError(t, to.Do(func() (err error) {
		listener, err = net.Listen("tcp", where)
		return err
	}))
	defer listener.Close()
	require.NoError(t, from.Do(func() (err error) {
		local, err := net.ResolveTCPAddr("tcp", at)
		if err != nil {
			return err
		}
		near, err = (&net.Dialer{LocalAddr: local, Timeout: 5 * time.Second}).DialContext(t.Context(), "tcp", where)
		return err
	}))
	t.Cleanup(func() { near.Close() })
	far, err := listener.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { far.Close() })
	return near, far
}
