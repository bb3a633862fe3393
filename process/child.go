package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxConnections     = 8  // to one process
	maxWaiting         = 64 // requests of one connection that wait for their turn
	defaultMaxRequests = 64 // requests of a process in flight at once
)

var errByHand = errors.New("this command is started by ringway run, not by hand")

// ChildOptions say what a supervised process is, for the process itself. Handlers must be given.
type ChildOptions struct {
	Protocol  Protocol
	EnvPrefix string // as the Kind's
	Build     string // version of the binary; empty: the revision that Go recorded
	Sandbox   Sandbox

	// Handlers answer the daemon's requests by type, one after the other on each connection.
	Handlers map[string]Handler
	// Hello gives the kind's own fields of hello, a struct; nil: none.
	Hello func() any

	MaxRequests int // requests to the daemon in flight at once; default 64
}

// Child is the process's half: it is confined, serves the control protocol, and may ask the daemon.
type Child struct {
	options ChildOptions
	name    string
	owner   uint32
	files   []File // held for the whole life: what `fds` gives back
	pages   []pages
	hello   Hello
	log     *pushLog

	quit     chan struct{}
	quitOnce sync.Once
	ended    chan error
	term     chan os.Signal

	asking chan struct{} // a place for each request to the daemon in flight

	mu       sync.Mutex // guards what follows
	opened   bool
	listener net.Listener
	conns    map[*Conn]*caller
	hellos   uint64 // so far, of callers that answer requests

	tasks sync.WaitGroup
}

// caller is what is known of a connection.
type caller struct {
	watches bool
	answers uint64 // the number of its latest hello that said that it answers requests; 0: none did
}

// NewChild takes over what the daemon handed to this process and confines it. Whatever needs a file, a system
// call or a right that the sandbox does not grant must be done before.
func NewChild(o ChildOptions) (*Child, error) {
	// The process outlives the terminal and the daemon: neither a hang-up nor an interrupt meant for the
	// daemon's process group ends it, nor a write to a log that nobody reads any more.
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2)

	name := os.Getenv(o.EnvPrefix + envName)
	files, err := inherited(os.Getenv(o.EnvPrefix + envFiles))
	if err != nil {
		return nil, err
	}
	owner, err := strconv.ParseUint(os.Getenv(o.EnvPrefix+envOwner), 10, 32)
	if err != nil || name == "" {
		return nil, errByHand
	}
	if o.MaxRequests == 0 {
		o.MaxRequests = defaultMaxRequests
	}

	// The name that ps and top show; the program was executed as /proc/self/fd/N.
	_ = os.WriteFile("/proc/self/comm", []byte("rw-"+name), 0)
	_, _ = time.Now().Local().Zone() // reads the time zone while files can be read
	c := &Child{
		options: o, name: name, owner: uint32(owner), files: files, pages: programPages(),
		quit: make(chan struct{}), ended: make(chan error, 1), term: make(chan os.Signal, 1),
		asking: make(chan struct{}, o.MaxRequests),
		conns:  map[*Conn]*caller{},
	}
	holds, missing := o.Sandbox.enter()
	c.hello = Hello{
		Major: o.Protocol.Major, Minor: o.Protocol.Minor, Build: buildName(o.Build),
		PID: os.Getpid(), Started: time.Now().UTC(),
		Sandbox: holds, Missing: missing,
	}
	c.log = newPushLog(c.push)
	return c, nil
}

// inherited gives the descriptors their names.
func inherited(names string) ([]File, error) {
	if names == "" {
		return nil, errByHand
	}
	var files []File
	for i, n := range strings.Split(names, ",") {
		fd := firstFile + i
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return nil, fmt.Errorf("descriptor %d (%s) was not handed over: %w", fd, n, err)
		}
		unix.CloseOnExec(fd)
		files = append(files, File{Name: n, FD: fd})
	}
	return files, nil
}

func buildName(b string) string {
	if b != "" {
		return b
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, set := range info.Settings {
			if set.Key == "vcs.revision" {
				return set.Value
			}
		}
	}
	return "unknown"
}

// Log is the process's log: its records go to the daemon.
func (c *Child) Log() *slog.Logger { return c.log.Logger }

// FD is a descriptor that the process was started with; NoFD if there is none of that name. It stays the
// Child's.
func (c *Child) FD(name string) int {
	for _, f := range c.files {
		if f.Name == name {
			return f.FD
		}
	}
	return NoFD
}

