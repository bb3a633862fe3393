package plane

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

// The control protocol. One SOCK_SEQPACKET connection per caller; every message is a JSON object,
// cut into packets of at most frameSize bytes, since a packet has to fit the socket's buffer:
//
//	packet  = kind part-of-message      kind: '+' more packets follow, '.' this is the last
//
// Requests carry an id, the answer carries the same; what a plane pushes has id 0.
//
// A daemon meets planes older and newer than itself. So: unknown fields are ignored, an unknown
// request is answered with an error, and `hello`, `fds` and `quit` never change their form, also not
// across major versions: with these three any daemon can replace any plane and keep its devices.
const (
	// ProtocolMajor changes when requests change their meaning: such a plane is replaced.
	ProtocolMajor = 1
	// ProtocolMinor changes when something is added.
	// 1: `outer`, in start, hello and as a request.
	// 2: `admission`, the same.
	ProtocolMinor = 2

	minorOuter     = 1
	minorAdmission = 2

	frameSize  = 32 << 10
	maxMessage = 16 << 20 // 20,000 peers
	maxFiles   = 8
)

// Requests and what a plane pushes by itself.
const (
	typeHello     = "hello"     // who are you; with Watch: push to me
	typeStart     = "start"     // make the engine; once
	typeSet       = "set"       // UAPI text
	typeUAPI      = "uapi"      // UAPI get, with secrets
	typeStatus    = "status"    // DeviceStatus
	typeFiles     = "fds"       // descriptors back
	typeHandshake = "handshake" // shake hands now
	typeBounds    = "bounds"
	typeLink      = "link"      // the device's MTU changed
	typeOuter     = "outer"     // how packets look from outside; an engine that marks no single packet leaves it
	typeAdmission = "admission" // how much media may leave for each site; an engine that knows no calls leaves it
	typeQuit      = "quit"

	typeEndpoints = "endpoints" // pushed: peers moved
	typeLog       = "log"       // pushed: one record of the plane's log
)

// message is every request, answer and event in one: a field that a type does not use is left out.
type message struct {
	Version   int                       `json:"v"` // ProtocolMajor of the sender
	Type      string                    `json:"type"`
	ID        uint64                    `json:"id,omitempty"`
	Error     string                    `json:"error,omitempty"`
	Watch     bool                      `json:"watch,omitempty"`
	Hello     *Hello                    `json:"hello,omitempty"`
	Start     *startRequest             `json:"start,omitempty"`
	Text      string                    `json:"text,omitempty"` // UAPI
	Status    *tunnel.DeviceStatus      `json:"status,omitempty"`
	Keys      []tunnel.PublicKey        `json:"keys,omitempty"`
	Bounds    *tunnel.Bounds            `json:"bounds,omitempty"`
	Outer     *tunnel.Outer             `json:"outer,omitempty"`
	Admission *tunnel.Admission         `json:"admission,omitempty"`
	MTU       int                       `json:"mtu,omitempty"`
	Files     []string                  `json:"files,omitempty"`     // names of the descriptors beside this message
	Endpoints map[string]netip.AddrPort `json:"endpoints,omitempty"` // by public key, base64
	Log       *logRecord                `json:"log,omitempty"`
}

// Hello is what a plane says of itself.
type Hello struct {
	Major     int               `json:"major"`
	Minor     int               `json:"minor"`
	Build     string            `json:"build"`
	Class     tunnel.Class      `json:"class"`
	PID       int               `json:"pid"` // as the plane sees it; the kernel's word is used where it matters
	Started   time.Time         `json:"started"`
	Running   bool              `json:"running"` // has an engine
	Engine    tunnel.EngineName `json:"engine,omitempty"`
	Interface string            `json:"interface,omitempty"`
	MTU       int               `json:"mtu,omitempty"`
	Bounds    tunnel.Bounds     `json:"bounds"`
	Outer     tunnel.Outer      `json:"outer"`
	Admission tunnel.Admission  `json:"admission"`
	Sandbox   []string          `json:"sandbox"` // what holds
	Missing   []string          `json:"missing"` // what could not be had, with the reason
}

