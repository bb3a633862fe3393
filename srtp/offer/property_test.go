package offer_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	pion "github.com/pion/sdp/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"ringway/srtp/offer"
	"ringway/srtp/sdes"
	"ringway/srtp/suite"
)

// drawLine is one line m= of an end, with what ends may write about keys, addresses and other things.
func drawLine(t *rapid.T, n int) string {
	pick := func(name string, all ...string) string { return rapid.SampledFrom(all).Draw(t, name) }
	kind := pick("kind", "audio", "audio", "audio", "video", "image", "application")
	protocol := pick("protocol", "RTP/AVP", "RTP/AVP", "RTP/SAVP", "RTP/SAVP", "RTP/SAVPF", "UDP/TLS/RTP/SAVP",
		"UDP/TLS/RTP/SAVPF", "RTP/AVPF", "TCP/RTP/AVP", "udptl", "TCP/TLS/MSRP")
	port := pick("port", "5004", "5006", "5008", "0", "9", "70000", "5004/2")
	if rapid.IntRange(0, 9).Draw(t, "usual") > 0 {
		port = strconv.Itoa(5004 + 2*n)
	}
	out := fmt.Sprintf("m=%s %s %s 0 8\r\n", kind, port, protocol)
	out += pick("address", "", "", "", "c=IN IP4 10.1.10.11\r\n", "c=IN IP4 0.0.0.0\r\n", "c=IN IP4 10.9.0.2\r\n",
		"c=IN IP6 2001:db8:1::10\r\n", "c=IN IP4 x.example\r\n")
	for range rapid.IntRange(0, 3).Draw(t, "cryptos") {
		s := rapid.SampledFrom(suite.All()).Draw(t, "suite")
		tag, key := rapid.IntRange(0, 5).Draw(t, "tag"), 10*n+rapid.IntRange(1, 9).Draw(t, "key")
		out += strings.TrimSuffix(crypto(tag, key, s), "\r\n") + pick("parameter", "", "", "", "", "|2^20|1:4",
			" UNENCRYPTED_SRTP", " UNENCRYPTED_SRTCP", " UNAUTHENTICATED_SRTP", " FEC_ORDER=FEC_SRTP") + "\r\n"
	}
	for range rapid.IntRange(0, 2).Draw(t, "prints") {
		out += fingerprint(rapid.IntRange(1, 3).Draw(t, "print"))
	}
	for range rapid.IntRange(0, 4).Draw(t, "others") {
		out += pick("other", "a=setup:actpass\r\n", "a=setup:active\r\n", "a=setup:passive\r\n", "a=setup:holdconn\r\n",
			marker, marker, "a=rtcp-mux\r\n", "a=rtcp:6001\r\n", "a=sendonly\r\n", "a=inactive\r\n", "a=ssrc:1 cname:x\r\n",
			"a=ice-ufrag:x\r\n", "a=candidate:1 1 UDP 1 10.1.10.10 5004 typ host\r\n", "a=mid:"+strconv.Itoa(n)+"\r\n",
			"a=tls-id:aaaaaaaaaaaaaaaaaaaa\r\n", "a=ptime:20\r\n", "a=rtpmap:0 PCMU/8000\r\n", "b=AS:80\r\n")
	}
	return out
}

func drawBody(t *rapid.T, passed []byte) string {
	addresses := []string{"10.1.10.10", "10.9.0.2", "10.9.0.2", "10.1.10.12", "0.0.0.0"}
	address := rapid.SampledFrom(addresses).Draw(t, "session")
	out := "v=0\r\n" + origin + "s=-\r\nc=IN IP4 " + address + "\r\nt=0 0\r\n"
	out += rapid.SampledFrom([]string{"", "", "a=group:BUNDLE 0 1\r\n", fingerprint(1), "a=setup:active\r\n", marker,
		"a=ice-ufrag:x\r\n"}).Draw(t, "of the session")
	n := rapid.IntRange(1, 3).Draw(t, "lines")
	if passed != nil {
		n = bytes.Count(passed, []byte("\nm="))
	}
	for i := range n {
		out += drawLine(t, i)
	}
	return out
}

