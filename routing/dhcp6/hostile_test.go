package dhcp6_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/ipv6"

	"ringway/routing/dhcp6"
	"ringway/test/polltest"
)

// serve answers what clients send on up0 as a test wants.
func (s *link) serve(answers func(*dhcpv6.Message) [][]byte) {
	s.t.Helper()
	var conn net.PacketConn
	require.NoError(s.t, s.provider.Do(func() (err error) {
		if conn, err = (&net.ListenConfig{}).ListenPacket(context.Background(), "udp6", "[::]:547"); err != nil {
			return err
		}
		ifc, err := net.InterfaceByName("up0")
		if err != nil {
			return err
		}
		return ipv6.NewPacketConn(conn).JoinGroup(ifc, &net.UDPAddr{IP: net.ParseIP("ff02::1:2")})
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2000)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			m, err := dhcpv6.MessageFromBytes(b[:n])
			if err != nil {
				continue
			}
			for _, a := range answers(m) {
				_, _ = conn.WriteTo(a, from)
			}
		}
	}()
	s.t.Cleanup(func() { conn.Close(); <-done })
}

func server(n byte) dhcpv6.DUID {
	return &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, n}}
}

// answer is what a server says to a message: prefixes, each for some seconds.
func answer(m *dhcpv6.Message, from byte, seconds int, prefixes ...string) *dhcpv6.Message {
	kind := dhcpv6.MessageTypeReply
	if m.MessageType == dhcpv6.MessageTypeSolicit {
		kind = dhcpv6.MessageTypeAdvertise
	}
	a := &dhcpv6.Message{MessageType: kind, TransactionID: m.TransactionID}
	a.AddOption(dhcpv6.OptClientID(m.Options.ClientID()))
	a.AddOption(dhcpv6.OptServerID(server(from)))
	ia := &dhcpv6.OptIAPD{IaId: m.Options.OneIAPD().IaId}
	for _, p := range prefixes {
		_, n, err := net.ParseCIDR(p)
		if err != nil {
			panic(err)
		}
		life := time.Duration(seconds) * time.Second
		ia.Options.Add(&dhcpv6.OptIAPrefix{Prefix: n, PreferredLifetime: life, ValidLifetime: life})
	}
	a.AddOption(ia)
	return a
}

func status(m *dhcpv6.Message, from byte, code iana.StatusCode) *dhcpv6.Message {
	a := answer(m, from, 0)
	a.Options.OneIAPD().Options.Add(&dhcpv6.OptStatusCode{StatusCode: code})
	return a
}

func sends(all ...*dhcpv6.Message) (bytes [][]byte) {
	for _, m := range all {
		bytes = append(bytes, m.ToBytes())
	}
	return bytes
}

func hostile(t *testing.T) *link {
	t.Parallel()
	s := newLink(t)
	s.want.Address, s.second = false, 20*time.Millisecond
	return s
}

func first(l dhcp6.Lease) string {
	if len(l.Prefixes) == 0 {
		return ""
	}
	return l.Prefixes[0].Prefix.String()
}

func has(p string) func(dhcp6.Lease) bool { return func(l dhcp6.Lease) bool { return first(l) == p } }

// A server that delegates our own network has no chance against one that does not, whatever preference it claims; nor
// have garbage, messages for others, and answers by a server that was not asked.
func TestAHostileServerBesideAGoodOne(t *testing.T) {
	s := hostile(t)
	own := netip.MustParsePrefix("2001:db8:1::/48")
	s.refuse = func(p netip.Prefix) error {
		if own.Overlaps(p) {
			return fmt.Errorf("it overlaps %s", own)
		}
		return nil
	}
	var asked atomic.Bool
	s.serve(func(m *dhcpv6.Message) [][]byte {
		bad := answer(m, 1, 3600, "2001:db8:1:100::/56")
		other, late := answer(m, 1, 3600, "2001:db8:99::/56"), answer(m, 1, 3600, "2001:db8:98::/56")
		bad.AddOption(dhcpv6.OptPreference(255))
		other.UpdateOption(dhcpv6.OptClientID(server(9)))
		late.TransactionID[0]++
		all := sends(bad, other, late)
		all = append(all, []byte{byte(bad.MessageType)}, slices.Concat(bad.ToBytes(), []byte{0, 25, 0xff, 0xff}),
			make([]byte, 1400))
		if m.MessageType == dhcpv6.MessageTypeRequest {
			asked.Store(true)
			all = append(all, sends(answer(m, 1, 3600, "2001:db8:97::/56"))...)
			assert.Equal(t, server(2).ToBytes(), m.Options.ServerID().ToBytes())
		}
		return append(all, sends(answer(m, 2, 3600, "2001:db8:5600::/56"))...)
	})
	s.run()
	l := s.lease("of the good server", held)
	assert.Equal(t, "2001:db8:5600::/56", first(l))
	assert.True(t, asked.Load())
	s.note("refused the prefix 2001:db8:1:100::/56")
}

