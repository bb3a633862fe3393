package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// The control socket is HTTP over a Unix socket, so that curl can ask as well as `ringway status` can:
//
//	GET  /v1/status   root and members of control.group
//	GET  /v1/metrics  the same
//	POST /v1/reload   root alone, as everything that changes something
//	POST /v1/apply?confirm=2m&name=new.yaml   the body is the config
//	POST /v1/confirm
//	POST /v1/undo
//	POST /v1/stop
//	POST /v1/upgrade?class=voice
//
// Who asks is what the kernel says of the peer (SO_PEERCRED), never what the request says.

type callerKey struct{}

// caller is the process at the other end of a control connection.
type caller struct {
	cred   *unix.Ucred
	groups []int
}

func peerOf(c net.Conn) (caller, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return caller{}, errors.New("not a Unix socket")
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return caller{}, err
	}
	var who caller
	var serr error
	err = raw.Control(func(fd uintptr) {
		who.cred, serr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, serr); err != nil {
		return caller{}, err
	}
	who.groups = []int{int(who.cred.Gid)}
	if u, err := user.LookupId(strconv.Itoa(int(who.cred.Uid))); err == nil {
		ids, _ := u.GroupIds()
		for _, id := range ids {
			if n, err := strconv.Atoi(id); err == nil {
				who.groups = append(who.groups, n)
			}
		}
	}
	return who, nil
}

// mayRead and mayChange are the whole policy of the socket.
func (c caller) mayRead(group int) bool {
	return c.mayChange() || group > 0 && slices.Contains(c.groups, group)
}
func (c caller) mayChange() bool { return c.cred != nil && c.cred.Uid == 0 }

// controlServer answers on the control socket.
type controlServer struct {
	path    string
	log     *slog.Logger
	group   func() int // of the current config; 0 = none
	status  func(ctx context.Context) (Status, error)
	queues  func(ctx context.Context) (QueuesNow, error)
	metrics http.Handler
	reload  func(ctx context.Context) (ReloadResult, error)
	stop    func()
	upgrade func(ctx context.Context, class string) error
	apply   func(ctx context.Context, text []byte, name string, wait time.Duration) (ReloadResult, error)
	confirm func() error
	undo    func(ctx context.Context) error
}

// maxApply bounds the body of a config; appliance/config has its own, lower, bound and the word for it.
const maxApply = 2 << 20

// ReloadResult is what a reload or an apply changed, in ip, nft and tc words.
type ReloadResult struct {
	Changes []string `json:"changes"`
}

type apiError struct {
	Error string `json:"error"`
}

func (s *controlServer) handler() http.Handler {
	mux := http.NewServeMux()
	guard := func(change bool, h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			who, _ := r.Context().Value(callerKey{}).(caller)
			if change && !who.mayChange() || !change && !who.mayRead(s.group()) {
				var uid any = "unknown"
				if who.cred != nil {
					uid = who.cred.Uid
				}
				s.log.Warn("control request refused", "path", r.URL.Path, "uid", uid)
				reply(w, http.StatusForbidden, apiError{"not allowed: be root, or for status a member of the group that control.group in the config names"})
				return
			}
			h(w, r)
		}
	}
	mux.HandleFunc("GET /v1/status", guard(false, func(w http.ResponseWriter, r *http.Request) {
		st, err := s.status(r.Context())
		answer(w, st, err)
	}))
	mux.HandleFunc("GET /v1/queues", guard(false, func(w http.ResponseWriter, r *http.Request) {
		q, err := s.queues(r.Context())
		answer(w, q, err)
	}))
	mux.HandleFunc("GET /v1/metrics", guard(false, func(w http.ResponseWriter, r *http.Request) { s.metrics.ServeHTTP(w, r) }))
	mux.HandleFunc("POST /v1/reload", guard(true, func(w http.ResponseWriter, r *http.Request) {
		// A reload is not abandoned half-way because the caller went away.
		res, err := s.reload(context.WithoutCancel(r.Context()))
		answer(w, res, err)
	}))
	mux.HandleFunc("POST /v1/apply", guard(true, func(w http.ResponseWriter, r *http.Request) {
		var wait time.Duration
		if v := r.URL.Query().Get("confirm"); v != "" {
			var err error
			if wait, err = time.ParseDuration(v); err != nil || wait <= 0 {
				reply(w, http.StatusBadRequest, apiError{fmt.Sprintf("confirm: %q is no time to wait for a confirmation (allowed: %s to %s)", v, MinConfirm, MaxConfirm)})
				return
			}
		}
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxApply))
		if err != nil {
			reply(w, http.StatusBadRequest, apiError{"the config did not come whole: " + err.Error()})
			return
		}
		// Who asks may be cut off by what he asks for.
		res, err := s.apply(context.WithoutCancel(r.Context()), text, r.URL.Query().Get("name"), wait)
		answer(w, res, err)
	}))
	mux.HandleFunc("POST /v1/confirm", guard(true, func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, s.confirm())
	}))
	mux.HandleFunc("POST /v1/undo", guard(true, func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, s.undo(context.WithoutCancel(r.Context())))
	}))
	mux.HandleFunc("POST /v1/upgrade", guard(true, func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, s.upgrade(context.WithoutCancel(r.Context()), r.URL.Query().Get("class")))
	}))
	mux.HandleFunc("POST /v1/stop", guard(true, func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusAccepted, struct{}{})
		s.stop()
	}))
	return mux
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		reply(w, http.StatusUnprocessableEntity, apiError{err.Error()})
		return
	}
	reply(w, http.StatusOK, v)
}

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the caller may have gone; nothing is to be done about it
}

