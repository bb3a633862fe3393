package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/registrar"
	"ringway/test/certtest"
	"ringway/test/lab"
	"ringway/test/polltest"
)

// A phone registers and calls over TLS with a PBX in munich's data network, with `enforce`. Both boxes read it:
// the phone is shown berlin's certificate, the PBX sees the phone's own address, and the call gets its holes, and
// no other. What neither box has a certificate for passes as it is.
//
//	phone-a --- edge-a (TLS) --- edge-b (TLS) --- pc-b: PBX
//	                                         \--- phone-b: media
func TestCallsOverTLS(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	s := newTLSScene(t, l)
	phone, server := s.connect(pbxName)
	shown := phone.ConnectionState().PeerCertificates[0]
	assert.Equal(t, "a."+pbxName, shown.Subject.CommonName, "the phone sees berlin's certificate")
	assert.Equal(t, "10.1.10.10", server.RemoteAddr().(*net.TCPAddr).IP.String(), "the PBX sees the phone's address")
	assert.Equal(t, phone.LocalAddr().(*net.TCPAddr).Port, server.RemoteAddr().(*net.TCPAddr).Port)

	const contact = "Contact: <sip:anna@10.1.10.10;transport=tls>;expires=600\r\n"
	passText(t, phone, server, tlsRequest("REGISTER", "1", contact, ""))
	passText(t, server, phone, tlsResponse("REGISTER", "1", contact, ""))
	for _, side := range []string{"a", "b"} {
		assert.Equal(t, []string{"anna@example.com"}, registeredOverTLS(t, l.Edge(side)), "edge-%s", side)
	}

	sent := newMedia(t, l.Host(lab.PhoneA), "10.1.10.10:40000")
	got := newMedia(t, l.Host(lab.PhoneB), "10.2.10.10:40002")
	require.Empty(t, holesOf(t, l.Edge("a")))
	passText(t, phone, server, tlsRequest("INVITE", "2", "", tlsOffer("10.1.10.10", 40000)))
	passText(t, server, phone, tlsResponse("INVITE", "2", "", tlsOffer("10.2.10.10", 40002)))
	for _, side := range []string{"a", "b"} {
		holesSettle(t, l.Edge(side), 4) // RTP and RTCP, both ways
		list := callsOf(t, l.Edge(side))
		require.Len(t, list, 1)
		assert.Equal(t, []string{"anna", "ben"}, []string{list[0].From, list[0].To})
		assert.Equal(t, [2]string{"10.1.10.10", "10.2.20.10"}, list[0].Hops)
	}
	passDatagram(t, sent, got)
	passDatagram(t, got, sent)
	out, err := l.Edge("a").Ringway(within(t, 5*time.Second), "calls", "show", callsOf(t, l.Edge("a"))[0].ID)
	require.NoError(t, err)
	assert.Contains(t, out, "INVITE")
	assert.NotContains(t, out, "c2VjcmV0", "keys of media are not kept")

	passText(t, phone, server, tlsRequest("ACK", "2", "", ""))
	passText(t, phone, server, tlsRequest("BYE", "3", "", ""))
	passText(t, server, phone, tlsResponse("BYE", "3", "", ""))
	noHoles(t, l)
	for _, side := range []string{"a", "b"} {
		st := callsStatus(t, l.Edge(side))
		assert.Equal(t, 1, st.Encrypted, "edge-%s", side)
		require.Len(t, st.TLS, 1)
		assert.EqualValues(t, 1, st.TLS[0].Read, "edge-%s", side)
		assert.Empty(t, st.NotOpen, "edge-%s", side)
	}

	t.Run("another name passes unread", func(t *testing.T) {
		phone, server := s.connect("other.example.com")
		assert.Equal(t, "the PBX's own", phone.ConnectionState().PeerCertificates[0].Subject.CommonName)
		passText(t, phone, server, "whatever this is")
		assert.EqualValues(t, 1, callsStatus(t, l.Edge("a")).Transport["tls_unread_no_certificate"])
	})
	t.Run("a certificate is renewed", func(t *testing.T) {
		installCertificate(t, l.Edge("a"), s.ca, "renewed", pbxName)
		polltest.Require(t, func() bool {
			c, err := s.dial(pbxName)
			if err != nil {
				return false
			}
			defer c.Close()
			return c.ConnectionState().PeerCertificates[0].Subject.CommonName == "renewed"
		}, 30*time.Second, 500*time.Millisecond, "without a reload")
		passText(t, phone, server, tlsRequest("OPTIONS", "4", "", "")) // the connection that was up goes on
	})
	t.Run("a PBX of another CA is refused, and that is a problem", func(t *testing.T) {
		foreign := certtest.NewCA(t)
		s.own.set(t, foreign, "foreign", pbxName)
		_, err := s.dial(pbxName)
		require.Error(t, err)
		st := callsStatus(t, l.Edge("b"))
		assert.EqualValues(t, 1, st.Transport["tls_server_unverified"], "the box that speaks with it")
		var out string
		polltest.Require(t, func() bool {
			out, err = l.Edge("b").Ringway(within(t, 5*time.Second), "status")
			require.NoError(t, err)
			return strings.Contains(out, "10.2.20.10:5061 is not known to be this server")
		}, 15*time.Second, 500*time.Millisecond, "the status says so")
	})
	t.Run("an upgrade of the process ends connections in order", func(t *testing.T) {
		require.NoError(t, l.Edge("a").Terminate(within(t, 10*time.Second)))
		l.Edge("a").Binary = upgraded
		require.NoError(t, l.Edge("a").Start(t.Context()))
		require.NoError(t, l.Edge("a").WaitReady(within(t, 10*time.Second)))
		passText(t, phone, server, tlsRequest("OPTIONS", "5", "", "")) // over a new daemon it goes on
		_, err := l.Edge("a").Ringway(within(t, 15*time.Second), "upgrade-planes", "calls")
		require.NoError(t, err)
		_, err = phone.Read(make([]byte, 1))
		assert.ErrorIs(t, err, io.EOF)
		s.own.set(t, s.ca, "the PBX's own", pbxName)
		phone, server := s.connect(pbxName)
		passText(t, phone, server, tlsRequest("OPTIONS", "6", "", ""))
	})
	t.Run("a PBX that asks for client certificates passes unread", func(t *testing.T) {
		s.asks.Store(true)
		defer s.asks.Store(false)
		chain, key := s.ca.Issue("anna")
		own, err := tls.X509KeyPair([]byte(chain), []byte(key))
		require.NoError(t, err)
		before := callsStatus(t, l.Edge("a")).Transport["tls_unread_client_certificate"]
		for n := range uint64(3) {
			phone, server := s.connect(pbxName, own)
			assert.Equal(t, "the PBX's own", phone.ConnectionState().PeerCertificates[0].Subject.CommonName)
			assert.Equal(t, "anna", server.ConnectionState().PeerCertificates[0].Subject.CommonName)
			assert.Equal(t, phone.LocalAddr().(*net.TCPAddr).Port, server.RemoteAddr().(*net.TCPAddr).Port)
			passText(t, phone, server, "whatever this is")
			assert.Equal(t, before+n+1, callsStatus(t, l.Edge("a")).Transport["tls_unread_client_certificate"])
		}
	})
}

