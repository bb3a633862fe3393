package e2e

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/appliance/config"
	"ringway/appliance/keychannel"
	rekey "ringway/appliance/media"
	"ringway/srtp/plane"
	"ringway/test/lab"
	"ringway/test/lab/capture"
	"ringway/test/polltest"
)

// rekeying has both edges re-key media: between each other under keys that they agree, and to the phones as phone says.
func rekeying(phone string, more map[string]string) func(string, map[string]string) {
	return func(site string, values map[string]string) {
		far := map[string]string{"berlin": "munich", "munich": "berlin"}[site]
		values["sip.on_failure"] = "closed"
		values["sites["+far+"].srtp"] = "require"
		if phone != "" {
			values["voice[voice0].srtp"] = phone
		}
		reading("enforce", more)(site, values)
	}
}

// rekeyedOf is an edge's sections of the status about media and key channels.
func rekeyedOf(t *testing.T, e *lab.Edge) (m rekey.Status, k keychannel.Status) {
	t.Helper()
	out, err := e.StatusJSON(within(t, 5*time.Second))
	require.NoError(t, err)
	var st struct {
		Media      rekey.Status
		KeyChannel keychannel.Status `json:"key_channel"`
	}
	require.NoError(t, json.Unmarshal(out, &st))
	return st.Media, st.KeyChannel
}

// channelsUp waits until both boxes can agree keys.
func channelsUp(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, side := range []string{"a", "b"} {
		polltest.Require(t, func() bool {
			m, k := rekeyedOf(t, l.Edge(side))
			return m.Running && len(k.Sites) == 1 && k.Sites[0].Up && callsStatus(t, l.Edge(side)).KeyChannels == 1
		}, 20*time.Second, 100*time.Millisecond, "edge-%s: the key channel is up", side)
	}
}

// keyings are what the legs of an edge's media are.
func keyings(m rekey.Status) (all []plane.Keying) {
	for i := range m.Legs {
		all = append(all, m.Legs[i].Keying)
	}
	slices.Sort(all)
	return all
}

// phoneKinds are what phones speak: how baresip is told, what their network has to have then, and what their leg is.
var phoneKinds = map[string]struct {
	account string
	network map[string]string
	leg     plane.Keying
}{
	"rtp": {"", map[string]string{"voice[voice0].srtp": "off"}, plane.Clear},
	"sdes": {";mediaenc=srtp-mand", map[string]string{
		"voice[voice0].srtp": "require", "sip.media.methods": "[sdes]",
	}, plane.SDES},
	"dtls": {";mediaenc=dtls_srtp", map[string]string{
		"voice[voice0].srtp": "require", "sip.media.methods": "[dtls]",
	}, plane.DTLS},
}

// setKinds has the phones' networks want what phones of these kinds speak.
func setKinds(t *testing.T, l *lab.Lab, atA, atB string) {
	t.Helper()
	for side, kind := range map[string]string{"a": atA, "b": atB} {
		e := l.Edge(side)
		text, err := e.Config()
		require.NoError(t, err)
		text, err = config.SetValues(text, phoneKinds[kind].network)
		require.NoError(t, err)
		require.NoError(t, e.WriteConfig(text))
		_, err = e.Ringway(within(t, 20*time.Second), "reload")
		require.NoError(t, err)
	}
}

// phoneOf starts a phone of a kind that plays a tone of so many Hz. more are lines of its config.
func phoneOf(t *testing.T, h *lab.Host, kind string, family lab.Family, frequency float64, more ...string) *baresip {
	t.Helper()
	account := fmt.Sprintf("<sip:%s@%s;transport=udp>;regint=0;answermode=auto%s", h.Name, sipHost(h.Name, family),
		phoneKinds[kind].account)
	more = append(more, "rtcp_mux yes", "module srtp.so", "module dtls_srtp.so")
	return startBaresip(t, h, account, frequency, more...)
}

// flowsOnLegs waits until so many more packets have come in and gone out on each of the two legs that an edge has to
// have for its phone's kind.
func flowsOnLegs(t *testing.T, l *lab.Lab, kinds map[string]string, packets uint64) {
	t.Helper()
	for side, kind := range kinds {
		want := []plane.Keying{phoneKinds[kind].leg, plane.Channel}
		slices.Sort(want)
		before := map[uint64]plane.LegStats{}
		m, _ := rekeyedOf(t, l.Edge(side))
		for _, x := range m.Legs {
			before[x.ID] = x
		}
		polltest.Require(t, func() bool {
			m, _ := rekeyedOf(t, l.Edge(side))
			return slices.Equal(want, keyings(m)) && !slices.ContainsFunc(m.Legs, func(x plane.LegStats) bool {
				was := before[x.ID]
				return x.ReceivedPackets < was.ReceivedPackets+packets || x.SentPackets < was.SentPackets+packets
			})
		}, 20*time.Second, 100*time.Millisecond, "edge-%s: media on both legs", side)
	}
}

