package dhcp_test

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/routing/dhcp"
	"ringway/test/dhcptest"
)

// answering is a server that f decides for.
func answering(f func(*dhcpv4.DHCPv4) []dhcptest.Answer) func(net.PacketConn) {
	return func(conn net.PacketConn) { dhcptest.Serve(conn, f) }
}

// reply grants an address by the server 198.51.100.1.
func reply(req *dhcpv4.DHCPv4, kind dhcpv4.MessageType, address string, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	return dhcptest.Reply(req, kind, address, "198.51.100.1", mods...)
}

var ip, kindOf = dhcptest.IP, dhcptest.KindOf

// ours refuses what is in the network 10.1.10.0/24, as the appliance does for its own.
func ours(l dhcp.Lease) error {
	if netip.MustParsePrefix("10.1.10.0/24").Overlaps(l.Address.Masked()) {
		return errors.New("it is ours")
	}
	return nil
}

// A lease in our own network is refused as an offer: it is never requested, and the client goes on asking until a
// server has a better one.
func TestAnOfferThatIsRefusedIsNotRequested(t *testing.T) {
	t.Parallel()
	s := newLink(t)
	s.refuse = ours
	var honest atomic.Bool
	var requested, declined atomic.Int32
	s.serve(answering(func(req *dhcpv4.DHCPv4) []dhcptest.Answer {
		switch req.MessageType() {
		case dhcpv4.MessageTypeDecline, dhcpv4.MessageTypeRelease:
			declined.Add(1)
			return nil
		case dhcpv4.MessageTypeRequest:
			if req.RequestedIPAddress().Equal(ip("10.1.10.5")) {
				requested.Add(1)
			}
		}
		answers := []dhcptest.Answer{{Message: reply(req, kindOf(req), "10.1.10.5")}}
		if honest.Load() {
			answers = append(answers, dhcptest.Answer{Message: reply(req, kindOf(req), "198.51.100.30")})
		}
		return answers
	}))
	s.run(time.Hour)

	s.noted("refused 10.1.10.5 by server 198.51.100.1: it is ours")
	assert.Empty(t, s.leases)
	assert.NotContains(t, s.box.Run("ip", "addr", "show", "dev", "wan0"), "inet ")
	honest.Store(true)
	assert.Equal(t, "198.51.100.30/24", s.next(30*time.Second).Address.String())
	s.noted("")
	assert.Zero(t, requested.Load())
	assert.Zero(t, declined.Load(), "nobody has the address, and it was never ours")
}

// An acknowledgement at a renewal that brings our own network leaves the lease as it is until it ends.
func TestARenewalThatIsRefusedLeavesTheLease(t *testing.T) {
	t.Parallel()
	s := newLink(t)
	s.refuse = ours
	var changed atomic.Bool
	s.serve(answering(func(req *dhcpv4.DHCPv4) []dhcptest.Answer {
		if changed.Load() && !req.ClientIPAddr.IsUnspecified() {
			return []dhcptest.Answer{{Message: reply(req, kindOf(req), "10.1.10.5")}}
		}
		return []dhcptest.Answer{{Message: reply(req, kindOf(req), "198.51.100.30")}}
	}))
	s.run(6 * time.Second)
	l := s.next(30 * time.Second)
	changed.Store(true)
	s.noted("not renewed: refused 10.1.10.5 by server 198.51.100.1: it is ours")
	assert.Contains(t, s.box.Run("ip", "addr", "show", "dev", "wan0"), l.Address.String())
	last := s.next(30 * time.Second)
	for !last.Lost { // a renewal may have been under way
		assert.Equal(t, l.Address, last.Address)
		last = s.next(30 * time.Second)
	}
	assert.WithinDuration(t, l.Expiry, time.Now(), 5*time.Second)
}

