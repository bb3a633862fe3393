// Package refusal writes the final response that this box sends in the called party's name to a request that
// it does not let through (RFC 3261, section 8.2.6). The response is stateless (section 8.2.7): the same
// request that comes again gets the same bytes.
package refusal

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"ringway/sip/host"
	"ringway/sip/message"
)

// Bounds.
const (
	// MaxGrowth is by how many bytes a response may be longer than its request: the status line, Warning,
	// Content-Length, the tag, received and rport make 364 at most, and the blank after the colon one for each
	// header field that came without. So nobody can use it to amplify a flood to a forged address.
	MaxGrowth = 364 + message.MaxHeaders

	// MaxText is the longest text of a warning, in bytes.
	MaxText = 96

	maxAgent = 64 // bytes; host names are longer, but nobody needs one here
	maxTag   = 64
	maxText  = 32 // of a reason phrase
)

// Form is what a refusal says.
type Form struct {
	Status  int    // 300-699
	Phrase  string // its reason phrase
	Warning int    // warn-code (RFC 3261, section 20.43); 0: no Warning
	Text    string // of the warning
}

// The forms. None has a Retry-After: it makes phones and proxies avoid the called party for so long (RFC 3261,
// section 21.5.4), and not this call alone.
var (
	// NotAcceptable is for a phone, and for any offer within a dialog: the call stays as it was (section
	// 14.2).
	NotAcceptable = Form{488, "Not Acceptable Here", 370, "Insufficient bandwidth"}
	// Unavailable is for a PBX or a trunk, which tries another way then.
	Unavailable = Form{503, "Service Unavailable", 370, "Insufficient bandwidth"}
	// Forbidden is for a call that a limit on abuse blocks. Asking again does not help (section 21.4.4).
	Forbidden = Form{Status: 403, Phrase: "Forbidden"}
)

// NoRoom is the form for an offer that does not fit. phone: the request comes from a phone, and not from a
// PBX or trunk. inDialog: it changes a call that is up.
func NoRoom(phone, inDialog bool) Form {
	if phone || inDialog {
		return NotAcceptable
	}
	return Unavailable
}

// Refusal is a response to be.
type Refusal struct {
	Form
	// Source is where the request's packet came from, or the far end of its connection.
	Source netip.AddrPort
	// Agent names in the Warning who refuses: a host, with or without a port, or a word. Empty: "ringway".
	Agent string
	// Tag is for a To without a tag: Tag makes one. In a dialog the To has one already, which stays.
	Tag string
}

// ErrNoResponse is a request that gets no response: an ACK, or no request at all.
var ErrNoResponse = errors.New("answer a SIP message: only requests but ACK have responses")

// needed are the header fields that a response copies (RFC 3261, section 8.2.6.2), in the order in which they
// are written.
var needed = [...]struct {
	kind message.Kind
	name string
}{
	{message.Via, "Via"}, {message.From, "From"}, {message.To, "To"},
	{message.CallID, "Call-ID"}, {message.CSeq, "CSeq"},
}

// Append appends the response to m to dst, which must not overlap m.Raw.
func Append(dst []byte, m *message.Message, r Refusal) ([]byte, error) {
	if !m.Request || m.Method == message.ACK {
		return dst, ErrNoResponse
	}
	if err := r.check(); err != nil {
		return dst, err
	}
	for _, n := range needed {
		if len(m.Header(n.kind)) == 0 {
			return dst, fmt.Errorf("answer %s: %s is missing", m.MethodName(), n.name)
		}
	}
	to, ok := message.ParseAddress(m.Header(message.To))
	if !ok {
		return dst, fmt.Errorf("answer %s: To is not an address", m.MethodName())
	}
	via, ok := message.ParseVia(m.Header(message.Via))
	if !ok {
		return dst, fmt.Errorf("answer %s: Via cannot be read", m.MethodName())
	}

	start := len(dst)
	dst = fmt.Appendf(dst, "SIP/2.0 %d %s\r\n", r.Status, r.Phrase)
	dst = appendVias(dst, m, via, r.Source)
	for _, n := range needed[1:] {
		dst = appendHeader(dst, m, n.kind)
		if _, has := message.Param(to.Params, "tag"); n.kind == message.To && !has {
			dst = append(bytes.TrimRight(dst, "; \t"), ";tag="+r.Tag...)
		}
		dst = append(dst, "\r\n"...)
	}
	if r.Warning > 0 {
		agent := r.Agent
		if agent == "" {
			agent = "ringway"
		}
		dst = fmt.Appendf(dst, "Warning: %d %s \"%s\"\r\n", r.Warning, agent, r.Text)
	}
	dst = append(dst, "Content-Length: 0\r\n\r\n"...)
	if len(dst)-start > len(m.Raw)+MaxGrowth {
		return dst[:start], fmt.Errorf("answer %s: the response would be %d bytes longer (allowed: %d)",
			m.MethodName(), len(dst)-start-len(m.Raw), MaxGrowth)
	}
	return dst, nil
}

