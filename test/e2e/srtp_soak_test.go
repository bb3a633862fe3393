package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/keys"
	"ringway/srtp/plane"
	"ringway/test/lab"
	"ringway/test/polltest"
)

// Keys between the boxes change again and again while a call is up: no packet is lost for it, and none is refused. The
// short form has one change in each direction (make soak-srtp: a hundred).
func TestLongRotationsLoseNothing(t *testing.T) {
	t.Parallel()
	length := soak(t, keys.MinEvery)
	l := branches(t, lab.Options{
		WAN: twenty, Delay: 25 * time.Millisecond, Identities: true,
		EdgeConfig: rekeying("off", map[string]string{"sip.media.rotate.every": keys.MinEvery.String()}),
	})
	t.Cleanup(func() { tellAboutMedia(t, l) })
	channelsUp(t, l)
	a := longPlaying(t, l.Host(lab.PhoneA), 440, length+2*time.Minute)
	b := longPlaying(t, l.Host(lab.PhoneB), 1000, length+2*time.Minute)
	a.do("dial", "sip:phone-b@"+sipHost(lab.PhoneB, lab.IPv4)+";transport=udp")
	a.wait("CALL_ESTABLISHED")
	flowsOnLegs(t, l, map[string]string{"a": "rtp", "b": "rtp"}, 50)

	// What one box gets from its phone and the other one gives to its own, apart from what is under way.
	const underWay = 6
	before := legsOf(t, l)
	drops := dropsOf(t, l)
	want := uint64(length / keys.MinEvery)
	polltest.Require(t, func() bool {
		now := legsOf(t, l)
		return now["a"].toBox.Rotations >= want && now["b"].toBox.Rotations >= want
	}, length+time.Minute, time.Second, "the key of each direction has changed %d times", want)
	flowsOnLegs(t, l, map[string]string{"a": "rtp", "b": "rtp"}, 100)
	after := legsOf(t, l)
	for from, to := range map[string]string{"a": "b", "b": "a"} {
		came := after[from].toPhone.ReceivedPackets - before[from].toPhone.ReceivedPackets
		went := after[to].toPhone.SentPackets - before[to].toPhone.SentPackets
		assert.Greater(t, came, want*50)
		assert.InDelta(t, came, went, underWay, "packets from edge-%s's phone, and to edge-%s's", from, to)
		t.Logf("edge-%s's key has changed %d times, its phone has sent %d packets, and edge-%s's phone was sent %d",
			from, after[from].toBox.Rotations, came, to, went)
	}
	assert.Equal(t, drops, dropsOf(t, l))
	a.do("hangup", "")
	a.wait("CALL_CLOSED")
	b.wait("CALL_CLOSED")
	a.hears(1000)
	b.hears(440)
}

// longPlaying is a phone of RTP whose tone is as long as that.
func longPlaying(t *testing.T, h *lab.Host, frequency float64, length time.Duration) *baresip {
	t.Helper()
	inside := filepath.Join(lab.MachineDir, "long.wav")
	whole := tone(frequency) // which has whole periods: they may follow each other
	samples := whole[wavHeader:]
	n := int(length/(time.Duration(len(samples)/2)*time.Second/baresipRate)) + 1
	long := append(wavHead(n*len(samples)), bytes.Repeat(samples, n)...)
	require.NoError(t, os.WriteFile(h.Path(inside), long, 0o644))
	return phoneOf(t, h, "rtp", lab.IPv4, frequency, "audio_source aufile,"+inside)
}

// bothLegs are the legs of the one call of an edge.
type bothLegs struct{ toPhone, toBox plane.LegStats }

func legsOf(t *testing.T, l *lab.Lab) map[string]bothLegs {
	t.Helper()
	all := map[string]bothLegs{}
	for _, side := range []string{"a", "b"} {
		m, _ := rekeyedOf(t, l.Edge(side))
		var x bothLegs
		for _, leg := range m.Legs {
			if leg.Keying == plane.Channel {
				x.toBox = leg
			} else {
				x.toPhone = leg
			}
		}
		all[side] = x
	}
	return all
}

// dropsOf are the packets that each edge has dropped, by reason.
func dropsOf(t *testing.T, l *lab.Lab) map[string]map[string]uint64 {
	t.Helper()
	all := map[string]map[string]uint64{}
	for _, side := range []string{"a", "b"} {
		m, _ := rekeyedOf(t, l.Edge(side))
		all[side] = m.Drops
	}
	return all
}
