package message

import "bytes"

// Framer cuts a stream into messages (RFC 3261, section 18.3). Where the bytes were split on their way
// changes nothing of what it finds. It buffers nothing: the caller keeps the bytes until they go on,
// MaxSize of them at most.
type Framer struct {
	lines int // bytes that are whole lines of the head of a message
	end   int // where the message ends; 0: not known yet
}

// Next looks at all bytes that have come and not gone on, and fills m from the first message in them.
//
//   - n > 0: so many bytes go on together. why is None if m is a message that was read; KeepAlive if they
//     are line ends between messages; else why the message goes on unread.
//   - n = 0, why None: more bytes are needed.
//   - n = 0, why to be refused: nothing in this stream has a certain start any more, and it is to be
//     closed.
//
// After n > 0 the next call takes what follows those n bytes; after n = 0, the same bytes and more.
func (f *Framer) Next(b []byte, m *Message) (n int, why Reason) {
	if f.lines == 0 && f.end == 0 {
		if n := skipLineEnds(b); n > 0 {
			return n, KeepAlive
		}
	}
	if f.end == 0 {
		if why := f.findEnd(b, m); why != None {
			return 0, why
		}
	}
	if f.end == 0 || len(b) < f.end {
		if len(b) >= MaxSize {
			return 0, TooLong
		}
		return 0, None
	}

	n = f.end
	*f = Framer{}
	if why = m.Scan(b[:n:n]); why.Verdict() == Refused {
		return 0, why
	}
	return n, why
}

// findEnd looks for the empty line after the headers, line by line, so that a message is refused at the
// line that is at fault and not when a head that never ends has ended.
func (f *Framer) findEnd(b []byte, m *Message) Reason {
	b = b[:min(len(b), MaxSize)]
	for {
		end, next := line(b, f.lines)
		if next < 0 {
			return unended(b[f.lines:], f.lines == 0)
		}
		if f.lines == 0 {
			m.reset(b)
			if why := m.startLine(0, end); why.Verdict() == Refused {
				return why
			}
		}
		empty := end == f.lines
		f.lines = next
		if empty {
			break
		}
	}

	_, why := m.scanHead(b[:f.lines])
	if why.Verdict() == Refused {
		return why
	}
	if !m.Has(ContentLength) {
		return MissingContentLength
	}
	length, why := m.contentLength()
	if why != None {
		return why
	}
	if f.end = f.lines + length; f.end > MaxSize {
		return TooLong
	}
	return None
}

// unended is what is wrong with the last line, of which more may come.
func unended(b []byte, first bool) Reason {
	if i := bytes.IndexAny(b, "\r\n"); i < 0 || b[i] == '\r' && i == len(b)-1 {
		return None
	}
	if first {
		return BadStartLine
	}
	return BareLineEnd
}
