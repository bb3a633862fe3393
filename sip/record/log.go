package record

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"ringway/sip/privacy"
)

// Limits bound what is kept.
type Limits struct {
	Keep time.Duration // age of a record, from its end
	Size int64         // of all files, in bytes
}

// Defaults are limits for a branch: a week (`calls.keep`), and about 30,000 calls.
func Defaults() Limits { return Limits{Keep: 7 * 24 * time.Hour, Size: 32 << 20} }

// Bounds of Limits.
const (
	minKeep, maxKeep = time.Hour, 366 * 24 * time.Hour
	minSize, maxSize = 64 << 10, 1 << 30
)

// Validate returns all that is wrong with l.
func (l Limits) Validate() error {
	var all []error
	if l.Keep < minKeep || l.Keep > maxKeep {
		all = append(all, fmt.Errorf("keep: %v (allowed %v to %v)", l.Keep, minKeep, maxKeep))
	}
	if l.Size < minSize || l.Size > maxSize {
		all = append(all, fmt.Errorf("size: %d bytes (allowed %d to %d)", l.Size, minSize, maxSize))
	}
	return errors.Join(all...)
}

// Geometry of the files.
const (
	segments = 8  // that fill Limits.Size
	spans    = 28 // of a segment that fill Limits.Keep: 6 hours of a week
	maxLine  = 16 << 10

	prefix, suffix = "calls-", ".jsonl"
	stamp          = "20060102T150405.000000000Z"
)

// Log is the records on a disk, in segments named for the time of their first record. A segment is removed as a
// whole: a record stays on the disk until the last one of its segment is too old, a 28th of Limits.Keep longer
// than it is shown. It is safe for concurrent use.
type Log struct {
	disk   Disk
	limits Limits
	policy privacy.Policy

	mu       sync.Mutex
	segments []segment // oldest first
	size     int64     // of all, in bytes
	torn     bool      // the last segment may not end with a whole line
	counts   Counts
}

type segment struct {
	name  string
	began time.Time
	size  int64 // in bytes
}

// Counts are what a Log did since it was opened.
type Counts struct {
	Written uint64
	Lost    uint64 // records that could not be written
	Damaged uint64 // lines that could not be read, in all readings
	// Failure is why the latest record was lost; nil: it was written.
	Failure error
}

// Open reads which segments there are. What is above the limits goes at the next Append or Expire.
func Open(disk Disk, limits Limits, policy privacy.Policy) (*Log, error) {
	if err := limits.Validate(); err != nil {
		return nil, err
	}
	entries, err := fs.ReadDir(disk, ".")
	if err != nil {
		return nil, fmt.Errorf("read call records: %w", err)
	}
	l := &Log{disk: disk, limits: limits, policy: policy, torn: true}
	for _, e := range entries { // sorted by name, and so by time
		text, ok := strings.CutPrefix(e.Name(), prefix)
		text, ends := strings.CutSuffix(text, suffix)
		began, err := time.Parse(stamp, text)
		if !ok || !ends || err != nil || !e.Type().IsRegular() {
			continue
		}
		fi, err := e.Info()
		if err != nil {
			return nil, fmt.Errorf("read call records: %w", err)
		}
		l.segments = append(l.segments, segment{e.Name(), began, fi.Size()})
		l.size += fi.Size()
	}
	return l, nil
}

