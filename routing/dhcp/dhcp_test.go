package dhcp_test

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"ringway/routing/dhcp"
	"ringway/test/dhcptest"
	"ringway/test/netnstest"
)

// box wan0 --- up0 provider (198.51.100.1, dnsmasq or the test's own server)
type link struct {
	t             *testing.T
	box, provider *netnstest.NS
	dir           string
	leases        chan dhcp.Lease
	notes         chan string
	refuse        func(dhcp.Lease) error
	options       []dhcp.Option
	timeout       time.Duration // 0: a short one
	client        *dhcp.Client
	stop          func()
}

func newLink(t *testing.T) *link {
	s := &link{t: t, box: netnstest.New(t), provider: netnstest.New(t), dir: t.TempDir()}
	netnstest.Veth(t, s.provider, "up0", s.box, "wan0")
	s.provider.Run("ip", "addr", "add", "198.51.100.1/24", "dev", "up0")
	return s
}

func (s *link) dnsmasq() (stop func()) {
	s.t.Helper()
	cmd := s.provider.Command("dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--user=root", "--port=0", "--pid-file=",
		"--interface=up0", "--dhcp-authoritative", "--dhcp-leasefile="+filepath.Join(s.dir, "dnsmasq.leases"), "--no-ping",
		"--dhcp-range=198.51.100.10,198.51.100.20,255.255.255.0,2m",
		"--dhcp-option=option:router,198.51.100.1", "--dhcp-option=option:dns-server,198.51.100.53")
	require.NoError(s.t, cmd.Start())
	stop = func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	s.t.Cleanup(stop)
	return stop
}

