// Package keychannel keeps the channels over which this box and those of sites agree the keys of media between them
// (package srtp/keys/channel): a TCP connection to each site that has an identity, inside the voice tunnel, which one
// end of the two dials. What the channels agree is carried out by the media plane.
//
// Three things keep everybody else out: the sockets are bound to the voice tunnel's device, a connection is taken from
// the far box's own address alone, and its first frame has to prove the far end's identity.
package keychannel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/appliance/task"
	"ringway/firewall"
	"ringway/srtp/keys"
	"ringway/srtp/keys/channel"
)

// Name is the component's name, and that of its section of the status.
const Name = "key_channel"

// Port is the TCP port of key channels, on boxes' own voice addresses.
const Port = firewall.KeyChannelPort

// Pauses between two attempts to dial: the first, and the longest after failures.
const (
	firstPause   = 500 * time.Millisecond
	longestPause = 8 * time.Second
	dialTimeout  = 4 * time.Second
)

// Site is a far box.
type Site struct {
	Name string
	Far  channel.PublicKey
	// Local and Remote are the boxes' own voice addresses, of one family.
	Local, Remote netip.Addr
}

// Settings are what the component is to do. Without an identity there are no channels.
type Settings struct {
	Own    *channel.Identity
	Device string // of the voice tunnel
	Sites  []Site
	Keys   keys.Config // of every site alike
}

// Plane is the media plane, as the channels see it. Carry may neither block nor call a Link: see channel.Media. Save
// holds a site's state for the next daemon, in memory alone; State is what it holds.
type Plane interface {
	Carry(site string, a keys.Action)
	Save(site string, state []byte)
	State(site string) []byte
}

// Network opens sockets that are bound to a device, of the namespace of the daemon.
type Network interface {
	Listen(ctx context.Context, device string, local netip.AddrPort) (net.Listener, error)
	Dial(ctx context.Context, device string, local netip.Addr, remote netip.AddrPort) (net.Conn, error)
}

// Options are what a Channels needs.
type Options struct {
	Log     *slog.Logger
	Plane   Plane
	Network Network // nil: the machine's
	// Began is told of each site that has a Link from now on, with what the daemon before has left in it; nil: nobody is.
	// It must not block.
	Began func(site string)
}

// Channels is the component.
type Channels struct {
	options Options
	again   task.Signal // what is wanted may have changed, or a listener has failed

	mu        sync.Mutex // guards what follows
	wanted    Settings
	sites     map[string]*site
	listeners map[netip.Addr]*listener // by own address
	problems  []problem.Problem        // of listeners
	strangers uint64
}

// New makes the component; it opens nothing.
func New(o Options) *Channels {
	if o.Network == nil {
		o.Network = machine{}
	}
	return &Channels{
		options: o, again: task.NewSignal(), sites: map[string]*site{}, listeners: map[netip.Addr]*listener{},
	}
}

// Name is the component's name.
func (c *Channels) Name() string { return Name }

// Follow does nothing: the component of media says what is wanted, by Set.
func (c *Channels) Follow(*config.Config) {}

// Set says what is wanted from now on. It does not block.
func (c *Channels) Set(s Settings) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted = s
	c.again.Raise()
}

// Link is that of a site; nil: there is none.
func (c *Channels) Link(name string) *channel.Link {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.sites[name]; s != nil {
		return s.link
	}
	return nil
}

// Up says whether keys can be exchanged with a site now.
func (c *Channels) Up(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sites[name]
	return s != nil && s.link.Up()
}

// Run keeps the channels until ctx ends. What they have agreed stays with the media plane.
func (c *Channels) Run(ctx context.Context, ready func()) error {
	defer c.end()
	return c.again.Loop(ctx, ready, c.look)
}

// look begins and ends what has to be. Only Run's goroutine changes the maps.
func (c *Channels) look(ctx context.Context) {
	c.mu.Lock()
	wanted := c.wanted
	c.mu.Unlock()
	if wanted.Own == nil {
		wanted.Sites = nil
	}
	problems := c.follow(ctx, wanted)
	problems = append(problems, c.listen(ctx, wanted)...)

	c.mu.Lock()
	defer c.mu.Unlock()
	c.problems = problems
}

// follow has a running site for each that is wanted.
func (c *Channels) follow(ctx context.Context, wanted Settings) (problems []problem.Problem) {
	for name, s := range c.snapshot() {
		i := slices.IndexFunc(wanted.Sites, func(w Site) bool { return w.Name == name })
		if i >= 0 && s.same(wanted, wanted.Sites[i]) {
			continue
		}
		s.stop()
		c.mu.Lock()
		delete(c.sites, name)
		c.mu.Unlock()
		if i < 0 && wanted.Own != nil { // without an identity there are no channels for now: what was agreed stays
			s.forget()
		}
	}
	for _, w := range wanted.Sites {
		if c.snapshot()[w.Name] != nil {
			continue
		}
		s, err := c.newSite(wanted, w)
		if err != nil {
			problems = append(problems, problem.Problem{
				Subject: w.Name, Severity: problem.Critical, Text: "key channel: " + err.Error(),
				Action: "report this with the log; calls that require SRTP with this site are refused meanwhile",
			})
			continue
		}
		c.mu.Lock()
		c.sites[w.Name] = s
		c.mu.Unlock()
		s.start(ctx)
		if c.options.Began != nil {
			c.options.Began(w.Name)
		}
	}
	return problems
}