// Phones with RTP, with SDES and with DTLS call each other, each with each, through two boxes that re-key: what one
// plays is in what the other one records, in the tunnel there is SRTP between the boxes alone, and nothing is left
// behind.
func TestBaresipWithReKeyedMedia(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, Identities: true, EdgeConfig: rekeying("", nil)})
	t.Cleanup(func() { tellAboutMedia(t, l) })
	channelsUp(t, l)
	type calling struct {
		atA, atB string
		family   lab.Family
	}
	all := []calling{{"rtp", "rtp", lab.IPv6}, {"sdes", "dtls", lab.IPv6}}
	for _, atA := range slices.Sorted(maps.Keys(phoneKinds)) {
		for _, atB := range slices.Sorted(maps.Keys(phoneKinds)) {
			all = append(all, calling{atA, atB, lab.IPv4})
		}
	}
	for _, c := range all {
		t.Run(fmt.Sprintf("%s to %s, %s", c.atA, c.atB, c.family), func(t *testing.T) {
			refused := map[string]map[string]uint64{}
			setKinds(t, l, c.atA, c.atB)
			for _, side := range []string{"a", "b"} {
				refused[side] = callsStatus(t, l.Edge(side)).Refused
			}
			a := phoneOf(t, l.Host(lab.PhoneA), c.atA, c.family, 440)
			b := phoneOf(t, l.Host(lab.PhoneB), c.atB, c.family, 1000)
			wire := listenAt(t, l.Edge("a").Host, "rw-voice")
			a.do("dial", "sip:phone-b@"+sipHost(lab.PhoneB, c.family)+";transport=udp")
			a.wait("CALL_ESTABLISHED")
			flowsOnLegs(t, l, map[string]string{"a": c.atA, "b": c.atB}, 100)
			a.do("hangup", "")
			a.wait("CALL_CLOSED")
			b.wait("CALL_CLOSED")
			a.hears(1000)
			b.hears(440)
			assertBetweenBoxes(t, wire)
			for _, side := range []string{"a", "b"} {
				polltest.Require(t, func() bool {
					m, _ := rekeyedOf(t, l.Edge(side))
					return m.Pairs == 0
				}, 5*time.Second, 50*time.Millisecond, "edge-%s: the pair is gone", side)
				assert.Equal(t, refused[side], callsStatus(t, l.Edge(side)).Refused, "edge-%s", side)
			}
		})
	}
}

// boxes are the two edges' addresses towards each other.
var boxes = []netip.Addr{netip.MustParseAddr("10.1.10.1"), netip.MustParseAddr("10.2.10.1")}

// assertBetweenBoxes demands that media in the tunnel was between the two boxes alone, and longer by the tag and
// the MKI than what G.711 has.
func assertBetweenBoxes(t *testing.T, wire *wire) {
	t.Helper()
	n := 0
	wire.each(func(b []byte, _ bool, _ time.Time) {
		from, to, p, is := pcmuOf(b)
		if !is {
			return
		}
		n++
		assert.Contains(t, boxes, from.Addr())
		assert.Contains(t, boxes, to.Addr())
		assert.Len(t, p, 12+160+16+4)
	})
	assert.Greater(t, n, 200)
}

// pcmuOf takes G.711 out of a packet of IPv4.
func pcmuOf(b []byte) (from, to netip.AddrPort, rtp []byte, is bool) {
	const header = 20
	if len(b) < header+8+12 || b[0] != 0x45 || b[9] != unix.IPPROTO_UDP {
		return from, to, nil, false
	}
	from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), binary.BigEndian.Uint16(b[header:]))
	to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), binary.BigEndian.Uint16(b[header+2:]))
	rtp = b[header+8:]
	return from, to, rtp, rtp[0]>>6 == 2 && rtp[1]&0x7f == 0 && from.Port() >= 16384 && to.Port() >= 16384
}