// A server broadcasts its DHCPNAK (RFC 2131, section 4.1), and another one may have taken over: the client hears it in
// RENEWING, gives the address up at once, and has another one soon.
func TestANakWhileRenewing(t *testing.T) {
	other := []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip("198.51.100.9")))}
	for name, c := range map[string]struct {
		mods    []dhcpv4.Modifier
		unicast bool
	}{
		"by broadcast":              {nil, false},
		"by another server":         {other, false},
		"by another, unicast":       {other, true},
		"without server identifier": {[]dhcpv4.Modifier{dhcpv4.WithoutOption(dhcpv4.OptionServerIdentifier)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newLink(t)
			address := "198.51.100.30"
			s.serve(answering(func(req *dhcpv4.DHCPv4) []dhcptest.Answer {
				if req.MessageType() == dhcpv4.MessageTypeRequest && !req.ClientIPAddr.IsUnspecified() {
					address = "198.51.100.31"
					return []dhcptest.Answer{{
						Message: reply(req, dhcpv4.MessageTypeNak, "0.0.0.0", c.mods...), Unicast: c.unicast,
					}}
				}
				return []dhcptest.Answer{{Message: reply(req, kindOf(req), address)}}
			}))
			s.run(8 * time.Second) // T1 after 4 s, T2 after 7
			l := s.next(30 * time.Second)
			require.Equal(t, "198.51.100.30/24", l.Address.String())

			lost := s.next(20 * time.Second)
			assert.True(t, lost.Lost)
			assert.Greater(t, time.Until(l.Expiry), 1500*time.Millisecond, "at T1 and not at T2")
			assert.Equal(t, "198.51.100.31/24", s.next(10*time.Second).Address.String())
		})
	}
}

// Where there are two servers, one may refuse what the other granted: the other one's answer counts.
func TestAnAcknowledgementBeatsAStrangersNak(t *testing.T) {
	t.Parallel()
	s := newLink(t)
	s.serve(answering(func(req *dhcpv4.DHCPv4) []dhcptest.Answer {
		if req.MessageType() == dhcpv4.MessageTypeRequest {
			stranger := reply(req, dhcpv4.MessageTypeNak, "0.0.0.0",
				dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip("198.51.100.9"))))
			if !req.ClientIPAddr.IsUnspecified() {
				return []dhcptest.Answer{{Message: stranger}, {Message: reply(req, dhcpv4.MessageTypeAck, "198.51.100.30")}}
			}
		}
		return []dhcptest.Answer{{Message: reply(req, kindOf(req), "198.51.100.30")}}
	}))
	s.run(4 * time.Second)
	for range 3 {
		l := s.next(30 * time.Second)
		assert.False(t, l.Lost)
		assert.Equal(t, "198.51.100.30/24", l.Address.String())
	}
}

// The server of a lease may have an address that leads elsewhere here, as a site's does. It is asked over the WAN, by
// unicast, from the address of the lease.
func TestAServerInASitesNetwork(t *testing.T) {
	t.Parallel()
	s := newLink(t)
	s.provider.Run("ip", "addr", "add", "10.2.10.67/32", "dev", "lo")
	s.box.Run("ip", "route", "add", "unreachable", "10.2.10.0/24")
	var mu sync.Mutex
	var renewals []string
	server := dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip("10.2.10.67")))
	s.serve(answering(func(req *dhcpv4.DHCPv4) []dhcptest.Answer {
		unicast := !req.ClientIPAddr.IsUnspecified()
		if unicast {
			mu.Lock()
			renewals = append(renewals, req.ClientIPAddr.String())
			mu.Unlock()
		}
		return []dhcptest.Answer{{Message: reply(req, kindOf(req), "198.51.100.30", server), Unicast: unicast}}
	}))
	s.run(4 * time.Second)
	l := s.next(30 * time.Second)
	assert.Equal(t, "10.2.10.67", l.Server.String())
	again := s.next(10 * time.Second)
	assert.False(t, again.Lost)
	assert.Less(t, again.Expiry.Sub(l.Expiry), 3500*time.Millisecond, "at T1, before T2")
	mu.Lock()
	defer mu.Unlock()
	assert.Equal(t, []string{"198.51.100.30"}, renewals)
}

