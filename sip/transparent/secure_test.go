package transparent

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ringway/sip/certificate"
	"ringway/test/certtest"
	"ringway/test/polltest"
)

// secured is a relay on loopback: a phone connects to it, and it to a PBX, from an address of its own. It needs no
// privilege.
type secured struct {
	t        testing.TB
	relay    *Relay
	ca       *certtest.CA // of the PBX's own certificate
	phones   *certtest.CA // that the phones trust, and the box's certificate comes from
	pbx      *net.TCPListener
	security Security
	seen     chan Message
	outcomes chan string
}

const pbxName = "pbx.example.com"

func newSecured(t testing.TB, change func(*Config, *certificate.Source)) *secured {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	s := &secured{
		t: t, ca: certtest.NewCA(t), phones: certtest.NewCA(t),
		seen: make(chan Message, 64), outcomes: make(chan string, 64),
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	require.NoError(t, l.SetDeadline(time.Now().Add(patience)))
	s.pbx = l

	source := certificate.Source{Name: "pbx", Names: []string{pbxName}, CA: certificate.PEM(s.ca.PEM)}
	chain, key := s.phones.Issue(pbxName)
	source.Chain, source.Key = certificate.PEM(chain), certificate.PEM(key)
	config := Config{
		Handle: func(m *Message) Action {
			s.seen <- Message{From: m.From, To: m.To, Transport: m.Transport, FromNear: m.FromNear, Reason: m.Reason}
			return Action{}
		},
		Open:   func(context.Context, SocketKind, int) ([]int, error) { return nil, errors.New("there are enough") },
		Secure: func() *Security { return &s.security },
	}
	if change != nil {
		change(&config, &source)
	}
	s.show(source)
	s.relay, err = New(config)
	require.NoError(t, err)
	t.Cleanup(s.relay.Close)
	return s
}

// show has the relay work with a certificate.
func (s *secured) show(source certificate.Source) {
	set, err := certificate.NewSet([]certificate.Source{source})
	require.NoError(s.t, err)
	s.security = Security{
		Servers: set, Lenient: s.security.Lenient,
		Port:    func(to netip.AddrPort) bool { return to == addressOf(s.pbx.Addr()) },
		Outcome: func(server string, _ netip.AddrPort, why string, _ error) { s.outcomes <- server + " " + why },
	}
}

// connect is a phone's connection, and the address that the PBX sees it from.
func (s *secured) connect() (*net.TCPConn, netip.AddrPort) {
	s.t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)})
	require.NoError(s.t, err)
	defer l.Close()
	c, err := net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
	require.NoError(s.t, err)
	s.t.Cleanup(func() { c.Close() })
	require.NoError(s.t, c.SetDeadline(time.Now().Add(patience)))
	accepted, err := l.AcceptTCP()
	require.NoError(s.t, err)

	kind := SocketKind{Transport: TCP}
	for range 2 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		require.NoError(s.t, err)
		require.NoError(s.t, prepare(fd, kind))
		s.relay.fresh.giveBack(kind, fd)
	}
	from := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.9"), addressOf(c.LocalAddr()).Port())
	p, err := newPair(s.relay, from, addressOf(s.pbx.Addr()), true, accepted)
	require.NoError(s.t, err)
	require.Equal(s.t, none, s.relay.admit(p, unlimited))
	return c, from
}

func (s *secured) accept() *net.TCPConn {
	s.t.Helper()
	c, err := s.pbx.AcceptTCP()
	require.NoError(s.t, err)
	s.t.Cleanup(func() { c.Close() })
	require.NoError(s.t, c.SetDeadline(time.Now().Add(patience)))
	return c
}

