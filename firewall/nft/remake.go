package nft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"ringway/firewall"
)

// A table cannot be replaced in one transaction without packets noticing, since not all of a transaction
// takes effect at once. Rules do; but the kernel fills new sets of ranges (since Linux 6.18, and for
// concatenations always) and unhooks old chains only after that, one by one:
//
//   - A new set of ranges is empty for a moment. With `sites` empty a packet of a site is dropped as spoofed, and one
//     to a site is not held back on the WAN.
//   - An old chain is empty for a moment. One with the policy drop drops every packet.
//
// So sets come before the rules that look them up, and a second table with the same content takes its place
// while the first is replaced. While both are there a packet has to pass both, which is the same as passing
// one.

// standInTable is the name of the table that takes its place.
const standInTable = firewall.Table + "_stand_in"

func standIn() *nftables.Table {
	return &nftables.Table{Name: standInTable, Family: nftables.TableFamilyINet}
}

// phases splits the changes that make a table: first all that rules refer to, then chains and rules.
func phases(changes []firewall.Change) (sets, chains []firewall.Change) {
	i := slices.IndexFunc(changes, func(c firewall.Change) bool { return c.Op == firewall.AddChain })
	if i < 0 {
		return changes, nil
	}
	return changes[:i], changes[i:]
}

// create makes the table, which is not there, and takes it away again where that fails.
func (r *Ruleset) create(changes []firewall.Change) error {
	sets, chains := phases(changes)
	if err := r.withElements(table(), sets); err != nil {
		return err
	}
	if err := transact(table(), chains, nil); err != nil {
		return errors.Join(err, transact(table(), []firewall.Change{{Op: firewall.DeleteTable}}, nil))
	}
	return nil
}

// remake replaces the table. changes begin with its deletion.
func (r *Ruleset) remake(changes []firewall.Change) error {
	sets, chains := phases(changes)
	if err := r.raiseStandIn(sets[1:], chains); err != nil {
		return errors.Join(err, removeStandIn())
	}

	// What goes wrong from here on leaves the stand-in, which protects as well as the table, until an Apply
	// succeeds.
	if err := relaxPolicies(table()); err != nil {
		return err
	}
	if err := r.withElements(table(), sets); err != nil {
		return err
	}
	return transact(table(), chains, nil)
}

// raiseStandIn makes the stand-in, with the elements of dynamic sets. An older one, which a crash left,
// goes first.
func (r *Ruleset) raiseStandIn(sets, chains []firewall.Change) error {
	if err := removeStandIn(); err != nil {
		return err
	}
	err := transact(standIn(), sets, func(c *nftables.Conn) error {
		for _, o := range r.madeAnew(sets) {
			if err := o.queueElements(c, standIn(), o.liveElements()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return transact(standIn(), chains, nil)
}

// removeStandIn takes the stand-in away, if it is there.
func removeStandIn() error {
	c, err := open()
	if err != nil {
		return err
	}
	defer c.CloseLasting()
	found, err := findTable(c, standInTable)
	if err != nil || found == nil {
		return err
	}
	if err := relaxPolicies(standIn()); err != nil {
		return err
	}
	return transact(standIn(), []firewall.Change{{Op: firewall.DeleteTable}}, nil)
}

// relaxPolicies sets the policy of t's base chains to accept before t is deleted, where the chain's last
// rule drops everything that reaches it: nothing passes that did not, and nothing is dropped when the rules
// are gone and the chain is not yet. If the process dies in between, the policy is a difference, and the
// next reconciliation removes it.
func relaxPolicies(t *nftables.Table) error {
	c, err := open()
	if err != nil {
		return err
	}
	defer c.CloseLasting()
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}

	accept := nftables.ChainPolicyAccept
	for _, ch := range chains {
		if ch.Table.Name != t.Name || ch.Hooknum == nil || ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop {
			continue
		}
		rules, err := c.GetRules(t, ch)
		if err != nil {
			return fmt.Errorf("list rules of chain %s: %w", ch.Name, err)
		}
		if len(rules) > 0 && dropsEverything(rules[len(rules)-1]) {
			ch.Table, ch.Policy = t, &accept
			c.AddChain(ch)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("set the policy of the base chains of table inet %s to accept: %w", t.Name, err)
	}
	return nil
}

// dropsEverything says whether a rule does nothing but count and drop.
func dropsEverything(r *nftables.Rule) bool {
	last := len(r.Exprs) - 1
	counts := func(e expr.Any) bool { return decode(e).Op == "objref" }
	return last >= 0 && decode(r.Exprs[last]) == firewall.Expr{Op: "verdict", Key: "drop"} &&
		!slices.ContainsFunc(r.Exprs[:last], func(e expr.Any) bool { return !counts(e) })
}
