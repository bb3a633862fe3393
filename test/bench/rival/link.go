package rival

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ringway/test/lab/host"
	"ringway/tunnel"
	"ringway/tunnel/plane"
)

// Link is one WireGuard tunnel whose ends may differ and can be made to go through what a tunnel goes through
// in weeks: re-keys, restarts, new addresses. Its ends are numbered: 0 is a's, 1 is b's.
type Link struct {
	*Tunnel
	spec spec
	keys [2]tunnel.PrivateKey
	ends [2]LinkEnd
	at   [2]netip.Addr // each edge's present address on the WAN
	next [2]int        // last octet of its next one
}

// LinkEnd is what runs at one end.
type LinkEnd struct {
	Kind   Kind   // Ringway or WireGuardGo
	Engine string // of Ringway's plane
}

func (e LinkEnd) String() string {
	if e.Kind == Ringway {
		return "ringway plane, engine " + e.Engine
	}
	return "stock wireguard-go"
}

// Connect brings a link up.
func Connect(ctx context.Context, a, b Edge, n Networks, p Programs, ends [2]LinkEnd) (*Link, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, upTime, fmt.Errorf("not up after %s", upTime))
	defer cancel()
	w := spec{kind: Ringway, a: a, b: b, nets: n, port: 51820, device: "tun-0", programs: p}
	l := &Link{spec: w, ends: ends, next: [2]int{firstAddress, firstAddress + 100}}
	l.Tunnel = &Tunnel{
		Kind:    Ringway,
		Program: ends[0].String() + " – " + ends[1].String(),
		device:  w.device,
		port:    w.port,
	}
	var err error
	if l.keys, err = w.keys(); err != nil {
		return nil, err
	}
	for i, e := range w.ends() {
		if l.at[i], err = netip.ParseAddr(e.near.WAN); err != nil {
			return nil, err
		}
	}
	for i := range ends {
		p, err := l.start(ctx, i)
		if err != nil {
			return nil, fmt.Errorf("bring up the link: %w", err)
		}
		l.processes = append(l.processes, p)
	}
	return l, nil
}

// firstAddress is the last octet of the first address that a's edge roams to; b's are a hundred above.
const firstAddress = 11

// start runs the program of one end.
func (l *Link) start(ctx context.Context, i int) (*host.Process, error) {
	w := l.spec
	w.a.WAN, w.b.WAN = l.at[0].String(), l.at[1].String()
	w.kind, w.engine = l.ends[i].Kind, l.ends[i].Engine
	e := w.ends()[i]
	if w.kind == WireGuardGo {
		return w.wireguardGoEnd(ctx, e, l.keys[i], l.keys[1-i].Public())
	}
	return w.ringwayEnd(ctx, e, l.keys[i], l.keys[1-i].Public())
}

func (l *Link) host(i int) *host.Host { return l.spec.ends()[i].near.Host }

// Handshaken is when one end's current session was established.
func (l *Link) Handshaken(i int) (time.Time, error) {
	text, err := l.uapi(l.host(i), "get=1\n\n")
	if err != nil {
		return time.Time{}, err
	}
	sec, err := field(text, "last_handshake_time_sec")
	if err != nil {
		return time.Time{}, err
	}
	nsec, err := field(text, "last_handshake_time_nsec")
	return time.Unix(int64(sec), int64(nsec)), err
}

// Rekey has one end start a new session now, and waits until that end has it. asked is the time of the
// request: the protocol lets an end start one in five seconds, and an end that started one itself a moment
// ago is asked again.
func (l *Link) Rekey(ctx context.Context, i int) (asked time.Time, err error) {
	before, err := l.Handshaken(i)
	if err != nil {
		return asked, err
	}
	err = l.wait(ctx, rekeyTime, fmt.Sprintf("%s has no new session", l.host(i).Name), func() (bool, error) {
		now, err := l.Handshaken(i)
		switch {
		case err != nil:
			return false, err
		case now.After(before) && !asked.IsZero():
			return true, nil
		case now.After(before): // started by the other end
			before = now
		}
		switch {
		case time.Since(asked) < askAgain:
		case l.ends[i].Kind == Ringway:
			asked = time.Now()
			err = plane.Handshake(ctx, l.host(i).Path("/run/ringway/planes"), tunnel.Voice)
		case asked.IsZero():
			asked = time.Now()
			err = l.expire(i)
		}
		return false, err
	})
	return asked, err
}