// A call from one baresip to another over TLS, of another make than the boxes'. The phone that is called is known by
// its address: nobody asks for a name.
func TestBaresipOverTLS(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	ca := certtest.NewCA(t)
	readTLS(t, l, ca, "10.2.10.10")
	own := lab.MachineDir + "/phone.pem"
	for _, phone := range []struct{ name, address string }{{lab.PhoneA, "10.1.10.10"}, {lab.PhoneB, "10.2.10.10"}} {
		chain, key := ca.Issue(phone.address)
		require.NoError(t, os.WriteFile(l.Host(phone.name).Path(own), []byte(chain+key), 0o600))
	}
	account := func(name string) string { return "<sip:" + name + ";transport=tls>;regint=0;answermode=auto" }
	a := startBaresip(t, l.Host(lab.PhoneA), account("phone-a@10.1.10.10"), 440, "sip_certificate "+own)
	b := startBaresip(t, l.Host(lab.PhoneB), account("phone-b@10.2.10.10"), 1000, "sip_certificate "+own)
	ears := hearing(t, l)
	a.do("dial", "sip:phone-b@10.2.10.10;transport=tls")
	a.wait("CALL_ESTABLISHED")
	ears.until(40)
	for _, side := range []string{"a", "b"} {
		list := callsOf(t, l.Edge(side))
		require.Len(t, list, 1, "edge-%s", side)
		assert.Equal(t, []string{"phone-a", "phone-b", "confirmed"}, []string{list[0].From, list[0].To, list[0].State})
		holesSettle(t, l.Edge(side), 4)
		assert.Equal(t, 1, callsStatus(t, l.Edge(side)).Encrypted, "edge-%s", side)
	}
	a.do("hangup", "")
	a.wait("CALL_CLOSED")
	b.wait("CALL_CLOSED")
	noHoles(t, l)
	ears.unharmed()
	a.hears(1000)
	b.hears(440)
}

