package tc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// How Watch tells: a tree that is built is one change, and whoever changes queues over and over is answered once a second.
const (
	watchQuiet = 50 * time.Millisecond
	watchPause = time.Second
)

// Watch calls f from its own goroutine, one call at a time, after queues or classes of any interface were changed, by
// whomever, until ctx ends. Apply's own changes are told too; an Observe after them finds no difference. It calls ready
// once it hears.
func Watch(ctx context.Context, ready, f func()) error {
	sock, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_TC)
	if err != nil {
		return fmt.Errorf("watch the queues: %w", err)
	}
	changed, failed := make(chan struct{}, 1), make(chan error, 1)
	go func() { failed <- receive(sock, changed) }()
	stop := context.AfterFunc(ctx, sock.Close) // ends the blocking read
	defer func() {
		if stop() {
			sock.Close()
		}
	}()
	ready()
	for {
		select {
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch the queues: %w", err)
		case <-changed:
		}
		pause(ctx, watchQuiet)
		select { // what belonged to it
		case <-changed:
		default:
		}
		if ctx.Err() == nil {
			f()
		}
		pause(ctx, watchPause)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func receive(sock *nl.NetlinkSocket, changed chan<- struct{}) error {
	for {
		messages, from, err := sock.Receive()
		lost := errors.Is(err, unix.ENOBUFS) // anything may have changed
		switch {
		case err != nil && !lost:
			return err
		case !lost && from.Pid != 0:
			continue // not from the kernel
		}
		for _, m := range messages {
			switch m.Header.Type {
			case unix.RTM_NEWQDISC, unix.RTM_DELQDISC, unix.RTM_NEWTCLASS, unix.RTM_DELTCLASS:
				lost = true
			}
		}
		if lost {
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}
}
