package stamp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A question passes these steps, in one goroutine per socket:
//
//	1 read    recvmsg; the kernel reports when it arrived, with what code point and TTL, and to which address
//	2 admit   length, source port, then the table of sessions and rates (sessions.go)
//	3 extend  the extensions are answered in place: the answer is exactly as long as the question
//	4 stamp   the base is written last, its transmit timestamp just before sendmsg
//
// The reflector is stateful (RFC 8762, section 4.3.1): it numbers the packets of each session itself. A
// stateless one echoes the sender's number, and then nobody can tell whether a packet was lost on the way
// there or back, which is the first thing that an engineer asks. The state is bounded.

// Reflector answers probes. The zero value is ready to use.
type Reflector struct {
	once  sync.Once
	clock clockCache
	born  time.Time

	mu       sync.Mutex // guards what follows
	sessions *sessions
	answered uint64
	drops    map[Reason]uint64
}

// Listen says where to answer.
type Listen struct {
	Device string // only what comes in from here; empty: from anywhere
	Port   uint16 // 0: any, for tests
	// An answer takes the question's way back by the routing mark of the question, of which it gets the
	// bits of MarkMask. Where the kernel does not tell marks (before Linux 5.19), Mark stands for it. Both
	// zero: no mark.
	MarkMask, Mark uint32
}

// Listener is the pair of sockets that a reflector has at one device.
type Listener struct {
	conns []*net.UDPConn
	done  sync.WaitGroup

	mu  sync.Mutex
	err error
}

func (r *Reflector) start() {
	r.once.Do(func() {
		r.born = time.Now()
		r.clock.read = ReadClock
		r.sessions, r.drops = newSessions(), map[Reason]uint64{}
	})
}

// Listen opens the sockets and answers until the listener is closed.
func (r *Reflector) Listen(l Listen) (*Listener, error) {
	r.start()
	out := &Listener{}
	for _, network := range []string{"udp4", "udp6"} {
		c, err := listen(network, l.Device, l.Port)
		if network == "udp6" && errors.Is(err, unix.EAFNOSUPPORT) {
			continue // a kernel without IPv6
		}
		if err != nil {
			out.Close()
			return nil, fmt.Errorf("listen for probes on %s, port %d: %w", l.Device, l.Port, err)
		}
		out.conns = append(out.conns, c)
	}
	for _, c := range out.conns {
		out.done.Go(func() {
			err := r.serve(c, l)
			out.mu.Lock()
			defer out.mu.Unlock()
			if !errors.Is(err, net.ErrClosed) && out.err == nil {
				out.err = fmt.Errorf("answer probes on %s: %w", l.Device, err)
			}
		})
	}
	return out, nil
}

// Err is why a listener that was not closed stopped; nil while it answers.
func (l *Listener) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Addrs are the sockets' own addresses.
func (l *Listener) Addrs() []netip.AddrPort {
	var out []netip.AddrPort
	for _, c := range l.conns {
		out = append(out, c.LocalAddr().(*net.UDPAddr).AddrPort())
	}
	return out
}

// Close stops the listener and waits until it has stopped.
func (l *Listener) Close() {
	for _, c := range l.conns {
		c.Close()
	}
	l.done.Wait()
}

const largest = 2048 // larger than the default MTU of any tunnel, and than any probe of voice

func (r *Reflector) serve(c *net.UDPConn, l Listen) error {
	buf, oob, reply := make([]byte, largest+1), make([]byte, controlSpace), make([]byte, 0, controlSpace)
	own := uint16(c.LocalAddr().(*net.UDPAddr).Port)
	var ctl control
	var overflow uint32
	for {
		n, on, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return err
		}
		ctl.parse(oob[:on])
		now := time.Now()
		if ctl.at == 0 {
			ctl.at = now.UnixNano()
		}
		r.mu.Lock()
		if d := ctl.overflow - overflow; d > 0 {
			r.drops[DropSocket] += uint64(d)
		}
		overflow = ctl.overflow
		q, ses, why := r.admit(buf[:n], from, own, now.Sub(r.born))
		var received, sent uint32
		if why == "" {
			ses.sent++
			received, sent = ses.received, ses.sent
		} else {
			r.drops[why]++
		}
		r.mu.Unlock()
		if why != "" {
			continue
		}
		extend(buf[BaseSize:n], ctl.tos, received, sent)
		mark := l.Mark
		if ctl.marked {
			mark = ctl.mark & l.MarkMask
		}
		reply = replyControl(reply[:0], ctl.to.Unmap(), ctl.tos&^3, mark)
		r.finish(buf[:n], q, ctl, sent, time.Now().UnixNano())
		_, _, err = c.WriteMsgUDPAddrPort(buf[:n], reply, from)
		r.mu.Lock()
		if err != nil {
			r.drops[DropSend]++
		} else {
			r.answered++
		}
		r.mu.Unlock()
		if errors.Is(err, net.ErrClosed) {
			return err
		}
	}
}

