// Package nft is the adapter between the plan of package firewall and nf_tables, and the only importer of
// google/nftables. It reads the table `inet ringway`, changes it in one transaction, changes the elements
// of its dynamic sets, and reads its counters, all in the calling thread's network namespace. Only
// appliance imports it.
//
// What the library cannot do is kept out of the plan: it has no shift in Bitwise, does not read back where
// `ct mark set` takes its value from, and writes no byte order for a map's values, so that `nft list` prints a
// classid backwards. The values themselves are right; they are compared raw. Rules are read here (rules.go),
// since it drops expressions that it does not know (tproxy, socket, rt, byteorder).
package nft

import (
	"fmt"
	"math/bits"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ringway/firewall"
)

// Counter is a named counter's value.
type Counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

func open() (*nftables.Conn, error) {
	// A transaction is one message to the kernel and an answer for each step: a table with many
	// sites does not fit the default buffers.
	big := func(c *netlink.Conn) error {
		if err := c.SetWriteBuffer(8 << 20); err != nil {
			return err
		}
		return c.SetReadBuffer(8 << 20)
	}
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(big))
	if err != nil {
		return nil, fmt.Errorf("open nf_tables netlink socket: %w", err)
	}
	return c, nil
}

func table() *nftables.Table {
	return &nftables.Table{Name: firewall.Table, Family: nftables.TableFamilyINet}
}

// find gives the kernel's table, nil where it is not there.
func find(c *nftables.Conn) (*nftables.Table, error) { return findTable(c, firewall.Table) }

func findTable(c *nftables.Conn, name string) (*nftables.Table, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list nf_tables tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == name {
			return t, nil
		}
	}
	return nil, nil
}

// Observe reads the table. Where there is none the State is zero.
func Observe() (firewall.State, error) {
	c, err := open()
	if err != nil {
		return firewall.State{}, err
	}
	defer c.CloseLasting()
	return observe(c)
}

func observe(c *nftables.Conn) (firewall.State, error) {
	found, err := find(c)
	if err != nil || found == nil {
		return firewall.State{}, err
	}
	// The library reads the flags in host order, the kernel sends them in network order.
	flags := found.Flags | bits.ReverseBytes32(found.Flags)
	s := firewall.State{Present: true, Dormant: flags&unix.NFT_TABLE_F_DORMANT != 0}

	if s.Counters, err = observeCounters(c); err != nil {
		return s, err
	}
	if s.Sets, err = observeSets(c); err != nil {
		return s, err
	}
	s.Chains, err = observeChains(c)
	return s, err
}

func observeCounters(c *nftables.Conn) (names []string, err error) {
	objs, err := c.GetNamedObjects(table())
	if err != nil {
		return nil, fmt.Errorf("list counters of table inet %s: %w", firewall.Table, err)
	}
	for _, o := range objs {
		if n, ok := o.(*nftables.NamedObj); ok && n.Type == nftables.ObjTypeCounter {
			names = append(names, n.Name)
		}
	}
	sort.Strings(names)
	return names, nil
}