// check refuses what would not be one response.
func (r *Refusal) check() error {
	switch {
	case r.Status < 300 || r.Status > 699:
		return fmt.Errorf("refuse with status %d (allowed: 300-699)", r.Status)
	case len(r.Phrase) > maxText || !isText(r.Phrase):
		return fmt.Errorf("refuse with the phrase %q (allowed: up to %d letters)", r.Phrase, maxText)
	case r.Warning != 0 && (r.Warning < 300 || r.Warning > 399 || len(r.Text) > MaxText || !isText(r.Text)):
		return fmt.Errorf("warn with %d %q (allowed: 300-399, up to %d letters)", r.Warning, r.Text, MaxText)
	case len(r.Agent) > maxAgent || !isWord(r.Agent, "[]:"):
		return fmt.Errorf("warn in the name of %q (allowed: a host or a word, up to %d bytes)", r.Agent, maxAgent)
	case r.Tag == "" || len(r.Tag) > maxTag || !isWord(r.Tag, ""):
		return fmt.Errorf("refuse with the tag %q (allowed: a word of 1 to %d bytes)", r.Tag, maxTag)
	case !r.Source.IsValid() || r.Source.Port() == 0:
		return fmt.Errorf("refuse a request from %s: not an address with a port", r.Source)
	}
	return nil
}

func isText(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// isWord holds for characters of a token (RFC 3261, section 25.1) and those in more.
func isWord(s, more string) bool {
	for _, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && !bytes.Contains([]byte("-.!%*_+`'~"+more), []byte{c}) {
			return false
		}
	}
	return true
}

// appendHeader appends the first header field of a kind, without its line end. Its name stays as it came.
func appendHeader(dst []byte, m *message.Message, k message.Kind) []byte {
	for _, h := range m.Headers() {
		if h.Kind == k {
			dst = append(append(dst, m.Bytes(h.Name)...), ": "...)
			return appendUnfolded(dst, m.Bytes(h.Value))
		}
	}
	return dst
}

// appendUnfolded appends a value with a blank where its lines were folded (RFC 3261, section 7.3.1).
func appendUnfolded(dst, value []byte) []byte {
	for len(value) > 0 {
		end := bytes.IndexByte(value, '\r')
		if end < 0 {
			return append(dst, value...)
		}
		dst = append(bytes.TrimRight(append(dst, value[:end]...), " \t"), ' ')
		value = bytes.TrimLeft(value[end:], "\r\n \t")
	}
	return dst
}

// appendVias appends all Via header fields in their order. The first value gets what its receiver adds.
func appendVias(dst []byte, m *message.Message, top message.HopVia, source netip.AddrPort) []byte {
	first := true
	for _, h := range m.Headers() {
		if h.Kind != message.Via {
			continue
		}
		dst = append(append(dst, m.Bytes(h.Name)...), ": "...)
		value := m.Bytes(h.Value)
		if first {
			end := indexOutsideQuotes(value, ',')
			dst = appendTop(dst, value[:end], top, source)
			value = value[end:]
			first = false
		}
		dst = append(appendUnfolded(dst, value), "\r\n"...)
	}
	return dst
}

// appendTop appends the topmost Via value with `received` and `rport`. RFC 3581, section 4: a client that
// sends an empty rport gets both. Else `received` is for one whose address is another than it says (RFC 3261,
// section 18.2.1).
func appendTop(dst, value []byte, top message.HopVia, source netip.AddrPort) []byte {
	address := source.Addr().Unmap().WithZone("")
	rport, asks := message.Param(top.Params, "rport")
	asks = asks && len(rport) == 0
	said, isAddress := host.Parse(sentByHost(top.SentBy))
	received := asks || !isAddress || said != address

	for first := true; len(value) > 0; first = false {
		end := indexOutsideQuotes(value, ';')
		part := value[:end]
		value = value[min(end+1, len(value)):]
		switch name := paramName(part); {
		case first:
			dst = trimRight(appendUnfolded(dst, part))
		case asks && equalFold(name, "rport"):
			dst = strconv.AppendUint(append(dst, ";rport="...), uint64(source.Port()), 10)
		case received && equalFold(name, "received"):
			// What the client says of itself is not what was seen.
		default:
			dst = trimRight(appendUnfolded(append(dst, ';'), part))
		}
	}
	if received {
		dst = address.AppendTo(append(dst, ";received="...))
	}
	return dst
}

