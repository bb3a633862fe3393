package nft

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/firewall"
	"ringway/qos"
	"ringway/test/netnstest"
)

// answer is what a socket of n hears of what it sends to a host that is not reached; nil: nothing, within the time.
func (w *world) answer(n *netnstest.NS, network, from, to string, limit time.Duration) (err error) {
	w.t.Helper()
	require.NoError(w.t, n.Do(func() error {
		d := net.Dialer{Timeout: limit}
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
		} else {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		var c net.Conn
		if c, err = d.Dial(network, to); err != nil {
			return nil
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(limit))
		if _, err = c.Write([]byte("question")); err == nil {
			_, err = c.Read(make([]byte, 100))
		}
		return nil
	}))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// Hosts and the box itself are answered at once where a WAN does not lead to a private address; nobody on a WAN is.
func TestPrivateDestinationsAreRefusedAtOnce(t *testing.T) {
	t.Parallel()
	w := newRouterWorld(t, behindRouter())
	const limit = 3 * time.Second
	const lease = "192.168.178.20"
	for _, c := range []struct {
		name      string
		n         *netnstest.NS
		net, from string
		to        string
		want      error
	}{
		{"a phone asks a name server", w.phone, "udp", phone4, "10.9.9.9:53", syscall.EHOSTUNREACH},
		{"a phone connects", w.phone, "tcp", phone4, "10.9.9.9:5060", syscall.ECONNREFUSED},
		{"a phone connects over IPv6", w.phone, "tcp", phone6, "[fd42::9]:5060", syscall.ECONNREFUSED},
		{"a phone asks over IPv6", w.phone, "udp", phone6, "[fd42::9]:53", syscall.EACCES},
		{"a PC connects to the router", w.pc, "tcp", pc4, "192.168.178.1:80", syscall.ECONNREFUSED},
		{"the box connects", w.edge, "tcp", lease, "10.9.9.9:80", syscall.ECONNREFUSED},
		{"the box connects to its name server's page", w.edge, "tcp", lease, "192.168.178.2:80", syscall.ECONNREFUSED},
	} {
		seen, had := w.watchWAN(), w.counters()[firewall.CounterPrivateWAN].Packets
		began := time.Now()
		err := w.answer(c.n, c.net, c.from, c.to, limit)
		assert.ErrorIs(t, err, c.want, c.name)
		assert.Less(t, time.Since(began), limit/3, c.name)
		assert.Greater(t, w.counters()[firewall.CounterPrivateWAN].Packets, had, c.name)
		w.settled()
		n, _ := seen(netip.MustParseAddrPort(c.to).Addr().String())
		assert.Zero(t, n, c.name)
	}
	err := w.answer(w.edge, "udp", lease, "10.9.9.9:53", limit)
	assert.True(t, errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.EPERM), "%v", err)

	// From a WAN, the same destinations stay without an answer.
	assert.NoError(t, w.answer(w.internet, "udp", internet4, "10.9.9.9:53", limit/10))
	assert.NoError(t, w.answer(w.internet, "udp", internet4, phone4+":9", limit/10))
}

// A metered WAN carries what is a call, and what phones need for one. Of the tunnels it carries the voice tunnel.
func TestWhatAMeteredWANCarries(t *testing.T) {
	t.Parallel()
	in := branch()
	in.Metered = []string{"wan0"}
	w := newWorld(t, in)
	for _, c := range []struct {
		name   string
		n      *netnstest.NS
		src    string
		dport  int
		tos    byte
		passes bool
	}{
		{"media", w.phone, phone4, 20000, 46 << 2, true},
		{"signalling", w.phone, phone4, 5060, 0, true},
		{"a phone's name server", w.phone, phone4, 53, 0, true},
		{"a phone's time", w.phone, phone4, 123, 0, true},
		{"a phone's firmware", w.phone, phone4, 8080, 0, false},
		{"a PC's data", w.pc, pc4, 8081, 0, false},
		{"a PC's name server", w.pc, pc4, 53, 0, false},
		{"the box itself", w.edge, "198.51.100.2", 8082, 0, true},
	} {
		had := w.counters()[firewall.CounterMeteredWAN].Packets
		seen := w.watchWAN()
		w.send(w.listen(c.n, c.src, 0), "203.0.113.9", c.dport, int(c.tos))
		if !c.passes {
			w.assertCounter(firewall.CounterMeteredWAN, had+1, c.name)
		}
		w.settled()
		n, _ := seen("203.0.113.9")
		assert.Equal(t, c.passes, n == 1, "%s: %d", c.name, n)
	}
	assert.ErrorIs(t, w.answer(w.pc, "tcp", pc4, "203.0.113.9:80", 3*time.Second), syscall.ECONNREFUSED, "data")

	for mark, passes := range map[qos.Mark]bool{qos.MarkOuterVoice: true, qos.MarkOuterData: false} {
		c := w.listen(w.edge, "198.51.100.2", 0)
		markSocket(t, c, mark)
		seen := w.watchWAN()
		_, err := c.WriteTo([]byte("ciphertext"), &net.UDPAddr{IP: net.ParseIP("203.0.113.9"), Port: 51820})
		assert.Equal(t, passes, err == nil, "%v", err)
		w.settled()
		n, _ := seen("203.0.113.9")
		assert.Equal(t, passes, n == 1, "mark %s", strconv.FormatUint(uint64(mark), 16))
	}
}
