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
	"pkttype": expr.MetaKeyPKTTYPE,
}

var ctKeys = map[string]expr.CtKey{
	"mark": expr.CtKeyMARK, "state": expr.CtKeySTATE, "direction": expr.CtKeyDIRECTION, "protocol": expr.CtKeyPROTOCOL,
}

var payloadBases = map[string]expr.PayloadBase{
	"network": expr.PayloadBaseNetworkHeader, "transport": expr.PayloadBaseTransportHeader,
}

var cmpOps = map[string]expr.CmpOp{
	"eq": expr.CmpOpEq, "neq": expr.CmpOpNeq, "lt": expr.CmpOpLt, "gte": expr.CmpOpGte,
}

// limitUnits are those of a dynset, by Expr.Key.
var limitUnits = map[string]expr.LimitType{
	"": expr.LimitTypePktBytes, "packets": expr.LimitTypePkts, firewall.DynsetWithin: expr.LimitTypePkts,
}

// tproxyFamilies are those of a tproxy with an address, by Expr.Key. Without one the key is empty.
var tproxyFamilies = map[string]byte{"": 0, "ip": unix.NFPROTO_IPV4, "ip6": unix.NFPROTO_IPV6}

// Keys of the expressions fib and socket; the plan has no others.
const (
	addressTypeKey = "daddr type"
	sourceTypeKey  = "saddr . oif type"
	transparentKey = "transparent"
)

var verdicts = map[string]expr.VerdictKind{
	"accept": expr.VerdictAccept, "drop": expr.VerdictDrop, "return": expr.VerdictReturn, "jump": expr.VerdictJump,
	"goto": expr.VerdictGoto,
}

// rejects are the answers of a reject.
var rejects = map[string]expr.Reject{
	"tcp reset":              {Type: unix.NFT_REJECT_TCP_RST},
	"icmpx admin-prohibited": {Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED},
}

// name is the key of v in m. A value that is not in m gets a name that equals nothing wanted.
func name[V comparable](m map[string]V, v V) string {
	for k, x := range m {
		if x == v {
			return k
		}
	}
	return fmt.Sprintf("unknown %v", v)
}

func encodePayload(base expr.PayloadBase, e firewall.Expr) *expr.Payload {
	p := &expr.Payload{Base: base, Offset: e.Offset, Len: e.Len}
	if !e.Write {
		p.DestRegister = e.Reg
		return p
	}
	p.OperationType, p.SourceRegister = expr.PayloadWrite, e.Reg
	if e.Csum {
		p.CsumType, p.CsumOffset = expr.CsumTypeInet, 10
	}
	return p
}

func encodeDynset(e firewall.Expr) *expr.Dynset {
	switch out := (&expr.Dynset{SrcRegKey: e.Reg, SetName: e.Name, Operation: unix.NFT_DYNSET_OP_UPDATE}); e.Key {
	case firewall.DynsetRefresh:
		return out
	case firewall.DynsetCounter:
		out.Exprs = []expr.Any{&expr.Counter{}}
		return out
	}
	limit := &expr.Limit{
		Type: limitUnits[e.Key], Rate: e.Rate, Over: e.Key != firewall.DynsetWithin, Unit: expr.LimitTimeSecond,
		Burst: e.Burst,
	}
	return &expr.Dynset{
		SrcRegKey: e.Reg, SetName: e.Name, Operation: unix.NFT_DYNSET_OP_UPDATE, Exprs: []expr.Any{limit},
	}
}

// encode converts e to the library's expression.
func encode(e firewall.Expr) (expr.Any, error) {
	c := encoder{Expr: e}
	out := c.load()
	if out == nil {
		out = c.compute()
	}
	if out == nil {
		out = c.act()
	}
	if out == nil && c.bad == nil {
		c.known(false)
	}
	return out, c.bad
}

type encoder struct {
	firewall.Expr
	bad error
}

func (c *encoder) known(ok bool) {
	if !ok {
		c.bad = fmt.Errorf("expression %s is not supported", c.Expr)
	}
}

func (c *encoder) raw(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		c.bad = err
	}
	return b
}

