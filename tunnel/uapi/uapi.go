// Package uapi serves wg(8)'s protocol (the cross-platform userspace interface of WireGuard,
// https://www.wireguard.com/xplatform/) for a userspace engine. It bounds every conversation, refuses what
// needs a privilege that a plane does not have, and changes nothing if any line of a set operation is wrong.
package uapi

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

// Bounds of a conversation over the UAPI socket.
const (
	maxLine    = 1024             // bytes
	maxBody    = 4 << 20          // bytes: ten thousand peers
	maxClients = 16               // at once
	timeout    = 10 * time.Second // for one request and its answer
)

// protocolError is an error that the protocol can express: a negated errno.
type protocolError struct {
	errno unix.Errno
	why   string
}

func (e *protocolError) Error() string    { return e.why }
func (e *protocolError) ErrorCode() int64 { return -int64(e.errno) }
func (e *protocolError) Is(t error) bool  { return t == e.errno }

var (
	ErrFwMark = &protocolError{unix.EPERM, "fwmark is set by the daemon when it opens the sockets; " +
		"a plane has no privilege to change it (see the config)"}
	ErrListenPort = &protocolError{unix.EPERM, "listen_port is set by the daemon when it opens the sockets; " +
		"change it in the config"}
)

// Invalid is the error of a malformed request: EINVAL.
func Invalid(format string, args ...any) error {
	return &protocolError{unix.EINVAL, fmt.Sprintf(format, args...)}
}

// ReadSet reads the body of a set operation, whole. The error has ErrorCode, as that of the device package.
func ReadSet(r io.Reader) ([]byte, error) {
	body, refused, err := readSet(bufio.NewReaderSize(r, maxLine))
	return body, errors.Join(err, refused)
}

// Device is what the protocol is spoken for.
type Device interface {
	Set(body []byte) error // of a set operation, checked line by line
	Get(w io.Writer) error // the body of a get operation, with keys
	Done() <-chan struct{} // closed when the device has ended
}

// Server serves one device.
type Server struct {
	Device Device
	Log    *slog.Logger
}

// readSet reads the body of a set operation up to an empty line or the end. It reads on after a line that is
// refused, since a client writes all of its request before it reads the answer. Errors never quote the body:
// it holds keys.
func readSet(r *bufio.Reader) (body []byte, refused, err error) {
	device := true
	for size := 0; ; {
		line, err := readLine(r)
		if err != nil && (!errors.Is(err, io.EOF) || line == "") {
			if errors.Is(err, io.EOF) {
				return body, refused, nil
			}
			return nil, nil, err
		}
		if line == "" {
			return body, refused, nil
		}
		if size += len(line) + 1; size > maxBody {
			return nil, nil, &protocolError{unix.E2BIG, "a set operation is too long"}
		}
		if refused != nil {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			refused = Invalid("a line of a set operation is not key=value")
			continue
		}
		if refused = checkSet(key, value, &device); refused == nil {
			body = append(append(body, line...), '\n')
		}
	}
}

// checkSet looks at one line before anything is changed, so that a wrong line changes nothing.
func checkSet(key, value string, device *bool) error {
	if key == "public_key" {
		*device = false
		return checkKey(key, value)
	}
	if *device {
		switch key {
		case "fwmark":
			return ErrFwMark
		case "listen_port":
			return ErrListenPort
		case "private_key":
			return checkKey(key, value)
		case "replace_peers":
			return checkTrue(key, value)
		}
		return Invalid("unknown key of a device")
	}
	switch key {
	case "preshared_key":
		return checkKey(key, value)
	case "update_only", "remove", "replace_allowed_ips":
		return checkTrue(key, value)
	case "endpoint":
		if _, err := netip.ParseAddrPort(value); err != nil {
			return Invalid("endpoint is not address:port")
		}
		return nil
	case "persistent_keepalive_interval":
		if _, err := strconv.ParseUint(value, 10, 16); err != nil {
			return Invalid("persistent_keepalive_interval is not a number of 0-65535")
		}
		return nil
	case "allowed_ip":
		if _, err := netip.ParsePrefix(strings.TrimPrefix(value, "-")); err != nil {
			return Invalid("allowed_ip is not a prefix")
		}
		return nil
	case "protocol_version":
		if value != "1" {
			return Invalid("protocol_version is not 1")
		}
		return nil
	}
	return Invalid("unknown key of a peer")
}

