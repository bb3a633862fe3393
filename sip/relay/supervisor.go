package relay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ringway/process"
	"ringway/sip/call"
	"ringway/sip/compact"
	"ringway/sip/dialog"
	"ringway/sip/ladder"
	"ringway/sip/registrar"
	"ringway/sip/transparent"
)

// Config is what a Supervisor needs to know. RunDir, Open, Flows and Unreachable must be given.
type Config struct {
	RunDir string // of control socket and pid file; made 0700

	// Listen opens the sockets that TPROXY delivers to, and Open fresh ones to send from, in the network
	// namespace that is theirs.
	Listen func() ([]process.File, error)
	Open   func(kind transparent.SocketKind) (fd int, err error)

	// Flows takes what calls need. With whole, no other flow is needed than those that are opened, no other place, and no
	// other pair of media. Keys of pairs are its own to overwrite (WipeKeys).
	Flows func(ctx context.Context, changes []Change, whole bool) error
	// Reports hears of abuse, and takes the records of calls that have ended.
	Reports func([]Report, []Ended)
	// Unreachable hears of a server that did not answer a connection.
	Unreachable func(server netip.AddrPort)

	Program string   // file that the process runs; empty: this process's own binary
	Args    []string // of the process after argv[0]; default {"calls-relay"}
	Env     []string // besides what the supervision sets
	Log     *slog.Logger
	Timing  process.Timing // zero fields: the defaults
}

// Supervisor keeps the process alive and as configured. It is a task (Run, Ready, String).
type Supervisor struct {
	cfg   Config
	log   *slog.Logger
	procs *process.Supervisor // held while the process or descriptors change

	sockets []process.File // that TPROXY delivers to; held with procs
	met     atomic.Bool    // the process of an earlier daemon was looked for; changed with procs held

	beats atomic.Uint64
	heard atomic.Int64 // when the last beat came, or the sockets were opened, by now
	now   func() time.Duration

	channels channels
	keeper   keeper

	mu       sync.Mutex          // guards what follows
	settings *Settings           // nil: no process is wanted
	phones   []registrar.Binding // as a process has told last
}

// NewSupervisor makes a supervisor; it starts and touches nothing.
func NewSupervisor(cfg Config) (*Supervisor, error) {
	if cfg.RunDir == "" || cfg.Listen == nil || cfg.Open == nil || cfg.Flows == nil || cfg.Unreachable == nil ||
		cfg.Reports == nil {
		return nil, errors.New("supervise the relay of signalling: RunDir, Listen, Open, Flows and Unreachable are required")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Args == nil {
		cfg.Args = []string{"calls-relay"}
	}
	made := time.Now()
	s := &Supervisor{cfg: cfg, log: cfg.Log, now: func() time.Duration { return time.Since(made) }}
	s.channels = channels{
		take: func(ctx context.Context, changes []Change) error { return s.take(ctx, changes, false) },
		log:  cfg.Log, byPID: map[int]*served{},
	}
	var err error
	s.procs, err = process.New(process.Config{
		Kind: kindOf(cfg.Args, cfg.Env), RunDir: cfg.RunDir, Timing: cfg.Timing, Log: cfg.Log, Program: cfg.Program,
		Check: s.check, Revive: s.revive,
		Requests: map[string]process.Handler{
			typeSockets:     s.handleSockets,
			typeFlows:       s.handleFlows,
			typeChannel:     s.handleChannel,
			typeUnreachable: s.handleUnreachable,
			typeReports:     s.handleReports,
			typeHomer:       s.handleHomer,
		},
		Large: []string{typeFlows}, // all flows of all calls
		Events: map[string]func(*process.Message){
			typeBeat: func(*process.Message) { s.noteBeat() },
		},
	})
	return s, err
}

func (s *Supervisor) String() string { return "calls" }

// Run watches the process until ctx ends. Then it detaches: the process goes on, for the next daemon to adopt.
func (s *Supervisor) Run(ctx context.Context) error {
	var tasks sync.WaitGroup
	tasks.Go(func() { s.dropStale(ctx) })
	defer s.close()
	defer s.channels.close()
	defer tasks.Wait()
	return s.procs.Run(ctx)
}

// maxKept is how long the sockets of a process that is silent wait for the next one. What waits in them would arrive
// late, when sender and receiver have gone on without it.
const maxKept = time.Second

func (s *Supervisor) noteBeat() {
	s.beats.Add(1)
	s.heard.Store(int64(s.now()))
}

// stale reports whether what waits in the sockets is too old.
func (s *Supervisor) stale() bool { return s.now()-time.Duration(s.heard.Load()) > maxKept }

// dropStale closes the sockets when the process is dead and no other one came in time, until ctx ends: whoever has
// connected meanwhile is told so.
func (s *Supervisor) dropStale(ctx context.Context) {
	tick := time.NewTicker(maxKept / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if s.procs.Current() == nil && s.stale() {
				s.procs.Lock()
				s.closeStale()
				s.procs.Unlock()
			}
		}
	}
}

