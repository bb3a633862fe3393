package relay

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/sip/compact"
	"ringway/sip/dialog"
	"ringway/sip/message"
	"ringway/sip/sdp"
	"ringway/sip/terminate"
	"ringway/sip/transparent"
	"ringway/srtp/offer"
	"ringway/srtp/sdes"
	"ringway/srtp/suite"
)

// Keys of the phones, in base64 (30 bytes).
const (
	annsKey = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB"
	bobsKey = "QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJC"
)

// secured are settings where the phones here and the far site require SRTP: the far box is Ringway's.
func secured(change ...func(*Settings)) Settings {
	place := func(network, own string, l offer.Level) terminate.Place {
		return terminate.Place{Network: netip.MustParsePrefix(network), Place: offer.Place{
			Policy: offer.Policy{Level: l}, IPv4: netip.MustParseAddr(own),
		}}
	}
	site := place("10.2.0.0/16", "10.9.0.1", offer.Require)
	site.Box, site.ChannelUp = netip.MustParseAddr("10.9.0.2"), true
	s := Settings{Privacy: "show", Media: &Media{First: 20000, Last: 29999, Places: terminate.Places{
		place("0.0.0.0/0", "198.51.100.7", offer.Off), place("10.1.10.0/24", "10.1.10.1", offer.Require), site,
	}}}
	for _, f := range change {
		f(&s)
	}
	return s
}

// level sets the policy of the place of a network.
func level(network string, l offer.Level) func(*Settings) {
	return func(s *Settings) {
		for i := range s.Media.Places {
			if p := &s.Media.Places[i]; p.Network == netip.MustParsePrefix(network) {
				p.Level = l
			}
		}
	}
}

// newSecured is a world with these settings, as they come over the wire.
func newSecured(t *testing.T, s Settings) *world {
	w := newSilent(t)
	w.secure(s)
	w.run()
	return w
}

// secure takes settings as they come over the wire.
func (w *world) secure(s Settings) {
	w.t.Helper()
	t := w.t
	b, err := json.Marshal(s)
	require.NoError(t, err)
	var over Settings
	require.NoError(t, json.Unmarshal(b, &over))
	assert.Equal(t, s, over)
	require.NoError(t, w.use(over))
}

// newNext is the process that takes over. As server.start, it takes over what was kept before it tells the daemon
// anything: whole is its first request. lost is why some of what was kept could not be read.
func newNext(
	t *testing.T, s Settings, legs []entry, saved []terminate.Saved,
) (w *world, whole flowsRequest, lost error) {
	w = newSilent(t)
	w.secure(s)
	require.NoError(t, w.load(legs))
	lost = w.restore(saved)
	w.asker.tellAll()
	w.run()
	whole = <-w.asked
	w.reply <- nil
	<-w.told
	require.True(t, whole.Whole)
	return w, whole, lost
}

// media is a description with one line of sound.
func media(address string, port int, protocol string, attributes ...string) string {
	s := strings.Replace(description(address, port), "RTP/AVP", protocol, 1)
	for _, a := range attributes {
		s += "a=" + a + "\r\n"
	}
	return s
}

func crypto(key string) string { return "crypto:1 AES_CM_128_HMAC_SHA1_80 inline:" + key }

const marker = "ringway-srtp:AEAD_AES_128_GCM"

var (
	annsOffer = media("10.1.10.9", 4000, "RTP/SAVP", crypto(annsKey))
	farAnswer = media("10.9.0.2", 41000, "RTP/AVP", marker)

	secureInvite = text("INVITE sip:bob@10.2.20.5 SIP/2.0", "", annsOffer)
	secureOkay   = text("SIP/2.0 200 OK", ";tag=b", farAnswer)
)

// in is a message of another transaction.
func in(s, cseq string) string { return strings.Replace(s, "1 INVITE", cseq, 1) }

// port is that of the only line of sound in a message.
func port(t *testing.T, s []byte) int {
	t.Helper()
	found := regexp.MustCompile(`m=audio (\d+) `).FindSubmatch(s)
	require.NotNil(t, found, "%s", s)
	n, err := strconv.Atoi(string(found[1]))
	require.NoError(t, err)
	return n
}

// keyIn is the first key in a message.
func keyIn(t *testing.T, s []byte) string {
	t.Helper()
	found := regexp.MustCompile(`inline:([A-Za-z0-9+/=]+)`).FindSubmatch(s)
	require.NotNil(t, found, "%s", s)
	return string(found[1])
}

func inBase64(k offer.Keys) (all []string) {
	for _, x := range k.Keys {
		all = append(all, base64.StdEncoding.EncodeToString(slices.Concat(x.Master, x.Salt)))
	}
	return all
}

// asked plays the daemon for a message, and gives what went on and what it was asked for.
func (w *world) passed(from, to, text string) (a transparent.Action, r flowsRequest) {
	w.t.Helper()
	r = w.answer(func() { a = w.pass(from, to, text) }, nil)
	return a, r
}

// pairs are those that a request brings.
func pairs(r flowsRequest) (all []*terminate.Pair, gone []uint64) {
	for _, c := range r.Changes {
		for _, m := range c.Media {
			if m.Pair != nil {
				all = append(all, m.Pair)
			} else {
				gone = append(gone, m.ID)
			}
		}
	}
	return all, gone
}

func flow(from, to string, rtcp bool) dialog.Flow {
	return dialog.NewFlow(netip.MustParseAddr(from), netip.MustParseAddrPort(to), rtcp)
}

func at(address string, port int) string { return fmt.Sprintf("%s:%d", address, port) }

// secureCall is a call of a phone with SDES to the far site, which is up.
type secureCall struct {
	*world
	toFar, toPhone []byte // as they went on
	near, far      int    // ports of the box
	pair           *terminate.Pair
}

func newSecureCall(t *testing.T, s Settings) *secureCall {
	c := &secureCall{world: newSecured(t, s)}
	a, r := c.passed(phone, pbx, secureInvite)
	c.toFar, c.far = a.Raw, port(t, a.Raw)
	require.Len(t, r.Changes, 1)
	asked := netip.MustParseAddr("10.2.20.5")
	assert.Equal(t, []dialog.Flow{
		dialog.FlowAsked(asked, netip.MustParseAddrPort(at("10.9.0.1", c.far)), false),
		dialog.FlowAsked(asked, netip.MustParseAddrPort(at("10.9.0.1", c.far+1)), true),
	}, r.Changes[0].Open, "of an offer, the far side alone is known")
	assert.Empty(t, r.Changes[0].Media)

	a, r = c.passed(pbx, phone, secureOkay)
	c.toPhone, c.near = a.Raw, port(t, a.Raw)
	all, gone := pairs(r)
	require.Len(t, all, 1)
	assert.Empty(t, gone)
	c.pair = all[0]
	assert.ElementsMatch(t, []dialog.Flow{
		flow("10.1.10.9", at("10.1.10.1", c.near), false), flow("10.1.10.9", at("10.1.10.1", c.near+1), true),
		flow("10.1.10.1", "10.1.10.9:4000", false), flow("10.1.10.1", "10.1.10.9:4001", true),
		flow("10.9.0.2", at("10.9.0.1", c.far), false), flow("10.9.0.2", at("10.9.0.1", c.far+1), true),
		flow("10.9.0.1", "10.9.0.2:41000", false), flow("10.9.0.1", "10.9.0.2:41001", true),
	}, r.Changes[0].Open)
	assert.Len(t, c.closed(), 2, "what was asked for with the offer")
	return c
}

// A phone with SDES calls a site whose box exchanges keys by the channel: each end is told the box's own address, and
// nothing of a message changes but its description and Content-Length.
func TestMediaIsTerminated(t *testing.T) { synctest.Test(t, testMediaIsTerminated) }

