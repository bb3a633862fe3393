package plane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ringway/boottime"
	"ringway/process"
	"ringway/process/priority"
	"ringway/srtp/dtls"
	"ringway/srtp/keys"
	"ringway/srtp/media"
	"ringway/srtp/suite"
)

// Config is what a Supervisor needs to know. RunDir and Open must be given.
type Config struct {
	RunDir string // of control socket, pid file and count; made 0700

	// Open opens the sockets, in the network namespace that is theirs: Open of this package.
	Open func() ([]process.File, error)
	// Certificate returns the certificate of DTLS with its key as PEM (dtls.NewCertificate), which is overwritten after
	// use. It is the one whose fingerprint is in our descriptions. nil: no DTLS.
	Certificate func() ([]byte, error)
	Threads     int // that forward, of each side; 0: one for each processor, up to four

	// DTLS hears what has become of an association, Moved where a leg has learned that it is sent to. Both are called by
	// the connection's reader: they must not block, nor call the Supervisor.
	DTLS  func(Handshake)
	Moved func(leg uint64, rtp, rtcp netip.AddrPort)
	// Spent hears which legs of key channels are sent nothing until they get other keys: it is not known how far a
	// process that has ended had used theirs. It must not block, nor call the Supervisor.
	Spent func([]keys.Leg)

	Program string   // file that the process runs; empty: this process's own binary
	Args    []string // of the process after argv[0]; default {"media-plane"}
	Env     []string // besides what the supervision sets
	Log     *slog.Logger
	Timing  process.Timing
}

// Handshake is what has become of an association.
type Handshake struct {
	Leg         uint64
	Epoch       uint32
	Established bool
	Suite       suite.Suite // of an established one
	Failure     string      // of another one
	Fingerprint bool        // the peer's certificate is not the one that was announced
	Closed      bool        // the peer has ended it
}

// Supervisor keeps the process alive, and all that the next one needs, in memory alone. It is a task (Run, Ready,
// String). Its methods are safe for concurrent use.
type Supervisor struct {
	cfg         Config
	log         *slog.Logger
	procs       *process.Supervisor // held while the process, its descriptors or pairs change. Order: procs, mu
	certificate string              // its fingerprint; empty: no DTLS

	files []process.File // held with procs, as what follows
	met   bool           // the process of an earlier daemon was looked for

	mu       sync.Mutex // guards what follows; held for moments
	book     *book
	kept     map[string][]byte // that the process is to keep
	wanted   bool
	adopting bool
	early    []func()      // what was heard while the process's book was on its way
	beat     time.Duration // since boot: the process had told everything; 0: there was none since the last start
	lift     bool
	missing  []string
	unlocked string
	alarm    Alarm
	counted  int // in the file
}

// Alarm is what calls have lost.
type Alarm struct {
	// Lost is how many pairs lost their keys, because daemon and process ended at once, or a process could not take them
	// up; Silent how many legs are sent nothing, as it is not known how far their keys were used.
	Lost   int       `json:"lost,omitempty"`
	Silent int       `json:"silent,omitempty"`
	At     time.Time `json:"at,omitzero"` // of the latest
}

