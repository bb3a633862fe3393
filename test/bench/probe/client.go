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

// Client talks to a probe that was started in a process of its own.
type Client struct {
	name  string
	in    io.WriteCloser
	out   io.ReadCloser
	words chan string   // lines that the probe says, up to the result
	rest  chan struct{} // closed after the last of them: r is then whoever's waits for it
	err   error         // why there are no more lines, once rest is closed
	r     *bufio.Reader
}

// ErrWaiting: what a probe was to say did not come in time. The conversation goes on.
var ErrWaiting = errors.New("the probe still waits")

// NewClient tells a probe what to do; in and out are its standard input and output. Closing them is the client's business
// from here on. name is for errors.
func NewClient(name string, in io.WriteCloser, out io.ReadCloser, c Config) (*Client, error) {
	p := &Client{name: name, in: in, out: out, r: bufio.NewReader(out), words: make(chan string, 8), rest: make(chan struct{})}
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

// Close ends the conversation; a probe that still runs ends by it.
func (p *Client) Close() {
	p.in.Close()
	p.out.Close()
}

// Ready waits until the probe's sockets are open.
func (p *Client) Ready(ctx context.Context) error { return p.expect(ctx, sayReady) }

// Start has the probe send from the time at of Monotonic on.
func (p *Client) Start(at time.Duration) error {
	return p.tell(fmt.Sprintf("%s %d", tellStart, int64(at)))
}

// Complete waits until the probe has sent everything, and got as many packets as can come.
func (p *Client) Complete(ctx context.Context) error { return p.expect(ctx, sayComplete) }

// Stop ends the probe and takes what it saw.
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
		return r, fmt.Errorf("read what the probe on %s saw: %w", p.name, err)
	}
	return r, nil
}

func (p *Client) tell(word string) error {
	if _, err := io.WriteString(p.in, word+"\n"); err != nil {
		return fmt.Errorf("tell the probe on %s to %s: %w", p.name, strings.Fields(word)[0], err)
	}
	return nil
}

func (p *Client) expect(ctx context.Context, want string) error {
	got, err := p.word(ctx)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("the probe on %s said %q in place of %q", p.name, got, want)
	}
	return nil
}

// listen reads lines until the one that the result follows.
func (p *Client) listen() {
	defer close(p.rest)
	for {
		line, err := p.r.ReadString('\n')
		if err != nil {
			p.err = fmt.Errorf("the probe on %s ended: %w", p.name, err)
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
		case w := <-p.words: // said just before
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