func testMediaIsTerminated(t *testing.T) {
	c := newSecureCall(t, secured())
	toFar := strings.Replace(media("10.9.0.1", c.far, "RTP/AVP", marker), "o=- 1 1 IN IP4 10.9.0.1",
		"o=- 1 1 IN IP4 10.1.10.9", 1)
	assert.Equal(t, text("INVITE sip:bob@10.2.20.5 SIP/2.0", "", toFar), string(c.toFar))
	ours := keyIn(t, c.toPhone)
	toPhone := strings.Replace(media("10.1.10.1", c.near, "RTP/SAVP", crypto(ours)), "o=- 1 1 IN IP4 10.1.10.1",
		"o=- 1 1 IN IP4 10.9.0.2", 1)
	assert.Equal(t, text("SIP/2.0 200 OK", ";tag=b", toPhone), string(c.toPhone))
	assert.NotContains(t, string(c.toFar), "inline:", "no key leaves the branch")

	assert.NotZero(t, c.pair.ID)
	assert.Equal(t, sdp.Audio, c.pair.Kind)
	ann, far := &c.pair.Ends[offer.Caller], &c.pair.Ends[offer.Callee]
	assert.Equal(t, []string{ours}, inBase64(ann.Send))
	assert.Equal(t, []string{annsKey}, inBase64(ann.Receive))
	assert.Equal(t, offer.SDES, ann.Keying)
	assert.Equal(t, at("10.1.10.1", c.near), ann.Local.String())
	assert.Equal(t, "10.1.10.9:4000", ann.Remote.String())
	assert.Equal(t, "10.1.10.9:4001", ann.RemoteRTCP.String())
	assert.Equal(t, "10.1.10.9", ann.Hop.String())
	assert.Equal(t, offer.Channel, far.Keying)
	assert.Equal(t, "10.9.0.2:41000", far.Remote.String())
	assert.Equal(t, "10.2.20.5", far.Hop.String())
	assert.Equal(t, ann.Call, far.Call)
	assert.Equal(t, offer.ChannelMKI, far.MKI)
	assert.True(t, ann.Sends && ann.Receives && far.Sends && far.Receives)
	require.Len(t, ann.Codecs, 2)

	assert.Equal(t, []string{"SRTP by SDES", "SRTP between boxes"}, c.calls()[0].SRTP)
	assert.Equal(t, 1, c.stats().Relayed)
	assert.Equal(t, 2, c.stats().MediaPorts)

	// What comes again is the same again, and asks the daemon for nothing.
	assert.Equal(t, string(c.toFar), string(c.pass(phone, pbx, secureInvite).Raw))
	assert.Equal(t, string(c.toPhone), string(c.pass(pbx, phone, secureOkay).Raw))
	ack := in(text("ACK sip:bob@10.2.20.5 SIP/2.0", ";tag=b", ""), "1 ACK")
	assert.Equal(t, transparent.Action{}, c.pass(phone, pbx, ack), "what has no description goes on as it came")
	assert.Equal(t, string(c.toPhone), string(c.pass(pbx, phone, secureOkay).Raw), "its ACK was lost")

	assert.Equal(t, transparent.Action{}, c.pass(phone, pbx, bye))
	a, r := c.passed(pbx, phone, ended)
	assert.Equal(t, transparent.Action{}, a)
	_, gone := pairs(r)
	assert.Equal(t, []uint64{c.pair.ID}, gone)
	assert.Len(t, c.closed(), 8)
	assert.Zero(t, c.stats().Relayed)
	assert.Nil(t, c.calls()[0].SRTP)
	assert.Empty(t, c.ports.out)
	assert.Len(t, c.ports.resting, 2)
}

// Hold keeps keys and ports; the pair says who sends. A description that comes again while the call has gone on is
// what it was.
func TestMediaOnHold(t *testing.T) { synctest.Test(t, testMediaOnHold) }

func testMediaOnHold(t *testing.T) {
	c := newSecureCall(t, secured())
	hold := in(text("INVITE sip:bob@10.2.20.5 SIP/2.0", ";tag=b",
		strings.Replace(annsOffer, "o=- 1 1", "o=- 1 2", 1)+"a=sendonly\r\n"), "2 INVITE")
	held := in(text("SIP/2.0 200 OK", ";tag=b", farAnswer+"a=recvonly\r\n"), "2 INVITE")
	a, _ := c.passed(phone, pbx, hold)
	assert.Contains(t, string(a.Raw), "a=sendonly")
	assert.Equal(t, c.far, port(t, a.Raw))
	again := string(a.Raw)
	a, r := c.passed(pbx, phone, held)
	assert.Equal(t, keyIn(t, c.toPhone), keyIn(t, a.Raw))
	all, _ := pairs(r)
	require.Len(t, all, 1)
	assert.Equal(t, c.pair.ID, all[0].ID)
	assert.Equal(t, c.pair.Ends[0].Send, all[0].Ends[0].Send)
	assert.True(t, all[0].Ends[offer.Caller].Sends)
	assert.False(t, all[0].Ends[offer.Callee].Sends)
	assert.Equal(t, again, string(c.pass(phone, pbx, hold).Raw))
	assert.Equal(t, string(c.toFar), string(c.pass(phone, pbx, secureInvite).Raw), "a copy that was on its way for long")
	assert.Equal(t, string(c.toPhone), string(c.pass(pbx, phone, secureOkay).Raw))

	// The answer goes on when the media plane has the pair, also where no flow is another one.
	resume := in(text("INVITE sip:bob@10.2.20.5 SIP/2.0", ";tag=b", annsOffer), "3 INVITE")
	c.passed(phone, pbx, resume)
	began := time.Now()
	assert.NotNil(t, c.pass(pbx, phone, in(secureOkay, "3 INVITE")).Raw)
	assert.Equal(t, patience, time.Since(began), "nobody answers")
	r = <-c.asked
	c.reply <- nil
	all, _ = pairs(r)
	require.Len(t, all, 1)
	assert.True(t, all[0].Ends[offer.Callee].Sends)
}

// Keys are in nothing that is kept of a call.
func TestKeysAreKeptNowhere(t *testing.T) { synctest.Test(t, testKeysAreKeptNowhere) }

func testKeysAreKeptNowhere(t *testing.T) {
	c := newSecureCall(t, secured())
	j, path := journalFile(t)
	require.NoError(t, c.keepOnce(j))
	journal, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(journal), "one@10.1.10.9")
	view, ok := c.view("one@10.1.10.9")
	require.True(t, ok)
	ladder, err := json.Marshal(view)
	require.NoError(t, err)
	require.Contains(t, string(ladder), "RTP/SAVP")
	calls, err := json.Marshal(c.calls())
	require.NoError(t, err)
	stats, err := json.Marshal(c.stats())
	require.NoError(t, err)
	printed := fmt.Sprintf("%v %+v %#v", c.pair, *c.pair, *c.pair)
	for _, key := range []string{annsKey, keyIn(t, c.toPhone)} {
		raw, err := base64.StdEncoding.DecodeString(key)
		require.NoError(t, err)
		for _, kept := range []string{string(journal), string(ladder), string(calls), string(stats), printed} {
			assert.NotContains(t, kept, key)
			assert.NotContains(t, kept, string(raw[:8]))
			assert.NotContains(t, kept, fmt.Sprint(raw[:4])[1:8])
		}
	}
}

// An offer without keys where they are required is answered here, whatever the mode, and leaves nothing behind.
func TestAnOfferWithoutKeysIsRefused(t *testing.T) { synctest.Test(t, testAnOfferWithoutKeysIsRefused) }