type startRequest struct {
	Engine    tunnel.EngineName `json:"engine"`
	Interface string            `json:"interface"`
	MTU       int               `json:"mtu"`
	Bounds    tunnel.Bounds     `json:"bounds"`
	Outer     tunnel.Outer      `json:"outer"`
	Admission tunnel.Admission  `json:"admission"`
	Text      string            `json:"text"`      // first UAPI set
	Handshake bool              `json:"handshake"` // shake hands with all at once
}

type logRecord struct {
	Time    time.Time      `json:"time"`
	Level   int            `json:"level"`
	Message string         `json:"message"`
	Attrs   map[string]any `json:"attrs,omitempty"`
}

// Names of descriptors in message.Files.
const (
	fileTUN     = "tun"
	fileUDP4    = "udp4"
	fileUDP6    = "udp6"
	fileUAPI    = "uapi"
	fileControl = "control"
)

var errTooLong = fmt.Errorf("control message longer than %d bytes", maxMessage)

// decodeMessage reads one whole message. It is what the fuzzer aims at.
func decodeMessage(b []byte) (message, error) {
	var m message
	if err := json.Unmarshal(b, &m); err != nil {
		return message{}, fmt.Errorf("decode control message: %w", err)
	}
	if m.Type == "" {
		return message{}, errors.New("decode control message: no type")
	}
	return m, nil
}

// assembler puts packets together. It holds at most maxMessage bytes.
type assembler struct{ buf bytes.Buffer }

// add takes one packet and returns the message when it is whole.
func (a *assembler) add(p []byte) (whole []byte, done bool, err error) {
	if len(p) == 0 || p[0] != '+' && p[0] != '.' {
		return nil, false, errors.New("control packet without its kind")
	}
	if a.buf.Len()+len(p)-1 > maxMessage {
		return nil, false, errTooLong
	}
	a.buf.Write(p[1:])
	if p[0] == '+' {
		return nil, false, nil
	}
	whole = bytes.Clone(a.buf.Bytes())
	a.buf.Reset()
	if a.buf.Cap() > 1<<20 { // a hub's whole configuration passed; do not keep it
		a.buf = bytes.Buffer{}
	}
	return whole, true, nil
}

// sender is who sent a message, by the kernel's word.
type sender struct {
	PID int
	UID uint32
}

// wire is one end of a control connection.
type wire struct {
	c  *net.UnixConn
	mu sync.Mutex // held while the packets of one message are written

	in  assembler
	buf []byte
	oob []byte
}

// newWire takes over c. With credentials, every message tells who sent it (SCM_CREDENTIALS: a
// process cannot lie about its pid there, and SO_PEERCRED of a handed-down listener names the daemon).
func newWire(c *net.UnixConn, credentials bool) (*wire, error) {
	w := &wire{c: c, buf: make([]byte, frameSize+1), oob: make([]byte, unix.CmsgSpace(4*maxFiles)+unix.CmsgSpace(unix.SizeofUcred))}
	if !credentials {
		return w, nil
	}
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var serr error
	if err := rc.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) }); err != nil {
		return nil, err
	}
	if serr != nil {
		return nil, fmt.Errorf("ask for credentials on the control socket: %w", serr)
	}
	return w, nil
}

func (w *wire) close() error { return w.c.Close() }

// write sends m and, beside its last packet, files. It gives up after timeout: a peer that does
// not read must never hold up a plane.
func (w *wire) write(m message, files []int, timeout time.Duration) error {
	m.Version = ProtocolMajor
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode control message %s: %w", m.Type, err)
	}
	if len(body) > maxMessage {
		return errTooLong
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.c.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	packet := make([]byte, 0, frameSize+1)
	for {
		n := min(len(body), frameSize)
		kind, last := byte('+'), n == len(body)
		var oob []byte
		if last {
			kind = '.'
			if len(files) > 0 {
				oob = unix.UnixRights(files...)
			}
		}
		packet = append(append(packet[:0], kind), body[:n]...)
		if _, _, err := w.c.WriteMsgUnix(packet, oob, nil); err != nil {
			return fmt.Errorf("send control message %s: %w", m.Type, err)
		}
		if body = body[n:]; last {
			return nil
		}
	}
}

