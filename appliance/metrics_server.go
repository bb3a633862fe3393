package appliance

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
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"ringway/appliance/config"
)

// Bounds of one address on which metrics are served. Prometheus asks a few times a minute, over one connection each.
const (
	metricsConnections = 4
	metricsHeaders     = 8 << 10 // bytes
	metricsReading     = 5 * time.Second
	metricsWriting     = 15 * time.Second // 1024 sites and their queues are 6 MB
)

// metricsServer is the task that answers Prometheus where control.metrics says, and nowhere else. Two things keep it from
// everybody but the box and the data networks: the firewall opens the port to these alone, and a connection from any other source
// is closed before a byte of it is read. Each holds by itself: while the ruleset is gone, an address of a data network can be
// reached from the WAN as well.
type metricsServer struct {
	log     *slog.Logger
	handler http.Handler
	ready   chan struct{}
	once    sync.Once
	again   chan struct{} // what is wanted, or an address, may have changed

	mu       sync.Mutex // guards what follows
	wanted   []netip.AddrPort
	clients  []netip.Prefix // data networks, here and at the sites
	open     map[netip.AddrPort]*metricsListener
	problems map[netip.AddrPort]string
}

// metricsListener is one address that is served; ended is closed when it is no more.
type metricsListener struct {
	http  *http.Server
	ended chan struct{}
}

func newMetricsServer(log *slog.Logger, h http.Handler) *metricsServer {
	return &metricsServer{log: log, handler: h, ready: make(chan struct{}), again: make(chan struct{}, 1),
		open: map[netip.AddrPort]*metricsListener{}, problems: map[netip.AddrPort]string{}}
}

// follow takes up what the config wants. It does not wait.
func (m *metricsServer) follow(cfg *config.Config) {
	var clients []netip.Prefix
	for _, l := range cfg.Data {
		clients = append(clients, l.Networks()...)
	}
	for _, s := range cfg.Sites {
		clients = append(clients, s.DataNetworks...)
	}
	m.mu.Lock()
	m.wanted, m.clients = slices.Clone(cfg.Control.Metrics), clients
	m.mu.Unlock()
	select {
	case m.again <- struct{}{}:
	default:
	}
}

// Run serves until ctx ends.
func (m *metricsServer) Run(ctx context.Context) error {
	defer m.close()
	for {
		m.look()
		m.once.Do(func() { close(m.ready) })
		select {
		case <-ctx.Done():
			return nil
		case <-m.again:
		}
	}
}

// Ready is closed once the first look is done.
func (m *metricsServer) Ready() <-chan struct{} { return m.ready }

func (m *metricsServer) String() string { return "metrics" }

// look opens what is wanted and closes what is not. An address that is not there yet is tried again with every reconciliation.
// Only Run's goroutine changes what is open. The lock is not held over a close: a connection that comes waits for it.
func (m *metricsServer) look() {
	m.mu.Lock()
	wanted, open := m.wanted, maps.Clone(m.open)
	m.mu.Unlock()
	problems := map[netip.AddrPort]string{}
	for at, l := range open {
		select {
		case <-l.ended:
		default:
			if slices.Contains(wanted, at) {
				continue
			}
		}
		l.close()
		delete(open, at)
	}
	for _, at := range wanted {
		if open[at] != nil {
			continue
		}
		l, err := net.Listen("tcp", at.String())
		if err != nil {
			problems[at] = fmt.Sprintf("serve metrics: %v; end what has the port, or change control.metrics", err)
			continue
		}
		open[at] = m.serve(at, l)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open, m.problems = open, problems
}

func (m *metricsServer) serve(at netip.AddrPort, l net.Listener) *metricsListener {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.handler) // and HEAD; everything else is refused
	s := &metricsListener{ended: make(chan struct{}), http: &http.Server{
		Handler: mux, ReadHeaderTimeout: metricsReading, ReadTimeout: metricsReading, WriteTimeout: metricsWriting, MaxHeaderBytes: metricsHeaders,
		ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelDebug), // a stranger's doing
	}}
	s.http.SetKeepAlivesEnabled(false) // or four that idle would keep all others out
	go func() {
		defer close(s.ended)
		fenced := fence{l, func(from netip.Addr) bool { return m.mayAsk(at, from) }}
		if err := s.http.Serve(netutil.LimitListener(fenced, metricsConnections)); !errors.Is(err, http.ErrServerClosed) {
			m.log.Warn("metrics are not served any more until the next look", "address", at, "error", err)
		}
	}()
	return s
}

// mayAsk says whether a source may ask at an address.
func (m *metricsServer) mayAsk(at netip.AddrPort, from netip.Addr) bool {
	if from.IsLoopback() {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return !at.Addr().IsLoopback() && slices.ContainsFunc(m.clients, func(p netip.Prefix) bool { return p.Contains(from) })
}

// close ends the listener and every connection of it.
func (l *metricsListener) close() {
	l.http.Close()
	<-l.ended
}

func (m *metricsServer) close() {
	m.mu.Lock()
	open := m.open
	m.open = map[netip.AddrPort]*metricsListener{}
	m.mu.Unlock()
	for _, l := range open {
		l.close()
	}
}

func (m *metricsServer) status() (served, problems []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	served = []string{} // in JSON a list, also when there is none
	for _, at := range m.wanted {
		if m.open[at] != nil {
			served = append(served, at.String())
		}
		if p := m.problems[at]; p != "" {
			problems = append(problems, p)
		}
	}
	return served, problems
}

// fence lets in who may ask, and closes on everybody else at once.
type fence struct {
	net.Listener
	may func(netip.Addr) bool
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
