package dtls_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/dtls"
)

// Types of records.
const (
	changeCipherSpec = 20
	handshakeRecord  = 22
)

// Case 28: 30 % of the datagrams are lost each way, others come twice or out of order.
func TestLoss(t *testing.T) {
	for _, role := range []dtls.Role{dtls.Client, dtls.Server} {
		for seed := range uint64(40) {
			synctest.Test(t, func(t *testing.T) {
				w, random := newWire(t), mathrand.New(mathrand.NewPCG(seed, uint64(role)))
				w.filter(func(*end, []byte) (int, time.Duration) {
					copies := 1
					switch n := random.IntN(100); {
					case n < 30:
						copies = 0
					case n < 45:
						copies = 2
					}
					return copies, time.Duration(random.IntN(100)) * time.Millisecond
				})
				w.start(w.box, role)
				w.start(w.phone, dtls.Client+dtls.Server-role)
				box, phone := w.box.one(t, 31*time.Second), w.phone.one(t, 31*time.Second)
				require.NoError(t, box.Err, "seed %d", seed)
				require.NoError(t, phone.Err, "seed %d", seed)
				sameKeys(t, box.Keys, phone.Keys)
			})
		}
	}
}

// Case 28: the last flight is lost, several times. The server has its keys already, and answers what the client
// repeats.
func TestLastFlightLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		lost := 0
		w.filter(func(from *end, datagram []byte) (int, time.Duration) {
			if from == w.box && datagram[0] == changeCipherSpec && lost < 4 {
				lost++
				return 0, 0
			}
			return 1, 0
		})
		w.start(w.box, dtls.Server)
		w.start(w.phone, dtls.Client)
		box := w.box.one(t, time.Second)
		require.NoError(t, box.Err)
		assert.Empty(t, w.phone.take(), "it waits for the last flight")
		phone := w.phone.one(t, 10*time.Second)
		require.NoError(t, phone.Err)
		assert.Equal(t, 4, lost)
		sameKeys(t, box.Keys, phone.Keys)
	})
}

// What a client repeats after the end is answered for four minutes, at a bounded rate, and ends nothing.
func TestLateRetransmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		w.start(w.box, dtls.Server)
		w.start(w.phone, dtls.Client)
		w.established(time.Second)
		var last []byte
		for _, d := range w.outgoing(w.phone) {
			if d[0] == handshakeRecord {
				last = d
			}
		}
		w.outgoing(w.box)
		again := 0
		repeat := func() {
			again++ // another record sequence number, as in a real retransmission
			for rest := last; len(rest) > 0; rest = rest[13+int(rest[11])<<8+int(rest[12]):] {
				rest[9], rest[10] = 9, rest[10]+1
			}
			w.box.Receive(boxLeg, phoneAddress, last)
			synctest.Wait()
		}
		repeat()
		answer := w.outgoing(w.box)
		require.Len(t, answer, 1)
		assert.EqualValues(t, changeCipherSpec, answer[0][0])

		for range 200 {
			repeat()
		}
		assert.LessOrEqual(t, len(w.outgoing(w.box)), 5)
		assert.Positive(t, w.box.Counters().Late)
		time.Sleep(5 * time.Minute)
		repeat()
		assert.Empty(t, w.outgoing(w.box))
		assert.Empty(t, w.box.take(), "the association stays, silently")
		assert.Empty(t, w.phone.take())
		_, kept, err := w.box.Start(boxLeg, w.agreement(w.box, dtls.Server))
		require.NoError(t, err)
		assert.True(t, kept)
	})
}

// Case 28: a handshake larger than the path's MTU goes in fragments; no datagram is longer than 1200 bytes.
func TestFragments(t *testing.T) {
	for _, role := range []dtls.Role{dtls.Client, dtls.Server} {
		t.Run(role.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire(t)
				w.box = w.end(bigCertificate(t), boxAddress, boxLeg)
				w.phone = w.end(bigCertificate(t), phoneAddress, 3)
				w.start(w.box, role)
				w.start(w.phone, dtls.Client+dtls.Server-role)
				w.established(time.Second)
				longest, total := 0, 0
				for _, d := range append(w.outgoing(w.box), w.outgoing(w.phone)...) {
					longest, total = max(longest, len(d)), total+len(d)
				}
				assert.LessOrEqual(t, longest, 1200)
				assert.Greater(t, longest, 1100)
				assert.Greater(t, total, 2*6000)
			})
		})
	}
}

// A client's path may be so narrow that its ClientHello comes in fragments.
func TestHelloInFragments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire(t)
		w.filter(func(from *end, d []byte) (int, time.Duration) {
			if from != w.phone || d[13] != 1 {
				return 1, 0
			}
			body := d[25:]
			for at := 0; at < len(body); at += 70 {
				part := body[at:min(at+70, len(body))]
				f := slices.Concat(d[:25], part)
				f[10] += byte(at / 70)
				f[11], f[12] = 0, byte(12+len(part))
				f[19], f[20], f[21] = 0, 0, byte(at)
				f[22], f[23], f[24] = 0, 0, byte(len(part))
				time.AfterFunc(latency+time.Duration(at)*time.Microsecond, func() { w.box.Receive(boxLeg, phoneAddress, f) })
			}
			return 0, 0
		})
		w.start(w.box, dtls.Server)
		w.start(w.phone, dtls.Client)
		w.established(time.Second)
	})
}

// bigCertificate makes one of 6 kB.
func bigCertificate(t *testing.T) *dtls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "phone"}}
	for i := range 100 {
		template.DNSNames = append(template.DNSNames, fmt.Sprintf("%d.%s.example", i, strings.Repeat("x", 50)))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	c, err := dtls.ParseCertificate(append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...))
	require.NoError(t, err)
	return c
}
