package dtls_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/dtls"
	"ringway/srtp/suite"
)

func TestKeysOfEachProfile(t *testing.T) {
	for _, s := range dtls.Suites() {
		t.Run(s.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(t)
				w.start(w.box, dtls.Server)
				w.start(w.phone, dtls.Client, suites(s))
				box, phone := w.established(time.Second)
				assert.Equal(t, s, box.Keys.Suite)
				assert.Equal(t, phoneAddress, box.Remote)

				send, receive, err := box.Keys.Streams()
				require.NoError(t, err)
				assert.Equal(t, s, send.Suite())
				assert.Equal(t, s, receive.Suite())
				assert.Nil(t, send.MKI())
				phone.Keys.Wipe()
				assert.Equal(t, make([]byte, s.KeyLen()), phone.Keys.Send.Master)
				assert.Equal(t, make([]byte, s.SaltLen()), phone.Keys.Receive.Salt)
			})
		})
	}
}

// A socket of IPv6 has IPv4 addresses in another form. It is the same address.
func TestMappedAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		mapped := func(a netip.AddrPort) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
		}
		a := w.agreement(w.box, dtls.Server)
		number := w.start(w.box, dtls.Server)
		a.Remote = mapped(phoneAddress)
		again, kept, err := w.box.Start(boxLeg, a)
		require.NoError(t, err)
		assert.True(t, kept)
		assert.Equal(t, number, again)
		w.filter(func(from *end, d []byte) (int, time.Duration) {
			if from != w.phone {
				return 1, 0
			}
			time.AfterFunc(latency, func() { w.box.Receive(boxLeg, mapped(phoneAddress), d) })
			return 0, 0
		})
		w.start(w.phone, dtls.Client)
		box, _ := w.established(time.Second)
		assert.Equal(t, phoneAddress, box.Remote)
	})
}

// Case 25: nothing is sent before the answer, whatever the offer said.
func TestNoHelloBeforeTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		require.NoError(t, w.box.Offer(boxLeg, nil))
		time.Sleep(time.Minute)
		assert.Empty(t, w.outgoing(w.box))
		w.start(w.phone, dtls.Server)
		w.start(w.box, dtls.Client)
		w.established(time.Second)
	})
}

// Case 25: a re-offer with actpass keeps the role, the association and its keys.
func TestReofferKeepsTheAssociation(t *testing.T) {
	for _, role := range []dtls.Role{dtls.Client, dtls.Server} {
		t.Run(role.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(t)
				identified := func(a *dtls.Agreement) { a.LocalID, a.RemoteID = "ours", "theirs" }
				number := w.start(w.box, role, identified)
				w.start(w.phone, dtls.Client+dtls.Server-role)
				w.established(time.Second)
				w.outgoing(w.box)

				require.NoError(t, w.box.Offer(boxLeg, nil))
				time.Sleep(time.Second)
				a := w.agreement(w.box, role)
				identified(&a)
				a.Remote = otherAddress // with a tls-id, the port may change
				again, kept, err := w.box.Start(boxLeg, a)
				require.NoError(t, err)
				assert.True(t, kept)
				assert.Equal(t, number, again)
				time.Sleep(time.Minute)
				assert.Empty(t, w.outgoing(w.box))
				assert.Empty(t, w.box.take())
			})
		})
	}
}

// What makes a new association (RFC 8842 section 4, RFC 5763 section 6.6).
func TestNewAssociation(t *testing.T) {
	other := newCertificate(t).Fingerprint(nil)
	for name, change := range map[string]func(*dtls.Agreement){
		"role":        func(a *dtls.Agreement) { a.Role = dtls.Client },
		"remote id":   func(a *dtls.Agreement) { a.RemoteID = "new" },
		"local id":    func(a *dtls.Agreement) { a.LocalID = "new" },
		"fingerprint": func(a *dtls.Agreement) { a.Fingerprints = append(a.Fingerprints, other) },
		"address":     func(a *dtls.Agreement) { a.Remote = otherAddress },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(t)
				a := w.agreement(w.box, dtls.Server)
				number, err := w.box.Restore(boxLeg, a)
				require.NoError(t, err)
				again, kept, err := w.box.Start(boxLeg, a)
				require.NoError(t, err)
				assert.True(t, kept, "no change")
				assert.Equal(t, number, again)
				change(&a)
				again, kept, err = w.box.Start(boxLeg, a)
				require.NoError(t, err)
				assert.False(t, kept)
				assert.NotEqual(t, number, again)
			})
		})
	}
}