// New makes a supervisor; it starts and touches nothing.
func New(cfg Config) (*Supervisor, error) {
	if cfg.RunDir == "" || cfg.Open == nil {
		return nil, errors.New("supervise the media process: RunDir and Open are required")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Args == nil {
		cfg.Args = []string{"media-plane"}
	}
	if cfg.DTLS == nil {
		cfg.DTLS = func(Handshake) {}
	}
	if cfg.Moved == nil {
		cfg.Moved = func(uint64, netip.AddrPort, netip.AddrPort) {}
	}
	cfg.Timing = cfg.Timing.WithDefaults()
	s := &Supervisor{cfg: cfg, log: cfg.Log, book: newBook()}
	var err error
	s.procs, err = process.New(process.Config{
		Kind: kindOf(cfg.Args, cfg.Env), RunDir: cfg.RunDir, Timing: cfg.Timing, Log: cfg.Log, Program: cfg.Program,
		Check: s.check, Revive: s.revive, Last: s.askLast,
		Events: map[string]func(*process.Message){
			eventChanged: s.hearChanged, eventDTLS: s.hearDTLS, eventMoved: s.hearMoved, eventBeat: s.hearBeat,
		},
	})
	return s, err
}

// readFingerprint reads whose certificate it is.
func (s *Supervisor) readFingerprint() error {
	pem, err := s.pem()
	if err != nil || pem == nil {
		return err
	}
	defer clear(pem)
	c, err := dtls.ParseCertificate(pem)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.certificate = c.Fingerprint(nil).String()
	return nil
}

func (s *Supervisor) pem() ([]byte, error) {
	if s.cfg.Certificate == nil {
		return nil, nil
	}
	pem, err := s.cfg.Certificate()
	if err != nil {
		return nil, fmt.Errorf("certificate of DTLS: %w", err)
	}
	return pem, nil
}

func (s *Supervisor) String() string { return "media" }

// Ready is closed when media is forwarded for the first time.
func (s *Supervisor) Ready() <-chan struct{} { return s.procs.Ready() }

// Run watches the process until ctx ends. Then it detaches: media goes on, for the next daemon to adopt.
func (s *Supervisor) Run(ctx context.Context) error {
	var tasks sync.WaitGroup
	tasks.Go(func() { s.keepCount(ctx) })
	defer s.close()
	defer tasks.Wait()
	return s.procs.Run(ctx)
}

func (s *Supervisor) close() {
	s.procs.Close()
	s.procs.Lock()
	defer s.procs.Unlock()
	process.CloseFiles(s.files...)
	s.files = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	s.book.wipe()
	s.book = newBook()
	s.forgetKept()
}

var errClosed = errors.New("the supervisor of media was closed")

// Start has a process run. It adopts the one of an earlier daemon, with its calls, if there is one.
func (s *Supervisor) Start(ctx context.Context) error {
	s.procs.Lock()
	defer s.procs.Unlock()
	if s.procs.Closed() {
		return errClosed
	}
	if err := s.readFingerprint(); err != nil {
		return err
	}
	if err := s.meet(ctx); err != nil {
		return err
	}
	s.want(true)
	if s.procs.Current() != nil {
		return nil
	}
	return s.start(ctx)
}

func (s *Supervisor) want(wanted bool) {
	s.mu.Lock()
	s.wanted = wanted
	s.mu.Unlock()
	s.procs.Want(wanted)
}

// revive starts a process in place of one that ended.
func (s *Supervisor) revive(ctx context.Context) error {
	s.mu.Lock()
	wanted := s.wanted
	s.silenceLocked()
	s.mu.Unlock()
	if !wanted {
		return nil
	}
	return s.start(ctx)
}

// start starts a process on the sockets that are there, or on new ones.
func (s *Supervisor) start(ctx context.Context) (err error) {
	if s.files == nil {
		if s.files, err = s.cfg.Open(); err != nil {
			return fmt.Errorf("open the sockets for media: %w", err)
		}
	}
	i, err := s.procs.Launch(ctx, s.files, nil)
	if err != nil {
		return err
	}
	if err := s.bringUp(ctx, i); err != nil {
		s.procs.End(i)
		return err
	}
	return nil
}

// bringUp gives the book to a process, which goes on with it.
func (s *Supervisor) bringUp(ctx context.Context, i *process.Instance) error {
	s.allow(i)
	pem, err := s.pem()
	if err != nil {
		return err
	}
	defer clear(pem)
	s.mu.Lock()
	s.book.resume()
	r := startRequest{Threads: s.cfg.Threads, Certificate: len(pem), State: *s.book.state()}
	text, err := json.Marshal(r)
	secrets := packKeys(bytes.Clone(pem), r.State.keys())
	// From here on it may use the keys. If it ends before it says so, the next one must not begin where it began.
	s.book.given()
	s.mu.Unlock()
	defer clear(secrets)
	if err != nil {
		return fmt.Errorf("encode the book: %w", err)
	}

	var a startAnswer
	request := process.Request{
		Type: typeStart, Body: json.RawMessage(text), Attached: secrets, Within: s.cfg.Timing.Ready,
	}
	if err := i.Ask(ctx, request, &a); err != nil {
		return err
	}
	if err := s.procs.Refresh(ctx, i); err != nil {
		return err
	}
	if err := s.procs.Record(i); err != nil {
		return err
	}
	s.mu.Lock()
	for _, id := range a.Lost {
		s.book.remove(id).commit(s.book)
	}
	s.mu.Unlock()
	s.lose(len(a.Lost), 0)
	s.keepAgain(ctx, i)
	s.watch(i)
	return nil
}

// allow sets the limits that a process cannot set itself.
func (s *Supervisor) allow(i *process.Instance) {
	unlimited := &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	// The process says itself whether it could lock its memory.
	_ = unix.Prlimit(i.PID(), unix.RLIMIT_MEMLOCK, unlimited, nil)
	lift, missing := scheduled(i.PID()).SetLimits(s.cfg.Timing.HealthEvery)
	i.Missing = append(append(i.Missing, missing...), priority.KillLast(i.PID())...)
	s.mu.Lock()
	s.lift = lift
	s.mu.Unlock()
}

// scheduled is the process with its forwarding threads.
func scheduled(pid int) priority.Process {
	return priority.Process{
		PID: pid, Threads: []string{media.ThreadLAN, media.ThreadTunnel}, Replace: "ringway upgrade-planes media",
	}
}

// watch makes a process that forwards the one that is watched.
func (s *Supervisor) watch(i *process.Instance) {
	i.Missing = append(i.Missing, scheduled(i.PID()).Raise()...)
	var a about
	_ = i.DecodeHello(&a) // it is decoded already, or would not be here
	s.mu.Lock()
	s.missing, s.unlocked = slices.Concat(i.Missing, i.Hello.Missing), a.Unlocked
	s.beat = boottime.Now()
	pairs, missing := len(s.book.pairs), s.missing
	s.mu.Unlock()
	s.procs.Watch(i)
	s.log.Info("media is forwarded", "pid", i.PID(), "build", i.Hello.Build, "adopted", i.Adopted, "pairs", pairs,
		"sandbox", i.Hello.Sandbox)
	if len(missing) > 0 {
		s.log.Warn("the media process runs with less than it should have", "pid", i.PID(), "missing", missing)
	}
	if a.Unlocked != "" {
		s.log.Warn("keys of media may be swapped out", "pid", i.PID(), "error", a.Unlocked)
	}
}

// check is the health check: a request that goes through the locks of what the process is there for, and its threads.
func (s *Supervisor) check(ctx context.Context, i *process.Instance) error {
	if err := i.Ask(ctx, process.Request{Type: typePing}, nil); err != nil {
		return err
	}
	s.mu.Lock()
	lift := s.lift
	s.mu.Unlock()
	if lift {
		scheduled(i.PID()).RaiseLowered(ctx)
	}
	return nil
}

// What may have been used without our knowledge.
const (
	// maxGap is how long a process may have been silent before it ended without doubt about what it has used: some
	// beats.
	maxGap = 4 * beatEvery
	// maxUnknown is how many packets it may have sealed since. Of what package stream skips for each source (2^13), an
	// account may lack 2^12 packets, and one packet's gap of 3000; it skips 2^10 for a source that is not in the account.
	maxUnknown = 1 << 9
)

// silenceLocked takes keys out of use that the process may have used further than what the next one skips: it had told
// nothing for long. Such a leg is sent nothing until it gets another key.
func (s *Supervisor) silenceLocked() {
	if s.beat == 0 {
		return
	}
	gap := boottime.Now() - s.beat
	s.beat = 0
	if gap <= maxGap {
		return
	}
	c, silent := &change{}, 0
	var spent []keys.Leg
	for _, p := range s.book.pairs {
		for i, l := range p.legs {
			if l.out == nil || gap.Seconds()*float64(p.legs[1-i].Quota.Packets) <= maxUnknown {
				continue
			}
			silent++
			l.out.Spent = true
			if l.Keying != Channel {
				c.drop(l.out, true)
			} else {
				spent = append(spent, l.Channel)
			}
			l.out = nil
		}
	}
	c.commit(s.book)
	if silent > 0 {
		s.alarm.Silent, s.alarm.At = s.alarm.Silent+silent, time.Now()
		s.log.Error("legs are sent nothing until they get other keys: it is not known how far theirs were used",
			"legs", silent, "silence", gap.Round(time.Millisecond))
	}
	if len(spent) > 0 && s.cfg.Spent != nil {
		s.cfg.Spent(spent)
	}
}

// lose counts pairs that lost their keys.
func (s *Supervisor) lose(pairs, pid int) {
	if pairs == 0 {
		return
	}
	s.mu.Lock()
	s.alarm.Lost, s.alarm.At = s.alarm.Lost+pairs, time.Now()
	s.mu.Unlock()
	s.log.Error("calls have lost the keys of their media", "pairs", pairs, "pid", pid)
}

// Set joins two legs, or changes what is known of them: what arrives on one leaves by the other. Pairs that either leg
// was in before end. Streams of the same leg and epoch go on. The keys are copied.
//
// An error means that nothing has changed, unless it is process.ErrNoAnswer: then the process may forward the pair.
// Where none runs at this moment, the next one does.
func (s *Supervisor) Set(ctx context.Context, p Pair) error {
	secrets := packKeys(nil, p.keys())
	defer clear(secrets)
	return s.change(ctx, func() (*change, error) {
		if s.certificate == "" && (p.Legs[0].Keying == DTLS || p.Legs[1].Keying == DTLS) {
			return nil, errors.New("there is no certificate for DTLS")
		}
		return s.book.set(&p)
	}, process.Request{Type: typeSet, Body: setRequest{p}, Attached: secrets})
}

// Remove ends a pair: when it returns, its keys are overwritten. It succeeds where there is none.
func (s *Supervisor) Remove(ctx context.Context, pair uint64) error {
	return s.change(ctx, func() (*change, error) { return s.book.remove(pair), nil },
		process.Request{Type: typeRemove, Body: removeRequest{pair}})
}

// Keys carries out an action of the key channel. Its key is overwritten. For Hold, that there is no error is what the
// far end may be told (keys.Exchange.Held).
func (s *Supervisor) Keys(ctx context.Context, a keys.Action) error {
	defer a.Key.Wipe()
	x := action{Kind: a.Kind, Leg: a.Leg, Fresh: a.Fresh, Key: Key{
		Suite: a.Key.Suite, MKI: bytes.Clone(a.Key.MKI[:]), Lifetime: a.Lifetime,
		Master: a.Key.Master(), Salt: a.Key.Salt(),
	}}
	secrets := packKeys(nil, x.keys())
	defer clear(secrets)
	return s.change(ctx, func() (*change, error) {
		c, _, err := s.book.act(&x)
		return c, err
	}, process.Request{Type: typeKeys, Body: x, Attached: secrets})
}

// change changes the book, and has the process do the same. The book is first, so that the next process has it, too.
func (s *Supervisor) change(ctx context.Context, what func() (*change, error), r process.Request) error {
	s.procs.Lock()
	defer s.procs.Unlock()
	if s.procs.Closed() {
		return errClosed
	}
	if err := ctx.Err(); err != nil { // it took long to be the one: nothing was asked for yet
		return err
	}
	s.mu.Lock()
	if !s.wanted {
		s.mu.Unlock()
		return errors.New("media is not forwarded: the process was not started")
	}
	c, err := what()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if i := s.procs.Current(); i != nil {
		err = i.Ask(ctx, r, nil)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil, errors.Is(err, process.ErrLost):
		err = nil // the next process has it
	case !errors.Is(err, process.ErrNoAnswer) && ctx.Err() == nil:
		c.undo()
		return err
	}
	c.commit(s.book)
	s.book.given()
	return err
}

// Generation is what pairs have to be set with (Pair.Generation). It is another one when nothing is left of an earlier
// process: then calls need other keys.
func (s *Supervisor) Generation() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.book.generation
}

