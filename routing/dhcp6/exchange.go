package dhcp6

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/sys/unix"

	"ringway/boottime"
)

// timing is how often a message is sent again, in seconds (RFC 8415, section 15).
type timing struct {
	initial, longest int
	count            int // of messages; 0: any number
	duration         int // of the whole exchange; 0: any
}

// UDP ports and the group of all servers and relays (RFC 8415, sections 7.1 and 7.2).
const (
	clientPort = 546
	serverPort = 547
)

var allServers = netip.MustParseAddr("ff02::1:2")

const maxMessage = 1500 // a message is not fragmented; what is longer is cut off, and is not valid then

var errNoAnswer = errors.New("no server answers")

// ask sends a message until an answer counts. until, if set, ends it. It returns the last reason for which an answer
// did not count where that is known.
func (c *Client) ask(
	ctx context.Context, kind dhcpv6.MessageType, t timing, l Lease, until time.Time,
) (granted, error) {
	ifc, local, err := linkLocal(c.Interface)
	if err != nil {
		return granted{}, err
	}
	conn, err := listen(ifc, local)
	if err != nil {
		return granted{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	xid, err := dhcpv6.GenerateTransactionID()
	if err != nil {
		return granted{}, err
	}
	if t.duration > 0 {
		end := time.Now().Add(time.Duration(t.duration) * c.second())
		if until.IsZero() || end.Before(until) {
			until = end
		}
	}
	x := exchange{c: c, kind: kind, xid: xid, lease: l, conn: conn, began: time.Now(), until: until}
	to := net.UDPAddr{IP: allServers.AsSlice(), Port: serverPort, Zone: ifc.Name}
	if kind == dhcpv6.MessageTypeSolicit { // section 18.2.1: many clients start after a power cut
		c.waitOrRecheck(ctx, rand.N(c.second()))
	}
	wait := time.Duration(0)
	for n := 1; ctx.Err() == nil; n++ {
		wait = x.next(wait, t)
		if _, err := conn.WriteTo(x.message().ToBytes(), &to); err != nil {
			return granted{}, fmt.Errorf("send %s: %w", kind, err)
		}
		if g, ok := x.read(ctx, wait); ok {
			return g, nil
		}
		if t.count > 0 && n >= t.count || !until.IsZero() && !time.Now().Before(until) {
			break
		}
		if n == 2 && kind == dhcpv6.MessageTypeSolicit { // said once it is no accident
			c.note(cmp.Or(x.refused, errNoAnswer).Error())
		}
	}
	return granted{}, cmp.Or(x.refused, ctx.Err(), errNoAnswer)
}

// exchange is one message, its repetitions and the answers.
type exchange struct {
	c       *Client
	kind    dhcpv6.MessageType
	xid     dhcpv6.TransactionID
	lease   Lease
	conn    *net.UDPConn
	began   time.Time
	until   time.Time
	refused error
	offers  []granted // advertisements, until the first pause is over
	waited  bool      // the first pause is over
}

// next is the pause after a message: doubled each time, with a tenth of jitter (RFC 8415, section 15).
func (x *exchange) next(last time.Duration, t timing) time.Duration {
	jitter := func(d time.Duration) time.Duration { return rand.N(d/5+1) - d/10 }
	second := x.c.second()
	d := time.Duration(t.initial) * second
	switch {
	case last > 0:
		d = 2*last + jitter(last)
	case x.kind == dhcpv6.MessageTypeSolicit: // section 18.2.1: longer than the initial one
		return d + rand.N(d/10+1)
	default:
		return d + jitter(d)
	}
	if longest := time.Duration(t.longest) * second; t.longest > 0 && d > longest {
		d = longest + jitter(longest)
	}
	return d
}

// read takes answers for a while. It reports whether one counts.
func (x *exchange) read(ctx context.Context, wait time.Duration) (granted, bool) {
	end := time.Now().Add(wait)
	if !x.until.IsZero() && x.until.Before(end) {
		end = x.until
	}
	b := make([]byte, maxMessage)
	for ctx.Err() == nil {
		if err := x.conn.SetReadDeadline(end); err != nil || ctx.Err() != nil {
			break
		}
		n, from, err := x.conn.ReadFromUDPAddrPort(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil { // the interface went away, or an ICMP error came
			select {
			case <-ctx.Done():
			case <-time.After(min(x.c.second()/10, time.Until(end))):
			}
			if time.Now().Before(end) {
				continue
			}
			break
		}
		if !from.Addr().IsLinkLocalUnicast() {
			continue
		}
		if g, ok := x.take(b[:n]); ok {
			return g, true
		}
	}
	x.waited = true
	return x.best()
}

// take looks at one answer. It reports whether nothing better is waited for.
func (x *exchange) take(b []byte) (granted, bool) {
	m, err := dhcpv6.MessageFromBytes(b)
	if err != nil || m.TransactionID != x.xid {
		return granted{}, false
	}
	wanted := dhcpv6.MessageTypeReply
	if x.kind == dhcpv6.MessageTypeSolicit {
		wanted = dhcpv6.MessageTypeAdvertise
	}
	if m.MessageType != wanted {
		return granted{}, false
	}
	g, err := x.c.reader().read(m, boottime.Now())
	if errors.Is(err, errNotForUs) {
		return granted{}, false
	}
	if x.kind == dhcpv6.MessageTypeRelease { // whatever it says, the lease is released (section 18.2.10.2)
		return g, true
	}
	toServer := x.kind == dhcpv6.MessageTypeRequest || x.kind == dhcpv6.MessageTypeRenew
	if err == nil && toServer && !bytes.Equal(g.server, x.lease.Server) {
		return granted{}, false
	}
	if err == nil && !x.counts(g) {
		err = cmp.Or(errors.Join(g.refusals...), errors.New("the server grants nothing"))
	}
	if err != nil {
		x.refused = err
		if g.solMaxRT > 0 { // also of a server that grants nothing (section 18.2.9)
			x.c.solMaxRT = g.solMaxRT
		}
		x.c.noteRefusal(err)
		return granted{}, false
	}
	if x.kind != dhcpv6.MessageTypeSolicit || g.preference == 255 || x.waited {
		return g, true
	}
	if len(x.offers) < maxOffers {
		x.offers = append(x.offers, g)
	}
	return granted{}, false
}

const maxOffers = 8

// counts reports whether an answer decides something.
func (x *exchange) counts(g granted) bool {
	switch x.kind {
	case dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		takesAway := len(g.prefixes)+len(g.addresses) > 0
		return g.noBinding || takesAway
	}
	return !g.empty()
}

// best is the best of the advertisements so far.
func (x *exchange) best() (best granted, ok bool) {
	for _, g := range x.offers {
		if !ok || g.score() > best.score() {
			best, ok = g, true
		}
	}
	return best, ok
}

// message is what is sent, with the time since the first one.
func (x *exchange) message() *dhcpv6.Message {
	c := x.c
	m := &dhcpv6.Message{MessageType: x.kind, TransactionID: x.xid}
	m.AddOption(dhcpv6.OptClientID(c.DUID))
	switch x.kind {
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease:
		m.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionServerID, OptionData: x.lease.Server})
	}
	m.AddOption(dhcpv6.OptElapsedTime(min(time.Since(x.began), 0xffff*10*time.Millisecond)))
	if x.kind != dhcpv6.MessageTypeRelease {
		m.AddOption(dhcpv6.OptRequestedOption(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionSolMaxRT))
	}

	iaid := iaidOf(c.Interface)
	if c.Want.Address && (x.kind != dhcpv6.MessageTypeRelease || len(x.lease.Addresses) > 0) {
		ia := &dhcpv6.OptIANA{IaId: iaid}
		for _, a := range x.lease.Addresses {
			ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.Address.AsSlice()})
		}
		m.AddOption(ia)
	}
	if c.Want.PrefixBits > 0 && (x.kind != dhcpv6.MessageTypeRelease || len(x.lease.Prefixes) > 0) {
		m.AddOption(x.delegation(iaid))
	}
	return m
}

