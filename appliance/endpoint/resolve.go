package endpoint

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"ringway/routing/rawudp"
)

// Families are the address families that the WANs have.
type Families struct {
	IPv4, IPv6 bool
	// MaybeIPv6: a WAN with a lease may have IPv6 besides, by the kernel's autoconfiguration, which no config
	// mentions. It is used for a name that has no IPv4 address.
	MaybeIPv6 bool
}

type lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)

// Server is a name server that a WAN's network named.
type Server struct {
	Address netip.Addr
	By      rawudp.Options // of that WAN
}

// serverPatience is how long one server is waited for, so that the next one's turn comes within a look-up.
const serverPatience = 2 * time.Second

// lookupAt asks the given name servers in turn, or the system's if there are none.
func lookupAt(servers []Server) lookup {
	if len(servers) == 0 {
		return (&net.Resolver{StrictErrors: true}).LookupNetIP
	}
	return resolver(len(servers), func(ctx context.Context, n int, network string) (net.Conn, error) {
		return servers[n].dial(ctx, network)
	}).LookupNetIP
}

// resolver asks n servers in turn. Where the answer about one family is missing there is no answer (StrictErrors): half
// of one would have a tunnel that works go over to the other family. The questions about the two families are asked at
// the same time, so that two follow each other to each server: else one of them would get a dead server each time.
func resolver(n int, dial func(ctx context.Context, n int, network string) (net.Conn, error)) *net.Resolver {
	var turn atomic.Uint32
	return &net.Resolver{
		PreferGo: true, StrictErrors: true,
		Dial: func(ctx context.Context, network, _ string) (c net.Conn, err error) {
			first := int(turn.Add(1)-1) / 2
			for i := range n {
				if c, err = dial(ctx, (first+i)%n, network); err == nil {
					return c, nil
				}
			}
			// Without this type the resolver does not take it for an answer that is missing.
			return nil, &net.OpError{Op: "dial", Net: network, Err: err}
		},
	}
}

// dial asks the server over its own WAN: its address is that network's choice, and may be a site's here. An answer
// that is too long for a datagram is asked for over TCP, along the routes that there are.
func (s Server) dial(ctx context.Context, network string) (net.Conn, error) {
	to := netip.AddrPortFrom(s.Address, 53)
	if strings.HasPrefix(network, "udp") {
		c, err := rawudp.Dial(ctx, s.By, to)
		if err != nil {
			return nil, err
		}
		return patient{c}, nil
	}
	var d net.Dialer
	return d.DialContext(ctx, network, to.String())
}

// patient is a connection to a server that is not waited for longer than serverPatience.
type patient struct{ *rawudp.Conn }

func (p patient) SetDeadline(t time.Time) error {
	if end := time.Now().Add(serverPatience); t.IsZero() || t.After(end) {
		t = end
	}
	return p.Conn.SetDeadline(t)
}

// resolve returns the address of host: host itself if it is one, otherwise one of a family that a WAN has,
// IPv4 before IPv6 (its header is 20 bytes shorter, which a voice packet feels). Of several addresses the one
// in use stays, whatever order a server gives them in; if the peer is silent there, it is the next one's
// turn.
func (f Families) resolve(
	ctx context.Context, look lookup, host string, inUse netip.Addr, silent bool,
) (netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Unmap(), nil
	}

	addrs, err := look(ctx, "ip", host)
	if err != nil {
		return netip.Addr{}, err
	}
	usable := f.usable(addrs)
	if len(usable) == 0 {
		return netip.Addr{}, &net.DNSError{Err: "no address of a family that the WAN has", Name: host}
	}

	at := slices.Index(usable, inUse)
	if at >= 0 && silent {
		at = (at + 1) % len(usable)
	}
	return usable[max(at, 0)], nil
}

func (f Families) usable(addrs []netip.Addr) []netip.Addr {
	var v4, v6 []netip.Addr
	for _, a := range addrs {
		switch a = a.Unmap(); {
		case a.Is4() && f.IPv4:
			v4 = append(v4, a)
		case a.Is6() && (f.IPv6 || f.MaybeIPv6):
			v6 = append(v6, a)
		}
	}
	slices.SortFunc(v4, netip.Addr.Compare)
	slices.SortFunc(v6, netip.Addr.Compare)

	if f.IPv6 || len(v4) == 0 {
		return append(v4, v6...)
	}
	return v4
}
