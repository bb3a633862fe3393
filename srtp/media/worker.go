package media

import (
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ringway/tunnel/datagram"
	"ringway/tunnel/turn"
)

// Names of the forwarding threads, the same for all of a side: by them the daemon knows which threads it makes
// real-time.
const (
	ThreadLAN    = "rw-media-lan"
	ThreadTunnel = "rw-media-tun"
)

// sendWait is how long a full buffer is waited for.
const sendWait = 5 * time.Millisecond

const (
	familyV4 = iota
	familyV6
	families
)

// worker forwards what arrives on a side. It belongs to the thread that has the turn, except for what is atomic.
type worker struct {
	*turn.Direction
	relay   *Relay
	forward *forwarder
	in      [families]int
	request atomic.Pointer[request] // of the control side

	messages *datagram.Batch
	arrival  arrival

	// Memory for sendmmsg.
	msgs    [batch]datagram.Message
	iovs    [batch]unix.Iovec
	which   [batch]int // of outs each message is
	poll    unix.PollFd
	timeout unix.Timespec
}

// request is something that the control side has a thread do between two packets. It must not wait for anything.
type request struct {
	do       func()
	served   atomic.Bool
	answered chan struct{}
}

func newWorker(r *Relay, side Side, in [families]int, cpus []int) (*worker, error) {
	name := ThreadLAN
	if side == Tunnel {
		name = ThreadTunnel
	}
	var fds []int
	for _, fd := range in {
		if fd >= 0 {
			fds = append(fds, fd)
		}
	}
	d, err := turn.NewDirection(turn.Options{Name: name, Clock: r.clock, Alone: r.alone}, cpus, fds...)
	if err != nil {
		return nil, fmt.Errorf("threads of side %s: %w", side, err)
	}
	w := &worker{
		Direction: d, relay: r, forward: newForwarder(side, &r.table, &r.total), in: in,
		messages: datagram.NewBatch(batch, maxPacket),
	}
	for i := range w.msgs {
		h := &w.msgs[i].Header
		h.Iov = &w.iovs[i]
		h.SetIovlen(1)
	}
	return w, nil
}

func (w *worker) loop() {
	sleep := true
	for w.Next(sleep) {
		w.serve()
		full := false
		for i := 1; i < len(w.Polls); i++ { // the first is the thread's own
			if w.Polls[i].Revents != 0 || !sleep {
				full = w.receive(int(w.Polls[i].Fd)) || full
			}
		}
		sleep = !full
		if w.forward.told {
			w.forward.told = false
			w.relay.notify()
		}
	}
}

// serve does what the control side asks for.
func (w *worker) serve() {
	if q := w.request.Load(); q != nil && !q.served.Load() {
		q.do()
		q.served.Store(true)
		w.relay.notify()
	}
}

// receive forwards one batch from a socket. It reports whether there may be more.
func (w *worker) receive(fd int) (full bool) {
	w.messages.Reset()
	n, errno := w.Call(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&w.messages.Messages[0])), batch,
		unix.MSG_DONTWAIT, 0)
	if errno != 0 {
		return errno == unix.EINTR
	}
	f := w.forward
	f.n = 0
	// The kernel's time of arrival is of this clock. Where it was set meanwhile, the packets of one look seem late or
	// early.
	wall, now := time.Now().UnixNano(), w.relay.clock()
	for i := range n {
		d, ok := w.messages.Delivered(i)
		switch {
		case !ok:
			w.relay.total.add(dropNoLeg)
			continue
		case !d.Whole:
			f.truncated(d.To)
			continue
		}
		waited := time.Duration(0)
		if d.At != 0 {
			waited = time.Duration(wall - d.At)
		}
		w.arrival = arrival{from: d.From, to: d.To, payload: d.Payload}
		f.take(&w.arrival, waited, wall, now)
	}
	if f.n > 0 {
		w.flush()
	}
	return n == batch
}

// flush sends what is in outs, in order for each socket.
func (w *worker) flush() {
	outs := w.forward.outs[:w.forward.n]
	for side := range sides {
		for v6 := range families {
			n := 0
			for i := range outs {
				o := &outs[i]
				if o.side != side || o.to.V6() != (v6 == familyV6) {
					continue
				}
				w.which[n] = i
				w.iovs[n].Base = &o.wire[0]
				w.iovs[n].SetLen(len(o.wire))
				w.msgs[n].Header.Name, w.msgs[n].Header.Namelen = &o.to.B[0], o.to.N
				n++
			}
			if n > 0 {
				w.send(w.relay.out[side][v6], n)
			}
		}
	}
}

// send sends n messages by a socket. One that the kernel refuses is dropped alone.
func (w *worker) send(fd, n int) {
	waited := false
	for at := 0; at < n; {
		if fd < 0 {
			w.refused(at, dropUnreachable)
			at++
			continue
		}
		sent, errno := w.Call(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&w.msgs[at])), uintptr(n-at),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0)
		switch {
		case errno == 0 && sent > 0:
			for range sent {
				o := &w.forward.outs[w.which[at]]
				o.leg.sentPackets.Add(1)
				o.leg.sentBytes.Add(uint64(o.size))
				at++
			}
		case errno == unix.EINTR:
		case errno == unix.EAGAIN && !waited:
			waited = true
			w.WaitWritable(&w.poll, &w.timeout, fd, int(sendWait/time.Millisecond))
		default:
			w.refused(at, sendReason(errno))
			at++
		}
	}
}

func (w *worker) refused(at int, why reason) { w.forward.outs[w.which[at]].leg.drops.add(why) }