// serve answers one connection as the PBX, in the background; the result is there when the function that it returns
// does.
func (s *secured) serve(change func(*tls.Config)) func() (*tls.Conn, error) {
	chain, key := s.ca.Issue(pbxName)
	pair, err := tls.X509KeyPair([]byte(chain), []byte(key))
	require.NoError(s.t, err)
	config := &tls.Config{Certificates: []tls.Certificate{pair}}
	if change != nil {
		change(config)
	}
	var c *tls.Conn
	var failed error
	var wg sync.WaitGroup
	wg.Go(func() {
		raw, err := s.pbx.AcceptTCP()
		if err != nil {
			failed = err
			return
		}
		s.t.Cleanup(func() { raw.Close() })
		_ = raw.SetDeadline(time.Now().Add(patience))
		c = tls.Server(raw, config)
		failed = c.Handshake()
	})
	return func() (*tls.Conn, error) { wg.Wait(); return c, failed }
}

// phone is how a phone speaks TLS; it trusts one CA.
func phoneConfig(ca *certtest.CA) *tls.Config {
	return &tls.Config{ServerName: pbxName, RootCAs: ca.Pool()}
}

func (s *secured) count(name string) uint64 {
	s.t.Helper()
	n, known := s.relay.Stats().Counts[name]
	require.True(s.t, known, "no counter %q", name)
	return n
}

func (s *secured) waitCount(name string) {
	s.t.Helper()
	polltest.Require(s.t, func() bool { return s.count(name) == 1 }, patience, time.Millisecond, "%s: %v", name,
		s.relay.Stats())
}

// established is a connection that the relay reads: the phone's end, and the PBX's.
func (s *secured) established(phone *tls.Config, change func(*tls.Config)) (a, b *tls.Conn, from netip.AddrPort) {
	s.t.Helper()
	served := s.serve(change)
	raw, from := s.connect()
	a = tls.Client(raw, phone)
	require.NoError(s.t, a.Handshake(), "%v", s.relay.Stats())
	b, err := served()
	require.NoError(s.t, err)
	return a, b, from
}

func TestTLSIsReadOnItsWay(t *testing.T) {
	s := newSecured(t, nil)
	config := phoneConfig(s.phones)
	config.NextProtos = []string{"h2", "sip"}
	asked := ""
	a, b, from := s.established(config, func(c *tls.Config) {
		c.NextProtos = []string{"sip"}
		c.GetConfigForClient = func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			asked = info.ServerName
			return nil, nil
		}
	})
	assert.Equal(t, pbxName, asked, "the PBX is asked for the same name")
	assert.Equal(t, "sip", a.ConnectionState().NegotiatedProtocol)
	assert.Equal(t, from, addressOf(b.RemoteAddr()), "the PBX sees the phone's address")
	assert.Equal(t, "pbx ", <-s.outcomes)

	// In pieces, two in one record, and one that is longer than a record.
	first, second, long := request("REGISTER", "1", 0), request("OPTIONS", "2", 0), request("MESSAGE", "3", 40_000)
	puts(t, a, first[:9])
	puts(t, a, first[9:]+second)
	gets(t, b, first+second)
	puts(t, a, long)
	gets(t, b, long)
	for range 3 {
		m := <-s.seen
		assert.Equal(t, Message{From: from, To: addressOf(s.pbx.Addr()), Transport: TLS, FromNear: true}, m)
	}
	back := request("INVITE", "4", 2000)
	puts(t, b, back)
	gets(t, a, back)
	assert.Equal(t, TLS, (<-s.seen).Transport)
	assert.Equal(t, 1, s.relay.Stats().Encrypted)

	// Each end hears of the other's, after everything that came before.
	last := request("BYE", "5", 0)
	puts(t, a, last)
	require.NoError(t, a.CloseWrite())
	gets(t, b, last)
	ends(t, b, io.EOF)
	require.NoError(t, b.Close())
	ends(t, a, io.EOF)
	polltest.Require(t, func() bool {
		st := s.relay.Stats()
		return st.Connections == 0 && st.Memory == 0
	}, patience, time.Millisecond)
	assert.EqualValues(t, 1, s.count("tls_established"))
}

// A message and the end of the connection may come in one read.
func TestTheLastMessageOfTLSIsNotLost(t *testing.T) {
	s := newSecured(t, nil)
	a, b, _ := s.established(phoneConfig(s.phones), nil)
	last := request("BYE", "1", 0)
	puts(t, a, last)
	require.NoError(t, a.Close())
	gets(t, b, last)
	ends(t, b, io.EOF)
	assert.Zero(t, s.count("tcp_message_cut_off"))
}

