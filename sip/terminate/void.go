package terminate

import "bytes"

// Void is a description with port 0 in all lines m= (RFC 3264, section 6), and without all that could be taken for
// something else: of the rest only v=, o=, s=, c= and t= stay. It is nil where there is no such form: one that is no
// description, or whose lines end in ways that readers take differently.
func Void(text []byte) (out []byte) {
	media := 0
	for line := range bytes.Lines(text) {
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if bytes.ContainsAny(line, "\r\x00") {
			return nil
		}
		if len(line) < 2 || line[1] != '=' {
			continue
		}
		switch line[0] {
		case 'v', 'o', 's', 'c', 't':
			out = append(out, line...)
		case 'm':
			fields := bytes.Fields(line)
			if len(fields) < 4 {
				return nil
			}
			fields[1] = []byte("0")
			out = append(out, bytes.Join(fields, []byte(" "))...)
			media++
		default:
			continue
		}
		out = append(out, "\r\n"...)
	}
	if media == 0 {
		return nil
	}
	return out
}