// closeStale closes sockets in which something may wait for too long. The next process gets new ones.
func (s *Supervisor) closeStale() {
	if s.sockets != nil && s.procs.Current() == nil && s.stale() {
		s.closeSockets()
		s.log.Warn("sockets for signalling are closed: nobody has read them in time", "limit", maxKept)
	}
}

func (s *Supervisor) close() {
	s.procs.Close()
	s.procs.Lock()
	defer s.procs.Unlock()
	s.closeSockets()
}

func (s *Supervisor) closeSockets() {
	process.CloseFiles(s.sockets...)
	s.sockets = nil
}

// Beats counts how often a process has said that it works. running is false if there is none.
func (s *Supervisor) Beats() (n uint64, running bool) {
	i := s.procs.Current()
	return s.beats.Load(), i != nil && !i.Dead()
}

// PID is the process's id; 0 if there is none.
func (s *Supervisor) PID() int {
	if i := s.procs.Current(); i != nil {
		return i.PID()
	}
	return 0
}

// Restarts counts the processes that replaced one that ended.
func (s *Supervisor) Restarts() int { return s.procs.Restarts() }

// Configure has a process run with these settings. It adopts the one of an earlier daemon, if there is one.
func (s *Supervisor) Configure(ctx context.Context, settings Settings) error {
	s.procs.Lock()
	defer s.procs.Unlock()
	s.want(&settings)
	if s.procs.Closed() {
		return errors.New("the supervisor was closed")
	}
	if err := s.meet(ctx); err != nil {
		return err
	}
	i := s.procs.Current()
	if i != nil && settings.Media != nil && i.Hello.Minor < minorMedia {
		s.log.Warn("the relay of an earlier build is replaced: it relays no media", "pid", i.PID(), "build", i.Hello.Build)
		s.procs.Watch(nil)
		s.procs.End(i)
		i = nil
	}
	if i != nil {
		return i.Ask(ctx, process.Request{Type: typeSettings, Body: settings}, nil)
	}
	return s.start(ctx, settings)
}

func (s *Supervisor) want(settings *Settings) {
	s.mu.Lock()
	s.settings = settings
	s.mu.Unlock()
	s.procs.Want(settings != nil)
}

// wanted is what the process is to be told; nil: none is wanted.
func (s *Supervisor) wanted() *Settings {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settings
}

// revive starts a process in place of one that ended.
func (s *Supervisor) revive(ctx context.Context) error {
	settings := s.wanted()
	if settings == nil {
		return nil
	}
	return s.start(ctx, *settings)
}

// start starts a process on the sockets that are there, or on new ones.
func (s *Supervisor) start(ctx context.Context, settings Settings) (err error) {
	s.closeStale()
	if s.sockets == nil {
		if s.sockets, err = s.openFiles(); err != nil {
			return err
		}
		s.heard.Store(int64(s.now()))
	}
	i, err := s.procs.Launch(ctx, s.sockets, raise)
	if err != nil {
		return err
	}
	if err := s.bringUp(ctx, i, settings); err != nil {
		s.procs.End(i)
		return err
	}
	return nil
}