// Pairs are those that there are, with their legs. After an adoption some may be of calls that nobody knows any more.
func (s *Supervisor) Pairs() map[uint64][2]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[uint64][2]uint64, len(s.book.pairs))
	for id, p := range s.book.pairs {
		all[id] = [2]uint64{p.legs[0].ID, p.legs[1].ID}
	}
	return all
}

// Locals are the addresses and ports of ours that pairs have.
func (s *Supervisor) Locals() (all []netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.book.legs {
		all = append(all, l.Local)
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return all
}

// Ports are those of the sockets, for the rules of the firewall (package srtp/media/rules). They stay as long as the
// process or this supervisor is there. Before Start there are none.
func (s *Supervisor) Ports() (Ports, error) {
	s.procs.Lock()
	defer s.procs.Unlock()
	return portsOf(s.files)
}

// Stop ends the process, also one that this daemon never adopted, and all media.
func (s *Supervisor) Stop(ctx context.Context) error {
	s.procs.Lock()
	defer s.procs.Unlock()
	s.want(false)
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
	process.CloseFiles(s.files...)
	s.files, s.met = nil, false
	s.mu.Lock()
	s.book.wipe()
	s.book, s.beat, s.counted = newBook(), 0, 0
	s.forgetKept()
	s.mu.Unlock()
	s.procs.RemoveFiles()
	return removeCount(s.cfg.RunDir)
}

// Quit ends a process that no daemon supervises.
func Quit(ctx context.Context, runDir string) error {
	_, err := process.Quit(ctx, kindOf(nil, nil), runDir, process.Timing{})
	return errors.Join(err, removeCount(runDir))
}
