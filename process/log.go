package process

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

const (
	logBurst      = 200 // log records of a process in a row
	logPerSecond  = 50  // and as a rate
	logBacklog    = 128 // records that wait in the process while no daemon is there
	logAttrs      = 32  // of one record
	logTextMax    = 4096
	stderrLines   = 60  // of one process: a trace of hundreds of goroutines helps nobody
	stderrLineMax = 512 // bytes
)

// logRecord is one record of a process's log.
type logRecord struct {
	Time    time.Time      `json:"time"`
	Level   int            `json:"level"`
	Message string         `json:"message"`
	Attrs   map[string]any `json:"attrs,omitempty"`
	Dropped uint64         `json:"dropped,omitempty"` // records before this one that the process had no room for
}

// logLimit bounds what a process can write to the daemon's log: what strangers send it may make it log at any
// rate.
type logLimit struct {
	mu      sync.Mutex
	tokens  float64
	at      time.Time
	dropped uint64 // in all
	told    uint64 // of them, said in the log
}

func newLogLimit() *logLimit { return &logLimit{tokens: logBurst} }

// take says whether a record may be logged, and how many were dropped since that was last said.
func (l *logLimit) take(now time.Time) (ok bool, dropped uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.at.IsZero() {
		l.tokens = min(logBurst, l.tokens+now.Sub(l.at).Seconds()*logPerSecond)
	}
	l.at = now
	if l.tokens < 1 {
		l.dropped++
		return false, 0
	}
	l.tokens--
	dropped = l.dropped - l.told
	l.told = l.dropped
	return true, dropped
}

// lost counts records that were dropped elsewhere.
func (l *logLimit) lost(n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropped += n
}

func (l *logLimit) total() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped
}

// logRecord logs what a process pushed.
func (s *Supervisor) logRecord(r *logRecord) {
	if r == nil {
		return
	}
	if r.Dropped > 0 {
		s.limit.lost(r.Dropped)
	}
	if !s.mayLog() {
		return
	}
	var args []any
	for k, v := range r.Attrs {
		if len(args) == 2*logAttrs {
			break
		}
		args = append(args, cut(k), cut(fmt.Sprint(v)))
	}
	s.log.Log(context.Background(), slog.Level(r.Level), cut(r.Message), args...)
}

// cut shortens a text that a process wrote: a message may be as long as the protocol allows.
func cut(s string) string {
	if len(s) > logTextMax {
		return s[:logTextMax] + "..."
	}
	return s
}

// mayLog takes one record off the limit. It says in the log how many were dropped before.
func (s *Supervisor) mayLog() bool {
	ok, dropped := s.limit.take(time.Now())
	if dropped > 0 {
		s.log.Warn("log lines of the process were dropped: too many", "lines", dropped)
	}
	return ok
}

// forwardStderr logs what a process's runtime writes, up to stderrLines.
func (s *Supervisor) forwardStderr(f io.Reader, pid int) {
	buf := make([]byte, 4096)
	var line []byte
	lines := 0
	end := func() {
		if len(line) == 0 {
			return
		}
		if lines++; lines <= stderrLines {
			s.log.Error("process wrote to stderr", "pid", pid, "line", string(line))
		} else {
			s.limit.lost(1)
		}
		line = line[:0]
	}
	for {
		n, err := f.Read(buf)
		for _, b := range buf[:n] {
			if b == '\n' {
				end()
				continue
			}
			if line = append(line, b); len(line) == stderrLineMax {
				end()
			}
		}
		if err != nil {
			end()
			return
		}
	}
}

// pushLog is the log of a process. Its records go to the daemon, which has a place to write to; while there
// is none, the last ones wait.
type pushLog struct {
	*slog.Logger
	push    func(envelope) (taken bool)
	records chan logRecord
	woken   chan struct{}

	mu      sync.Mutex
	dropped uint64 // records that found no room, not yet reported
}

func newPushLog(push func(envelope) bool) *pushLog {
	p := &pushLog{push: push, records: make(chan logRecord, logBacklog), woken: make(chan struct{}, 1)}
	p.Logger = slog.New(&pushHandler{log: p})
	return p
}

// wake has the backlog sent: a daemon is there.
func (p *pushLog) wake() {
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

// run sends records until quit is closed.
func (p *pushLog) run(quit <-chan struct{}) {
	var waiting []logRecord
	for {
		select {
		case <-quit:
			return
		case <-p.woken:
		case r := <-p.records:
			waiting = append(waiting, r)
		}
		for len(waiting) > 0 {
			r := waiting[0]
			dropped := p.takeDropped()
			r.Dropped += dropped
			if !p.push(envelope{Type: typeLog, Log: &r}) {
				p.lost(dropped)
				break
			}
			waiting = waiting[1:]
		}
		if n := len(waiting) - logBacklog; n > 0 {
			p.lost(uint64(n))
			waiting = append([]logRecord(nil), waiting[n:]...)
		}
	}
}

func (p *pushLog) lost(n uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropped += n
}

func (p *pushLog) takeDropped() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.dropped
	p.dropped = 0
	return n
}

// pushHandler makes records of what is logged; it never blocks.
type pushHandler struct {
	log    *pushLog
	attrs  []slog.Attr
	prefix string
}

// Enabled implements slog.Handler.
func (h *pushHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

// Handle implements slog.Handler.
func (h *pushHandler) Handle(_ context.Context, r slog.Record) error {
	out := logRecord{Time: r.Time.UTC(), Level: int(r.Level), Message: r.Message, Attrs: map[string]any{}}
	put := func(prefix string, a slog.Attr) { out.Attrs[prefix+a.Key] = a.Value.Resolve().String() }
	for _, a := range h.attrs {
		put("", a)
	}
	r.Attrs(func(a slog.Attr) bool { put(h.prefix, a); return true })
	select {
	case h.log.records <- out:
	default:
		h.log.lost(1)
	}
	return nil
}

// WithAttrs implements slog.Handler.
func (h *pushHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	n.attrs = append([]slog.Attr(nil), h.attrs...)
	for _, a := range attrs {
		n.attrs = append(n.attrs, slog.Attr{Key: h.prefix + a.Key, Value: a.Value})
	}
	return &n
}

// WithGroup implements slog.Handler.
func (h *pushHandler) WithGroup(name string) slog.Handler {
	n := *h
	n.prefix += name + "."
	return &n
}
