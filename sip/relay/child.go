package relay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ringway/process"
	"ringway/sip/terminate"
	"ringway/sip/transparent"
)

// Limits of the process.
const (
	maxOpenFiles = 16384 // two for each TCP connection, and the sockets that datagrams leave by
	memoryHard   = 1 << 30
	memorySoft   = 256 << 20
	maxBuffers   = 128 << 20 // of connections; each whose TLS is read takes 40 KiB
)

// calls are the system calls that the process needs beyond what every process does: sockets that it was given are
// bound and connected, and the journal is emptied.
var calls = []process.Call{{Number: unix.SYS_BIND}, {Number: unix.SYS_CONNECT}, {Number: unix.SYS_FTRUNCATE}}

// Main is the process `ringway calls-relay`. It returns when it is told to quit, at SIGTERM, or when it cannot
// receive any more, which is an error.
func Main(build string) error {
	s := &server{}
	child, err := process.NewChild(process.ChildOptions{
		Protocol:  process.Protocol{Major: ProtocolMajor, Minor: ProtocolMinor},
		EnvPrefix: envPrefix,
		Build:     build,
		Sandbox: process.Sandbox{
			OpenFiles: maxOpenFiles, Memory: memoryHard, SoftMemory: memorySoft, Calls: calls,
			// The journal is in memory that the whole machine shares.
			Limits: []process.Limit{{
				What:     fmt.Sprintf("files of at most %d MiB", maxJournal>>20),
				Resource: unix.RLIMIT_FSIZE, Soft: maxJournal, Max: maxJournal,
			}},
		},
		Handlers: map[string]process.Handler{
			typeSettings: s.handleSettings,
			typeStatus:   s.handleStatus,
			typeCalls:    s.handleCalls,
			typePhones:   s.handlePhones,
			typeKnown:    s.withCore(handleKnown),
			typeLadder:   s.withCore(handleLadder),
			typeBans:     s.withCore(handleBans),
			typeUnban:    s.withCore(handleUnban),
			typeForget:   s.withCore(handleForget),
			typeMedia:    s.handleMedia,
			typeReset:    s.handleReset,
			typeExport:   s.handleExport,
			typeTake:     s.handleTake,
			typeImport:   s.handleImport,
			typeRestore:  s.handleRestore,
		},
	})
	if err != nil {
		return err
	}
	s.child = child
	return child.Run(s.shut)
}

// server is the process's side of the requests.
type server struct {
	child    *process.Child
	settings atomic.Pointer[Settings]

	mu     sync.Mutex // guards what follows
	core   *core
	relay  *transparent.Relay
	cancel context.CancelFunc

	journal  *journal
	exported []transparent.Connection // to be taken by the next process
	imported []transparent.Connection // of the process before
	restored []terminate.Saved        // likewise
}

