package channel_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/keys"
	"ringway/srtp/keys/channel"
	"ringway/srtp/suite"
	"ringway/test/polltest"
)

// plane is a media plane that does what it is asked to, in a goroutine of its own.
type plane struct {
	t       *testing.T
	link    *channel.Link
	saved   []byte // belongs to whoever calls the link
	actions chan keys.Action
	done    sync.WaitGroup

	mu      sync.Mutex
	sending map[keys.Leg]keys.Key
	holding map[keys.Leg]map[keys.MKI]keys.Key
	drawn   int
}

// Carry checks that what it is asked for was saved before: the process may end at once.
func (p *plane) Carry(a keys.Action) {
	if a.Kind == keys.Hold || a.Kind == keys.Use {
		assert.True(p.t, p.wasSaved(a), "%s", a.Kind)
	}
	p.actions <- a
}

func (p *plane) save(state []byte) { p.saved = state }

// wasSaved says whether the next process would ask for the same.
func (p *plane) wasSaved(a keys.Action) bool {
	next, err := keys.Restore(keys.Config{}, p.saved, 0)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(next.Wanted(), func(b keys.Action) bool {
		return a.Kind == b.Kind && a.Leg == b.Leg && *a.Key == *b.Key
	})
}

func (p *plane) carry(a keys.Action) {
	p.mu.Lock()
	switch a.Kind {
	case keys.Hold:
		if p.holding[a.Leg] == nil {
			p.holding[a.Leg] = map[keys.MKI]keys.Key{}
		}
		p.holding[a.Leg][a.Key.MKI] = *a.Key
	case keys.Drop:
		delete(p.holding[a.Leg], a.Key.MKI)
	case keys.Use:
		p.sending[a.Leg] = *a.Key
		p.drawn++
	case keys.Stop:
		delete(p.sending, a.Leg)
	}
	p.mu.Unlock()
	switch a.Kind {
	case keys.Hold:
		p.link.Held(a.Leg, a.Key.MKI)
	case keys.Use:
		p.link.Sent(a.Leg, a.Key.MKI)
	}
}

// agrees says whether what it sends on that leg can be opened there.
func (p *plane) agrees(far *plane, leg keys.Leg) bool {
	p.mu.Lock()
	k, ok := p.sending[leg]
	p.mu.Unlock()
	far.mu.Lock()
	defer far.mu.Unlock()
	return ok && far.holding[leg][k.MKI] == k
}

// site is a Link with its media plane.
type site struct {
	*plane
	config channel.LinkConfig
}

// newSite makes a site that runs until the context ends.
func newSite(ctx context.Context, t *testing.T, own *channel.Identity, far channel.PublicKey, state []byte) *site {
	s := &site{plane: &plane{
		t: t, saved: state,
		actions: make(chan keys.Action, 1000), sending: map[keys.Leg]keys.Key{},
		holding: map[keys.Leg]map[keys.MKI]keys.Key{},
	}}
	s.config = channel.LinkConfig{
		Keys: keys.Config{Every: 10 * time.Minute}, Channel: channel.Config{Own: own, Far: far}, Media: s, State: state,
		Save: s.save,
	}
	var err error
	s.link, err = channel.NewLink(s.config)
	require.NoError(t, err)
	for _, a := range s.link.Wanted() {
		s.Carry(a)
	}
	s.done.Go(func() { _ = s.link.Run(ctx) })
	s.done.Go(func() {
		for {
			select {
			case a := <-s.actions:
				s.carry(a)
			case <-ctx.Done():
				return
			}
		}
	})
	return s
}

// serve connects two sites, and returns where their errors come.
func serve(ctx context.Context, a, b *site, one, other net.Conn) chan error {
	ended := make(chan error, 2)
	go func() { ended <- a.link.Serve(ctx, one) }()
	go func() { ended <- b.link.Serve(ctx, other) }()
	return ended
}