// Phones of both branches register with a Kamailio over TLS and call each other through it, in both directions: over
// the connections by which they registered, as a PBX has to where phones have no certificates of their own.
func TestKamailioOverTLS(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	ca := certtest.NewCA(t)
	readTLS(t, l, ca, "10.2.20.10")
	own := lab.MachineDir + "/own.pem"
	for name, address := range map[string]string{
		lab.PhoneA: "10.1.10.10", lab.PhoneB: "10.2.10.10", lab.PCB: "10.2.20.10",
	} {
		chain, key := ca.Issue(address)
		require.NoError(t, os.WriteFile(l.Host(name).Path(own), []byte(chain+key), 0o600))
	}
	startKamailio(t, l.Host(lab.PCB), kamailioWithTLS(own))
	account := func(user string) string {
		return "<sip:" + user + "@10.2.20.10;transport=tls>;regint=600;answermode=auto"
	}
	a := startBaresip(t, l.Host(lab.PhoneA), account("anna"), 440, "sip_certificate "+own)
	b := startBaresip(t, l.Host(lab.PhoneB), account("ben"), 1000, "sip_certificate "+own)
	both := []string{"anna@10.2.20.10", "ben@10.2.20.10"}
	registers(t, l.Edge("a"), "tls", pbxAt+":5061", both[:1])
	registers(t, l.Edge("b"), "tls", pbxAt+":5061", both)

	for _, call := range []struct {
		from, to       *baresip
		caller, callee string
	}{{a, b, "anna", "ben"}, {b, a, "ben", "anna"}} {
		ears := hearing(t, l)
		call.from.do("dial", "sip:"+call.callee+"@10.2.20.10;transport=tls")
		call.from.wait("CALL_ESTABLISHED")
		ears.until(25)
		for side, legs := range map[string]int{"a": 1, "b": 2} {
			list := callsOf(t, l.Edge(side))
			assert.Len(t, list, legs, "edge-%s", side)
			for _, x := range list {
				assert.Equal(t, []string{call.caller, call.callee}, []string{x.From, x.To}, "edge-%s", side)
			}
			holesSettle(t, l.Edge(side), 4)
		}
		call.from.do("hangup", "")
		call.from.wait("CALL_CLOSED")
		call.to.wait("CALL_CLOSED")
		noHoles(t, l)
		ears.unharmed()
		a.hears(1000)
		b.hears(440)
	}
	assert.Equal(t, 1, callsStatus(t, l.Edge("a")).Encrypted)
	assert.Equal(t, 2, callsStatus(t, l.Edge("b")).Encrypted)
}

// kamailioWithTLS is kamailioConfig over TLS, too. What it sends to a phone goes to where the REGISTER came from.
func kamailioWithTLS(certificate string) string {
	return `enable_tls=yes
listen=tls:10.2.20.10:5061
loadmodule "tls.so"
modparam("tls", "certificate", "` + certificate + `")
modparam("tls", "private_key", "` + certificate + `")
modparam("tls", "tls_method", "TLSv1.2+")
` + strings.NewReplacer("request_route {", `loadmodule "nathelper.so"
modparam("nathelper|registrar", "received_avp", "$avp(RECEIVED)")
request_route {`, `save("location")`, `fix_nated_register();
		save("location")`).Replace(kamailioConfig)
}