// handleSettings takes what the daemon says, at the start and whenever it changes. A daemon that says it may be
// a new one, and this process may be, so the daemon is told all flows.
func (s *server) handleSettings(_ context.Context, m *process.Message) (process.Reply, error) {
	var settings Settings
	if err := m.Decode(&settings); err != nil {
		return process.Reply{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.core == nil
	if first {
		s.core = newCore(time.Now)
		s.core.asker = newAsker(s.sendFlows, s.core.flows)
		s.core.asker.open = s.openChannel
	}
	if err := s.core.use(settings); err != nil {
		return process.Reply{}, err
	}
	if err := s.core.useHomer(settings.Homer, s.openHomer); err != nil {
		s.child.Log().Warn("messages are not sent to the Homer server", "error", err)
	}
	s.settings.Store(&settings)
	if first {
		if err := s.start(s.core); err != nil {
			return process.Reply{}, err
		}
	}
	s.core.asker.tellAll()
	if first {
		return process.Reply{}, s.child.Open()
	}
	return process.Reply{}, nil
}

// start begins to receive.
func (s *server) start(c *core) error {
	sockets, err := handedOver(s.child)
	if err != nil {
		return err
	}
	relay, err := transparent.New(transparent.Config{
		Listeners:   sockets,
		Handle:      c.handle,
		Inside:      func(a netip.Addr) bool { return s.settings.Load().inside(a) },
		Open:        s.openSockets,
		Secure:      c.security.Load,
		Unreachable: s.unreachable,
		Reserved:    reserved,
		Limits:      transparent.Limits{Memory: maxBuffers},
		Log:         s.child.Log(),
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.relay, s.cancel = relay, cancel
	s.goOn(relay)
	s.takeOver(ctx, c)
	handOver := func(ctx context.Context) { c.handOver(ctx, s.send) }
	for _, task := range []func(context.Context){c.asker.run, c.expire, s.beat, handOver, s.retryHomer} {
		s.child.Go(func() { task(ctx) })
	}
	s.child.Go(func() {
		if err := relay.Run(ctx); err != nil {
			s.child.End(fmt.Errorf("the relay of signalling ended: %w", err))
		}
	})
	return nil
}

// takeOver takes the calls that an earlier process followed, and keeps the journal from now on.
func (s *server) takeOver(ctx context.Context, c *core) {
	fd := s.child.FD(fileJournal)
	if fd == process.NoFD {
		return
	}
	j := newJournal(fd)
	legs, err := j.read()
	// Emptied before and written after: a call that a process cannot take is not there for the next one, and one that
	// it has taken is not missing until the next change.
	err = errors.Join(err, j.clear(), c.load(legs), c.restore(s.restored), c.keepOnce(j))
	s.restored = nil
	if err != nil {
		s.child.Log().Warn("not all calls of the process before are known", "error", err)
	}
	if len(legs) > 0 {
		s.child.Log().Info("calls of the process before are followed", "calls", len(legs))
	}
	s.journal = j
	s.child.Go(func() {
		c.keep(ctx, j, func(err error) { s.child.Log().Warn("calls are not kept for the next process", "error", err) })
	})
}

// shut ends the relay.
func (s *server) shut() error {
	s.mu.Lock()
	relay, cancel := s.relay, s.cancel
	s.mu.Unlock()
	if relay == nil {
		return nil
	}
	cancel()
	relay.Close()
	return nil
}

// beat tells the daemon that the loops work, as long as they do.
func (s *server) beat(ctx context.Context) {
	tick := time.NewTicker(BeatInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if s.relay.Beat() < MaxSilence {
				s.child.Push(typeBeat, struct{}{})
			}
		}
	}
}

// send asks the daemon.
func (s *server) send(ctx context.Context, r process.Request) error {
	m, err := s.child.Ask(ctx, r)
	if err != nil {
		return err
	}
	m.Close()
	return nil
}

// sendFlows tells the daemon what calls need.
func (s *server) sendFlows(ctx context.Context, r flowsRequest) error {
	packed := packChanges(nil, r.Changes)
	defer clear(packed) // it may have keys
	return s.send(ctx, process.Request{
		Type: typeFlows, Body: flowsHead{r.Whole}, Attached: packed, Within: askLimit,
	})
}

// openSockets asks the daemon for fresh sockets of a kind.
func (s *server) openSockets(ctx context.Context, kind transparent.SocketKind, n int) (fds []int, err error) {
	m, err := s.child.Ask(ctx, process.Request{
		Type: typeSockets, Body: socketsRequest{kind, min(n, maxSockets)}, Within: askLimit,
	})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	for _, f := range m.TakeFiles() {
		fds = append(fds, f.FD)
	}
	return fds, nil
}

// openHomer asks the daemon for a socket to a Homer server.
func (s *server) openHomer(server netip.AddrPort) (int, error) {
	m, err := s.child.Ask(context.Background(), process.Request{
		Type: typeHomer, Body: homerRequest{server}, Within: askLimit,
	})
	if err != nil {
		return process.NoFD, err
	}
	defer m.Close()
	files := m.TakeFiles()
	if len(files) != 1 {
		process.CloseFiles(files...)
		return process.NoFD, fmt.Errorf("the daemon sent %d sockets", len(files))
	}
	return files[0].FD, nil
}

// homerEvery is how often a Homer server that was not reached is tried again.
const homerEvery = 5 * time.Second

// retryHomer tries again to reach the Homer server, until ctx ends.
func (s *server) retryHomer(ctx context.Context) {
	tick := time.NewTicker(homerEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = s.core.useHomer(s.settings.Load().Homer, s.openHomer) // it was said when it failed first
		}
	}
}

// unreachable tells the daemon of a server that did not answer a connection.
func (s *server) unreachable(server netip.AddrPort) {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	_ = s.send(ctx, process.Request{Type: typeUnreachable, Body: unreachableRequest{server}})
}

func (s *server) handleStatus(context.Context, *process.Message) (process.Reply, error) {
	s.mu.Lock()
	c, relay := s.core, s.relay
	s.mu.Unlock()
	if c == nil || relay == nil {
		return process.Reply{}, errors.New("no settings yet")
	}
	stats := c.stats()
	transport := relay.Stats()
	stats.Transport, stats.Connections = transport.Counts, transport.Connections
	stats.Encrypted = transport.Encrypted
	return process.Reply{Body: stats}, nil
}

func (s *server) handleCalls(context.Context, *process.Message) (process.Reply, error) {
	s.mu.Lock()
	c := s.core
	s.mu.Unlock()
	if c == nil {
		return process.Reply{}, errors.New("no settings yet")
	}
	return process.Reply{Body: callsAnswer{c.calls()}}, nil
}

// withCore refuses a request as long as there are no settings.
func (s *server) withCore(handle func(c *core, m *process.Message) (any, error)) process.Handler {
	return func(_ context.Context, m *process.Message) (process.Reply, error) {
		s.mu.Lock()
		c := s.core
		s.mu.Unlock()
		if c == nil {
			return process.Reply{}, errors.New("no settings yet")
		}
		body, err := handle(c, m)
		return process.Reply{Body: body}, err
	}
}

func handleLadder(c *core, m *process.Message) (any, error) {
	var r ladderRequest
	if err := m.Decode(&r); err != nil {
		return nil, err
	}
	if v, ok := c.view(r.ID); ok {
		return ladderAnswer{&v}, nil
	}
	return ladderAnswer{}, nil
}

func handleKnown(c *core, m *process.Message) (any, error) {
	var r phonesAnswer
	if err := m.Decode(&r); err != nil {
		return nil, err
	}
	c.restorePhones(r.Phones)
	return struct{}{}, nil
}

func handleBans(c *core, _ *process.Message) (any, error) { return bansAnswer{c.standing()}, nil }

func handleUnban(c *core, m *process.Message) (any, error) {
	var r unbanRequest
	if err := m.Decode(&r); err != nil {
		return nil, err
	}
	return unbanAnswer{c.unban(r.Address)}, nil
}

func handleForget(c *core, m *process.Message) (any, error) {
	var r forgetRequest
	if err := m.Decode(&r); err != nil {
		return nil, err
	}
	c.forget(r.Number)
	return struct{}{}, nil
}

func (s *server) handlePhones(context.Context, *process.Message) (process.Reply, error) {
	s.mu.Lock()
	c := s.core
	s.mu.Unlock()
	if c == nil {
		return process.Reply{}, errors.New("no settings yet")
	}
	return process.Reply{Body: phonesAnswer{c.bindings()}}, nil
}

func (s *server) handleReset(_ context.Context, m *process.Message) (process.Reply, error) {
	var r resetRequest
	if err := m.Decode(&r); err != nil {
		return process.Reply{}, err
	}
	s.mu.Lock()
	relay := s.relay
	s.mu.Unlock()
	var a resetAnswer
	if relay != nil {
		a.Reset = relay.Reset(r.Connections)
	}
	return process.Reply{Body: a}, nil
}

func (s *server) handleMedia(_ context.Context, m *process.Message) (process.Reply, error) {
	var r mediaRequest
	if err := m.Decode(&r); err != nil {
		return process.Reply{}, err
	}
	s.mu.Lock()
	c := s.core
	s.mu.Unlock()
	if c != nil {
		c.media(r.Flows)
	}
	return process.Reply{}, nil
}