// niceness of the process: signalling is little work that others wait for, and a process that gets no processor for
// 200 ms is taken for one that hangs.
const niceness = -10

// raise gives the thread that the process is made from its niceness.
func raise() (missing []string) {
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, niceness); err != nil {
		missing = append(missing, fmt.Sprintf("nice %d: %v", niceness, err))
	}
	return missing
}

// openFiles opens what the process holds for its whole life.
func (s *Supervisor) openFiles() ([]process.File, error) {
	files, err := s.cfg.Listen()
	if err != nil {
		return nil, fmt.Errorf("open the sockets for signalling: %w", err)
	}
	journal, err := openJournal(s.cfg.RunDir)
	if err != nil {
		process.CloseFiles(files...)
		return nil, err
	}
	return append(files, journal), nil
}

func (s *Supervisor) bringUp(ctx context.Context, i *process.Instance, settings Settings) error {
	if err := s.restore(ctx, i); err != nil {
		s.log.Warn("calls whose media is relayed are not handed over", "error", err)
	}
	if err := i.Ask(ctx, process.Request{Type: typeSettings, Body: settings, Long: true}, nil); err != nil {
		return err
	}
	if err := s.restorePhones(ctx, i); err != nil {
		s.log.Warn("registrations are not handed over: phones are known again when they register", "error", err)
	}
	if err := s.procs.Record(i); err != nil {
		return err
	}
	s.watch(i)
	return nil
}

func (s *Supervisor) watch(i *process.Instance) {
	s.noteBeat()
	s.procs.Watch(i)
	s.log.Info("signalling is read", "pid", i.PID(), "build", i.Hello.Build, "adopted", i.Adopted,
		"sandbox", i.Hello.Sandbox)
	if missing := slices.Concat(i.Missing, i.Hello.Missing); len(missing) > 0 {
		s.log.Warn("the relay of signalling runs with less than it should have", "pid", i.PID(), "missing", missing)
	}
}

// meet adopts the process of an earlier daemon, once.
func (s *Supervisor) meet(ctx context.Context) error {
	if s.met.Load() {
		return nil
	}
	if err := s.adopt(ctx); err != nil {
		return err
	}
	s.met.Store(true)
	return nil
}

// Met reports whether the process of an earlier daemon was looked for. Until then, one may read signalling that this
// daemon does not know of.
func (s *Supervisor) Met() bool { return s.met.Load() }

// adopt takes over the process of an earlier daemon, with its sockets.
func (s *Supervisor) adopt(ctx context.Context) error {
	i, files, err := s.procs.Adopt(ctx)
	if err != nil || i == nil {
		return err
	}
	reason := ""
	switch {
	case i.Hello.Major != ProtocolMajor:
		reason = "it speaks another protocol"
	case len(files) == 0:
		reason = "it has no sockets"
	}
	if reason != "" {
		s.log.Warn("the relay of an earlier daemon is replaced: "+reason, "pid", i.PID(), "build", i.Hello.Build,
			"protocol", i.Hello.Major, "supported", ProtocolMajor)
		process.CloseFiles(files...)
		s.procs.End(i)
		return nil
	}
	s.sockets = files
	s.watch(i)
	return nil
}

// Stop ends the process, also one that this daemon never adopted.
func (s *Supervisor) Stop(ctx context.Context) error {
	s.procs.Lock()
	defer s.procs.Unlock()
	s.want(nil)
	if s.procs.Closed() {
		return nil
	}
	if err := s.meet(ctx); err != nil {
		return err
	}
	if i := s.procs.Current(); i != nil {
		s.procs.Watch(nil)
		s.procs.End(i)
	}
	s.closeSockets()
	s.keeper.forget()
	s.met.Store(false)
	s.procs.RemoveFiles()
	return removeJournal(s.cfg.RunDir)
}

