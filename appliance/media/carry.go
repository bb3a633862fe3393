package media

import (
	"context"
	"errors"
	"sync"
	"time"

	"ringway/appliance/task"
	"ringway/process"
	"ringway/srtp/keys"
	"ringway/srtp/keys/channel"
	"ringway/srtp/plane"
)

// carrier has the media plane do what key channels want, in their order, and keep their state. It is a
// keychannel.Plane.
type carrier struct {
	m    *Media
	wake task.Signal

	mu    sync.Mutex // guards what follows
	queue []order
	seen  map[seenKey]uint64 // how many packets each key had at the last look
	again map[string]bool    // sites whose orders are carried out again soon
}

// order is something to do: an action, a state to keep, legs that need another key, or to say that everything before is
// done.
type order struct {
	site   string
	action *keys.Action
	state  []byte
	spent  []keys.Leg
	done   chan struct{}
}

type seenKey struct {
	agreement
	mki  keys.MKI
	sent bool
}

func newCarrier(m *Media) carrier {
	return carrier{m: m, wake: task.NewSignal(), seen: map[seenKey]uint64{}, again: map[string]bool{}}
}

// keptBy is the name by which the process keeps a site's state.
func keptBy(site string) string { return "channel " + site }

// Carry queues an action.
func (c *carrier) Carry(site string, a keys.Action) { c.put(order{site: site, action: &a}) }

// Save queues a state, in place of one that is queued and was not followed by an action: what an action does has to be
// in the state that is kept before it is done.
func (c *carrier) Save(site string, state []byte) { c.put(order{site: site, state: state}) }

// Spent queues that legs need another key.
func (c *carrier) Spent(legs []keys.Leg) { c.put(order{spent: legs}) }

func (c *carrier) put(o order) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.queue); n > 0 && o.state != nil && c.queue[n-1].state != nil && c.queue[n-1].site == o.site {
		clear(c.queue[n-1].state)
		c.queue[n-1] = o
	} else {
		c.queue = append(c.queue, o)
	}
	c.wake.Raise()
}

// State is what the process has kept of a site, when it has what was saved before.
func (c *carrier) State(site string) []byte {
	saved := make(chan struct{})
	c.put(order{done: saved})
	select {
	case <-saved:
	case <-time.After(requestLimit):
	}
	ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
	defer cancel()
	b, err := c.m.plane.Kept(ctx, keptBy(site))
	if err != nil {
		c.m.log.Warn("what was agreed with a site is not known any more: its calls get no other keys", "site", site,
			"error", err)
	}
	return b
}

// run carries orders out until ctx ends.
func (c *carrier) run(ctx context.Context) {
	_ = c.wake.Loop(ctx, func() {}, func(ctx context.Context) {
		c.mu.Lock()
		queue := c.queue
		c.queue = nil
		c.mu.Unlock()
		for _, o := range queue {
			c.do(ctx, o)
		}
	})
}

func (c *carrier) do(ctx context.Context, o order) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	switch {
	case o.done != nil:
		close(o.done)
		return
	case o.spent != nil:
		c.m.renew(o.spent)
		return
	case o.action == nil:
		defer clear(o.state)
		if err := c.m.plane.Keep(ctx, keptBy(o.site), o.state); err != nil && c.m.running.Load() {
			c.m.log.Warn("the state of a key channel is not kept", "site", o.site, "error", err)
		}
		return
	}
	a := o.action
	mki := a.Key.MKI
	err := c.m.plane.Keys(ctx, *a) // which overwrites the key
	link := c.m.channels.Link(o.site)
	if err != nil && c.m.running.Load() {
		c.m.log.Warn("the media plane did not carry out what a key channel wants", "site", o.site, "what", a.Kind,
			"leg", a.Leg, "error", err)
	}
	switch {
	case err != nil && (errors.Is(err, process.ErrNoAnswer) || ctx.Err() != nil):
		c.carryAgain(o.site, *a)
	case link == nil:
	case a.Kind == keys.Hold && err == nil:
		link.Held(a.Leg, mki)
	case a.Kind == keys.Hold:
		link.NotHeld(a.Leg, mki)
	case a.Kind == keys.Use && err == nil:
		link.Sent(a.Leg, mki)
	}
}

// carryAgain has what a process was too busy for carried out again after a moment: a key that is not used, or not held,
// would have its leg silent for as long as the call is up.
func (c *carrier) carryAgain(site string, a keys.Action) {
	if a.Kind == keys.Drop || a.Kind == keys.Stop { // no later word has it done
		time.AfterFunc(againAfter, func() { c.Carry(site, a) })
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.again[site] {
		return
	}
	c.again[site] = true
	time.AfterFunc(againAfter, func() {
		c.mu.Lock()
		delete(c.again, site)
		c.mu.Unlock()
		if link := c.m.channels.Link(site); link != nil && c.m.running.Load() {
			for _, a := range link.Wanted() { // what is done already changes nothing
				c.Carry(site, a)
			}
		}
	})
}

// begin forgets what another process had counted.
func (c *carrier) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.seen)
}

// counted tells the channels how far the keys of their legs were used since the last look.
func (c *carrier) counted(legs []plane.LegStats, agreed map[uint64]agreement) {
	bySite := map[string][]channel.Count{}
	add := func(k seenKey, now uint64) {
		if n := c.since(k, now); n > 0 {
			one := channel.Count{Leg: k.leg, MKI: k.mki, Opened: !k.sent, Packets: n}
			bySite[k.site] = append(bySite[k.site], one)
		}
	}
	for i := range legs {
		l := &legs[i]
		a, is := agreed[l.ID]
		if !is || c.m.channels.Link(a.site) == nil {
			continue
		}
		if mki, ok := mkiOf(l.SendMKI); ok {
			add(seenKey{a, mki, true}, l.Sealed)
		}
		for text, opened := range l.Opened {
			if mki, ok := mkiOf(text); ok {
				add(seenKey{a, mki, false}, opened)
			}
		}
	}
	lives := map[agreement]bool{}
	for _, a := range agreed {
		lives[a] = true
	}
	c.keepOnly(lives)
	for site, counts := range bySite {
		if link := c.m.channels.Link(site); link != nil {
			link.Count(counts)
		}
	}
}

// since is how many of a count are new. A process that takes the place of another one counts from 0.
func (c *carrier) since(k seenKey, now uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.seen[k]
	c.seen[k] = now
	if now < before {
		return now
	}
	return now - before
}

// keepOnly forgets counts of legs that are over.
func (c *carrier) keepOnly(lives map[agreement]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.seen {
		if !lives[k.agreement] {
			delete(c.seen, k)
		}
	}
}
