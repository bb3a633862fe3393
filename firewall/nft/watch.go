package nft

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ringway/firewall"
)

// How Watch tells: a transaction of a hundred rules is one change, and whoever changes the table over and over is
// answered once a second.
const (
	watchQuiet = 50 * time.Millisecond
	watchPause = time.Second
)

// Watch calls f from its own goroutine, one call at a time, after Ringway's table was changed, by whomever, until ctx ends.
// Apply's own changes are told too; an Observe after them finds no difference. Others' tables are no business of ours.
// It calls ready once it hears.
func Watch(ctx context.Context, ready, f func()) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("watch the ruleset: %w", err)
	}
	defer c.Close()
	if err := c.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("watch the ruleset: %w", err)
	}
	changed, failed := make(chan struct{}, 1), make(chan error, 1)
	go func() { failed <- receive(c, changed) }()
	stop := context.AfterFunc(ctx, func() { c.Close() }) // ends the blocking read
	defer stop()
	ready()
	for {
		select {
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch the ruleset: %w", err)
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

func receive(c *netlink.Conn, changed chan<- struct{}) error {
	for {
		messages, err := c.Receive()
		lost := errors.Is(err, unix.ENOBUFS) // anything may have changed
		if err != nil && !lost {
			return err
		}
		for _, m := range messages {
			lost = lost || ofOurs(m)
		}
		if lost {
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}
}

// ofOurs says whether a message is about our table, whose name is the first attribute in every kind of message:
// NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE, NFTA_OBJ_TABLE.
func ofOurs(m netlink.Message) bool {
	const family = 4 // struct nfgenmsg stands before the attributes
	if len(m.Data) < family || m.Data[0] != unix.NFPROTO_INET || m.Header.Type&0xff == unix.NFT_MSG_NEWGEN {
		return false
	}
	d, err := netlink.NewAttributeDecoder(m.Data[family:])
	if err != nil {
		return false
	}
	for d.Next() {
		if d.Type() == unix.NFTA_TABLE_NAME {
			return d.String() == firewall.Table
		}
	}
	return false
}
