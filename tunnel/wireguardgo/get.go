package wireguardgo

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"ringway/tunnel"
)

// parseGet reads what the device package writes for a get operation. public makes a public key of a private one.
func parseGet(body []byte, public func(tunnel.PrivateKey) tunnel.PublicKey) (peers []tunnel.PeerStatus,
	own tunnel.PublicKey, err error) {
	var p *tunnel.PeerStatus
	var handshake lastHandshake
	for line := range bytes.Lines(body) {
		key, value, ok := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte("="))
		if !ok {
			continue
		}
		if string(key) == "private_key" {
			var k tunnel.PrivateKey
			if _, err := hex.Decode(k[:], value[:min(len(value), 2*len(k))]); err != nil {
				return nil, own, fmt.Errorf("read the device's private key: not hex")
			}
			own = public(k)
			clear(k[:])
			continue
		}
		if string(key) == "public_key" {
			peers = append(peers, tunnel.PeerStatus{})
			p = &peers[len(peers)-1]
			_, err = hex.Decode(p.PublicKey[:], value[:min(len(value), 2*tunnel.KeySize)])
			handshake = lastHandshake{}
		}
		if p == nil {
			continue
		}
		if err == nil {
			err = handshake.parse(p, string(key), string(value))
		}
		if err != nil {
			return nil, own, fmt.Errorf("read the device's %s: %w", key, err)
		}
	}
	slices.SortFunc(peers, func(a, b tunnel.PeerStatus) int { return bytes.Compare(a.PublicKey[:], b.PublicKey[:]) })
	for i := range peers {
		slices.SortFunc(peers[i].AllowedIPs, netip.Prefix.Compare)
	}
	return peers, own, nil
}

// lastHandshake is the time of a peer's last handshake, which is in two lines.
type lastHandshake struct{ sec, nsec int64 }

// parse reads one line about a peer.
func (t *lastHandshake) parse(p *tunnel.PeerStatus, key, value string) (err error) {
	switch key {
	case "endpoint":
		p.Endpoint, err = netip.ParseAddrPort(value)
	case "last_handshake_time_sec":
		t.sec, err = strconv.ParseInt(value, 10, 64)
	case "last_handshake_time_nsec":
		t.nsec, err = strconv.ParseInt(value, 10, 64)
		if *t != (lastHandshake{}) {
			p.LastHandshake = time.Unix(t.sec, t.nsec)
		}
	case "tx_bytes":
		p.TxBytes, err = strconv.ParseUint(value, 10, 64)
	case "rx_bytes":
		p.RxBytes, err = strconv.ParseUint(value, 10, 64)
	case "persistent_keepalive_interval":
		var n uint64
		n, err = strconv.ParseUint(value, 10, 16)
		p.Keepalive = time.Duration(n) * time.Second
	case "allowed_ip":
		var prefix netip.Prefix
		prefix, err = netip.ParsePrefix(value)
		p.AllowedIPs = append(p.AllowedIPs, prefix)
	}
	return err
}