func (c *Channels) snapshot() map[string]*site {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[string]*site, len(c.sites))
	for name, s := range c.sites {
		all[name] = s
	}
	return all
}

// listener accepts connections on an own address.
type listener struct {
	net.Listener
	device string
	failed bool // guarded by Channels.mu
	done   sync.WaitGroup
}

// listen has a listener on each own address that some site dials.
func (c *Channels) listen(ctx context.Context, wanted Settings) (problems []problem.Problem) {
	locals := map[netip.Addr]bool{}
	for _, s := range c.snapshot() {
		if !s.link.Dials() {
			locals[s.Local] = true
		}
	}
	c.mu.Lock()
	var closing []*listener
	for a, l := range c.listeners {
		if !locals[a] || l.device != wanted.Device || l.failed {
			closing = append(closing, l)
			delete(c.listeners, a)
		}
	}
	c.mu.Unlock()
	for _, l := range closing {
		l.Close()
		l.done.Wait()
	}
	for a := range locals {
		c.mu.Lock()
		open := c.listeners[a] != nil
		c.mu.Unlock()
		if open {
			continue
		}
		inner, err := c.options.Network.Listen(ctx, wanted.Device, netip.AddrPortFrom(a, Port))
		if err != nil {
			problems = append(problems, problem.Problem{
				Subject: a.String(), Severity: problem.Critical, Text: fmt.Sprintf("key channel: listen: %v", err),
				Action: "end the program that uses the port, or wait until the voice tunnel is there",
			})
			time.AfterFunc(longestPause, c.again.Raise)
			continue
		}
		l := &listener{Listener: inner, device: wanted.Device}
		c.mu.Lock()
		c.listeners[a] = l
		c.mu.Unlock()
		l.done.Go(func() { c.accept(l) })
	}
	return problems
}

// accept hands each connection to the site that it is from.
func (c *Channels) accept(l *listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				c.options.Log.Warn("key channel: a listener has failed, and is opened again", "error", err)
				c.mu.Lock()
				l.failed = true
				c.mu.Unlock()
				time.AfterFunc(firstPause, c.again.Raise)
			}
			return
		}
		if s := c.from(conn); s == nil || !s.accepted(conn) {
			conn.Close()
			c.mu.Lock()
			c.strangers++
			c.mu.Unlock()
		}
	}
}

// from is the site whose box a connection is from, and which is to dial; nil: none.
func (c *Channels) from(conn net.Conn) *site {
	remote, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	for _, s := range c.snapshot() {
		if s.Remote == remote.Addr().Unmap() && !s.link.Dials() {
			return s
		}
	}
	return nil
}

func (c *Channels) end() {
	c.mu.Lock()
	listeners := c.listeners
	c.listeners = map[netip.Addr]*listener{}
	sites := c.sites
	c.sites = map[string]*site{}
	c.mu.Unlock()
	for _, l := range listeners {
		l.Close()
		l.done.Wait()
	}
	for _, s := range sites {
		s.stop()
	}
}

// Problems lists what is wrong with listeners and channels.
func (c *Channels) Problems() []problem.Problem {
	c.mu.Lock()
	all := slices.Clone(c.problems)
	c.mu.Unlock()
	for name, s := range c.snapshot() {
		_, found, at := s.link.Legs()
		now := time.Now()
		for _, p := range found {
			all = append(all, problem.Problem{
				Subject: name, Severity: severity(p), Text: "key channel: " + p.String() + s.why(p),
				Since: now.Add(-time.Duration(at - p.Since)), Action: action(p),
			})
		}
	}
	slices.SortStableFunc(all, func(a, b problem.Problem) int { return strings.Compare(a.Subject, b.Subject) })
	return all
}

// severity is critical where media is lost, or a call that requires keys cannot be set up.
func severity(p keys.Problem) problem.Severity {
	if p.InUse {
		return problem.Warning
	}
	return problem.Critical
}

func action(p keys.Problem) string {
	switch p.Kind {
	case keys.Disconnected:
		return "see that the site's voice tunnel is up, and that both boxes have each other's identity"
	case keys.Unacknowledged, keys.Refused:
		return "see the other box's log; the call goes on under the key before, if it has one"
	case keys.Exhausted:
		return "hang up and call again, once the key channel is up"
	}
	return ""
}
