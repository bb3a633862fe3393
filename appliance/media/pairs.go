package media

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"ringway/appliance/config"
	"ringway/process"
	"ringway/sip/sdp"
	"ringway/sip/terminate"
	"ringway/srtp/dtls"
	"ringway/srtp/keys"
	srtp "ringway/srtp/media"
	"ringway/srtp/offer"
	"ringway/srtp/plane"
	"ringway/srtp/sdes"
	"ringway/srtp/suite"
)

// world is where ends of calls are.
type world struct {
	sites map[string][]netip.Prefix // networks behind tunnels, by site
	boxes map[netip.Addr]string     // sites of far boxes
}

func worldOf(cfg *config.Config) (w world) {
	w = world{map[string][]netip.Prefix{}, map[netip.Addr]string{}}
	for _, s := range cfg.Sites {
		w.sites[s.Name] = s.Networks()
		if s.Box.IsValid() {
			w.boxes[s.Box] = s.Name
		}
	}
	return w
}

// side is the network that an end's media arrives from.
func (w *world) side(hop netip.Addr) srtp.Side {
	for _, networks := range w.sites {
		if slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(hop) }) {
			return srtp.Tunnel
		}
	}
	return srtp.LAN
}

// pairs are those that the media plane was told of. A leg is in one pair at a time, and goes from one to another: the
// branches of a fork have one port towards the caller's or the callees' side in common.
type pairs struct {
	generation uint64 // of the media plane, now
	first      bool   // the relay has told of all pairs since then
	adopted    bool
	told       map[uint64][2]uint64 // legs, by pair
	owner      map[uint64]uint64    // pairs, by leg
	local      map[uint64]netip.AddrPort
	agreed     map[uint64]agreement // legs whose keys are from a channel
	// tags are the generation in which a pair was first seen: its keys are of then. Those of pairs that are over stay
	// for a while, as a relay may tell of one again.
	tags map[uint64]uint64
	over []uint64
}

// agreement is a leg of the media plane in a key channel.
type agreement struct {
	site string
	leg  keys.Leg
}

// maxOver bounds how many pairs that are over are remembered.
const maxOver = 1 << 16

func newPairs() pairs {
	return pairs{
		told: map[uint64][2]uint64{}, owner: map[uint64]uint64{}, local: map[uint64]netip.AddrPort{},
		agreed: map[uint64]agreement{}, tags: map[uint64]uint64{},
	}
}

// begin notes that the media plane runs, with what it had before, or with nothing.
func (p *pairs) begin(generation uint64, adopted bool) {
	p.generation, p.adopted, p.first = generation, adopted, false
}

// forget notes that the media plane has nothing any more.
func (p *pairs) forget() {
	clear(p.told)
	clear(p.owner)
	clear(p.local)
	clear(p.agreed)
}

// tag is the generation that a pair's keys are of.
func (p *pairs) tag(id uint64, whole bool) uint64 {
	g, seen := p.tags[id]
	if seen {
		return g
	}
	g = p.generation
	if whole && !p.first && !p.adopted {
		g = 0 // none is: nothing is known of what used its keys
	}
	p.tags[id] = g
	return g
}

// set notes what the media plane has of a pair from now on. It returns what is to be agreed in key channels, and what
// not any more.
func (p *pairs) set(said *plane.Pair, agreed map[uint64]agreement) (began map[uint64]agreement, ended []agreement) {
	before := map[agreement]bool{}
	for _, a := range p.drop(said.ID) {
		before[a] = true
	}
	for i := range said.Legs {
		l := &said.Legs[i]
		if a, is := p.agreed[l.ID]; is { // it was in another pair
			before[a] = true
			delete(p.agreed, l.ID)
		}
		p.owner[l.ID], p.local[l.ID] = said.ID, l.Local
	}
	p.told[said.ID] = [2]uint64{said.Legs[0].ID, said.Legs[1].ID}
	began = map[uint64]agreement{}
	for leg, a := range agreed {
		p.agreed[leg] = a
		if !before[a] {
			began[leg] = a
		}
		delete(before, a)
	}
	return began, slices.Collect(maps.Keys(before))
}

// end notes that a pair is over. It returns what is not to be agreed in key channels any more.
func (p *pairs) end(id uint64) (ended []agreement) {
	ended = p.drop(id)
	p.over = append(p.over, id)
	if len(p.over) > maxOver {
		if _, lives := p.told[p.over[0]]; !lives {
			delete(p.tags, p.over[0])
		}
		p.over = p.over[1:]
	}
	return ended
}

