package nft

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"ringway/firewall"
)

var metaKeys = map[string]expr.MetaKey{
	"mark": expr.MetaKeyMARK, "iifname": expr.MetaKeyIIFNAME, "oifname": expr.MetaKeyOIFNAME,
	"nfproto": expr.MetaKeyNFPROTO, "l4proto": expr.MetaKeyL4PROTO, "priority": expr.MetaKeyPRIORITY,
}

var ctKeys = map[string]expr.CtKey{"mark": expr.CtKeyMARK, "state": expr.CtKeySTATE}

var payloadBases = map[string]expr.PayloadBase{"network": expr.PayloadBaseNetworkHeader, "transport": expr.PayloadBaseTransportHeader}

var cmpOps = map[string]expr.CmpOp{"eq": expr.CmpOpEq, "neq": expr.CmpOpNeq}

var verdicts = map[string]expr.VerdictKind{
	"accept": expr.VerdictAccept, "drop": expr.VerdictDrop, "return": expr.VerdictReturn, "jump": expr.VerdictJump, "goto": expr.VerdictGoto,
}

// name is the key of v in m; what m does not know gets a number, which equals nothing wanted.
func name[V comparable](m map[string]V, v V) string {
	for k, x := range m {
		if x == v {
			return k
		}
	}
	return fmt.Sprintf("unknown %v", v)
}

// encode makes the library's expression of e.
func encode(e firewall.Expr) (expr.Any, error) {
	var bad error
	raw := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			bad = err
		}
		return b
	}
	known := func(ok bool) {
		if !ok {
			bad = fmt.Errorf("expression %s has no meaning here", e)
		}
	}
	var out expr.Any
	switch e.Op {
	case "meta":
		k, ok := metaKeys[e.Key]
		known(ok)
		out = &expr.Meta{Key: k, SourceRegister: e.Write, Register: e.Reg}
	case "ct":
		k, ok := ctKeys[e.Key]
		known(ok)
		out = &expr.Ct{Key: k, SourceRegister: e.Write, Register: e.Reg}
	case "payload":
		base, ok := payloadBases[e.Key]
		known(ok)
		p := &expr.Payload{Base: base, Offset: e.Offset, Len: e.Len}
		if e.Write {
			p.OperationType, p.SourceRegister = expr.PayloadWrite, e.Reg
			if e.Csum {
				p.CsumType, p.CsumOffset = expr.CsumTypeInet, 10
			}
		} else {
			p.DestRegister = e.Reg
		}
		out = p
	case "exthdr":
		kind, err := strconv.ParseUint(e.Key, 10, 8)
		known(err == nil && e.Write)
		out = &expr.Exthdr{SourceRegister: e.Reg, Type: uint8(kind), Offset: e.Offset, Len: e.Len, Op: expr.ExthdrOpTcpopt}
	case "cmp":
		op, ok := cmpOps[e.Key]
		known(ok)
		out = &expr.Cmp{Op: op, Register: e.Reg, Data: raw(e.Data)}
	case "bitwise":
		out = &expr.Bitwise{SourceRegister: e.Reg, DestRegister: e.Reg, Len: e.Len, Mask: raw(e.Mask), Xor: raw(e.Xor)}
	case "lookup":
		out = &expr.Lookup{SourceRegister: e.Reg, DestRegister: e.Dest, IsDestRegSet: e.Dest != 0, SetName: e.Name, Invert: e.Invert}
	case "immediate":
		out = &expr.Immediate{Register: e.Reg, Data: raw(e.Data)}
	case "objref":
		out = &expr.Objref{Type: int(nftables.ObjTypeCounter), Name: e.Name}
	case "limit":
		out = &expr.Limit{Type: expr.LimitTypePkts, Rate: e.Rate, Unit: expr.LimitTimeSecond, Burst: e.Burst}
	case "dynset":
		out = &expr.Dynset{SrcRegKey: e.Reg, SetName: e.Name, Operation: unix.NFT_DYNSET_OP_UPDATE, Exprs: []expr.Any{
			&expr.Limit{Type: expr.LimitTypePktBytes, Rate: e.Rate, Over: true, Unit: expr.LimitTimeSecond, Burst: e.Burst}}}
	case "verdict":
		k, ok := verdicts[e.Key]
		known(ok)
		out = &expr.Verdict{Kind: k, Chain: e.Name}
	case "masq":
		out = &expr.Masq{}
	case "notrack":
		out = &expr.Notrack{}
	default:
		known(false)
	}
	return out, bad
}