// TestSitesForADay: keys change every ten minutes, sessions every hour, connections come and go, one daemon is
// replaced. There is always a key that both ends have, and only the ones that have to be.
func TestSitesForADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		x, y := identities(t)
		a, b := newSite(ctx, t, x, y.Public(), nil), newSite(ctx, t, y, x.Public(), nil)
		assert.True(t, a.link.Dials())
		assert.False(t, b.link.Dials())
		one, other := net.Pipe()
		ended := serve(ctx, a, b, one, other)
		leg := keys.Leg{1, 2, 3}
		require.NoError(t, a.link.Begin(leg, suite.AEADAES128GCM))
		require.NoError(t, b.link.Begin(leg, suite.AEADAES128GCM))
		synctest.Wait()
		require.True(t, a.agrees(b.plane, leg) && b.agrees(a.plane, leg))

		packets := func(from, to *site) {
			from.mu.Lock()
			k := from.sending[leg]
			from.mu.Unlock()
			from.link.Count([]channel.Count{{Leg: leg, MKI: k.MKI, Packets: 3000}})
			to.link.Count([]channel.Count{{Leg: leg, MKI: k.MKI, Opened: true, Packets: 3000}})
		}
		for minute := range 24 * 60 {
			packets(a, b)
			packets(b, a)
			time.Sleep(time.Minute) //nolint:forbidigo // fake time
			synctest.Wait()
			switch minute % 100 {
			case 50: // dialled again before either end has found the first one dead
				one, other = net.Pipe()
				again := serve(ctx, a, b, one, other)
				synctest.Wait()
				for range 2 {
					assert.ErrorIs(t, <-ended, channel.ErrClosed)
				}
				ended = again
			case 70: // down for a while
				_ = one.Close()
				for range 2 {
					assert.ErrorIs(t, <-ended, channel.ErrClosed)
				}
			case 90:
				one, other = net.Pipe()
				ended = serve(ctx, a, b, one, other)
				synctest.Wait()
			}
			assert.True(t, a.agrees(b.plane, leg) && b.agrees(a.plane, leg), "minute %d", minute)
			_, problems, _ := a.link.Legs()
			if m := minute % 100; m > 70 && m < 90 {
				assert.NotEmpty(t, problems)
			} else {
				assert.Empty(t, problems, "minute %d", minute)
			}
		}
		assert.Greater(t, a.drawn, 100)
		assert.Less(t, a.drawn, 200)
		assert.LessOrEqual(t, len(a.holding[leg]), 3)

		a.link.End(leg)
		b.link.End(leg)
		synctest.Wait()
		assert.Empty(t, a.sending)
		assert.Empty(t, a.holding[leg])
		assert.Empty(t, b.holding[leg])
		cancel()
		<-ended
		<-ended
		a.done.Wait()
		b.done.Wait()
	})
}

// TestTheNextDaemonGoesOn: the state of a Link makes another, over TCP this time.
func TestTheNextDaemonGoesOn(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	connect := func() (net.Conn, net.Conn) {
		accepted := make(chan net.Conn, 1)
		go func() {
			c, err := listener.Accept()
			if err == nil {
				accepted <- c
			}
			close(accepted)
		}()
		one, err := net.Dial("tcp", listener.Addr().String())
		require.NoError(t, err)
		other, ok := <-accepted
		require.True(t, ok)
		return one, other
	}
	ctx, cancel := context.WithCancel(t.Context())
	x, y := identities(t)
	a := newSite(ctx, t, x, y.Public(), nil)
	first, kill := context.WithCancel(ctx)
	b := newSite(first, t, y, x.Public(), nil)
	one, other := connect()
	ended := serve(first, a, b, one, other)
	leg := keys.Leg{4}
	require.NoError(t, a.link.Begin(leg, suite.AEADAES256GCM))
	require.NoError(t, b.link.Begin(leg, suite.AEADAES256GCM))
	agreed := func() bool { return a.agrees(b.plane, leg) && b.agrees(a.plane, leg) }
	polltest.Require(t, agreed, 5*time.Second, time.Millisecond)
	before := b.sending[leg]

	state := b.link.Save()
	kill()
	for range 2 {
		err := <-ended
		assert.True(t, errors.Is(err, context.Canceled) || errors.Is(err, channel.ErrClosed), "%v", err)
	}
	b.done.Wait()
	b = newSite(ctx, t, y, x.Public(), state)
	one, other = connect()
	ended = serve(ctx, a, b, one, other)
	polltest.Require(t, agreed, 5*time.Second, time.Millisecond)
	b.mu.Lock()
	assert.Equal(t, before, b.sending[leg])
	b.mu.Unlock()
	cancel()
	<-ended
	<-ended
	a.done.Wait()
	b.done.Wait()
}

// TestAStrangerDoesNotDisturbALink: connections that fail leave the one in use alone.
func TestAStrangerDoesNotDisturbALink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		x, y := identities(t)
		stranger, err := channel.GenerateIdentity()
		require.NoError(t, err)
		a, b := newSite(ctx, t, x, y.Public(), nil), newSite(ctx, t, y, x.Public(), nil)
		one, other := net.Pipe()
		ended := serve(ctx, a, b, one, other)
		synctest.Wait()
		for range 3 {
			theirs, ours := net.Pipe()
			go func() {
				_, err := channel.Open(ctx, theirs, channel.Config{Own: stranger, Far: y.Public()})
				assert.Error(t, err)
			}()
			assert.Error(t, b.link.Serve(ctx, ours))
		}
		assert.Empty(t, ended)
		leg := keys.Leg{5}
		require.NoError(t, a.link.Begin(leg, suite.AEADAES128GCM))
		require.NoError(t, b.link.Begin(leg, suite.AEADAES128GCM))
		synctest.Wait()
		assert.True(t, a.agrees(b.plane, leg) && b.agrees(a.plane, leg))
		cancel()
		<-ended
		<-ended
		a.done.Wait()
		b.done.Wait()
	})
}