func checkKey(name, value string) error {
	if len(value) != 2*tunnel.KeySize {
		return Invalid("%s is not 64 hex digits", name)
	}
	if _, err := hex.DecodeString(value); err != nil {
		return Invalid("%s is not 64 hex digits", name)
	}
	return nil
}

func checkTrue(name, value string) error {
	if value != "true" {
		return Invalid("%s can only be true", name)
	}
	return nil
}

func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return "", &protocolError{unix.EMSGSIZE, "a line is too long"}
	}
	return strings.TrimSuffix(string(line), "\n"), err
}

// Serve serves a listening socket until it or the device closes.
func (s *Server) Serve(l net.Listener) error {
	done := make(chan struct{})
	defer close(done)
	var clients sync.WaitGroup
	defer clients.Wait()
	var conns openConns
	go func() {
		select {
		case <-done:
		case <-s.Device.Done():
		}
		l.Close()
		conns.closeAll()
	}()

	slots := make(chan struct{}, maxClients)
	for {
		c, err := s.accept(l)
		if c == nil {
			return err
		}
		conns.add(c)
		select {
		case slots <- struct{}{}:
		case <-time.After(timeout): // every client has a deadline, so this should not happen
			conns.close(c)
			continue
		}
		clients.Go(func() {
			s.serve(c)
			conns.close(c)
			<-slots
		})
	}
}

// accept waits for a client. It returns none once the listener or the device is closed.
func (s *Server) accept(l net.Listener) (net.Conn, error) {
	for {
		c, err := l.Accept()
		if err == nil {
			return c, nil
		}
		select {
		case <-s.Device.Done():
			return nil, nil
		default:
		}
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil, nil
		case !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) && !errors.Is(err, unix.ECONNABORTED):
			return nil, fmt.Errorf("accept on the UAPI socket: %w", err)
		}
		select { // it passes
		case <-s.Device.Done():
			return nil, nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// openConns are connections that are closed together. The zero value is empty.
type openConns struct {
	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

// add takes c in, or closes it if closeAll was called.
func (o *openConns) add(c net.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		c.Close()
		return
	}
	if o.conns == nil {
		o.conns = map[net.Conn]struct{}{}
	}
	o.conns[c] = struct{}{}
}

func (o *openConns) close(c net.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	c.Close()
	delete(o.conns, c)
}

func (o *openConns) closeAll() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	for c := range o.conns {
		c.Close()
	}
}

// serve answers one client.
func (s *Server) serve(c net.Conn) {
	r := bufio.NewReaderSize(c, maxLine)
	for {
		_ = c.SetDeadline(time.Now().Add(timeout))
		answer, err := s.answer(r)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				s.Log.Debug("UAPI client dropped", "reason", err)
			}
			return
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

// answer reads one request and carries it out; an error ends the connection without an answer.
func (s *Server) answer(r *bufio.Reader) ([]byte, error) {
	op, err := readLine(r)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	var refused error
	switch op {
	case "get=1":
		line, err := readLine(r)
		if err != nil {
			return nil, err
		}
		if line != "" {
			return nil, Invalid("something follows get=1")
		}
		refused = s.Device.Get(&out)
	case "set=1":
		body, no, err := readSet(r)
		if err != nil {
			return nil, err
		}
		if refused = no; refused == nil {
			refused = s.Device.Set(body)
		}
	default:
		return nil, Invalid("neither get=1 nor set=1")
	}
	code := int64(0)
	if refused != nil {
		out.Reset()
		code = -int64(unix.EIO)
		var c coder
		if errors.As(refused, &c) {
			code = c.ErrorCode()
		}
		s.Log.Warn("UAPI request refused", "reason", refused)
	}
	fmt.Fprintf(&out, "errno=%d\n\n", code)
	return out.Bytes(), nil
}

// coder is an error that knows its errno.
type coder interface{ ErrorCode() int64 }
