package stamp

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Probe describes a measurement.
type Probe struct {
	To       netip.AddrPort
	Streams  int           // each with its own port, spread evenly over the interval
	Interval time.Duration // between two packets of a stream
	Count    int           // packets of each stream
	Size     int           // bytes of UDP payload: 172 is RTP with 20 ms of G.711
	DSCP     uint8
	Format   Format        // of timestamps
	Timeout  time.Duration // a packet that is not back after it is lost (RFC 7680 wants that said); 0: 4 s
}

// Bounds of a probe. A reflector of Ringway's answers no more than sourceRate.
const (
	maxPackets     = 2_000_000
	defaultTimeout = 4 * time.Second
	senderNice     = -10
)

// Validate reports what is out of range. To is not checked: it may not be known yet.
func (p Probe) Validate() error {
	switch {
	case p.Streams < 1 || p.Streams > maxPerSource:
		return fmt.Errorf("%d streams are out of range (allowed: 1 to %d)", p.Streams, maxPerSource)
	case p.Interval < time.Millisecond || p.Interval > 10*time.Second:
		return fmt.Errorf("an interval of %s is out of range (allowed: 1ms to 10s)", p.Interval)
	case float64(p.Streams)/p.Interval.Seconds() > sourceRate:
		return fmt.Errorf("%d streams every %s are %.0f packets per second (allowed: %d, the far end's limit)",
			p.Streams, p.Interval, float64(p.Streams)/p.Interval.Seconds(), sourceRate)
	case p.Count < 1 || p.Count > maxPackets/p.Streams:
		return fmt.Errorf(
			"%d packets in each of %d streams are out of range (allowed: 1 to %d together)", p.Count, p.Streams,
			maxPackets,
		)
	case p.Size > MaxSize || p.DSCP > 63:
		return fmt.Errorf(
			"%d bytes is not a possible size of a test packet (allowed: %d, or %d to %d)", p.Size, BaseSize,
			BaseSize+tlvHeader, MaxSize,
		)
	}
	_, err := layoutOf(p.Size)
	return err
}

// Packet is one probe and what became of it. Times are nanoseconds of this machine's clock (here) or of the
// far one's (there).
type Packet struct {
	Sent     int64 // here, just before sendmsg; 0: it was never sent
	Received int64 // here, by the kernel; 0: it did not come back
	ThereIn  int64 // there, by its kernel
	ThereOut int64 // there
	FarSeq   uint32
	Far      Far
	Error    ErrorEstimate // of the far clock
	TTL      uint8         // of the question when it arrived there
	DSCP     uint8         // of the answer when it arrived here
	raw      Timestamp     // as it was sent: the answer has to return it
}

// RoundTrip is the time on the way, both ways: the far end's own time is not in it, and its clock may be
// anything.
func (p Packet) RoundTrip() time.Duration {
	return time.Duration(p.Received - p.Sent - (p.ThereOut - p.ThereIn))
}

// Stream is one stream's packets, in order of their numbers.
type Stream struct {
	Packets    []Packet
	Duplicates int // answers beyond the first to a question
	Reordered  int // answers after the answer to a later question (RFC 4737)
}

// Result is the outcome of a measurement.
type Result struct {
	Probe       Probe
	Source      netip.Addr
	Streams     []Stream
	Began       time.Time
	Before      ClockState    // this machine's, at the start
	After       ClockState    // and at the end
	ClockMoved  time.Duration // how far the clock was set meanwhile, against the monotonic one
	Late        time.Duration // the most that a packet was sent late: pauses of this machine
	Strange     int           // packets that answer no question
	Overflow    int           // answers that this program did not read in time
	Refused     int           // ICMP errors: the address is there, and nothing answers
	SendErrors  int
	SendError   error // the first
	Interrupted bool  // ctx ended it: the figures cover what was sent until then
}

// sending is one stream while the measurement runs.
type sending struct {
	conn *net.UDPConn
	ssid uint16

	mu      sync.Mutex // sender and receiver meet here
	stream  Stream
	highest int
	strange int
	refused int
	over    uint32 // the kernel's count of what was not read in time
}