// A call whose media is re-keyed is held and resumed by either end, and renegotiated: it keeps its streams and its keys
// between the boxes, none of its packets is refused, and when it goes on none is lost.
func TestReKeyedCallOnHold(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, Identities: true, EdgeConfig: rekeying("", nil)})
	t.Cleanup(func() { tellAboutMedia(t, l) })
	channelsUp(t, l)
	// read waits until both boxes have read a re-INVITE, the response and the ACK.
	read := func(do func()) {
		t.Helper()
		before := map[string]uint64{}
		for _, side := range []string{"a", "b"} {
			before[side] = callsStatus(t, l.Edge(side)).Messages
		}
		do()
		for side, n := range before {
			polltest.Require(t, func() bool { return callsStatus(t, l.Edge(side)).Messages >= n+3 },
				10*time.Second, 50*time.Millisecond, "edge-%s: three messages", side)
		}
	}
	for _, kinds := range [][2]string{{"rtp", "rtp"}, {"sdes", "rtp"}, {"dtls", "sdes"}} {
		t.Run(kinds[0]+" to "+kinds[1], func(t *testing.T) {
			setKinds(t, l, kinds[0], kinds[1])
			a := phoneOf(t, l.Host(lab.PhoneA), kinds[0], lab.IPv4, 440)
			b := phoneOf(t, l.Host(lab.PhoneB), kinds[1], lab.IPv4, 1000)
			bySide := map[string]string{"a": kinds[0], "b": kinds[1]}
			a.do("dial", "sip:phone-b@"+sipHost(lab.PhoneB, lab.IPv4)+";transport=udp")
			a.wait("CALL_ESTABLISHED")
			flowsOnLegs(t, l, bySide, 50)
			drops := map[string]map[string]uint64{}
			for side := range bySide {
				m, _ := rekeyedOf(t, l.Edge(side))
				drops[side] = m.Drops
			}
			for _, x := range []*baresip{a, b} {
				read(func() { x.do("hold", "") })
				read(func() { x.do("resume", "") })
				flowsOnLegs(t, l, bySide, 25)
				read(func() { x.do("reinvite", "") })
				flowsOnLegs(t, l, bySide, 25)
			}
			both := listenToBoth(t, l)
			flowsOnLegs(t, l, bySide, 50)
			atA, atB := both.passed()
			for _, way := range [][2]passage{{atA, atB}, {atB, atA}} {
				sent, lost, _ := lostBetween(way[0], way[1])
				assert.Greater(t, sent, 25)
				assert.Zero(t, lost, "of %d packets after all that", sent)
			}
			a.do("hangup", "")
			a.wait("CALL_CLOSED")
			b.wait("CALL_CLOSED")
			a.hears(1000)
			b.hears(440)
			for side := range bySide {
				m, _ := rekeyedOf(t, l.Edge(side))
				for _, reason := range []string{"forged", "replayed", "unknown_key", "no_key", "duplicate", "crypto_failed"} {
					assert.Equal(t, drops[side][reason], m.Drops[reason], "edge-%s: dropped as %s", side, reason)
				}
			}
		})
	}
}

// The first words of a re-keyed call are heard: over lines of 120 ms there and back, no phone's media waits for the
// boxes to agree. What is there before the answer that announces it is lost.
func TestFirstWordsOfAReKeyedCall(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{
		WAN: twenty, Delay: 60 * time.Millisecond, Identities: true, EdgeConfig: rekeying("", nil),
	})
	t.Cleanup(func() { tellAboutMedia(t, l) })
	channelsUp(t, l)
	setKinds(t, l, "rtp", "rtp")
	a := phoneOf(t, l.Host(lab.PhoneA), "rtp", lab.IPv4, 440)
	b := phoneOf(t, l.Host(lab.PhoneB), "rtp", lab.IPv4, 1000)
	for range 3 {
		both := listenToBoth(t, l)
		a.do("dial", "sip:phone-b@"+sipHost(lab.PhoneB, lab.IPv4)+";transport=udp")
		a.wait("CALL_ESTABLISHED")
		flowsOnLegs(t, l, map[string]string{"a": "rtp", "b": "rtp"}, 50)
		atA, atB := both.passed()
		for who, way := range map[string][2]passage{"caller": {atA, atB}, "callee": {atB, atA}} {
			sent, lost, _ := lostBetween(way[0], way[1])
			assert.Greater(t, sent, 25)
			assert.LessOrEqual(t, lost, 2, "of the %s's first %d packets", who, sent)
		}
		a.do("hangup", "")
		a.wait("CALL_CLOSED")
		b.wait("CALL_CLOSED")
	}
}

// number is a packet of RTP. Sequence numbers are not the same on all legs.
type number struct{ ssrc, timestamp uint32 }

// passage is what passed a phone: when it was sent, and when it came.
type passage struct{ sent, came map[number]time.Time }