func testAnOfferWithoutKeysIsRefused(t *testing.T) {
	w := newSecured(t, secured(func(s *Settings) { s.Site = "berlin" }))
	a := w.pass(phone, pbx, invite)
	require.True(t, a.Drop)
	var reply message.Message
	require.Equal(t, message.None, reply.Scan(a.Reply))
	assert.Equal(t, 488, reply.Status)
	assert.Contains(t, string(a.Reply), `Warning: 399 berlin "SRTP is required, and a media line offers none that`)
	assert.Equal(t, a.Reply, w.pass(phone, pbx, invite).Reply, "it comes again")
	to := string(reply.Header(message.To))
	ack := strings.NewReplacer("INVITE sip:", "ACK sip:", "To: <sip:bob@10.2.20.5>", "To: "+to, "1 INVITE", "1 ACK").
		Replace(invite)
	assert.True(t, w.pass(phone, pbx, ack).Drop, "the called party has not seen the INVITE")
	assert.Equal(t, "refused", w.calls()[0].Why)
	assert.Zero(t, w.relayed.Len())
	assert.Empty(t, w.ports.out)
	assert.EqualValues(t, 1, w.refused.all()[srtpRefused])
	told := w.stats().NoMedia
	require.NotNil(t, told, "a person hears of it")
	assert.Equal(t, NoMedia{
		At: w.now(), What: srtpRefused, Reason: told.Reason, From: netip.MustParseAddrPort(phone).Addr(),
		To: netip.MustParseAddrPort(pbx).Addr(),
	}, *told)
	assert.Contains(t, string(a.Reply), told.Reason)

	// Within a call it stays as it was.
	c := newSecureCall(t, secured())
	a = c.pass(phone, pbx, in(text("INVITE sip:bob@10.2.20.5 SIP/2.0", ";tag=b", description("10.1.10.9", 4000)),
		"2 INVITE"))
	require.Equal(t, message.None, reply.Scan(a.Reply))
	assert.Equal(t, 488, reply.Status)
	assert.Equal(t, 1, c.relayed.Len())
	assert.Len(t, c.calls()[0].Flows, 8)
	whole := c.relayed.Whole()
	require.Len(t, whole, 1)
	assert.Equal(t, c.pair, whole[0].Pair)
}

// Both ends offer at once: the one that comes second is told to wait, as by the other end.
func TestTwoOffersAtOnce(t *testing.T) { synctest.Test(t, testTwoOffersAtOnce) }

func testTwoOffersAtOnce(t *testing.T) {
	c := newSecureCall(t, secured())
	first := in(text("INVITE sip:bob@10.2.20.5 SIP/2.0", ";tag=b",
		media("10.1.10.9", 4400, "RTP/SAVP", crypto(bobsKey))), "2 INVITE")
	c.passed(phone, pbx, first)
	back := strings.NewReplacer(
		"From: \"Ann\" <sip:ann@10.1.10.9>;tag=a", "From: <sip:bob@10.2.20.5>;tag=b",
		"To: <sip:bob@10.2.20.5>;tag=b", "To: <sip:ann@10.1.10.9>;tag=a", "branch=z9hG4bK1", "branch=z9hG4bK7",
	).Replace(in(text("INVITE sip:ann@10.1.10.9 SIP/2.0", ";tag=b", farAnswer), "9 INVITE"))
	a := c.pass(pbx, phone, back)
	var reply message.Message
	require.Equal(t, message.None, reply.Scan(a.Reply))
	assert.Equal(t, 491, reply.Status)
	assert.Nil(t, c.stats().NoMedia, "nothing is wrong with the call")
	assert.Equal(t, "Request Pending", string(reply.ReasonPhrase()))

	_, r := c.passed(pbx, phone, in(secureOkay, "2 INVITE"))
	all, _ := pairs(r)
	require.Len(t, all, 1, "the first one is answered")
	assert.Equal(t, "10.1.10.9:4400", all[0].Ends[offer.Caller].Remote.String())
}

// An answer that is not acceptable cannot be refused: it goes on without media, and none flows.
func TestAnAnswerWithoutKeysIsVoided(t *testing.T) { synctest.Test(t, testAnAnswerWithoutKeysIsVoided) }

func testAnAnswerWithoutKeysIsVoided(t *testing.T) {
	w := newSecured(t, secured())
	w.passed(phone, pbx, secureInvite)
	answer := text("SIP/2.0 200 OK", ";tag=b", description("10.2.20.5", 6000)) // not the box's, and in clear
	a := w.pass(pbx, phone, answer)
	want := strings.Replace(description("10.2.20.5", 6000), "audio 6000", "audio 0", 1)
	assert.Equal(t, text("SIP/2.0 200 OK", ";tag=b", want), string(a.Raw))
	assert.Equal(t, string(a.Raw), string(w.pass(pbx, phone, answer).Raw), "it comes again")
	assert.Len(t, w.closed(), 2)
	assert.Empty(t, w.calls()[0].Flows)
	assert.Empty(t, w.relayed.Whole())
	assert.EqualValues(t, 2, w.refused.all()[srtpVoided])
	told := w.stats().NoMedia
	require.NotNil(t, told, "a person hears of it")
	assert.Equal(t, []any{srtpVoided, netip.MustParseAddrPort(pbx).Addr()}, []any{told.What, told.From})
	assert.NotEmpty(t, told.Reason)

	// With another offer there is media.
	w.passed(phone, pbx, in(text("INVITE sip:bob@10.2.20.5 SIP/2.0", ";tag=b", annsOffer), "2 INVITE"))
	_, r := w.passed(pbx, phone, in(secureOkay, "2 INVITE"))
	all, _ := pairs(r)
	require.Len(t, all, 1)

	// An answer within the call ends the media that there was.
	w.passed(phone, pbx, in(text("INVITE sip:bob@10.2.20.5 SIP/2.0", ";tag=b", annsOffer), "3 INVITE"))
	a, r = w.passed(pbx, phone, in(answer, "3 INVITE"))
	assert.Contains(t, string(a.Raw), "m=audio 0 ")
	_, gone := pairs(r)
	assert.Equal(t, []uint64{all[0].ID}, gone)
}

// The branches of a fork have a port and key each towards the caller, and share those towards the callees: one branch
// has them at a time, and in the end the one that was accepted.
func TestAForkedCall(t *testing.T) { synctest.Test(t, testAForkedCall) }

func testAForkedCall(t *testing.T) {
	w := newSecured(t, secured(func(s *Settings) {
		for i := range s.Media.Places {
			s.Media.Places[i].Box = netip.Addr{} // the callees are phones
		}
	}))
	a, _ := w.passed(phone, pbx, secureInvite)
	toCallees := keyIn(t, a.Raw)
	tag := regexp.MustCompile(`crypto:(\d+) AES_CM_128_HMAC_SHA1_80`).FindSubmatch(a.Raw)
	require.NotNil(t, tag)
	answer := func(status, branch string, port int) string {
		return text("SIP/2.0 "+status, ";tag="+branch, media("10.2.20.5", port, "RTP/SAVP",
			fmt.Sprintf("crypto:%s AES_CM_128_HMAC_SHA1_80 inline:%s", tag[1], bobsKey)))
	}
	first, r := w.passed(pbx, phone, answer("183 Progress", "b", 6000))
	one, _ := pairs(r)
	require.Len(t, one, 1)
	second, r := w.passed(pbx, phone, answer("183 Progress", "c", 6002))
	two, gone := pairs(r)
	require.Len(t, two, 1)
	assert.Equal(t, []uint64{one[0].ID}, gone)
	assert.NotEqual(t, one[0].ID, two[0].ID)
	assert.NotEqual(t, port(t, first.Raw), port(t, second.Raw))
	assert.NotEqual(t, keyIn(t, first.Raw), keyIn(t, second.Raw))
	assert.Equal(t, one[0].Ends[1].Local, two[0].Ends[1].Local)
	assert.Equal(t, one[0].Ends[1].ID, two[0].Ends[1].ID, "it goes over to the other branch")
	assert.NotEqual(t, one[0].Ends[0].ID, two[0].Ends[0].ID)
	for i, m := range r.Changes[0].Media {
		assert.Equal(t, i == 0, m.Pair != nil, "before the pair that had it goes")
	}
	assert.Equal(t, inBase64(one[0].Ends[1].Send), inBase64(two[0].Ends[1].Send))
	assert.NotEmpty(t, toCallees)
	w.closed()

	okay, r := w.passed(pbx, phone, answer("200 OK", "b", 6000))
	assert.Equal(t, strings.Replace(string(first.Raw), "183 Progress", "200 OK", 1), string(okay.Raw),
		"the same description as in the 183")
	now, gone := pairs(r)
	require.Len(t, now, 1)
	assert.Equal(t, one[0].ID, now[0].ID, "the one that was accepted")
	assert.Equal(t, []uint64{two[0].ID}, gone)

	time.Sleep(3 * time.Second)
	w.core.mu.Lock()
	w.expireCalls(time.Now())
	w.core.mu.Unlock()
	w.closed()
	assert.Len(t, w.relayed.Whole(), 1)
	assert.Len(t, w.ports.out, 2, "those of the other branch are free")
	go func() {
		time.Sleep(40 * time.Second)
		w.core.mu.Lock()
		w.expireCalls(time.Now())
		w.core.mu.Unlock()
	}()
	r = <-w.asked
	w.reply <- nil
	_, gone = pairs(r)
	assert.Equal(t, []uint64{one[0].ID}, gone)
	assert.Empty(t, w.ports.out)
	assert.Equal(t, "unacknowledged", w.calls()[0].Why)
}

