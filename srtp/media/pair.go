package media

import "ringway/srtp/stream"

// pair is a call's media as the control side knows it.
type pair struct {
	flows [2]*flow // from the first leg and from the second
}

// joined makes the pair of two legs, which goes on from the pairs that they were in before, by leg.
func joined(before map[uint64]*pair, a, b Leg, now int64) *pair {
	ends := [2]*end{newEnd(a, endOf(before, a.ID)), newEnd(b, endOf(before, b.ID))}
	p := &pair{}
	for i := range p.flows {
		from, to := ends[i], ends[1-i]
		s := &state{
			receiver: from.Receiver, sender: to.Sender,
			media: newBucket(from.Quota, now), control: newBucket(controlQuota, now),
			untoldHeard: true, untoldSent: true, // the first packet makes an update
		}
		if was := flowOf(before, from.ID); was != nil && was.from.Side == from.Side && was.to.ID == to.ID &&
			was.state.receiver == s.receiver && was.state.sender == s.sender && was.from.Quota == from.Quota {
			s = was.state
		}
		p.flows[i] = &flow{from: from, to: to, state: s}
	}
	for i := range p.flows {
		p.flows[i].answers = p.flows[1-i].state.sender
	}
	return p
}

// moves says whether a stream of an earlier pair goes on on another side's thread.
func moves(before map[uint64]*pair, next *pair) bool {
	was := map[wiper]Side{}
	for _, p := range before {
		for _, f := range p.flows {
			for _, s := range f.streams() {
				was[s] = f.from.Side
			}
		}
	}
	for _, f := range next.flows {
		for _, s := range f.streams() {
			if side, is := was[s]; is && side != f.from.Side {
				return true
			}
		}
	}
	return false
}

// flowOf is the flow from a leg; nil is none.
func flowOf(pairs map[uint64]*pair, leg uint64) *flow {
	p := pairs[leg]
	if p == nil {
		return nil
	}
	for _, f := range p.flows {
		if f.from.ID == leg {
			return f
		}
	}
	return nil
}

func endOf(pairs map[uint64]*pair, leg uint64) *end {
	if f := flowOf(pairs, leg); f != nil {
		return f.from
	}
	return nil
}

// wiper is a stream.
type wiper interface{ Wipe() }

var _, _ wiper = (*stream.Receiver)(nil), (*stream.Sender)(nil)

// streams are those of a leg.
func (l *Leg) streams() (all []wiper) {
	if l.Receiver != nil {
		all = append(all, l.Receiver)
	}
	if l.Sender != nil {
		all = append(all, l.Sender)
	}
	return all
}

// streams are those of a flow.
func (f *flow) streams() (all []wiper) {
	if f.state.receiver != nil {
		all = append(all, f.state.receiver)
	}
	if f.state.sender != nil {
		all = append(all, f.state.sender)
	}
	return all
}

// streams are those of both flows; of nil there are none.
func (p *pair) streams() []wiper {
	if p == nil {
		return nil
	}
	return append(p.flows[0].streams(), p.flows[1].streams()...)
}