// Measure sends the questions and waits for the answers. If ctx ends, the result covers what was sent, with
// Interrupted set.
func Measure(ctx context.Context, p Probe) (*Result, error) {
	if p.Timeout == 0 {
		p.Timeout = defaultTimeout
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	lay, err := layoutOf(p.Size)
	if err != nil {
		return nil, err
	}
	if !p.To.IsValid() || p.To.Port() == 0 {
		return nil, errors.New("send probes: no destination (set an address and a port)")
	}
	r := &Result{Probe: p, Began: time.Now()}
	if r.Before, err = ReadClock(); err != nil {
		return nil, err
	}

	streams, err := openStreams(p)
	defer func() {
		for _, s := range streams {
			s.conn.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	r.Source = streams[0].conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()

	if err := r.exchange(ctx, streams, lay); err != nil {
		return nil, err
	}
	for _, s := range streams {
		r.Streams = append(r.Streams, s.stream)
		r.Strange += s.strange
		r.Refused += s.refused
		r.Overflow += int(s.over)
	}
	return r, nil
}

// openStreams opens a socket for each stream. On an error the caller still closes those that are open.
func openStreams(p Probe) ([]*sending, error) {
	var streams []*sending
	for range p.Streams {
		conn, err := dial(p.To, p.DSCP<<2)
		if err != nil {
			return streams, fmt.Errorf("open a socket to %s: %w", p.To, err)
		}
		var id [2]byte
		_, _ = rand.Read(id[:]) // never fails

		// Zero means that there is no identifier.
		s := &sending{conn: conn, ssid: binary.BigEndian.Uint16(id[:]) | 1, highest: -1}
		s.stream.Packets = make([]Packet, p.Count)
		streams = append(streams, s)
	}
	return streams, nil
}

// exchange sends all questions, and receives answers until each is there, the timeout of the last has
// passed or ctx ends. It closes the streams' sockets.
func (r *Result) exchange(ctx context.Context, streams []*sending, lay layout) (err error) {
	p := r.Probe
	var missing atomic.Int64 // answers still expected; never negative
	var receivers sync.WaitGroup
	all := make(chan struct{})
	for _, s := range streams {
		receivers.Go(func() { s.receive(p, r.Before.TAI, &missing, all) })
	}

	offset := clockOffset()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		// One thread sleeps and sends, so that no other goroutine runs between the clock's reading and the
		// packet. Its priority, where that is allowed, is above ordinary programs and below the planes. It
		// is never unlocked: thread and priority end with the goroutine.
		runtime.LockOSThread()
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, senderNice)
		r.send(ctx, streams, lay, &missing)
	}()
	<-sent
	r.ClockMoved = clockOffset() - offset

	wait := time.NewTimer(p.Timeout)
	defer wait.Stop()
	if missing.Add(-1) > 0 { // the one that send holds, so that a pause in it does not look like the end
		select {
		case <-all:
		case <-wait.C:
		case <-ctx.Done():
			r.Interrupted = true
		}
	}

	r.After, err = ReadClock()
	for _, s := range streams {
		s.conn.Close()
	}
	receivers.Wait()
	return err
}

// send keeps an absolute schedule: a late packet does not delay those after it (RFC 3432, section 4).
func (r *Result) send(ctx context.Context, streams []*sending, lay layout, missing *atomic.Int64) {
	missing.Add(1)
	p := r.Probe
	clock := clockCache{read: ReadClock}
	start := monotonic().Add(10 * time.Millisecond)
	buf := make([]byte, 0, p.Size)
	for k := range p.Count * p.Streams {
		if ctx.Err() != nil {
			r.Interrupted = true
			return
		}
		round, stream := time.Duration(k/p.Streams), time.Duration(k%p.Streams)
		due := start.Add(round*p.Interval + p.Interval/time.Duration(p.Streams)*stream)
		sleepUntil(due)
		r.Late = max(r.Late, monotonic().Sub(due))
		s, seq := streams[k%p.Streams], k/p.Streams
		now := time.Now().UnixNano()
		st := clock.at(now)
		q := Question{Seq: uint32(seq), Error: NewErrorEstimate(st, p.Format), SSID: s.ssid}
		buf = lay.extensions(q.Append(buf[:0]), p.DSCP, uint32(seq))

		s.mu.Lock()
		packet := &s.stream.Packets[seq]
		packet.Sent = time.Now().UnixNano()
		packet.raw = NewTimestamp(packet.Sent, p.Format, st.TAI)
		binary.BigEndian.PutUint64(buf[4:], uint64(packet.raw))
		s.mu.Unlock()
		missing.Add(1)
		_, err := s.conn.Write(buf)
		if errors.Is(err, unix.ECONNREFUSED) { // an earlier one's ICMP error; this one has not been sent
			s.mu.Lock()
			s.refused++
			s.mu.Unlock()
			_, err = s.conn.Write(buf)
		}
		if err != nil {
			missing.Add(-1)
			s.mu.Lock()
			packet.Sent = 0
			s.mu.Unlock()
			r.SendErrors++
			if r.SendError == nil {
				r.SendError = err
			}
		}
	}
}

// receive takes answers until its socket is closed. all is closed when none is missing any more.
func (s *sending) receive(p Probe, tai time.Duration, missing *atomic.Int64, all chan<- struct{}) {
	buf, oob := make([]byte, largest), make([]byte, controlSpace)
	var ctl control
	for {
		n, on, _, _, err := s.conn.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, unix.ECONNREFUSED) {
			s.mu.Lock()
			s.refused++
			s.mu.Unlock()
			continue
		}
		if err != nil {
			return
		}
		ctl.parse(oob[:on])
		if ctl.at == 0 {
			ctl.at = time.Now().UnixNano()
		}
		if s.take(buf[:n], ctl, p, tai) && missing.Add(-1) == 0 {
			close(all)
		}
	}
}