// expire makes stock wireguard-go start a handshake with its next packet. It has no command for that; but
// when its own key changes, to another and back at once, it stops sending in its sessions (it still receives
// in them), and queues packets for the next one.
func (l *Link) expire(i int) error {
	other, err := tunnel.NewPrivateKey()
	if err != nil {
		return err
	}
	_, err = l.uapi(l.host(i), "set=1\nprivate_key="+other.Hex()+"\nprivate_key="+l.keys[i].Hex()+"\n\n")
	return err
}

// Time limits.
const (
	rekeyTime   = 15 * time.Second // more than the protocol's five, also on a busy machine
	askAgain    = 200 * time.Millisecond
	restartTime = 20 * time.Second
	roamTime    = 20 * time.Second
	look        = 5 * time.Millisecond
)

// wait polls until done returns true.
func (l *Link) wait(ctx context.Context, limit time.Duration, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s after %s", what, limit))
	defer cancel()
	for {
		ok, err := done()
		if ok && err == nil {
			return nil
		}
		if cause := host.Pause(ctx, look); cause != nil {
			return errors.Join(cause, err)
		}
	}
}

// Restart kills the program at one end and waits until its replacement has completed a handshake: Ringway's
// plane is restarted by its supervisor, stock wireguard-go by this function.
func (l *Link) Restart(ctx context.Context, i int) error {
	before := time.Now()
	if l.ends[i].Kind == Ringway {
		pids, err := WithChildren(l.processes[i].PID())
		if err != nil {
			return err
		}
		if len(pids) != 2 {
			return fmt.Errorf(
				"restart the plane on %s: found %d processes, expected a supervisor and a plane",
				l.host(i).Name,
				len(pids),
			)
		}
		if err := unix.Kill(pids[1], unix.SIGKILL); err != nil {
			return fmt.Errorf("kill the plane on %s: %w", l.host(i).Name, err)
		}
	} else {
		l.processes[i].Signal(unix.SIGKILL)
		limit, cancel := context.WithTimeout(ctx, restartTime)
		_ = l.processes[i].Wait(limit) // its exit is expected
		cancel()
		_ = os.Remove(l.host(i).Path("/run/wireguard/" + l.device + ".sock"))
		p, err := l.start(ctx, i)
		if err != nil {
			return err
		}
		l.processes[i] = p
	}
	return l.wait(
		ctx,
		restartTime,
		fmt.Sprintf("no session with the restarted %s", l.host(i).Name),
		func() (bool, error) {
			now, err := l.Handshaken(i)
			return now.After(before), err
		},
	)
}

// hears reports whether the far end of i sends to i's current address.
func (l *Link) hears(i int) (bool, error) {
	text, err := l.uapi(l.host(1-i), "get=1\n\n")
	if err != nil {
		return false, err
	}
	want := "endpoint=" + netip.AddrPortFrom(l.at[i], uint16(l.port)).String()
	return slices.Contains(strings.Split(text, "\n"), want), nil
}