// drawAnswer is an answer that mostly fits what was passed on, so that calls come about.
func drawAnswer(t *rapid.T, passed []byte) string {
	if rapid.IntRange(0, 3).Draw(t, "wild") == 0 {
		return drawBody(t, passed)
	}
	address := rapid.SampledFrom([]string{"10.1.10.20", "10.9.0.2", "10.9.0.2"}).Draw(t, "session")
	out := "v=0\r\n" + origin + "s=-\r\nc=IN IP4 " + address + "\r\nt=0 0\r\n"
	n, chosen := 0, false
	for _, l := range strings.SplitAfter(string(passed), "\n") {
		switch {
		case strings.HasPrefix(l, "m="):
			f := strings.Fields(l)
			if f[1] != "0" {
				f[1] = strconv.Itoa(6000 + 2*rapid.IntRange(0, 3).Draw(t, "port"))
			}
			out += strings.Join(f, " ") + "\r\n"
			n, chosen = n+1, false
		case strings.HasPrefix(l, "a=crypto:") && !chosen:
			f := strings.Fields(strings.TrimPrefix(l, "a=crypto:"))
			s, err := suite.Parse(f[1])
			require.NoError(t, err)
			if chosen = rapid.IntRange(0, 2).Draw(t, "choose") == 0; chosen {
				tag, _ := strconv.Atoi(f[0])
				out += crypto(tag, 100*n+rapid.IntRange(1, 9).Draw(t, "key"), s)
			}
		case strings.HasPrefix(l, "a=setup:") && !chosen:
			out += fingerprint(rapid.IntRange(1, 2).Draw(t, "print")) +
				rapid.SampledFrom([]string{"a=setup:active\r\n", "a=setup:passive\r\n"}).Draw(t, "setup") +
				rapid.SampledFrom([]string{"", "a=rtcp-mux\r\n", "a=rtcp-mux\r\n"}).Draw(t, "mux")
		case strings.HasPrefix(l, "a=ringway"):
			out += rapid.SampledFrom([]string{l, l, l, ""}).Draw(t, "marker")
		}
	}
	return out
}

func drawPlace(t *rapid.T) offer.Place {
	p := rapid.SampledFrom([]offer.Place{phone(0), site(0), trunk(0)}).Draw(t, "place")
	drawPolicy(t, &p)
	return p
}

func drawPolicy(t *rapid.T, p *offer.Place) {
	p.Level = rapid.SampledFrom([]offer.Level{offer.Off, offer.Prefer, offer.Require, offer.Require}).Draw(t, "level")
	p.Methods = rapid.SampledFrom([][]offer.Keying{nil, {offer.DTLS}, {offer.SDES, offer.DTLS}}).Draw(t, "methods")
	p.Minimum = rapid.SampledFrom([]suite.Suite{0, 0, 0, gcm, suite.AEADAES256GCM}).Draw(t, "minimum")
	p.ChannelUp = rapid.IntRange(0, 4).Draw(t, "channel") > 0
}

// drawOffer is the offer of a phone or of the far box, which mostly can be agreed on.
func drawOffer(t *rapid.T) string {
	if rapid.IntRange(0, 3).Draw(t, "wild") == 0 {
		return drawBody(t, nil)
	}
	protocol := rapid.SampledFrom([]string{"RTP/AVP", "RTP/AVP", "RTP/SAVP"}).Draw(t, "protocol")
	var keys []string
	for i, s := range []suite.Suite{suite.AEADAES256GCM, gcm, cm80} {
		if rapid.IntRange(0, 2).Draw(t, "crypto") > 0 {
			keys = append(keys, crypto(i+1, rapid.IntRange(1, 9).Draw(t, "key"), s))
		}
	}
	if rapid.IntRange(0, 2).Draw(t, "print") == 0 {
		keys = append(keys, fingerprint(1), "a=setup:actpass\r\na=rtcp-mux\r\n")
	}
	keys = append(keys, rapid.SampledFrom([]string{"", marker}).Draw(t, "marker"))
	body := audio(rapid.SampledFrom([]int{5004, 5004, 5004, 5104}).Draw(t, "port"), protocol, keys...)
	body = at(rapid.SampledFrom([]string{"10.1.10.10", farBox.String(), "0.0.0.0"}).Draw(t, "address"), body)
	if rapid.IntRange(0, 5).Draw(t, "fax") == 0 {
		body += "m=image 5010 udptl t38\r\n"
	}
	return version(rapid.IntRange(0, 2).Draw(t, "version"), body)
}

