package plane

import (
	"bytes"
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/dtls"
)

// handset is a far end that speaks DTLS-SRTP. Its socket is read by a goroutine, which sorts what arrives.
type handset struct {
	t           *testing.T
	end         *end
	endpoint    *dtls.Endpoint
	certificate *dtls.Certificate
	media       chan []byte
	events      chan dtls.Event
}

func newHandset(t *testing.T, e *end) *handset {
	pem, err := dtls.NewCertificate()
	require.NoError(t, err)
	h := &handset{t: t, end: e, media: make(chan []byte, 1024), events: make(chan dtls.Event, 16)}
	h.certificate, err = dtls.ParseCertificate(pem)
	require.NoError(t, err)
	h.endpoint = dtls.New(dtls.Config{
		Certificate: h.certificate,
		Send: func(_ dtls.Leg, to netip.AddrPort, datagram []byte) {
			_, _ = e.WriteToUDPAddrPort(datagram, to)
		},
		Notify: func(e dtls.Event) { h.events <- e },
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{}, 2)
	go func() {
		_ = h.endpoint.Run(ctx)
		ended <- struct{}{}
	}()
	require.NoError(t, e.SetReadDeadline(time.Time{}))
	go func() {
		defer func() { ended <- struct{}{} }()
		b := make([]byte, 4096)
		for {
			n, from, err := e.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if dtls.Sort(b[:n]) == dtls.DTLS {
				h.endpoint.Receive(1, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), b[:n])
				continue
			}
			select {
			case h.media <- append([]byte(nil), b[:n]...):
			default:
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		_ = e.Close()
		<-ended
		<-ended
	})
	return h
}

// start has the handset take part in an association.
func (h *handset) start(role dtls.Role, box *dtls.Certificate, id string) {
	h.t.Helper()
	_, _, err := h.endpoint.Start(1, dtls.Agreement{
		Role: role, LocalID: "handset" + id, RemoteID: "box" + id, Remote: tunnelAt,
		Fingerprints: []dtls.Fingerprint{box.Fingerprint(nil)},
	})
	require.NoError(h.t, err)
}

// established waits for keys, and returns the peer that has them.
func (h *handset) established() *peer {
	h.t.Helper()
	select {
	case e := <-h.events:
		require.NoError(h.t, e.Err)
		require.NotNil(h.t, e.Keys)
		return newPeer(h.t,
			Key{Suite: e.Keys.Suite, Master: e.Keys.Receive.Master, Salt: e.Keys.Receive.Salt},
			Key{Suite: e.Keys.Suite, Master: e.Keys.Send.Master, Salt: e.Keys.Send.Salt})
	case <-time.After(patience):
		require.Fail(h.t, "no association")
	}
	return nil
}

// dtlsPair is a phone in clear and a far end with DTLS.
func (r *rig) dtlsPair(h *handset, role dtls.Role, epoch uint32, id string) Pair {
	l := farLeg()
	l.Keying = DTLS
	l.Association = &Association{
		Epoch: epoch, Role: role, LocalID: "box" + id, RemoteID: "handset" + id,
		Fingerprints: []string{h.certificate.Fingerprint(nil).String()},
	}
	return Pair{ID: 1, Legs: [2]Leg{phoneLeg(), l}}
}

// handshake is what the daemon hears next.
func (r *rig) handshake() Handshake {
	r.t.Helper()
	select {
	case h := <-r.handshakes:
		return h
	case <-time.After(patience):
		require.Fail(r.t, "nothing became of the association")
		return Handshake{}
	}
}

// fromPhone sends packets until one arrives at the handset, which opens it.
func (h *handset) fromPhone(r *rig, p *peer, seq *uint16, key string) {
	h.t.Helper()
	for range 2000 {
		*seq++
		r.phone.send(rtp(7, *seq))
		select {
		case got := <-h.media:
			p.record(key, got)
			assertSent(h.t, 7, p.open(got))
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
	require.Fail(h.t, "no media")
}

// An association gives its leg keys. They outlive the process: the next one goes on with them, without a handshake.
func TestKeysOfAnAssociationOutliveTheProcess(t *testing.T) {
	r := newRig(t)
	h := newHandset(t, r.peer)
	h.start(dtls.Server, r.certificateOfDTLS, "1")
	r.set(r.dtlsPair(h, dtls.Client, 1, "1"))
	got := r.handshake()
	assert.True(t, got.Established, "%+v", got)
	assert.EqualValues(t, 2, got.Leg)
	p := h.established()
	var seq uint16
	h.fromPhone(r, p, &seq, "1")

	r.kill()
	h.fromPhone(r, p, &seq, "1")
	assert.Zero(t, r.status().DTLS.Started, "a handshake of the process that has the keys")

	// A refresh asks for nothing else, also after holdconn; another epoch does.
	held := r.dtlsPair(h, 0, 1, "1")
	r.set(held)
	r.kill()
	h.fromPhone(r, p, &seq, "1")
	r.set(r.dtlsPair(h, dtls.Client, 1, "1"))
	assert.Zero(t, r.status().DTLS.Started)
	h.fromPhone(r, p, &seq, "1")
	h.start(dtls.Client, r.certificateOfDTLS, "2")
	r.set(r.dtlsPair(h, dtls.Server, 2, "2"))
	got = r.handshake()
	assert.True(t, got.Established, "%+v", got)
	assert.EqualValues(t, 2, got.Epoch)
	h.fromPhone(r, h.established(), &seq, "2")

	// So it is if nothing else is said.
	h.endpoint.Close(1)
	h.start(dtls.Client, r.certificateOfDTLS, "2")
	r.set(r.dtlsPair(h, dtls.Server, 3, "2"))
	got = r.handshake()
	assert.True(t, got.Established, "%+v", got)
	assert.EqualValues(t, 3, got.Epoch)
	h.fromPhone(r, h.established(), &seq, "3")
	assert.Empty(t, h.events)
	assert.Empty(t, r.handshakes)
}

// A handshake that was under way when the process died begins once more.
func TestAHandshakeUnderWayBeginsOnceMore(t *testing.T) {
	r := newRig(t)
	h := newHandset(t, r.peer)
	r.set(r.dtlsPair(h, dtls.Client, 1, "1")) // the handset does not answer yet
	r.kill()
	h.start(dtls.Server, r.certificateOfDTLS, "1")
	got := r.handshake()
	assert.True(t, got.Established, "%+v", got)
	var seq uint16
	h.fromPhone(r, h.established(), &seq, "1")
}

// What becomes of an association that was replaced meanwhile changes nothing.
func TestAnAssociationThatWasReplacedGivesNoKeys(t *testing.T) {
	r := &rig{t: t}
	pem, err := dtls.NewCertificate()
	require.NoError(t, err)
	h := &handset{}
	h.certificate, err = dtls.ParseCertificate(pem)
	require.NoError(t, err)
	s := &server{book: newBook(), handshakes: map[uint64]uint64{2: 7}}
	s.book.mustSet(t, r.dtlsPair(h, dtls.Client, 1, "1"))
	k := keyOf(1)
	secret := func() dtls.Secret { return dtls.Secret{Master: bytes.Clone(k.Master), Salt: bytes.Clone(k.Salt)} }
	late := dtls.Event{Leg: 2, Association: 6, Keys: &dtls.Keys{Suite: testSuite, Send: secret(), Receive: secret()}}
	s.established(late)
	assert.Nil(t, s.book.legs[2].out)
	assert.Equal(t, make([]byte, 16), late.Keys.Send.Master, "they are overwritten")
}

// A certificate that was not announced gets no keys, and the daemon is told why.
func TestAWrongCertificateIsTold(t *testing.T) {
	r := newRig(t)
	h := newHandset(t, r.peer)
	p := r.dtlsPair(h, dtls.Client, 1, "1")
	p.Legs[1].Association.Fingerprints = []string{r.certificateOfDTLS.Fingerprint(nil).String()}
	h.start(dtls.Server, r.certificateOfDTLS, "1")
	r.set(p)
	got := r.handshake()
	assert.False(t, got.Established)
	assert.True(t, got.Fingerprint, "%+v", got)
	assert.False(t, r.leg(2).Keyed)
}