// Roam moves one end to another address while the old one still receives, as a provider's NAT or a second
// uplink does: from one moment on its packets come from the new address. Once the far end sends there, the
// old address is removed. moved is called at that moment.
func (l *Link) Roam(ctx context.Context, i int, moved func()) error {
	h, old := l.host(i), l.at[i]
	if err := l.advance(ctx, i, "addr add %s dev wan0"); err != nil {
		return err
	}
	// The engine is not told: its packets are rewritten on their way out.
	family := "ip"
	if old.Is6() {
		family = "ip6"
	}
	rules := fmt.Sprintf(
		"add table %[1]s bench-roam\nadd chain %[1]s bench-roam out { type filter hook postrouting priority 0; }\n"+
			"add rule %[1]s bench-roam out oifname \"wan0\" udp sport %[2]d %[1]s saddr set %[3]s\n",
		family,
		l.port,
		l.at[i],
	)
	moved()
	if _, err := h.RunInput(ctx, rules, "nft", "-f", "-"); err != nil {
		return fmt.Errorf("move %s to %s: %w", h.Name, l.at[i], err)
	}
	if err := l.wait(ctx, roamTime, fmt.Sprintf("the far end of %s does not send to %s", h.Name, l.at[i]),
		func() (bool, error) { return l.hears(i) }); err != nil {
		return err
	}
	// Packets to the old address are still in flight, and the near engine learns its new address from
	// incoming packets.
	if err := host.Pause(ctx, overlap); err != nil {
		return err
	}
	if err := h.IP(ctx, nil, "addr flush dev wan0 to "+old.String()); err != nil {
		return err
	}
	_, err := h.Run(ctx, "nft", "delete", "table", family, "bench-roam")
	return err
}

const overlap = 500 * time.Millisecond

// Readdress replaces one end's address at once. Packets that the far end sends to the old address until it
// hears from the new one are lost with any tunnel. moved is called just before.
func (l *Link) Readdress(ctx context.Context, i int, moved func()) error {
	old := l.at[i]
	moved()
	if err := l.advance(ctx, i, "addr add %s dev wan0", "addr flush dev wan0 to "+old.String()); err != nil {
		return err
	}
	return l.wait(
		ctx,
		roamTime,
		fmt.Sprintf("the far end of %s does not send to %s", l.host(i).Name, l.at[i]),
		func() (bool, error) { return l.hears(i) },
	)
}

// advance switches an edge to its next address; add is the line of ip(8) that adds it, followed by others.
// The address has no network of its own (Route): when the first address of a network is removed, the kernel
// removes the routes of the second for a moment, and packets that arrive then would be lost to the testbed,
// not to the tunnel.
func (l *Link) advance(ctx context.Context, i int, add string, then ...string) error {
	b := l.at[i].AsSlice()
	b[len(b)-1] = byte(l.next[i])
	l.next[i]++
	l.at[i], _ = netip.AddrFromSlice(b)
	alone := netip.PrefixFrom(l.at[i], l.at[i].BitLen()).String()
	if l.at[i].Is6() {
		alone += " nodad"
	}
	if err := l.host(i).IP(ctx, nil, append([]string{fmt.Sprintf(add, alone)}, then...)...); err != nil {
		return err
	}
	if l.at[i].Is4() {
		return nil
	}

	// A busy kernel joins the address's multicast group some time later. Until then nobody finds the address, and
	// asks again only after a second (RFC 4861, section 7.2.2): what is lost by that is not lost by a tunnel.
	b = l.at[i].AsSlice()
	group := netip.AddrFrom16([16]byte{0xff, 0x02, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]}).String()
	return l.wait(ctx, roamTime, "the group "+group+" is not joined on "+l.host(i).Name, func() (bool, error) {
		groups, err := l.host(i).Run(ctx, "ip", "-6", "maddress", "show", "dev", "wan0")
		return strings.Contains(groups, group), err
	})
}

// Route gives the edges a route to their network that survives the removal of an address.
func (l *Link) Route(ctx context.Context) error {
	for i := range l.ends {
		bits := 24
		if l.at[i].Is6() {
			bits = 64
		}
		if err := l.host(i).IP(ctx, nil, fmt.Sprintf("route add %s dev wan0 metric 1", netip.PrefixFrom(
			l.at[i], bits).Masked())); err != nil {
			return err
		}
	}
	return nil
}
