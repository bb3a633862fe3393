package sip

import (
	"bytes"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// What the two ends know of SIP: the messages of one kind of call, in the form in which they themselves write them.
// A proxy between them adds headers at the top and changes no name.

// kind is a message of a call, in their order.
type kind int

const (
	invite kind = iota
	ringing
	answer
	ack
	bye
	byeAnswer
	kinds
)

var kindNames = [kinds]string{"INVITE", "180", "200", "ACK", "BYE", "200 to BYE"}

const (
	sipPort  = 5060
	maxBytes = 4096 // of a message
	// stampDigits are those of a time in nanoseconds.
	stampDigits = 19
)

// Headers that the ends look for. X-Sent is when a message left its end, by the machine's clock.
var (
	headerVia         = []byte("Via: ")
	headerRecordRoute = []byte("Record-Route: ")
	headerFrom        = []byte("From: ")
	headerTo          = []byte("To: ")
	headerCallID      = []byte("Call-ID: ")
	headerCSeq        = []byte("CSeq: ")
	headerSent        = []byte("X-Sent: ")
)

// zeros is where stamp writes.
const zeros = "0000000000000000000"

// stamp writes the present time into a message that is about to leave.
func stamp(b []byte) {
	i := bytes.LastIndex(b, headerSent)
	if i < 0 || i+len(headerSent)+stampDigits > len(b) {
		return
	}
	place := b[i+len(headerSent):][:stampDigits]
	n := now()
	for j := stampDigits - 1; j >= 0; j-- {
		place[j] = byte('0' + n%10)
		n /= 10
	}
}

// now is the machine's clock, which the kernel's timestamps have, too.
func now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_REALTIME, &ts)
	return ts.Nano()
}

// sentAt is when a message left its end; 0: it does not say.
func sentAt(b []byte) int64 {
	v := header(b, headerSent)
	if len(v) != stampDigits {
		return 0
	}
	n, _ := strconv.ParseInt(string(v), 10, 64)
	return n
}

// header is the value of the first header of a name.
func header(b, name []byte) []byte {
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte("\r\n"))
		if len(line) == 0 {
			return nil
		}
		if v, ok := bytes.CutPrefix(line, name); ok {
			return v
		}
		b = rest
	}
	return nil
}

// copyAll appends all lines with a header.
func copyAll(to, b, name []byte) []byte {
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte("\r\n"))
		if len(line) == 0 {
			break
		}
		if bytes.HasPrefix(line, name) {
			to = append(append(to, line...), "\r\n"...)
		}
		b = rest
	}
	return to
}

// routes are the headers Route that a Record-Route of an answer asks for (RFC 3261, section 12.1.2): in reverse.
func routes(b []byte) (out string) {
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte("\r\n"))
		if len(line) == 0 {
			break
		}
		if v, ok := bytes.CutPrefix(line, headerRecordRoute); ok {
			out = "Route: " + string(v) + "\r\n" + out
		}
		b = rest
	}
	return out
}

// number reads which call of a trial a message is of; -1: none of them.
func number(b []byte, trial string) int {
	id, ok := bytes.CutPrefix(header(b, headerCallID), []byte(trial))
	if !ok {
		return -1
	}
	digits, _, _ := bytes.Cut(id, []byte("@"))
	n, err := strconv.Atoi(string(digits))
	if err != nil {
		return -1
	}
	return n
}

// description is the session description of one party: G.711 and events, as phones offer it.
func description(address string, port int) string {
	return fmt.Sprintf("v=0\r\no=- 1 1 IN IP4 %[1]s\r\ns=-\r\nc=IN IP4 %[1]s\r\nt=0 0\r\n"+
		"m=audio %[2]d RTP/AVP 0 8 101\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\n"+
		"a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\na=ptime:20\r\na=sendrecv\r\n", address, port)
}

// end closes a message: with a body if there is one.
func end(b []byte, body string) []byte {
	b = append(append(append(b, headerSent...), zeros...), "\r\n"...)
	if body != "" {
		b = append(b, "Content-Type: application/sdp\r\n"...)
	}
	return fmt.Appendf(b, "Content-Length: %d\r\n\r\n%s", len(body), body)
}

// party is what a message of the caller says of its call.
type party struct {
	trial  string // that begins all its Call-IDs
	number int
	phone  string // address
	pbx    string
	port   int // of media
	tag    string
	routes string // from the 200
}

func (p party) request(b []byte, method string, cseq int, tag string) []byte {
	b = fmt.Appendf(b, "%s sip:2001@%s:5060 SIP/2.0\r\n", method, p.pbx)
	b = fmt.Appendf(b, "Via: SIP/2.0/UDP %s:5060;branch=z9hG4bK-%s%d-%s\r\n", p.phone, p.trial, p.number, method)
	b = append(b, p.routes...)
	b = fmt.Appendf(b, "Max-Forwards: 70\r\nFrom: <sip:1%05d@%s>;tag=%s%d\r\nTo: <sip:2001@%s>%s\r\n",
		p.number, p.phone, p.trial, p.number, p.pbx, tag)
	return fmt.Appendf(b, "Call-ID: %s%d@bench\r\nCSeq: %d %s\r\n", p.trial, p.number, cseq, method)
}

func (p party) invite(b []byte) []byte {
	b = p.request(b, "INVITE", 1, "")
	b = fmt.Appendf(b, "Contact: <sip:1%05d@%s:5060>\r\nUser-Agent: ringway-bench\r\n", p.number, p.phone)
	return end(b, description(p.phone, p.port))
}

func (p party) ack(b []byte) []byte { return end(p.request(b, "ACK", 1, p.tag), "") }

func (p party) bye(b []byte) []byte { return end(p.request(b, "BYE", 2, p.tag), "") }

// response answers a request of the caller.
func response(b, request []byte, status, tag, contact, body string) []byte {
	b = append(append(append(b, "SIP/2.0 "...), status...), "\r\n"...)
	b = copyAll(copyAll(b, request, headerVia), request, headerRecordRoute)
	b = copyAll(b, request, headerFrom)
	b = append(append(append(append(b, headerTo...), header(request, headerTo)...), tag...), "\r\n"...)
	b = copyAll(copyAll(b, request, headerCallID), request, headerCSeq)
	if contact != "" {
		b = append(append(append(b, "Contact: <"...), contact...), ">\r\n"...)
	}
	return end(b, body)
}