// take records an answer, and returns whether it is the first to its question.
func (s *sending) take(b []byte, ctl control, p Probe, tai time.Duration) bool {
	a, err := ParseAnswer(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = ctl.overflow
	// An answer is as long as its question, brings back what was in it, and a number that was asked. An
	// identifier comes back from who knows RFC 8972; others leave zeros.
	ours := a.SSID == s.ssid || a.SSID == 0
	if err != nil || len(b) != p.Size || uint64(a.SenderSeq) >= uint64(len(s.stream.Packets)) || !ours {
		s.strange++
		return false
	}
	seq := int(a.SenderSeq)
	k := &s.stream.Packets[seq]
	if k.Sent == 0 || a.SenderSent != k.raw {
		s.strange++
		return false
	}
	if k.Received != 0 {
		s.stream.Duplicates++
		return false
	}
	if ctl.at-k.Sent > int64(p.Timeout) {
		return false // already counted as lost
	}
	f := a.Error.Format()
	k.Received, k.FarSeq, k.Error, k.TTL, k.DSCP = ctl.at, a.Seq, a.Error, a.SenderTTL, ctl.tos>>2
	k.ThereIn, k.ThereOut = a.Received.Unix(f, tai, ctl.at), a.Sent.Unix(f, tai, ctl.at)
	k.Far = parseFar(b[BaseSize:])
	if seq < s.highest {
		s.stream.Reordered++
	}
	s.highest = max(s.highest, seq)
	return true
}

// monotime is a reading of CLOCK_MONOTONIC.
type monotime int64

func (m monotime) Add(d time.Duration) monotime { return m + monotime(d) }
func (m monotime) Sub(o monotime) time.Duration { return time.Duration(m - o) }

func monotonic() monotime {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail: the clock always exists
	return monotime(ts.Nano())
}

// clockOffset is CLOCK_REALTIME less CLOCK_MONOTONIC: it changes when somebody sets the clock. Of several
// readings the one that was least interrupted counts.
func clockOffset() (offset time.Duration) {
	best := time.Duration(math.MaxInt64)
	for range 10 {
		before := monotonic()
		now := time.Now().UnixNano()
		if took := monotonic().Sub(before); took < best {
			best, offset = took, time.Duration(now-int64(before))-took/2
		}
	}
	return offset
}

// sleepUntil sleeps in the kernel, to a point of time and not for a while: what came between is not added.
func sleepUntil(m monotime) {
	ts := unix.NsecToTimespec(int64(m))
	for errors.Is(unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil), unix.EINTR) {
		continue
	}
}