// An offer in a reliable 183, its answer in the PRACK, another offer in an UPDATE: each is replaced.
func TestOffersInOtherMessages(t *testing.T) { synctest.Test(t, testOffersInOtherMessages) }

func testOffersInOtherMessages(t *testing.T) {
	w := newSecured(t, secured())
	w.pass(phone, pbx, text("INVITE sip:bob@10.2.20.5 SIP/2.0", "", ""))
	a, _ := w.passed(pbx, phone, text("SIP/2.0 183 Progress", ";tag=b", farAnswer))
	offered := string(a.Raw)
	tag := regexp.MustCompile(`crypto:(\d+) AES_CM_128_HMAC_SHA1_80`).FindSubmatch(a.Raw)
	require.NotNil(t, tag, "%s", a.Raw)
	assert.Contains(t, offered, "RTP/SAVP")
	answer := media("10.1.10.9", 4000, "RTP/SAVP",
		fmt.Sprintf("crypto:%s AES_CM_128_HMAC_SHA1_80 inline:%s", tag[1], annsKey))
	prack := in(text("PRACK sip:bob@10.2.20.5 SIP/2.0", ";tag=b", answer), "2 PRACK")
	a, r := w.passed(phone, pbx, prack)
	assert.Contains(t, string(a.Raw), marker)
	assert.NotContains(t, string(a.Raw), "inline")
	all, _ := pairs(r)
	require.Len(t, all, 1)
	assert.Equal(t, string(a.Raw), string(w.pass(phone, pbx, prack).Raw))
	w.closed()

	update := in(text("UPDATE sip:bob@10.2.20.5 SIP/2.0", ";tag=b", answer+"a=sendonly\r\n"), "3 UPDATE")
	a, _ = w.passed(phone, pbx, update)
	assert.Contains(t, string(a.Raw), marker)
	_, r = w.passed(pbx, phone, in(text("SIP/2.0 200 OK", ";tag=b", farAnswer+"a=recvonly\r\n"), "3 UPDATE"))
	again, _ := pairs(r)
	require.Len(t, again, 1)
	assert.Equal(t, all[0].ID, again[0].ID)
	assert.Equal(t, transparent.Action{}, w.pass(pbx, phone, text("SIP/2.0 200 OK", ";tag=b", "")))
	assert.Equal(t, offered, string(w.pass(pbx, phone, text("SIP/2.0 183 Progress", ";tag=b", farAnswer)).Raw),
		"a 183 that was on its way for long")
	assert.Len(t, w.relayed.Whole(), 1)
}

// An UPDATE crosses the answer to the INVITE, or comes before it: the call keeps its media, whatever description the
// answer repeats, and who gets that one gets the last one that he had.
func TestAnUpdateBeforeTheAnswer(t *testing.T) {
	for name, final := range map[string]string{"the same": farAnswer, "another": farAnswer + "a=ptime:20\r\n"} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { testAnUpdateBeforeTheAnswer(t, final) }) })
	}
}

func testAnUpdateBeforeTheAnswer(t *testing.T, final string) {
	w := newSecured(t, secured())
	w.passed(phone, pbx, secureInvite)
	first, r := w.passed(pbx, phone, text("SIP/2.0 183 Progress", ";tag=b", farAnswer))
	all, _ := pairs(r)
	require.Len(t, all, 1)
	w.closed()
	update := in(text("UPDATE sip:bob@10.2.20.5 SIP/2.0", ";tag=b", annsOffer+"a=ptime:20\r\n"), "2 UPDATE")
	assert.Contains(t, string(w.pass(phone, pbx, update).Raw), marker)

	answer := func(status string) string {
		return strings.Replace(string(first.Raw), "183 Progress", status, 1)
	}
	assert.Equal(t, answer("200 OK"), string(w.pass(pbx, phone, text("SIP/2.0 200 OK", ";tag=b", final)).Raw))
	okay := w.pass(pbx, phone, in(text("SIP/2.0 200 OK", ";tag=b", farAnswer+"a=ptime:20\r\n"), "2 UPDATE"))
	assert.NotContains(t, string(okay.Raw), "m=audio 0 ")
	assert.Equal(t, port(t, first.Raw), port(t, okay.Raw))
	whole := w.relayed.Whole()
	require.Len(t, whole, 1)
	assert.Equal(t, all[0].ID, whole[0].ID)
	assert.Empty(t, w.stats().Refused)
}

// What a call waits for goes on, whatever description it repeats: a 200 after a reliable 183 had the offer, an ACK with
// what the INVITE had.
func TestAnswersAndACKsAreNotDropped(t *testing.T) { synctest.Test(t, testAnswersAndACKsAreNotDropped) }

func testAnswersAndACKsAreNotDropped(t *testing.T) {
	c := newSecureCall(t, secured())
	ack := in(text("ACK sip:bob@10.2.20.5 SIP/2.0", ";tag=b", annsOffer+"a=ptime:20\r\n"), "1 ACK")
	a := c.pass(phone, pbx, ack)
	assert.False(t, a.Drop)
	assert.Equal(t, c.far, port(t, a.Raw), "what went on with the INVITE")
	assert.NotContains(t, string(a.Raw), "inline")

	w := newSecured(t, secured())
	w.pass(phone, pbx, text("INVITE sip:bob@10.2.20.5 SIP/2.0", "", ""))
	first, _ := w.passed(pbx, phone, text("SIP/2.0 183 Progress", ";tag=b", farAnswer))
	tag := regexp.MustCompile(`crypto:(\d+) AES_CM_128_HMAC_SHA1_80`).FindSubmatch(first.Raw)
	require.NotNil(t, tag)
	w.passed(phone, pbx, in(text("PRACK sip:bob@10.2.20.5 SIP/2.0", ";tag=b", media("10.1.10.9", 4000, "RTP/SAVP",
		fmt.Sprintf("crypto:%s AES_CM_128_HMAC_SHA1_80 inline:%s", tag[1], annsKey))), "2 PRACK"))
	a = w.pass(pbx, phone, text("SIP/2.0 200 OK", ";tag=b", farAnswer+"a=ptime:20\r\n"))
	assert.False(t, a.Drop)
	assert.Equal(t, strings.Replace(string(first.Raw), "183 Progress", "200 OK", 1), string(a.Raw))
	assert.Len(t, w.relayed.Whole(), 1)
}

// A request that is rejected by its receiver leaves the call as it was.
func TestARejectedOfferIsTakenBack(t *testing.T) { synctest.Test(t, testARejectedOfferIsTakenBack) }

