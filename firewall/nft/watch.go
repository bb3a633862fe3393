package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
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

// watch is Ruleset.Watch; elements of the sets that ignore names are not told of, and nothing that was done through
// the socket with number own.
func watch(ctx context.Context, own uint32, ignore func(set string) bool, ready, f func()) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("watch the ruleset: %w", err)
	}
	defer c.Close()
	if err := c.SetReadBuffer(watchBuffer); err != nil {
		return fmt.Errorf("watch the ruleset: %w", err)
	}
	if err := c.SetBPF(notOf(own)); err != nil {
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

// notOf passes what another socket than port had done: calls change elements many times a second, and the kernel
// tells the notices of one transaction in one piece, each with the socket that it came by (struct nlmsghdr).
func notOf(port uint32) []bpf.RawInstruction {
	const portAt, all = 12, math.MaxUint32
	b := make([]byte, 4)
	binary.NativeEndian.PutUint32(b, port)
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: portAt, Size: 4}, // as on a wire: the most significant byte first
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(b), SkipFalse: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: all},
	})
	if err != nil {
		panic(err) // the program is a constant but for the number
	}
	return program
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
