package media

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringway/srtp/suite"
	"ringway/test/lab/host"
)

const controlPort = 2223

// beginRTPEngine starts rtpengine in user space with one thread, real-time as Ringway's threads are, and has it set the
// calls up over its control protocol (ng), as a SIP proxy does.
func (s *stand) beginRTPEngine(ctx context.Context, c Case, callee suite.Suite, n int) ([]call, error) {
	program, err := host.LookPath("rtpengine")
	if err != nil {
		return nil, err
	}
	if err := s.spawn("rtpengine", program, "--foreground", "--table=-1", "--num-threads=1",
		fmt.Sprintf("--interface=a/%s", boxA), fmt.Sprintf("--interface=b/%s", boxB),
		fmt.Sprintf("--listen-ng=127.0.0.1:%d", controlPort), fmt.Sprintf("--port-min=%d", firstPort),
		fmt.Sprintf("--port-max=%d", lastPort), "--log-level=4", "--log-stderr", "--pidfile="+host.Dir+"/rtpengine.pid",
		"--scheduling=fifo", "--priority=10", "--idle-scheduling=none", "--timeout=3600",
		"--silent-timeout=3600"); err != nil {
		return nil, err
	}
	var e *engine
	if err := s.box.Do(func() (err error) { e, err = newEngine(ctx); return err }); err != nil {
		return nil, err
	}
	defer e.conn.Close()
	for {
		if answer, err := e.ask("d7:command4:pinge"); err == nil && bytes.Contains(answer, []byte("pong")) {
			break
		}
		if err := host.Pause(ctx, 20*time.Millisecond); err != nil {
			return nil, fmt.Errorf("rtpengine does not answer: %w", err)
		}
	}
	if s.bare, err = s.memory(); err != nil {
		return nil, err
	}
	calls := make([]call, n)
	for i := range calls {
		if calls[i], err = e.call(fmt.Sprintf("call-%d", i), c, callee); err != nil {
			return nil, fmt.Errorf("have rtpengine set up call %d: %w", i, err)
		}
	}
	return calls, nil
}

// engine is a connection to rtpengine's control port.
type engine struct {
	conn   net.Conn
	number int
}

func newEngine(ctx context.Context) (*engine, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp4", fmt.Sprintf("127.0.0.1:%d", controlPort))
	return &engine{conn: conn}, err
}

// ask sends a dictionary, and returns the answer's.
func (e *engine) ask(dictionary string) ([]byte, error) {
	e.number++
	cookie := fmt.Sprintf("%d_%d ", os.Getpid(), e.number)
	if _, err := e.conn.Write([]byte(cookie + dictionary)); err != nil {
		return nil, err
	}
	if err := e.conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return nil, err
	}
	b := make([]byte, 64<<10)
	for {
		n, err := e.conn.Read(b)
		if err != nil {
			return nil, err
		}
		if answer, is := bytes.CutPrefix(b[:n], []byte(cookie)); is {
			return answer, nil
		}
	}
}

// crypto is a line a=crypto (RFC 4568).
type crypto struct {
	tag   string
	suite string
	key   string
}

func (x secret) crypto(tag string) crypto {
	text := base64.StdEncoding.EncodeToString(slices.Concat(x.master, x.salt))
	return crypto{tag, x.suite.String(), text}
}

func (c crypto) secret(s suite.Suite) (x secret, err error) {
	b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(c.key, "="))
	if err != nil || len(b) != s.KeyLen()+s.SaltLen() {
		return x, errors.Join(fmt.Errorf("a key of %s has %d bytes", s, len(b)), err)
	}
	return secret{s, b[:s.KeyLen()], b[s.KeyLen():]}, nil
}

// description is what an end says; without a line crypto it speaks RTP.
func description(at netip.AddrPort, c *crypto) string {
	protocol, line := "RTP/AVP", ""
	if c != nil {
		protocol, line = "RTP/SAVP", fmt.Sprintf("a=crypto:%s %s inline:%s\r\n", c.tag, c.suite, c.key)
	}
	return fmt.Sprintf("v=0\r\no=- 1 1 IN IP4 %[1]s\r\ns=-\r\nc=IN IP4 %[1]s\r\nt=0 0\r\nm=audio %[2]d %[3]s 0\r\n"+
		"a=rtpmap:0 PCMU/8000\r\n%[4]sa=sendrecv\r\na=rtcp-mux\r\n", at.Addr(), at.Port(), protocol, line)
}