// Case 25: a new tls-id in the answer while we are passive. We wait for the peer; the keys are new.
func TestNewIdentifierWhilePassive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		first := func(a *dtls.Agreement) { a.LocalID, a.RemoteID = "box", "phone 1" }
		second := func(a *dtls.Agreement) { a.LocalID, a.RemoteID = "box", "phone 2" }
		number := w.start(w.box, dtls.Server, first)
		w.start(w.phone, dtls.Client, first)
		old, _ := w.established(time.Second)

		require.NoError(t, w.box.Offer(boxLeg, nil))
		w.outgoing(w.box)
		next := w.start(w.box, dtls.Server, second)
		time.Sleep(time.Second)
		assert.Empty(t, w.outgoing(w.box), "we are passive")
		assert.Empty(t, w.box.take())
		w.start(w.phone, dtls.Client, second)
		box, _ := w.established(time.Second)
		assert.NotEqual(t, number, next)
		assert.Equal(t, next, box.Association)
		assert.NotEqual(t, plain(old.Keys.Send), plain(box.Keys.Send))
	})
}

// The peer's first message overtakes its answer: the keys are held until its fingerprint is known.
func TestKeysAreHeldForTheAnswer(t *testing.T) {
	right := func(*dtls.Agreement) {}
	wrong := func(a *dtls.Agreement) {
		a.Fingerprints = []dtls.Fingerprint{newCertificate(t).Fingerprint(nil)}
	}
	for name, c := range map[string]struct {
		change func(*dtls.Agreement)
		want   error
	}{
		"the same certificate":     {right, nil},
		"another certificate":      {wrong, dtls.ErrFingerprint},
		"a suite that is too weak": {suites(dtls.Suites()[1]), dtls.ErrProfile},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(t)
				require.NoError(t, w.box.Offer(boxLeg, nil))
				w.start(w.phone, dtls.Client)
				phone := w.phone.one(t, time.Second)
				require.NoError(t, phone.Err)
				time.Sleep(time.Minute)
				assert.Empty(t, w.box.take())
				w.start(w.box, dtls.Server, c.change)
				box := w.box.one(t, 0)
				if c.want == nil {
					require.NoError(t, box.Err)
					sameKeys(t, box.Keys, phone.Keys)
				} else {
					assert.ErrorIs(t, box.Err, c.want)
					assert.Nil(t, box.Keys)
				}
			})
		})
	}
}

// An offer replaces one whose handshake has not come yet. The peer answers with another certificate, which overtakes
// the answer.
func TestOfferBeforeTheHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		old := w.start(w.box, dtls.Server, func(a *dtls.Agreement) {
			a.Fingerprints = []dtls.Fingerprint{newCertificate(t).Fingerprint(nil)}
		})
		require.NoError(t, w.box.Offer(boxLeg, nil))
		w.start(w.phone, dtls.Client)
		phone := w.phone.one(t, time.Second)
		require.NoError(t, phone.Err)
		time.Sleep(time.Second)
		assert.Empty(t, w.box.take())
		number := w.start(w.box, dtls.Server)
		assert.NotEqual(t, old, number)
		box := w.box.one(t, 0)
		require.NoError(t, box.Err)
		assert.Equal(t, number, box.Association)
		sameKeys(t, box.Keys, phone.Keys)
	})
}

// Keys are held for as long as a phone may ring, not forever; and they are of no use if we become the client.
func TestHeldKeysEnd(t *testing.T) {
	for name, wait := range map[string]time.Duration{"late answer": 200 * time.Second, "we are the client": time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(t)
				require.NoError(t, w.box.Offer(boxLeg, nil))
				w.start(w.phone, dtls.Client)
				require.NoError(t, w.phone.one(t, time.Second).Err)
				time.Sleep(wait)
				if wait > time.Minute {
					w.start(w.box, dtls.Server)
				} else {
					w.start(w.box, dtls.Client)
				}
				assert.ErrorIs(t, w.box.one(t, 35*time.Second).Err, dtls.ErrTimeout)
			})
		})
	}
}

// Held keys that nobody gets are overwritten.
func TestHeldKeysAreWiped(t *testing.T) {
	for name, end := range map[string]func(*wire){
		"close":      func(w *wire) { w.box.Close(boxLeg) },
		"other role": func(w *wire) { w.start(w.box, dtls.Client) },
		"too late":   func(*wire) { time.Sleep(200 * time.Second) },
		"not as signalled": func(w *wire) {
			w.start(w.box, dtls.Server, func(a *dtls.Agreement) {
				a.Fingerprints = []dtls.Fingerprint{newCertificate(w.t).Fingerprint(nil)}
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(t)
				require.NoError(t, w.box.Offer(boxLeg, nil))
				w.start(w.phone, dtls.Client)
				require.NoError(t, w.phone.one(t, time.Second).Err)
				keys := w.box.Held(boxLeg)
				require.NotNil(t, keys)
				require.NotEqual(t, make([]byte, keys.Suite.KeyLen()), keys.Send.Master)
				end(w)
				synctest.Wait()
				for _, s := range []dtls.Secret{keys.Send, keys.Receive} {
					assert.Equal(t, make([]byte, keys.Suite.KeyLen()), s.Master)
					assert.Equal(t, make([]byte, keys.Suite.SaltLen()), s.Salt)
				}
			})
		})
	}
}