// load is an expression that reads from or writes to a packet and what belongs to it; nil: it is another one.
func (c *encoder) load() expr.Any {
	switch c.Op {
	case "meta":
		k, ok := metaKeys[c.Key]
		c.known(ok)
		return &expr.Meta{Key: k, SourceRegister: c.Write, Register: c.Reg}
	case "ct":
		k, ok := ctKeys[c.Key]
		c.known(ok)
		return &expr.Ct{Key: k, SourceRegister: c.Write, Register: c.Reg}
	case "payload":
		base, ok := payloadBases[c.Key]
		c.known(ok)
		return encodePayload(base, c.Expr)
	case "exthdr":
		kind, err := strconv.ParseUint(c.Key, 10, 8)
		c.known(err == nil && c.Write)
		return &expr.Exthdr{
			SourceRegister: c.Reg, Type: uint8(kind), Offset: c.Offset, Len: c.Len, Op: expr.ExthdrOpTcpopt,
		}
	case "fib":
		if c.Key == sourceTypeKey {
			return &expr.Fib{Register: c.Reg, FlagSADDR: true, FlagOIF: true, ResultADDRTYPE: true}
		}
		c.known(c.Key == addressTypeKey)
		return &expr.Fib{Register: c.Reg, FlagDADDR: true, ResultADDRTYPE: true}
	case "socket":
		c.known(c.Key == transparentKey)
		return &expr.Socket{Key: expr.SocketKeyTransparent, Register: c.Reg}
	}
	return nil
}

// compute is an expression that compares or changes registers; nil: it is another one.
func (c *encoder) compute() expr.Any {
	switch c.Op {
	case "cmp":
		op, ok := cmpOps[c.Key]
		c.known(ok)
		return &expr.Cmp{Op: op, Register: c.Reg, Data: c.raw(c.Data)}
	case "bitwise":
		return &expr.Bitwise{
			SourceRegister: c.Reg, DestRegister: c.Reg, Len: c.Len, Mask: c.raw(c.Mask), Xor: c.raw(c.Xor),
		}
	case "lookup":
		return &expr.Lookup{
			SourceRegister: c.Reg, DestRegister: c.Dest, IsDestRegSet: c.Dest != 0, SetName: c.Name,
			Invert: c.Invert,
		}
	case "immediate":
		return &expr.Immediate{Register: c.Reg, Data: c.raw(c.Data)}
	}
	return nil
}

// act is an expression that counts, limits or decides; nil: it is another one.
func (c *encoder) act() expr.Any {
	switch c.Op {
	case "objref":
		return &expr.Objref{Type: int(nftables.ObjTypeCounter), Name: c.Name}
	case "limit":
		return &expr.Limit{Type: expr.LimitTypePkts, Rate: c.Rate, Unit: expr.LimitTimeSecond, Burst: c.Burst}
	case "dynset":
		_, ok := limitUnits[c.Key]
		c.known(ok || c.Key == firewall.DynsetRefresh || c.Key == firewall.DynsetCounter)
		return encodeDynset(c.Expr)
	case "tproxy":
		f, ok := tproxyFamilies[c.Key]
		c.known(ok && (f == 0) == (c.Dest == 0))
		return &expr.TProxy{Family: f, RegAddr: c.Dest, RegPort: c.Reg}
	case "verdict":
		k, ok := verdicts[c.Key]
		c.known(ok)
		return &expr.Verdict{Kind: k, Chain: c.Name}
	case "reject":
		r, ok := rejects[c.Key]
		c.known(ok)
		return &r
	case "masq":
		return &expr.Masq{}
	case "notrack":
		return &expr.Notrack{}
	}
	return nil
}

// decode is encode's inverse. What the plan never makes becomes an Expr that equals nothing wanted.
func decode(a expr.Any) firewall.Expr {
	for _, f := range []func(expr.Any) firewall.Expr{decodeLoad, decodeCompute, decodeAct} {
		if e := f(a); e.Op != "" {
			return e
		}
	}
	return firewall.Expr{Op: strings.TrimPrefix(fmt.Sprintf("%T", a), "*expr.")}
}

func decodeLoad(a expr.Any) (none firewall.Expr) {
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
		out := firewall.Expr{
			Op: "payload", Key: name(payloadBases, e.Base), Reg: e.DestRegister, Offset: e.Offset, Len: e.Len,
		}
		if e.SourceRegister != 0 {
			out.Write, out.Reg = true, e.SourceRegister
			out.Csum = e.CsumType == expr.CsumTypeInet && e.CsumOffset == 10
		}
		return out
	case *expr.Exthdr:
		if e.Op == expr.ExthdrOpTcpopt && e.SourceRegister != 0 {
			return firewall.Expr{
				Op: "exthdr", Key: fmt.Sprint(e.Type), Write: true, Reg: e.SourceRegister, Offset: e.Offset,
				Len: e.Len,
			}
		}
	case *expr.Fib:
		if *e == (expr.Fib{Register: e.Register, FlagDADDR: true, ResultADDRTYPE: true}) {
			return firewall.Expr{Op: "fib", Key: addressTypeKey, Reg: e.Register}
		}
		if *e == (expr.Fib{Register: e.Register, FlagSADDR: true, FlagOIF: true, ResultADDRTYPE: true}) {
			return firewall.Expr{Op: "fib", Key: sourceTypeKey, Reg: e.Register}
		}
	case *expr.Socket:
		if e.Key == expr.SocketKeyTransparent {
			return firewall.Expr{Op: "socket", Key: transparentKey, Reg: e.Register}
		}
	}
	return none
}

