package nft

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ringway/debounce"
	"ringway/firewall"
)

// timing makes one change of a transaction of a hundred rules, and answers whoever changes the table over
// and over once a second.
var timing = debounce.Timing{Quiet: 50 * time.Millisecond, Longest: 50 * time.Millisecond, Pause: time.Second}

// watchBuffer holds the notices of a burst: a call brings a handful of elements, a table with 500 sites several
// hundred kilobytes.
const watchBuffer = 8 << 20

// watch is Ruleset.Watch; elements of the sets that ignore names are not told of.
func watch(ctx context.Context, ignore func(set string) bool, ready, f func()) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("watch the ruleset: %w", err)
	}
	defer c.Close()
	if err := c.SetReadBuffer(watchBuffer); err != nil {
		return fmt.Errorf("watch the ruleset: %w", err)
	}
	if err := c.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("watch the ruleset: %w", err)
	}

	changes := debounce.New(timing)
	receiving, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		cancel(receive(c, ignore, changes.Trigger))
	}()
	stop := context.AfterFunc(ctx, func() { c.Close() }) // ends the blocking read
	defer stop()

	ready()
	changes.Run(receiving, f)
	<-done
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("watch the ruleset: %w", context.Cause(receiving))
}

func receive(c *netlink.Conn, ignore func(set string) bool, changed func()) error {
	for {
		messages, err := c.Receive()
		lost := errors.Is(err, unix.ENOBUFS) // anything may have changed
		if err != nil && !lost {
			return err
		}
		for _, m := range messages {
			lost = lost || ofOurs(m, ignore)
		}
		if lost {
			changed()
		}
	}
}

// ofOurs says whether a message is about our table, and not about elements of a set that ignore names. The
// table's name is attribute 1 in every kind of message: NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE,
// NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE, NFTA_OBJ_TABLE.
func ofOurs(m netlink.Message, ignore func(set string) bool) bool {
	const family = 4 // struct nfgenmsg stands before the attributes
	kind := m.Header.Type & 0xff
	if len(m.Data) < family || m.Data[0] != unix.NFPROTO_INET || kind == unix.NFT_MSG_NEWGEN {
		return false
	}
	elements := kind == unix.NFT_MSG_NEWSETELEM || kind == unix.NFT_MSG_DELSETELEM
	d, err := netlink.NewAttributeDecoder(m.Data[family:])
	if err != nil {
		return false
	}
	ours := false
	for d.Next() {
		switch {
		case d.Type() == unix.NFTA_TABLE_NAME:
			ours = d.String() == firewall.Table
		case elements && d.Type() == unix.NFTA_SET_ELEM_LIST_SET && ignore(d.String()):
			return false
		}
	}
	return ours
}