func removeJournal(runDir string) error {
	if err := os.Remove(journalPath(runDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the journal of calls: %w", err)
	}
	return nil
}

// Quit ends a process that no daemon supervises.
func Quit(ctx context.Context, runDir string) error {
	_, err := process.Quit(ctx, kindOf(nil, nil), runDir, process.Timing{})
	return errors.Join(err, removeJournal(runDir))
}

// check is the health check: a request that goes through the locks of what the process is there for.
func (s *Supervisor) check(ctx context.Context, i *process.Instance) error {
	return i.Ask(ctx, process.Request{Type: typeStatus}, nil)
}

// Stats asks the process for its counters.
func (s *Supervisor) Stats(ctx context.Context) (st Stats, err error) {
	err = s.ask(ctx, process.Request{Type: typeStatus}, &st)
	return st, err
}

// Calls asks the process for the calls that it follows, and for those that ended lately.
func (s *Supervisor) Calls(ctx context.Context) ([]call.Call, error) {
	var a callsAnswer
	err := s.ask(ctx, process.Request{Type: typeCalls, Long: true}, &a)
	return a.Calls, err
}

// Phones asks the process for the registrations that it knows. The next process is told of them.
func (s *Supervisor) Phones(ctx context.Context) ([]registrar.Binding, error) {
	var a phonesAnswer
	if err := s.ask(ctx, process.Request{Type: typePhones, Long: true}, &a); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phones = slices.Clone(a.Phones)
	return a.Phones, nil
}

// restorePhones tells a process which registrations the one before knew.
func (s *Supervisor) restorePhones(ctx context.Context, i *process.Instance) error {
	s.mu.Lock()
	phones := s.phones
	s.mu.Unlock()
	if len(phones) == 0 {
		return nil
	}
	return i.Ask(ctx, process.Request{Type: typeKnown, Body: phonesAnswer{phones}, Long: true}, nil)
}

// Ladder asks the process for the messages of a call, by a leg's id or a Call-ID; nil: nothing is kept of it.
func (s *Supervisor) Ladder(ctx context.Context, id string) (*ladder.View, error) {
	var a ladderAnswer
	err := s.ask(ctx, process.Request{Type: typeLadder, Body: ladderRequest{id}, Long: true}, &a)
	return a.View, err
}

// Bans asks the process for the bans and throttles that are in force.
func (s *Supervisor) Bans(ctx context.Context) ([]Standing, error) {
	var a bansAnswer
	err := s.ask(ctx, process.Request{Type: typeBans, Long: true}, &a)
	return a.Bans, err
}

// Unban lifts the bans of an address, and reports whether there was one.
func (s *Supervisor) Unban(ctx context.Context, address netip.Addr) (bool, error) {
	var a unbanAnswer
	err := s.ask(ctx, process.Request{Type: typeUnban, Body: unbanRequest{address}}, &a)
	return a.Found, err
}

// Forget has the process forget what it keeps of a number.
func (s *Supervisor) Forget(ctx context.Context, number string) error {
	return s.ask(ctx, process.Request{Type: typeForget, Body: forgetRequest{number}}, nil)
}

// Reset has the process end connections, since the line that they go over is gone. It returns how many there were.
func (s *Supervisor) Reset(ctx context.Context, connections []Ends) (n int, err error) {
	var a resetAnswer
	err = s.ask(ctx, process.Request{Type: typeReset, Body: resetRequest{connections}}, &a)
	return a.Reset, err
}

// Media tells the process that packets of these flows were seen, so that their calls are not idle.
func (s *Supervisor) Media(ctx context.Context, flows []dialog.Flow) error {
	return s.ask(ctx, process.Request{Type: typeMedia, Body: mediaRequest{flows}}, nil)
}

func (s *Supervisor) ask(ctx context.Context, r process.Request, answer any) error {
	i := s.procs.Current()
	if i == nil {
		return errors.New("no process reads signalling")
	}
	return i.Ask(ctx, r, answer)
}

// maxSockets is how many sockets one answer brings.
const maxSockets = 16

// handleSockets opens fresh sockets for the process.
func (s *Supervisor) handleSockets(_ context.Context, m *process.Message) (process.Reply, error) {
	var r socketsRequest
	if err := m.Decode(&r); err != nil {
		return process.Reply{}, err
	}
	if r.Count < 1 || r.Count > maxSockets {
		return process.Reply{}, fmt.Errorf("%d sockets (allowed: 1 to %d)", r.Count, maxSockets)
	}
	if t := r.Kind.Transport; t != transparent.UDP && t != transparent.TCP {
		return process.Reply{}, fmt.Errorf("sockets of transport %d (allowed: UDP and TCP)", uint8(t))
	}
	var files []process.File
	for range r.Count {
		fd, err := s.cfg.Open(r.Kind)
		if err != nil {
			process.CloseFiles(files...)
			return process.Reply{}, err
		}
		files = append(files, process.File{Name: "egress", FD: fd})
	}
	return process.Reply{Files: files, After: func() { process.CloseFiles(files...) }}, nil
}

func (s *Supervisor) handleFlows(ctx context.Context, m *process.Message) (process.Reply, error) {
	var head flowsHead
	if err := m.Decode(&head); err != nil {
		return process.Reply{}, err
	}
	changes, err := unpackChanges(m.Attached())
	clear(m.Attached()) // it may have keys
	if err != nil {
		return process.Reply{}, err
	}
	return process.Reply{}, s.take(ctx, changes, head.Whole)
}

// take keeps what is for the next process, and gives the rest to the daemon.
func (s *Supervisor) take(ctx context.Context, changes []Change, whole bool) error {
	s.keeper.take(changes, whole)
	return s.cfg.Flows(ctx, changes, whole)
}

// handleChannel gives the process a faster way for its flows.
func (s *Supervisor) handleChannel(_ context.Context, m *process.Message) (process.Reply, error) {
	fd, err := s.channels.open(m.Sender.PID)
	if err != nil {
		return process.Reply{}, err
	}
	return process.Reply{
		Files: []process.File{{Name: "channel", FD: fd}}, After: func() { process.Close(fd) },
	}, nil
}

// handleHomer opens a socket to the Homer server of the settings, and to no other one.
func (s *Supervisor) handleHomer(_ context.Context, m *process.Message) (process.Reply, error) {
	var r homerRequest
	if err := m.Decode(&r); err != nil {
		return process.Reply{}, err
	}
	if settings := s.wanted(); settings == nil || settings.Homer.Server != r.Server || !r.Server.IsValid() {
		return process.Reply{}, fmt.Errorf("%s is not the Homer server", r.Server)
	}
	fd, err := OpenHomer(r.Server)
	if err != nil {
		return process.Reply{}, err
	}
	return process.Reply{
		Files: []process.File{{Name: "homer", FD: fd}}, After: func() { process.Close(fd) },
	}, nil
}

func (s *Supervisor) handleReports(_ context.Context, m *process.Message) (process.Reply, error) {
	var r reportsRequest
	if err := compact.Decode(m.Attached(), &r); err != nil {
		return process.Reply{}, fmt.Errorf("decode reports and records: %w", err)
	}
	if len(r.Reports) > maxReports || len(r.Records) > maxRecordsAtOnce {
		return process.Reply{}, fmt.Errorf("%d reports and %d records (allowed: %d and %d)",
			len(r.Reports), len(r.Records), maxReports, maxRecordsAtOnce)
	}
	s.cfg.Reports(r.Reports, r.Records)
	return process.Reply{}, nil
}

func (s *Supervisor) handleUnreachable(_ context.Context, m *process.Message) (process.Reply, error) {
	var r unreachableRequest
	if err := m.Decode(&r); err != nil {
		return process.Reply{}, err
	}
	s.cfg.Unreachable(r.Server)
	return process.Reply{}, nil
}
