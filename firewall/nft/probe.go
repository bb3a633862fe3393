package nft

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"ringway/firewall"
)

// ErrNoTables is returned by Probe where nf_tables itself, or what Ringway cannot do without, is missing.
var ErrNoTables = errors.New("the kernel lacks nf_tables for family inet (CONFIG_NF_TABLES_INET, CONFIG_NFT_CT): " +
	"nothing can be classified or protected")

// Probe says which features the kernel lacks. Each is tried in a table of its own that is made
// and removed in one transaction, so no packet ever meets it.
func Probe() ([]firewall.Feature, error) {
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	base := try(
		nftables.ChainTypeFilter, nftables.ChainHookPrerouting,
		[]expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, accept},
	)
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
		{
			firewall.FeatureMasquerade, nftables.ChainTypeNAT, nftables.ChainHookPostrouting,
			[]expr.Any{&expr.Masq{}},
		},
		{firewall.FeatureMSS, nftables.ChainTypeFilter, nftables.ChainHookForward, []expr.Any{
			&expr.Immediate{Register: 1, Data: []byte{5, 100}},
			&expr.Exthdr{SourceRegister: 1, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt}}},
		{firewall.FeatureLimit, nftables.ChainTypeFilter, nftables.ChainHookInput, []expr.Any{
			&expr.Limit{Type: expr.LimitTypePkts, Rate: 20, Unit: expr.LimitTimeSecond, Burst: 40}, accept}},
		{firewall.FeatureFib, nftables.ChainTypeFilter, nftables.ChainHookPostrouting, []expr.Any{
			&expr.Fib{Register: 1, FlagSADDR: true, FlagOIF: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{2, 0, 0, 0}}, accept}},
		{firewall.FeatureReject, nftables.ChainTypeFilter, nftables.ChainHookOutput, []expr.Any{
			&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}},
		{firewall.FeatureTProxy, nftables.ChainTypeFilter, nftables.ChainHookPrerouting, interception()},
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
		&expr.Meta{
			Key: expr.MetaKeyNFPROTO, Register: 1,
		}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{2}},
		address(12, 1), address(16, 9), limited}, flows); err != nil {
		missing = append(missing, firewall.FeatureFlowLimit)
	}
	return missing, nil
}

// interception is all that taking SIP needs of the kernel: local addresses, transparent sockets, TPROXY.
func interception() []expr.Any {
	is := func(b ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b} }
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}, is(0, 0, 0, 0),
		&expr.Socket{Key: expr.SocketKeyTransparent, Register: 1}, is(1),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, is(unix.IPPROTO_UDP),
		&expr.Immediate{Register: 1, Data: []byte{20, 151}},
		&expr.TProxy{RegPort: 1},
	}
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
		if err := addSet(c, set); err != nil {
			return err
		}
	}
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: exprs})
	c.DelTable(t)
	return c.Flush()
}

// ElementFeatures are what the kernel can do with elements of sets. Without them it takes more transactions.
type ElementFeatures struct {
	Destroy bool // delete an element that may be gone (Linux 6.3)
	Refresh bool // give an element another life in place (Linux 6.12)
}

// ProbeElements says what the kernel can do with elements. It tries in a table of its own, without chains,
// which is gone when it returns.
func ProbeElements() (ElementFeatures, error) {
	var f ElementFeatures
	c, err := open()
	if err != nil {
		return f, err
	}
	defer c.CloseLasting()
	s, err := openElementSocket()
	if err != nil {
		return f, err
	}
	defer s.close()

	t := &nftables.Table{Name: firewall.Table + "_probe_elements", Family: nftables.TableFamilyINet}
	set, err := encodeSet(
		t, firewall.Set{Name: "probe", Type: "ipv4_addr", Size: 8, Timeout: 3600, Owned: true},
	)
	if err != nil {
		return f, err
	}
	c.AddTable(t)
	if err := addSet(c, set); err != nil {
		return f, err
	}
	if err := c.Flush(); err != nil {
		return f, fmt.Errorf("probe elements of sets: %w", err)
	}
	defer func() {
		c.DelTable(t)
		_ = c.Flush()
	}()

	e := rawElement{Key: "\x7f\x00\x00\x01", timeout: time.Hour, remains: time.Minute}
	for range 2 { // the second time it is there
		if err := s.commit(
			t.Name, elementMessage{unix.NFT_MSG_NEWSETELEM, set.Name, []rawElement{e}},
		); err != nil {
			return f, fmt.Errorf("probe elements of sets: %w", err)
		}
		e.remains = time.Hour
	}
	there, err := c.GetSetElements(set)
	if err != nil {
		return f, fmt.Errorf("probe elements of sets: %w", err)
	}
	f.Refresh = len(there) == 1 && there[0].Expires > time.Hour/2

	e.Key = "\x7f\x00\x00\x02" // not there
	f.Destroy = s.commit(t.Name, elementMessage{msgDestroySetElem, set.Name, []rawElement{e}}) == nil
	return f, nil
}