func TestTheHandlerJudgesTLS(t *testing.T) {
	s := newSecured(t, func(c *Config, _ *certificate.Source) {
		c.Handle = func(m *Message) Action {
			switch m.SIP.Method.String() {
			case "INVITE":
				return Action{Drop: true, Reply: []byte("SIP/2.0 488 Not Acceptable Here\r\n\r\n")}
			case "BYE":
				return Action{Drop: true, Close: true}
			}
			return Action{}
		}
	})
	a, b, _ := s.established(phoneConfig(s.phones), nil)
	puts(t, a, request("INVITE", "1", 0)+request("OPTIONS", "2", 0))
	gets(t, a, "SIP/2.0 488 Not Acceptable Here\r\n\r\n")
	gets(t, b, request("OPTIONS", "2", 0))
	puts(t, a, request("BYE", "3", 0))
	ends(t, a, io.EOF)
	ends(t, b, io.EOF)
	assert.EqualValues(t, 1, s.count("tcp_closed_by_handler"))
}

// What has no certificate here passes as it came: the phone and the PBX see each other's TLS.
func TestTLSPassesUnread(t *testing.T) {
	for _, c := range []struct {
		why   string
		phone func(*tls.Config)
	}{
		{"tls_unread_no_certificate", func(c *tls.Config) { c.ServerName = "other.example.com" }},
		{"tls_unread_no_server_name", func(c *tls.Config) { c.ServerName = "" }},
		{"tls_unread_unsupported", func(c *tls.Config) {
			c.CipherSuites, c.MaxVersion = []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}, tls.VersionTLS12
		}},
	} {
		t.Run(c.why, func(t *testing.T) {
			s := newSecured(t, nil)
			raw, from := s.connect()
			config := phoneConfig(s.ca)
			config.InsecureSkipVerify = true
			c.phone(config)
			sent := newRecorder(raw)
			var shook sync.WaitGroup
			shook.Go(func() { _ = tls.Client(sent, config).Handshake() })
			b := s.accept()
			gets(t, b, string(<-sent.wrote)) // byte for byte
			assert.Equal(t, from, addressOf(b.RemoteAddr()))
			puts(t, b, "anything")
			shook.Wait()
			assert.Equal(t, "anything", string(sent.answer))
			assert.EqualValues(t, 1, s.count(c.why))
			assert.EqualValues(t, 1, s.count("tcp_passed_raw"))
			assert.Empty(t, s.seen)
			assert.Empty(t, s.outcomes)
		})
	}
}

// recorder is a connection that keeps the first that is written to it, and all that comes back.
type recorder struct {
	net.Conn
	once   sync.Once
	wrote  chan []byte
	answer []byte
}

func newRecorder(c net.Conn) *recorder { return &recorder{Conn: c, wrote: make(chan []byte, 1)} }

func (r *recorder) Write(b []byte) (int, error) {
	r.once.Do(func() { r.wrote <- append([]byte(nil), b...) })
	return r.Conn.Write(b)
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.answer = append(r.answer, b[:n]...)
	return n, err
}

func TestAServerWithoutANameIsKnownByItsAddress(t *testing.T) {
	s := newSecured(t, nil)
	chain, key := s.phones.Issue("127.0.0.1")
	s.show(certificate.Source{
		Name: "pbx", Names: []string{"127.0.0.1"}, Chain: certificate.PEM(chain), Key: certificate.PEM(key),
		CA: certificate.PEM(s.ca.PEM),
	})
	own, ownKey := s.ca.Issue("127.0.0.1")
	pair, err := tls.X509KeyPair([]byte(own), []byte(ownKey))
	require.NoError(t, err)
	a, b, _ := s.established(&tls.Config{ServerName: "127.0.0.1", RootCAs: s.phones.Pool()}, func(c *tls.Config) {
		c.Certificates = []tls.Certificate{pair}
	})
	puts(t, a, request("OPTIONS", "1", 0))
	gets(t, b, request("OPTIONS", "1", 0))
}

