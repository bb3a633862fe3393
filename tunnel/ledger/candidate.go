package ledger

import "time"

// Candidates are flows that were refused and may go on. Their number is fixed: a set of four for each part of
// the hash.

const (
	candidateSets = 128
	candidateWays = 4

	candidateLife  = time.Second // a flow that was not seen for so long is forgotten
	rateKnownAfter = time.Second // then what came is its rate
	provenAfter    = 3           // packets
)

type candidate struct {
	id          uint64 // 0: free
	first, last int64
	bytes       int64
	cost        int64 // that it is known to have; 0: unknown
	packets     uint8 // counts to 255
}

type candidates [candidateSets][candidateWays]candidate

// find returns the candidate; nil if there is none.
func (c *candidates) find(id uint64, now int64) *candidate {
	set := &c[id>>32%candidateSets]
	for i := range set {
		w := &set[i]
		if w.id != id {
			continue
		}
		if now-w.last > int64(candidateLife) {
			*w = candidate{}
			return nil
		}
		return w
	}
	return nil
}

// add keeps a flow in mind, in place of one that is gone, or else of the one with fewest packets and, of
// these, the oldest: what goes on stays, however many others there are.
func (c *candidates) add(id uint64, wire, now int64) *candidate {
	set := &c[id>>32%candidateSets]
	at := &set[0]
	for i := range set {
		w := &set[i]
		if w.id == 0 || now-w.last > int64(candidateLife) {
			at = w
			break
		}
		if w.packets < at.packets || w.packets == at.packets && w.last < at.last {
			at = w
		}
	}
	*at = candidate{id: id, first: now, last: now, bytes: wire, packets: 1}
	return at
}

// addEvicted keeps a flow in mind that was in, with the cost that it is known to have.
func (c *candidates) addEvicted(id uint64, cost, now int64) {
	w := c.find(id, now)
	if w == nil {
		w = c.add(id, 0, now)
	}
	w.cost = cost
}

// observe takes in another packet. It returns what the flow costs: what came before this packet over the time
// that it took, once that is long enough, else at least assumed.
func (c *candidate) observe(assumed, wire, now int64) (cost int64) {
	if c.packets < 255 {
		c.packets++
	}
	cost = assumed
	switch {
	case now-c.first >= int64(rateKnownAfter):
		cost = bitRate(c.bytes, now-c.first)
	case c.cost > 0:
		cost = max(cost, c.cost)
	}
	c.last, c.bytes = now, c.bytes+wire
	return cost
}

func (c *candidate) proven() bool { return c.packets >= provenAfter }
