package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/sys/unix"

	"ringway/appliance/plan"
	"ringway/appliance/status"
)

// maxAnswer bounds what a client reads: the status of 1024 sites is some megabytes.
const maxAnswer = 64 << 20

// ErrNotRunning means that no daemon listens on the control socket.
var ErrNotRunning = errors.New("no ringway daemon is running here " +
	"(start it with `ringway run CONFIG` or `systemctl start ringway`)")

// Client asks a running daemon over its control socket.
type Client struct{ http http.Client }

// NewClient returns a client for the control socket at path. It connects with the first request.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
			return nil, ErrNotRunning
		}
		return conn, err
	}
	return &Client{http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks for the status.
func (c *Client) Status(ctx context.Context) (st status.Status, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/status", nil, &st)
	return st, err
}

// Queues asks for the queues only.
func (c *Client) Queues(ctx context.Context) (q status.Queues, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/queues", nil, &q)
	return q, err
}

// Metrics asks for the metrics in Prometheus' text format.
func (c *Client) Metrics(ctx context.Context) ([]byte, error) {
	return c.send(ctx, http.MethodGet, "/v1/metrics", nil)
}

// Plan asks what the daemon would change if it ran config in place of its own.
func (c *Client) Plan(ctx context.Context, config []byte, name string, o plan.Options) (p plan.Plan, err error) {
	q := url.Values{"name": {name}, "only": {o.Only}}
	if o.All {
		q.Set("all", "")
	}
	err = c.call(ctx, http.MethodPost, "/v1/plan?"+q.Encode(), bytes.NewReader(config), &p)
	return p, err
}

// Reload makes the daemon read its config again and apply the difference.
func (c *Client) Reload(ctx context.Context) (res ReloadResult, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/reload", nil, &res)
	return res, err
}

// Apply makes the daemon run config in place of its own. With confirm above zero the daemon rolls back after that time
// unless Confirm is called. Error messages call the config by name.
func (c *Client) Apply(
	ctx context.Context, config []byte, name string, confirm time.Duration,
) (res ReloadResult, err error) {
	q := url.Values{"name": {name}}
	if confirm != 0 {
		q.Set("confirm", confirm.String())
	}
	err = c.call(ctx, http.MethodPost, "/v1/apply?"+q.Encode(), bytes.NewReader(config), &res)
	return res, err
}

// Confirm keeps the config that is on trial.
func (c *Client) Confirm(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/confirm", nil, nil)
}

// Undo rolls the config on trial back at once.
func (c *Client) Undo(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/undo", nil, nil)
}

// Upgrade makes the daemon replace the running plane of a class by one of its own build.
func (c *Client) Upgrade(ctx context.Context, class string) error {
	return c.call(ctx, http.MethodPost, "/v1/upgrade?class="+url.QueryEscape(class), nil, nil)
}

// Stop makes the daemon stop and remove everything it set up.
func (c *Client) Stop(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/stop", nil, nil)
}

func (c *Client) call(ctx context.Context, method, path string, in io.Reader, out any) error {
	body, err := c.send(ctx, method, path, in)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("decode the daemon's answer to %s: %w", path, err)
	}
	return nil
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
		return nil, fmt.Errorf("connect to the daemon: %w", err)
	}
	defer resp.Body.Close()

	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the daemon's answer: %w", err)
	}
	if resp.StatusCode < 300 {
		return body, nil
	}

	var failure apiError
	if json.Unmarshal(body, &failure) == nil && failure.Error != "" {
		return nil, &Error{resp.StatusCode, failure.Error}
	}
	return nil, &Error{resp.StatusCode, "the daemon answered " + resp.Status}
}
