package ladder

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"ringway/sip/body"
	shown "ringway/sip/call"
	"ringway/sip/message"
	"ringway/sip/sdp"
)

// View is a call as it is shown. Its fields are part of `ringway calls show --json`: they are added, never
// renamed.
type View struct {
	Call    string    `json:"call"`
	Began   time.Time `json:"began"` // of its first message that is kept
	Hops    []string  `json:"hops"`  // addresses, in the order in which they appear
	Rows    []Row     `json:"messages"`
	Missing int       `json:"missing"` // messages that are not kept
	After   int       `json:"missing_after"`

	// What media of the call went through; nil: not measured. The daemon adds it.
	Sent     *shown.Quality `json:"sent,omitempty"`
	Received *shown.Quality `json:"received,omitempty"`
}

// Row is one message.
type Row struct {
	Milliseconds float64 `json:"ms"` // since Began
	From         string  `json:"from"`
	To           string  `json:"to"`
	Transport    string  `json:"transport"`
	Label        string  `json:"label"` // `INVITE`, `180 Ringing`
	Method       string  `json:"method"`
	Status       int     `json:"status,omitempty"`
	CSeq         uint32  `json:"cseq,omitempty"`
	Again        bool    `json:"again,omitempty"` // a retransmission
	SDP          string  `json:"sdp,omitempty"`
	Text         string  `json:"text"` // the whole message, as it is kept

	from, to netip.Addr
}

// View reads the messages of a call.
func (c *Call) View() View {
	v := View{Call: clean(c.ID), Missing: c.Missing, After: c.After, Hops: []string{}, Rows: []Row{}}
	if len(c.Messages) == 0 {
		return v
	}
	v.Began = c.Messages[0].At
	seen := map[string]bool{}
	scan, description := new(message.Message), new(sdp.Description)
	for i := range c.Messages {
		m := &c.Messages[i]
		row := Row{
			Milliseconds: float64(m.At.Sub(v.Began).Microseconds()) / 1000,
			From:         m.From.String(),
			To:           m.To.String(),
			Transport:    m.Transport,
			Text:         strings.ToValidUTF8(m.Text.String(), "\uFFFD"),
			from:         m.From.Addr(),
			to:           m.To.Addr(),
		}
		row.read(scan, description, m.Text.Bytes())
		key := row.From + row.To + row.Text
		row.Again, seen[key] = seen[key], true

		for _, hop := range []netip.Addr{row.from, row.to} {
			if text := hop.String(); !slices.Contains(v.Hops, text) {
				v.Hops = append(v.Hops, text)
			}
		}
		v.Rows = append(v.Rows, row)
	}
	return v
}

// read fills in what the message says.
func (r *Row) read(m *message.Message, d *sdp.Description, text []byte) {
	if why := m.Scan(text); why.Verdict() == message.Refused || !m.Request && m.Status == 0 {
		r.Label = clean(string(text[:min(len(text), 40)]))
		return
	}
	r.Method, r.Status, r.CSeq = clean(string(m.MethodName())), m.Status, m.CSeq
	r.Label = r.Method
	if !m.Request {
		r.Label = strings.TrimSpace(fmt.Sprintf("%d %s", m.Status, clean(string(m.ReasonPhrase()))))
	}
	if b, found := body.Description(m); found == body.Plain && d.Read(b) {
		r.SDP = summary(d)
	}
}

// summary is a session description in a line: `audio 10.1.10.2:4000 PCMU/PCMA`.
func summary(d *sdp.Description) string {
	var all []string
	for i := range d.Media {
		all = append(all, mediumSummary(&d.Media[i]))
	}
	if d.Beyond > 0 {
		all = append(all, "…")
	}
	return strings.Join(all, ", ")
}

var (
	kinds      = [...]string{sdp.Other: "other", sdp.Audio: "audio", sdp.Video: "video", sdp.Image: "image"}
	directions = [...]string{sdp.SendOnly: " sendonly", sdp.RecvOnly: " recvonly", sdp.Inactive: " inactive"}
)

