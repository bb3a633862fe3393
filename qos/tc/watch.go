package tc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"ringway/debounce"
)

// timing makes one change of a tree that is built, and answers whoever changes queues over and over once a
// second.
var timing = debounce.Timing{Quiet: 50 * time.Millisecond, Longest: 50 * time.Millisecond, Pause: time.Second}

// Watch calls f from its own goroutine, one call at a time, after anybody has changed queues or classes of
// any interface, until ctx ends. Apply's own changes are reported too; an Observe after them finds no
// difference. It calls ready once it receives.
func Watch(ctx context.Context, ready, f func()) error {
	sock, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_TC)
	if err != nil {
		return fmt.Errorf("watch the queues: %w", err)
	}

	changes := debounce.New(timing)
	receiving, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		cancel(receive(sock, changes.Trigger))
	}()
	stop := context.AfterFunc(ctx, sock.Close) // ends the blocking read
	defer func() {
		if stop() {
			sock.Close()
		}
	}()

	ready()
	changes.Run(receiving, f)
	<-done
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("watch the queues: %w", context.Cause(receiving))
}

func receive(sock *nl.NetlinkSocket, changed func()) error {
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
			changed()
		}
	}
}