// Append adds the records of calls that have ended, as many in one write as there is room for. now is the time of the
// machine's clock. Records that cannot be written are lost and counted; the next ones are tried again.
func (l *Log) Append(now time.Time, records ...Record) error {
	lines, ids, failed := make([][]byte, 0, len(records)), make([]string, 0, len(records)), 0
	var last error
	lost := func(n int, id string, err error) {
		failed, last = failed+n, fmt.Errorf("write the record of call %s: %w", id, err)
	}
	for i := range records {
		line, err := l.line(records[i])
		if err != nil {
			lost(1, records[i].ID, err)
			continue
		}
		lines, ids = append(lines, line), append(ids, records[i].ID)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(lines) > 0 {
		n, size := 0, 0
		for n < len(lines) && (n == 0 || int64(size+len(lines[n])) < l.limits.Size/segments) {
			size += len(lines[n])
			n++
		}
		if err := l.writeLocked(now, slices.Concat(lines[:n]...)); err != nil {
			lost(n, ids[n-1], err)
		} else {
			l.counts.Written += uint64(n)
		}
		lines, ids = lines[n:], ids[n:]
	}
	l.counts.Lost += uint64(failed)
	l.counts.Failure = last
	if failed > 1 {
		return fmt.Errorf("%d records of calls are lost, the last one: %w", failed, last)
	}
	return last
}

// line is a record as it is written.
func (l *Log) line(r Record) ([]byte, error) {
	r.mask(l.policy)
	r.Duration = 0
	if !r.Answered.IsZero() {
		r.Duration = max(0, r.Ended.Sub(r.Answered).Seconds())
	}
	line, err := json.Marshal(r)
	if err == nil && len(line) >= maxLine {
		err = fmt.Errorf("%d bytes (at most %d)", len(line), maxLine)
	}
	return append(line, '\n'), err
}

func (l *Log) writeLocked(now time.Time, lines []byte) error {
	if l.torn {
		lines = append([]byte("\n"), lines...)
	}
	size := int64(len(lines))
	for len(l.segments) > 1 && l.size+size > l.limits.Size {
		if err := l.removeLocked(0); err != nil {
			return err
		}
	}

	last := len(l.segments) - 1
	if last < 0 || l.fullLocked(now, size) {
		now = now.UTC()
		for slices.ContainsFunc(l.segments, func(s segment) bool { return s.began.Equal(now) }) { // of the same Append
			now = now.Add(time.Nanosecond)
		}
		l.segments = append(l.segments, segment{name: prefix + now.Format(stamp) + suffix, began: now})
		last++
	}
	s := &l.segments[last]
	if err := l.disk.Append(s.name, lines); err != nil {
		l.torn = true // a part of the line may be there
		l.measureLocked(s)
		return err
	}
	l.torn = false
	s.size += size
	l.size += size
	return nil
}

// fullLocked reports whether a record needs a new segment. One that begins in the future was written before
// the clock was set right.
func (l *Log) fullLocked(now time.Time, size int64) bool {
	s := &l.segments[len(l.segments)-1]
	age, span := now.Sub(s.began), l.limits.Keep/spans
	return s.size+size > l.limits.Size/segments || age > span || age < -span
}

// measureLocked reads the size of a segment, of which a part of a line may have been written.
func (l *Log) measureLocked(s *segment) {
	size := int64(0)
	if fi, err := fs.Stat(l.disk, s.name); err == nil {
		size = fi.Size()
	}
	l.size += size - s.size
	s.size = size
}

func (l *Log) removeLocked(i int) error {
	s := l.segments[i]
	if err := l.disk.Remove(s.name); err != nil {
		return err
	}
	l.segments = slices.Delete(l.segments, i, i+1)
	l.size -= s.size
	l.torn = true // whatever is last now was not written by the latest Append
	return nil
}

// Expire removes segments in which every record is too old.
func (l *Log) Expire(now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()

	var all []error
	for i := len(l.segments) - 1; i >= 0; i-- {
		if end := l.segments[i].began.Add(l.limits.Keep/spans + l.limits.Keep); end.Before(now) {
			all = append(all, l.removeLocked(i))
		}
	}
	if err := errors.Join(all...); err != nil {
		return fmt.Errorf("remove old call records: %w", err)
	}
	return nil
}

// Counts are what was written and lost.
func (l *Log) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()

	return l.counts
}

// Size is what all records take on the disk, in bytes.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()

	return l.size
}

// MaxFound is how many records a search returns at most: the latest ones.
const MaxFound = 10_000

// Between are the calls that were under way at some time from from to to, in the order in which they ended.
func (l *Log) Between(now, from, to time.Time) ([]Record, error) {
	return l.Find(now, func(r *Record) bool { return r.Overlaps(from, to) })
}

// At are the calls that were under way at a time.
func (l *Log) At(now, at time.Time) ([]Record, error) { return l.Between(now, at, at) }