// Listen makes a listener of a duplicate of an inherited socket: closing it does not remove the socket's
// file.
func (c *Child) Listen(name string) (*net.UnixListener, error) {
	f, err := AsFile(c.FD(name), name)
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, fmt.Errorf("listen on inherited %s: it was not handed over", name)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listen on inherited %s: %w", name, err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("listen on inherited %s: not a unix socket", name)
	}
	return u, nil
}

// Run serves the daemon that started the process, and after Open every later one. It returns when the process
// is told to quit, at SIGTERM (the machine goes down: no supervisor sends one), or with the error that End
// was given. shut, which may be nil, ends what the process is there for.
func (c *Child) Run(shut func() error) error {
	signal.Notify(c.term, unix.SIGTERM)
	defer signal.Stop(c.term)
	if err := c.serveStarter(); err != nil {
		return err
	}
	c.tasks.Go(func() { c.log.run(c.quit) })

	var err error
	select {
	case <-c.quit:
	case <-c.term:
	case err = <-c.ended:
	}
	c.stop()
	c.mu.Lock()
	if c.listener != nil {
		c.listener.Close()
	}
	for conn := range c.conns {
		conn.w.close()
	}
	c.mu.Unlock()
	if shut != nil {
		err = errors.Join(err, shut())
	}

	over := make(chan struct{})
	go func() { c.tasks.Wait(); close(over) }()
	select {
	case <-over:
	case <-time.After(defaultTiming.Quit / 2): // a handler that hangs: it ends with the process
	}
	return err
}

// serveStarter serves the connection that the process was started with.
func (c *Child) serveStarter() error {
	fd := c.FD(fileConnection)
	for i, f := range c.files {
		if f.Name == fileConnection {
			c.files = append(c.files[:i:i], c.files[i+1:]...)
			break
		}
	}
	if fd == NoFD {
		return errByHand
	}
	conn, err := asConn(fd)
	if err != nil {
		return fmt.Errorf("take over the daemon's connection: %w", err)
	}
	k, err := c.add(conn)
	if err != nil {
		return err
	}
	c.tasks.Go(func() {
		c.serveConn(k)
		// A daemon that died before the process did any work has left one that nobody would find.
		c.mu.Lock()
		orphan := !c.opened
		c.mu.Unlock()
		if orphan {
			c.stop()
		}
	})
	return nil
}

// Open lets later daemons in through the control socket. Call it when the process works: while one is
// replaced, only the one that works answers. It gives memory back that only the start needed.
func (c *Child) Open() error {
	l, err := c.Listen(fileControl)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.opened, c.listener = true, l
	c.mu.Unlock()
	c.tasks.Go(func() { c.accept(l) })
	releasePages(c.pages)
	return nil
}

// Go runs a task of the kind. Run waits for it, but not for good.
func (c *Child) Go(task func()) { c.tasks.Go(task) }

// Quitting is closed when the process is about to end.
func (c *Child) Quitting() <-chan struct{} { return c.quit }

// End ends the process with an error.
func (c *Child) End(err error) {
	select {
	case c.ended <- err:
	default:
	}
}

func (c *Child) stop() { c.quitOnce.Do(func() { close(c.quit) }) }

// accept lets callers in whom the kernel says to be root or the daemon's user.
func (c *Child) accept(l *net.UnixListener) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		k, err := c.admit(conn)
		if err != nil {
			c.log.Warn("control connection refused", "reason", err)
			continue
		}
		c.tasks.Go(func() { c.serveConn(k) })
	}
}

// admit authenticates a caller. One that is refused is told why.
func (c *Child) admit(conn *net.UnixConn) (*Conn, error) {
	cred, err := peerCredentials(conn)
	switch {
	case err != nil:
		err = fmt.Errorf("cannot read peer credentials: %w", err)
	case cred.Uid != 0 && cred.Uid != c.owner:
		err = fmt.Errorf("uid %d may not control this process (allowed: root, the daemon's user)", cred.Uid)
	default:
		var k *Conn
		if k, err = c.add(conn); err == nil {
			return k, nil
		}
	}
	if w, wireErr := newWire(conn, false); wireErr == nil {
		refusal := envelope{Version: c.options.Protocol.Major, Type: typeRefused, Error: err.Error()}
		_ = w.write(refusal, nil, nil, nil, sendTimeout)
	}
	conn.Close()
	return nil, err
}

