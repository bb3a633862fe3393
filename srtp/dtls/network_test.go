package dtls_test

import (
	"context"
	"encoding/hex"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/dtls"
	"ringway/srtp/suite"
)

var (
	boxAddress   = netip.MustParseAddrPort("192.0.2.1:20000")
	phoneAddress = netip.MustParseAddrPort("192.0.2.77:4000")
	otherAddress = netip.MustParseAddrPort("198.51.100.9:666")
)

const (
	latency = 20 * time.Millisecond
	boxLeg  = dtls.Leg(7)
)

// end is one of the two ends of a virtual network, with one leg.
type end struct {
	*dtls.Endpoint
	certificate *dtls.Certificate
	address     netip.AddrPort
	leg         dtls.Leg

	mu     sync.Mutex
	events []dtls.Event
	sent   [][]byte
}

// wire is the network between the ends. pass is asked for each datagram: how often it arrives, and how much later
// than usual. It has the network's lock.
type wire struct {
	t          *testing.T
	box, phone *end

	mu   sync.Mutex
	pass func(from *end, datagram []byte) (copies int, late time.Duration)
}

// newWire starts both ends; they end with the test's bubble. Call within synctest.Test.
func newWire(t *testing.T) *wire {
	w := &wire{t: t}
	w.pass = func(*end, []byte) (int, time.Duration) { return 1, 0 }
	w.box = w.end(newCertificate(t), boxAddress, boxLeg)
	w.phone = w.end(newCertificate(t), phoneAddress, 3)
	return w
}

func newCertificate(t *testing.T) *dtls.Certificate {
	text, err := dtls.NewCertificate()
	require.NoError(t, err)
	c, err := dtls.ParseCertificate(text)
	require.NoError(t, err)
	return c
}

func (w *wire) end(c *dtls.Certificate, address netip.AddrPort, leg dtls.Leg) *end {
	e := &end{certificate: c, address: address, leg: leg}
	e.Endpoint = dtls.New(dtls.Config{
		Certificate: c,
		Send: func(l dtls.Leg, to netip.AddrPort, datagram []byte) {
			if w.send(e, to, datagram) {
				assert.Equal(w.t, e.leg, l)
			}
		},
		Notify: func(event dtls.Event) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.events = append(e.events, event)
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		assert.NoError(w.t, e.Run(ctx))
	}()
	w.t.Cleanup(func() {
		cancel()
		<-done
	})
	return e
}

// send says whether there is an end at that address.
func (w *wire) send(from *end, to netip.AddrPort, datagram []byte) bool {
	datagram = slices.Clone(datagram)
	w.mu.Lock()
	defer w.mu.Unlock()
	from.sent = append(from.sent, datagram)
	target := w.at(to)
	if target == nil {
		return false
	}
	copies, late := w.pass(from, datagram)
	for range copies {
		time.AfterFunc(latency+late, func() { target.Receive(target.leg, from.address, datagram) })
	}
	return true
}

func (w *wire) at(a netip.AddrPort) *end {
	for _, e := range []*end{w.box, w.phone} {
		if e != nil && e.address == a {
			return e
		}
	}
	return nil
}

// filter sets what happens to datagrams.
func (w *wire) filter(pass func(from *end, datagram []byte) (int, time.Duration)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pass = pass
}

// outgoing is what the end has sent, and forgets it.
func (w *wire) outgoing(e *end) [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	sent := e.sent
	e.sent = nil
	return sent
}

func (w *wire) other(e *end) *end {
	if e == w.box {
		return w.phone
	}
	return w.box
}

// agreement is what the end knows of the other one.
func (w *wire) agreement(e *end, role dtls.Role) dtls.Agreement {
	peer := w.other(e)
	return dtls.Agreement{
		Role: role, Remote: peer.address, Fingerprints: []dtls.Fingerprint{peer.certificate.Fingerprint(nil)},
	}
}

func (w *wire) start(e *end, role dtls.Role, change ...func(*dtls.Agreement)) uint64 {
	a := w.agreement(e, role)
	for _, c := range change {
		c(&a)
	}
	number, kept, err := e.Start(e.leg, a)
	require.NoError(w.t, err)
	require.False(w.t, kept)
	return number
}

// take returns the events that came until nothing more happens at this time.
func (e *end) take() []dtls.Event {
	synctest.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	events := e.events
	e.events = nil
	return events
}

// one waits for an event.
func (e *end) one(t *testing.T, limit time.Duration) dtls.Event {
	t.Helper()
	for began := time.Now(); time.Since(began) <= limit; time.Sleep(10 * time.Millisecond) { // the bubble's time
		if events := e.take(); len(events) > 0 {
			require.Len(t, events, 1)
			return events[0]
		}
	}
	require.Fail(t, "no event", "within %s; %+v", limit, e.Counters())
	return dtls.Event{}
}

// established waits until both ends have keys, and compares them.
func (w *wire) established(limit time.Duration) (box, phone dtls.Event) {
	w.t.Helper()
	box, phone = w.box.one(w.t, limit), w.phone.one(w.t, limit)
	require.NoError(w.t, box.Err)
	require.NoError(w.t, phone.Err)
	sameKeys(w.t, box.Keys, phone.Keys)
	return box, phone
}

func sameKeys(t *testing.T, a, b *dtls.Keys) {
	t.Helper()
	assert.Equal(t, a.Suite, b.Suite)
	assert.Len(t, a.Send.Master, a.Suite.KeyLen())
	assert.Len(t, a.Send.Salt, a.Suite.SaltLen())
	assert.Equal(t, plain(a.Send), plain(b.Receive))
	assert.Equal(t, plain(a.Receive), plain(b.Send))
	assert.NotEqual(t, plain(a.Receive), plain(a.Send))
	assert.NotEqual(t, make([]byte, a.Suite.KeyLen()), a.Send.Master)
}

func plain(s dtls.Secret) string { return hex.EncodeToString(s.Master) + hex.EncodeToString(s.Salt) }

func suites(all ...suite.Suite) func(*dtls.Agreement) {
	return func(a *dtls.Agreement) { a.Suites = all }
}
