package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ringway/sip/compact"
	"ringway/sip/dialog"
)

// The journal keeps the calls that are up for the process that replaces this one. It is a file in memory (of the
// run directory) that the daemon opens and both processes hold: an entry for each change of a leg, written a moment
// after it, so that a call which is over at once costs nothing. The latest entry of a leg counts; one without a leg
// says that it has ended.
type journal struct {
	mu   sync.Mutex // held while it is written
	fd   int
	next uint64
	keys map[*dialog.Leg]*kept

	size, live int // bytes in the file, and of entries that still count

	buffer bytes.Buffer // of what is to be written

	handedOver bool // another process writes it from now on
	spoiled    bool // what is in it is not known: it has to be written again
}

// kept is a leg in the journal.
type kept struct {
	key   uint64
	bytes int // of its latest entry
}

// entry is one entry of the journal.
type entry struct {
	Key   uint64      `cbor:"1,keyasint"`
	Leg   compact.Raw `cbor:"2,keyasint,omitempty"`
	About *savedAbout `cbor:"4,keyasint,omitempty"` // 3 was a call as people see it
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

// read gives the legs that an earlier process had, each with what people are told of it. The last entry may have been
// cut; after an error the legs are those before it.
func (j *journal) read() (legs []entry, err error) {
	rest, err := readAll(j.fd)
	if err != nil {
		return nil, fmt.Errorf("read the journal of calls: %w", err)
	}
	latest := map[uint64]entry{}
	var order []uint64
	for at := 0; len(rest) > 0; {
		var e entry
		after, err := compact.First(rest, &e)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return ofLegs(latest, order), fmt.Errorf("read the journal of calls: at byte %d: %w", at, err)
		}
		at += len(rest) - len(after)
		rest = after
		if _, there := latest[e.Key]; !there {
			order = append(order, e.Key)
		}
		latest[e.Key] = e
	}
	return ofLegs(latest, order), nil
}

func ofLegs(latest map[uint64]entry, order []uint64) (legs []entry) {
	for _, key := range order {
		if e := latest[key]; e.Leg != nil {
			legs = append(legs, e)
		}
	}
	return legs
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

// encode queues the entry of a leg as it is now.
func (j *journal) encode(l *dialog.Leg, x *about) error {
	k := j.keys[l]
	if k == nil {
		j.next++
		k = &kept{key: j.next}
		j.keys[l] = k
	}
	saved, err := l.Save()
	if err != nil {
		return err
	}
	before := j.buffer.Len()
	if err := compact.Append(&j.buffer, entry{k.key, saved, x.save()}); err != nil {
		j.buffer.Truncate(before)
		return err
	}
	j.live += j.buffer.Len() - before - k.bytes
	k.bytes = j.buffer.Len() - before
	return nil
}

// forget queues the entry that says that a leg has ended, if the journal has it.
func (j *journal) forget(l *dialog.Leg) error {
	k := j.keys[l]
	if k == nil {
		return nil
	}
	delete(j.keys, l)
	j.live -= k.bytes
	return compact.Append(&j.buffer, entry{Key: k.key})
}

// write writes what is queued.
func (j *journal) write() error {
	defer j.buffer.Reset()
	b := j.buffer.Bytes()
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