// TestProperties makes calls of all kinds, and looks at everything that the box says in them.
func TestProperties(t *testing.T) {
	settled, secure := 0, 0
	property := func(t *rapid.T) {
		places := [2]offer.Place{drawPlace(t), drawPlace(t)}
		b := newBench(tb{t}, places[0], places[1])
		defer func() {
			secrets := b.Secrets()
			b.Close()
			assertWiped(t, secrets, nil)
			assert.Empty(t, b.ports.out)
		}()
		passed := map[string][]byte{}
		from := map[string]offer.End{}
		for range rapid.IntRange(2, 8).Draw(t, "steps") {
			tag := rapid.SampledFrom([]string{"a", "a", "b"}).Draw(t, "tag")
			end := rapid.SampledFrom([]offer.End{offer.Caller, offer.Callee}).Draw(t, "end")
			before := b.Secrets()
			var in string
			var r offer.Result
			var err error
			switch step := rapid.IntRange(-1, 9).Draw(t, "step"); {
			case step < 0:
				drawPolicy(t, &places[end])
				b.SetPlace(end, places[end])
			case step == 0:
				if r, err = b.Reject(tag); err != nil {
					assert.Empty(t, r.Media)
				}
				assertAgreed(t, places, r)
			case step == 1:
				b.End(tag)
			case step < 5 && passed[""] != nil:
				in = drawOffer(t)
				if r, err = b.Offer(tag, end, []byte(in), step == 4); err == nil {
					passed[tag], from[tag] = r.Body, end
				}
			case step < 6 || passed[""] == nil:
				in = drawOffer(t)
				if r, err = b.Offer("", offer.Caller, []byte(in), false); err == nil {
					passed[""] = r.Body
					delete(passed, tag)
				}
				end = offer.Caller
			default:
				offered, of := passed[tag], from[tag]
				if offered == nil {
					offered, of = passed[""], offer.Caller
				}
				in = drawAnswer(t, offered)
				end = 1 - of
				r, err = b.Answer(tag, end, []byte(in))
			}
			assertWiped(t, before, b.Secrets())
			if err != nil || in == "" {
				continue
			}
			assertSplice(t, in, r)
			assertNoDowngrade(t, places, 1-end, r)
			assertAgreed(t, places, r)
			assertParses(t, b, places, 1-end, r)
			if r.Settled && len(r.Media) > 0 {
				settled++
				if legOf(r, 0).Keying > offer.Clear && legOf(r, 1).Keying > offer.Clear {
					secure++
				}
			}
		}
	}
	for range 10 { // a hundred calls each: less misses lines that are switched on by an answer
		rapid.Check(t, property)
	}
	t.Logf("%d calls were answered, %d with keys on both sides", settled, secure)
	assert.NotZero(t, secure)
}

// plane is what a media plane makes of results: for each key that the box sends under, one sender, which it keeps as
// long as the call may name its epoch.
type plane struct {
	t         *rapid.T
	epochOf   map[string]uint32 // by key and salt
	keyOf     map[uint32]string
	forgotten map[uint32]bool
	inUse     map[place]uint32          // what was agreed last
	dtls      map[place]uint32          // likewise
	left      map[place]map[uint32]bool // what was agreed before

	returns int // how often a sender went on in another branch
	repeats int // how often an offer was made again, and was the same
	last    map[string]*lastOffer
	lines   map[string][]int // that were agreed
}

// lastOffer is what one end offered the other last, in a branch. It is nil where its keys may have been used and left,
// or the other end has offered since.
type lastOffer struct {
	from    offer.End
	in, out string
}

// again draws whether the last offer is made once more.
func (p *plane) again(tag string, from offer.End) (in string, ok bool) {
	l := p.last[tag]
	if l == nil || l.from != from || rapid.IntRange(0, 1).Draw(p.t, "again") == 0 {
		return "", false
	}
	return l.in, true
}

func (p *plane) passed(tag string, from offer.End, in string, fresh bool, r offer.Result) {
	if l := p.last[tag]; l != nil && l.from == from && l.in == in && !fresh {
		assert.Equal(p.t, l.out, string(r.Body), "an offer of the same version")
		p.repeats++
		return
	}
	p.last[tag] = &lastOffer{from: from, in: in, out: string(r.Body)}
	p.givenUp(tag, r)
}

// agreed notes which lines an answer takes.
func (p *plane) agreed(tag string, r offer.Result) {
	p.givenUp(tag, r)
	p.lines[tag] = nil
	for _, m := range r.Media {
		p.lines[tag] = append(p.lines[tag], m.Index)
	}
}

