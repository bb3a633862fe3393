// Package nft is the adapter between the plan of package firewall and nf_tables, and the only
// importer of google/nftables. It reads the table `inet ringway`, changes it in one transaction,
// and reads its counters, all in the calling thread's network namespace. Only appliance imports it.
//
// What the library cannot do is kept out of the plan: it has no shift in Bitwise, does not read
// back where `ct mark set` takes its value from, drops expressions that it does not know (rt,
// byteorder) and writes no byte order for a map's values, so that `nft list` prints a classid
// backwards. The values themselves are right; they are compared raw.
package nft

import (
	"fmt"
	"math/bits"
	"slices"
	"sort"
	"strings"
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
func find(c *nftables.Conn) (*nftables.Table, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list nf_tables tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == firewall.Table {
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
	var s firewall.State
	found, err := find(c)
	if err != nil || found == nil {
		return s, err
	}
	// The library reads the flags in host order, the kernel sends them in network order.
	flags := found.Flags | bits.ReverseBytes32(found.Flags)
	s.Present, s.Dormant = true, flags&unix.NFT_TABLE_F_DORMANT != 0
	t := table()
	objs, err := c.GetNamedObjects(t)
	if err != nil {
		return s, fmt.Errorf("list counters of table inet %s: %w", t.Name, err)
	}
	for _, o := range objs {
		if n, ok := o.(*nftables.NamedObj); ok && n.Type == nftables.ObjTypeCounter {
			s.Counters = append(s.Counters, n.Name)
		}
	}
	sort.Strings(s.Counters)
	sets, err := c.GetSets(t)
	if err != nil {
		return s, fmt.Errorf("list sets of table inet %s: %w", t.Name, err)
	}
	for _, set := range sets {
		if set.Anonymous {
			continue // belongs to its rule, which nobody but a stranger wrote
		}
		if set.Dynamic {
			s.Sets = append(s.Sets, firewall.Set{Name: set.Name, Type: set.KeyType.Name, Size: set.Size, Timeout: uint32(set.Timeout / time.Second)})
			continue // what flows there are is not ours to keep
		}
		elems, err := c.GetSetElements(set)
		if err != nil {
			return s, fmt.Errorf("list elements of set %s: %w", set.Name, err)
		}
		got := firewall.Set{Name: set.Name, Type: set.KeyType.Name, Interval: set.Interval}
		if set.IsMap {
			got.Data = set.DataType.Name
		}
		if got.Elements, err = decodeElements(got, elems); err != nil {
			return s, fmt.Errorf("read set %s: %w", set.Name, err)
		}
		s.Sets = append(s.Sets, got.Canonical())
	}
	slices.SortFunc(s.Sets, func(a, b firewall.Set) int { return strings.Compare(a.Name, b.Name) })
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return s, fmt.Errorf("list chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table.Name != t.Name {
			continue
		}
		got := decodeChain(ch)
		rules, err := c.GetRules(t, ch)
		if err != nil {
			return s, fmt.Errorf("list rules of chain %s: %w", ch.Name, err)
		}
		for _, r := range rules {
			rule := firewall.Rule{Handle: r.Handle}
			for _, e := range r.Exprs {
				rule.Exprs = append(rule.Exprs, decode(e))
			}
			got.Rules = append(got.Rules, rule)
		}
		s.Chains = append(s.Chains, got)
	}
	return s, nil
}

// Apply makes all changes in one transaction: the kernel takes all of them or none.
func Apply(changes []firewall.Change) error {
	if len(changes) == 0 {
		return nil
	}
	c, err := open()
	if err != nil {
		return err
	}
	defer c.CloseLasting()
	for _, ch := range changes {
		if err := queue(c, ch); err != nil {
			return fmt.Errorf("%s: %w", ch, err)
		}
	}
	if err := c.Flush(); err != nil {
		if len(changes) == 1 {
			return fmt.Errorf("%s: %w", changes[0], err)
		}
		return fmt.Errorf("apply %d changes to table inet %s in one transaction (nothing was changed): %w", len(changes), firewall.Table, err)
	}
	return nil
}

// elementsPerMessage keeps a message's list of elements under netlink's 64 KiB for one attribute.
const elementsPerMessage = 256

func queue(c *nftables.Conn, ch firewall.Change) error {
	t := table()
	set := func() (*nftables.Set, error) { return encodeSet(t, ch.Set) }
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
	case firewall.AddSet:
		s, err := set()
		if err != nil {
			return err
		}
		return c.AddSet(s, nil)
	case firewall.DeleteSet, firewall.FlushSet:
		s := &nftables.Set{Table: t, Name: ch.Name}
		if ch.Op == firewall.DeleteSet {
			c.DelSet(s)
		} else {
			c.FlushSet(s)
		}
	case firewall.AddElements, firewall.DeleteElements:
		s, err := set()
		if err != nil {
			return err
		}
		elems, err := encodeElements(ch.Set)
		if err != nil {
			return err
		}
		for part := range slices.Chunk(elems, elementsPerMessage) {
			if ch.Op == firewall.AddElements {
				err = c.SetAddElements(s, part)
			} else {
				err = c.SetDeleteElements(s, part)
			}
			if err != nil {
				return err
			}
		}
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
		exprs := make([]expr.Any, len(ch.Rule.Exprs))
		for i, e := range ch.Rule.Exprs {
			var err error
			if exprs[i], err = encode(e); err != nil {
				return err
			}
		}
		r := &nftables.Rule{Table: t, Chain: chain, Exprs: exprs}
		if ch.Op == firewall.InsertRule {
			r.Position = ch.Before
			c.InsertRule(r)
		} else {
			c.AddRule(r)
		}
	default:
		return fmt.Errorf("unknown operation %q", ch.Op)
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
