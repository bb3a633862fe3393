package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"ringway/debounce"
	"ringway/firewall"
)

var (
	otherFamilies = map[nftables.TableFamily]string{
		nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
	}
	otherHooks = map[nftables.ChainHook]string{
		unix.NF_INET_PRE_ROUTING: "prerouting", unix.NF_INET_LOCAL_IN: "input", unix.NF_INET_FORWARD: "forward",
		unix.NF_INET_LOCAL_OUT: "output", unix.NF_INET_POST_ROUTING: "postrouting",
	}
)

// Others lists the base chains of other tables that may drop packets: by their policy, or by a rule that they reach.
func Others() ([]firewall.OtherChain, error) {
	c, err := open()
	if err != nil {
		return nil, err
	}
	defer c.CloseLasting()
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains of other tables: %w", err)
	}
	var out []firewall.OtherChain
	for _, ch := range chains {
		family, known := otherFamilies[ch.Table.Family]
		if !known || ch.Hooknum == nil || ours(ch.Table.Name) {
			continue
		}
		hook, known := otherHooks[*ch.Hooknum]
		if !known {
			continue
		}
		o := firewall.OtherChain{Family: family, Table: ch.Table.Name, Chain: ch.Name, Hook: hook, Policy: "accept"}
		if ch.Priority != nil {
			o.Priority = int(*ch.Priority)
		}
		if ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop {
			o.Policy, o.Rest = "drop", true
			out = append(out, o)
			continue
		}
		w := walk{conn: c, table: ch.Table, seen: map[string]bool{}}
		some, rest, err := w.drops(ch.Name)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", o.Subject(), err)
		}
		if some {
			o.Rest = rest
			out = append(out, o)
		}
	}
	firewall.SortOthers(out)
	return out, nil
}

// ours reports whether a table is Ringway's: the one that stands in for it, or one of a probe, included.
func ours(table string) bool {
	return table == firewall.Table || strings.HasPrefix(table, firewall.Table+"_")
}

// walk follows a base chain through the chains that it jumps to.
type walk struct {
	conn  *nftables.Conn
	table *nftables.Table
	seen  map[string]bool
}

// drops reports whether a rule that the chain reaches drops some packets, and whether one drops all that come to it.
func (w walk) drops(chain string) (some, rest bool, err error) {
	if w.seen[chain] {
		return false, false, nil
	}
	w.seen[chain] = true
	rules, err := w.conn.GetRules(w.table, &nftables.Chain{Name: chain, Table: w.table})
	if err != nil {
		return false, false, err
	}
	for _, r := range rules {
		always := true // no expression so far has looked at the packet
		for _, e := range r.Exprs {
			drops, to := false, ""
			switch e := e.(type) {
			case *expr.Counter, *expr.Log:
			case *expr.Reject:
				drops = true
			case *expr.Target: // of iptables-nft
				drops = e.Name == "REJECT" || e.Name == "NFQUEUE"
			case *expr.Verdict:
				drops = e.Kind == expr.VerdictDrop
				if e.Kind == expr.VerdictJump || e.Kind == expr.VerdictGoto {
					to = e.Chain
				}
			case *expr.Queue:
				drops, always = true, false // the program that takes them decides
			case *expr.Lookup:
				always = false
				if drops, err = w.mapDrops(e); err != nil {
					return false, false, err
				}
			default:
				always = false
			}
			if to != "" {
				below, all, err := w.drops(to)
				if err != nil {
					return false, false, err
				}
				some, rest = some || below, rest || all && always
			}
			some, rest = some || drops, rest || drops && always
		}
	}
	return some, rest, nil
}

// mapDrops reports whether a verdict map has an element that drops.
func (w walk) mapDrops(l *expr.Lookup) (bool, error) {
	if !l.IsDestRegSet || l.DestRegister != 0 {
		return false, nil
	}
	set, err := w.conn.GetSetByName(w.table, l.SetName)
	if err != nil {
		return false, err
	}
	elements, err := w.conn.GetSetElements(set)
	if err != nil {
		return false, err
	}
	for _, e := range elements {
		kind, chain, err := verdictOf(e.Val)
		if err != nil {
			return false, err
		}
		if chain == "" && kind == expr.VerdictDrop {
			return true, nil
		}
		if chain != "" {
			if some, _, err := w.drops(chain); some || err != nil {
				return some, err
			}
		}
	}
	return false, nil
}

// verdictOf reads what the library leaves raw: the attributes NFTA_VERDICT_CODE and NFTA_VERDICT_CHAIN of an element.
func verdictOf(b []byte) (kind expr.VerdictKind, chain string, err error) {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return kind, chain, err
	}
	d.ByteOrder = binary.BigEndian
	kind = expr.VerdictContinue
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_VERDICT_CODE:
			kind = expr.VerdictKind(int32(d.Uint32()))
		case unix.NFTA_VERDICT_CHAIN:
			chain = d.String()
		}
	}
	return kind, chain, d.Err()
}

// othersTiming looks at other tables once for a ruleset that is loaded, and not too often for one that changes all
// the time.
var othersTiming = debounce.Timing{
	Quiet: 50 * time.Millisecond, Longest: 500 * time.Millisecond, Pause: 2 * time.Second,
}

// WatchOthers calls f from its own goroutine, one call at a time, after tables, chains or rules of other programs were
// changed, until ctx ends. ready is called when it listens.
func WatchOthers(ctx context.Context, ready, f func()) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("watch other tables: %w", err)
	}
	defer c.Close()
	if err := c.SetBPF(notElements()); err != nil {
		return fmt.Errorf("watch other tables: %w", err)
	}
	if err := c.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("watch other tables: %w", err)
	}

	changes := debounce.New(othersTiming)
	receiving, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		cancel(receiveOthers(c, changes.Trigger))
	}()
	stop := context.AfterFunc(ctx, func() { c.Close() }) // ends the blocking read
	defer stop()

	ready()
	changes.Run(receiving, f)
	<-done
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("watch other tables: %w", context.Cause(receiving))
}

// notElements passes what does not begin with an element of a set: calls change those many times a second.
func notElements() []bpf.RawInstruction {
	const typeAt, all = 4, 1<<32 - 1 // struct nlmsghdr: the subsystem is the upper byte, in host order
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: typeAt + lowByte(), Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.NFT_MSG_NEWSETELEM, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.NFT_MSG_DELSETELEM, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: all},
	})
	if err != nil {
		panic(err) // the program is a constant
	}
	return program
}

// lowByte is where the lower byte of a 16-bit number in host order is.
func lowByte() uint32 {
	b := make([]byte, 2)
	binary.NativeEndian.PutUint16(b, 1)
	return uint32(b[1])
}

func receiveOthers(c *netlink.Conn, changed func()) error {
	for {
		messages, err := c.Receive()
		lost := errors.Is(err, unix.ENOBUFS) // anything may have changed
		if err != nil && !lost {
			return err
		}
		for _, m := range messages {
			lost = lost || ofOthers(m)
		}
		if lost {
			changed()
		}
	}
}

// ofOthers reports whether a message is about a table, chain or rule that is not Ringway's.
func ofOthers(m netlink.Message) bool {
	const family = 4 // struct nfgenmsg precedes the attributes
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN,
		unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
	default:
		return false
	}
	if len(m.Data) < family {
		return false
	}
	d, err := netlink.NewAttributeDecoder(m.Data[family:])
	if err != nil {
		return false
	}
	for d.Next() {
		if d.Type() == unix.NFTA_TABLE_NAME { // the number of the table's name in all of them
			return !ours(d.String())
		}
	}
	return false
}