// drop takes a pair out, with the legs that are not in another one by now.
func (p *pairs) drop(id uint64) (agreed []agreement) {
	for _, leg := range p.told[id] {
		if p.owner[leg] != id {
			continue
		}
		if a, is := p.agreed[leg]; is {
			agreed = append(agreed, a)
		}
		delete(p.owner, leg)
		delete(p.local, leg)
		delete(p.agreed, leg)
	}
	delete(p.told, id)
	return agreed
}

// inOrder puts pairs that end behind those that take their legs over: a stream goes on only while it is somebody's.
// legs are those of the pairs that there are. All other changes stay where they are, since a port may be another call's
// after its pair has ended.
func inOrder(changes []terminate.Change, legs map[uint64][2]uint64) []terminate.Change {
	last, pair := map[uint64]int{}, map[uint64]int{} // where a leg is set last, and a pair
	for i, c := range changes {
		if c.Pair == nil {
			continue
		}
		pair[c.ID] = i
		for e := range c.Pair.Ends {
			last[c.Pair.Ends[e].ID] = i
		}
	}
	after := map[int][]terminate.Change{}
	var out []terminate.Change
	for i, c := range changes {
		if of, is := legs[c.ID]; is && c.Pair == nil {
			behind := i
			for _, leg := range of {
				if at, taken := last[leg]; taken {
					behind = max(behind, at)
				}
			}
			if at, again := pair[c.ID]; behind > i && again && at > i {
				continue // it is set again, which takes its place
			}
			if behind > i {
				after[behind] = append(after[behind], c)
				continue
			}
		}
		out = append(append(out, c), after[i]...)
	}
	return out
}

func (p *pairs) channels() map[uint64]agreement { return maps.Clone(p.agreed) }

// Change has the media plane relay these pairs from now on; whole: and no others. The keys in them are the caller's.
func (m *Media) Change(ctx context.Context, changes []terminate.Change, whole bool) error {
	if !m.running.Load() {
		if len(changes) == 0 {
			return nil
		}
		return errors.New("relay media: the media plane does not run")
	}
	var errs []error
	there := m.plane.Pairs()
	if whole {
		listed := map[uint64]bool{}
		for _, c := range changes {
			listed[c.ID] = true
		}
		var others []terminate.Change
		for _, id := range slices.Sorted(maps.Keys(there)) {
			if !listed[id] {
				others = append(others, terminate.Change{ID: id})
			}
		}
		changes = append(others, changes...)
	}
	for _, c := range inOrder(changes, there) {
		if c.Pair == nil {
			errs = append(errs, m.remove(ctx, c.ID))
			continue
		}
		errs = append(errs, m.set(ctx, c.Pair, whole))
	}
	m.mu.Lock()
	m.pairs.first = m.pairs.first || whole
	m.mu.Unlock()
	if whole {
		m.endOthers()
	}
	return errors.Join(errs...)
}

// endOthers ends legs in key channels that no pair has: their calls ended while no daemon ran.
func (m *Media) endOthers() {
	m.mu.Lock()
	lives := map[agreement]bool{}
	for _, a := range m.pairs.agreed {
		lives[a] = true
	}
	var sites []string
	if m.wanted != nil {
		for _, b := range m.wanted.Boxes {
			sites = append(sites, b.Site)
		}
	}
	m.mu.Unlock()
	m.carrier.keepOnly(lives)
	for _, site := range sites {
		m.keepLegs(site, lives)
	}
}

// endOthersOf ends such legs of a site whose channel was made again: their calls ended while there was none. Before the
// relay has told of its calls nobody knows which these are.
func (m *Media) endOthersOf(site string) {
	m.mu.Lock()
	known, lives := m.pairs.first, map[agreement]bool{}
	for _, a := range m.pairs.agreed {
		lives[a] = true
	}
	m.mu.Unlock()
	if known {
		m.keepLegs(site, lives)
	}
}

func (m *Media) keepLegs(site string, lives map[agreement]bool) {
	l := m.channels.Link(site)
	if l == nil {
		return
	}
	legs, _, _ := l.Legs()
	for _, s := range legs {
		if !lives[agreement{site, s.Leg}] {
			l.End(s.Leg)
		}
	}
}

// remove ends a pair.
func (m *Media) remove(ctx context.Context, id uint64) error {
	m.mu.Lock()
	ended := m.pairs.end(id)
	m.mu.Unlock()
	m.disagree(ended)
	return m.plane.Remove(ctx, id)
}

// renew has legs get other keys from their key channels.
func (m *Media) renew(legs []keys.Leg) {
	bySite := map[string][]keys.Leg{}
	m.mu.Lock()
	for _, a := range m.pairs.agreed {
		if slices.Contains(legs, a.leg) {
			bySite[a.site] = append(bySite[a.site], a.leg)
		}
	}
	m.mu.Unlock()
	for site, legs := range bySite {
		if l := m.channels.Link(site); l != nil {
			l.Renew(legs)
		}
	}
}

