package media

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/sdp"
	"ringway/sip/terminate"
	"ringway/srtp/keys"
	srtp "ringway/srtp/media"
	"ringway/srtp/offer"
	"ringway/srtp/plane"
	"ringway/srtp/sdes"
	"ringway/srtp/suite"
)

// Keys that a relay of signalling tells of first are taken as unused only if nobody can have used them without our
// knowledge: the process that has used them was met, or they are newer than this one.
func TestWhichKeysAreNew(t *testing.T) {
	p := newPairs()
	p.begin(7, false)
	assert.Zero(t, p.tag(1, true), "of the first whole, where no process was found")
	assert.Equal(t, uint64(7), p.tag(2, false), "of a call that begins")
	p.first = true
	assert.Equal(t, uint64(7), p.tag(3, true), "told of again")
	assert.Zero(t, p.tag(1, false), "whenever it is told of")

	p = newPairs()
	p.begin(7, true)
	assert.Equal(t, uint64(7), p.tag(1, true), "the process was adopted")
	p.told[1] = []uint64{11, 12}
	p.local[11], p.local[12] = netip.MustParseAddrPort("10.1.10.1:20000"), netip.MustParseAddrPort("10.1.10.1:20002")
	p.end(1)
	assert.Empty(t, p.local)
	p.forget()
	p.begin(8, false) // media was switched off and on again
	assert.Equal(t, uint64(7), p.tag(1, true), "its keys are of before")
}

// The certificate of DTLS, with its key, is the same over restarts of the daemon, and gone when everything is.
func TestStopLeavesNoCertificate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "planes")
	m, err := New(Options{RunDir: dir, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	assert.NoDirExists(t, dir, "nothing is made before media is wanted")
	first, err := m.readCertificate()
	require.NoError(t, err)
	again, err := m.readCertificate()
	require.NoError(t, err)
	assert.Equal(t, first, again)
	info, err := os.Stat(filepath.Join(dir, certificate))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())
	require.NoError(t, m.Stop(t.Context()))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left)
	require.NoError(t, Quit(t.Context(), dir))
}

// Both boxes know a leg by the same name, whichever of them looks.
func TestALegHasOneName(t *testing.T) {
	a, b := netip.MustParseAddrPort("10.1.10.1:20000"), netip.MustParseAddrPort("10.2.10.1:20000")
	assert.Equal(t, channelLeg(a, b), channelLeg(b, a))
	assert.NotEqual(t, channelLeg(a, b), channelLeg(a, netip.MustParseAddrPort("10.2.10.1:20002")))
	assert.NotEqual(t, keys.Leg{}, channelLeg(a, b))
}

func TestAPairInTheMediaPlanesWords(t *testing.T) {
	addr := netip.MustParseAddrPort
	m := &Media{world: world{
		sites: map[string][]netip.Prefix{"munich": {netip.MustParsePrefix("10.2.10.0/24")}},
		boxes: map[netip.Addr]string{netip.MustParseAddr("10.2.10.1"): "munich"},
	}}
	key := sdes.Key{Master: make([]byte, 16), Salt: make([]byte, 14)}
	said := &terminate.Pair{ID: 5, Kind: sdp.Audio, Ends: [2]terminate.End{
		{ID: 11, Call: 3, Hop: netip.MustParseAddr("10.1.10.9"), Leg: offer.Leg{
			Keying: offer.SDES, Suite: suite.AES128CMHMACSHA180, Local: addr("10.1.10.1:20000"), Remote: addr("10.1.10.9:4000"),
			RemoteRTCP: addr("10.1.10.9:4001"), Send: offer.Keys{Keys: []sdes.Key{key}, Epoch: 1},
			Receive: offer.Keys{Keys: []sdes.Key{key}, Epoch: 2},
			Codecs:  []offer.Codec{{PayloadType: 8, Name: "PCMA", Clock: 8000}},
		}},
		{ID: 12, Call: 3, Hop: netip.MustParseAddr("10.2.10.9"), Leg: offer.Leg{
			Keying: offer.Channel, Suite: suite.AEADAES128GCM, Local: addr("10.1.10.1:20002"), Remote: addr("10.2.10.1:30000"),
			Mux: true, Codecs: []offer.Codec{{PayloadType: 8, Name: "PCMA", Clock: 8000}},
		}},
	}}
	p, agreed, err := m.translate(said)
	require.NoError(t, err)
	assert.Equal(t, []srtp.Side{srtp.LAN, srtp.Tunnel}, []srtp.Side{p.Legs[0].Side, p.Legs[1].Side})
	assert.Equal(t, []plane.Keying{plane.SDES, plane.Channel}, []plane.Keying{p.Legs[0].Keying, p.Legs[1].Keying})
	assert.Equal(t, addr("10.1.10.1:20001"), p.Legs[0].LocalRTCP)
	assert.False(t, p.Legs[1].LocalRTCP.IsValid(), "RTCP is on RTP's port")
	assert.Equal(t, map[uint64]agreement{
		12: {"munich", channelLeg(addr("10.2.10.1:30000"), addr("10.1.10.1:20002"))},
	}, agreed)
	assert.Equal(t, srtp.Quota{Packets: 200, Bytes: 2*8000 + 200*12, Burst: time.Second}, p.Legs[0].Quota)
	assert.Equal(t, srtp.NewPayloads(8), p.Legs[0].Payloads)
	p.Legs[0].Send.Keys[0].Master[0] = 1
	assert.Zero(t, key.Master[0], "keys are copies")

	said.Ends[1].Remote = addr("10.2.10.7:30000")
	_, _, err = m.translate(said)
	assert.ErrorContains(t, err, "no box of a site")
	said.Ends[1].Keying = offer.Undecided
	_, _, err = m.translate(said)
	assert.ErrorContains(t, err, "not agreed yet")
}
