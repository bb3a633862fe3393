package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"ringway/appliance/plan"
	"ringway/appliance/status"
	"ringway/sip/call"
	"ringway/sip/ladder"
	"ringway/sip/record"
	"ringway/sip/registrar"
	"ringway/sip/relay"
)

// Server answers requests on the control socket. Its functions are called concurrently.
type Server struct {
	Path  string // of the socket
	Log   *slog.Logger
	Group func() int // id of the group that may read; 0: none

	Status  func(context.Context) (status.Status, error)
	Queues  func(context.Context) (status.Queues, error)
	Metrics http.Handler
	Calls   func(context.Context) ([]call.Call, error)
	Phones  func(context.Context) ([]registrar.Binding, error)
	Ladder  func(ctx context.Context, call string) (*ladder.View, error)
	Capture func(ctx context.Context, id string, sound bool, who string) (call.Call, error)
	Bans    func(context.Context) ([]relay.Standing, error)
	Unban   func(context.Context, netip.Addr) error
	Records func(from, to time.Time, phone netip.Addr) ([]record.Record, error)
	Forget  func(ctx context.Context, number string, masked bool) (record.Forgotten, error)
	Plan    func(ctx context.Context, config []byte, name string, o plan.Options) (plan.Plan, error)

	Reload  func(context.Context) (ReloadResult, error)
	Apply   func(ctx context.Context, config []byte, name string, confirm time.Duration) (ReloadResult, error)
	Confirm func() error
	Undo    func(context.Context) error
	Upgrade func(ctx context.Context, class string) error
	Stop    func()
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context, ready func()) error {
	listener, err := listen(s.Path)
	if err != nil {
		return err
	}

	server := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    8 << 10,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			who, err := peer(conn)
			if err != nil {
				s.Log.Warn("control connection without credentials", "error", err)
			}
			return context.WithValue(ctx, callerKey{}, who)
		},
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	ready()

	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		grace, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			server.Close()
		}
		<-done
		return nil
	}
}

func listen(path string) (net.Listener, error) {
	// The daemon holds its lock by now, so an existing socket belongs to a daemon that died.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the old control socket: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on the control socket: %w", err)
	}

	// Everybody may connect; the credentials decide what each may ask.
	if err := os.Chmod(path, 0o666); err != nil {
		listener.Close()
		return nil, fmt.Errorf("set the mode of the control socket: %w", err)
	}
	return listener, nil
}

type callerKey struct{}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	read := func(pattern string, h http.HandlerFunc) { mux.HandleFunc(pattern, s.allow(s.mayRead, h)) }
	change := func(pattern string, h http.HandlerFunc) { mux.HandleFunc(pattern, s.allow(caller.mayChange, h)) }

	read("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		st, err := s.Status(r.Context())
		answer(w, st, err)
	})
	read("GET /v1/queues", func(w http.ResponseWriter, r *http.Request) {
		q, err := s.Queues(r.Context())
		answer(w, q, err)
	})
	read("GET /v1/metrics", func(w http.ResponseWriter, r *http.Request) { s.Metrics.ServeHTTP(w, r) })

	read("POST /v1/plan", s.plan)

	// They name the parties: for root alone.
	change("GET /v1/calls", func(w http.ResponseWriter, r *http.Request) {
		list, err := s.Calls(r.Context())
		answer(w, list, err)
	})
	s.handleCalls(change)
	change("GET /v1/phones", func(w http.ResponseWriter, r *http.Request) {
		list, err := s.Phones(r.Context())
		answer(w, list, err)
	})

	// A change is finished even when its caller disconnects: it may itself cut the caller's connection.
	change("POST /v1/reload", func(w http.ResponseWriter, r *http.Request) {
		res, err := s.Reload(context.WithoutCancel(r.Context()))
		answer(w, res, err)
	})
	change("POST /v1/apply", s.apply)
	change("POST /v1/confirm", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, s.Confirm())
	})
	change("POST /v1/undo", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, s.Undo(context.WithoutCancel(r.Context())))
	})
	change("POST /v1/upgrade", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, s.Upgrade(context.WithoutCancel(r.Context()), r.URL.Query().Get("class")))
	})
	change("POST /v1/stop", func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusAccepted, struct{}{})
		s.Stop()
	})
	return mux
}

func (s *Server) mayRead(c caller) bool { return c.mayRead(s.Group()) }

// allow runs h for callers that the policy lets through.
func (s *Server) allow(policy func(caller) bool, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		who, _ := r.Context().Value(callerKey{}).(caller)
		if !policy(who) {
			s.Log.Warn("control request refused", "path", r.URL.Path, "uid", who.name())
			reply(w, http.StatusForbidden, apiError{"permission denied: run as root; " +
				"members of the group in control.group may read the status and plan"})
			return
		}
		h(w, r)
	}
}

func (s *Server) plan(w http.ResponseWriter, r *http.Request) {
	text, err := readConfig(w, r)
	if err != nil {
		reply(w, http.StatusBadRequest, apiError{err.Error()})
		return
	}

	q := r.URL.Query()
	p, err := s.Plan(r.Context(), text, q.Get("name"), plan.Options{All: q.Has("all"), Only: q.Get("only")})
	answer(w, p, err)
}

func readConfig(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxConfig))
	if err != nil {
		return nil, fmt.Errorf("read the request body: %w", err)
	}
	return text, nil
}

func (s *Server) apply(w http.ResponseWriter, r *http.Request) {
	var confirm time.Duration
	if v := r.URL.Query().Get("confirm"); v != "" {
		var err error
		if confirm, err = time.ParseDuration(v); err != nil || confirm <= 0 {
			reply(w, http.StatusBadRequest, apiError{fmt.Sprintf("confirm: %q is not a positive duration (example: 2m)", v)})
			return
		}
	}

	text, err := readConfig(w, r)
	if err != nil {
		reply(w, http.StatusBadRequest, apiError{err.Error()})
		return
	}

	res, err := s.Apply(context.WithoutCancel(r.Context()), text, r.URL.Query().Get("name"), confirm)
	answer(w, res, err)
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		reply(w, http.StatusUnprocessableEntity, apiError{err.Error()})
		return
	}
	reply(w, http.StatusOK, v)
}

func reply(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		code = http.StatusInternalServerError
		body, _ = json.Marshal(apiError{"encode the answer: " + err.Error()})
	}

	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // the caller may have disconnected
}
