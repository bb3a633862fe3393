package tester

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Client controls a tester that runs in a process of its own, one request at a time.
type Client struct {
	name    string
	in      io.WriteCloser
	out     io.ReadCloser
	answers chan answer
	err     error // why there are no more; valid once answers is closed
}

// NewClient configures a tester; in and out are its standard input and output, which the client closes. name
// is for errors.
func NewClient(name string, in io.WriteCloser, out io.ReadCloser, c Config) (*Client, error) {
	t := &Client{name: name, in: in, out: out, answers: make(chan answer)}
	if err := json.NewEncoder(in).Encode(c); err != nil {
		return nil, fmt.Errorf("configure the tester on %s: %w", name, err)
	}
	go t.listen()
	return t, nil
}

func (t *Client) listen() {
	defer close(t.answers)
	r := bufio.NewReader(t.out)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			t.err = err
			return
		}
		var a answer
		if err := json.Unmarshal(line, &a); err != nil {
			t.err = err
			return
		}
		t.answers <- a
	}
}

// Close ends the tester.
func (t *Client) Close() {
	t.in.Close()
	t.out.Close()
	for range t.answers { // discard an answer that nobody waits for
	}
}

// Ready waits until the tester's sockets are open.
func (t *Client) Ready(ctx context.Context) error {
	_, err := t.await(ctx)
	return err
}

// Prepare has a receiver count the packets of a trial from now on.
func (t *Client) Prepare(ctx context.Context, trial Trial) error {
	_, err := t.ask(ctx, request{Trial: trial})
	return err
}

// Send has a sender send a trial and returns at its end.
func (t *Client) Send(ctx context.Context, trial Trial) (Sent, error) {
	a, err := t.ask(ctx, request{Trial: trial})
	if err == nil && a.Sent == nil {
		err = fmt.Errorf("the tester on %s does not send", t.name)
	}
	if err != nil {
		return Sent{}, err
	}
	return *a.Sent, nil
}

// Collect waits until a receiver has so many packets of the trial, or no more arrive.
func (t *Client) Collect(ctx context.Context, trial Trial, sent int) (Received, error) {
	a, err := t.ask(ctx, request{Trial: trial, Sent: &sent})
	if err == nil && a.Received == nil {
		err = fmt.Errorf("the tester on %s does not receive", t.name)
	}
	if err != nil {
		return Received{}, err
	}
	return *a.Received, nil
}

func (t *Client) ask(ctx context.Context, q request) (answer, error) {
	if err := json.NewEncoder(t.in).Encode(q); err != nil {
		return answer{}, fmt.Errorf("send the tester on %s a request: %w", t.name, err)
	}
	return t.await(ctx)
}

func (t *Client) await(ctx context.Context) (answer, error) {
	select {
	case a, more := <-t.answers:
		switch {
		case !more:
			return a, fmt.Errorf("the tester on %s exited: %w", t.name, t.err)
		case a.Error != "":
			return a, errors.New("the tester on " + t.name + ": " + a.Error)
		}
		return a, nil
	case <-ctx.Done():
		return answer{}, context.Cause(ctx)
	}
}