func (s *controlServer) run(ctx context.Context, ready func()) error {
	// The lock is held by now, so a socket that is there belongs to a daemon that died.
	if err := os.Remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the old control socket: %w", err)
	}
	l, err := net.Listen("unix", s.path)
	if err != nil {
		return fmt.Errorf("listen on the control socket: %w", err)
	}
	// Everybody may connect; the credentials decide.
	if err := os.Chmod(s.path, 0o666); err != nil {
		l.Close()
		return fmt.Errorf("open the control socket: %w", err)
	}
	srv := &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		IdleTimeout: 30 * time.Second, MaxHeaderBytes: 8 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			who, err := peerOf(c)
			if err != nil {
				s.log.Warn("control connection without credentials", "error", err)
			}
			return context.WithValue(ctx, callerKey{}, who)
		},
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	ready()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		grace, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
		<-done
		return nil
	}
}

// Client asks a running daemon over its control socket.
type Client struct{ http http.Client }

// ErrNotRunning means that no daemon listens on the control socket.
var ErrNotRunning = errors.New("no ringway daemon is running here (start it with `ringway run CONFIG` or `systemctl start ringway`)")

// NewClient makes a client of the daemon whose paths are p. Nothing is dialled yet.
func NewClient(p Paths) *Client {
	return &Client{http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "unix", p.socket())
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
				return nil, ErrNotRunning
			}
			return c, err
		},
	}}}
}

// Close lets go of connections that are kept for the next question.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks for the status.
func (c *Client) Status(ctx context.Context) (st Status, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/status", nil, &st)
	return st, err
}

// Queues asks for the queues alone.
func (c *Client) Queues(ctx context.Context) (q QueuesNow, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/queues", nil, &q)
	return q, err
}

// Metrics asks for the numbers of the status in Prometheus' text format.
func (c *Client) Metrics(ctx context.Context) ([]byte, error) {
	return c.send(ctx, http.MethodGet, "/v1/metrics", nil)
}

// Reload makes the daemon read its config again and apply the difference.
func (c *Client) Reload(ctx context.Context) (res ReloadResult, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/reload", nil, &res)
	return res, err
}

// Apply makes the daemon run text in the place of its config. It stays, or, with confirm, goes back after that time unless
// Confirm is called. name is what problems call it.
func (c *Client) Apply(ctx context.Context, text []byte, name string, confirm time.Duration) (res ReloadResult, err error) {
	q := url.Values{"name": {name}}
	if confirm != 0 {
		q.Set("confirm", confirm.String())
	}
	err = c.call(ctx, http.MethodPost, "/v1/apply?"+q.Encode(), bytes.NewReader(text), &res)
	return res, err
}

// Confirm keeps the config that waits for it.
func (c *Client) Confirm(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/confirm", nil, nil)
}

// Undo goes back at once from the config that waits for a confirmation.
func (c *Client) Undo(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/undo", nil, nil)
}

// Upgrade makes the daemon replace the running plane of class by one of its own build.
func (c *Client) Upgrade(ctx context.Context, class string) error {
	return c.call(ctx, http.MethodPost, "/v1/upgrade?class="+class, nil, nil)
}

// Stop makes the daemon stop and take everything with it.
func (c *Client) Stop(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/stop", nil, nil)
}

func (c *Client) call(ctx context.Context, method, path string, in io.Reader, out any) error {
	body, err := c.send(ctx, method, path, in)
	if err != nil || out == nil {
		return err
	}
	return json.Unmarshal(body, out)
}

func (c *Client) send(ctx context.Context, method, path string, in io.Reader) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://ringway"+path, in)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if errors.Is(err, ErrNotRunning) {
		return nil, ErrNotRunning
	}
	if err != nil {
		return nil, fmt.Errorf("ask the daemon: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return nil, fmt.Errorf("read the daemon's answer: %w", err)
	}
	if resp.StatusCode >= 300 {
		var e apiError
		if json.Unmarshal(body, &e) == nil && e.Error != "" {
			return nil, errors.New(e.Error)
		}
		return nil, fmt.Errorf("the daemon answered %s", resp.Status)
	}
	return body, nil
}
