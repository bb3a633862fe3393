package metrics

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"ringway/appliance/config"
	"ringway/appliance/exposition"
	"ringway/appliance/problem"
	"ringway/appliance/status"
	"ringway/routing"
	"ringway/test/netnstest"
	"ringway/test/polltest"
	"ringway/tunnel"
)

//	box: data0 10.1.20.1 --- pc 10.1.20.10
//	     wan0 198.51.100.2 --- pc 198.51.100.1 (a stranger with a route to 10.1.20.1)
//
// There is no ruleset: what is held here is held by the listener alone.
func TestMetricsServerFollows(t *testing.T) {
	defer goleak.VerifyNone(t)
	box, pc := netnstest.New(t), netnstest.New(t)
	box.Run("ip", "link", "set", "lo", "up")
	netnstest.Veth(t, box, "wan0", pc, "wan0")
	box.Run("ip", "addr", "add", "198.51.100.2/24", "dev", "wan0")
	pc.Run("ip", "addr", "add", "198.51.100.1/24", "dev", "wan0")
	for ns, dev := range map[*netnstest.NS]string{box: "wan0", pc: "wan0"} {
		ns.Run("ip", "link", "set", dev, "up")
	}

	local, inside := netip.MustParseAddrPort("127.0.0.1:9586"), netip.MustParseAddrPort("10.1.20.1:9586")
	networks := func(n string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(n)} }
	munich := tunnel.Site{Name: "munich", VoiceNetworks: networks("10.2.10.0/24"), DataNetworks: networks("10.2.20.0/24")}
	cfg := &config.Config{
		Data:    []routing.LAN{{Interface: "data0", Addresses: networks("10.1.20.1/24")}},
		Sites:   []config.Site{{Site: munich}},
		Control: config.Control{Metrics: []netip.AddrPort{local, inside}},
	}
	m := New(slog.New(slog.DiscardHandler), exposition.Handler(slog.New(slog.DiscardHandler), &exposition.Collector{
		Build: "1.2.3", Now: time.Now, Sources: []exposition.Source{Box{}},
		Status: func(context.Context) (status.Status, error) { return status.Status{Site: "berlin"}, nil },
	}))
	defer m.close()
	look := func() (Status, []problem.Problem) {
		t.Helper()
		m.Follow(cfg)
		require.NoError(t, box.Do(func() error { m.look(); return nil }))
		return m.Status().(Status), m.Problems()
	}
	served, wrong := look()
	assert.Equal(t, Status{"127.0.0.1:9586"}, served)
	require.Len(t, wrong, 1)
	assert.Equal(t, "10.1.20.1:9586: serve metrics: listen tcp 10.1.20.1:9586: bind: cannot assign requested address; "+
		"wait for the interface with this address, or change control.metrics", wrong[0].String())

	netnstest.Veth(t, box, "data0", pc, "data0")
	box.Run("ip", "addr", "add", "10.1.20.1/24", "dev", "data0")
	pc.Run("ip", "addr", "add", "10.1.20.10/24", "dev", "data0")
	box.Run("ip", "link", "set", "data0", "up")
	pc.Run("ip", "link", "set", "data0", "up")
	served, wrong = look()
	assert.Equal(t, Status{"127.0.0.1:9586", "10.1.20.1:9586"}, served)
	assert.Empty(t, wrong)
	assert.Equal(t, 2, strings.Count(box.Run("ss", "-Hltn"), "LISTEN"), "these two and no other")

	ask := func(ns *netnstest.NS, request string, from string, to netip.AddrPort) string {
		t.Helper()
		var answer []byte
		err := ns.Do(func() error {
			d := net.Dialer{Timeout: 10 * time.Second}
			if from != "" {
				d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
			}
			c, err := d.Dial("tcp", to.String())
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				return err
			}
			_, _ = io.WriteString(c, request) // who is not wanted may be cut off before it is written
			answer, _ = io.ReadAll(c)
			return nil
		})
		require.NoError(t, err)
		return string(answer)
	}
	const get = "GET /metrics HTTP/1.1\r\nHost: box\r\n\r\n"
	for _, a := range []string{ask(box, get, "", local), ask(box, get, "", inside), ask(pc, get, "", inside)} {
		assert.Contains(t, a, "200 OK")
		assert.Contains(t, a, "Connection: close")
		assert.Contains(t, a, `ringway_box_info{box="berlin"} 1`)
	}
	head := ask(pc, strings.Replace(get, "GET", "HEAD", 1), "", inside)
	assert.Contains(t, head, "200 OK")
	assert.NotContains(t, head, "ringway_")
	long := strings.Repeat("x", 64<<10)
	for request, status := range map[string]string{
		strings.Replace(get, "GET", "POST", 1):                          "405 Method Not Allowed",
		strings.Replace(get, "GET", "DELETE", 1):                        "405 Method Not Allowed",
		strings.Replace(get, "/metrics", "/", 1):                        "404 Not Found",
		strings.Replace(get, "/metrics", "/v1/stop", 1):                 "404 Not Found",
		strings.Replace(get, "/metrics", "/debug/pprof", 1):             "404 Not Found",
		"GET /metrics HTTP/1.1\r\nHost: box\r\nX: " + long + "\r\n\r\n": "431 Request Header Fields Too Large",
		"\x16\x03\x01\x00\x00\r\n\r\n":                                  "400 Bad Request",
	} {
		a := ask(pc, request, "", inside)
		assert.Contains(t, a, status, "%.40q", request)
		assert.NotContains(t, a, "ringway_")
	}

	// Without a ruleset the kernel gives the data network's address to everybody, from the WAN as well.
	pc.Run("ip", "link", "set", "data0", "down")
	pc.Run("ip", "route", "add", "10.1.20.1/32", "via", "198.51.100.2")
	assert.Empty(t, ask(pc, get, "198.51.100.1", inside), "a stranger is not answered a word")
	pc.Run("ip", "addr", "add", "10.2.10.5/32", "dev", "wan0")
	pc.Run("ip", "addr", "add", "10.2.20.5/32", "dev", "wan0")
	box.Run("ip", "route", "add", "10.2.0.0/16", "via", "198.51.100.1")
	assert.Empty(t, ask(pc, get, "10.2.10.5", inside), "nor a phone")
	assert.Contains(t, ask(pc, get, "10.2.20.5", inside), "200 OK", "but a site's data network")

	// Four idle connections delay a fifth, but not forever.
	var idle []net.Conn
	require.NoError(t, box.Do(func() error {
		for range maxConnections {
			c, err := net.Dial("tcp", local.String())
			if err != nil {
				return err
			}
			idle = append(idle, c)
		}
		return nil
	}))
	fifth := make(chan string)
	go func() { fifth <- ask(box, get, "", local) }()
	polltest.Require(t, func() bool {
		return strings.HasPrefix(box.Run("ss", "-Hltn", "src", local.String()), "LISTEN 1 ")
	}, 10*time.Second, 10*time.Millisecond, "one waits in the kernel")
	idle[0].Close()
	assert.Contains(t, <-fifth, "200 OK")
	for _, c := range idle[1:] {
		c.Close()
	}

	// A port that somebody has; an address that is not wanted any more.
	other := New(slog.New(slog.DiscardHandler), http.NotFoundHandler())
	other.Follow(cfg)
	require.NoError(t, box.Do(func() error { other.look(); return nil }))
	wrong = other.Problems()
	require.Len(t, wrong, 2)
	assert.Contains(t, wrong[0].String(), "address already in use; stop the program that uses the port")
	cfg.Control.Metrics = []netip.AddrPort{local}
	served, _ = look()
	assert.Equal(t, Status{"127.0.0.1:9586"}, served)
	cfg.Control.Metrics = nil
	served, wrong = look()
	assert.Empty(t, served)
	assert.Empty(t, wrong)
	assert.Empty(t, box.Run("ss", "-Hltn"), "off is off")
}

func TestServerRunsUntilItIsStopped(t *testing.T) {
	defer goleak.VerifyNone(t)
	m := New(slog.New(slog.DiscardHandler), http.NotFoundHandler())
	m.Follow(&config.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.NoError(t, m.Run(ctx, cancel), "it is ready, and ends when it is told to")
}
