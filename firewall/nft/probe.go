package nft

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"ringway/firewall"
)

// ErrNoTables is returned by Probe where nf_tables itself, or what Ringway cannot do without, is missing.
var ErrNoTables = errors.New("the kernel lacks nf_tables for family inet (CONFIG_NF_TABLES_INET, CONFIG_NFT_CT): nothing can be classified or protected")

// Probe says which features the kernel lacks. Each is tried in a table of its own that is made
// and removed in one transaction, so no packet ever meets it.
func Probe() ([]firewall.Feature, error) {
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	base := try(nftables.ChainTypeFilter, nftables.ChainHookPrerouting, []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, accept})
	if errors.Is(base, fs.ErrPermission) {
		return nil, fmt.Errorf("probe nf_tables: %w", base)
	}
	if base != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoTables, base)
	}
	var missing []firewall.Feature
	for _, p := range []struct {
		feature firewall.Feature
		typ     nftables.ChainType
		hook    *nftables.ChainHook
		exprs   []expr.Any
	}{
		{firewall.FeatureNAT, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, []expr.Any{accept}},
		{firewall.FeatureMasquerade, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, []expr.Any{&expr.Masq{}}},
		{firewall.FeatureMSS, nftables.ChainTypeFilter, nftables.ChainHookForward, []expr.Any{
			&expr.Immediate{Register: 1, Data: []byte{5, 100}},
			&expr.Exthdr{SourceRegister: 1, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt}}},
		{firewall.FeatureLimit, nftables.ChainTypeFilter, nftables.ChainHookInput, []expr.Any{
			&expr.Limit{Type: expr.LimitTypePkts, Rate: 20, Unit: expr.LimitTimeSecond, Burst: 40}, accept}},
	} {
		if err := try(p.typ, p.hook, p.exprs); err != nil {
			missing = append(missing, p.feature)
		}
	}
	flows := firewall.Set{Name: "flows", Type: "ipv4_addr . ipv4_addr", Size: 16, Timeout: 1}
	limited, err := encode(firewall.Expr{Op: "dynset", Reg: 1, Name: flows.Name, Rate: 32000, Burst: 3000})
	if err != nil {
		return nil, fmt.Errorf("probe nf_tables: %w", err)
	}
	address := func(offset, reg uint32) expr.Any {
		return &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4, DestRegister: reg}
	}
	if err := try(nftables.ChainTypeFilter, nftables.ChainHookForward, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{2}},
		address(12, 1), address(16, 9), limited}, flows); err != nil {
		missing = append(missing, firewall.FeatureFlowLimit)
	}
	return missing, nil
}

func try(typ nftables.ChainType, hook *nftables.ChainHook, exprs []expr.Any, sets ...firewall.Set) error {
	c, err := open()
	if err != nil {
		return err
	}
	defer c.CloseLasting()
	t := c.AddTable(&nftables.Table{Name: firewall.Table + "_probe", Family: nftables.TableFamilyINet})
	priority := nftables.ChainPriorityFilter
	if typ == nftables.ChainTypeNAT {
		priority = nftables.ChainPriorityNATSource
	}
	chain := c.AddChain(&nftables.Chain{Table: t, Name: "probe", Type: typ, Hooknum: hook, Priority: priority})
	for _, s := range sets {
		set, err := encodeSet(t, s)
		if err != nil {
			return err
		}
		if err := c.AddSet(set, nil); err != nil {
			return err
		}
	}
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: exprs})
	c.DelTable(t)
	return c.Flush()
}
