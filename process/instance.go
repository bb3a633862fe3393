package process

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// Instance is one running process of a kind, for the daemon, and the connection to it.
type Instance struct {
	Hello   Hello
	Since   time.Time
	Adopted bool
	Missing []string // what could not be set from outside, with the reason

	about  []byte // the whole hello, with the kind's fields
	proc   *watched
	conn   *Conn
	stderr *os.File // read end; nil for an adopted one
}

// PID is the process's id according to the kernel.
func (i *Instance) PID() int { return i.proc.pid }

// Exited is closed when the process is gone.
func (i *Instance) Exited() <-chan struct{} { return i.proc.exited }

// Dead says whether the process is gone.
func (i *Instance) Dead() bool { return i.proc.dead() }

// Call sends a request and waits for its answer, which the caller closes.
func (i *Instance) Call(ctx context.Context, r Request) (*Message, error) { return i.conn.Call(ctx, r) }

// Ask sends a request and reads the fields of its answer into out, which may be nil.
func (i *Instance) Ask(ctx context.Context, r Request, out any) error {
	m, err := i.conn.Call(ctx, r)
	if err != nil {
		return err
	}
	defer m.Close()
	if out == nil {
		return nil
	}
	return m.Decode(out)
}

// DecodeHello reads the kind's fields of the latest hello into v.
func (i *Instance) DecodeHello(v any) error {
	if err := json.Unmarshal(i.about, v); err != nil {
		return fmt.Errorf("decode hello: %w", err)
	}
	return nil
}

// hello asks the process who it is, and remembers it. It returns the pid of the answer's sender.
func (i *Instance) hello(ctx context.Context, env envelope, within time.Duration) (pid int, err error) {
	about, pid, err := i.conn.hello(ctx, env, within)
	if err != nil {
		return 0, err
	}
	var h Hello
	if err := json.Unmarshal(about, &h); err != nil {
		return 0, fmt.Errorf("decode hello: %w", err)
	}
	i.about, i.Hello = about, h
	return pid, nil
}

// release detaches from the process, which keeps running.
func (i *Instance) release() {
	if i.conn != nil {
		i.conn.close()
	}
	if i.proc != nil {
		i.proc.release()
	}
	if i.stderr != nil {
		i.stderr.Close()
	}
}