func decodeCompute(a expr.Any) (none firewall.Expr) {
	h := hex.EncodeToString
	switch e := a.(type) {
	case *expr.Cmp:
		return firewall.Expr{Op: "cmp", Key: name(cmpOps, e.Op), Reg: e.Register, Data: h(e.Data)}
	case *expr.Bitwise:
		if e.SourceRegister == e.DestRegister && len(e.Mask) > 0 {
			return firewall.Expr{
				Op: "bitwise", Reg: e.SourceRegister, Len: e.Len, Mask: h(e.Mask), Xor: h(e.Xor),
			}
		}
	case *expr.Lookup:
		return firewall.Expr{
			Op: "lookup", Reg: e.SourceRegister, Dest: e.DestRegister, Name: e.SetName, Invert: e.Invert,
		}
	case *expr.Immediate:
		return firewall.Expr{Op: "immediate", Reg: e.Register, Data: h(e.Data)}
	}
	return none
}

func decodeAct(a expr.Any) (none firewall.Expr) {
	switch e := a.(type) {
	case *expr.Objref:
		if e.Type == int(nftables.ObjTypeCounter) {
			return firewall.Expr{Op: "objref", Name: e.Name}
		}
	case *expr.Limit:
		if e.Type == expr.LimitTypePkts && e.Unit == expr.LimitTimeSecond && !e.Over {
			return firewall.Expr{Op: "limit", Rate: e.Rate, Burst: e.Burst}
		}
	case *expr.Dynset:
		if out, ok := decodeDynset(e); ok {
			return out
		}
	case *expr.TProxy:
		if (e.Family == 0) == (e.RegAddr == 0) {
			return firewall.Expr{Op: "tproxy", Key: name(tproxyFamilies, e.Family), Reg: e.RegPort, Dest: e.RegAddr}
		}
	case *expr.Verdict:
		return firewall.Expr{Op: "verdict", Key: name(verdicts, e.Kind), Name: e.Chain}
	case *expr.Reject:
		return firewall.Expr{Op: "reject", Key: name(rejects, *e)}
	case *expr.Notrack:
		return firewall.Expr{Op: "notrack"}
	case *expr.Masq:
		if *e == (expr.Masq{}) {
			return firewall.Expr{Op: "masq"}
		}
	}
	return none
}

// decodeDynset reads a rate limit or a counter for each flow, or neither; ok is false for any other update of a set.
func decodeDynset(e *expr.Dynset) (out firewall.Expr, ok bool) {
	plain := e.Operation == unix.NFT_DYNSET_OP_UPDATE && e.SrcRegData == 0 && e.Timeout == 0 && !e.Invert
	if !plain || len(e.Exprs) > 1 {
		return out, false
	}
	out = firewall.Expr{Op: "dynset", Key: firewall.DynsetRefresh, Reg: e.SrcRegKey, Name: e.SetName}
	if len(e.Exprs) == 0 {
		return out, true
	}
	if _, counts := e.Exprs[0].(*expr.Counter); counts {
		out.Key = firewall.DynsetCounter
		return out, true
	}
	l, ok := e.Exprs[0].(*expr.Limit)
	if !ok || l.Unit != expr.LimitTimeSecond || !l.Over && l.Type != expr.LimitTypePkts {
		return out, false
	}
	key := firewall.DynsetWithin
	switch {
	case !l.Over:
	case l.Type == expr.LimitTypePkts:
		key = "packets"
	default:
		key = name(map[string]expr.LimitType{"": expr.LimitTypePktBytes}, l.Type)
	}
	return firewall.Expr{
		Op: "dynset", Key: key, Reg: e.SrcRegKey, Name: e.SetName, Rate: l.Rate,
		Burst: l.Burst,
	}, true
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
