package tunnel

import (
	"bufio"
	"cmp"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// This file speaks WireGuard's cross-platform configuration protocol (UAPI,
// https://www.wireguard.com/xplatform/) as text. Listen port and fwmark are never part of
// a difference: the sockets belong to the daemon, an engine only borrows them.

// sessionLifetime is REJECT-AFTER-TIME of WireGuard (paper, section 6.1): a peer that shook
// hands within it has an endpoint that is known to work.
const sessionLifetime = 180 * time.Second

// Observed is what a running engine holds, secrets included. It never prints them.
type Observed struct {
	PrivateKey PrivateKey
	ListenPort uint16
	FwMark     uint32
	Peers      []ObservedPeer // sorted by public key
}

// ObservedPeer is one peer of a running engine.
type ObservedPeer struct {
	PeerStatus
	PresharedKey PresharedKey
}

// Status is o without its secrets.
func (o Observed) Status() DeviceStatus {
	s := DeviceStatus{ListenPort: o.ListenPort, Peers: make([]PeerStatus, 0, len(o.Peers))}
	if o.PrivateKey != (PrivateKey{}) {
		s.PublicKey = o.PrivateKey.Public().String()
	}
	for _, p := range o.Peers {
		s.Peers = append(s.Peers, p.PeerStatus)
	}
	return s
}

// ParseUAPI reads the answer to a UAPI `get=1`. Keys it does not know are ignored, since
// newer engines add some; a value that does not parse is an error that never holds the value.
func ParseUAPI(r io.Reader) (Observed, error) {
	var o Observed
	var p *ObservedPeer
	var sec, nsec int64
	finish := func() {
		if p == nil {
			return
		}
		if sec != 0 || nsec != 0 {
			p.LastHandshake = time.Unix(sec, nsec).UTC()
		}
		slices.SortFunc(p.AllowedIPs, ComparePrefix)
		o.Peers = append(o.Peers, *p)
		p, sec, nsec = nil, 0, 0
	}
	scanner := bufio.NewScanner(r)
	for n := 1; scanner.Scan(); n++ {
		line := scanner.Text()
		if line == "" {
			break
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return Observed{}, fmt.Errorf("read UAPI line %d: no key=value", n)
		}
		var err error
		switch {
		case key == "errno":
			if value != "0" {
				return Observed{}, fmt.Errorf("read UAPI: the engine answers errno %q", value)
			}
		case key == "public_key":
			finish()
			p = &ObservedPeer{}
			err = decodeHex(p.PublicKey[:], value)
		case p == nil:
			err = o.deviceLine(key, value)
		case key == "last_handshake_time_sec":
			sec, err = strconv.ParseInt(value, 10, 64)
		case key == "last_handshake_time_nsec":
			nsec, err = strconv.ParseInt(value, 10, 64)
		default:
			err = p.line(key, value)
		}
		if err != nil {
			return Observed{}, fmt.Errorf("read UAPI line %d: bad value of %s", n, key)
		}
	}
	if err := scanner.Err(); err != nil {
		return Observed{}, fmt.Errorf("read UAPI: %w", err)
	}
	finish()
	slices.SortFunc(o.Peers, func(a, b ObservedPeer) int { return slices.Compare(a.PublicKey[:], b.PublicKey[:]) })
	return o, nil
}

func (o *Observed) deviceLine(key, value string) error {
	switch key {
	case "private_key":
		return decodeHex(o.PrivateKey[:], value)
	case "listen_port":
		v, err := strconv.ParseUint(value, 10, 16)
		o.ListenPort = uint16(v)
		return err
	case "fwmark":
		v, err := strconv.ParseUint(value, 0, 32)
		o.FwMark = uint32(v)
		return err
	}
	return nil
}

func (p *ObservedPeer) line(key, value string) (err error) {
	switch key {
	case "preshared_key":
		err = decodeHex(p.PresharedKey[:], value)
	case "endpoint":
		p.Endpoint, err = netip.ParseAddrPort(value)
	case "tx_bytes":
		p.TxBytes, err = strconv.ParseUint(value, 10, 64)
	case "rx_bytes":
		p.RxBytes, err = strconv.ParseUint(value, 10, 64)
	case "persistent_keepalive_interval":
		var v uint64
		v, err = strconv.ParseUint(value, 10, 16)
		p.Keepalive = time.Duration(v) * time.Second
	case "allowed_ip":
		var a netip.Prefix
		a, err = netip.ParsePrefix(value)
		p.AllowedIPs = append(p.AllowedIPs, a)
	}
	return err
}

func decodeHex(dst []byte, s string) error {
	if len(s) != hex.EncodedLen(len(dst)) {
		return fmt.Errorf("%d characters", len(s))
	}
	_, err := hex.Decode(dst, []byte(s))
	return err
}

// ComparePrefix orders prefixes: IPv4 before IPv6, by address, then by length.
func ComparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// peerChange is what one peer lacks. A nil pointer or an empty list means: leave it.
type peerChange struct {
	key       PublicKey
	fresh     bool // the engine does not have the peer
	remove    bool
	psk       *PresharedKey
	endpoint  netip.AddrPort
	keepalive *time.Duration
	add, del  []netip.Prefix
	all       []netip.Prefix // the wanted list, whole
}

// Delta is the difference between a wanted device and what an engine holds.
type Delta struct {
	iface      string
	privateKey *PrivateKey
	peers      []peerChange
}

// Diff says what an engine that holds have lacks of want. prev is what the same daemon wanted
// before (nil: not known, as after a restart), now the time by the clock of have's handshakes.
//
// An endpoint is a hint, not a state: a peer that roamed is where its last authenticated packet
// came from. So the engine's endpoint stays, unless the wanted one changed since prev, or nothing is
// known of prev and the peer has no living session or the wanted one must be told (Peer.EndpointRevision).
func Diff(want Device, have Observed, prev *Device, now time.Time) Delta {
	d := Delta{iface: want.Settings.Interface}
	if want.PrivateKey != have.PrivateKey {
		k := want.PrivateKey
		d.privateKey = &k
	}
	had := map[PublicKey]ObservedPeer{}
	for _, p := range have.Peers {
		had[p.PublicKey] = p
	}
	before := map[PublicKey]*Peer{}
	if prev != nil {
		for i, p := range prev.Peers {
			before[p.PublicKey] = &prev.Peers[i]
		}
	}
	wanted := map[PublicKey]bool{}
	for _, w := range want.Peers {
		wanted[w.PublicKey] = true
		h, known := had[w.PublicKey]
		c := peerChange{key: w.PublicKey, fresh: !known, all: w.AllowedIPs}
		if w.PresharedKey != h.PresharedKey {
			k := w.PresharedKey
			c.psk = &k
		}
		if k := keepaliveSeconds(w.Keepalive); k != h.Keepalive {
			c.keepalive = &k
		}
		c.add, c.del = missing(w.AllowedIPs, h.AllowedIPs), missing(h.AllowedIPs, w.AllowedIPs)
		if b := before[w.PublicKey]; w.Endpoint.IsValid() && w.Endpoint != h.Endpoint {
			noSession := b == nil && now.Sub(h.LastHandshake) > sessionLifetime
			if !h.Endpoint.IsValid() || w.MustTellEndpoint(b) || noSession {
				c.endpoint = w.Endpoint
			}
		}
		if c.fresh || c.psk != nil || c.keepalive != nil || c.endpoint.IsValid() || len(c.add)+len(c.del) > 0 {
			d.peers = append(d.peers, c)
		}
	}
	for _, h := range have.Peers {
		if !wanted[h.PublicKey] {
			d.peers = append(d.peers, peerChange{key: h.PublicKey, remove: true})
		}
	}
	return d
}

// keepaliveSeconds rounds up to what the protocol can say: whole seconds, 16 bits.
func keepaliveSeconds(k time.Duration) time.Duration {
	return min((k + time.Second - 1).Truncate(time.Second), 65535*time.Second)
}

func missing(of, in []netip.Prefix) (out []netip.Prefix) {
	for _, p := range of {
		if !slices.Contains(in, p) {
			out = append(out, p)
		}
	}
	return out
}

// Empty says that there is nothing to do.
func (d Delta) Empty() bool { return d.privateKey == nil && len(d.peers) == 0 }

// SetText is the body of a UAPI `set=1`. It HOLDS SECRETS and must never be logged. What is new
// goes first and what is gone goes last, so that a network that moves from one site to another
// is never without an owner in between.
func (d Delta) SetText() string {
	var b strings.Builder
	if d.privateKey != nil {
		fmt.Fprintf(&b, "private_key=%s\n", d.privateKey.Hex())
	}
	for _, p := range d.peers {
		if p.remove || !p.fresh && p.psk == nil && p.keepalive == nil && !p.endpoint.IsValid() && len(p.add) == 0 {
			continue
		}
		fmt.Fprintf(&b, "public_key=%s\n", p.key.Hex())
		if !p.fresh {
			b.WriteString("update_only=true\n")
		}
		if p.psk != nil {
			fmt.Fprintf(&b, "preshared_key=%s\n", p.psk.Hex())
		}
		if p.endpoint.IsValid() {
			fmt.Fprintf(&b, "endpoint=%s\n", p.endpoint)
		}
		if p.keepalive != nil {
			fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", *p.keepalive/time.Second)
		}
		for _, a := range p.add {
			fmt.Fprintf(&b, "allowed_ip=%s\n", a)
		}
	}
	for _, p := range d.peers {
		switch {
		case p.remove:
			fmt.Fprintf(&b, "public_key=%s\nupdate_only=true\nremove=true\n", p.key.Hex())
		case len(p.del) > 0:
			fmt.Fprintf(&b, "public_key=%s\nupdate_only=true\n", p.key.Hex())
			for _, a := range p.del {
				fmt.Fprintf(&b, "allowed_ip=-%s\n", a)
			}
		}
	}
	return b.String()
}

// Words is the difference in the words of wg(8), without secrets.
func (d Delta) Words() []string {
	var out []string
	if d.privateKey != nil {
		out = append(out, fmt.Sprintf("wg set %s private-key %s", d.iface, redacted))
	}
	for _, p := range d.peers {
		w := fmt.Sprintf("wg set %s peer %s", d.iface, p.key)
		if p.remove {
			out = append(out, w+" remove")
			continue
		}
		if p.psk != nil {
			w += " preshared-key " + redacted
		}
		if p.endpoint.IsValid() {
			w += " endpoint " + p.endpoint.String()
		}
		if p.keepalive != nil {
			w += fmt.Sprintf(" persistent-keepalive %d", *p.keepalive/time.Second)
		}
		if len(p.add)+len(p.del) > 0 { // wg replaces the list whole
			all := make([]string, len(p.all))
			for i, a := range p.all {
				all[i] = a.String()
			}
			w += " allowed-ips " + strings.Join(all, ",")
		}
		out = append(out, w)
	}
	return out
}

// Words is the whole device in the words of wg(8), without secrets.
func (d Device) Words() []string {
	s := d.Settings
	first := fmt.Sprintf("wg set %s listen-port %d fwmark %#x", s.Interface, s.ListenPort, d.FwMark)
	return append([]string{first}, Diff(d, Observed{}, nil, time.Time{}).Words()...)
}