const pbxName = "pbx.example.com"

// tlsScene is a PBX in munich's data network, and certificates for its name on both boxes, all from one CA.
type tlsScene struct {
	t        *testing.T
	l        *lab.Lab
	ca       *certtest.CA
	own      *ownCertificate
	asks     atomic.Bool // the PBX wants client certificates
	accepted chan *tls.Conn
}

// ownCertificate is what the PBX itself shows.
type ownCertificate struct{ now chan tls.Certificate }

func (o *ownCertificate) set(t *testing.T, ca *certtest.CA, common string, names ...string) {
	t.Helper()
	chain, key := ca.IssueAs(func(c *x509.Certificate) { c.Subject.CommonName = common }, names...)
	pair, err := tls.X509KeyPair([]byte(chain), []byte(key))
	require.NoError(t, err)
	select {
	case <-o.now:
	default:
	}
	o.now <- pair
}

func (o *ownCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	pair := <-o.now
	o.now <- pair
	return &pair, nil
}

func newTLSScene(t *testing.T, l *lab.Lab) *tlsScene {
	t.Helper()
	s := &tlsScene{
		t: t, l: l, ca: certtest.NewCA(t), own: &ownCertificate{now: make(chan tls.Certificate, 1)},
		accepted: make(chan *tls.Conn, 16),
	}
	s.own.set(t, s.ca, "the PBX's own", pbxName, "other.example.com")
	var listener net.Listener
	require.NoError(t, l.Host(lab.PCB).Do(func() (err error) {
		listener, err = tls.Listen("tcp", "10.2.20.10:5061", &tls.Config{
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
				c := &tls.Config{GetCertificate: s.own.get}
				if s.asks.Load() {
					c.ClientAuth = tls.RequireAnyClientCert
				}
				return c, nil
			},
		})
		return err
	}))
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				if encrypted := c.(*tls.Conn); encrypted.Handshake() == nil {
					s.accepted <- encrypted
				}
			}()
		}
	}()

	readTLS(t, l, s.ca, pbxName)
	return s
}

// readTLS has both edges read TLS with a server.
func readTLS(t *testing.T, l *lab.Lab, ca *certtest.CA, server string) {
	t.Helper()
	for _, side := range []string{"a", "b"} {
		e := l.Edge(side)
		installCertificate(t, e, ca, side+"."+server, server)
		text, err := e.Config()
		require.NoError(t, err)
		tlsConfig := "sip:\n  tls:\n    - name: pbx\n      server_names: [" + server + "]\n" +
			"      cert: tls/pbx.crt\n      key: tls/pbx.key\n      ca: tls/ca.crt\n"
		require.Contains(t, string(text), "\nsip:\n")
		require.NoError(t, e.WriteConfig([]byte(strings.Replace(string(text), "sip:\n", tlsConfig, 1))))
		_, err = e.Ringway(within(t, 10*time.Second), "reload")
		require.NoError(t, err)
	}
	for _, side := range []string{"a", "b"} {
		polltest.Require(t, func() bool { return len(callsStatus(t, l.Edge(side)).TLS) == 1 }, 10*time.Second,
			50*time.Millisecond, "edge-%s has its certificate", side)
	}
}

// installCertificate writes an edge's certificate for a server.
func installCertificate(t *testing.T, e *lab.Edge, ca *certtest.CA, common, server string) {
	t.Helper()
	dir := e.Path("/etc/ringway/tls")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	chain, key := ca.IssueAs(func(c *x509.Certificate) { c.Subject.CommonName = common }, server)
	for name, text := range map[string]string{"pbx.crt": chain, "pbx.key": key, "ca.crt": ca.PEM} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
}

// dial is a phone's connection to the PBX.
func (s *tlsScene) dial(name string, own ...tls.Certificate) (c *tls.Conn, err error) {
	err = s.l.Host(lab.PhoneA).Do(func() error {
		d := tls.Dialer{
			NetDialer: &net.Dialer{Timeout: 10 * time.Second},
			Config:    &tls.Config{ServerName: name, RootCAs: s.ca.Pool(), Certificates: own},
		}
		conn, err := d.DialContext(s.t.Context(), "tcp", "10.2.20.10:5061")
		if err == nil {
			c = conn.(*tls.Conn)
		}
		return err
	})
	return c, err
}