// admit is step 2. The caller holds r.mu.
func (r *Reflector) admit(
	b []byte, from netip.AddrPort, own uint16, now time.Duration,
) (Question, *session, Reason) {
	if len(b) > largest {
		return Question{}, nil, DropOversized
	}
	q, err := ParseQuestion(b)
	if err != nil {
		return Question{}, nil, DropShort
	}
	// Senders ask from a dynamic port. A forged source of 862 at another reflector would be answered there,
	// and the answer here again: two boxes that never stop.
	if from.Port() < 1024 || from.Port() == own {
		return Question{}, nil, DropSourcePort
	}
	ses, why := r.sessions.find(sessionKey{netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), q.SSID}, now)
	return q, ses, why
}

// extend is step 3 (RFC 8972, section 4): what is understood loses its U flag, what is not gets it, and
// what does not fit is marked malformed, with all behind it left as it is.
func extend(b []byte, tos uint8, received, sent uint32) {
	for range maxTLVs {
		if len(b) == 0 {
			return
		}
		t, rest, ok := nextTLV(b)
		if !ok {
			if t.flags != nil {
				*t.flags = *t.flags&^flagUnrecognized | flagMalformed
			}
			return
		}
		*t.flags &^= flagUnrecognized | flagMalformed | flagIntegrity
		switch t.kind {
		case tlvPadding:
		case tlvDirect:
			if len(t.value) != directLength {
				*t.flags |= flagMalformed
				return
			}
			binary.BigEndian.PutUint32(t.value[4:], received)
			binary.BigEndian.PutUint32(t.value[8:], sent)
		case tlvCoS:
			if len(t.value) != cosLength {
				*t.flags |= flagMalformed
				return
			}
			// The answer goes back as the question came, since its code point chooses the tunnel: another
			// one that the sender may wish for is refused (RP, section 4.4).
			wished := t.value[0] >> 2
			dscp, ecn, refused := tos>>2, tos&3, byte(0)
			if wished != dscp {
				refused = 1
			}
			t.value[0] = wished<<2 | dscp>>4
			t.value[1] = dscp<<4 | ecn<<2 | refused
			t.value[2], t.value[3] = 0, 0
		default:
			*t.flags |= flagUnrecognized
		}
		b = rest
	}
}

// finish is step 4. The answer has the timestamp format of the question.
func (r *Reflector) finish(b []byte, q Question, c control, sent uint32, now int64) {
	clock, f := r.clock.at(now), q.Error.Format()
	Answer{
		Seq:  sent - 1, // numbers begin at zero
		Sent: NewTimestamp(now, f, clock.TAI), Error: NewErrorEstimate(clock, f), SSID: q.SSID,
		Received: NewTimestamp(c.at, f, clock.TAI), SenderSeq: q.Seq,
		SenderSent: q.Sent, SenderError: q.Error, SenderTTL: c.ttl,
	}.put(b)
}

// Stats are the reflector's counters.
type Stats struct {
	Answered uint64            `json:"answered"`
	Sessions int               `json:"sessions"` // with a question within the last 30 s
	Drops    map[Reason]uint64 `json:"drops,omitempty"`
}

// Stats returns the counters.
func (r *Reflector) Stats() Stats {
	r.start()
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Stats{
		Answered: r.answered, Sessions: r.sessions.active(time.Since(r.born)), Drops: maps.Clone(r.drops),
	}
	if len(s.Drops) == 0 {
		s.Drops = nil
	}
	return s
}
