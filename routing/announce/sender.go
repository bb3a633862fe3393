package announce

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/ndp"
	"golang.org/x/net/ipv6"

	"ringway/boottime"
	"ringway/durable"
)

// Sender sends advertisements on one device.
type Sender struct {
	Interface string
	File      string // what hosts have heard of outlives the daemon in it; empty: it does not
	Log       *slog.Logger

	once    sync.Once
	changed chan struct{}

	mu      sync.Mutex // guards what follows
	content Content
	known   Known
	saved   Known // what the file holds
}

// Intervals between advertisements to all hosts (RFC 4861, section 6.2.1 and section 10).
const (
	minInterval = 200 * time.Second
	maxInterval = 600 * time.Second
	soonest     = 3 * time.Second  // MIN_DELAY_BETWEEN_RAS
	early       = 16 * time.Second // MAX_INITIAL_RTR_ADVERT_INTERVAL
	repeats     = 3                // MAX_INITIAL_RTR_ADVERTISEMENTS, also after a change: one may be lost

	longestWait = time.Second // until the interface is looked at again
	perSecond   = 20          // answers to hosts; what is beyond waits and is lost
)

func (s *Sender) String() string { return "router advertisements to " + s.Interface }

// Set says what hosts are told from now on. It may be called before Run.
func (s *Sender) Set(c Content) {
	s.init()
	s.mu.Lock()
	same := s.content.equal(c)
	s.content = c
	s.mu.Unlock()
	if !same {
		s.raise()
	}
}

func (s *Sender) raise() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *Sender) init() {
	s.once.Do(func() {
		s.changed = make(chan struct{}, 1)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.known = recall(s.File)
		s.saved = maps.Clone(s.known)
	})
}

// Run sends until ctx ends. It says no word of farewell then: the machine goes on forwarding (Farewell).
func (s *Sender) Run(ctx context.Context) error {
	s.init()
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	for ctx.Err() == nil {
		if err := s.serve(ctx); err != nil && ctx.Err() == nil {
			s.Log.Debug("router advertisements not sent", "interface", s.Interface, "error", err)
		}
		wait(ctx, longestWait)
	}
	return nil
}

// serve works with one socket until the interface is another one, or is down.
func (s *Sender) serve(ctx context.Context) error {
	ifc, conn, err := open(s.Interface)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	var sent, next time.Time
	left := repeats
	for ctx.Err() == nil {
		if now, err := net.InterfaceByName(s.Interface); err != nil || now.Index != ifc.Index || now.Flags&net.FlagUp == 0 {
			return fmt.Errorf("%s has changed", s.Interface)
		}
		select {
		case <-s.changed:
			left, next = repeats, time.Time{}
		default:
		}
		if now := time.Now(); !now.Before(next) && now.Sub(sent) >= soonest {
			if err := s.send(conn, ifc, netip.IPv6LinkLocalAllNodes()); err != nil {
				return err
			}
			sent, next = now, now.Add(minInterval+rand.N(maxInterval-minInterval))
			if left--; left > 0 {
				next = now.Add(soonest + rand.N(early-soonest))
			}
		}
		asked, err := s.read(ctx, conn, ifc)
		if err != nil {
			return err
		}
		if asked && time.Until(next) > soonest { // by a host without an address yet
			next = time.Now()
		}
	}
	return nil
}

// open returns a socket that receives solicitations only.
func open(name string) (*net.Interface, *ndp.Conn, error) {
	ifc, err := net.InterfaceByName(name)
	if err != nil {
		return nil, nil, err
	}
	if ifc.Flags&net.FlagUp == 0 {
		return nil, nil, fmt.Errorf("%s is down", name)
	}
	conn, _, err := ndp.Listen(ifc, ndp.LinkLocal)
	if err != nil {
		return nil, nil, err
	}
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterSolicitation)
	err = errors.Join(
		conn.SetICMPFilter(&filter),
		conn.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface, true),
		conn.JoinGroup(netip.IPv6LinkLocalAllRouters()),
	)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return ifc, conn, nil
}

// send says to one host, or all, what there is. Without anything to say it sends nothing.
func (s *Sender) send(conn *ndp.Conn, ifc *net.Interface, to netip.Addr) error {
	s.mu.Lock()
	ra := s.content.Advertisement(boottime.Now(), s.known)
	err := s.save()
	s.mu.Unlock()
	if err != nil {
		s.Log.Warn("announced networks not saved for the next start", "interface", s.Interface, "error", err)
	}
	if len(ra.Options) == 0 {
		return nil
	}
	if len(ifc.HardwareAddr) == 6 {
		ra.Options = append(ra.Options, &ndp.LinkLayerAddress{Direction: ndp.Source, Addr: ifc.HardwareAddr})
	}
	return conn.WriteTo(ra, nil, to)
}

// read waits for a solicitation, but not for long, and answers it. It reports whether everybody has to be answered.
func (s *Sender) read(ctx context.Context, conn *ndp.Conn, ifc *net.Interface) (all bool, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(longestWait)); err != nil || ctx.Err() != nil {
		return false, err
	}
	m, control, from, err := conn.ReadFrom()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	// Only a neighbour can send with a hop limit of 255 (RFC 4861, section 6.1.1).
	if _, ok := m.(*ndp.RouterSolicitation); !ok || control == nil || control.HopLimit != ndp.HopLimit {
		return false, nil
	}
	wait(ctx, time.Second/perSecond)
	if !from.IsLinkLocalUnicast() {
		return true, nil
	}
	return false, s.send(conn, ifc, from)
}

// Farewell tells hosts that this machine is no router any more, and that nothing new may begin with its networks (RFC
// 4861, section 6.2.5). Run must have ended.
func (s *Sender) Farewell() error {
	s.init()
	s.mu.Lock()
	s.content = Content{}
	s.mu.Unlock()
	ifc, conn, err := open(s.Interface)
	if err != nil {
		return err
	}
	defer conn.Close()
	return s.send(conn, ifc, netip.IPv6LinkLocalAllNodes())
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// memory is the file in which Known outlives the daemon, and the boot: hosts go on.
type memory struct {
	Boot  string `json:"boot"`
	Known Known  `json:"known"`
}

// saveAfter is by how much an end has to be later before it is written: the file is on flash, and any host on the LAN
// can ask for advertisements.
const saveAfter = 15 * time.Minute

// save writes what hosts know if it matters. s.mu is held.
func (s *Sender) save() error {
	same := func(a, b time.Duration) bool { return max(a, b)-min(a, b) < saveAfter }
	if maps.EqualFunc(s.known, s.saved, same) {
		return nil
	}
	if err := remember(s.File, s.known); err != nil {
		return err
	}
	s.saved = maps.Clone(s.known)
	return nil
}

func remember(file string, k Known) error {
	if file == "" {
		return nil
	}
	boot, err := boottime.ID()
	if err != nil {
		return err
	}
	b, err := json.Marshal(memory{Boot: boot, Known: k})
	if err != nil {
		return err
	}
	return durable.WriteFile(file, b, 0o600)
}

// recall never returns nil. Of what was announced before the boot nobody knows how much life is left: the most that it
// can be.
func recall(file string) Known {
	b, err := os.ReadFile(file)
	var m memory
	if file == "" || err != nil || json.Unmarshal(b, &m) != nil || m.Known == nil {
		return Known{}
	}
	boot, err := boottime.ID()
	if err != nil || m.Boot != boot {
		for p := range m.Known {
			m.Known[p] = boottime.Now() + validLife
		}
	}
	return m.Known
}
