package nft

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ringway/firewall"
)

// dumpTries is how often the rules are read that changed meanwhile. Elements of dynamic sets interrupt a dump too, so
// the last one counts: whoever changes rules is told of by the watch.
const dumpTries = 5

// observeRules reads all rules of the table, by chain. The library reads rules as well, but leaves expressions out
// that it does not know, tproxy and socket among them: a rule without its tproxy would then pass for the wanted one.
func observeRules() (map[string][]firewall.Rule, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open nf_tables netlink socket: %w", err)
	}
	defer c.Close()
	if err := c.SetReadBuffer(8 << 20); err != nil {
		return nil, fmt.Errorf("set up nf_tables netlink socket: %w", err)
	}

	question, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: []byte(firewall.Table + "\x00")},
	})
	if err != nil {
		return nil, err
	}
	var messages []netlink.Message
	for range dumpTries {
		messages, err = c.Execute(netlink.Message{
			Header: netlink.Header{
				Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE,
				Flags: netlink.Request | netlink.Dump,
			},
			Data: append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, question...),
		})
		if err != nil {
			return nil, fmt.Errorf("list rules of table inet %s: %w", firewall.Table, err)
		}
		if !interrupted(messages) {
			break
		}
	}

	rules := map[string][]firewall.Rule{}
	for _, m := range messages {
		chain, r, err := readRule(m)
		if err != nil {
			return nil, fmt.Errorf("read a rule of table inet %s: %w", firewall.Table, err)
		}
		rules[chain] = append(rules[chain], r)
	}
	return rules, nil
}

func interrupted(messages []netlink.Message) bool {
	for _, m := range messages {
		if m.Header.Flags&netlink.DumpInterrupted != 0 {
			return true
		}
	}
	return false
}

func readRule(m netlink.Message) (chain string, r firewall.Rule, err error) {
	const family = 4 // struct nfgenmsg
	if len(m.Data) < family {
		return "", r, fmt.Errorf("a message of %d bytes", len(m.Data))
	}
	d, err := decoder(m.Data[family:])
	if err != nil {
		return "", r, err
	}
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_RULE_CHAIN:
			chain = d.String()
		case unix.NFTA_RULE_HANDLE:
			r.Handle = d.Uint64()
		case unix.NFTA_RULE_EXPRESSIONS:
			d.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(func(one *netlink.AttributeDecoder) error {
						r.Exprs = append(r.Exprs, readExpr(one))
						return nil
					})
				}
				return nil
			})
		}
	}
	return chain, r, d.Err()
}

// decoder reads attributes in the byte order of nf_tables; nested ones inherit it.
func decoder(b []byte) (*netlink.AttributeDecoder, error) {
	d, err := netlink.NewAttributeDecoder(b)
	if err == nil {
		d.ByteOrder = binary.BigEndian
	}
	return d, err
}

// readExpr reads one expression. One that cannot be read equals nothing wanted, like one that the plan never makes.
func readExpr(d *netlink.AttributeDecoder) firewall.Expr {
	var kind string
	var data []byte
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_EXPR_NAME:
			kind = d.String()
		case unix.NFTA_EXPR_DATA:
			data = d.Bytes()
		}
	}
	e := newExpr(kind)
	if e == nil || d.Err() != nil {
		return firewall.Expr{Op: kind}
	}

	var err error
	if t, ok := e.(*expr.TProxy); ok {
		err = readTProxy(t, data)
	} else {
		err = expr.Unmarshal(unix.NFPROTO_INET, data, e)
	}
	if i, ok := e.(*expr.Immediate); ok && err == nil && i.Register == unix.NFT_REG_VERDICT {
		e = &expr.Verdict{} // the kernel's immediate carries both
		err = expr.Unmarshal(unix.NFPROTO_INET, data, e)
	}
	if err != nil {
		return firewall.Expr{Op: kind}
	}
	return decode(e)
}

// newExpr is an empty expression of the kind that the kernel calls name; nil: the plan has none of it.
func newExpr(name string) expr.Any {
	switch name {
	case "meta":
		return &expr.Meta{}
	case "ct":
		return &expr.Ct{}
	case "payload":
		return &expr.Payload{}
	case "exthdr":
		return &expr.Exthdr{}
	case "cmp":
		return &expr.Cmp{}
	case "bitwise":
		return &expr.Bitwise{}
	case "lookup":
		return &expr.Lookup{}
	case "immediate":
		return &expr.Immediate{}
	case "objref":
		return &expr.Objref{}
	case "limit":
		return &expr.Limit{}
	case "dynset":
		return &expr.Dynset{}
	case "masq":
		return &expr.Masq{}
	case "notrack":
		return &expr.Notrack{}
	case "reject":
		return &expr.Reject{}
	case "fib":
		return &expr.Fib{}
	case "socket":
		return &expr.Socket{}
	case "tproxy":
		return &expr.TProxy{}
	}
	return nil
}

// readTProxy does what the library's own reader would, if it did not take the family for one byte.
func readTProxy(t *expr.TProxy, data []byte) error {
	d, err := decoder(data)
	if err != nil {
		return err
	}
	for d.Next() {
		switch d.Type() {
		case expr.NFTA_TPROXY_FAMILY:
			t.Family = byte(d.Uint32())
		case expr.NFTA_TPROXY_REG_ADDR:
			t.RegAddr = d.Uint32()
		case expr.NFTA_TPROXY_REG_PORT:
			t.RegPort = d.Uint32()
		}
	}
	return d.Err()
}