// add makes a Conn of a connection; their number is bounded. It leaves conn open on error.
func (c *Child) add(conn *net.UnixConn) (*Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.conns) >= maxConnections {
		return nil, fmt.Errorf("more than %d connections", maxConnections)
	}
	k, err := newConn(conn, connOptions{
		peer: "the daemon", version: c.options.Protocol.Major, timing: defaultTiming,
		serve: c.serve, inOrder: true, maxWaiting: maxWaiting,
	})
	if err != nil {
		return nil, err
	}
	c.conns[k] = &caller{}
	return k, nil
}

// serveConn serves one connection until it ends.
func (c *Child) serveConn(k *Conn) {
	k.start()
	k.reading.Wait()
	c.mu.Lock()
	delete(c.conns, k)
	c.mu.Unlock()
	k.w.close()
	k.workers.Wait()
}

// serve answers one request.
func (c *Child) serve(ctx context.Context, m *Message) (Reply, error) {
	switch m.Type { // these three never change, in whatever version the caller speaks
	case typeHello:
		return c.sayHello(m)
	case typeFiles:
		return Reply{Files: c.files}, nil
	case typeQuit:
		return Reply{After: c.stop}, nil
	}
	p := c.options.Protocol
	if m.env.Version != p.Major {
		return Reply{}, fmt.Errorf("protocol %d is not supported (%s speaks %d)", m.env.Version, c.name, p.Major)
	}
	handle, ok := c.options.Handlers[m.Type]
	if !ok {
		return Reply{}, fmt.Errorf("unknown request %q (%s speaks protocol %d.%d)",
			m.Type, c.name, p.Major, p.Minor)
	}
	return handle(ctx, m)
}

// helloBody is an answer that goes into the envelope.
type helloBody struct{ json []byte }

// sayHello answers hello, and registers the caller for what it wants.
func (c *Child) sayHello(m *Message) (Reply, error) {
	about, err := json.Marshal(c.hello)
	if err != nil {
		return Reply{}, err
	}
	if c.options.Hello != nil {
		own, err := json.Marshal(c.options.Hello())
		if err == nil {
			about, err = joinObjects(own, about)
		}
		if err != nil {
			return Reply{}, err
		}
	}
	c.mu.Lock()
	if known := c.conns[m.conn]; known != nil {
		known.watches = known.watches || m.env.Watch
		if m.env.Answers {
			c.hellos++
			known.answers = c.hellos
		}
	}
	c.mu.Unlock()
	if m.env.Watch {
		c.log.wake()
	}
	return Reply{Body: helloBody{about}}, nil
}

// Ask sends a request to the daemon and waits for its answer, which the caller closes. It fails at once if no
// daemon is connected (ErrLost) or too many requests are in flight (ErrBusy).
func (c *Child) Ask(ctx context.Context, r Request) (*Message, error) {
	select {
	case c.asking <- struct{}{}:
		defer func() { <-c.asking }()
	default:
		return nil, fmt.Errorf("request %q to the daemon: %w (at most %d)", r.Type, ErrBusy, cap(c.asking))
	}
	daemon := c.daemon()
	if daemon == nil {
		return nil, fmt.Errorf("request %q: %w: no daemon is connected that answers requests", r.Type, ErrLost)
	}
	return daemon.Call(ctx, r)
}

// daemon is the connection that requests go to: that of the latest daemon. Nil if none is there.
func (c *Child) daemon() *Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	var latest *Conn
	var number uint64
	for conn, known := range c.conns {
		if known.answers > number {
			latest, number = conn, known.answers
		}
	}
	return latest
}

// Push sends an event to every daemon that watches.
func (c *Child) Push(event string, body any) { c.pushBody(envelope{Type: event}, body, nil) }

// PushAttached is Push with bytes beside the fields, as a Request's.
func (c *Child) PushAttached(event string, body any, attached []byte) {
	c.pushBody(envelope{Type: event}, body, attached)
}

func (c *Child) push(env envelope) (taken bool) { return c.pushBody(env, nil, nil) }

// pushBody says whether a daemon took the event.
func (c *Child) pushBody(env envelope, body any, attached []byte) (taken bool) {
	c.mu.Lock()
	var to []*Conn
	for conn, known := range c.conns {
		if known.watches {
			to = append(to, conn)
		}
	}
	c.mu.Unlock()
	for _, conn := range to {
		if err := conn.push(env, body, attached); err != nil {
			conn.w.close() // a daemon that does not read is treated as gone; it can connect again
			continue
		}
		taken = true
	}
	return taken
}