// A server that is not the one ends the phone's connection before it is answered.
func TestAServerIsVerified(t *testing.T) {
	other := certtest.NewCA(t)
	for name, issue := range map[string]func(*secured) (chain, key string){
		"another CA":   func(*secured) (string, string) { return other.Issue(pbxName) },
		"another name": func(s *secured) (string, string) { return s.ca.Issue("other.example.com") },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSecured(t, nil)
			chain, key := issue(s)
			pair, err := tls.X509KeyPair([]byte(chain), []byte(key))
			require.NoError(t, err)
			served := s.serve(func(c *tls.Config) { c.Certificates = []tls.Certificate{pair} })
			raw, _ := s.connect()
			require.Error(t, tls.Client(raw, phoneConfig(s.phones)).Handshake())
			_, err = served()
			require.Error(t, err)
			s.waitCount("tls_server_unverified")
			assert.Equal(t, "pbx tls_server_unverified", <-s.outcomes)
			assert.Zero(t, s.count("tcp_passed_raw"))
		})
	}
}

// Whoever only looks does not end a call for it: the phone itself sees what the server shows.
func TestAServerThatIsNotVerifiedPassesUnreadWhereNothingIsBlocked(t *testing.T) {
	s := newSecured(t, nil)
	s.security.Lenient = true
	other := certtest.NewCA(t)
	chain, key := other.Issue(pbxName)
	pair, err := tls.X509KeyPair([]byte(chain), []byte(key))
	require.NoError(t, err)
	foreign := func(c *tls.Config) { c.Certificates = []tls.Certificate{pair} }
	s.passesAfterOneAttempt(other, foreign, "tls_unread_server_unverified")
}

func TestAServerThatAsksForACertificatePassesUnread(t *testing.T) {
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			s := newSecured(t, nil)
			s.passesAfterOneAttempt(s.ca, func(c *tls.Config) {
				c.ClientAuth, c.MaxVersion = tls.RequestClientCert, version
			}, "tls_unread_client_certificate")
		})
	}
}

// passesAfterOneAttempt has two phones connect to a PBX whose TLS turns out to be none of ours. Both reach the PBX
// itself, from their own addresses; the second one at the first attempt.
func (s *secured) passesAfterOneAttempt(trusted *certtest.CA, pbx func(*tls.Config), why string) {
	t := s.t
	served := make(chan error, 1)
	attempt := s.serve(pbx)
	raw, from := s.connect()
	phone := tls.Client(raw, phoneConfig(trusted))
	go func() { served <- phone.Handshake() }()
	_, err := attempt()
	if err == nil { // TLS 1.3: the server is done before the client looks at what it was sent
		assert.NotEqual(t, "TLS 1.2", t.Name())
	}
	again, err := s.serve(pbx)()
	require.NoError(t, err)
	require.NoError(t, <-served)
	assert.Equal(t, from, addressOf(again.RemoteAddr()))
	puts(t, phone, "REGISTER")
	gets(t, again, "REGISTER")
	assert.Equal(t, "pbx "+map[bool]string{true: "tls_server_unverified", false: why}[s.security.Lenient], <-s.outcomes)

	next := s.serve(pbx)
	raw, _ = s.connect()
	require.NoError(t, tls.Client(raw, phoneConfig(trusted)).Handshake())
	_, err = next()
	require.NoError(t, err)
	assert.Empty(t, s.outcomes, "the PBX was asked again")
	assert.EqualValues(t, 2, s.count(why))
	assert.Empty(t, s.seen)
}

func TestAClientCertificateIsShown(t *testing.T) {
	clients := certtest.NewCA(t)
	s := newSecured(t, func(_ *Config, source *certificate.Source) {
		chain, key := clients.Issue("berlin.example.com")
		source.ClientChain, source.ClientKey = certificate.PEM(chain), certificate.PEM(key)
	})
	a, b, _ := s.established(phoneConfig(s.phones), func(c *tls.Config) {
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, clients.Pool()
		// The phone's certificates are for servers; what the PBX checks here is the CA.
		c.ClientAuth = tls.RequireAnyClientCert
	})
	assert.Equal(t, "berlin.example.com", b.ConnectionState().PeerCertificates[0].Subject.CommonName)
	puts(t, a, request("OPTIONS", "1", 0))
	gets(t, b, request("OPTIONS", "1", 0))
}

