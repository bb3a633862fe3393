package wireguardgo

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
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
	uapiLine    = 1024             // bytes
	uapiBody    = 4 << 20          // bytes: ten thousand peers
	uapiClients = 16               // at once
	uapiTime    = 10 * time.Second // for one request and its answer
)

// uapiError is an error as the protocol tells it: a negated errno.
type uapiError struct {
	errno unix.Errno
	why   string
}

func (e *uapiError) Error() string    { return e.why }
func (e *uapiError) ErrorCode() int64 { return -int64(e.errno) }
func (e *uapiError) Is(t error) bool  { return t == e.errno }

var (
	errFwMark     = &uapiError{unix.EPERM, "fwmark is set by the daemon when it opens the sockets; a plane has no privilege to change it (see the config)"}
	errListenPort = &uapiError{unix.EPERM, "listen_port is set by the daemon when it opens the sockets; change it in the config"}
)

func invalid(format string, args ...any) error {
	return &uapiError{unix.EINVAL, fmt.Sprintf(format, args...)}
}

// readSet reads the body of a set operation up to an empty line or the end, also when a line is
// refused: the client reads its answer after it has written all. Nothing of the body stands in
// an error: it may be a key.
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
		if size += len(line) + 1; size > uapiBody {
			return nil, nil, &uapiError{unix.E2BIG, "a set operation is too long"}
		}
		if refused != nil {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			refused = invalid("a line of a set operation is not key=value")
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
			return errFwMark
		case "listen_port":
			return errListenPort
		case "private_key":
			return checkKey(key, value)
		case "replace_peers":
			return checkTrue(key, value)
		}
		return invalid("unknown key of a device")
	}
	switch key {
	case "preshared_key":
		return checkKey(key, value)
	case "update_only", "remove", "replace_allowed_ips":
		return checkTrue(key, value)
	case "endpoint":
		if _, err := netip.ParseAddrPort(value); err != nil {
			return invalid("endpoint is not address:port")
		}
		return nil
	case "persistent_keepalive_interval":
		if _, err := strconv.ParseUint(value, 10, 16); err != nil {
			return invalid("persistent_keepalive_interval is not a number of 0-65535")
		}
		return nil
	case "allowed_ip":
		if _, err := netip.ParsePrefix(strings.TrimPrefix(value, "-")); err != nil {
			return invalid("allowed_ip is not a prefix")
		}
		return nil
	case "protocol_version":
		if value != "1" {
			return invalid("protocol_version is not 1")
		}
		return nil
	}
	return invalid("unknown key of a peer")
}

func checkKey(name, value string) error {
	if len(value) != 2*tunnel.KeySize {
		return invalid("%s is not 64 hex digits", name)
	}
	if _, err := hex.DecodeString(value); err != nil {
		return invalid("%s is not 64 hex digits", name)
	}
	return nil
}

func checkTrue(name, value string) error {
	if value != "true" {
		return invalid("%s can only be true", name)
	}
	return nil
}

func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return "", &uapiError{unix.EMSGSIZE, "a line is too long"}
	}
	return strings.TrimSuffix(string(line), "\n"), err
}

// ServeUAPI speaks wg(8)'s protocol on a listening socket until it or the engine closes.
func (e *Engine) ServeUAPI(l net.Listener) error {
	done := make(chan struct{})
	defer close(done)
	var open sync.WaitGroup
	defer open.Wait()
	var mu sync.Mutex
	conns := make(map[net.Conn]struct{})
	go func() {
		select {
		case <-done:
		case <-e.Done():
		}
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for c := range conns {
			c.Close()
		}
		conns = nil
	}()
	room := make(chan struct{}, uapiClients)
	for {
		c, err := l.Accept()
		if err != nil {
			select {
			case <-e.Done():
				return nil
			default:
			}
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED) {
				select {
				case <-e.Done():
					return nil
				case <-time.After(100 * time.Millisecond):
				}
				continue
			}
			return fmt.Errorf("accept on the UAPI socket: %w", err)
		}
		mu.Lock()
		if conns == nil {
			c.Close()
		} else {
			conns[c] = struct{}{}
		}
		mu.Unlock()
		select {
		case room <- struct{}{}:
		case <-time.After(uapiTime): // all are busy beyond their time: cannot be
			c.Close()
			continue
		}
		open.Go(func() {
			defer func() {
				c.Close()
				mu.Lock()
				delete(conns, c)
				mu.Unlock()
				<-room
			}()
			e.serve(c)
		})
	}
}

// serve answers one client.
func (e *Engine) serve(c net.Conn) {
	r := bufio.NewReaderSize(c, uapiLine)
	for {
		_ = c.SetDeadline(time.Now().Add(uapiTime))
		answer, err := e.answer(r)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				e.hub.log.Debug("UAPI client dropped", "reason", err)
			}
			return
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

// answer reads one request and carries it out; an error ends the conversation without a word.
func (e *Engine) answer(r *bufio.Reader) ([]byte, error) {
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
			return nil, invalid("something follows get=1")
		}
		refused = e.Get(&out)
	case "set=1":
		body, no, err := readSet(r)
		if err != nil {
			return nil, err
		}
		if refused = no; refused == nil {
			refused = e.set(body)
		}
	default:
		return nil, invalid("neither get=1 nor set=1")
	}
	code := int64(0)
	if refused != nil {
		out.Reset()
		code = -int64(unix.EIO)
		var c coder
		if errors.As(refused, &c) {
			code = c.ErrorCode()
		}
		e.hub.log.Warn("UAPI request refused", "reason", refused)
	}
	fmt.Fprintf(&out, "errno=%d\n\n", code)
	return out.Bytes(), nil
}

// coder is an error that knows its errno.
type coder interface{ ErrorCode() int64 }
