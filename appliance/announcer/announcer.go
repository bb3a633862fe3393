// Package announcer tells the hosts of LANs which networks they have by delegated prefixes.
package announcer

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/task"
	"ringway/boottime"
	"ringway/routing"
	"ringway/routing/announce"
	"ringway/routing/dhcp6"
)

// Name is the component's name, and that of its section of the status.
const Name = "announcements"

const restartPause = 5 * time.Second

// Announcer is the component.
type Announcer struct {
	dir   string
	log   *slog.Logger
	held  func() map[string]dhcp6.Lease // by WAN
	again task.Signal

	mu      sync.Mutex // guards what follows
	wanted  map[string]announce.Content
	senders map[string]*sender // only Run's goroutine changes the map, under mu
}

type sender struct {
	*announce.Sender
	stop context.CancelFunc
	done sync.WaitGroup
}

// New returns an announcer with its files in dir. held says what was delegated.
func New(dir string, log *slog.Logger, held func() map[string]dhcp6.Lease) *Announcer {
	return &Announcer{
		dir: dir, log: log, held: held, again: task.NewSignal(),
		wanted: map[string]announce.Content{}, senders: map[string]*sender{},
	}
}

// Name is the component's name.
func (a *Announcer) Name() string { return Name }

// Follow takes up which LANs have a part of a prefix. It is called after every round, so once addresses are set.
func (a *Announcer) Follow(cfg *config.Config) {
	leases := a.held()
	wanted := map[string]announce.Content{}
	for _, l := range slices.Concat(cfg.Voice, cfg.Data) {
		if l.Subnet.WAN != "" {
			wanted[l.Device()] = contentOf(l, leases[l.Subnet.WAN])
		}
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	a.wanted = wanted
	a.again.Raise()
}

func contentOf(l routing.LAN, lease dhcp6.Lease) (c announce.Content) {
	for _, p := range l.Addresses {
		if p.Addr().Is6() && p.Bits() == 64 && !p.Addr().IsLinkLocalUnicast() {
			c.Prefixes = append(c.Prefixes,
				announce.Prefix{Prefix: p.Masked(), Preferred: announce.NoEnd, Valid: announce.NoEnd})
		}
	}
	for _, d := range lease.Prefixes {
		if own, ok := l.Subnet.In(d.Prefix); ok {
			c.Prefixes = append(c.Prefixes,
				announce.Prefix{Prefix: own.Masked(), Preferred: d.Preferred, Valid: d.Valid})
		}
	}
	if len(lease.Prefixes) > 0 {
		c.DNS = lease.DNS
	}
	return c
}

// Run keeps a sender running for each LAN that wants one, until ctx ends.
func (a *Announcer) Run(ctx context.Context, ready func()) error {
	err := a.again.Loop(ctx, ready, a.look)
	for name := range a.senders {
		a.stopSender(name)
	}
	return err
}

func (a *Announcer) look(ctx context.Context) {
	a.mu.Lock()
	wanted := a.wanted
	a.mu.Unlock()
	for name, s := range a.senders {
		if _, ok := wanted[name]; !ok {
			a.stopSender(name)
			if err := s.Farewell(); err != nil {
				a.log.Debug("no farewell to hosts", "interface", name, "error", err)
			}
		}
	}
	for name, content := range wanted {
		if a.senders[name] == nil {
			a.startSender(ctx, name)
		}
		a.senders[name].Set(content)
	}
}

func (a *Announcer) startSender(ctx context.Context, device string) {
	ctx, stop := context.WithCancel(ctx)
	s := &sender{stop: stop, Sender: &announce.Sender{
		Interface: device, File: filepath.Join(a.dir, device+".announced.json"), Log: a.log,
	}}
	a.mu.Lock()
	a.senders[device] = s
	a.mu.Unlock()
	s.done.Go(func() {
		task.Restart(ctx, restartPause, s.Run, func(err error) {
			a.log.Error("router advertisements failed, restarting", "interface", device, "error", err)
		})
	})
}

func (a *Announcer) stopSender(device string) {
	s := a.senders[device]
	s.stop()
	s.done.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.senders, device)
}

// Farewell tells all hosts that this machine is no router any more. Run must have ended.
func (a *Announcer) Farewell() {
	a.mu.Lock()
	wanted := a.wanted
	a.mu.Unlock()
	for device := range wanted {
		s := announce.Sender{Interface: device, File: filepath.Join(a.dir, device+".announced.json"), Log: a.log}
		if err := s.Farewell(); err != nil {
			a.log.Debug("no farewell to hosts", "interface", device, "error", err)
		}
	}
}

// Status is the section of the status: the LANs whose hosts are told of networks. Fields are added, never renamed.
type Status []LAN

// LAN is one LAN and its networks.
type LAN struct {
	Interface  string         `json:"interface"`
	Networks   []netip.Prefix `json:"networks,omitempty"`
	Deprecated []netip.Prefix `json:"deprecated,omitempty"` // nothing new may begin with these
}

// Status lists what is announced.
func (a *Announcer) Status() fmt.Stringer {
	a.mu.Lock()
	defer a.mu.Unlock()
	st := Status{}
	for name, content := range a.wanted {
		l := LAN{Interface: name}
		for _, p := range content.Prefixes {
			if p.Preferred > boottime.Now() {
				l.Networks = append(l.Networks, p.Prefix)
			} else {
				l.Deprecated = append(l.Deprecated, p.Prefix)
			}
		}
		st = append(st, l)
	}
	slices.SortFunc(st, func(a, b LAN) int { return strings.Compare(a.Interface, b.Interface) })
	return st
}

// String is one line of the status, empty where nothing is announced.
func (s Status) String() string {
	var lans []string
	for _, l := range s {
		text := l.Interface + " no network"
		for i, n := range slices.Concat(l.Networks, l.Deprecated) {
			if i == 0 {
				text = l.Interface + " " + n.String()
			} else {
				text += " and " + n.String()
			}
			if i >= len(l.Networks) {
				text += " (deprecated)"
			}
		}
		lans = append(lans, text)
	}
	if len(lans) == 0 {
		return ""
	}
	return "IPv6 networks announced: " + strings.Join(lans, ", ")
}