// givenUp looks for lines that were in use and are no more. They are new in the next offer.
func (p *plane) givenUp(tag string, r offer.Result) {
	for _, i := range p.lines[tag] {
		if !slices.ContainsFunc(r.Media, func(m offer.Media) bool { return m.Index == i }) {
			delete(p.last, tag)
		}
	}
}

// place is a leg.
type place struct {
	tag  string
	line int
	end  offer.End
}

const channelKey = "the channel's"

func (p *plane) result(tag string, r offer.Result, epochs []uint32) {
	for _, m := range r.Media {
		for e, l := range m.Legs {
			at := place{tag, m.Index, offer.End(e)}
			all := []uint32{l.Send.Epoch, l.Receive.Epoch}
			if l.DTLS != nil {
				all = append(all, l.DTLS.Epoch)
			}
			for _, epoch := range all {
				assert.True(p.t, epoch == 0 || slices.Contains(epochs, epoch), "epoch %d is not announced", epoch)
				assert.False(p.t, p.forgotten[epoch], "epoch %d comes back", epoch)
			}
			key := channelKey
			if len(l.Send.Keys) > 0 {
				key = fmt.Sprintf("%x %x", l.Send.Keys[0].Master, l.Send.Keys[0].Salt)
				if was, ok := p.epochOf[key]; ok {
					assert.Equal(p.t, was, l.Send.Epoch, "a key with two epochs")
				}
				p.epochOf[key] = l.Send.Epoch
			}
			if l.Send.Epoch == 0 {
				key = ""
			} else if was, ok := p.keyOf[l.Send.Epoch]; ok {
				assert.Equal(p.t, was, key, "an epoch with two keys")
			}
			p.keyOf[l.Send.Epoch] = key
			if !r.Settled {
				continue
			}
			association := uint32(0)
			if l.DTLS != nil {
				association = l.DTLS.Epoch
			}
			if was := p.dtls[at]; was != 0 && was != association {
				delete(p.last, tag) // its identifier is not offered again
			}
			p.dtls[at] = association
			assert.False(p.t, p.left[at][l.Send.Epoch], "%v goes back to epoch %d", at, l.Send.Epoch)
			if was := p.inUse[at]; was != l.Send.Epoch {
				if was != 0 {
					if p.left[at] == nil {
						p.left[at] = map[uint32]bool{}
					}
					p.left[at][was] = true
					delete(p.last, tag)
				}
				for other, epoch := range p.inUse {
					if other.tag != tag && epoch == l.Send.Epoch && epoch != 0 {
						p.returns++
					}
				}
				p.inUse[at] = l.Send.Epoch
			}
		}
	}
}

// offered checks the keys that the box offers to an end.
func (p *plane) offered(tag string, to offer.End, body []byte) {
	line := -1
	for _, l := range strings.SplitAfter(string(body), "\n") {
		if strings.HasPrefix(l, "m=") {
			line++
		}
		if value, ok := strings.CutPrefix(l, "a=crypto:"); ok {
			a, err := sdes.Parse(strings.TrimSpace(value))
			if err != nil {
				continue // not the box's: it was passed
			}
			epoch, used := p.epochOf[fmt.Sprintf("%x %x", a.Keys[0].Master, a.Keys[0].Salt)]
			assert.False(p.t, used && p.forgotten[epoch], "a key is offered whose sender is gone")
			assert.False(p.t, used && p.left[place{tag, line, to}][epoch], "a key is offered that was in use")
		}
	}
}

// keep forgets what the call does not need.
func (p *plane) keep(epochs []uint32) {
	for epoch := range p.keyOf {
		if epoch != 0 && !slices.Contains(epochs, epoch) {
			p.forgotten[epoch] = true
		}
	}
}

func (p *plane) end(tag string) {
	delete(p.last, tag)
	delete(p.lines, tag)
	for _, m := range []offer.End{offer.Caller, offer.Callee} {
		for line := range 10 {
			delete(p.inUse, place{tag, line, m})
			delete(p.dtls, place{tag, line, m})
			delete(p.left, place{tag, line, m})
		}
	}
}

