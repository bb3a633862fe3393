package privacy

import (
	"bytes"

	"ringway/sip/message"
)

// maxDepth bounds parts within parts.
const maxDepth = 4

// appendBody writes the body of m: session descriptions without their keys, in place of everything else its
// length. params are those that the media type needs to be read by.
func (r *Redactor) appendBody(b []byte, m *message.Message) (body, params []byte) {
	kind := m.Header(message.ContentType)
	coded := m.Header(message.ContentEncoding)
	switch {
	case len(m.Body) == 0:
		return b, nil
	case len(coded) > 0 && !equalFold(coded, "identity"):
		return appendBlanked(b, len(m.Body)), nil
	case kind == nil && bytes.HasPrefix(m.Body, []byte("v=0")):
		return r.appendSDP(b, m.Body), nil
	}
	if boundary := boundaryOf(kind); boundary != nil {
		params = append(append([]byte(`;boundary="`), boundary...), '"')
	}
	return r.appendContent(b, kind, m.Body, maxDepth), params
}

// appendContent writes content of some media type.
func (r *Redactor) appendContent(b, contentType, content []byte, depth int) []byte {
	boundary := boundaryOf(contentType)
	switch {
	case equalFold(mediaType(contentType), "application/sdp"):
		return r.appendSDP(b, content)
	case boundary != nil && depth > 0:
		return r.appendParts(b, boundary, content, depth-1)
	default:
		return appendBlanked(b, len(content))
	}
}

// mediaType is the `type/subtype` of a Content-Type, without parameters.
func mediaType(value []byte) []byte {
	if i := bytes.IndexByte(value, ';'); i >= 0 {
		value = value[:i]
	}
	value = trim(value)
	if kind, subtype, ok := bytes.Cut(value, []byte("/")); !ok || !isName(kind) || !isName(subtype) {
		return []byte("blanked/blanked")
	}
	return value
}

// boundaryOf is the boundary of a multipart type; nil: it is none that can be read.
func boundaryOf(contentType []byte) []byte {
	i := bytes.IndexByte(contentType, ';')
	if i < 0 || !hasPrefixFold(mediaType(contentType), "multipart/") {
		return nil
	}
	boundary, _ := message.Param(contentType[i:], "boundary")
	if len(boundary) == 0 || len(boundary) > 70 || !isPlain(boundary, "'()+_,-./:=?") { // RFC 2046, section 5.1.1
		return nil
	}
	return boundary
}

// appendParts writes the parts between lines of `--boundary`. Each keeps its type and no other header field; what
// is outside all parts is left out.
func (r *Redactor) appendParts(b, boundary, content []byte, depth int) []byte {
	delimiter := append([]byte("--"), boundary...)
	part, open := []byte(nil), false
	flush := func() {
		if open {
			b = append(append(b, delimiter...), "\r\n"...)
			b = r.appendPart(b, part, depth)
			b = append(b, "\r\n"...)
		}
		part = nil
	}
	for rest := content; len(rest) > 0; {
		line := rest
		if i := bytes.IndexByte(rest, '\n'); i >= 0 {
			line = rest[:i+1]
		}
		after, delimits := bytes.CutPrefix(line, delimiter)
		last := delimits && bytes.HasPrefix(after, []byte("--"))
		if delimits = last || delimits && len(trim(after)) == 0; delimits {
			flush()
			open = !last
		} else {
			// Parts lie one behind the other in content: the slice grows to the end of this line.
			start := len(content) - len(rest) - len(part)
			part = content[start : start+len(part)+len(line)]
		}
		rest = rest[len(line):]
		if last {
			break
		}
	}
	flush()
	return append(append(b, delimiter...), "--\r\n"...)
}

// appendPart writes one part. Before its delimiter is a line end that does not belong to it.
func (r *Redactor) appendPart(b, part []byte, depth int) []byte {
	part = bytes.TrimSuffix(bytes.TrimSuffix(part, []byte("\n")), []byte("\r"))
	contentType, coded := []byte("text/plain"), false // RFC 2046, section 5.1
	for len(part) > 0 {
		line, rest, _ := bytes.Cut(part, []byte("\n"))
		part = rest
		if line = trim(line); len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = trim(value)
		switch name = trim(name); {
		case equalFold(name, "content-type"):
			contentType = value
		case equalFold(name, "content-transfer-encoding"):
			coded = equalFold(value, "base64") || equalFold(value, "quoted-printable")
		}
	}

	boundary := boundaryOf(contentType)
	b = append(append(b, "Content-Type: "...), mediaType(contentType)...)
	if boundary != nil {
		b = append(append(append(b, `;boundary="`...), boundary...), '"')
	}
	b = append(b, "\r\n\r\n"...)
	if coded {
		return appendBlanked(b, len(part))
	}
	return r.appendContent(b, contentType, part, depth)
}
