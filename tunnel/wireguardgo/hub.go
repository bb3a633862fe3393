package wireguardgo

import (
	"encoding/binary"
	"log/slog"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"ringway/tunnel/datagram"
)

// hub is what the two ends of the device, TUN and sockets, share.
type hub struct {
	log    *slog.Logger
	drops  drops
	out    *gate
	peers  *peers
	mac1   device.CookieChecker // of our public key
	cross  *crossings
	closed chan struct{}
	fair   *fair
	began  time.Time
	former atomic.Pointer[former]
}

// former are the addresses of ours that were left by a Reroute.
type former struct {
	datagram.Left
	remotes map[netip.AddrPort]bool // where the peers are that it was about; nil: all
}

// hasLeft reports whether an address of ours is not to be sent from at present to one of a peer.
func (h *hub) hasLeft(a netip.Addr, to netip.AddrPort) bool {
	f := h.former.Load()
	return f != nil && (f.remotes == nil || f.remotes[to]) && f.Has(a, int64(time.Since(h.began)))
}

// isClosed reports whether the engine ends.
func (h *hub) isClosed() bool {
	select {
	case <-h.closed:
		return true
	default:
		return false
	}
}

// left tells the flow queues that something left the device.
func (h *hub) left() {
	if h.fair != nil {
		h.fair.left()
	}
}

// claim tags a buffer whose packet enters the device. buf is the whole buffer.
func (h *hub) claim(buf []byte, v uint32) {
	setTag(buf, v)
	if len(buf) != device.MaxMessageSize || buf[markAt] != 0 {
		return
	}
	buf[markAt] = 1
	// The mark may have been overwritten; setting it twice is fatal.
	runtime.SetFinalizer((*[device.MaxMessageSize]byte)(buf), nil)
	runtime.SetFinalizer((*[device.MaxMessageSize]byte)(buf),
		func(b *[device.MaxMessageSize]byte) { h.reclaim([][]byte{b[:]}) })
}

// reclaim counts out packets that the device dropped: their buffers come back with a tag.
func (h *hub) reclaim(bufs [][]byte) int {
	in, out, charged := 0, 0, 0
	table := h.peers.now.Load()
	for _, b := range bufs {
		t := getTag(b)
		switch {
		case t == tagNone:
			continue
		case t >= tagInbound:
			in++
		default:
			out++
			charged += getCharge(b)
			if p := table.slot(t - tagPeer); p != nil {
				p.account.lost.Add(int64(getCharge(b)))
			}
		}
		setTag(b, tagNone)
	}
	if in+out > 0 {
		h.drops.add(dropRefused, in)
		h.drops.add(dropDevice, out)
		h.out.leave(out, charged)
		h.left()
	}
	return in + out
}

// sent counts out packets that reached the socket.
func (h *hub) sent(bufs [][]byte) {
	n, charged := 0, 0
	slot := uint32(tagNone)
	for _, b := range bufs {
		if !isData(b) {
			continue // not ours; its buffer may have the tag of an earlier packet, which is counted when it is offered
		}
		if t := getTag(b); t >= tagPeer && t < tagInbound {
			slot = t
			setTag(b, tagNone)
			charged += getCharge(b)
			n++
		}
	}
	if n > 0 {
		h.out.leave(n, charged)
		h.left()
		h.peers.sent(slot-tagPeer, n)
	}
}

// isData reports whether a message carries a packet.
func isData(b []byte) bool {
	return len(b) > device.MessageKeepaliveSize && binary.LittleEndian.Uint32(b) == device.MessageTransportType
}