func TestACertificateIsReplaced(t *testing.T) {
	s := newSecured(t, nil)
	first, _, _ := s.established(phoneConfig(s.phones), nil)
	renewed := certtest.NewCA(t)
	chain, key := renewed.Issue(pbxName)
	s.show(certificate.Source{
		Name: "pbx", Names: []string{pbxName}, Chain: certificate.PEM(chain), Key: certificate.PEM(key),
		CA: certificate.PEM(s.ca.PEM),
	})
	_, b, _ := s.established(phoneConfig(renewed), nil)
	puts(t, b, request("OPTIONS", "1", 0))
	require.NoError(t, first.Close(), "the connection before goes on")
}

func TestAPhoneThatDoesNotTrustTheCertificateIsCounted(t *testing.T) {
	s := newSecured(t, nil)
	served := s.serve(nil)
	raw, _ := s.connect()
	config := phoneConfig(s.ca) // the PBX's CA: what it would see without the box
	config.MaxVersion = tls.VersionTLS12
	require.Error(t, tls.Client(raw, config).Handshake())
	s.waitCount("tls_sender_refused")
	b, err := served()
	require.NoError(t, err)
	_, err = b.Read(make([]byte, 1))
	require.Error(t, err)
}

func TestSlowHandshakesEnd(t *testing.T) {
	short := func(c *Config, _ *certificate.Source) {
		c.Limits.Hello, c.Limits.Handshake = 50*time.Millisecond, 50*time.Millisecond
	}
	hello := clientHello(t)
	for _, c := range []struct {
		name, sent, why string
	}{
		{"silent", "", "tls_hello_timed_out"},
		{"half a hello", hello[:100], "tls_hello_timed_out"},
		{"a PBX that does not answer", hello, "tls_handshake_timed_out"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSecured(t, short)
			a, _ := s.connect()
			b := s.accept()
			puts(t, a, c.sent)
			s.waitCount(c.why)
			ends(t, a, unix.ECONNRESET)
			_, err := io.Copy(io.Discard, b)
			require.ErrorIs(t, err, unix.ECONNRESET)
			polltest.Require(t, func() bool { return s.relay.Stats().Memory == 0 }, patience, time.Millisecond)
		})
	}
	t.Run("a phone that does not answer", func(t *testing.T) {
		s := newSecured(t, func(c *Config, _ *certificate.Source) { c.Limits.Handshake = 500 * time.Millisecond })
		served := s.serve(nil)
		a, _ := s.connect()
		puts(t, a, hello)
		_, err := served()
		require.NoError(t, err)
		s.waitCount("tls_handshake_timed_out")
	})
}

// clientHello is what a phone sends first.
func clientHello(t testing.TB) string {
	t.Helper()
	a, b := net.Pipe()
	sent := newRecorder(a)
	var both sync.WaitGroup
	both.Go(func() { _ = tls.Client(sent, &tls.Config{ServerName: pbxName}).Handshake() })
	both.Go(func() { _, _ = io.Copy(io.Discard, b) })
	first := <-sent.wrote
	a.Close()
	b.Close()
	both.Wait()
	return string(first)
}

