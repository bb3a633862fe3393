package keychannel

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"ringway/srtp/keys"
	"ringway/srtp/keys/channel"
)

// site is a running channel to a far box.
type site struct {
	Site
	channels *Channels
	device   string
	own      channel.PublicKey
	keys     keys.Config
	link     *channel.Link

	ctx    context.Context // from start to stop
	cancel context.CancelFunc
	done   sync.WaitGroup

	// Guarded by Channels.mu.
	stopped bool
	serving int
	failure error // why the last connection ended, or was not made
}

// maxServing bounds the connections of a site that prove their identity at the same time: the one in use, the one that
// takes its place, and one that never will.
const maxServing = 3

func (c *Channels) newSite(wanted Settings, w Site) (*site, error) {
	s := &site{
		Site: w, channels: c, device: wanted.Device, own: wanted.Own.Public(), keys: wanted.Keys,
	}
	state := c.options.Plane.State(w.Name)
	config := channel.LinkConfig{
		Keys: wanted.Keys, Channel: channel.Config{Own: wanted.Own, Far: w.Far}, Media: s, State: state,
		Save: func(state []byte) { c.options.Plane.Save(w.Name, state) },
	}
	var err error
	if s.link, err = channel.NewLink(config); errors.Is(err, keys.ErrState) && state != nil {
		// Another version's, or damaged: its calls end, and others begin.
		c.options.Log.Warn("key channel: what the daemon before has left is of no use", "site", w.Name, "error", err)
		config.State = nil
		s.link, err = channel.NewLink(config)
	}
	clear(state)
	if err == nil {
		for _, a := range s.link.Wanted() { // the daemon before may have ended before all of it was done
			s.Carry(a)
		}
	}
	return s, err
}

// same says whether a running channel is what is wanted.
func (s *site) same(wanted Settings, w Site) bool {
	k := wanted.Keys
	return s.Site == w && s.device == wanted.Device && s.own == wanted.Own.Public() &&
		s.keys.Every == k.Every && s.keys.Packets == k.Packets && s.keys.Lifetime == k.Lifetime &&
		s.keys.MaxLegs == k.MaxLegs
}

// Carry passes on what the link wants of the media plane.
func (s *site) Carry(a keys.Action) { s.channels.options.Plane.Carry(s.Name, a) }

func (s *site) start(ctx context.Context) {
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.done.Go(func() { _ = s.link.Run(s.ctx) })
	if s.link.Dials() {
		s.done.Go(func() { s.dial(s.ctx) })
	}
}

func (s *site) stop() {
	s.channels.mu.Lock()
	s.stopped = true
	s.channels.mu.Unlock()
	s.cancel()
	s.done.Wait()
}

// forget has the media plane give up all keys of a site that is there no more, and what was kept of it.
func (s *site) forget() {
	for _, a := range s.link.Wanted() {
		a.Key.Wipe()
		a.Kind = map[keys.ActionKind]keys.ActionKind{keys.Hold: keys.Drop, keys.Use: keys.Stop}[a.Kind]
		s.Carry(a)
	}
	s.channels.options.Plane.Save(s.Name, nil)
}

// dial keeps a connection until ctx ends. The pause doubles while connections fail, with up to half of it at random
// on top, so that a hub that restarts is not called by all sites at once.
func (s *site) dial(ctx context.Context) {
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		if err := s.connect(ctx); err != nil && ctx.Err() == nil {
			s.failed(err)
		}
		if time.Since(began) > longestPause {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause + rand.N(pause/2)):
		}
		pause = min(2*pause, longestPause)
	}
}

func (s *site) connect(ctx context.Context) error {
	within, cancel := context.WithTimeout(ctx, dialTimeout)
	conn, err := s.channels.options.Network.Dial(within, s.device, s.Local, netip.AddrPortFrom(s.Remote, Port))
	cancel()
	if err != nil {
		return err
	}
	return s.link.Serve(ctx, conn)
}

// accepted serves a connection of the far box, unless too many have not proved its identity yet.
func (s *site) accepted(conn net.Conn) bool {
	c := s.channels
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.stopped || s.serving >= maxServing {
		return false
	}
	s.serving++
	s.done.Go(func() {
		err := s.link.Serve(s.ctx, conn)
		c.mu.Lock()
		s.serving--
		c.mu.Unlock()
		if s.ctx.Err() == nil {
			s.failed(err)
		}
	})
	return true
}

// failed notes why there is no connection, and logs it when it is another reason than before.
func (s *site) failed(err error) {
	c := s.channels
	c.mu.Lock()
	before := s.failure
	s.failure = err
	c.mu.Unlock()
	if before == nil || before.Error() != err.Error() {
		c.options.Log.Warn("key channel: no connection", "site", s.Name, "error", err)
	}
}

// why is the reason for a problem with the connection, in brackets.
func (s *site) why(p keys.Problem) string {
	if p.Kind != keys.Disconnected {
		return ""
	}
	s.channels.mu.Lock()
	defer s.channels.mu.Unlock()
	if s.failure == nil {
		return ""
	}
	return " (" + s.failure.Error() + ")"
}