// decode is encode's inverse. What the plan never makes becomes an Expr that equals nothing wanted.
func decode(a expr.Any) firewall.Expr {
	h := hex.EncodeToString
	switch e := a.(type) {
	case *expr.Meta:
		return firewall.Expr{Op: "meta", Key: name(metaKeys, e.Key), Write: e.SourceRegister, Reg: e.Register}
	case *expr.Ct:
		if e.Register == 0 {
			// The library does not read the source register; the plan only ever uses register 1.
			return firewall.Expr{Op: "ct", Key: name(ctKeys, e.Key), Write: true, Reg: 1}
		}
		return firewall.Expr{Op: "ct", Key: name(ctKeys, e.Key), Reg: e.Register}
	case *expr.Payload:
		out := firewall.Expr{Op: "payload", Key: name(payloadBases, e.Base), Reg: e.DestRegister, Offset: e.Offset, Len: e.Len}
		if e.SourceRegister != 0 {
			out.Write, out.Reg = true, e.SourceRegister
			out.Csum = e.CsumType == expr.CsumTypeInet && e.CsumOffset == 10
		}
		return out
	case *expr.Exthdr:
		if e.Op == expr.ExthdrOpTcpopt && e.SourceRegister != 0 {
			return firewall.Expr{Op: "exthdr", Key: fmt.Sprint(e.Type), Write: true, Reg: e.SourceRegister, Offset: e.Offset, Len: e.Len}
		}
	case *expr.Cmp:
		return firewall.Expr{Op: "cmp", Key: name(cmpOps, e.Op), Reg: e.Register, Data: h(e.Data)}
	case *expr.Bitwise:
		if e.SourceRegister == e.DestRegister && len(e.Mask) > 0 {
			return firewall.Expr{Op: "bitwise", Reg: e.SourceRegister, Len: e.Len, Mask: h(e.Mask), Xor: h(e.Xor)}
		}
	case *expr.Lookup:
		return firewall.Expr{Op: "lookup", Reg: e.SourceRegister, Dest: e.DestRegister, Name: e.SetName, Invert: e.Invert}
	case *expr.Immediate:
		return firewall.Expr{Op: "immediate", Reg: e.Register, Data: h(e.Data)}
	case *expr.Objref:
		if e.Type == int(nftables.ObjTypeCounter) {
			return firewall.Expr{Op: "objref", Name: e.Name}
		}
	case *expr.Limit:
		if e.Type == expr.LimitTypePkts && e.Unit == expr.LimitTimeSecond && !e.Over {
			return firewall.Expr{Op: "limit", Rate: e.Rate, Burst: e.Burst}
		}
	case *expr.Dynset:
		if e.Operation == unix.NFT_DYNSET_OP_UPDATE && e.SrcRegData == 0 && e.Timeout == 0 && !e.Invert && len(e.Exprs) == 1 {
			if l, ok := e.Exprs[0].(*expr.Limit); ok && l.Type == expr.LimitTypePktBytes && l.Unit == expr.LimitTimeSecond && l.Over {
				return firewall.Expr{Op: "dynset", Reg: e.SrcRegKey, Name: e.SetName, Rate: l.Rate, Burst: l.Burst}
			}
		}
	case *expr.Verdict:
		return firewall.Expr{Op: "verdict", Key: name(verdicts, e.Kind), Name: e.Chain}
	case *expr.Notrack:
		return firewall.Expr{Op: "notrack"}
	case *expr.Masq:
		if *e == (expr.Masq{}) {
			return firewall.Expr{Op: "masq"}
		}
	}
	return firewall.Expr{Op: strings.TrimPrefix(fmt.Sprintf("%T", a), "*expr.")}
}

var hooks = map[string]nftables.ChainHook{
	"prerouting": unix.NF_INET_PRE_ROUTING, "input": unix.NF_INET_LOCAL_IN, "forward": unix.NF_INET_FORWARD,
	"output": unix.NF_INET_LOCAL_OUT, "postrouting": unix.NF_INET_POST_ROUTING,
}

func encodeChain(t *nftables.Table, c firewall.Chain) (*nftables.Chain, error) {
	out := &nftables.Chain{Table: t, Name: c.Name}
	if c.Hook == "" {
		return out, nil
	}
	h, ok := hooks[c.Hook]
	if !ok {
		return nil, fmt.Errorf("hook %q is not known", c.Hook)
	}
	policy := nftables.ChainPolicyAccept
	if c.Policy == "drop" {
		policy = nftables.ChainPolicyDrop
	}
	out.Hooknum, out.Priority = &h, nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority))
	out.Type, out.Policy = nftables.ChainType(c.Type), &policy
	return out, nil
}

func decodeChain(c *nftables.Chain) firewall.Chain {
	out := firewall.Chain{Name: c.Name}
	if c.Hooknum == nil || c.Priority == nil {
		return out
	}
	out.Type, out.Hook, out.Priority, out.Policy = string(c.Type), name(hooks, *c.Hooknum), int(*c.Priority), "accept"
	if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		out.Policy = "drop"
	}
	return out
}