// Phone are the calls that a phone took part in.
func (l *Log) Phone(now time.Time, phone netip.Addr) ([]Record, error) {
	return l.Find(now, func(r *Record) bool { return r.Of(phone) })
}

// Find are the records that match, without those that are too old, in the order in which they were written. It
// is never nil. After an error it is what could be read.
func (l *Log) Find(now time.Time, match func(*Record) bool) ([]Record, error) {
	l.mu.Lock()
	defer l.mu.Unlock()

	found := []Record{}
	oldest := now.Add(-l.limits.Keep)
	var all []error
	for _, s := range l.segments {
		all = append(all, l.eachLocked(s, func(r *Record, _ []byte) {
			if r == nil || r.Ended.Before(oldest) || !match(r) {
				return
			}
			if len(found) == 2*MaxFound {
				found = append(found[:0], found[MaxFound:]...)
			}
			found = append(found, *r)
		}))
	}
	found = found[max(0, len(found)-MaxFound):]
	return found, errors.Join(all...)
}

// eachLocked reads a segment line by line. r is nil for a line that is not a record: it was cut off by a full
// disk or a power cut.
func (l *Log) eachLocked(s segment, do func(r *Record, line []byte)) error {
	f, err := l.disk.Open(s.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // it was to be made, and could not be written
	case err != nil:
		return fmt.Errorf("read call records: %w", err)
	}
	defer f.Close()

	lines := bufio.NewReaderSize(f, maxLine+2)
	for long := false; ; {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) { // no line of ours: blocks of zeros after a power cut, for example
			long = true
			continue
		}
		if line = bytes.TrimSpace(line); len(line) > 0 || long {
			do(l.parseLocked(line, long), line)
		}
		long = false
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read call records: %s: %w", s.name, err)
		}
	}
}

// parseLocked reads a line; nil: it is not a record.
func (l *Log) parseLocked(line []byte, long bool) *Record {
	r := new(Record)
	if long || json.Unmarshal(line, r) != nil || r.Ended.IsZero() {
		l.counts.Damaged++
		return nil
	}
	return r
}

// Forgotten is what became of the records of a number.
type Forgotten struct {
	Removed int
	Unsure  int // masked records that may be of the number, and stay
}

// Forget removes the records of a number, in whatever form they have it. Of a masked number the last digits are
// not known: with masked, records go whose number may be the one in question, as those of its neighbours in one
// block of numbers do; without, they stay. Lines that are not records are removed as well.
func (l *Log) Forget(number string, masked bool) (Forgotten, error) {
	l.mu.Lock()
	defer l.mu.Unlock()

	limit := yes
	if masked {
		limit = unsure
	}
	var total Forgotten
	var all []error
	for i := len(l.segments) - 1; i >= 0; i-- {
		one, err := l.forgetLocked(i, number, limit)
		total.Removed += one.Removed
		total.Unsure += one.Unsure
		all = append(all, err)
	}
	if err := errors.Join(all...); err != nil {
		return total, fmt.Errorf("forget a number: %w", err)
	}
	return total, nil
}

// forgetLocked removes what matches from one segment, in which a crash leaves the old lines or the new ones.
func (l *Log) forgetLocked(i int, number string, limit match) (f Forgotten, err error) {
	var rest bytes.Buffer
	dropped := false
	err = l.eachLocked(l.segments[i], func(r *Record, line []byte) {
		if r == nil {
			dropped = true // it may hold the number
			return
		}
		found := max(same(r.Caller.Number, number), same(r.Callee.Number, number))
		if found >= limit {
			f.Removed++
			return
		}
		if found == unsure {
			f.Unsure++
		}
		rest.Write(line)
		rest.WriteByte('\n')
	})
	switch {
	case err != nil:
		return Forgotten{}, err
	case f.Removed == 0 && !dropped:
		return f, nil
	case rest.Len() == 0:
		err = l.removeLocked(i)
	default:
		if err = l.disk.Replace(l.segments[i].name, rest.Bytes()); err == nil {
			l.size += int64(rest.Len()) - l.segments[i].size
			l.segments[i].size = int64(rest.Len())
		}
	}
	if err != nil {
		f.Removed = 0 // all of them are still there
	}
	return f, err
}
