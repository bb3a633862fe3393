package process

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Requests that every process answers. Their form never changes, in whatever version of a kind's protocol:
// with these three any daemon can replace any process and keep its descriptors.
const (
	typeHello = "hello" // who are you; with watch: push events to me
	typeFiles = "fds"   // hand back the descriptors that you were started with
	typeQuit  = "quit"

	typeLog     = "log"     // pushed: one log record
	typeRefused = "refused" // sent instead of any answer, before the connection is closed
)

// envelope holds the fields of a message that this package uses. A message is one JSON object: these fields,
// and beside them the ones of the kind's own request or answer. A field that a type does not use is left out,
// and unknown fields are ignored, so that either end may be older than the other.
type envelope struct {
	Version int    `json:"v"` // major version of the sender's protocol
	Type    string `json:"type"`
	ID      uint64 `json:"id,omitempty"` // an answer has its request's; 0: pushed, no answer expected
	Error   string `json:"error,omitempty"`

	Watch   bool `json:"watch,omitempty"`   // in hello: push events to me
	Answers bool `json:"answers,omitempty"` // in hello: I answer requests
	Asks    bool `json:"asks,omitempty"`    // a request of the process
	Reply   bool `json:"reply,omitempty"`   // the daemon's answer to one

	WithinMS int64           `json:"within_ms,omitempty"` // how long the sender of a request of the process waits
	Hello    json.RawMessage `json:"hello,omitempty"`
	Files    []string        `json:"files,omitempty"` // names of the descriptors beside this message
	Log      *logRecord      `json:"log,omitempty"`
}

// Hello is what every process says about itself. A kind may add fields.
type Hello struct {
	Major   int       `json:"major"` // version of the kind's protocol
	Minor   int       `json:"minor"`
	Build   string    `json:"build"`
	PID     int       `json:"pid"` // as the process sees it; the kernel's credentials are used where it matters
	Started time.Time `json:"started"`
	Sandbox []string  `json:"sandbox"` // restrictions that hold
	Missing []string  `json:"missing"` // those that are not available, with the reason
}

// Message is one request, answer or event as it arrived. The fields of its kind are read by Decode.
type Message struct {
	Type   string
	Sender Sender

	env      envelope
	body     []byte
	attached []byte
	files    []File
	filesErr error // descriptors were sent and did not all arrive
	conn     *Conn
	large    bool // it counts as one of maxLarge
}

// Decode reads the fields of a message into v.
func (m *Message) Decode(v any) error {
	if err := json.Unmarshal(m.body, v); err != nil {
		return fmt.Errorf("decode %q: %w", m.Type, err)
	}
	return nil
}

// Attached are the bytes beside the fields of a message; nil: there are none.
func (m *Message) Attached() []byte { return m.attached }

// Wipe overwrites the message, where there are keys in it.
func (m *Message) Wipe() {
	clear(m.body)
	clear(m.attached)
}

func (m *Message) size() int { return len(m.body) + len(m.attached) }

// Files are the descriptors that came with the message. They are closed once the message is dealt with.
func (m *Message) Files() []File { return m.files }

// TakeFiles gives the descriptors to the caller, who closes them.
func (m *Message) TakeFiles() []File {
	files := m.files
	m.files = nil
	return files
}

// Close closes the descriptors that nobody took.
func (m *Message) Close() { CloseFiles(m.TakeFiles()...) }

// encode joins the fields of body, a struct or nil, and the envelope's in one object. The envelope's come
// last: where a name is used twice, the last one counts.
func encode(env envelope, body any) ([]byte, error) {
	head, err := json.Marshal(env)
	if err != nil {
		return nil, fmt.Errorf("encode control message %s: %w", env.Type, err)
	}
	if body == nil {
		return head, nil
	}
	fields, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode control message %s: %w", env.Type, err)
	}
	return joinObjects(fields, head)
}

// joinObjects makes one JSON object of two.
func joinObjects(a, b []byte) ([]byte, error) {
	for _, o := range [][]byte{a, b} {
		if len(o) < 2 || o[0] != '{' || o[len(o)-1] != '}' {
			return nil, errors.New("encode control message: the body is not a JSON object")
		}
	}
	switch {
	case len(a) == 2:
		return b, nil
	case len(b) == 2:
		return a, nil
	}
	out := make([]byte, 0, len(a)+len(b))
	out = append(out, a[:len(a)-1]...)
	out = append(out, ',')
	return append(out, b[1:]...), nil
}

// attach puts bytes beside the fields of a message: after a zero byte, which is in no JSON text.
func attach(message, more []byte) []byte {
	if len(more) == 0 {
		return message
	}
	return append(append(message, 0), more...)
}

// decode reads one whole message. The fuzzer aims at it.
func decode(b []byte) (*Message, error) {
	b, attached, _ := bytes.Cut(b, []byte{0})
	m := &Message{body: b, attached: attached}
	if err := json.Unmarshal(b, &m.env); err != nil {
		return nil, fmt.Errorf("decode control message: %w", err)
	}
	if m.env.Type == "" {
		return nil, errors.New("decode control message: no type")
	}
	m.Type = m.env.Type
	return m, nil
}

// addFiles names the descriptors that arrived with a message.
func (m *Message) addFiles(fds []int, truncated bool) {
	switch {
	case truncated:
		m.filesErr = errors.New("descriptors were lost on the way (the receiver's limit of open files is reached)")
	case len(fds) != len(m.env.Files):
		m.filesErr = fmt.Errorf("%d descriptors with %d names", len(fds), len(m.env.Files))
	}
	if m.filesErr != nil {
		Close(fds...)
		return
	}
	for i, fd := range fds {
		m.files = append(m.files, File{Name: m.env.Files[i], FD: fd})
	}
}