func mediumSummary(m *sdp.Media) string {
	kind := kinds[m.Kind]
	if m.Port == 0 {
		return kind + " refused"
	}
	where := fmt.Sprintf("port %d", m.Port)
	if m.Address.IsValid() {
		where = netip.AddrPortFrom(m.Address, m.Port).String()
	}
	var names []string
	for i := range m.Formats {
		name := clean(string(m.Formats[i].Name))
		if name == "" {
			name = fmt.Sprint(m.Formats[i].Type)
		}
		if !strings.EqualFold(name, "telephone-event") && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	text := strings.TrimRight(kind+" "+where+" "+strings.Join(names, "/"), " ") + directions[m.Direction]
	switch {
	case m.Crypto:
		text += " SDES"
	case m.Fingerprint:
		text += " DTLS"
	}
	return text
}

// clean replaces control characters, those of Unicode included: text from the network must not steer a terminal.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, text)
}

// Geometry of a drawing, in columns.
const (
	timeWidth = 9  // of the time offset
	spacing   = 26 // between two hops
	maxHops   = 8  // that have a column
)

// Draw draws the ladder: a column for each hop, a line with a head for each message, with its time in milliseconds
// since the first one and what it says of media behind it.
func (v *View) Draw() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n", v.Call)
	if len(v.Rows) == 0 {
		return b.String()
	}
	fmt.Fprintf(&b, "%s\n\n", v.Began.UTC().Format("2006-01-02 15:04:05.000 UTC"))

	if v.Sent != nil || v.Received != nil {
		fmt.Fprintf(&b, "sent:     %s\nreceived: %s\n\n", clean(v.Sent.Detail()), clean(v.Received.Detail()))
	}

	columns := min(len(v.Hops), maxHops)
	line := blank(columns, ' ')
	for i, hop := range v.Hops[:columns] {
		place(line, i*spacing, hop)
	}
	writeRow(&b, "ms", line, "")
	for i := range v.Rows {
		if v.Missing > 0 && i == v.After {
			writeRow(&b, "", blank(columns, '|'), fmt.Sprintf("  … %d messages not kept", v.Missing))
		}
		v.drawRow(&b, &v.Rows[i], columns)
	}
	if v.Missing > 0 && v.After >= len(v.Rows) {
		writeRow(&b, "", blank(columns, '|'), fmt.Sprintf("  … %d messages not kept", v.Missing))
	}
	return b.String()
}

func (v *View) drawRow(b *bytes.Buffer, r *Row, columns int) {
	line := blank(columns, '|')
	label, note := r.Label, ""
	if r.Again {
		note += "  again"
	}
	if r.Transport != "UDP" && r.Transport != "" {
		note += "  " + clean(r.Transport)
	}
	if r.SDP != "" {
		note += "  sdp: " + r.SDP
	}
	from, to := slices.Index(v.Hops, r.from.String()), slices.Index(v.Hops, r.to.String())
	if from == to || from >= columns || to >= columns {
		note = fmt.Sprintf("  %s -> %s: %s%s", r.From, r.To, label, note)
	} else {
		connect(line, from*spacing, to*spacing, label)
	}
	writeRow(b, fmt.Sprintf("%.0f", r.Milliseconds), line, note)
}

func writeRow(b *bytes.Buffer, at string, line []rune, note string) {
	text := fmt.Sprintf("%*s  %s", timeWidth, at, string(line))
	b.WriteString(strings.TrimRight(text+note, " ") + "\n")
}

// blank is a line with a mark at each column.
func blank(columns int, mark rune) []rune {
	line := []rune(strings.Repeat(" ", (columns-1)*spacing+1))
	for i := range columns {
		line[i*spacing] = mark
	}
	if mark == ' ' {
		line = append(line, []rune(strings.Repeat(" ", spacing))...)
	}
	return line
}

// place writes text into a line, as much as fits before the next column.
func place(line []rune, at int, text string) {
	for i, r := range []rune(text) {
		if i == spacing-1 || at+i >= len(line) {
			line[at+i-1] = '…'
			return
		}
		line[at+i] = r
	}
}

// connect draws a line from one column to another, with a head at its end and a label in its middle.
func connect(line []rune, from, to int, label string) {
	left, right := min(from, to)+1, max(from, to)-1
	for i := left; i <= right; i++ {
		line[i] = '-'
	}
	if from < to {
		line[right] = '>'
	} else {
		line[left] = '<'
	}
	text := []rune(" " + label + " ")
	if room := right - left - 3; len(text) > room {
		text = append(text[:room-2], '…', ' ')
	}
	copy(line[(left+right+1-len(text))/2:], text)
}