// The peer's certificate has another fingerprint than its description.
func TestWrongFingerprint(t *testing.T) {
	for _, role := range []dtls.Role{dtls.Client, dtls.Server} {
		t.Run(role.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(t)
				w.start(w.phone, dtls.Client+dtls.Server-role)
				w.start(w.box, role, func(a *dtls.Agreement) {
					a.Fingerprints = []dtls.Fingerprint{newCertificate(t).Fingerprint(nil)}
				})
				assert.ErrorIs(t, w.box.one(t, 3*time.Second).Err, dtls.ErrFingerprint)
				assert.Error(t, w.phone.one(t, 35*time.Second).Err)
			})
		})
	}
}

// Case 26: several fingerprints, one of a hash that is not accepted; any other one is enough. MD5 and SHA-1 alone are
// refused, though they match.
func TestSeveralFingerprints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		sha1, err := dtls.ParseFingerprint("SHA-1 00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33")
		require.NoError(t, err)
		sha512, err := dtls.ParseFingerprint("sha-512 " + strings.Repeat("00:", 63) + "00")
		require.NoError(t, err)
		a := w.agreement(w.box, dtls.Server)
		a.Fingerprints = []dtls.Fingerprint{sha1}
		_, _, err = w.box.Start(boxLeg, a)
		assert.ErrorIs(t, err, dtls.ErrFingerprint)

		right := w.phone.certificate.Fingerprint([]dtls.Fingerprint{sha512})
		w.start(w.box, dtls.Server, func(a *dtls.Agreement) {
			a.Fingerprints = []dtls.Fingerprint{sha1, newCertificate(t).Fingerprint(nil), right}
		})
		w.start(w.phone, dtls.Client)
		w.established(time.Second)
	})
}

func TestNoCommonProfile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		w.start(w.box, dtls.Server, suites(dtls.Suites()[0]))
		w.start(w.phone, dtls.Client, suites(dtls.Suites()[3]))
		phone, box := w.phone.one(t, 10*time.Second), w.box.one(t, 35*time.Second)
		assert.ErrorIs(t, phone.Err, dtls.ErrAlert)
		assert.ErrorContains(t, box.Err, "SRTP")
	})
}

// A peer that never answers: three attempts, five retransmissions each, then an error.
func TestSilentPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		w.filter(func(*end, []byte) (int, time.Duration) { return 0, 0 })
		number := w.start(w.box, dtls.Client)
		event := w.box.one(t, 31*time.Second)
		assert.ErrorIs(t, event.Err, dtls.ErrTimeout)
		assert.Equal(t, number, event.Association)
		sent := len(w.outgoing(w.box))
		assert.GreaterOrEqual(t, sent, 15)
		assert.LessOrEqual(t, sent, 20)
		time.Sleep(time.Minute)
		assert.Empty(t, w.outgoing(w.box))
	})
}

// Close is silent, at each moment of a handshake.
func TestCloseIsSilent(t *testing.T) {
	for at := time.Duration(0); at < 300*time.Millisecond; at += 19 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			w := newWire(t)
			w.start(w.box, dtls.Server)
			w.start(w.phone, dtls.Client)
			time.Sleep(at)
			w.box.Close(boxLeg)
			w.box.take()
			w.outgoing(w.box)
			time.Sleep(time.Minute)
			assert.Empty(t, w.outgoing(w.box))
			assert.Empty(t, w.box.take())
			w.box.Close(boxLeg) // twice does no harm
		})
	}
}

// An endpoint that has ended keeps nothing and says so.
func TestStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		w.start(w.phone, dtls.Client)
		w.start(w.box, dtls.Server)
		w.established(time.Second)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		e := dtls.New(dtls.Config{Certificate: newCertificate(t)})
		require.NoError(t, e.Offer(1, nil))
		require.NoError(t, e.Run(ctx))
		assert.ErrorIs(t, e.Offer(1, nil), dtls.ErrStopped)
	})
}

func TestAgreementIsChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		for _, change := range []func(*dtls.Agreement){
			func(a *dtls.Agreement) { a.Role = 0 },
			func(a *dtls.Agreement) { a.Fingerprints = nil },
			func(a *dtls.Agreement) { a.Remote = netip.AddrPort{} },
			func(a *dtls.Agreement) { a.Suites = []suite.Suite{suite.AES256CMHMACSHA180} }, // no registered profile
		} {
			a := w.agreement(w.box, dtls.Server)
			change(&a)
			_, _, err := w.box.Start(boxLeg, a)
			assert.Error(t, err)
			_, err = w.box.Restore(boxLeg, a)
			assert.Error(t, err)
		}
		assert.ErrorIs(t, w.box.Offer(boxLeg, []suite.Suite{suite.AES256CMHMACSHA180}), dtls.ErrProfile)
		for l := range dtls.Leg(4096) {
			require.NoError(t, w.box.Offer(100+l, nil))
		}
		assert.ErrorIs(t, w.box.Offer(1, nil), dtls.ErrFull)
	})
}