// disagree ends legs in their key channels.
func (m *Media) disagree(all []agreement) {
	for _, a := range all {
		if l := m.channels.Link(a.site); l != nil {
			l.End(a.leg)
		}
	}
}

// set has the media plane relay a pair. One that it cannot is ended, and counted: a call without sound is better
// than one with media that nobody meant. Only where no answer came is the relay to tell of it again.
func (m *Media) set(ctx context.Context, said *terminate.Pair, whole bool) error {
	if !said.Ends[0].Remote.IsValid() || !said.Ends[1].Remote.IsValid() {
		return m.remove(ctx, said.ID) // it is not known yet where an end receives
	}
	m.mu.Lock()
	p, agreed, err := m.translate(said)
	p.Generation = m.pairs.tag(said.ID, whole)
	m.mu.Unlock()
	defer p.Wipe()
	if err == nil {
		err = m.plane.Set(ctx, p)
	}
	if err != nil {
		if errors.Is(err, process.ErrNoAnswer) || ctx.Err() != nil {
			return fmt.Errorf("relay media: %w", err)
		}
		m.log.Error("media of a call is not relayed", "pair", fmt.Sprintf("%x", said.ID), "error", err)
		m.mu.Lock()
		m.refused++
		m.mu.Unlock()
		return m.remove(ctx, said.ID)
	}

	m.mu.Lock()
	began, ended := m.pairs.set(&p, agreed)
	m.mu.Unlock()
	m.disagree(ended)
	for leg, a := range began {
		m.agree(a, suiteOf(said, leg))
	}
	return nil
}

func suiteOf(p *terminate.Pair, leg uint64) suite.Suite {
	for i := range p.Ends {
		if p.Ends[i].ID == leg {
			return p.Ends[i].Suite
		}
	}
	return 0
}

var errNoChannel = errors.New("there is no key channel")

// Where the far end still ends a leg of that name, or the channel is only being made, it is tried again for a while.
const (
	agreeTries = 40
	agreeEvery = 250 * time.Millisecond
)

// agree begins a leg in its key channel.
func (m *Media) agree(a agreement, s suite.Suite) { m.agreeAgain(a, s, agreeTries) }

func (m *Media) agreeAgain(a agreement, s suite.Suite, tries int) {
	err := errNoChannel
	if l := m.channels.Link(a.site); l != nil {
		err = l.Begin(a.leg, s)
	}
	switch {
	case err == nil, errors.Is(err, keys.ErrBegun):
	case (errors.Is(err, keys.ErrEnding) || errors.Is(err, errNoChannel)) && tries > 0:
		time.AfterFunc(agreeEvery, func() {
			m.mu.Lock()
			lives := slices.Contains(slices.Collect(maps.Values(m.pairs.agreed)), a)
			m.mu.Unlock()
			if lives {
				m.agreeAgain(a, s, tries-1)
			}
		})
	default:
		m.log.Error("no keys are agreed for a call", "site", a.site, "leg", a.leg, "error", err)
	}
}

// channelLeg names a leg in the key channel: both boxes know the two addresses and ports of it, and no others.
func channelLeg(a, b netip.AddrPort) (l keys.Leg) {
	if b.Compare(a) < 0 {
		a, b = b, a
	}
	sum := sha256.Sum256([]byte("ringway media " + a.String() + " " + b.String()))
	copy(l[:], sum[:])
	return l
}

// translate says a pair in the media plane's words. Its keys are copies.
func (m *Media) translate(said *terminate.Pair) (p plane.Pair, agreed map[uint64]agreement, err error) {
	p.ID, agreed = said.ID, map[uint64]agreement{}
	for i := range said.Ends {
		e := &said.Ends[i]
		l := &p.Legs[i]
		*l = plane.Leg{
			ID: e.ID, Call: e.Call, Side: m.world.side(e.Hop), Local: e.Local, Remote: e.Remote, ClearSRTCP: e.ClearSRTCP,
			Payloads: payloadsOf(said), Quota: quotaOf(said.Kind, e), DSCP: dscpOf(said.Kind),
		}
		if !e.Mux {
			l.LocalRTCP = netip.AddrPortFrom(e.Local.Addr(), e.Local.Port()+1)
			l.RemoteRTCP = e.RemoteRTCP
			if !l.RemoteRTCP.IsValid() {
				l.RemoteRTCP = netip.AddrPortFrom(e.Remote.Addr(), e.Remote.Port()+1) // RFC 3550 section 11
			}
		}
		if site := m.world.boxes[e.Remote.Addr()]; e.Keying == offer.Channel {
			if site == "" {
				return p, agreed, fmt.Errorf("its keys are to be agreed with %s, which is no box of a site", e.Remote.Addr())
			}
			l.Keying, l.Channel = plane.Channel, channelLeg(e.Local, e.Remote)
			agreed[l.ID] = agreement{site, l.Channel}
			continue
		}
		if err := keyed(l, e); err != nil {
			return p, agreed, err
		}
	}
	return p, agreed, nil
}