// phoneWires record both phones' interfaces.
type phoneWires struct {
	a, b  *wire
	began time.Time
}

func listenToBoth(t *testing.T, l *lab.Lab) phoneWires {
	t.Helper()
	return phoneWires{listenTo(t, l.Host(lab.PhoneA)), listenTo(t, l.Host(lab.PhoneB)), time.Now()}
}

// passed is what passed since both are recorded, and was not read so far.
func (w phoneWires) passed() (atA, atB passage) { return passed(w.a, w.began), passed(w.b, w.began) }

func passed(w *wire, since time.Time) passage {
	p := passage{map[number]time.Time{}, map[number]time.Time{}}
	w.each(func(b []byte, outgoing bool, at time.Time) {
		_, _, rtp, is := pcmuOf(b)
		if !is {
			return
		}
		n := number{binary.BigEndian.Uint32(rtp[8:]), binary.BigEndian.Uint32(rtp[4:])}
		switch {
		case !outgoing:
			p.came[n] = at
		case at.After(since):
			p.sent[n] = at
		}
	})
	return p
}

// lostBetween are the packets that one phone sent and the other one did not get, and the longest time without any. What
// was sent at the end may be on its way.
func lostBetween(from, to passage) (sent, lost int, gap time.Duration) {
	var came []time.Time
	var last time.Time // that came was sent then
	for n, sentAt := range from.sent {
		if at, is := to.came[n]; is {
			came = append(came, at)
			if sentAt.After(last) {
				last = sentAt
			}
		}
	}
	slices.SortFunc(came, time.Time.Compare)
	if len(came) == 0 {
		return len(from.sent), len(from.sent), time.Hour
	}
	for i := range came[1:] {
		gap = max(gap, came[i+1].Sub(came[i]))
	}
	for n, at := range from.sent {
		if _, is := to.came[n]; !is && at.Before(last) {
			lost++
		}
	}
	return len(from.sent), lost, gap
}

// A call whose media is re-keyed goes on without a lost packet when a daemon is killed, and is back within a second
// when the media process is killed, or replaced on demand: what waits for longer than 20 ms meanwhile is dropped.
// Phones speak RTP here; what is between the boxes is opened only if no index was used twice and none is out of the
// far end's reach.
func TestReKeyedMediaSurvives(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, Identities: true, EdgeConfig: rekeying("", nil)})
	t.Cleanup(func() { tellAboutMedia(t, l) })
	channelsUp(t, l)
	account := func(name, at string) string {
		return fmt.Sprintf("<sip:%s@%s;transport=udp>;regint=0;answermode=auto", name, sipHost(at, lab.IPv4))
	}
	received := func(e *lab.Edge) (n uint64) {
		m, _ := rekeyedOf(t, e)
		for i := range m.Legs {
			n += m.Legs[i].ReceivedPackets
		}
		return n
	}
	flows := func(t *testing.T, what string) {
		t.Helper()
		for _, side := range []string{"a", "b"} {
			e := l.Edge(side)
			before := uint64(0)
			polltest.Require(t, func() bool {
				n := received(e)
				if before == 0 || n < before { // a process counts from 0
					before = max(n, 1)
				}
				return n > before+60
			}, 20*time.Second, 50*time.Millisecond, "edge-%s: media flows, %s", side, what)
		}
	}
	for _, step := range []struct {
		name string
		do   func(t *testing.T, e *lab.Edge)
		gap  time.Duration // that may be; 0: no packet may be lost
	}{
		{"the daemon is killed", func(t *testing.T, e *lab.Edge) {
			require.NoError(t, e.Kill(within(t, 5*time.Second)))
			require.NoError(t, e.Start(t.Context()))
			require.NoError(t, e.WaitReady(within(t, 10*time.Second)))
			polltest.Require(t, func() bool {
				m, k := rekeyedOf(t, e)
				return m.Running && m.Adopted && m.Pairs == 1 && len(k.Sites) == 1 && k.Sites[0].Up && k.Sites[0].Sending == 1
			}, 20*time.Second, 100*time.Millisecond, "the next daemon has the call")
		}, 0},
		{"the media process is replaced", func(t *testing.T, e *lab.Edge) {
			_, err := e.Ringway(within(t, 20*time.Second), "upgrade-planes", "media")
			require.NoError(t, err)
		}, back},
		{"the media process is killed", func(t *testing.T, e *lab.Edge) {
			m, _ := rekeyedOf(t, e)
			killProcess(t, e.Host, m.PID)
			polltest.Require(t, func() bool {
				n, _ := rekeyedOf(t, e)
				return n.Running && n.PID != m.PID && n.PID > 0 && n.Pairs == 1
			}, 20*time.Second, 50*time.Millisecond, "another one forwards")
		}, back},
	} {
		for _, side := range []string{"a", "b"} {
			t.Run(step.name+", edge-"+side, func(t *testing.T) {
				a := startBaresip(t, l.Host(lab.PhoneA), account("phone-a", lab.PhoneA), 440)
				b := startBaresip(t, l.Host(lab.PhoneB), account("phone-b", lab.PhoneB), 1000)
				channelsUp(t, l)
				a.do("dial", "sip:phone-b@"+sipHost(lab.PhoneB, lab.IPv4)+";transport=udp")
				a.wait("CALL_ESTABLISHED")
				flows(t, "before")
				both := listenToBoth(t, l)
				step.do(t, l.Edge(side))
				flows(t, "after")
				atA, atB := both.passed()
				for _, way := range [][2]passage{{atA, atB}, {atB, atA}} {
					sent, lost, gap := lostBetween(way[0], way[1])
					t.Logf("%d of %d packets lost, longest gap %s", lost, sent, gap.Round(time.Millisecond))
					if step.gap == 0 {
						assert.Zero(t, lost)
					} else {
						assert.Less(t, gap, step.gap)
					}
				}
				a.do("hangup", "")
				a.wait("CALL_CLOSED")
				b.wait("CALL_CLOSED")
			})
		}
	}
}