// TestOneKeyHasOneEpochAndOneSender makes calls with forks, moves, changes of suite and policy, offers that fail.
func TestOneKeyHasOneEpochAndOneSender(t *testing.T) {
	changes, returns, repeats := 0, 0, 0
	property := func(t *rapid.T) {
		places := [2]offer.Place{drawPlace(t), drawPlace(t)}
		b := newBench(tb{t}, places[0], places[1])
		defer b.Close()
		p := &plane{
			t: t, epochOf: map[string]uint32{}, keyOf: map[uint32]string{}, forgotten: map[uint32]bool{},
			inUse: map[place]uint32{}, dtls: map[place]uint32{}, left: map[place]map[uint32]bool{},
			last: map[string]*lastOffer{}, lines: map[string][]int{},
		}
		tags := []string{"a", "a", "a", "b"}
		passed, from := map[string][]byte{}, map[string]offer.End{}
		for range rapid.IntRange(4, 16).Draw(t, "steps") {
			tag := rapid.SampledFrom(tags).Draw(t, "tag")
			end := rapid.SampledFrom([]offer.End{offer.Caller, offer.Callee}).Draw(t, "end")
			var r offer.Result
			var err error
			switch step := rapid.IntRange(0, 19).Draw(t, "step"); {
			case step == 0:
				drawPolicy(t, &places[end])
				b.SetPlace(end, places[end])
				clear(p.last)
			case step == 1:
				r, _ = b.Reject(tag)
				assertAgreed(t, places, r)
				if !r.Settled {
					delete(p.last, tag) // the branch may have been forgotten
				}
			case step == 2:
				b.End(tag)
				p.end(tag)
				delete(passed, tag)
			case step == 3:
				b.Settle(tag)
				for _, other := range tags {
					if other != tag {
						p.end(other)
						delete(passed, other)
					}
				}
				delete(passed, "")
			case passed[""] == nil && len(passed) == 0:
				if r, err = b.Offer("", offer.Caller, []byte(drawOffer(t)), false); err == nil {
					passed[""], from[""] = r.Body, offer.Caller
					tag = ""
					p.offered("", offer.Callee, r.Body)
				}
			case step < 9:
				in, again := p.again(tag, end)
				if !again {
					in = drawOffer(t)
				}
				if r, err = b.Offer(tag, end, []byte(in), step == 4); err == nil {
					passed[tag], from[tag] = r.Body, end
					p.offered(tag, 1-end, r.Body)
					p.passed(tag, end, in, step == 4, r)
				}
			default:
				offered, of := passed[tag], from[tag]
				if offered == nil {
					offered, of = passed[""], offer.Caller
				}
				if offered == nil {
					continue
				}
				r, err = b.Answer(tag, 1-of, []byte(drawAnswer(t, offered)))
				if err == nil {
					changes++
					passed[tag], from[tag] = offered, of
					p.agreed(tag, r)
					assertAgreed(t, places, r)
					assert.NoError(t, b.Allowed(tag))
				}
			}
			p.result(tag, r, b.Epochs())
			p.keep(b.Epochs())
		}
		returns, repeats = returns+p.returns, repeats+p.repeats
	}
	for range 10 {
		rapid.Check(t, property)
	}
	t.Logf("%d answers, %d times a sender went on in another branch, %d offers were repeated", changes, returns, repeats)
	assert.NotZero(t, returns)
	assert.NotZero(t, repeats)
}

// tb makes rapid's T a testing.TB for helpers that need no more of it than this.
type tb struct{ *rapid.T }

func (tb) Helper() {}

// assertWiped checks that keys which the call no longer has are overwritten.
func assertWiped(t *rapid.T, before, after map[*byte][]byte) {
	for at, b := range before {
		if _, still := after[at]; !still {
			assert.Empty(t, bytes.Trim(b, "\x00"), "a key that is not needed any more")
		}
	}
}