// run starts the client and, as the appliance does, puts the reported address on the interface.
func (s *link) run(maxHold time.Duration) {
	s.leases, s.notes = make(chan dhcp.Lease, 1000), make(chan string, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(s.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	c := &dhcp.Client{
		Interface: "wan0", File: filepath.Join(s.dir, "lease.json"),
		Timeout: cmp.Or(s.timeout, 200*time.Millisecond),
		MaxHold: maxHold, Log: log, Refuse: s.refuse, Options: s.options,
		Note: func(text string) { s.notes <- text },
		Report: func(l dhcp.Lease) {
			if l.Lost {
				_, _ = s.box.Try("ip", "addr", "flush", "dev", "wan0")
			} else {
				_, _ = s.box.Try("ip", "addr", "replace", l.Address.String(), "dev", "wan0")
			}
			s.leases <- l
		},
	}
	s.client = c
	go func() { done <- s.box.Do(func() error { return c.Run(ctx) }) }()
	s.stop = func() {
		cancel()
		if done != nil {
			require.NoError(s.t, <-done)
			done = nil
		}
	}
	s.t.Cleanup(s.stop)
}

func (s *link) next(within time.Duration) dhcp.Lease {
	s.t.Helper()
	select {
	case l := <-s.leases:
		return l
	case <-time.After(within):
		s.t.Fatal("nothing was reported")
		return dhcp.Lease{}
	}
}

// noted waits for a note that holds the text.
func (s *link) noted(text string) {
	s.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		select {
		case n := <-s.notes:
			if strings.Contains(n, text) {
				return
			}
			s.t.Logf("noted: %s", n)
		case <-deadline:
			s.t.Fatalf("%q was not noted", text)
		}
	}
}

func TestLease(t *testing.T) {
	if _, err := exec.LookPath("dnsmasq"); err != nil {
		t.Fatal("this test needs dnsmasq (package dnsmasq-base)")
	}
	s := newLink(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	server := s.dnsmasq()
	s.run(4 * time.Second)

	l := s.next(20 * time.Second)
	assert.True(t, netip.MustParsePrefix("198.51.100.0/24").Contains(l.Address.Addr()), l.Address)
	assert.Equal(t, 24, l.Address.Bits())
	assert.Equal(t, "[198.51.100.1] [198.51.100.53] 198.51.100.1", sprint(l.Gateways, l.DNS, l.Server))
	assert.WithinDuration(t, time.Now().Add(4*time.Second), l.Expiry, time.Second)

	again := s.next(10 * time.Second) // renewed at T1, by unicast
	assert.Equal(t, l.Address, again.Address)
	assert.True(t, again.Expiry.After(l.Expiry))
	assert.False(t, again.Lost)

	server()
	for l = s.next(20 * time.Second); !l.Lost; l = s.next(20 * time.Second) {
		assert.Equal(t, again.Address, l.Address) // a renewal may have been under way
	}
	assert.Equal(t, dhcp.Lease{Interface: "wan0", Lost: true}, l)
	assert.NotContains(t, s.box.Run("ip", "addr", "show", "dev", "wan0"), "inet 198")

	s.dnsmasq()
	l = s.next(20 * time.Second)
	assert.Equal(t, again.Address, l.Address, "the server knows the client")
	s.stop()

	// The daemon starts again: it goes on with the lease at once, before any server has answered.
	held, ok := dhcp.LastLease(filepath.Join(s.dir, "lease.json"), "wan0")
	require.True(t, ok)
	assert.Equal(t, l.Address, held.Address)
	_, ok = dhcp.LastLease(filepath.Join(s.dir, "lease.json"), "wan1")
	assert.False(t, ok, "a lease of another interface")
	s.run(time.Hour)
	assert.Equal(t, l.Address, s.next(10*time.Second).Address)
	s.stop()

	// After a reboot the lease is only asked for again.
	b, err := os.ReadFile(filepath.Join(s.dir, "lease.json"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "lease.json"), replaceBoot(b), 0o600))
	_, ok = dhcp.LastLease(filepath.Join(s.dir, "lease.json"), "wan0")
	assert.False(t, ok)
	s.run(time.Hour)
	assert.Equal(t, l.Address, s.next(20*time.Second).Address)
	s.stop()
}

// A server first sends invalid answers of every kind, then valid ones, then refuses.
func TestWrongAnswers(t *testing.T) {
	s := newLink(t)
	s.serve(serve)

	s.run(4 * time.Second)
	l := s.next(30 * time.Second)
	assert.Equal(t, "198.51.100.30/24", l.Address.String())
	assert.Equal(t, "[198.51.100.254]", sprint(l.Gateways), "RFC 3442: classless routes replace the router option")
	assert.True(t, s.next(30*time.Second).Lost, "refused when it asked again")
	assert.Equal(t, "198.51.100.30/24", s.next(30*time.Second).Address.String(), "started again")
	s.client.Recheck() // the cable was pulled
	assert.Equal(t, "198.51.100.30/24", s.next(10*time.Second).Address.String(), "confirmed long before T1")
}

// serve runs a server of the test's own at the provider until the test ends.
func (s *link) serve(server func(net.PacketConn)) {
	s.t.Helper()
	var conn net.PacketConn
	require.NoError(s.t, s.provider.Do(func() (err error) { conn, err = dhcptest.Listen("up0"); return err }))
	done := make(chan struct{})
	go func() {
		defer close(done)
		server(conn)
	}()
	s.t.Cleanup(func() { conn.Close(); <-done })
}

func serve(conn net.PacketConn) {
	to := &net.UDPAddr{IP: net.IPv4bcast, Port: 68}
	good := func(req *dhcpv4.DHCPv4, kind dhcpv4.MessageType, mods ...dhcpv4.Modifier) []byte {
		server := net.IPv4(198, 51, 100, 1).To4()
		all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		route := &dhcpv4.Route{Dest: all, Router: net.IPv4(198, 51, 100, 254)}
		p, err := dhcpv4.NewReplyFromRequest(req, append([]dhcpv4.Modifier{
			dhcpv4.WithMessageType(kind),
			dhcpv4.WithYourIP(net.IPv4(198, 51, 100, 30)),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(server)),
			dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
			dhcpv4.WithLeaseTime(3600),
			dhcpv4.WithOption(dhcpv4.OptRouter(server)),
			dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(route)),
		}, mods...)...)
		if err != nil {
			panic(err)
		}
		return p.ToBytes()
	}
	b := make([]byte, 2000)
	discovers := 0
	for {
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		req, err := dhcpv4.FromBytes(b[:n])
		if err != nil {
			continue
		}
		var answers [][]byte
		switch {
		case req.MessageType() == dhcpv4.MessageTypeDiscover:
			discovers++
			offer := good(req, dhcpv4.MessageTypeOffer)
			truncated := append([]byte{}, offer[:len(offer)/2]...)
			endless := append(append([]byte{}, offer[:240]...), 53, 255, 2)
			answers = [][]byte{{}, {1, 2, 3}, truncated, endless, make([]byte, 1400),
				good(req, dhcpv4.MessageTypeOffer, dhcpv4.WithYourIP(net.IPv4(0, 0, 0, 0))),
				good(req, dhcpv4.MessageTypeOffer, dhcpv4.WithYourIP(net.IPv4(224, 0, 0, 1))),
				good(req, dhcpv4.MessageTypeOffer, dhcpv4.WithLeaseTime(0)),
				good(req, dhcpv4.MessageTypeOffer, dhcpv4.WithGeneric(dhcpv4.OptionSubnetMask, []byte{255, 0, 255, 0})),
				good(req, dhcpv4.MessageTypeOffer, dhcpv4.WithoutOption(dhcpv4.OptionServerIdentifier)),
				good(req, dhcpv4.MessageTypeAck),
			}
			if discovers > 2 {
				answers = append(answers, offer)
			}
		case req.ClientIPAddr.IsUnspecified():
			answers = [][]byte{good(req, dhcpv4.MessageTypeAck)}
		default:
			answers = [][]byte{good(req, dhcpv4.MessageTypeNak)}
			_, _ = conn.WriteTo(answers[0], from)
		}
		for _, a := range answers {
			_, _ = conn.WriteTo(a, to)
		}
	}
}

func sprint(v ...any) string { return strings.TrimSpace(fmt.Sprintln(v...)) }

// replaceBoot makes the file that of an earlier boot.
func replaceBoot(b []byte) []byte {
	return regexp.MustCompile(`"boot":"[^"]*"`).ReplaceAll(b, []byte(`"boot":"earlier"`))
}
