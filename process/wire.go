package process

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The control protocol's framing. One SOCK_SEQPACKET connection for each caller; every message is a JSON
// object, after which a zero byte and other bytes may follow, cut into packets of at most frameSize bytes, since a
// packet has to fit the socket's buffer:
//
//	packet  = kind part-of-message      kind: '+' more packets follow, '.' this is the last
//
// Descriptors travel beside the last packet of a message.
const (
	frameSize  = 32 << 10
	maxMessage = 16 << 20 // 20,000 peers of a tunnel
	maxFiles   = 64       // descriptors beside one message; the kernel takes 253
)

// Bounds of what a process asks the daemon. Each request that waits is in the daemon's memory: with those of a process
// that was taken over, a daemon must not run out of it.
const (
	maxRequest = 512 << 10 // bytes of a request, unless its type is in Config.Large
	maxLarge   = 2         // longer ones that wait or are worked on
)

var (
	errTooLong = fmt.Errorf("control message longer than %d bytes", maxMessage)
	// errNotSent marks a message of which nothing was sent: the connection is still usable.
	errNotSent = errors.New("not sent")
)

// assembler puts packets together. It holds at most maxMessage bytes. A message may hold keys: what it was copied from
// is overwritten.
type assembler struct{ buf []byte }

// add takes one packet and returns the message when it is whole.
func (a *assembler) add(p []byte) (whole []byte, done bool, err error) {
	if len(p) == 0 || p[0] != '+' && p[0] != '.' {
		return nil, false, errors.New("control packet does not start with '+' or '.'")
	}
	if len(a.buf)+len(p)-1 > maxMessage {
		return nil, false, errTooLong
	}
	a.grow(p[1:])
	if p[0] == '+' {
		return nil, false, nil
	}
	whole = bytes.Clone(a.buf)
	clear(a.buf)
	a.buf = a.buf[:0]
	if cap(a.buf) > 1<<20 { // a hub's whole configuration passed; do not keep it
		a.buf = nil
	}
	return whole, true, nil
}

// grow appends to what there is. append would leave a copy behind.
func (a *assembler) grow(p []byte) {
	if n := len(a.buf) + len(p); n > cap(a.buf) {
		longer := make([]byte, len(a.buf), max(n, 2*cap(a.buf)))
		copy(longer, a.buf)
		clear(a.buf)
		a.buf = longer
	}
	a.buf = append(a.buf, p...)
}

// Sender is the process that sent a message, as the kernel knows it.
type Sender struct {
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

// newWire takes over c. With credentials, every message tells who sent it: a process cannot lie about its pid
// in SCM_CREDENTIALS, while SO_PEERCRED of a listener that was handed over names the daemon.
func newWire(c *net.UnixConn, credentials bool) (*wire, error) {
	w := &wire{
		c:   c,
		buf: make([]byte, frameSize+1),
		oob: make([]byte, unix.CmsgSpace(4*maxFiles)+unix.CmsgSpace(unix.SizeofUcred)),
	}
	if !credentials {
		return w, nil
	}
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var optErr error
	if err := rc.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	}); err != nil {
		return nil, err
	}
	if optErr != nil {
		return nil, fmt.Errorf("request credentials on the control socket: %w", optErr)
	}
	return w, nil
}

func (w *wire) close() error { return w.c.Close() }