// keyed gives a leg the keys that its session descriptions have agreed.
func keyed(l *plane.Leg, e *terminate.End) error {
	switch e.Keying {
	case offer.Clear:
		l.Keying = plane.Clear
	case offer.SDES:
		l.Keying, l.Learn = plane.SDES, true
		l.Send, l.Receive = streamOf(e.Suite, e.Send), streamOf(e.Suite, e.Receive)
	case offer.DTLS:
		l.Keying, l.Learn = plane.DTLS, true
		l.Association = associationOf(e.DTLS)
	default:
		return fmt.Errorf("it is not agreed yet how an end is keyed (%s)", e.Keying)
	}
	return nil
}

func streamOf(s suite.Suite, k offer.Keys) plane.Stream {
	out := plane.Stream{Epoch: k.Epoch}
	for _, x := range k.Keys {
		out.Keys = append(out.Keys, keyOf(s, x))
	}
	return out
}

func keyOf(s suite.Suite, x sdes.Key) plane.Key {
	return plane.Key{
		Suite: s, MKI: bytes.Clone(x.MKI), Lifetime: x.Lifetime, Master: bytes.Clone(x.Master), Salt: bytes.Clone(x.Salt),
	}
}

func associationOf(a *offer.Association) *plane.Association {
	if a == nil {
		return nil
	}
	out := &plane.Association{
		Epoch: a.Epoch, LocalID: a.LocalID, RemoteID: a.RemoteID, Offered: len(a.Remote) == 0, Suites: dtls.Suites(),
	}
	switch {
	case out.Offered:
	case a.Role == offer.Passive:
		out.Role = dtls.Server
	case a.Role == offer.Active:
		out.Role = dtls.Client
	}
	for _, f := range a.Remote {
		out.Fingerprints = append(out.Fingerprints, f.String())
	}
	return out
}

// payloadsOf are the payload types that may pass: those of either end, since an end may send what the other one offered
// (RFC 3264 section 6.1).
func payloadsOf(p *terminate.Pair) srtp.Payloads {
	var types []uint8
	for i := range p.Ends {
		for _, c := range p.Ends[i].Codecs {
			types = append(types, c.PayloadType)
		}
	}
	if len(types) == 0 {
		for t := range uint8(128) {
			types = append(types, t)
		}
	}
	return srtp.NewPayloads(types...)
}

// Quotas are bounds on what a phone that was taken over may send, not on what a codec sends: twice the most of it.
const (
	videoPackets = 2500    // a second
	videoBytes   = 2500000 // 20 Mbit/s
	burst        = time.Second
	leastPtime   = 10 // ms
	rtpHeader    = 12
)

// bytesPerSecond are the most that codecs send, by name; of those that are not here, otherRate.
var bytesPerSecond = map[string]int{
	"pcmu": 8000, "pcma": 8000, "g722": 8000, "g729": 1000, "g726-32": 4000, "gsm": 1650, "ilbc": 1900, "opus": 64000,
}

const otherRate = 64000

// quotaOf bounds what an end may send.
func quotaOf(kind sdp.Kind, e *terminate.End) srtp.Quota {
	if kind == sdp.Video {
		return srtp.Quota{Packets: videoPackets, Bytes: videoBytes, Burst: burst}
	}
	ptime := leastPtime
	if e.Ptime > 0 {
		ptime = max(1, min(e.Ptime, leastPtime))
	}
	rate := 0
	for _, c := range e.Codecs {
		name := strings.ToLower(c.Name)
		r, known := bytesPerSecond[name]
		switch {
		case name == "l16":
			r = 2 * int(c.Clock) * max(1, int(c.Channels))
		case name == "telephone-event", name == "cn":
			continue
		case !known:
			r = otherRate
		}
		rate = max(rate, r)
	}
	if rate == 0 {
		rate = otherRate
	}
	packets := 2 * 1000 / ptime
	return srtp.Quota{Packets: packets, Bytes: 2*rate + packets*rtpHeader, Burst: burst}
}

// expedited is EF (RFC 3246).
const expedited = 46

// dscpOf is what packets leave with; the firewall gives them that of their class.
func dscpOf(sdp.Kind) uint8 { return expedited }