// What is wrong with an answer is said.
func TestReasonsAreSaid(t *testing.T) {
	for name, c := range map[string]struct {
		mod  dhcpv4.Modifier
		note string
	}{
		"no server identifier": {dhcpv4.WithoutOption(dhcpv4.OptionServerIdentifier), "no server identifier (option 54)"},
		"no lease time":        {dhcpv4.WithoutOption(dhcpv4.OptionIPAddressLeaseTime), "no lease time (option 51)"},
		"no answer":            {nil, "no server answers"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newLink(t)
			s.serve(answering(func(req *dhcpv4.DHCPv4) []dhcptest.Answer {
				if c.mod == nil {
					return nil
				}
				return []dhcptest.Answer{{Message: reply(req, kindOf(req), "198.51.100.30", c.mod)}}
			}))
			s.run(time.Hour)
			s.noted(c.note)
			assert.Empty(t, s.leases)
		})
	}
}

// A provider that wants options gets them with every message, and one that is not asked for them none.
func TestOptionsOfTheProvider(t *testing.T) {
	t.Parallel()
	s := newLink(t)
	s.options = []dhcp.Option{
		{Code: 60, Value: []byte("modem")}, {Code: 61, Value: []byte{1, 0xa4, 0xff}}, {Code: 77, Value: []byte("\x05modem")},
		{Code: 90, Value: bytes.Repeat([]byte{7}, 70)},
	}
	var mu sync.Mutex
	kinds := map[string]int{}
	s.serve(answering(func(req *dhcpv4.DHCPv4) []dhcptest.Answer {
		for _, o := range s.options {
			if !bytes.Equal(req.Options.Get(dhcpv4.GenericOptionCode(o.Code)), o.Value) {
				return nil
			}
		}
		mu.Lock()
		defer mu.Unlock()
		kind := req.MessageType().String()
		if !req.ClientIPAddr.IsUnspecified() {
			kind = "renewal"
		}
		kinds[kind]++
		return []dhcptest.Answer{{Message: reply(req, kindOf(req), "198.51.100.30")}}
	}))
	s.run(4 * time.Second)
	s.next(30 * time.Second)
	s.next(30 * time.Second)
	mu.Lock()
	defer mu.Unlock()
	assert.Equal(t, map[string]int{"DISCOVER": 1, "REQUEST": 1, "renewal": 1}, kinds)
}

// A /32 with a gateway elsewhere is a lease like any other; one without a gateway says what it lacks.
func TestGateways(t *testing.T) {
	t.Parallel()
	s := newLink(t)
	s.serve(answering(func(req *dhcpv4.DHCPv4) []dhcptest.Answer {
		return []dhcptest.Answer{{Message: reply(req, kindOf(req), "203.0.113.7", dhcpv4.WithNetmask(net.CIDRMask(32, 32)))}}
	}))
	s.run(time.Hour)
	l := s.next(30 * time.Second)
	assert.Equal(t, "203.0.113.7/32 [198.51.100.1]", sprint(l.Address, l.Gateways))
	assert.Empty(t, l.Warning())
}

// Whoever waits for an answer asks at once when there is a carrier again.
func TestACarrierEndsTheWait(t *testing.T) {
	t.Parallel()
	s := newLink(t)
	s.timeout = time.Hour
	heard := make(chan struct{}, 100)
	var answers atomic.Bool
	s.serve(answering(func(req *dhcpv4.DHCPv4) []dhcptest.Answer {
		heard <- struct{}{}
		if !answers.Load() {
			return nil
		}
		return []dhcptest.Answer{{Message: reply(req, kindOf(req), "198.51.100.30")}}
	}))
	s.run(time.Hour)
	select {
	case <-heard:
	case <-time.After(20 * time.Second):
		t.Fatal("the client has not asked")
	}
	answers.Store(true)
	s.client.Recheck()
	assert.Equal(t, "198.51.100.30/24", s.next(20*time.Second).Address.String())
}
