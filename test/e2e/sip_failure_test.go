package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
	"ringway/test/polltest"
)

// packetsOf reads a counter of the firewall.
func packetsOf(t *testing.T, e *lab.Edge, counter string) uint64 {
	t.Helper()
	out, err := e.Run(within(t, 5*time.Second), "nft", "list", "counter", "inet", "ringway", counter)
	require.NoError(t, err)
	found := regexp.MustCompile(`packets (\d+)`).FindStringSubmatch(out)
	require.Len(t, found, 2, out)
	n, err := strconv.ParseUint(found[1], 10, 64)
	require.NoError(t, err)
	return n
}

// udpOn binds a UDP socket on a host.
func udpOn(t *testing.T, h *lab.Host, address string) (c net.PacketConn) {
	t.Helper()
	require.NoError(t, h.Do(func() (err error) {
		c, err = net.ListenPacket("udp", address)
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return c
}

// daemonOf is the pid of an edge's daemon.
func daemonOf(t *testing.T, e *lab.Edge) int {
	t.Helper()
	st, err := e.Status(within(t, 5*time.Second))
	require.NoError(t, err)
	return st.PID
}

// Without a daemon and a relay, on_failure: open lets UDP pass without a hole after its 2 seconds, and closed does not.
// Berlin is open and munich closed, and munich's died first: what berlin lets pass is dropped there.
func TestWhatIsOpenOnFailure(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: func(site string, values map[string]string) {
		onFailure := map[string]string{"berlin": "open", "munich": "closed"}
		reading("enforce", map[string]string{"sip.on_failure": onFailure[site]})(site, values)
	}})
	a, b := l.Edge("a"), l.Edge("b")
	p := l.Pair(lab.Ringway)
	from := udpOn(t, p.Host(lab.PhoneA), net.JoinHostPort(p.Address(lab.PhoneA), "40000"))
	to := udpOn(t, p.Host(lab.PhoneB), net.JoinHostPort(p.Address(lab.PhoneB), "40000"))
	send := func() {
		_, err := from.WriteTo([]byte("no hole"), to.LocalAddr())
		require.NoError(t, err)
	}
	for _, e := range []*lab.Edge{a, b} {
		polltest.Require(t, func() bool { return callsStatus(t, e).Reading }, 10*time.Second, 50*time.Millisecond)
	}
	polltest.Require(t, func() bool {
		send()
		return packetsOf(t, a, "sip_closed") > 0
	}, 5*time.Second, 50*time.Millisecond, "berlin needs a hole while it works")
	require.Zero(t, packetsOf(t, b, "sip_closed"))

	for _, e := range []*lab.Edge{b, a} {
		reader := callsStatus(t, e).PID
		require.NoError(t, e.Kill(within(t, 5*time.Second)))
		killProcess(t, e.Host, reader)
	}
	polltest.Require(t, func() bool {
		send()
		return packetsOf(t, b, "sip_closed") > 0
	}, 10*time.Second, 50*time.Millisecond, "berlin is open, and munich is not")
	require.NoError(t, to.SetReadDeadline(time.Now()))
	_, _, err := to.ReadFrom(make([]byte, 100))
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded, "nothing arrives in munich")

	back := udpOn(t, p.Host(lab.PhoneA), net.JoinHostPort(p.Address(lab.PhoneA), "40002"))
	closed := packetsOf(t, b, "sip_closed")
	_, err = to.WriteTo([]byte("no hole"), back.LocalAddr())
	require.NoError(t, err)
	polltest.Assert(t, func() bool { return packetsOf(t, b, "sip_closed") > closed }, 5*time.Second,
		50*time.Millisecond, "nor does anything leave it")
}

// T17: a datagram that waits in a process that hangs does not arrive with the next one, seconds late.
func TestNothingArrivesLateFromAHungRelay(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	e, p := l.Edge("a"), l.Pair(lab.Ringway)
	from := udpOn(t, p.Host(lab.PhoneA), net.JoinHostPort(p.Address(lab.PhoneA), "5060"))
	to := udpOn(t, p.Host(lab.PhoneB), net.JoinHostPort(p.Address(lab.PhoneB), "5060"))
	send := func(subject string) {
		_, err := from.WriteTo([]byte(sip("", "OPTIONS sip:b@example.com SIP/2.0",
			"Via: SIP/2.0/UDP x;branch=z9hG4bK"+subject, "From: <sip:a@example.com>;tag=1", "To: <sip:b@example.com>",
			"Call-ID: "+subject, "CSeq: 1 OPTIONS")), to.LocalAddr())
		require.NoError(t, err)
	}
	// receive gives the Call-ID of what arrives; empty: nothing does.
	receive := func(patience time.Duration) string {
		buf := make([]byte, 1000)
		require.NoError(t, to.SetReadDeadline(time.Now().Add(patience)))
		n, _, err := to.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return ""
		}
		require.NoError(t, err)
		_, id, _ := strings.Cut(string(buf[:n]), "Call-ID: ")
		id, _, _ = strings.Cut(id, "\r\n")
		return id
	}
	for _, side := range []string{"a", "b"} {
		polltest.Require(t, func() bool { return callsStatus(t, l.Edge(side)).Reading }, 10*time.Second,
			50*time.Millisecond)
	}
	send("before")
	require.Equal(t, "before", receive(5*time.Second))

	daemon, reader := daemonOf(t, e), callsStatus(t, e).PID
	signal := func(name string, pid int) {
		_, err := e.Run(within(t, 5*time.Second), "kill", "-"+name, strconv.Itoa(pid))
		require.NoError(t, err)
	}
	// While the daemon is stopped, too, nothing has datagrams pass unread: this one waits in the reader's socket.
	signal("STOP", daemon)
	signal("STOP", reader)
	send("late")
	signal("CONT", daemon)
	polltest.Require(t, func() bool {
		st := callsStatus(t, e)
		return st.Restarts == 1 && st.Reading && st.PID != reader
	}, 40*time.Second, 100*time.Millisecond, "it is replaced")

	for n := range 20 {
		send(fmt.Sprintf("after-%d", n))
		if id := receive(500 * time.Millisecond); id != "" {
			assert.Equal(t, fmt.Sprintf("after-%d", n), id)
			return
		}
	}
	t.Error("the next process passes nothing on")
}
