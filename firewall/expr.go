package firewall

import "fmt"

// Expr is one instruction of the kernel's rule machine in a neutral form, one for one what
// `nft --debug=netlink` prints. It is comparable: two rules are equal when their Exprs are.
// Data, Mask and Xor are the raw bytes as hex, so that no printed name can lie about them.
type Expr struct {
	// Op is meta, ct, payload, exthdr, cmp, bitwise, lookup, immediate, objref, limit, dynset, verdict, masq,
	// notrack, fib, socket, tproxy or reject; observed expressions that the plan never makes have their own names.
	Op string `json:"op"`
	// Key is what meta, ct, fib and socket load; payload's base; cmp's operator; which verdict; dynset's unit; what
	// reject answers; tproxy's family where it has an address, in register Dest.
	Key    string `json:"key,omitempty"`
	Write  bool   `json:"write,omitempty"` // meta, ct, payload, exthdr: register into packet
	Reg    uint32 `json:"reg,omitempty"`
	Dest   uint32 `json:"dest,omitempty"` // lookup in a map: register of the value
	Offset uint32 `json:"offset,omitempty"`
	Len    uint32 `json:"len,omitempty"`
	Data   string `json:"data,omitempty"`
	Mask   string `json:"mask,omitempty"`
	Xor    string `json:"xor,omitempty"`
	Invert bool   `json:"invert,omitempty"`
	Name   string `json:"name,omitempty"` // set, counter, chain
	Csum   bool   `json:"csum,omitempty"` // payload write: correct the IPv4 header checksum at offset 10
	Rate   uint64 `json:"rate,omitempty"` // limit: packets a second; dynset: bytes, or with Key packets those
	Burst  uint32 `json:"burst,omitempty"`
}

// What a dynset does with the element of a packet, by Key, where it is no limit of a rate.
const (
	DynsetRefresh = "refresh" // the element is there, and its life begins again
	DynsetCounter = "counter" // and the packet is counted
	// DynsetWithin is a limit in packets that the packet is within; with any other key it is beyond.
	DynsetWithin = "within"
)

// String is close to libnftnl's words.
func (e Expr) String() string {
	switch e.Op {
	case "meta", "ct":
		if e.Write {
			return fmt.Sprintf("[ %s set %s with reg %d ]", e.Op, e.Key, e.Reg)
		}
		return fmt.Sprintf("[ %s load %s => reg %d ]", e.Op, e.Key, e.Reg)
	case "payload":
		if e.Write {
			return fmt.Sprintf(
				"[ payload write reg %d => %db @ %s header + %d ]", e.Reg, e.Len, e.Key, e.Offset,
			)
		}
		return fmt.Sprintf("[ payload load %db @ %s header + %d => reg %d ]", e.Len, e.Key, e.Offset, e.Reg)
	case "exthdr":
		return fmt.Sprintf("[ exthdr write tcpopt reg %d => %db @ %s + %d ]", e.Reg, e.Len, e.Key, e.Offset)
	case "cmp":
		return fmt.Sprintf("[ cmp %s reg %d 0x%s ]", e.Key, e.Reg, e.Data)
	case "bitwise":
		return fmt.Sprintf("[ bitwise reg %d = ( reg %d & 0x%s ) ^ 0x%s ]", e.Reg, e.Reg, e.Mask, e.Xor)
	case "lookup":
		s := fmt.Sprintf("[ lookup reg %d set %s", e.Reg, e.Name)
		if e.Dest != 0 {
			s += fmt.Sprintf(" dreg %d", e.Dest)
		}
		if e.Invert {
			s += " 0x1"
		}
		return s + " ]"
	case "immediate":
		return fmt.Sprintf("[ immediate reg %d 0x%s ]", e.Reg, e.Data)
	case "objref":
		return fmt.Sprintf("[ objref counter name %s ]", e.Name)
	case "limit":
		return fmt.Sprintf("[ limit rate %d/second burst %d ]", e.Rate, e.Burst)
	case "dynset":
		switch e.Key {
		case DynsetRefresh:
			return fmt.Sprintf("[ dynset update reg_key %d set %s ]", e.Reg, e.Name)
		case DynsetCounter:
			return fmt.Sprintf("[ dynset update reg_key %d set %s expr [ counter ] ]", e.Reg, e.Name)
		}
		unit := "bytes"
		if e.Key != "" {
			unit = e.Key
		}
		return fmt.Sprintf(
			"[ dynset update reg_key %d set %s expr [ limit over %d %s/second burst %d ] ]", e.Reg, e.Name,
			e.Rate, unit, e.Burst,
		)
	case "fib":
		return fmt.Sprintf("[ fib %s => reg %d ]", e.Key, e.Reg)
	case "socket":
		return fmt.Sprintf("[ socket load %s => reg %d ]", e.Key, e.Reg)
	case "tproxy":
		return fmt.Sprintf("[ tproxy port reg %d ]", e.Reg)
	case "reject":
		return fmt.Sprintf("[ reject with %s ]", e.Key)
	case "verdict":
		if e.Name != "" {
			return fmt.Sprintf("[ immediate reg 0 %s -> %s ]", e.Key, e.Name)
		}
		return fmt.Sprintf("[ immediate reg 0 %s ]", e.Key)
	}
	return "[ " + e.Op + " ]"
}
