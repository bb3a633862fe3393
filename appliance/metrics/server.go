// Package metrics serves the numbers of the status to Prometheus where control.metrics says, and nowhere else. It also
// has the metrics of those parts of the daemon that are not components.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/appliance/task"
)

// Name is the component's name, and that of its section of the status.
const Name = "metrics"

// Bounds of one address. Prometheus scrapes a few times a minute, over one connection each.
const (
	maxConnections = 4
	maxHeaderBytes = 8 << 10
	readTimeout    = 5 * time.Second
	writeTimeout   = 15 * time.Second // 1024 sites and their queues are 6 MB
)

// Server is the component. Two independent things keep out everybody but the box and the data networks: the firewall
// opens the port to these only, and a connection from any other source is closed before a byte is read. The second
// also works while there is no ruleset, when an address of a data network can be reached from the WAN.
type Server struct {
	log     *slog.Logger
	handler http.Handler
	again   task.Signal // the config or an address may have changed

	mu       sync.Mutex // guards what follows
	wanted   []netip.AddrPort
	clients  []netip.Prefix // data networks, here and at the sites
	open     map[netip.AddrPort]*listener
	problems []problem.Problem
}

// listener is one address that is served; ended is closed when it no longer is.
type listener struct {
	http  *http.Server
	ended chan struct{}
}

// New returns a server of handler that listens nowhere yet.
func New(log *slog.Logger, handler http.Handler) *Server {
	return &Server{
		log:     log,
		handler: handler,
		again:   task.NewSignal(),
		open:    map[netip.AddrPort]*listener{},
	}
}

// Name is the component's name.
func (m *Server) Name() string { return Name }

// Follow takes up what cfg asks for.
func (m *Server) Follow(cfg *config.Config) {
	var clients []netip.Prefix
	for _, l := range cfg.Data {
		clients = append(clients, l.Networks()...)
	}
	for _, s := range cfg.Sites {
		clients = append(clients, s.DataNetworks...)
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	m.wanted, m.clients = slices.Clone(cfg.Control.Metrics), clients
	m.again.Raise()
}

// Run serves until ctx ends.
func (m *Server) Run(ctx context.Context, ready func()) error {
	defer m.close()
	return m.again.Loop(ctx, ready, func(context.Context) { m.look() })
}

// look opens what is wanted and closes the rest. An address that does not exist yet is tried again after every
// reconciliation. Only Run's goroutine changes what is open. The lock is not held while a listener is closed: its last
// connections wait for the lock.
func (m *Server) look() {
	m.mu.Lock()
	wanted, open := m.wanted, maps.Clone(m.open)
	m.mu.Unlock()

	for at, l := range open {
		if slices.Contains(wanted, at) && !l.hasEnded() {
			continue
		}
		l.close()
		delete(open, at)
	}

	var problems []problem.Problem
	for _, at := range wanted {
		if open[at] != nil {
			continue
		}
		l, err := net.Listen("tcp", at.String())
		if err != nil {
			problems = append(problems, notServed(at, err))
			continue
		}
		open[at] = m.serve(at, l)
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	m.open, m.problems = open, problems
}

func (m *Server) serve(at netip.AddrPort, l net.Listener) *listener {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.handler) // and HEAD; every other request is refused
	served := &listener{
		ended: make(chan struct{}),
		http: &http.Server{
			Handler:           mux,
			ReadHeaderTimeout: readTimeout,
			ReadTimeout:       readTimeout,
			WriteTimeout:      writeTimeout,
			MaxHeaderBytes:    maxHeaderBytes,
			ErrorLog:          slog.NewLogLogger(m.log.Handler(), slog.LevelDebug), // strangers can cause these errors
		},
	}
	served.http.SetKeepAlivesEnabled(false) // four idle connections would keep all others out

	allowed := fence{l, func(from netip.Addr) bool { return m.mayScrape(at, from) }}
	go func() {
		defer close(served.ended)
		err := served.http.Serve(netutil.LimitListener(allowed, maxConnections))
		if !errors.Is(err, http.ErrServerClosed) {
			m.log.Warn("metrics are no longer served, reopening with the next reconciliation", "address", at, "error", err)
		}
	}()
	return served
}

// mayScrape says whether a source may connect to an address.
func (m *Server) mayScrape(at netip.AddrPort, from netip.Addr) bool {
	if from.IsLoopback() {
		return true
	}
	if at.Addr().IsLoopback() {
		return false
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.ContainsFunc(m.clients, func(p netip.Prefix) bool { return p.Contains(from) })
}

func (l *listener) hasEnded() bool {
	select {
	case <-l.ended:
		return true
	default:
		return false
	}
}

// close ends the listener and all its connections.
func (l *listener) close() {
	l.http.Close()
	<-l.ended
}

func (m *Server) close() {
	m.mu.Lock()
	open := m.open
	m.open = map[netip.AddrPort]*listener{}
	m.mu.Unlock()

	for _, l := range open {
		l.close()
	}
}

// Problems lists the addresses on which metrics cannot be served.
func (m *Server) Problems() []problem.Problem {
	m.mu.Lock()
	defer m.mu.Unlock()

	return slices.Clone(m.problems)
}

func notServed(at netip.AddrPort, err error) problem.Problem {
	action := "stop the program that uses the port, or change control.metrics"
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		action = "wait for the interface with this address, or change control.metrics"
	}
	return problem.Problem{
		Subject: at.String(), Severity: problem.Warning, Text: fmt.Sprintf("serve metrics: %v", err), Action: action,
	}
}

// Status lists the addresses on which metrics are served.
func (m *Server) Status() fmt.Stringer {
	m.mu.Lock()
	defer m.mu.Unlock()

	served := Status{}
	for _, at := range m.wanted {
		if m.open[at] != nil {
			served = append(served, at.String())
		}
	}
	return served
}

// Status is the section of the status: the addresses on which metrics are served.
type Status []string

// String is one line of the status, empty where metrics are not served.
func (s Status) String() string {
	if len(s) == 0 {
		return ""
	}
	return "Metrics for Prometheus: http://" + strings.Join(s, "/metrics, http://") + "/metrics"
}

// fence is a listener that closes every connection that may not be there.
type fence struct {
	net.Listener
	may func(from netip.Addr) bool
}

func (f fence) Accept() (net.Conn, error) {
	for {
		c, err := f.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if a, ok := c.RemoteAddr().(*net.TCPAddr); ok && f.may(a.AddrPort().Addr().Unmap()) {
			return c, nil
		}
		c.Close()
	}
}