// delegation names the prefixes that are held, or wanted: without any, the length alone (RFC 8168, section 3.1).
func (x *exchange) delegation(iaid [4]byte) *dhcpv6.OptIAPD {
	ia := &dhcpv6.OptIAPD{IaId: iaid}
	for _, p := range x.lease.Prefixes {
		ia.Options.Add(&dhcpv6.OptIAPrefix{Prefix: &net.IPNet{
			IP: p.Prefix.Addr().AsSlice(), Mask: net.CIDRMask(p.Prefix.Bits(), 128),
		}})
	}
	if len(x.lease.Prefixes) == 0 && x.kind != dhcpv6.MessageTypeRelease {
		ia.Options.Add(&dhcpv6.OptIAPrefix{Prefix: &net.IPNet{
			IP: net.IPv6unspecified, Mask: net.CIDRMask(x.c.Want.PrefixBits, 128),
		}})
	}
	return ia
}

func (c *Client) reader() reader {
	return reader{
		client: c.DUID, iaid: iaidOf(c.Interface), want: c.Want, refuse: c.Refuse, refuseAddress: c.RefuseAddress,
	}
}

// listen opens the socket of one exchange.
func listen(ifc *net.Interface, local netip.Addr) (*net.UDPConn, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a DHCPv6 socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "dhcp6")
	defer f.Close() // FilePacketConn duplicates the descriptor
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
		unix.BindToDevice(fd, ifc.Name),
		// Another client may listen here already: DHCPv6 of a network manager has the address ::.
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, ifc.Index),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare a DHCPv6 socket on %s: %w", ifc.Name, err)
	}
	at := &unix.SockaddrInet6{Port: clientPort, Addr: local.As16(), ZoneId: uint32(ifc.Index)}
	if err := unix.Bind(fd, at); err != nil {
		if errors.Is(err, unix.EADDRNOTAVAIL) { // the address is being checked for a duplicate
			err = fmt.Errorf("%w (%w)", err, errNotReady)
		}
		return nil, fmt.Errorf("listen on %s port %d: %w", local, clientPort, err)
	}
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}
