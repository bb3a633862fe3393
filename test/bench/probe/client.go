package probe

import (
	"bufio"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Client controls a probe that runs in a process of its own.
type Client struct {
	name  string
	in    io.WriteCloser
	out   io.ReadCloser
	words chan string   // lines that the probe prints before the result
	rest  chan struct{} // closed after the last of them; the reader of r may then continue
	err   error         // why there are no more lines, once rest is closed
	r     *bufio.Reader
}

// ErrWaiting: the probe has not printed the expected line in time. It can still be controlled.
var ErrWaiting = errors.New("the probe is still waiting")

// NewClient configures a probe; in and out are its standard input and output, which the client closes. name
// is for errors.
func NewClient(name string, in io.WriteCloser, out io.ReadCloser, c Config) (*Client, error) {
	p := &Client{
		name:  name,
		in:    in,
		out:   out,
		r:     bufio.NewReader(out),
		words: make(chan string, 8),
		rest:  make(chan struct{}),
	}
	line, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	if _, err := in.Write(append(line, '\n')); err != nil {
		return nil, fmt.Errorf("configure the probe on %s: %w", name, err)
	}
	go p.listen()
	return p, nil
}

// Close ends the connection, and with it a probe that still runs.
func (p *Client) Close() {
	p.in.Close()
	p.out.Close()
}

// Ready waits until the probe's sockets are open.
func (p *Client) Ready(ctx context.Context) error { return p.expect(ctx, sayReady) }

// Start has the probe start to send at the time at of Monotonic.
func (p *Client) Start(at time.Duration) error {
	return p.tell(fmt.Sprintf("%s %d", tellStart, int64(at)))
}

// Complete waits until the probe has sent everything and received as many packets as can arrive.
func (p *Client) Complete(ctx context.Context) error { return p.expect(ctx, sayComplete) }

// Stop ends the probe and returns what it saw.
func (p *Client) Stop(ctx context.Context) (r Result, err error) {
	if err := p.tell(tellStop); err != nil {
		return r, err
	}
	for {
		word, err := p.word(ctx)
		if err != nil {
			return r, err
		}
		if word == sayResult {
			break
		}
	}
	<-p.rest
	done := make(chan error, 1)
	go func() { done <- gob.NewDecoder(p.r).Decode(&r) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		p.Close()
		<-done
		return Result{}, context.Cause(ctx)
	}
	if err != nil {
		return r, fmt.Errorf("read the result of the probe on %s: %w", p.name, err)
	}
	return r, nil
}

func (p *Client) tell(word string) error {
	if _, err := io.WriteString(p.in, word+"\n"); err != nil {
		return fmt.Errorf("send the probe on %s the command %s: %w", p.name, strings.Fields(word)[0], err)
	}
	return nil
}

func (p *Client) expect(ctx context.Context, want string) error {
	got, err := p.word(ctx)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("the probe on %s printed %q, expected %q", p.name, got, want)
	}
	return nil
}

// listen reads lines up to the one before the result.
func (p *Client) listen() {
	defer close(p.rest)
	for {
		line, err := p.r.ReadString('\n')
		if err != nil {
			p.err = fmt.Errorf("the probe on %s exited: %w", p.name, err)
			return
		}
		word := strings.TrimSpace(line)
		p.words <- word
		if word == sayResult {
			return
		}
	}
}

func (p *Client) word(ctx context.Context) (string, error) {
	select {
	case w := <-p.words:
		return w, nil
	default:
	}
	select {
	case w := <-p.words:
		return w, nil
	case <-p.rest:
		select {
		case w := <-p.words: // printed just before
			return w, nil
		default:
			return "", p.err
		}
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return "", fmt.Errorf("%s: %w", p.name, ErrWaiting)
		}
		return "", context.Cause(ctx)
	}
}