func TestGarbageOnAPortOfTLS(t *testing.T) {
	hello := clientHello(t)
	for _, c := range []struct {
		name, sent, why string
	}{
		{"SIP in clear", request("OPTIONS", "1", 0), "tcp_passed"},
		{"another protocol", "\x80\x2e\x01\x03\x01", "tcp_passed_raw"},
		{"a record of another kind", "\x17\x03\x03\x00\x01x", "tcp_passed_raw"},
		{"a handshake that is no ClientHello", "\x16\x03\x01\x00\x04\x02\x00\x00\x00", "tls_unread_malformed_hello"},
		{"an empty record", "\x16\x03\x01\x00\x00", "tls_unread_malformed_hello"},
		{"a ClientHello of 16 MB", "\x16\x03\x01\x00\x04\x01\xff\xff\xff", "tls_unread_malformed_hello"},
		{"a ClientHello without content", "\x16\x03\x01\x00\x04\x01\x00\x00\x00", "tls_unread_malformed_hello"},
		{"a ClientHello whose lengths are wrong", hello[:76] + "\xff\xff" + hello[78:], "tls_unread_malformed_hello"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSecured(t, nil)
			a, _ := s.connect()
			b := s.accept()
			puts(t, a, c.sent)
			gets(t, b, c.sent)
			s.waitCount(c.why)
			assert.Zero(t, s.count("tls_established"))
		})
	}
}

func TestAMessageInClearMayComeInPieces(t *testing.T) {
	s := newSecured(t, nil)
	s.relay.began = s.relay.began.Add(-24 * time.Hour) // longer than any limit
	a, _ := s.connect()
	b := s.accept()
	m := request("OPTIONS", "1", 0)
	puts(t, a, m[:20])
	polltest.Require(t, func() bool { return s.relay.Stats().Memory > 0 }, patience, time.Millisecond)
	puts(t, a, m[20:])
	gets(t, b, m)
	assert.Equal(t, TCP, (<-s.seen).Transport)
}

// A server whose handshake fails may be all right the next time.
func TestAServerThatFailsOnceIsAskedAgainWhereNothingIsBlocked(t *testing.T) {
	s := newSecured(t, nil)
	s.security.Lenient = true
	raw, _ := s.connect()
	shook := make(chan error, 1)
	phone := tls.Client(raw, phoneConfig(s.ca))
	go func() { shook <- phone.Handshake() }()
	failing := s.accept()
	_, err := failing.Read(make([]byte, 1)) // its handshake has begun: it is not the dialling that fails
	require.NoError(t, err)
	reset(failing)
	_, err = s.serve(nil)() // the second connection, which passes unread
	require.NoError(t, err)
	require.NoError(t, <-shook)
	assert.EqualValues(t, 1, s.count("tls_unread_server_failed"))
	s.established(phoneConfig(s.phones), nil)
}

func TestRecordsThatAreBrokenEndTheConnection(t *testing.T) {
	s := newSecured(t, nil)
	a, b, _ := s.established(phoneConfig(s.phones), nil)
	puts(t, a.NetConn(), "\x17\x03\x03\x00\x20broken, and not what its keys say")
	s.waitCount("tls_broken")
	_, err := b.Read(make([]byte, 1))
	require.ErrorIs(t, err, unix.ECONNRESET)
}

// At an upgrade of the process a connection whose keys cannot go along ends regularly, for both peers.
func TestTLSEndsAtAHandOver(t *testing.T) {
	s := newSecured(t, nil)
	a, b, _ := s.established(phoneConfig(s.phones), nil)
	half := request("OPTIONS", "1", 0)[:40]
	puts(t, a, request("OPTIONS", "0", 0)+half)
	gets(t, b, request("OPTIONS", "0", 0))
	waiting, _ := s.connect() // its ClientHello has come in part: it goes on in the next process
	s.accept()
	hello := clientHello(t)
	puts(t, waiting, hello[:100])
	polltest.Require(t, func() bool { return s.relay.Stats().Memory >= tlsMemory+3*4096 }, patience, time.Millisecond)

	all, err := s.relay.Export(t.Context())
	require.NoError(t, err)
	ends(t, a, io.EOF)
	ends(t, b, io.EOF)
	assert.EqualValues(t, 1, s.count("tls_not_handed_over"))
	require.Len(t, all, 1)
	defer all[0].Close()
	assert.Equal(t, hello[:100], string(all[0].Streams[near].Unread))
	assert.False(t, all[0].Raw || all[0].SIP)
}