// read waits for the next message. The caller owns the files. An error means that the connection
// is of no use any more; errors of form leave nothing open.
func (w *wire) read() (m message, files []int, from sender, err error) {
	defer func() {
		if err != nil {
			closeFDs(files...)
			files = nil
		}
	}()
	for {
		n, oobn, flags, _, err := w.c.ReadMsgUnix(w.buf, w.oob)
		if errors.Is(err, unix.ECONNRESET) {
			// The other end closed with a request of ours unread. What it said before still waits, a refusal above all.
			n, oobn, flags, _, err = w.c.ReadMsgUnix(w.buf, w.oob)
		}
		if err != nil {
			return message{}, files, from, err
		}
		got, who, cerr := parseControl(w.oob[:oobn])
		files = append(files, got...)
		if who.PID != 0 {
			from = who
		}
		switch {
		case cerr != nil:
			return message{}, files, from, fmt.Errorf("read control message: %w", cerr)
		case n == 0 && oobn == 0:
			return message{}, files, from, net.ErrClosed
		case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
			return message{}, files, from, errors.New("read control message: truncated")
		case len(files) > maxFiles:
			return message{}, files, from, errors.New("read control message: too many descriptors")
		}
		whole, done, err := w.in.add(w.buf[:n])
		if err != nil {
			return message{}, files, from, err
		}
		if done {
			m, err := decodeMessage(whole)
			return m, files, from, err
		}
	}
}

// parseControl takes descriptors and credentials out of ancillary data.
func parseControl(oob []byte) (files []int, who sender, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, who, err
	}
	for i := range msgs {
		m := &msgs[i]
		if m.Header.Level != unix.SOL_SOCKET {
			continue
		}
		switch m.Header.Type {
		case unix.SCM_RIGHTS:
			if len(m.Data)%4 != 0 { // the library trusts both lengths
				return files, who, errors.New("descriptors of a part's length")
			}
			fds, err := unix.ParseUnixRights(m)
			if err != nil {
				return files, who, err
			}
			files = append(files, fds...) // close-on-exec already: net asks with MSG_CMSG_CLOEXEC
		case unix.SCM_CREDENTIALS:
			if len(m.Data) < unix.SizeofUcred {
				return files, who, errors.New("credentials cut short")
			}
			c, err := unix.ParseUnixCredentials(m)
			if err != nil {
				return files, who, err
			}
			who = sender{PID: int(c.Pid), UID: c.Uid}
		}
	}
	return files, who, nil
}

// peer is who connected (SO_PEERCRED), for the plane that authenticates its callers.
func peer(c *net.UnixConn) (cred *unix.Ucred, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	if cerr := rc.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return nil, cerr
	}
	return cred, err
}

// Descriptors are plain numbers in this room, never os.Files: an os.File of a TUN device would join the
// runtime's poller, which then wakes for every packet that another process reads, and
// (*os.File).Fd makes the open file description blocking for every process that shares it.

// noFD stands for a descriptor that is not there.
const noFD = -1

func closeFDs(fds ...int) {
	for _, fd := range fds {
		if fd > 2 { // never the standard streams: a zero value must not close standard input
			unix.Close(fd)
		}
	}
}

func dupFD(fd int) (int, error) {
	if fd == noFD {
		return noFD, nil
	}
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return noFD, fmt.Errorf("duplicate descriptor %d: %w", fd, err)
	}
	return n, nil
}

// takeFD makes f a plain descriptor and closes f; nil gives noFD.
func takeFD(f *os.File) (int, error) {
	if f == nil {
		return noFD, nil
	}
	defer f.Close()
	rc, err := f.SyscallConn()
	if err != nil {
		return noFD, err
	}
	fd, derr := noFD, error(nil)
	if err := rc.Control(func(old uintptr) { fd, derr = dupFD(int(old)) }); err != nil {
		return noFD, err
	}
	return fd, derr
}

// asFile makes an os.File of a duplicate of fd; nil for noFD.
func asFile(fd int, name string) (*os.File, error) {
	n, err := dupFD(fd)
	if err != nil || n == noFD {
		return nil, err
	}
	return os.NewFile(uintptr(n), name), nil
}

// asConn makes a connection of fd and closes fd, also when it fails.
func asConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "control connection")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("descriptor is not a unix socket")
	}
	return u, nil
}
