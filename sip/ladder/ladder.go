// Package ladder keeps the latest SIP messages of each call in memory and draws them. It takes only what package
// privacy has made safe to keep. It is pure: times are arguments, and nothing is written anywhere.
package ladder

import (
	"container/list"
	"net/netip"
	"slices"
	"time"

	"ringway/sip/privacy"
)

// Limits bound what is kept, in bytes, with what each call and message costs beside its text.
type Limits struct {
	Total int // of all calls
	Call  int // of one call
}

// Defaults are limits for a branch: about 6,000 messages of 1.2 KiB, and 200 of one call.
func Defaults() Limits { return Limits{Total: 8 << 20, Call: 256 << 10} }

// What a message and a call cost beside their text: the structs, and their part of slice, list and map.
const (
	messageCost = 128
	callCost    = 512
)

// Message is one SIP message on its way between two hops.
type Message struct {
	At        time.Time
	From, To  netip.AddrPort
	Transport string // UDP, TCP, TLS
	Text      privacy.Text
}

func (m *Message) cost() int { return messageCost + m.Text.Len() }

// Call is what is kept of one call.
type Call struct {
	ID       string // Call-ID
	Messages []Message
	// Missing is how many messages are not kept, and After how many messages come before the gap.
	Missing, After int
}

// call is a Call under way. The first messages, which set it up, stay; of the later ones the oldest goes.
type call struct {
	id            string
	first, latest []Message
	size          [2]int // in bytes, of first and latest
	missing       int
}

// Ring keeps the messages of the calls that were heard of most recently. It is not for several goroutines at
// once.
type Ring struct {
	limits Limits
	calls  map[string]*list.Element // of *call, by Call-ID
	order  *list.List               // the call that was silent longest first
	size   int                      // in bytes
	gone   uint64
}

// New makes an empty Ring.
func New(l Limits) *Ring {
	return &Ring{limits: l, calls: map[string]*list.Element{}, order: list.New()}
}

// Size is what all calls cost, in bytes: Limits.Total at most.
func (r *Ring) Size() int { return r.size }

// Len is how many calls there are.
func (r *Ring) Len() int { return len(r.calls) }

// Gone is how many calls had to make room for later ones.
func (r *Ring) Gone() uint64 { return r.gone }

// Add keeps a copy of a message of a call.
func (r *Ring) Add(id string, m Message) {
	e := r.calls[id]
	if e == nil {
		cost := callCost + len(id)
		if cost+m.cost() > min(r.limits.Total, r.limits.Call) {
			return
		}
		e = r.order.PushBack(&call{id: id})
		r.calls[id] = e
		r.size += cost
	}
	r.order.MoveToBack(e)

	m.Text = m.Text.Clone()
	r.size += e.Value.(*call).add(m, (r.limits.Call-callCost-len(id))/2)
	for r.size > r.limits.Total {
		r.drop(r.order.Front())
		r.gone++
	}
}

// add keeps a message, of which both halves of the call hold half bytes each. It returns by how much the call
// grew.
func (c *call) add(m Message, half int) (grown int) {
	cost := m.cost()
	switch {
	case cost > half:
		c.missing++
		return 0
	case len(c.latest) == 0 && c.missing == 0 && c.size[0]+cost <= half:
		c.first = append(c.first, m)
		c.size[0] += cost
		return cost
	}

	for c.size[1]+cost > half {
		oldest := c.latest[0].cost()
		c.latest = slices.Delete(c.latest, 0, 1)
		c.size[1] -= oldest
		grown -= oldest
		c.missing++
	}
	c.latest = append(c.latest, m)
	c.size[1] += cost
	return grown + cost
}

// Forget drops a call.
func (r *Ring) Forget(id string) {
	if e := r.calls[id]; e != nil {
		r.drop(e)
	}
}

func (r *Ring) drop(e *list.Element) {
	c := r.order.Remove(e).(*call)
	delete(r.calls, c.id)
	r.size -= callCost + len(c.id) + c.size[0] + c.size[1]
}

// Call is what is kept of a call.
func (r *Ring) Call(id string) (Call, bool) {
	e := r.calls[id]
	if e == nil {
		return Call{}, false
	}
	c := e.Value.(*call)
	return Call{
		ID:       c.id,
		Messages: slices.Concat(c.first, c.latest),
		Missing:  c.missing,
		After:    len(c.first),
	}, true
}

// Calls are the Call-IDs, the one that was heard of last first.
func (r *Ring) Calls() []string {
	all := make([]string, 0, len(r.calls))
	for e := r.order.Back(); e != nil; e = e.Prev() {
		all = append(all, e.Value.(*call).id)
	}
	return all
}