func testARejectedOfferIsTakenBack(t *testing.T) {
	c := newSecureCall(t, secured())
	moved := in(text("INVITE sip:bob@10.2.20.5 SIP/2.0", ";tag=b", media("10.1.10.9", 4400, "RTP/SAVP",
		crypto(bobsKey))), "2 INVITE")
	c.passed(phone, pbx, moved)
	c.pass(pbx, phone, in(text("SIP/2.0 488 No", ";tag=b", ""), "2 INVITE"))
	c.closed()
	assert.Len(t, c.calls()[0].Flows, 8)
	whole := c.relayed.Whole()
	require.Len(t, whole, 1)
	assert.Equal(t, c.pair, whole[0].Pair)
	// The other end can offer now.
	back := strings.NewReplacer(
		"From: \"Ann\" <sip:ann@10.1.10.9>;tag=a", "From: <sip:bob@10.2.20.5>;tag=b",
		"To: <sip:bob@10.2.20.5>;tag=b", "To: <sip:ann@10.1.10.9>;tag=a", "branch=z9hG4bK1", "branch=z9hG4bK7",
	).Replace(in(text("INVITE sip:ann@10.1.10.9 SIP/2.0", ";tag=b", farAnswer), "9 INVITE"))
	a := c.pass(pbx, phone, back)
	assert.Empty(t, a.Reply)
	assert.Contains(t, string(a.Raw), "RTP/SAVP")
}

// What cannot be read in one way alone does not pass where SRTP is required: a body in parts passes with its one
// description replaced.
func TestUnreadableDescriptionsAreRefused(t *testing.T) {
	synctest.Test(t, testUnreadableDescriptionsAreRefused)
}

func testUnreadableDescriptionsAreRefused(t *testing.T) {
	parts := "--xx\r\nContent-Type: application/isup\r\n\r\n\x01\x02\r\n--xx\r\nContent-Type: application/sdp\r\n\r\n" +
		annsOffer + "\r\n--xx--\r\n"
	two := strings.Replace(parts, "\x01\x02", description("10.1.10.9", 4000), 1)
	typed := func(s, kind string) string { return strings.Replace(s, "application/sdp", kind, 1) }
	start := "INVITE sip:bob@10.2.20.5 SIP/2.0"
	for name, s := range map[string]string{
		"encrypted":       typed(text(start, "", "\x30\x80"), "application/pkcs7-mime"),
		"compressed":      strings.Replace(text(start, "", "\x1f\x8b"), "Content-T", "e: gzip\r\nContent-T", 1),
		"two parts":       typed(text(start, "", two), "multipart/mixed;boundary=xx"),
		"another type":    typed(text(start, "", annsOffer), "text/plain"),
		"no description":  text(start, "", "hello"),
		"a bare CR in it": text(start, "", strings.Replace(annsOffer, "t=0 0", "t=0 0\rm=audio 6 RTP/AVP 0", 1)),
	} {
		w := newSecured(t, secured())
		a := w.pass(phone, pbx, s)
		assert.True(t, a.Drop, name)
		assert.Contains(t, string(a.Reply), "SIP/2.0 488 ", name)
		assert.Empty(t, w.ports.out)
		w = newSecured(t, secured(level("10.1.10.0/24", offer.Off), level("10.2.0.0/16", offer.Off)))
		done := make(chan transparent.Action)
		go func() { done <- w.pass(phone, pbx, s) }()
		select {
		case a = <-done:
		case <-w.asked:
			w.reply <- nil
			a = <-done
		}
		assert.Equal(t, transparent.Action{}, a, "%s, with no policy", name)
	}

	w := newSecured(t, secured())
	a, _ := w.passed(phone, pbx, typed(text(start, "", parts), "multipart/mixed;boundary=xx"))
	toFar := strings.Replace(media("10.9.0.1", port(t, a.Raw), "RTP/AVP", marker), "o=- 1 1 IN IP4 10.9.0.1",
		"o=- 1 1 IN IP4 10.1.10.9", 1)
	assert.Equal(t, typed(text(start, "", strings.Replace(parts, annsOffer, toFar, 1)), "multipart/mixed;boundary=xx"),
		string(a.Raw))

	// Nor does a message that goes on unread.
	w = newSecured(t, secured())
	odd := strings.Replace(secureInvite, " SIP/2.0\r\n", " SIP/3.0\r\n", 1)
	assert.True(t, w.pass(phone, pbx, odd).Drop)
	twice := strings.Replace(secureInvite, "Content-Length:", "Content-Length: 0\r\nContent-Length:", 1)
	assert.True(t, w.pass(phone, pbx, twice).Drop, "observe, too")
	assert.False(t, w.pass(phone, pbx, "\r\n\r\n").Drop)
	assert.False(t, w.pass("192.0.2.1:5060", "192.0.2.2:5060", odd).Drop, "nobody requires SRTP there")
	assert.EqualValues(t, 1, w.refused.all()[srtpUnreadable])
}

// Messages of calls that are not known have no description that goes on where SRTP is required.
func TestUnknownCallsHaveNoMedia(t *testing.T) { synctest.Test(t, testUnknownCallsHaveNoMedia) }

func testUnknownCallsHaveNoMedia(t *testing.T) {
	w := newSecured(t, secured())
	a := w.pass(pbx, phone, in(okay, "3 UPDATE"))
	assert.Contains(t, string(a.Raw), "m=audio 0 ")
	assert.NotContains(t, string(a.Raw), "6000")
	info := in(text("INFO sip:bob@10.2.20.5 SIP/2.0", ";tag=b", "Signal=1\r\n"), "4 INFO")
	assert.Equal(t, transparent.Action{}, w.pass(phone, pbx, info))

	// With an offer it is known from then on.
	update := in(text("UPDATE sip:bob@10.2.20.5 SIP/2.0", ";tag=b", annsOffer), "5 UPDATE")
	a, _ = w.passed(phone, pbx, update)
	assert.Contains(t, string(a.Raw), marker)
	_, r := w.passed(pbx, phone, in(text("SIP/2.0 200 OK", ";tag=b", farAnswer), "5 UPDATE"))
	all, _ := pairs(r)
	assert.Len(t, all, 1)
}

// Under `prefer` a call that was there before goes on as it came until its next offer.
func TestACallBeforeThePolicy(t *testing.T) { synctest.Test(t, testACallBeforeThePolicy) }

func testACallBeforeThePolicy(t *testing.T) {
	w := newSecured(t, secured(level("10.1.10.0/24", offer.Off), level("10.2.0.0/16", offer.Off)))
	a, _ := w.passed(phone, pbx, invite)
	assert.Equal(t, transparent.Action{}, a)
	require.NoError(t, w.use(secured(level("10.1.10.0/24", offer.Prefer), level("10.2.0.0/16", offer.Prefer))))
	a, _ = w.passed(pbx, phone, okay)
	assert.Equal(t, transparent.Action{}, a)
}

// Where SRTP is required from now on, media in clear that the box relays ends at once. It is back when that is taken
// back, and with an offer that has keys.
func TestAStricterPolicyEndsMedia(t *testing.T) { synctest.Test(t, testAStricterPolicyEndsMedia) }

func testAStricterPolicyEndsMedia(t *testing.T) {
	loose := secured(level("10.1.10.0/24", offer.Prefer))
	w := newSecured(t, loose)
	a, _ := w.passed(phone, pbx, invite)
	assert.Contains(t, string(a.Raw), marker)
	_, r := w.passed(pbx, phone, secureOkay)
	clear, _ := pairs(r)
	require.Len(t, clear, 1)
	require.Equal(t, offer.Clear, clear[0].Ends[offer.Caller].Keying)
	w.closed()
	told := func(s Settings) (all []*terminate.Pair, gone []uint64) {
		return pairs(w.answer(func() { require.NoError(t, w.use(s)); <-w.told }, nil))
	}
	for len(w.told) > 0 {
		<-w.told
	}

	all, gone := told(secured())
	assert.Empty(t, all)
	assert.Equal(t, []uint64{clear[0].ID}, gone)
	assert.Empty(t, w.relayed.Whole())
	assert.Nil(t, w.calls()[0].SRTP)
	assert.Equal(t, 1, w.stats().Barred)
	all, gone = told(loose)
	assert.Zero(t, w.stats().Barred)
	assert.Equal(t, clear, all, "the same as before")
	assert.Empty(t, gone)
	assert.NotNil(t, w.calls()[0].SRTP)

	told(secured())
	a, _ = w.passed(phone, pbx, in(text("INVITE sip:bob@10.2.20.5 SIP/2.0", ";tag=b",
		strings.Replace(annsOffer, "o=- 1 1", "o=- 1 2", 1)), "2 INVITE"))
	assert.Contains(t, string(a.Raw), marker)
	_, r = w.passed(pbx, phone, in(secureOkay, "2 INVITE"))
	all, _ = pairs(r)
	require.Len(t, all, 1)
	assert.Equal(t, offer.SDES, all[0].Ends[offer.Caller].Keying)
}

