package nft

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ringway/firewall"
)

// committer brings the kernel's copies of all dynamic sets up to date, in one transaction for what all of them have
// changed: a call opens in one set and closes in another. Its lock is held while elements are sent, and while a table
// is replaced, so that an element is either part of the new table or sent after it.
type committer struct {
	sync.Mutex
	socket *elementSocket // nil: not open
	parts  []part         // used again

	owners func() []*SetOwner
	wake   chan struct{}
	end    context.CancelFunc
	ended  chan struct{}
}

// part is what one set has changed, in a transaction.
type part struct {
	owner  *SetOwner
	round  *round
	keys   map[Key]struct{}
	add    []rawElement
	remove []rawElement
}

// retryAfter is the pause before changes are tried again that failed for want of memory.
const retryAfter = 100 * time.Millisecond

// open opens the socket, in the calling thread's network namespace, and starts the worker, if that was not done.
func (c *committer) open(owners func() []*SetOwner) (err error) {
	c.Lock()
	defer c.Unlock()
	if c.socket != nil {
		return nil
	}
	if c.socket, err = openElementSocket(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.owners, c.wake, c.end, c.ended = owners, make(chan struct{}, 1), cancel, make(chan struct{})
	go func() { defer close(c.ended); c.work(ctx) }()
	return nil
}

// port is what the kernel calls the socket.
func (c *committer) port() uint32 {
	c.Lock()
	defer c.Unlock()
	if c.socket == nil {
		return 0 // the kernel's
	}
	return c.socket.port
}

func (c *committer) close() {
	c.Lock()
	socket := c.socket
	c.socket = nil
	c.Unlock()
	if socket == nil {
		return
	}
	c.end()
	<-c.ended
	socket.close()
}

// work sends what nobody waits for, or somebody waits for elsewhere, until ctx ends.
func (c *committer) work(ctx context.Context) {
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-retry.C:
		}
		c.Lock()
		again := c.update()
		c.Unlock()
		if again {
			retry.Reset(retryAfter)
		}
	}
}

// kick has the worker send what has changed.
func (c *committer) kick() {
	select {
	case c.wake <- struct{}{}:
	default: // it is awake
	}
}

// updateNow sends what has changed in the calling goroutine, unless another one is about to.
func (c *committer) updateNow() {
	if !c.TryLock() {
		c.kick()
		return
	}
	again := c.update()
	c.Unlock()
	if again {
		c.kick()
	}
}

// update tells the kernel what has changed. It returns true if something has to be tried again. The caller holds the
// lock.
func (c *committer) update() (again bool) {
	if c.socket == nil {
		return false
	}
	c.parts = c.parts[:0]
	for _, o := range c.owners() {
		if p, changed := o.begin(); changed {
			c.parts = append(c.parts, p)
		}
	}
	if c.together(c.parts) {
		for _, p := range c.parts {
			p.owner.finish(p, nil, nil)
		}
		return false
	}
	for _, p := range c.parts {
		failed, err := p.owner.send(p.add, p.remove)
		again = p.owner.finish(p, failed, err) || again
	}
	return again
}

// together sends all parts as one transaction; false: they did not fit, or the kernel did not take them.
func (c *committer) together(parts []part) bool {
	var messages []elementMessage
	n := 0
	for _, p := range parts {
		o := p.owner
		if !o.features.Destroy || !o.features.Refresh {
			return false
		}
		messages = append(messages, o.messages(msgDestroySetElem, p.remove)...)
		messages = append(messages, o.messages(unix.NFT_MSG_NEWSETELEM, p.add)...)
		n += len(p.add) + len(p.remove)
	}
	switch {
	case len(messages) == 0:
		return true
	case n > batchElements:
		return false
	}
	return c.socket.commit(firewall.Table, messages...) == nil
}
