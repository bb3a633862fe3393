package lab

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// progress prints what the lab is doing: on a terminal one line with a running clock, elsewhere one line for
// each step.
type progress struct {
	w        io.Writer
	terminal bool
	start    time.Time

	mu    sync.Mutex // guards what follows, and the writer
	what  string
	since time.Time
	until time.Duration // duration of the step, where it is known
	stop  chan struct{} // stops the clock; nil if none runs
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, start: time.Now()}
	if f, ok := w.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		p.terminal = err == nil && os.Getenv("TERM") != "dumb"
	}
	return p
}

// step starts a step and ends the previous one.
func (p *progress) step(format string, args ...any) { p.timed(0, format, args...) }

// timed starts a step that is known to take d.
func (p *progress) timed(d time.Duration, format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finishLocked()
	p.what, p.since, p.until = fmt.Sprintf(format, args...), time.Now(), d
	if !p.terminal {
		fmt.Fprintf(p.w, "%6.1fs  %s%s\n", time.Since(p.start).Seconds(), p.what, p.takesLocked())
		return
	}
	p.drawLocked("⠿")
	if p.stop == nil {
		p.stop = make(chan struct{})
		go p.clock(p.stop)
	}
}

func (p *progress) takesLocked() string {
	if p.until == 0 {
		return ""
	}
	return fmt.Sprintf(" (about %s)", p.until.Round(time.Second))
}

// note prints a line without ending the step.
func (p *progress) note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal {
		fmt.Fprint(p.w, "\r\033[K")
	}
	fmt.Fprintf(p.w, "%6.1fs  %s\n", time.Since(p.start).Seconds(), fmt.Sprintf(format, args...))
}

// end ends the last step.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finishLocked()
	if p.stop != nil {
		close(p.stop)
		p.stop = nil
	}
}

func (p *progress) finishLocked() {
	if p.what != "" && p.terminal {
		fmt.Fprintf(p.w, "\r\033[K%6.1fs  %s\n", time.Since(p.start).Seconds(), p.what)
	}
	p.what = ""
}

func (p *progress) drawLocked(mark string) {
	took := time.Since(p.since).Round(time.Second)
	line := fmt.Sprintf("%s %s  %s", mark, p.what, took)
	if p.until > 0 {
		line += fmt.Sprintf(" of %s", p.until.Round(time.Second))
	}
	fmt.Fprintf(p.w, "\r\033[K%s", line)
}

func (p *progress) clock(stop chan struct{}) {
	marks := []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		p.mu.Lock()
		if p.what != "" {
			p.drawLocked(marks[i%len(marks)])
		}
		p.mu.Unlock()
	}
}