// Nor has the next process media that is not allowed any more, be it of this build or another one.
func TestTheNextProcessHasAStricterPolicy(t *testing.T) {
	synctest.Test(t, testTheNextProcessHasAStricterPolicy)
}

func testTheNextProcessHasAStricterPolicy(t *testing.T) {
	for _, another := range []bool{false, true} {
		j, _ := journalFile(t)
		before := newSecured(t, secured(level("10.1.10.0/24", offer.Prefer)))
		before.passed(phone, pbx, invite)
		before.passed(pbx, phone, secureOkay)
		require.Len(t, before.relayed.Whole(), 1)
		require.NoError(t, before.keepOnce(j))
		legs, err := newJournal(j.fd).read()
		require.NoError(t, err)
		saved := (&model{keeper: keeper{calls: before.keeper.calls}}).restore(t)
		require.Len(t, saved, 1)
		if another {
			saved[0].State = ofAnotherBuild(t, saved[0].State)
		}
		next, r, err := newNext(t, secured(), legs, saved)
		assert.Equal(t, another, err != nil)
		all, _ := pairs(r)
		assert.Empty(t, all)
		assert.Len(t, next.ports.out, 2, "until the call ends")
	}
}

// ofAnotherBuild is a saved call that this build cannot read whole.
func ofAnotherBuild(t *testing.T, saved []byte) []byte {
	var state map[int]any
	require.NoError(t, compact.Decode(saved, &state))
	state[5].([]byte)[0]++
	b, err := compact.Encode(state)
	require.NoError(t, err)
	return b
}

// An emergency call is not refused for lack of keys.
func TestAnEmergencyCallNeedsNoKeys(t *testing.T) { synctest.Test(t, testAnEmergencyCallNeedsNoKeys) }

func testAnEmergencyCallNeedsNoKeys(t *testing.T) {
	w := newSecured(t, secured())
	a, _ := w.passed(phone, pbx, ring("help", "112"))
	assert.False(t, a.Drop)
	assert.Contains(t, string(a.Raw), marker, "but where it can have them, it has")
	far := strings.ReplaceAll(text("SIP/2.0 200 OK", ";tag=b", farAnswer), "one@10.1.10.9", "help")
	a, r := w.passed(pbx, phone, strings.Replace(far, "branch=z9hG4bK1", "branch=z9hG4bKhelp", 1))
	assert.Contains(t, string(a.Raw), "RTP/AVP")
	all, _ := pairs(r)
	require.Len(t, all, 1)
	assert.Equal(t, offer.Clear, all[0].Ends[offer.Caller].Keying)
}

// Without a free port, a call is refused, and its sender may try elsewhere.
func TestWithoutPortsCallsAreRefused(t *testing.T) { synctest.Test(t, testWithoutPortsCallsAreRefused) }

func testWithoutPortsCallsAreRefused(t *testing.T) {
	w := newSecured(t, secured(func(s *Settings) { s.Media.First, s.Media.Last = 20000, 20001 }))
	w.passed(phone, pbx, secureInvite)
	again := strings.NewReplacer("one@10.1.10.9", "two", "branch=z9hG4bK1", "branch=z9hG4bK2").Replace(secureInvite)
	assert.Contains(t, string(w.pass(phone, pbx, again).Reply), "SIP/2.0 503 Service Unavailable\r\n")
	assert.EqualValues(t, 1, w.stats().NoMediaPorts)
}

// A daemon that has missed something, or is another one, is told all pairs, with their keys.
func TestTheWholeHasAllPairs(t *testing.T) { synctest.Test(t, testTheWholeHasAllPairs) }

func testTheWholeHasAllPairs(t *testing.T) {
	c := newSecureCall(t, secured())
	c.asker.tellAll()
	r := <-c.asked
	c.reply <- nil
	assert.True(t, r.Whole)
	all, _ := pairs(r)
	assert.Equal(t, []*terminate.Pair{c.pair}, all)
	<-c.told
	synctest.Wait()
	assert.Equal(t, c.pair, c.relayed.Whole()[0].Pair, "what was told is overwritten, not what is known")
}

// A call that a proxy of this branch passes through the box twice has media past the proxy: from the phone's side of
// the first leg to the far side of the second.
func TestAProxiedCallIsOnePair(t *testing.T) { synctest.Test(t, testAProxiedCallIsOnePair) }

func testAProxiedCallIsOnePair(t *testing.T) {
	const proxy = "10.1.20.5:5060"
	w := newSecured(t, secured(func(s *Settings) {
		s.Media.Places = append(s.Media.Places, terminate.Place{
			Network: netip.MustParsePrefix("10.1.20.0/24"), Place: offer.Place{IPv4: netip.MustParseAddr("10.1.20.1")},
		})
	}))
	via := func(s string) string { return strings.Replace(s, "branch=z9hG4bK1", "branch=z9hG4bKproxy", 1) }
	body := func(s []byte) string {
		_, b, _ := strings.Cut(string(s), "\r\n\r\n")
		return b
	}
	start, okayed := "INVITE sip:bob@10.2.20.5 SIP/2.0", "SIP/2.0 200 OK"
	a, _ := w.passed(phone, proxy, secureInvite)
	first := body(a.Raw)
	assert.Contains(t, first, "c=IN IP4 10.1.20.1")
	assert.Contains(t, first, "RTP/AVP", "the proxy's network has no SRTP")
	a, _ = w.passed(proxy, pbx, via(text(start, "", first)))
	assert.Contains(t, body(a.Raw), marker)
	far := port(t, a.Raw)

	a, r := w.passed(pbx, proxy, via(text(okayed, ";tag=b", farAnswer)))
	second, _ := pairs(r)
	require.Len(t, second, 1)
	a, r = w.passed(proxy, phone, text(okayed, ";tag=b", body(a.Raw)))
	all, gone := pairs(r)
	require.Len(t, all, 1)
	if all[0].ID != second[0].ID { // under the lower of two random numbers
		assert.Equal(t, []uint64{second[0].ID}, gone)
	}
	assert.Equal(t, at("10.1.10.1", port(t, a.Raw)), all[0].Ends[0].Local.String())
	assert.Equal(t, []string{annsKey}, inBase64(all[0].Ends[0].Receive))
	assert.Equal(t, "10.2.20.5", all[0].Ends[1].Hop.String())
	assert.Equal(t, second[0].Ends[1].ID, all[0].Ends[1].ID, "it has gone over to another pair")
	assert.NotEqual(t, all[0].Ends[0].ID, all[0].Ends[1].ID)
	assert.Equal(t, at("10.9.0.1", far), all[0].Ends[1].Local.String())
	assert.Equal(t, offer.Channel, all[0].Ends[1].Keying)
	assert.NotEqual(t, all[0].Ends[0].Call, all[0].Ends[1].Call)
	for _, c := range w.calls() {
		for _, f := range c.Flows {
			assert.NotContains(t, f.From, "10.1.20.1", "nothing is sent from the box to itself")
		}
	}
	require.Len(t, w.relayed.Whole(), 1)
	w.closed()

	// One leg ends, and the other one's pair is there again.
	w.pass(phone, proxy, bye)
	_, r = w.passed(proxy, phone, ended)
	alone, _ := pairs(r)
	require.Len(t, alone, 1)
	assert.Equal(t, second[0], alone[0])
	w.pass(proxy, pbx, via(bye))
	_, r = w.passed(pbx, proxy, via(ended))
	_, gone = pairs(r)
	assert.Equal(t, []uint64{second[0].ID}, gone)
}

