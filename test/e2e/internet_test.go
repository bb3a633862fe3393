package e2e

import (
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
)

// hostInternet is the provider's address, where servers of the internet listen.
const hostInternet = "203.0.113.1"

// What hosts began by the second line goes on by it when the first is back, and by the first when the second goes.
func TestLongConnectionsKeepTheirLine(t *testing.T) {
	t.Parallel()
	l := twoLines(t, lab.Options{WAN: twenty})
	provider, pc := l.Host(lab.Provider), l.Host(lab.PCA)
	server := udpOn(t, provider, hostInternet+":4000")
	var tcp net.Listener
	require.NoError(t, provider.Do(func() (err error) { tcp, err = net.Listen("tcp", hostInternet+":4001"); return }))
	t.Cleanup(func() { tcp.Close() })

	require.NoError(t, provider.IP(t.Context(), nil, "link set wan-a down"))
	require.True(t, polled(5*time.Second, func() bool {
		return strings.Contains(statusText(t, l.Edge("a")), "wan0 without a carrier")
	}))
	old := udpOn(t, pc, "10.1.20.10:40000")
	goesBy(t, old, server, hostInternet+":4000", secondA)
	var near net.Conn
	require.NoError(t, pc.Do(func() (err error) {
		near, err = net.DialTimeout("tcp4", hostInternet+":4001", 5*time.Second)
		return
	}))
	defer near.Close()
	far, err := tcp.Accept()
	require.NoError(t, err)
	defer far.Close()
	assert.Contains(t, far.RemoteAddr().String(), secondA+":")
	through := func(from, to net.Conn, text string) {
		t.Helper()
		_, err := io.WriteString(from, text)
		require.NoError(t, err)
		require.NoError(t, to.SetReadDeadline(time.Now().Add(5*time.Second)))
		got := make([]byte, len(text))
		_, err = io.ReadFull(to, got)
		require.NoError(t, err, text)
		assert.Equal(t, text, string(got))
	}
	through(near, far, "by the second line")

	require.NoError(t, provider.IP(t.Context(), nil, "link set wan-a up"))
	fresh := 40001
	require.True(t, polled(10*time.Second, func() bool { // what begins now leaves by the first line
		c := udpOn(t, pc, net.JoinHostPort("10.1.20.10", strconv.Itoa(fresh)))
		fresh++
		sendUDP(t, c, hostInternet+":4000", "new")
		_ = server.SetReadDeadline(time.Now().Add(time.Second))
		_, at, err := server.ReadFrom(make([]byte, 100))
		return err == nil && strings.HasPrefix(at.String(), edgeA+":")
	}), "the first line is not taken again")
	for range 5 {
		assert.Contains(t, arrives(t, old, server, hostInternet+":4000", "still"), secondA+":")
		through(near, far, "still there")
		through(far, near, "and back")
	}
	nothingForeign(t, provider)

	// The second line goes: UDP goes on by the first, and what is on the first stays.
	require.NoError(t, provider.IP(t.Context(), nil, "link set lte-a down"))
	require.True(t, polled(5*time.Second, func() bool {
		return strings.Contains(statusText(t, l.Edge("a")), "lte0 without a carrier")
	}))
	goesBy(t, old, server, hostInternet+":4000", edgeA)
}

// A line without calls that delivers nothing, though its carrier is there and its gateway answers, is left within some
// seconds, because a target that the config names is silent. Hosts' UDP goes on by the other line.
func TestLongTargetsShowThatALineDeliversNothing(t *testing.T) {
	t.Parallel()
	l := twoLines(t, lab.Options{WAN: twenty, EdgeConfig: func(site string, values map[string]string) {
		if site == "berlin" {
			values["wan[wan0].targets"] = "[" + edgeB + "]"
		}
	}})
	provider := l.Host(lab.Provider)
	pc, server := udpOn(t, l.Host(lab.PCA), "10.1.20.10:40000"), udpOn(t, provider, hostInternet+":4000")
	goesBy(t, pc, server, hostInternet+":4000", edgeA)

	deliversNothing(t, provider)
	began := time.Now()
	require.True(t, polled(40*time.Second, func() bool { // the site has to be silent, too: at rest that takes longer
		return strings.Contains(statusText(t, l.Edge("a")), "wan0 silent since")
	}), "it is not noticed")
	t.Logf("noticed after %s", time.Since(began))
	require.True(t, polled(5*time.Second, func() bool {
		sendUDP(t, pc, hostInternet+":4000", "by the second")
		_ = server.SetReadDeadline(time.Now().Add(time.Second))
		_, at, err := server.ReadFrom(make([]byte, 100))
		return err == nil && strings.HasPrefix(at.String(), secondA+":")
	}), "the flow does not go on")
	t.Logf("by the second line after %s", time.Since(began))
	text := statusText(t, l.Edge("a"))
	assert.Contains(t, text, "none of its targets answers; its gateway does")
	nothingForeign(t, provider)

	_, err := provider.Run(t.Context(), "nft", "delete", "table", "inet", "hole")
	require.NoError(t, err)
	require.NoError(t, provider.IP(t.Context(), nil, "link set lte-a down"))
	goneBack := func() bool {
		sendUDP(t, pc, hostInternet+":4000", "by the first")
		_ = server.SetReadDeadline(time.Now().Add(time.Second))
		_, at, err := server.ReadFrom(make([]byte, 100))
		return err == nil && strings.HasPrefix(at.String(), edgeA+":")
	}
	require.True(t, polled(8*time.Second, goneBack), "with the other line cut, it is taken as soon as it answers")
}

// A metered line carries calls, and answers hosts that their data is prohibited. What it carries is counted.
func TestLongAMeteredLineCarriesCallsOnly(t *testing.T) {
	t.Parallel()
	l := twoLines(t, lab.Options{WAN: twenty, EdgeConfig: func(site string, values map[string]string) {
		if site == "berlin" {
			values["wan[+]"] = strings.TrimSuffix(values["wan[+]"], "}") + ", metered: {budget: 1MB}}"
		}
	}})
	provider := l.Host(lab.Provider)
	require.NoError(t, provider.IP(t.Context(), nil, "link set wan-a down"))
	require.True(t, polled(5*time.Second, func() bool {
		return strings.Contains(statusText(t, l.Edge("a")), "only metered WANs are left")
	}), "%s", statusText(t, l.Edge("a")))
	var tcp net.Listener
	require.NoError(t, provider.Do(func() (err error) { tcp, err = net.Listen("tcp", hostInternet+":4001"); return }))
	t.Cleanup(func() { tcp.Close() })
	dial := func(h *lab.Host) (err error) {
		_ = h.Do(func() error {
			var c net.Conn
			if c, err = net.DialTimeout("tcp4", hostInternet+":4001", 5*time.Second); err == nil {
				c.Close()
			}
			return nil
		})
		return err
	}
	began := time.Now()
	assert.ErrorIs(t, dial(l.Host(lab.PCA)), syscall.ECONNREFUSED)
	assert.Less(t, time.Since(began), time.Second, "at once")
	assert.ErrorIs(t, dial(l.Host(lab.PhoneA)), syscall.ECONNREFUSED)

	k := talking(t, l, 2, 3*time.Second)
	_, result := k.heard()
	assert.Equal(t, 2, result.Completed, result.Why)
	require.True(t, polled(15*time.Second, func() bool {
		return strings.Contains(statusText(t, l.Edge("a")), "calls only: lte0 ")
	}))
	t.Log(statusText(t, l.Edge("a")))
}
