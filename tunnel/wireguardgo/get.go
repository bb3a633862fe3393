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
func parseGet(body []byte, public func(tunnel.PrivateKey) tunnel.PublicKey) (peers []tunnel.PeerStatus, own tunnel.PublicKey, err error) {
	var p *tunnel.PeerStatus
	var sec, nsec int64
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
			sec, nsec = 0, 0
		}
		if p == nil {
			continue
		}
		v := string(value)
		var n uint64
		switch string(key) {
		case "endpoint":
			p.Endpoint, err = netip.ParseAddrPort(v)
		case "last_handshake_time_sec":
			sec, err = strconv.ParseInt(v, 10, 64)
		case "last_handshake_time_nsec":
			nsec, err = strconv.ParseInt(v, 10, 64)
			if sec != 0 || nsec != 0 {
				p.LastHandshake = time.Unix(sec, nsec)
			}
		case "tx_bytes":
			p.TxBytes, err = strconv.ParseUint(v, 10, 64)
		case "rx_bytes":
			p.RxBytes, err = strconv.ParseUint(v, 10, 64)
		case "persistent_keepalive_interval":
			n, err = strconv.ParseUint(v, 10, 16)
			p.Keepalive = time.Duration(n) * time.Second
		case "allowed_ip":
			var prefix netip.Prefix
			prefix, err = netip.ParsePrefix(v)
			p.AllowedIPs = append(p.AllowedIPs, prefix)
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