// A request that leaves the proxy out passes both legs, in their order.
func TestARequestPastTheProxy(t *testing.T) { synctest.Test(t, testARequestPastTheProxy) }

func testARequestPastTheProxy(t *testing.T) {
	const proxy = "10.1.20.5:5060"
	w := newSecured(t, secured(func(s *Settings) {
		s.Media.Places = append(s.Media.Places, terminate.Place{
			Network: netip.MustParsePrefix("10.1.20.0/24"), Place: offer.Place{IPv4: netip.MustParseAddr("10.1.20.1")},
		})
	}))
	via := func(s string) string { return strings.Replace(s, "branch=z9hG4bK1", "branch=z9hG4bKproxy", 1) }
	body := func(s []byte) string {
		_, b, _ := strings.Cut(string(s), "\r\n\r\n")
		return b
	}
	start, okayed := "INVITE sip:bob@10.2.20.5 SIP/2.0", "SIP/2.0 200 OK"
	a, _ := w.passed(phone, proxy, secureInvite)
	a, _ = w.passed(proxy, pbx, via(text(start, "", body(a.Raw))))
	toFar := body(a.Raw)
	a, _ = w.passed(pbx, proxy, via(text(okayed, ";tag=b", farAnswer)))
	a, _ = w.passed(proxy, phone, text(okayed, ";tag=b", body(a.Raw)))
	toPhone := body(a.Raw)
	w.closed()

	a, _ = w.passed(phone, pbx, in(text(start, ";tag=b", annsOffer), "2 INVITE"))
	assert.Equal(t, toFar, body(a.Raw))
	a, _ = w.passed(pbx, phone, in(secureOkay, "2 INVITE"))
	assert.Equal(t, toPhone, body(a.Raw))
	assert.Len(t, w.relayed.Whole(), 1)
}

// The next process goes on with the keys that the daemon had in memory: the pair stays, a refresh of the session is
// the same offer and answer, and the call's end frees all.
func TestTheNextProcessKnowsTheMedia(t *testing.T) { synctest.Test(t, testTheNextProcessKnowsTheMedia) }

func testTheNextProcessKnowsTheMedia(t *testing.T) {
	j, _ := journalFile(t)
	before := newSecureCall(t, secured())
	require.NoError(t, before.keepOnce(j))
	other := strings.NewReplacer("one@10.1.10.9", "two", "branch=z9hG4bK1", "branch=z9hG4bK2").Replace(secureInvite)
	before.passed(phone, pbx, other) // is not in the journal yet
	legs, err := newJournal(j.fd).read()
	require.NoError(t, err)
	require.Len(t, legs, 1)
	saved := (&model{keeper: keeper{calls: before.keeper.calls}}).restore(t)
	require.Len(t, saved, 2)

	used := []netip.AddrPort{
		before.pair.Ends[0].Local, before.pair.Ends[1].Local, netip.MustParseAddrPort("10.9.0.1:29998"),
	}
	next, r, err := newNext(t, secured(func(s *Settings) { s.Media.Used = used }), legs, saved)
	require.NoError(t, err)
	all, _ := pairs(r)
	assert.Equal(t, []*terminate.Pair{before.pair}, all)
	assert.Len(t, r.Changes[len(r.Changes)-1].Open, 8)
	assert.Equal(t, map[netip.AddrPort]bool{used[0]: true, used[1]: true}, next.ports.out)
	assert.Contains(t, next.ports.resting, used[2], "nobody knows whose it was")
	for _, s := range saved {
		assert.Empty(t, strings.Trim(string(s.State), "\x00"))
	}

	a := next.pass(pbx, phone, secureOkay)
	assert.Equal(t, string(before.toPhone), string(a.Raw), "it comes again, since the ACK was lost")
	assert.True(t, next.pass(phone, pbx, secureInvite).Drop, "what went on in its place is not known any more")
	refresh := in(text("INVITE sip:bob@10.2.20.5 SIP/2.0", ";tag=b", annsOffer), "2 INVITE")
	a, _ = next.passed(phone, pbx, refresh)
	toFar := strings.Replace(string(before.toFar), "To: <sip:bob@10.2.20.5>", "To: <sip:bob@10.2.20.5>;tag=b", 1)
	assert.Equal(t, in(toFar, "2 INVITE"), string(a.Raw))
	a = next.pass(pbx, phone, in(secureOkay, "2 INVITE"))
	assert.Equal(t, in(string(before.toPhone), "2 INVITE"), string(a.Raw))
	next.pass(phone, pbx, in(text("ACK sip:bob@10.2.20.5 SIP/2.0", ";tag=b", ""), "2 ACK"))
	next.closed()
	assert.Equal(t, before.pair, next.relayed.Whole()[0].Pair)

	next.pass(phone, pbx, bye)
	_, r = next.passed(pbx, phone, ended)
	_, gone := pairs(r)
	assert.Equal(t, []uint64{before.pair.ID}, gone)
	assert.Empty(t, next.ports.out)
	assert.Empty(t, next.keeper.calls)
}

// An offer that is on its way while the process is replaced can be rejected, and the other end can offer then.
func TestTheNextProcessKnowsOffers(t *testing.T) { synctest.Test(t, testTheNextProcessKnowsOffers) }

func testTheNextProcessKnowsOffers(t *testing.T) {
	j, _ := journalFile(t)
	before := newSecureCall(t, secured())
	moved := media("10.1.10.9", 4400, "RTP/SAVP", crypto(bobsKey))
	before.passed(phone, pbx, in(text("INVITE sip:bob@10.2.20.5 SIP/2.0", ";tag=b", moved), "2 INVITE"))
	require.NoError(t, before.keepOnce(j))
	legs, err := newJournal(j.fd).read()
	require.NoError(t, err)
	saved := (&model{keeper: keeper{calls: before.keeper.calls}}).restore(t)
	next, _, err := newNext(t, secured(), legs, saved)
	require.NoError(t, err)
	next.pass(pbx, phone, in(text("SIP/2.0 488 No", ";tag=b", ""), "2 INVITE"))
	next.closed()
	assert.Equal(t, before.pair, next.relayed.Whole()[0].Pair)
	back := strings.NewReplacer(
		"From: \"Ann\" <sip:ann@10.1.10.9>;tag=a", "From: <sip:bob@10.2.20.5>;tag=b",
		"To: <sip:bob@10.2.20.5>;tag=b", "To: <sip:ann@10.1.10.9>;tag=a", "branch=z9hG4bK1", "branch=z9hG4bK7",
	).Replace(in(text("INVITE sip:ann@10.1.10.9 SIP/2.0", ";tag=b", farAnswer), "9 INVITE"))
	assert.Empty(t, next.pass(pbx, phone, back).Reply)
}

// Half a minute after a call was accepted its first offer is over: an answer of another branch has no keys any more.
func TestALateBranchHasNoMedia(t *testing.T) { synctest.Test(t, testALateBranchHasNoMedia) }

func testALateBranchHasNoMedia(t *testing.T) {
	for after, voided := range map[time.Duration]bool{30 * time.Second: false, 33 * time.Second: true} {
		c := newSecureCall(t, secured())
		c.pass(phone, pbx, in(text("ACK sip:bob@10.2.20.5 SIP/2.0", ";tag=b", ""), "1 ACK"))
		time.Sleep(after)
		c.core.mu.Lock()
		c.expireCalls(time.Now())
		c.core.mu.Unlock()
		late := text("SIP/2.0 200 OK", ";tag=z", farAnswer)
		var a transparent.Action
		if voided {
			a = c.pass(pbx, phone, late)
		} else {
			a, _ = c.passed(pbx, phone, late)
		}
		assert.Equal(t, voided, strings.Contains(string(a.Raw), "m=audio 0 "), after)
	}
}

