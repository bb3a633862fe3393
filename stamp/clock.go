package stamp

import (
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Format is a timestamp format, given by the Z bit of the error estimate (RFC 8186, section 2.1).
type Format uint8

// The two formats.
const (
	NTP Format = iota // seconds since 1900 and a binary fraction, UTC (RFC 5905); the default of RFC 8762
	PTP               // seconds since 1970 and nanoseconds, TAI (IEEE 1588, truncated to 64 bits)
)

// Timestamp is the 64 bits of a timestamp in a packet.
type Timestamp uint64

// NewTimestamp writes a time, in nanoseconds of CLOCK_REALTIME. tai is TAI less UTC; it counts for PTP alone.
func NewTimestamp(at int64, f Format, tai time.Duration) Timestamp {
	if f == PTP {
		at += int64(tai)
		return Timestamp(uint64(uint32(at/1e9))<<32 | uint64(at%1e9))
	}
	// Rounded up, so that reading it gives the same nanosecond: 2^-32 s is 0.23 ns.
	fraction := (uint64(at%1e9)<<32 + 1e9 - 1) / 1e9
	return Timestamp(uint64(uint32(at/1e9+secondsToUnix))<<32 + fraction)
}

// Unix reads the time back. 32 bits of seconds come round every 136 years (NTP's in 2036): of all the
// moments that it may mean, it is the one nearest to near. Both in nanoseconds since 1970.
func (t Timestamp) Unix(f Format, tai time.Duration, near int64) int64 {
	low := int64(uint64(t) & math.MaxUint32)
	epoch := int64(secondsToUnix)
	if f == PTP {
		epoch = 0
	} else {
		low = low * 1e9 >> 32
	}
	seconds := near/1e9 + int64(int32(uint32(uint64(t)>>32)-uint32(near/1e9+epoch)))
	at := seconds*1e9 + low
	if f == PTP {
		at -= int64(tai)
	}
	return at
}

// ErrorEstimate is S, Z, scale and multiplier (RFC 4656, section 4.1.2; RFC 8762, section 4.2.1).
type ErrorEstimate uint16

// NewErrorEstimate says how far off the clock may be, rounded up. An error of nothing cannot be said: a
// multiplier of zero marks a corrupt packet.
func NewErrorEstimate(c ClockState, f Format) ErrorEstimate {
	var e ErrorEstimate
	if c.Synchronized && (f == NTP || c.TAI != 0) { // with PTP, UTC that is taken for TAI is 37 s off
		e |= 1 << 15
	}
	if f == PTP {
		e |= 1 << 14
	}
	units := math.Ceil(c.MaxError.Seconds() * (1 << 32)) // of 2^-32 s
	scale := 0
	for units > 255 && scale < 63 {
		units, scale = math.Ceil(units/2), scale+1
	}
	return e | ErrorEstimate(scale)<<8 | ErrorEstimate(min(255, max(1, units)))
}

// Synchronized is the S bit: an external source synchronizes the clock to UTC.
func (e ErrorEstimate) Synchronized() bool { return e&(1<<15) != 0 }

// Format is the Z bit.
func (e ErrorEstimate) Format() Format { return Format(e >> 14 & 1) }

// Max is the most that the clock may be off; ok is false where the packet does not say.
func (e ErrorEstimate) Max() (d time.Duration, ok bool) {
	if e&0xff == 0 {
		return 0, false
	}
	s := math.Ldexp(float64(e&0xff), int(e>>8&0x3f)-32)
	if s > 1e6 { // 11 days: meaningless
		return 0, false
	}
	return time.Duration(math.Ceil(s * 1e9)), true
}

// ClockState is what the kernel knows of its clock.
type ClockState struct {
	Synchronized bool
	MaxError     time.Duration // bound of the error; meaningful where synchronized
	TAI          time.Duration // TAI less UTC, 0 where the kernel was not told
}

func (c ClockState) String() string {
	if !c.Synchronized {
		return "not synchronized"
	}
	return fmt.Sprintf("synchronized to within %s", c.MaxError)
}

// ReadClock asks the kernel (adjtimex(2)) how good its clock is; the daemon that disciplines it reports there.
func ReadClock() (ClockState, error) {
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	if err != nil {
		return ClockState{}, fmt.Errorf("read the state of the kernel clock (adjtimex): %w", err)
	}
	return ClockState{
		Synchronized: state != unix.TIME_ERROR && tx.Status&unix.STA_UNSYNC == 0,
		MaxError:     time.Duration(tx.Maxerror) * time.Microsecond,
		TAI:          time.Duration(tx.Tai) * time.Second,
	}, nil
}

// clockCache reads at most once per second: the state changes slowly, and probes arrive every millisecond.
type clockCache struct {
	mu    sync.Mutex
	read  func() (ClockState, error)
	state ClockState
	until int64
}

func (c *clockCache) at(now int64) ClockState {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now >= c.until || now < c.until-int64(time.Second) { // the second: the clock was set back
		st, err := c.read()
		if err != nil {
			st = ClockState{} // unknown means not synchronized
		}
		c.state, c.until = st, now+int64(time.Second)
	}
	return c.state
}