// call has one call set up, and returns its ports and keys.
func (e *engine) call(id string, c Case, callee suite.Suite) (x call, err error) {
	var offered *crypto
	if c == ReKey {
		x.sends[0] = newSecret(callersSuite(callee))
		line := x.sends[0].crypto("1")
		offered = &line
	}
	toCallee, err := e.negotiate(boxB, "offer", id, "", description(callerAt, offered), "RTP/SAVP")
	if err != nil {
		return x, err
	}
	line, found := toCallee.suite(callee)
	if !found {
		return x, fmt.Errorf("it does not offer %s", callee)
	}
	if x.gets[1], err = line.secret(callee); err != nil {
		return x, err
	}
	x.sends[1] = newSecret(callee)
	answer := x.sends[1].crypto(line.tag)
	toCaller, err := e.negotiate(boxA, "answer", id, "callee", description(calleeAt, &answer), "")
	if err != nil {
		return x, err
	}
	if c == ReKey {
		own, found := toCaller.suite(callersSuite(callee))
		if !found {
			return x, fmt.Errorf("it does not answer %s", callersSuite(callee))
		}
		if x.gets[0], err = own.secret(callersSuite(callee)); err != nil {
			return x, err
		}
	}
	x.ports = [2]uint16{toCaller.port, toCallee.port}
	return x, nil
}

// negotiated is what rtpengine tells an end.
type negotiated struct {
	port   uint16
	crypto []crypto
}

func (n negotiated) suite(s suite.Suite) (crypto, bool) {
	i := slices.IndexFunc(n.crypto, func(c crypto) bool { return c.suite == s.String() })
	if i < 0 {
		return crypto{}, false
	}
	return n.crypto[i], true
}

var (
	mediaLine  = regexp.MustCompile(`(?m)^m=audio (\d+) `)
	cryptoLine = regexp.MustCompile(`(?m)^a=crypto:(\d+) (\S+) inline:([A-Za-z0-9+/=]+)`)
)

// negotiate has a description of one end become one for the other, which that is to find the box at own.
func (e *engine) negotiate(own netip.Addr, command, id, tag, body, protocol string) (n negotiated, err error) {
	fields := []string{ // by name, as bencoding has it
		"DTLS", "off", "ICE", "remove", "call-id", id, "command", command, "direction", "", "from-tag", "caller",
		"replace", "", "sdp", body, "to-tag", tag, "transport-protocol", protocol,
	}
	lists := map[string][]string{"replace": {"origin", "session-connection"}}
	if command == "offer" { // the interfaces of caller and callee, which an answer keeps
		lists["direction"] = []string{"a", "b"}
	}
	var b strings.Builder
	word := func(s string) { fmt.Fprintf(&b, "%d:%s", len(s), s) }
	b.WriteByte('d')
	for pair := range slices.Chunk(fields, 2) {
		list := lists[pair[0]]
		if pair[1] == "" && list == nil {
			continue
		}
		word(pair[0])
		if list == nil {
			word(pair[1])
			continue
		}
		b.WriteByte('l')
		for _, x := range list {
			word(x)
		}
		b.WriteByte('e')
	}
	b.WriteByte('e')
	answer, err := e.ask(b.String())
	if err != nil {
		return n, err
	}
	m := mediaLine.FindSubmatch(answer)
	if m == nil || !bytes.Contains(answer, []byte("\r\nc=IN IP4 "+own.String()+"\r\n")) {
		return n, fmt.Errorf("%s: not a description with the address %s: %q", command, own,
			answer[:min(len(answer), 200)])
	}
	port, err := strconv.ParseUint(string(m[1]), 10, 16)
	n.port = uint16(port)
	for _, c := range cryptoLine.FindAllSubmatch(answer, -1) {
		n.crypto = append(n.crypto, crypto{string(c[1]), string(c[2]), string(c[3])})
	}
	return n, err
}