// connect is a connection, and its other end at the PBX.
func (s *tlsScene) connect(name string, own ...tls.Certificate) (phone, server *tls.Conn) {
	s.t.Helper()
	for len(s.accepted) > 0 {
		(<-s.accepted).Close()
	}
	phone, err := s.dial(name, own...)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { phone.Close() })
	select {
	case server = <-s.accepted:
	case <-time.After(10 * time.Second):
		require.Fail(s.t, "the PBX has no connection")
	}
	s.t.Cleanup(func() { server.Close() })
	return phone, server
}

// passText demands that a text arrives as it was sent.
func passText(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	_, err := from.Write([]byte(text))
	require.NoError(t, err)
	expectText(t, to, text)
}

func tlsRequest(method, number, headers, body string) string {
	return fmt.Sprintf("%s sip:ben@example.com SIP/2.0\r\nVia: SIP/2.0/TLS 10.1.10.10;branch=z9hG4bK%s\r\n%s",
		method, number, tlsRest(method, number, "", headers, body))
}

func tlsResponse(method, number, headers, body string) string {
	return fmt.Sprintf("SIP/2.0 200 OK\r\nVia: SIP/2.0/TLS 10.1.10.10;branch=z9hG4bK%s\r\n%s", number,
		tlsRest(method, number, ";tag=2", headers, body))
}

func tlsRest(method, number, tag, headers, body string) string {
	to, callID := "ben", "call@10.1.10.10"
	switch {
	case method == "REGISTER":
		to, callID = "anna", "register@10.1.10.10"
	case method == "ACK" || method == "BYE":
		tag = ";tag=2"
	}
	if body != "" {
		headers += "Content-Type: application/sdp\r\n"
	}
	return fmt.Sprintf("From: <sip:anna@example.com>;tag=1\r\nTo: <sip:%s@example.com>%s\r\nCall-ID: %s\r\n"+
		"CSeq: %s %s\r\n%sContent-Length: %d\r\n\r\n%s", to, tag, callID, number, method, headers, len(body), body)
}

func tlsOffer(address string, port int) string {
	return fmt.Sprintf("v=0\r\no=- 1 1 IN IP4 %s\r\ns=-\r\nc=IN IP4 %s\r\nt=0 0\r\nm=audio %d RTP/SAVP 8\r\n"+
		"a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3I=\r\n",
		address, address, port)
}

// registeredOverTLS are the addresses of record that `ringway phones` shows.
func registeredOverTLS(t *testing.T, e *lab.Edge) (all []string) {
	t.Helper()
	out, err := e.Ringway(within(t, 5*time.Second), "phones", "--json")
	require.NoError(t, err)
	var list []registrar.Binding
	require.NoError(t, json.Unmarshal([]byte(out), &list), out)
	for _, b := range list {
		assert.Equal(t, registrar.TLS, b.Transport)
		assert.Equal(t, "10.2.20.10:5061", b.PBX.String())
		all = append(all, b.AOR)
	}
	return all
}

// media is a socket of a phone.
type media struct {
	*net.UDPConn
	at netip.AddrPort
}

func newMedia(t *testing.T, h *lab.Host, at string) media {
	t.Helper()
	m := media{at: netip.MustParseAddrPort(at)}
	require.NoError(t, h.Do(func() (err error) {
		m.UDPConn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(m.at))
		return err
	}))
	t.Cleanup(func() { m.Close() })
	return m
}

// passDatagram demands that one arrives.
func passDatagram(t *testing.T, from, to media) {
	t.Helper()
	_, err := from.WriteToUDPAddrPort([]byte("media"), to.at)
	require.NoError(t, err)
	require.NoError(t, to.SetReadDeadline(time.Now().Add(10*time.Second)))
	b := make([]byte, 16)
	n, sender, err := to.ReadFromUDPAddrPort(b)
	require.NoError(t, err, "media of the call does not arrive")
	assert.Equal(t, "media", string(b[:n]))
	assert.Equal(t, from.at, sender)
}