// assertSplice compares what was read with what is passed on, line by line: only lines c=, m= and a= differ, of a
// line m= only port and protocol, and no a= but those about keys and addresses.
func assertSplice(t *rapid.T, in string, r offer.Result) {
	assert.LessOrEqual(t, len(r.Body), offer.MaxPassed)
	ours := func(l string) bool {
		name, _, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(l, "a=")), ":")
		return strings.HasPrefix(l, "c=") || strings.HasPrefix(l, "a=") && slices.Contains([]string{"crypto", "fingerprint",
			"setup", "tls-id", "ringway-srtp", "rtcp-mux", "rtcp", "ice-ufrag", "candidate", "group"}, name)
	}
	rest := func(body string) (all []string) {
		for _, l := range strings.SplitAfter(body, "\n") {
			if strings.HasPrefix(l, "m=") {
				f := strings.SplitN(l, " ", 4)
				f[1], f[2] = "", ""
				l = strings.Join(f, " ")
			}
			if !ours(l) {
				all = append(all, l)
			}
		}
		return all
	}
	assert.Equal(t, rest(in), rest(string(r.Body)))
	if len(r.Media) == 0 {
		return
	}
	for i := range r.Media {
		for e := range r.Media[i].Legs {
			for _, k := range r.Media[i].Legs[e].Receive.Keys {
				secret := base64.StdEncoding.EncodeToString(slices.Concat(k.Master, k.Salt))
				assert.NotContains(t, string(r.Body), secret, "a key of one end is not for the other")
			}
		}
	}
}

// parse is another parser's view. It does not know T.38, which the box leaves alone.
func parse(t *rapid.T, body []byte) (d pion.SessionDescription) {
	known := strings.NewReplacer("m=image ", "m=application ", " udptl ", " UDP ").Replace(string(body))
	require.NoError(t, d.UnmarshalString(known), known)
	return d
}

// assertNoDowngrade checks that nothing is said to an end that requires SRTP, nor agreed with it, which has no keys.
func assertNoDowngrade(t *rapid.T, places [2]offer.Place, to offer.End, r offer.Result) {
	for _, m := range r.Media {
		for e, l := range m.Legs {
			if places[e].Level == offer.Require && (r.Settled || l.Keying != offer.Undecided) {
				assert.Greater(t, l.Keying, offer.Clear)
			}
			if l.Keying == offer.SDES && r.Settled {
				assert.Len(t, l.Send.Keys, 1)
				assert.NotEmpty(t, l.Receive.Keys)
				short := l.Suite == suite.AES128CMHMACSHA132 || l.Suite == suite.AES256CMHMACSHA132
				assert.False(t, short && places[e].Level == offer.Require)
			}
		}
	}
	if places[to].Level != offer.Require {
		return
	}
	d := parse(t, r.Body)
	for _, m := range d.MediaDescriptions {
		protocol := strings.ToUpper(strings.Join(m.MediaName.Protos, "/"))
		sound := m.MediaName.Media == "audio" || m.MediaName.Media == "video" || strings.Contains(protocol, "RTP")
		if m.MediaName.Port.Value == 0 || !sound {
			continue
		}
		_, sdes := m.Attribute("crypto")
		_, dtls := m.Attribute("fingerprint")
		_, channel := m.Attribute("ringway-srtp")
		assert.True(t, sdes || dtls || channel && places[to].Box.IsValid(),
			"a clear line to who requires SRTP:\n%s", r.Body)
	}
}

// assertAgreed checks that nothing which was agreed passes in clear where keys are required.
func assertAgreed(t *rapid.T, places [2]offer.Place, r offer.Result) {
	if !r.Settled {
		return
	}
	for _, m := range r.Media {
		for e, l := range m.Legs {
			if places[e].Level == offer.Require {
				assert.Greater(t, l.Keying, offer.Clear)
			}
		}
	}
	if places[0].Level == offer.Require || places[1].Level == offer.Require {
		for _, l := range r.Passed {
			assert.True(t, l.Encrypted, "%s passes", l.Protocol)
		}
		assert.True(t, len(r.Media)+len(r.Passed) > 0 || bytes.Contains(r.Body, []byte(" 0 ")) || len(r.Body) == 0)
	}
}

// assertParses checks that another parser finds our addresses and ports in what is passed on.
func assertParses(t *rapid.T, b *bench, places [2]offer.Place, to offer.End, r offer.Result) {
	if len(r.Media) == 0 {
		return
	}
	d := parse(t, r.Body)
	for _, m := range r.Media {
		l := m.Legs[to]
		line := d.MediaDescriptions[m.Index]
		assert.Equal(t, int(l.Local.Port()), line.MediaName.Port.Value)
		assert.Equal(t, l.Protocol, strings.ToUpper(strings.Join(line.MediaName.Protos, "/")))
		assert.True(t, b.ports.out[l.Local], "the port is the box's")
		assert.Contains(t, []netip.Addr{places[to].IPv4, places[to].IPv6}, l.Local.Addr())
		c := line.ConnectionInformation
		if c == nil {
			c = d.ConnectionInformation
		}
		if a := netip.MustParseAddr(c.Address.Address); !a.IsUnspecified() {
			assert.Equal(t, l.Local.Addr(), a)
		}
	}
}

