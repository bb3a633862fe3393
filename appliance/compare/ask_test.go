package compare

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/plan"
	"ringway/configs"
)

// The first line of a plan says so where it is not what this build's running daemon says.
func TestAPlanSaysWhatItIsBasedOn(t *testing.T) {
	const based = "based on what the kernel and the files of the state directory show to this user, not on " +
		"what the daemon knows"
	answer := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = w.Write([]byte(body))
		}
	}
	silent := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	status := answer(http.StatusOK, `{"build": "0.9.0", "tunnels": []}`)
	for name, c := range map[string]struct {
		plan, status http.HandlerFunc
		basis        string
	}{
		"no daemon":  {},
		"this build": {plan: answer(http.StatusOK, `{"build": "1.0.0", "parts": []}`)},
		"another build": {plan: answer(http.StatusOK, `{"build": "1.1.0", "parts": []}`),
			basis: "computed by the running daemon, which is build 1.1.0 (this is 1.0.0): what its reload would change"},
		"an older build": {plan: answer(http.StatusNotFound, "404"), status: status,
			basis: "the daemon is build 0.9.0, which cannot plan (this is 1.0.0): based on its status, and on what " +
				"the kernel and the files of the state directory show to this user"},
		"no answer": {plan: silent, basis: "the daemon did not answer within 2s: " + based},
		"not allowed": {plan: answer(http.StatusForbidden, `{"error": "permission denied"}`),
			basis: "this user may not ask the daemon (run as root, or as a member of control.group): " + based},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			files := filesIn(dir)
			if c.plan != nil {
				serve(t, files.Socket, c.plan, c.status)
			}
			p, err := planOf(t, files, 200*time.Millisecond)
			require.NoError(t, err)
			assert.Equal(t, c.basis, p.Basis)
			if c.basis != "" {
				assert.Contains(t, p.String(), "# "+c.basis+"\n")
			}
		})
	}

	dir := t.TempDir()
	files := filesIn(dir)
	serve(t, files.Socket, answer(http.StatusUnprocessableEntity, `{"error": "box.yaml: wan: is missing"}`), status)
	_, err := planOf(t, files, time.Second)
	assert.EqualError(
		t,
		err,
		"the daemon cannot plan this: box.yaml: wan: is missing",
		"what its reload would refuse",
	)
}

// planOf asks for the calls of a shipped config, which need no look at this machine.
func planOf(t *testing.T, files Files, patience time.Duration) (plan.Plan, error) {
	t.Helper()
	text, err := configs.FS.ReadFile("minimal.yaml")
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return Plan(
		ctx,
		Request{
			Path:    "minimal.yaml",
			Text:    text,
			Options: plan.Options{All: true, Only: "calls"},
			Files:   files,
			Build:   "1.0.0",
		},
	)
}

// serve is a daemon that answers on a control socket.
func serve(t *testing.T, path string, plan, status http.HandlerFunc) {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/plan", plan)
	if status != nil {
		mux.HandleFunc("GET /v1/status", status)
	}
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	s := &http.Server{Handler: mux}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
}

func filesIn(dir string) Files {
	return Files{
		Socket: filepath.Join(dir, "ringway.sock"), Journal: filepath.Join(dir, "journal.json"),
		Endpoints: filepath.Join(dir, "endpoints.json"), Leases: dir,
	}
}
