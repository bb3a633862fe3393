package body

import (
	"bytes"
	"strconv"

	"ringway/sip/message"
)

// Replace is the message with another text in place of a description that Description found in it; nil if that would
// be longer than limit. Beside the description only the number in Content-Length changes. What follows the body in a
// datagram is left out: nobody may read it (RFC 3261, section 18.3), and whoever did would find what was replaced.
func Replace(m *message.Message, description, by []byte, limit int) []byte {
	before := cap(m.Body) - cap(description) // it is a part of the body, and both have room up to the body's end
	head := m.Head()
	size := len(m.Body) - len(description) + len(by)
	out := make([]byte, 0, len(head)+size+len("65535"))
	at := 0
	for _, h := range m.Headers() {
		if h.Kind == message.ContentLength {
			out = append(out, head[:h.Value.Start]...)
			out = strconv.AppendInt(out, int64(size), 10)
			at = int(h.Value.End)
		}
	}
	out = append(out, head[at:]...)
	out = append(out, m.Body[:before]...)
	out = append(out, by...)
	out = append(out, m.Body[before+len(description):]...)
	if len(out) > limit {
		clear(out)
		return nil
	}
	return out
}

// Stray reports whether some reader might find a session description in a message beside the one that Description
// found (nil: it found none): in another part, under another of several Content-Types, or in spite of its type.
func Stray(m *message.Message, description []byte) bool {
	if len(m.Body) == 0 {
		return false
	}
	before := m.Body
	var after []byte
	if len(description) > 0 {
		at := cap(m.Body) - cap(description)
		before, after = m.Body[:at], m.Body[at+len(description):]
	}
	return !once(m) || Describes(before) || Describes(after)
}

// once reports whether no header field about the body is there twice.
func once(m *message.Message) bool {
	var seen [2]bool
	for _, h := range m.Headers() {
		var at int
		switch h.Kind {
		case message.ContentType:
		case message.ContentEncoding:
			at = 1
		default:
			continue
		}
		if seen[at] {
			return false
		}
		seen[at] = true
	}
	return true
}

// Describes reports whether a text has a line that begins a medium or a session.
func Describes(text []byte) bool {
	for line := range bytes.FieldsFuncSeq(text, func(r rune) bool { return r == '\r' || r == '\n' }) {
		if line = bytes.TrimLeft(line, " \t"); bytes.HasPrefix(line, []byte("m=")) || bytes.HasPrefix(line, []byte("v=0")) {
			return true
		}
	}
	return false
}