func observeSets(c *nftables.Conn) (out []firewall.Set, err error) {
	sets, err := c.GetSets(table())
	if err != nil {
		return nil, fmt.Errorf("list sets of table inet %s: %w", firewall.Table, err)
	}
	for _, set := range sets {
		if set.Anonymous {
			continue // part of a rule, which the plan never makes
		}
		got := firewall.Set{Name: set.Name, Type: typeOf(set), Interval: set.Interval}
		if set.Dynamic || set.HasTimeout {
			// Flows that rules have found, or a component's elements: not the plan's to compare.
			got.Size, got.Timeout, got.Owned = set.Size, uint32(set.Timeout/time.Second), !set.Dynamic
			out = append(out, got)
			continue
		}

		elems, err := c.GetSetElements(set)
		if err != nil {
			return nil, fmt.Errorf("list elements of set %s: %w", set.Name, err)
		}
		if set.IsMap {
			got.Data = set.DataType.Name
		}
		if got.Elements, err = decodeElements(got, elems); err != nil {
			return nil, fmt.Errorf("read set %s: %w", set.Name, err)
		}
		out = append(out, got.Canonical())
	}
	slices.SortFunc(out, func(a, b firewall.Set) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func observeChains(c *nftables.Conn) (out []firewall.Chain, err error) {
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	rules, err := observeRules()
	if err != nil {
		return nil, err
	}
	for _, ch := range chains {
		if ch.Table.Name != firewall.Table {
			continue
		}
		got := decodeChain(ch)
		got.Rules = rules[ch.Name]
		out = append(out, got)
	}
	return out, nil
}

// transact makes all changes to t in one transaction, and with them what more queues, which may be nil.
func transact(t *nftables.Table, changes []firewall.Change, more func(*nftables.Conn) error) error {
	if len(changes) == 0 {
		return nil
	}
	c, err := open()
	if err != nil {
		return err
	}
	defer c.CloseLasting()

	for _, ch := range changes {
		if err := queue(c, t, ch); err != nil {
			return fmt.Errorf("%s: %w", ch, err)
		}
	}
	if more != nil {
		if err := more(c); err != nil {
			return err
		}
	}
	if err := c.Flush(); err != nil {
		if len(changes) == 1 {
			return fmt.Errorf("%s: %w", changes[0], err)
		}
		return fmt.Errorf(
			"apply %d changes to table inet %s in one transaction (nothing was changed): %w", len(changes),
			t.Name, err,
		)
	}
	return nil
}

// elementsPerMessage keeps a message's list of elements under netlink's 64 KiB for one attribute.
const elementsPerMessage = 256

// queue adds one change of t to c's transaction.
func queue(c *nftables.Conn, t *nftables.Table, ch firewall.Change) error {
	chain := &nftables.Chain{Table: t, Name: ch.Name}
	switch ch.Op {
	case firewall.AddTable:
		c.AddTable(t)
	case firewall.DeleteTable:
		c.DelTable(t)
	case firewall.AddCounter:
		c.AddObj(&nftables.CounterObj{Table: t, Name: ch.Name})
	case firewall.DeleteCounter:
		c.DeleteObject(&nftables.CounterObj{Table: t, Name: ch.Name})
	case firewall.AddSet, firewall.AddElements, firewall.DeleteElements:
		return queueSet(c, t, ch)
	case firewall.DeleteSet:
		c.DelSet(&nftables.Set{Table: t, Name: ch.Name})
	case firewall.FlushSet:
		c.FlushSet(&nftables.Set{Table: t, Name: ch.Name})
	case firewall.AddChain:
		full, err := encodeChain(t, ch.Chain)
		if err != nil {
			return err
		}
		c.AddChain(full)
	case firewall.FlushChain:
		c.FlushChain(chain)
	case firewall.DeleteChain:
		c.DelChain(chain)
	case firewall.DeleteRule:
		return c.DelRule(&nftables.Rule{Table: t, Chain: chain, Handle: ch.Rule.Handle})
	case firewall.AddRule, firewall.InsertRule:
		return queueRule(c, &nftables.Rule{Table: t, Chain: chain}, ch)
	default:
		return fmt.Errorf("unknown operation %q", ch.Op)
	}
	return nil
}

// setIDs numbers the sets that are made in transactions. The library has a counter of its own, which transactions of
// several goroutines must not use.
var setIDs atomic.Uint32

// addSet queues a set that is to be made.
func addSet(c *nftables.Conn, s *nftables.Set) error {
	s.ID = setIDs.Add(1)
	return c.AddSet(s, nil)
}

func queueSet(c *nftables.Conn, t *nftables.Table, ch firewall.Change) error {
	s, err := encodeSet(t, ch.Set)
	if err != nil {
		return err
	}
	if ch.Op == firewall.AddSet {
		return addSet(c, s)
	}

	elems, err := encodeElements(ch.Set)
	if err != nil {
		return err
	}
	change := c.SetAddElements
	if ch.Op == firewall.DeleteElements {
		change = c.SetDeleteElements
	}
	for part := range slices.Chunk(elems, elementsPerMessage) {
		if err := change(s, part); err != nil {
			return err
		}
	}
	return nil
}

func queueRule(c *nftables.Conn, r *nftables.Rule, ch firewall.Change) error {
	for _, e := range ch.Rule.Exprs {
		x, err := encode(e)
		if err != nil {
			return err
		}
		r.Exprs = append(r.Exprs, x)
	}
	if ch.Op == firewall.InsertRule {
		r.Position = ch.Before
		c.InsertRule(r)
	} else {
		c.AddRule(r)
	}
	return nil
}

// Counters reads the table's named counters; none where there is no table.
func Counters() (map[string]Counter, error) {
	c, err := open()
	if err != nil {
		return nil, err
	}
	defer c.CloseLasting()
	out := map[string]Counter{}
	if found, err := find(c); err != nil || found == nil {
		return out, err
	}
	objs, err := c.GetNamedObjects(table())
	if err != nil {
		return nil, fmt.Errorf("read counters of table inet %s: %w", firewall.Table, err)
	}
	for _, o := range objs {
		if n, ok := o.(*nftables.NamedObj); ok {
			if v, ok := n.Obj.(*expr.Counter); ok {
				out[n.Name] = Counter{Packets: v.Packets, Bytes: v.Bytes}
			}
		}
	}
	return out, nil
}
