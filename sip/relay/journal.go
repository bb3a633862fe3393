package relay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ringway/sip/call"
	"ringway/sip/dialog"
)

// The journal keeps the calls that are up for the process that replaces this one. It is a file in memory (of the
// run directory) that the daemon opens and both processes hold: a line for each change of a leg, written a moment
// after it, so that a call which is over at once costs nothing. The latest line of a leg counts; one without a leg
// says that it has ended.
type journal struct {
	mu   sync.Mutex // held while it is written
	fd   int
	next uint64
	keys map[*dialog.Leg]*kept

	size, live int // bytes in the file, and of lines that still count

	handedOver bool // another process writes it from now on
	spoiled    bool // what is in it is not known: it has to be written again
}

// kept is a leg in the journal.
type kept struct {
	key   uint64
	bytes int // of its latest line
}

// line is one line of the journal.
type line struct {
	Key  uint64          `json:"k"`
	Leg  json.RawMessage `json:"leg,omitempty"`
	Call *call.Call      `json:"call,omitempty"`
}

const (
	// journalEvery is how long after a change it is written.
	journalEvery = 100 * time.Millisecond
	// compactAbove and compactFactor say when the journal is rewritten: above so many bytes, and so many times
	// what it has to hold.
	compactAbove  = 1 << 20
	compactFactor = 4
	// maxJournal bounds what is read and written, in bytes.
	maxJournal = 256 << 20
	// journalAgain is the pause after a write that failed.
	journalAgain = 5 * time.Second
)

func newJournal(fd int) *journal { return &journal{fd: fd, keys: map[*dialog.Leg]*kept{}} }

// read gives the legs that an earlier process had, each with what people are told of it. A line that cannot be
// read is left out: the last one may have been cut.
func (j *journal) read() (legs []line, err error) {
	text, err := readAll(j.fd)
	if err != nil {
		return nil, fmt.Errorf("read the journal of calls: %w", err)
	}
	latest := map[uint64]line{}
	var order []uint64
	for one := range bytes.Lines(text) {
		var l line
		if json.Unmarshal(one, &l) != nil {
			continue
		}
		if _, there := latest[l.Key]; !there {
			order = append(order, l.Key)
		}
		latest[l.Key] = l
	}
	for _, key := range order {
		if l := latest[key]; l.Leg != nil {
			legs = append(legs, l)
		}
	}
	return legs, nil
}

// readAll reads a file from its beginning.
func readAll(fd int) ([]byte, error) {
	var all []byte
	buf := make([]byte, 64<<10)
	for len(all) < maxJournal {
		n, err := unix.Pread(fd, buf, int64(len(all)))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, err
		case n == 0:
			return all, nil
		}
		all = append(all, buf[:n]...)
	}
	return nil, fmt.Errorf("it is longer than %d bytes", maxJournal)
}

// encode is the line of a leg as it is now.
func (j *journal) encode(l *dialog.Leg, about *call.Call) ([]byte, error) {
	k := j.keys[l]
	if k == nil {
		j.next++
		k = &kept{key: j.next}
		j.keys[l] = k
	}
	saved, err := l.Save()
	if err != nil {
		return nil, err
	}
	// Put together here: the library would read what it has just written once more.
	b := fmt.Appendf(nil, `{"k":%d,"leg":%s`, k.key, saved)
	if about != nil {
		call, err := json.Marshal(about)
		if err != nil {
			return nil, err
		}
		b = append(append(b, `,"call":`...), call...)
	}
	b = append(b, "}\n"...)
	j.live += len(b) - k.bytes
	k.bytes = len(b)
	return b, nil
}

// forget is the line that says that a leg has ended; nil if the journal does not have it.
func (j *journal) forget(l *dialog.Leg) []byte {
	k := j.keys[l]
	if k == nil {
		return nil
	}
	delete(j.keys, l)
	j.live -= k.bytes
	b, _ := json.Marshal(line{Key: k.key})
	return append(b, '\n')
}

// write appends lines.
func (j *journal) write(b []byte) error {
	if j.size+len(b) > maxJournal { // nobody could read it
		j.spoiled = true
		return fmt.Errorf("write the journal of calls: more than %d bytes", maxJournal)
	}
	for len(b) > 0 {
		n, err := unix.Write(j.fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			j.spoiled = true
			return fmt.Errorf("write the journal of calls: %w", err)
		}
		j.size += n
		b = b[n:]
	}
	return nil
}

// clear empties the file; every leg has to be written again.
func (j *journal) clear() error {
	if err := unix.Ftruncate(j.fd, 0); err != nil {
		return fmt.Errorf("shorten the journal of calls: %w", err)
	}
	j.size, j.live, j.spoiled = 0, 0, false
	clear(j.keys)
	return nil
}

// bloated reports whether the file is to be written again: most of it is about what is over.
func (j *journal) bloated() bool {
	return j.spoiled || j.size > compactAbove && j.size > compactFactor*j.live
}