func TestRefreshIsIdempotent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBench(tb{t}, drawPlace(t), drawPlace(t))
		defer b.Close()
		offered := drawBody(t, nil)
		r, err := b.Offer("", offer.Caller, []byte(offered), false)
		if err != nil {
			return
		}
		answered := drawAnswer(t, r.Body)
		first, err := b.Answer("a", offer.Callee, []byte(answered))
		if err != nil {
			return
		}
		for range 2 {
			again, err := b.Offer("", offer.Caller, []byte(offered), false)
			require.NoError(t, err)
			assert.Equal(t, string(r.Body), string(again.Body), "an INVITE that comes again")
			same, err := b.Answer("a", offer.Callee, []byte(answered))
			require.NoError(t, err)
			assert.Equal(t, string(first.Body), string(same.Body))
			assert.Equal(t, first.Media, same.Media)
		}
		refresh, err := b.Offer("a", offer.Caller, []byte(offered), false)
		require.NoError(t, err)
		next, err := b.Answer("a", offer.Callee, []byte(answered))
		require.NoError(t, err)
		assert.Equal(t, string(r.Body), string(refresh.Body), "a refresh of the session")
		if len(first.Media) == len(r.Media) { // a line that the answer refused has another port towards the caller
			assert.Equal(t, string(first.Body), string(next.Body))
			assert.Equal(t, first.Media, next.Media)
		}
	})
}

func FuzzCall(f *testing.F) {
	f.Add([]byte(audio(5004, "RTP/SAVP", crypto(1, 1, cm80))), []byte(fromBox(audio(41000, "RTP/AVP", marker))), uint8(2))
	f.Add([]byte(audio(5004, "RTP/AVP", crypto(1, 1, gcm), "a=rtcp-mux\r\n")),
		[]byte(audio(5008, "RTP/SAVP", crypto(4, 2, cm80))), uint8(10))
	f.Add([]byte(dtlsBody(5004, 1, "a=setup:actpass\r\n", "a=tls-id:aaaaaaaaaaaaaaaaaaaa\r\n")),
		[]byte(dtlsBody(5008, 2, "a=setup:active\r\n")), uint8(255))
	f.Add([]byte("v=0\nc=IN IP6 ::1\na=group:BUNDLE 0\na=fingerprint:sha-256 00\n"+
		"m=audio 9 UDP/TLS/RTP/SAVPF 0\nm=image 4 udptl t38"),
		[]byte("v=0\nm=audio 0 x"), uint8(0))
	f.Fuzz(func(t *testing.T, offered, answered []byte, how uint8) {
		levels := [2]offer.Level{offer.Level(how % 3), offer.Level(how / 3 % 3)}
		both := func(l offer.Level) offer.Place { return phone(l, offer.SDES, offer.DTLS) }
		kinds := []func(offer.Level) offer.Place{both, site, trunk}
		b := newBench(t, kinds[how/9%3](levels[0]), kinds[how/27%3](levels[1]))
		in := bytes.Clone(offered)
		r, err := b.Offer("", offer.Caller, offered, false)
		assert.Equal(t, in, offered, "the body is not written to")
		if err == nil {
			assert.True(t, len(r.Body) <= offer.MaxPassed || len(r.Media) == 0)
			again, err := b.Offer("", offer.Caller, offered, false)
			require.NoError(t, err)
			assert.Equal(t, r.Body, again.Body)
		}
		if r, err := b.Answer("a", offer.Callee, answered); err == nil {
			for _, m := range r.Media {
				for e, l := range m.Legs {
					assert.NotEqual(t, offer.Undecided, l.Keying)
					assert.False(t, levels[e] == offer.Require && l.Keying == offer.Clear)
				}
			}
			again, err := b.Answer("a", offer.Callee, answered)
			require.NoError(t, err)
			assert.Equal(t, r.Body, again.Body)
		}
		_, _ = b.Offer("a", offer.Callee, answered, true)
		_, _ = b.Answer("a", offer.Caller, offered)
		_, _ = b.Reject("a")
		b.Close()
		assert.Empty(t, b.ports.out)
	})
}