// NoBinding: the same server is asked for another prefix, and the old one is valid on, without being preferred.
func TestNoBinding(t *testing.T) {
	s := hostile(t)
	s.serve(func(m *dhcpv6.Message) [][]byte {
		switch m.MessageType {
		case dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
			return sends(status(m, 1, iana.StatusNoBinding))
		case dhcpv6.MessageTypeRequest:
			if len(m.Options.OneIAPD().Options.Prefixes()) > 0 && s.renewed.Add(1) > 1 {
				return sends(answer(m, 1, 3600, "2001:db8:7700::/56"))
			}
		}
		return sends(answer(m, 1, 2, "2001:db8:5600::/56"))
	})
	s.run()
	s.lease("first", has("2001:db8:5600::/56"))
	l := s.lease("second", has("2001:db8:7700::/56"))
	if assert.Len(t, l.Prefixes, 2) {
		old := l.Prefixes[1]
		assert.Equal(t, "2001:db8:5600::/56", old.Prefix.String())
		assert.Less(t, old.Preferred, l.Prefixes[0].Preferred)
	}
}

// A lifetime of 0 takes the prefix away at once; the client solicits again.
func TestLifetimeZero(t *testing.T) {
	s := hostile(t)
	s.serve(func(m *dhcpv6.Message) [][]byte {
		if m.MessageType == dhcpv6.MessageTypeRenew {
			return sends(answer(m, 1, 0, "2001:db8:5600::/56"))
		}
		if s.renewed.Load() > 0 {
			return sends(answer(m, 1, 3600, "2001:db8:7700::/56"))
		}
		return sends(answer(m, 1, 2, "2001:db8:5600::/56"))
	})
	s.run()
	s.lease("first", has("2001:db8:5600::/56"))
	s.lease("taken away", func(l dhcp6.Lease) bool { s.renewed.Store(1); return l.Empty() })
	s.lease("another", has("2001:db8:7700::/56"))
}

// Servers that grant nothing are said with their reason, and asked again, and so is one that wants other messages than
// multicast ones have.
func TestServersThatGrantNothing(t *testing.T) {
	s := hostile(t)
	s.serve(func(m *dhcpv6.Message) [][]byte {
		switch n := s.renewed.Add(1); {
		case n == 1:
			return sends(status(m, 1, iana.StatusNoPrefixAvail))
		case n < 4:
			a := answer(m, 1, 0)
			a.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusUseMulticast})
			return sends(a)
		case n < 6:
			return sends(status(m, 1, iana.StatusUnspecFail))
		}
		return sends(answer(m, 1, 3600, "2001:db8:5600::/56"))
	})
	s.run()
	s.note("NoPrefixAvail")
	s.lease("at last", has("2001:db8:5600::/56"))
}

// After a cable was plugged in, any server may confirm the prefix; where none does, it is held until its time.
func TestRecheck(t *testing.T) {
	s := hostile(t)
	var silent atomic.Bool
	s.serve(func(m *dhcpv6.Message) [][]byte {
		switch {
		case silent.Load():
			s.renewed.Add(1)
			return nil
		case m.MessageType == dhcpv6.MessageTypeRebind:
			assert.Nil(t, m.Options.ServerID())
			return sends(answer(m, 2, 7200, "2001:db8:5600::/56"))
		}
		return sends(answer(m, 1, 3600, "2001:db8:5600::/56"))
	})
	s.run()
	s.lease("first", held)
	s.client.Recheck()
	l := s.lease("rebound", func(l dhcp6.Lease) bool { return slices.Equal(l.Server, server(2).ToBytes()) })
	silent.Store(true)
	s.client.Recheck()
	polltest.Require(t, func() bool { return s.renewed.Load() > 2 }, 10*time.Second, 10*time.Millisecond)
	assert.Equal(t, l.Prefixes[0].Prefix, dhcp6.Last(s.dir+"/lease6.json", "wan0").Prefixes[0].Prefix)
}

// A lease is renewed at T1, by its server. While that is gone it is asked for from any, then over; the server that is
// back gives one again.
func TestAServerGoneAndBack(t *testing.T) {
	s := hostile(t)
	var gone atomic.Bool
	kinds := make(chan dhcpv6.MessageType, 1000)
	s.serve(func(m *dhcpv6.Message) [][]byte {
		kinds <- m.MessageType
		if gone.Load() {
			return nil
		}
		return sends(answer(m, 1, 2, "2001:db8:5600::/56"))
	})
	s.run()
	first := s.lease("prefix", held)
	s.lease("renewed", func(l dhcp6.Lease) bool { return held(l) && l.Prefixes[0].Valid > first.Prefixes[0].Valid })
	gone.Store(true)
	s.note("not renewed: no server answers")
	over := s.lease("over", func(l dhcp6.Lease) bool { return l.Empty() })
	assert.Empty(t, over.Server)
	gone.Store(false)
	s.lease("again", held)
	s.stop()

	seen := map[dhcpv6.MessageType]bool{}
	for len(kinds) > 0 {
		seen[<-kinds] = true
	}
	assert.Equal(t, map[dhcpv6.MessageType]bool{
		dhcpv6.MessageTypeSolicit: true, dhcpv6.MessageTypeRequest: true, dhcpv6.MessageTypeRenew: true,
		dhcpv6.MessageTypeRebind: true,
	}, seen)
}
