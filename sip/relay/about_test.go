package relay

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/call"
	"ringway/sip/compact"
	"ringway/sip/dialog"
	"ringway/sip/message"
	"ringway/sip/sdp"
)

var nine = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

// A phone may move its media with each re-INVITE of a long call.
func TestTheMediaOfACallAreBounded(t *testing.T) {
	tr := dialog.New(100)
	var x about
	pass := func(from, to, text string) *dialog.Leg {
		m := new(message.Message)
		require.Equal(t, message.None, m.Scan([]byte(text)))
		var d *sdp.Description
		if len(m.Body) > 0 {
			d = new(sdp.Description)
			require.True(t, d.Read(m.Body))
		}
		return tr.Message(nine, netip.MustParseAddr(from), netip.MustParseAddr(to), m, d).Leg
	}
	for port := range call.MaxMedia {
		for _, m := range benchCall("10.1.10.9", port)[:4] {
			from, to := "10.1.10.9", benchPBX
			if m.back {
				from, to = to, from
			}
			l := pass(from, to, m.text)
			require.NotNil(t, l)
			x.had(l)
			x.had(l)
		}
	}
	assert.Len(t, x.media, call.MaxMedia)
}

// What is known of a call comes back from the journal as it was.
func TestAnAboutIsSaved(t *testing.T) {
	x := about{
		from: "1001", to: "2001", answered: nine, codecs: []string{"PCMA", "H264"}, holes: 4, emergency: true,
		media: []dialog.Flow{
			dialog.NewFlow(netip.MustParseAddr("10.1.10.9"), netip.MustParseAddrPort("10.2.20.5:6000"), false),
			dialog.FlowAsked(netip.MustParseAddr("2001:db8::5"), netip.MustParseAddrPort("[2001:db8::9]:6001"), true),
		},
	}
	b, err := compact.Encode(entry{Key: 7, About: x.save()})
	require.NoError(t, err)
	var e entry
	require.NoError(t, compact.Decode(b, &e))
	got := e.About.load()
	assert.True(t, got.answered.Equal(x.answered))
	got.answered = x.answered
	assert.Equal(t, &x, got)
}

// A flow that was asked of a hop, and comes from it, is one for people.
func TestTheMediaOfACallAreNamedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.answer(func() { w.pass(phone, pbx, invite) }, nil)
		w.answer(func() { w.pass(pbx, phone, okay) }, nil)
		list := w.calls()
		require.Len(t, list, 1)
		assert.Equal(t, []call.Flow{
			{From: "10.2.20.5", To: "10.1.10.9:4000"}, {From: "10.1.10.9", To: "10.2.20.5:6000"},
		}, list[0].Media)
		assert.Len(t, list[0].Flows, 4)
		w.closed()
	})
}
