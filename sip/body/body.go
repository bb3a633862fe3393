// Package body finds the session description in a message's body, which may have several parts (RFC 5621).
package body

import (
	"bytes"

	"ringway/sip/message"
)

// maxDepth bounds parts within parts.
const maxDepth = 4

// Found is what a body turned out to be.
type Found uint8

// Bodies.
const (
	Nothing    Found = iota // no body, or one without a session description
	Plain                   // the description is readable
	Unreadable              // encrypted (S/MIME), compressed or encoded: there may be a description in it
)

// Description is the first session description of a message.
func Description(m *message.Message) ([]byte, Found) {
	if len(m.Body) == 0 {
		return nil, Nothing
	}
	if e := m.Header(message.ContentEncoding); len(e) > 0 && !bytes.EqualFold(e, []byte("identity")) {
		return nil, Unreadable
	}
	kind := m.Header(message.ContentType)
	if kind == nil && bytes.HasPrefix(m.Body, []byte("v=0")) {
		return m.Body, Plain // RFC 3261, section 7.4.1, wants the type; what a phone without it means is plain
	}
	return find(kind, m.Body, maxDepth)
}

func find(contentType, b []byte, depth int) ([]byte, Found) {
	kind, params := contentType, []byte(nil)
	if semicolon := bytes.IndexByte(contentType, ';'); semicolon >= 0 {
		kind, params = contentType[:semicolon], contentType[semicolon:]
	}
	kind = bytes.TrimSpace(kind)
	switch {
	case bytes.EqualFold(kind, []byte("application/sdp")):
		return b, Plain
	case hasPrefixFold(kind, "application/pkcs7-"), hasPrefixFold(kind, "application/x-pkcs7-"):
		return nil, Unreadable
	case hasPrefixFold(kind, "multipart/") && depth > 0:
		boundary, _ := message.Param(params, "boundary")
		if len(boundary) == 0 || len(boundary) > 70 { // RFC 2046, section 5.1.1
			return nil, Nothing
		}
		return findPart(b, boundary, depth-1)
	}
	return nil, Nothing
}

// findPart looks through the parts between lines of `--boundary` (RFC 2046, section 5.1.1).
func findPart(b, boundary []byte, depth int) (description []byte, found Found) {
	at := delimiter(b, boundary)
	for at.next >= 0 && !at.last {
		b = b[at.next:]
		at = delimiter(b, boundary)
		part := b[:at.start]
		d, f := readPart(part, depth)
		if f == Plain {
			return d, f
		}
		found = max(found, f)
	}
	return nil, found
}

// edge is where a delimiter line begins, with the line end before it, and where what follows it begins.
type edge struct {
	start, next int // next is -1 if there is none: then start is the end
	last        bool
}

func delimiter(b, boundary []byte) edge {
	for from := 0; ; {
		i := bytes.Index(b[from:], boundary)
		if i < 0 {
			return edge{start: len(b), next: -1}
		}
		i += from
		from = i + 1
		if i < 2 || b[i-1] != '-' || b[i-2] != '-' || i > 2 && b[i-3] != '\n' {
			continue
		}
		rest := b[i+len(boundary):]
		e := edge{start: i - 2, last: bytes.HasPrefix(rest, []byte("--"))}
		end := bytes.IndexByte(rest, '\n')
		if end < 0 {
			end = len(rest) - 1
		}
		if !e.last && len(bytes.TrimSpace(rest[:end+1])) > 0 {
			continue // a longer boundary that begins with this one
		}
		e.next = i + len(boundary) + end + 1
		if e.start > 0 {
			e.start-- // the line end belongs to the delimiter
		}
		if e.start > 0 && b[e.start-1] == '\r' {
			e.start--
		}
		return e
	}
}

// readPart looks into one part: its header fields, an empty line and its body.
func readPart(part []byte, depth int) ([]byte, Found) {
	contentType := []byte("text/plain")
	encoded := false
	for len(part) > 0 {
		line := part
		if end := bytes.IndexByte(part, '\n'); end >= 0 {
			line, part = part[:end], part[end+1:]
		} else {
			part = nil
		}
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch name = bytes.TrimSpace(name); {
		case bytes.EqualFold(name, []byte("content-type")):
			contentType = value
		case bytes.EqualFold(name, []byte("content-transfer-encoding")):
			encoded = bytes.EqualFold(value, []byte("base64")) || bytes.EqualFold(value, []byte("quoted-printable"))
		}
	}
	d, f := find(contentType, part, depth)
	if f == Plain && encoded {
		return nil, Unreadable
	}
	return d, f
}

func hasPrefixFold(b []byte, prefix string) bool {
	return len(b) >= len(prefix) && bytes.EqualFold(b[:len(prefix)], []byte(prefix))
}