// write sends a message and, beside its last packet, descriptors. It gives up after timeout: a peer that does
// not read must never hold up its sender.
func (w *wire) write(env envelope, body any, attached []byte, files []File, timeout time.Duration) error {
	if len(files) > maxFiles {
		return fmt.Errorf("%w: control message %s with %d descriptors (at most %d in one message)",
			errNotSent, env.Type, len(files), maxFiles)
	}
	fds := make([]int, len(files))
	for i, f := range files {
		env.Files = append(env.Files, f.Name)
		fds[i] = f.FD
	}
	message, err := encode(env, body)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	message = attach(message, attached)
	defer clear(message) // it may hold keys
	if len(message) > maxMessage {
		return fmt.Errorf("%w: %w", errNotSent, errTooLong)
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.c.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	packet := make([]byte, 0, min(len(message), frameSize)+1)
	defer clear(packet[:cap(packet)])
	for first, last := true, false; !last; first = false {
		n := min(len(message), frameSize)
		last = n == len(message)
		kind, oob := byte('+'), []byte(nil)
		if last {
			kind = '.'
			if len(fds) > 0 {
				oob = unix.UnixRights(fds...)
			}
		}
		packet = append(append(packet[:0], kind), message[:n]...)
		if _, _, err := w.c.WriteMsgUnix(packet, oob, nil); err != nil {
			if !first {
				w.c.Close() // the other end would take the next message for the rest of this one
			}
			return fmt.Errorf("send control message %s: %w", env.Type, err)
		}
		message = message[n:]
	}
	return nil
}

// read waits for the next message. After an error the connection is unusable, and no
// descriptor is left open.
func (w *wire) read() (*Message, error) {
	var fds []int
	var from Sender
	var truncated bool
	fail := func(err error) (*Message, error) {
		Close(fds...)
		return nil, err
	}

	for {
		n, oobn, flags, _, err := w.c.ReadMsgUnix(w.buf, w.oob)
		if errors.Is(err, unix.ECONNRESET) {
			// The other end closed with a request of ours unread. What it sent before, a refusal above all,
			// is still there.
			n, oobn, flags, _, err = w.c.ReadMsgUnix(w.buf, w.oob)
		}
		if err != nil {
			return fail(err)
		}
		got, who, err := parseControl(w.oob[:oobn])
		fds = append(fds, got...)
		if who.PID != 0 {
			from = who
		}
		truncated = truncated || flags&unix.MSG_CTRUNC != 0
		switch {
		case err != nil:
			return fail(fmt.Errorf("read control message: %w", err))
		case n == 0 && oobn == 0:
			return fail(net.ErrClosed)
		case flags&unix.MSG_TRUNC != 0:
			return fail(errors.New("read control message: packet truncated"))
		case len(fds) > maxFiles:
			return fail(errors.New("read control message: too many descriptors"))
		}

		whole, done, err := w.in.add(w.buf[:n])
		clear(w.buf[:n])
		if err != nil {
			return fail(err)
		}
		if !done {
			continue
		}
		m, err := decode(whole)
		if err != nil {
			return fail(err)
		}
		m.Sender = from
		m.addFiles(fds, truncated)
		return m, nil
	}
}

// parseControl takes descriptors and credentials out of ancillary data.
func parseControl(oob []byte) (fds []int, who Sender, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, who, err
	}
	for i := range messages {
		m := &messages[i]
		if m.Header.Level != unix.SOL_SOCKET {
			continue
		}
		switch m.Header.Type {
		case unix.SCM_RIGHTS:
			if len(m.Data)%4 != 0 { // the library trusts both lengths
				return fds, who, fmt.Errorf("SCM_RIGHTS with %d bytes is not a list of descriptors", len(m.Data))
			}
			rights, err := unix.ParseUnixRights(m)
			if err != nil {
				return fds, who, err
			}
			fds = append(fds, rights...) // net sets close-on-exec (MSG_CMSG_CLOEXEC)
		case unix.SCM_CREDENTIALS:
			if len(m.Data) < unix.SizeofUcred {
				return fds, who, fmt.Errorf("SCM_CREDENTIALS with %d bytes is too short", len(m.Data))
			}
			c, err := unix.ParseUnixCredentials(m)
			if err != nil {
				return fds, who, err
			}
			who = Sender{PID: int(c.Pid), UID: c.Uid}
		}
	}
	return fds, who, nil
}

// peerCredentials is who connected (SO_PEERCRED), for the process that authenticates its callers.
func peerCredentials(c *net.UnixConn) (cred *unix.Ucred, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	if ctlErr := rc.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); ctlErr != nil {
		return nil, ctlErr
	}
	return cred, err
}