func trimRight(b []byte) []byte { return bytes.TrimRight(b, " \t") }

// paramName is the name of a parameter, without its value.
func paramName(part []byte) []byte {
	name, _, _ := bytes.Cut(part, []byte("="))
	return bytes.TrimSpace(name)
}

func equalFold(b []byte, name string) bool { return bytes.EqualFold(b, []byte(name)) }

// sentByHost is a sent-by without its port.
func sentByHost(sentBy []byte) []byte {
	if len(sentBy) > 0 && sentBy[0] == '[' {
		end := bytes.IndexByte(sentBy, ']')
		return sentBy[:end+1]
	}
	h, _, _ := bytes.Cut(sentBy, []byte(":"))
	return bytes.TrimSpace(h)
}

// indexOutsideQuotes finds the first c that is in no quoted string; len(b) if there is none.
func indexOutsideQuotes(b []byte, c byte) int {
	quoted := false
	for i := 0; i < len(b); i++ {
		switch {
		case quoted && b[i] == '\\':
			i++
		case b[i] == '"':
			quoted = !quoted
		case !quoted && b[i] == c:
			return i
		}
	}
	return len(b)
}

// Tag makes the tag of the response to m, or to an ACK of it, from a secret of this box: nobody can guess it,
// and nothing has to be remembered (RFC 3261, sections 8.2.7 and 19.3).
func Tag(secret []byte, m *message.Message) string {
	h := hmac.New(sha256.New, secret)
	from, _ := message.ParseAddress(m.Header(message.From))
	via, _ := message.ParseVia(m.Header(message.Via))
	for _, part := range [][]byte{m.CallID(), from.Tag(), via.Branch(), strconv.AppendUint(nil, uint64(m.CSeq), 10)} {
		h.Write(strconv.AppendInt(nil, int64(len(part)), 10))
		h.Write([]byte{':'})
		h.Write(part)
	}
	return tagPrefix + hex.EncodeToString(h.Sum(nil)[:tagBytes])
}

const (
	tagPrefix = "rw"
	tagBytes  = 12
)

// IsAcknowledged reports whether m is the ACK of a refusal of this box: it ends here, since the called party
// never saw the INVITE. Within a dialog the tag is not ours, and the ACK goes on; it belongs to no transaction
// there and is ignored.
func IsAcknowledged(secret []byte, m *message.Message) bool {
	if !m.Request || m.Method != message.ACK {
		return false
	}
	to, _ := message.ParseAddress(m.Header(message.To))
	tag := to.Tag()
	if len(tag) != len(tagPrefix)+2*tagBytes || !bytes.HasPrefix(tag, []byte(tagPrefix)) {
		return false // without reckoning: it is so with each call that was accepted
	}
	return hmac.Equal(tag, []byte(Tag(secret, m)))
}

// Destination is where a response over UDP goes (RFC 3261, section 18.2.2; RFC 3581, section 4): to the source
// of the request; to the port in its Via if that does not ask for the source's. maddr is not followed: that
// would have this box send to anybody. Over TCP and TLS a response goes back on its connection.
func Destination(m *message.Message, source netip.AddrPort) netip.AddrPort {
	via, ok := message.ParseVia(m.Header(message.Via))
	if _, asks := message.Param(via.Params, "rport"); asks || !ok {
		return source
	}
	const defaultPort = 5060
	port := uint64(defaultPort)
	if i := bytes.LastIndexByte(via.SentBy, ':'); i > bytes.LastIndexByte(via.SentBy, ']') {
		n, err := strconv.ParseUint(string(bytes.TrimSpace(via.SentBy[i+1:])), 10, 16)
		if err != nil || n == 0 {
			return source
		}
		port = n
	}
	return netip.AddrPortFrom(source.Addr(), uint16(port))
}