// A process of another build that cannot read what was agreed leaves the media as it is: the next offer begins again.
func TestMediaGoesOnInAnotherBuild(t *testing.T) { synctest.Test(t, testMediaGoesOnInAnotherBuild) }

func testMediaGoesOnInAnotherBuild(t *testing.T) {
	j, _ := journalFile(t)
	before := newSecureCall(t, secured())
	require.NoError(t, before.keepOnce(j))
	legs, err := newJournal(j.fd).read()
	require.NoError(t, err)
	saved := (&model{keeper: keeper{calls: before.keeper.calls}}).restore(t)
	require.Len(t, saved, 1)
	saved[0].State = ofAnotherBuild(t, saved[0].State)
	next, r, err := newNext(t, secured(), legs, saved)
	require.ErrorContains(t, err, "another build")
	all, _ := pairs(r)
	assert.Equal(t, []*terminate.Pair{before.pair}, all)
	assert.Len(t, next.ports.out, 2)

	reinvite := in(text("INVITE sip:bob@10.2.20.5 SIP/2.0", ";tag=b", annsOffer), "2 INVITE")
	next.passed(phone, pbx, reinvite)
	next.pass(pbx, phone, in(text("SIP/2.0 491 No", ";tag=b", ""), "2 INVITE"))
	assert.Equal(t, before.pair, next.relayed.Whole()[0].Pair, "an offer that is rejected changes nothing")
	assert.Len(t, next.ports.out, 2)
	next.closed()
	a, _ := next.passed(phone, pbx, strings.Replace(reinvite, "2 INVITE", "3 INVITE", 1))
	assert.NotEqual(t, before.far, port(t, a.Raw))
	a, r = next.passed(pbx, phone, in(secureOkay, "3 INVITE"))
	assert.NotEqual(t, keyIn(t, before.toPhone), keyIn(t, a.Raw), "a new key")
	all, _ = pairs(r)
	require.Len(t, all, 1)
	assert.Equal(t, before.pair.ID, all[0].ID)
	assert.NotEqual(t, before.pair.Ends[0].Call, all[0].Ends[0].Call, "epochs begin again, so they are another call's")
	assert.Len(t, next.ports.out, 2, "the ports before are free")
	next.pass(phone, pbx, in(text("ACK sip:bob@10.2.20.5 SIP/2.0", ";tag=b", ""), "3 ACK"))
	next.pass(phone, pbx, bye)
	next.passed(pbx, phone, ended)
	assert.Empty(t, next.ports.out)
}

// Keys on their way to the daemon are overwritten when it has them, when they could not be sent, and when too much
// waits.
func TestKeysOnTheirWayAreOverwritten(t *testing.T) {
	synctest.Test(t, testKeysOnTheirWayAreOverwritten)
}

func testKeysOnTheirWayAreOverwritten(t *testing.T) {
	change := func() (Change, []byte) {
		master := []byte("a master key")
		p := &terminate.Pair{ID: 7}
		p.Ends[0].Send.Keys = []sdes.Key{{Master: master, Salt: []byte("salt")}}
		return Change{Media: []terminate.Change{{ID: 7, Pair: p}}}, master
	}
	var failed error
	got := make(chan string, 1)
	a := newAsker(func(_ context.Context, r flowsRequest) error {
		if !r.Whole {
			got <- string(r.Changes[0].Media[0].Pair.Ends[0].Send.Keys[0].Master)
		}
		return failed
	}, func() []Change { return nil })
	stop := start(a.run)
	for _, failed = range []error{nil, errBusy} {
		c, master := change()
		a.tell(c)
		assert.Equal(t, "a master key", <-got)
		synctest.Wait()
		assert.Equal(t, make([]byte, len(master)), master)
	}
	stop()

	c, master := change()
	a.tell(c)
	for range maxQueued {
		a.tell(Change{Open: []dialog.Flow{flow("10.1.10.9", "10.2.20.5:6000", false)}})
	}
	assert.Equal(t, make([]byte, len(master)), master, "the daemon is told the whole instead")
	c, master = change()
	a.tell(c)
	a.tellAll()
	assert.Equal(t, make([]byte, len(master)), master)

	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	ch := newChannel(pair[0])
	defer ch.close()
	defer unix.Close(pair[1])
	c, _ = change()
	require.NoError(t, ch.send([]Change{c}))
	assert.NotEmpty(t, ch.buffer)
	assert.Empty(t, strings.Trim(string(ch.buffer), "\x00"))
	b := make([]byte, maxChannel)
	n, err := unix.Read(pair[1], b)
	require.NoError(t, err)
	assert.Contains(t, string(b[:n]), "a master key")
}

// What a process sends packed is read as it was, or refused: it may have been taken over.
func TestPairsArePacked(t *testing.T) {
	key := sdes.Key{Master: []byte("0123456789abcdef"), Salt: []byte("salt"), MKI: []byte{1, 2}, Lifetime: 1 << 20}
	p := &terminate.Pair{ID: 7, Kind: sdp.Video}
	p.Ends[0] = terminate.End{ID: 11, Call: 9, Hop: netip.MustParseAddr("10.1.10.9"), Leg: offer.Leg{
		Keying: offer.SDES, Protocol: "RTP/SAVPF", Local: netip.MustParseAddrPort("10.1.10.1:20000"),
		Remote: netip.MustParseAddrPort("10.1.10.9:4000"), RemoteRTCP: netip.MustParseAddrPort("10.1.10.9:4001"),
		Mux: true, Suite: suite.AEADAES256GCM, MKI: 2, Send: offer.Keys{Keys: []sdes.Key{key}, Epoch: 3},
		Receive: offer.Keys{Keys: []sdes.Key{key, key}, Epoch: 4}, ClearSRTCP: true, Sends: true,
		Codecs: []offer.Codec{{PayloadType: 96, Name: "opus", Clock: 48000, Channels: 2, Params: "useinbandfec=1"}},
		Ptime:  20, MaxPtime: 60,
	}}
	p.Ends[1] = terminate.End{Call: 9, Hop: netip.MustParseAddr("2001:db8::1"), Leg: offer.Leg{
		Keying: offer.DTLS, Local: netip.MustParseAddrPort("[2001:db8::2]:20000"), Receives: true,
		DTLS: &offer.Association{Epoch: 5, Role: offer.Active, LocalID: "a", RemoteID: "b",
			Remote: []offer.Fingerprint{{Hash: "sha-256", Value: "\x00\xff"}}},
	}}
	want := []Change{
		{Hops: [2]netip.Addr{netip.MustParseAddr("10.1.10.9"), netip.MustParseAddr("10.2.20.5")},
			Open:  []dialog.Flow{flow("10.1.10.9", "10.1.10.1:20000", false)},
			Media: []terminate.Change{{ID: 7, Pair: p}, {ID: 8}},
			saved: []terminate.Saved{{Leg: terminate.Leg{CallID: "one", Tag: "a"}, State: []byte("state")}}},
		{Close: []dialog.Flow{flow("10.1.10.9", "10.1.10.1:20000", false)}},
	}
	packed := packChanges(nil, want)
	got, err := unpackChanges(packed)
	require.NoError(t, err)
	assert.Equal(t, want, got)
	whole := 0
	for n := range packed {
		if _, err := unpackChanges(packed[:n]); err == nil {
			whole++
		}
	}
	assert.Equal(t, 2, whole, "without any change, and after the first one")
}

func FuzzUnpackChanges(f *testing.F) {
	f.Add(packChanges(nil, []Change{{Media: []terminate.Change{{ID: 7, Pair: &terminate.Pair{ID: 7}}},
		saved: []terminate.Saved{{State: []byte("state")}}}}))
	f.Fuzz(func(t *testing.T, packed []byte) {
		if all, err := unpackChanges(packed); err == nil {
			again, err := unpackChanges(packChanges(nil, all))
			require.NoError(t, err)
			assert.Equal(t, all, again)
		}
	})
}
