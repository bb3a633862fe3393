package media

import (
	"fmt"
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
	p.set(&plane.Pair{ID: 1, Legs: [2]plane.Leg{{ID: 11}, {ID: 12}}}, nil)
	assert.Len(t, p.local, 2)
	p.end(1)
	assert.Empty(t, p.local)
	assert.Empty(t, p.owner)
	p.forget()
	p.begin(8, false) // media was switched off and on again
	assert.Equal(t, uint64(7), p.tag(1, true), "its keys are of before")
}

// The branches of a fork have one port towards the callees in common: its leg goes from one pair to the next, with
// another agreement where the far box has another port. The pair that had it ends without it.
func TestALegGoesFromOnePairToAnother(t *testing.T) {
	p := newPairs()
	p.begin(7, false)
	pair := func(id, caller, callee uint64) *plane.Pair {
		return &plane.Pair{ID: id, Legs: [2]plane.Leg{
			{ID: caller, Local: netip.MustParseAddrPort("10.1.10.1:20000")},
			{ID: callee, Local: netip.MustParseAddrPort("10.1.10.1:20002")},
		}}
	}
	first, second := agreement{"munich", keys.Leg{1}}, agreement{"munich", keys.Leg{2}}
	began, ended := p.set(pair(1, 11, 12), map[uint64]agreement{12: first})
	assert.Equal(t, map[uint64]agreement{12: first}, began)
	assert.Empty(t, ended)
	began, ended = p.set(pair(1, 11, 12), map[uint64]agreement{12: first})
	assert.Empty(t, began, "it goes on")
	assert.Empty(t, ended)

	began, ended = p.set(pair(2, 21, 12), map[uint64]agreement{12: second})
	assert.Equal(t, map[uint64]agreement{12: second}, began)
	assert.Equal(t, []agreement{first}, ended)
	assert.Empty(t, p.end(1), "it has not the leg any more")
	assert.Equal(t, map[uint64]agreement{12: second}, p.channels())
	assert.Len(t, p.local, 2)

	assert.Equal(t, []agreement{second}, p.end(2))
	assert.Empty(t, p.agreed)
	assert.Empty(t, p.local)
	assert.Empty(t, p.told)
	assert.Empty(t, p.end(2), "twice")
}

// Who takes a leg over is set before the pair that had it ends; a port of a call that is over is free before the next
// call has it.
func TestChangesInOrder(t *testing.T) {
	set := func(id, a, b uint64) terminate.Change {
		return terminate.Change{ID: id, Pair: &terminate.Pair{ID: id, Ends: [2]terminate.End{{ID: a}, {ID: b}}}}
	}
	end := func(id uint64) terminate.Change { return terminate.Change{ID: id} }
	there := map[uint64][2]uint64{1: {11, 12}, 3: {31, 32}}
	for name, c := range map[string]struct{ in, out []terminate.Change }{
		"nothing is taken over":  {[]terminate.Change{end(1), set(2, 21, 22)}, []terminate.Change{end(1), set(2, 21, 22)}},
		"a leg is":               {[]terminate.Change{end(1), set(2, 21, 12)}, []terminate.Change{set(2, 21, 12), end(1)}},
		"it is so already":       {[]terminate.Change{set(2, 21, 12), end(1)}, []terminate.Change{set(2, 21, 12), end(1)}},
		"of one that nobody has": {[]terminate.Change{end(9), set(2, 21, 12)}, []terminate.Change{end(9), set(2, 21, 12)}},
		"both, by different ones": {
			[]terminate.Change{end(1), set(2, 11, 22), set(4, 41, 12)},
			[]terminate.Change{set(2, 11, 22), set(4, 41, 12), end(1)},
		},
		"it is set again": {
			[]terminate.Change{end(1), set(2, 21, 12), set(1, 11, 13)},
			[]terminate.Change{set(2, 21, 12), set(1, 11, 13)},
		},
		"others stay where they are": {
			[]terminate.Change{end(1), end(3), set(2, 21, 12), set(5, 51, 52)},
			[]terminate.Change{end(3), set(2, 21, 12), end(1), set(5, 51, 52)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			say := func(all []terminate.Change) (out []string) {
				for _, x := range all {
					out = append(out, fmt.Sprint(x.ID, x.Pair != nil))
				}
				return out
			}
			assert.Equal(t, say(c.out), say(inOrder(c.in, there)))
		})
	}
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
