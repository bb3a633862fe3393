package sip

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// answerer is the PBX of a trial.
type answerer struct {
	socket  socket
	address string
	trial   string
	port    func(call int) int // of media
	delays  delays
	over    atomic.Bool
	dropped uint32 // by the socket, in all
	seen    int    // INVITEs
	acked   int
}

// run answers until over is set.
func (a *answerer) run() error {
	local, err := netip.ParseAddr(a.address)
	if err != nil {
		return err
	}
	from, contact := source(local), "sip:2001@"+a.address+":5060"
	b, control, out := make([]byte, maxBytes), make([]byte, 128), make([]byte, 0, maxBytes)
	for !a.over.Load() {
		r, overflow, err := a.socket.receive(b, control)
		if err != nil {
			return err
		}
		a.dropped = max(a.dropped, overflow)
		n := number(r.b, a.trial)
		if n < 0 || r.from == nil {
			continue
		}
		if err := a.answer(r, n, from, contact, out); err != nil {
			return err
		}
	}
	return nil
}

// answer answers one request.
func (a *answerer) answer(r received, n int, from []byte, contact string, out []byte) error {
	tag := fmt.Sprintf(";tag=p%d", n)
	switch {
	case len(r.b) < 4:
	case string(r.b[:4]) == "INVI":
		a.seen++
		a.delays.add(invite, r)
		if err := a.send(response(out, r.b, "180 Ringing", tag, contact, ""), from, r.from); err != nil {
			return err
		}
		return a.send(response(out, r.b, "200 OK", tag, contact, description(a.address, a.port(n))), from, r.from)
	case string(r.b[:4]) == "ACK ":
		a.acked++
		a.delays.add(ack, r)
	case string(r.b[:4]) == "BYE ":
		a.delays.add(bye, r)
		return a.send(response(out, r.b, "200 OK", "", "", ""), from, r.from)
	}
	return nil
}

func (a *answerer) send(b, from []byte, to *unix.SockaddrInet4) error {
	if err := a.socket.send(b, from, to); err != nil {
		return fmt.Errorf("answer a call: %w", err)
	}
	return nil
}

// delays are how long messages took from one end to the other, in nanoseconds.
type delays [kinds][]int64

func (d *delays) add(k kind, r received) {
	if sent := sentAt(r.b); sent > 0 && r.at > 0 {
		d[k] = append(d[k], r.at-sent)
	}
}
