package media

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"ringway/srtp/stream"
)

// What the owner of a relay has to know so that another one can go on from it.

// Check returns what is wrong with a leg by itself. Set checks it, too.
func (l *Leg) Check() error { return l.check() }

// SetMaxWait is for tests on machines that are busy: packets may have waited longer than 20 ms.
func (o *Options) SetMaxWait(d time.Duration) { o.longest = d }

// Ping returns when a thread of each side has answered.
func (r *Relay) Ping() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for side := range sides {
		if err := r.askLocked(side, func() {}); err != nil {
			return err
		}
	}
	return nil
}

// Learned is where a leg is sent to by what it has learned, and not by what signalling said.
type Learned struct {
	Leg       uint64         `json:"leg,omitempty"`
	RTP, RTCP netip.AddrPort // RTCP is invalid on a leg with one port
}

// Learned returns the legs that have learned an address.
func (r *Relay) Learned() (all []Learned) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.pairs {
		e := endOf(r.pairs, id)
		if !e.Learn {
			continue
		}
		l := Learned{Leg: id, RTP: e.remote[rtpEnd].load()}
		if e.rtcpApart {
			l.RTCP = e.remote[rtcpEnd].load()
		}
		if l.RTP != e.Remote || l.RTCP != e.RemoteRTCP && e.rtcpApart {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b Learned) int { return cmp.Compare(a.Leg, b.Leg) })
	return all
}

// RestoreLearned has a leg be sent to where another relay had learned that it is.
func (r *Relay) RestoreLearned(l Learned) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, _, err := r.flowLocked(l.Leg)
	if err != nil {
		return err
	}
	e := f.from
	for _, a := range []netip.AddrPort{l.RTP, l.RTCP} {
		if a.IsValid() && (a.Addr().Is4() != e.Local.Addr().Is4() || a.Addr().Is4In6() || a.Port() == 0) {
			return fmt.Errorf("leg %d cannot be sent to %s", l.Leg, a)
		}
	}
	if !e.Learn || !l.RTP.IsValid() {
		return nil
	}
	store := func() {
		e.remote[rtpEnd].store(l.RTP)
		if e.rtcpApart && l.RTCP.IsValid() {
			e.remote[rtcpEnd].store(l.RTCP)
		}
	}
	if !r.started {
		store() // no thread is there to be asked
		return nil
	}
	return r.askLocked(e.Side, store)
}

// Opened is how many packets of a leg were opened with a key.
type Opened struct {
	Leg     uint64
	MKI     []byte // not to be changed
	Packets uint64
}

// Opened returns the legs whose keys have an MKI: by it the boxes find out that a key is used. It asks the thread of
// each side once.
func (r *Relay) Opened() (all []Opened, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	const maxKeys = 4
	for side := range sides {
		var receivers []*stream.Receiver
		var legs []uint64
		for id := range r.pairs {
			if f := flowOf(r.pairs, id); f.from.Side == side && f.state.receiver != nil {
				receivers, legs = append(receivers, f.state.receiver), append(legs, id)
			}
		}
		if len(legs) == 0 {
			continue
		}
		found := make([]Opened, 0, maxKeys*len(legs)) // a thread makes no memory
		err := r.askLocked(side, func() {
			for i, receiver := range receivers {
				receiver.EachKey(func(k *stream.Key) {
					if len(k.MKI()) > 0 && len(found) < cap(found) {
						found = append(found, Opened{legs[i], k.MKI(), k.Opened()})
					}
				})
			}
		})
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	slices.SortStableFunc(all, func(a, b Opened) int { return cmp.Compare(a.Leg, b.Leg) })
	return all, nil
}
