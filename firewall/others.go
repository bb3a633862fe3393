package firewall

import (
	"fmt"
	"slices"
	"strings"
)

// OtherChain is a base chain of another program's table that may drop packets. In nf_tables a packet has to be accepted
// by every base chain of a hook, whatever its priority: what this table accepts, another may still drop.
type OtherChain struct {
	Family   string // ip, ip6 or inet
	Table    string
	Chain    string
	Hook     string
	Priority int
	Policy   string // drop or accept
	// Rest says that it drops whatever it does not accept: by its policy, or by a rule for everything else. Otherwise some
	// of its rules drop.
	Rest bool
}

// SortOthers brings chains into their canonical order.
func SortOthers(chains []OtherChain) {
	slices.SortFunc(chains, func(a, b OtherChain) int { return strings.Compare(a.Subject(), b.Subject()) })
}

// Subject names the chain as nft(8) does: table and chain.
func (c OtherChain) Subject() string {
	return fmt.Sprintf("table %s %s chain %s", c.Family, c.Table, c.Chain)
}

// Text says what it may do to packets.
func (c OtherChain) Text() string {
	what := "has rules that drop packets"
	if c.Rest {
		what = "drops what it does not accept itself"
	}
	of := map[string]string{
		"prerouting": "all that arrives", "input": "tunnels' packets and all else that is for this box",
		"forward": "calls and all else that is forwarded", "output": "tunnels' packets and all else that this box sends",
		"postrouting": "all that leaves",
	}[c.Hook]
	return fmt.Sprintf("another program's nftables chain (hook %s, priority %d, policy %s) %s, of %s", c.Hook, c.Priority,
		c.Policy, what, of)
}

// Action says what to do about it.
func (c OtherChain) Action() string {
	list := fmt.Sprintf("`nft list chain %s %s %s`", c.Family, c.Table, c.Chain)
	if c.Rest {
		return fmt.Sprintf("have it accept what table inet %s accepts, or remove it (%s shows it)", Table, list)
	}
	return "make sure that they do not match packets of tunnels, calls and phones (" + list + " shows them)"
}

func (c OtherChain) String() string { return c.Subject() + ": " + c.Text() + "; " + c.Action() }