// back is how long a call may be silent where a media process gives way to another. On a quiet machine it is 0.2 to
// 0.6 s; other tests run beside this one.
const back = 3 * time.Second

// tellAboutMedia logs what the boxes say of media, if the test failed.
func tellAboutMedia(t *testing.T, l *lab.Lab) {
	if !t.Failed() {
		return
	}
	for _, side := range []string{"a", "b"} {
		// t's context is over by now
		out, err := l.Edge(side).StatusJSON(context.WithoutCancel(t.Context()))
		var st struct {
			Problems any
			Calls    struct {
				Refused any
				NoMedia any `json:"no_media"`
			}
			Media any
			Keys  any `json:"key_channel"`
		}
		_ = json.Unmarshal(out, &st)
		t.Logf("edge-%s (%v): %+v", side, err, st)
	}
}

// A phone with SRTP calls a trunk that has none, behind NAT: the box has a leg to each, the provider sees the WAN's
// address alone and gets RTP, and what it echoes comes back to the phone.
//
//	phone-a SDES --- edge-a 198.51.100.2 RTP --- 198.51.100.1 provider: SIPp, which echoes media
func TestReKeyedCallToATrunk(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, Identities: true, EdgeConfig: rekeying("", nil)})
	t.Cleanup(func() { tellAboutMedia(t, l) })
	channelsUp(t, l)
	setKinds(t, l, "sdes", "rtp")
	provider := l.Host(lab.Provider)
	uas, err := provider.Spawn("uas", provider.Command("sipp", "-sn", "uas", "-i", "198.51.100.1", "-p", "5060",
		"-mp", "20000", "-rtp_echo", "-nostdin"))
	require.NoError(t, err)
	t.Cleanup(func() {
		uas.Signal(unix.SIGKILL)
		<-uas.Ended
	})
	wan, err := capture.StartFrames(provider.NetPath(), "wan-a")
	require.NoError(t, err)
	a := phoneOf(t, l.Host(lab.PhoneA), "sdes", lab.IPv4, 440)
	a.do("dial", "sip:echo@198.51.100.1;transport=udp")
	a.wait("CALL_ESTABLISHED")
	polltest.Require(t, func() bool {
		m, _ := rekeyedOf(t, l.Edge("a"))
		return slices.Equal([]plane.Keying{plane.Clear, plane.SDES}, keyings(m)) &&
			!slices.ContainsFunc(m.Legs, func(x plane.LegStats) bool { return x.ReceivedPackets < 75 || x.SentPackets < 75 })
	}, 15*time.Second, 50*time.Millisecond, "media on both legs")
	list := callsOf(t, l.Edge("a"))
	require.Len(t, list, 1)
	assert.Equal(t, [2]string{"10.1.10.10", "198.51.100.1"}, list[0].Hops)
	a.do("hangup", "")
	a.wait("CALL_CLOSED")
	a.hears(440)
	onlyTheWANsAddress(t, wan)
	polltest.Require(t, func() bool {
		m, _ := rekeyedOf(t, l.Edge("a"))
		return m.Pairs == 0
	}, 5*time.Second, 50*time.Millisecond, "the pair is gone")
}