func TestHandshakesAreBounded(t *testing.T) {
	limits := Limits{Handshakes: 4, HandshakesPerSource: 3, HandshakeRate: 50}.withDefaults()
	one, two := netip.MustParseAddr("10.1.10.10"), netip.MustParseAddr("10.1.10.11")
	enter := func(g *gate, a netip.Addr, now time.Duration, want event) time.Duration {
		t.Helper()
		wait, why := g.enter(a, now)
		assert.Equal(t, want, why)
		return wait
	}

	g := newGate(limits)
	for range 3 {
		enter(g, one, 0, none)
	}
	enter(g, one, 0, tlsTooManyOfSource)
	enter(g, two, 0, none)
	enter(g, two, 0, tlsTooMany)
	g.leave(one)
	enter(g, two, 0, none)
	for range 2 {
		g.leave(one)
		g.leave(two)
	}
	assert.Empty(t, g.sources)
	assert.Zero(t, g.inside)

	limits.Handshakes, limits.HandshakesPerSource = 1<<20, 1<<20
	g = newGate(limits)
	for range handshakeBurst + 1 {
		assert.Zero(t, enter(g, one, time.Hour, none), "what comes at once after a pause")
	}
	assert.Equal(t, 20*time.Millisecond, enter(g, one, time.Hour, none))
	assert.Equal(t, 40*time.Millisecond, enter(g, two, time.Hour, none))
	assert.Equal(t, 50*time.Millisecond, enter(g, two, time.Hour+10*time.Millisecond, none))
	n := 0
	for {
		wait, why := g.enter(one, time.Hour)
		if why != none {
			assert.Equal(t, tlsTooMany, why)
			break
		}
		assert.LessOrEqual(t, wait, limits.Handshake)
		n++
	}
	assert.Greater(t, n, 450, "10 s of 50 a second may wait")
	assert.Zero(t, enter(g, one, 2*time.Hour, none))
}

func TestServersThatPassUnreadAreForgotten(t *testing.T) {
	var u unreadServers
	server, renewed := &certificate.Server{}, &certificate.Server{Name: "renewed"}
	at := netip.MustParseAddrPort("10.2.20.5:5061")
	u.remember(server, at, tlsUnreadClientCertificate, 5)
	assert.Equal(t, tlsUnreadClientCertificate, u.why(server, at, int64(unreadFor)))
	assert.Equal(t, none, u.why(server, at, 5+int64(unreadFor)))
	assert.Equal(t, none, u.why(renewed, at, 5), "with another certificate it is tried again")
	for port := range uint16(1000) {
		u.remember(server, netip.AddrPortFrom(at.Addr(), port), tlsUnreadUnverified, 10)
	}
	assert.Len(t, u.all, maxUnreadServers)
	u.remember(server, at, tlsUnreadUnverified, 11+int64(unreadFor))
	assert.Len(t, u.all, 1)
}

// FuzzHello holds that any bytes can come first, and that a ClientHello is found however it is cut.
func FuzzHello(f *testing.F) {
	f.Add([]byte(clientHello(f)), uint16(7))
	f.Add([]byte("\x16\x03\x01\x00\x04\x01\x00\x00\x00"), uint16(1))
	f.Fuzz(func(t *testing.T, b []byte, cut uint16) {
		offered, state := readHello(b)
		assert.Equal(t, state == helloWhole, offered != nil)
		n := min(int(cut), len(b))
		if _, early := readHello(b[:n]); early != helloPartial {
			assert.Equal(t, state, early, "more bytes change the answer")
		}
	})
}

func TestAHelloIsFoundHoweverItIsCut(t *testing.T) {
	hello := clientHello(t)
	for n := range len(hello) {
		_, state := readHello([]byte(hello[:n]))
		require.Equal(t, helloPartial, state, n)
	}
	var records []byte // one for each byte
	for _, b := range []byte(hello[recordHeader:]) {
		records = append(records, recordHandshake, 3, 1, 0, 1, b)
	}
	offered, state := readHello(records)
	require.Equal(t, helloWhole, state)
	assert.Equal(t, pbxName, offered.ServerName())
}
