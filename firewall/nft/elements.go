package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"

	"ringway/firewall"
)

var types = map[string]nftables.SetDatatype{
	"ipv4_addr": nftables.TypeIPAddr, "ipv6_addr": nftables.TypeIP6Addr, "inet_service": nftables.TypeInetService,
	"ifname": nftables.TypeIFName, "icmp_type": nftables.TypeICMPType, "icmpv6_type": nftables.TypeICMP6Type,
	"classid": nftables.TypeClassID,
	// nft aborts when it lists elements of which a part is an integer without a length: to the kernel it is a mark,
	// which has as many bits. The kernel compares bytes, whatever they are called.
	"integer": nftables.TypeMark,
}

// typeOf is the type of a set's key as firewall has it.
func typeOf(s *nftables.Set) string { return strings.ReplaceAll(s.KeyType.Name, "mark", "integer") }

func encodeSet(t *nftables.Table, s firewall.Set) (*nftables.Set, error) {
	out := &nftables.Set{Table: t, Name: s.Name, Interval: s.Interval, IsMap: s.Data != ""}
	if s.Size > 0 {
		out.Dynamic, out.HasTimeout = !s.Owned, true
		out.Size, out.Timeout = s.Size, time.Duration(s.Timeout)*time.Second
	}
	var parts []nftables.SetDatatype
	for w := range strings.SplitSeq(s.Type, " . ") {
		d, ok := types[w]
		if !ok {
			return nil, fmt.Errorf("set type %q is not known", w)
		}
		parts = append(parts, d)
	}
	out.KeyType = parts[0]
	if len(parts) > 1 {
		out.KeyType = nftables.MustConcatSetType(parts...)
	}
	// Only what nft prints depends on it: names are in host order, the rest as on the wire.
	out.KeyByteOrder = binaryutil.BigEndian
	if s.Type == "ifname" {
		out.KeyByteOrder = binaryutil.NativeEndian
	}
	if out.IsMap {
		d, ok := types[s.Data]
		if !ok {
			return nil, fmt.Errorf("map value type %q is not known", s.Data)
		}
		out.DataType = d
	}
	return out, nil
}

func encodeElements(s firewall.Set) ([]nftables.SetElement, error) {
	if s.Interval {
		return encodeIntervals(s)
	}
	var out []nftables.SetElement
	for _, e := range s.Elements {
		k, err := encodeKey(s.Type, e.Key)
		if err != nil {
			return nil, err
		}
		el := nftables.SetElement{Key: []byte(k)}
		if s.Data != "" {
			if el.Val, err = value(s.Data, e.Value); err != nil {
				return nil, err
			}
		}
		out = append(out, el)
	}
	return out, nil
}

// encodeKey gives an element's key in the kernel's bytes. Parts of a concatenation fill whole registers of
// 32 bits.
func encodeKey(typ, text string) (Key, error) {
	kinds, words := strings.Split(typ, " . "), strings.Split(text, " . ")
	if len(kinds) != len(words) {
		return "", fmt.Errorf("%q is not of type %s", text, typ)
	}
	var key []byte
	for i, kind := range kinds {
		part, err := value(kind, words[i])
		if err != nil {
			return "", err
		}
		key = append(key, part...)
		if len(kinds) > 1 {
			key = append(key, make([]byte, -len(part)&3)...)
		}
	}
	return Key(key), nil
}

// decodeKey is encodeKey's inverse; false: the key is not of that type.
func decodeKey(typ string, key []byte) (text string, ok bool) {
	kinds := strings.Split(typ, " . ")
	var words []string
	for _, kind := range kinds {
		n := width(kind)
		padded := n
		if len(kinds) > 1 {
			padded = (n + 3) &^ 3
		}
		if n == 0 || len(key) < padded {
			return "", false
		}
		words = append(words, word(kind, key[:n]))
		key = key[padded:]
	}
	return strings.Join(words, " . "), true
}

// Text is the key of an element of a set of this type, in nft's words.
func (k Key) Text(typ string) string {
	if text, ok := decodeKey(typ, []byte(k)); ok {
		return text
	}
	return fmt.Sprintf("0x%x", string(k))
}

// HoleKey is the key of a hole from a source to an address and port, in the set that firewall.HoleSet names.
func HoleKey(source netip.Prefix, to netip.AddrPort) Key {
	key := make([]byte, 0, 36) // two addresses of IPv6, and a port in a register of its own
	key = append(key, source.Masked().Addr().Unmap().AsSlice()...)
	key = append(key, to.Addr().Unmap().AsSlice()...)
	key = binary.BigEndian.AppendUint16(key, to.Port())
	return Key(append(key, 0, 0))
}

// encodeIntervals makes of every range its first value and an end, the first value that is not in
// it; only the highest range of all may have no end. In the order of values, as nft sends them.
func encodeIntervals(s firewall.Set) ([]nftables.SetElement, error) {
	var out []nftables.SetElement
	for _, e := range s.Elements {
		low, high, err := interval(s.Type, e.Key)
		if err != nil {
			return nil, err
		}
		out = append(out, nftables.SetElement{Key: low})
		if end, ok := next(high); ok {
			out = append(out, nftables.SetElement{Key: end, IntervalEnd: true})
		}
	}
	slices.SortStableFunc(out, endsFirst)
	return out, nil
}

// endsFirst orders by value; where one interval ends as the next begins, the end comes first.
func endsFirst(a, b nftables.SetElement) int {
	if c := bytes.Compare(a.Key, b.Key); c != 0 {
		return c
	}
	switch {
	case a.IntervalEnd == b.IntervalEnd:
		return 0
	case a.IntervalEnd:
		return -1
	}
	return 1
}

// value is one value in the kernel's bytes.
func value(kind, word string) ([]byte, error) {
	bad := fmt.Errorf("%q is not of type %s", word, kind)
	switch kind {
	case "ipv4_addr", "ipv6_addr":
		a, err := netip.ParseAddr(word)
		if err != nil || a.Is4() != (kind == "ipv4_addr") {
			return nil, bad
		}
		return a.AsSlice(), nil
	case "inet_service":
		n, err := strconv.ParseUint(word, 10, 16)
		if err != nil {
			return nil, bad
		}
		return binary.BigEndian.AppendUint16(nil, uint16(n)), nil
	case "icmp_type", "icmpv6_type":
		n, err := strconv.ParseUint(word, 10, 8)
		if err != nil {
			return nil, bad
		}
		return []byte{byte(n)}, nil
	case "ifname":
		if len(word) > 15 {
			return nil, bad
		}
		b := make([]byte, 16)
		copy(b, word)
		return b, nil
	case "classid":
		var major, minor uint16
		if n, err := fmt.Sscanf(word, "%x:%x", &major, &minor); err != nil || n != 2 {
			return nil, bad
		}
		return binary.NativeEndian.AppendUint32(nil, uint32(major)<<16|uint32(minor)), nil
	}
	return nil, bad
}

// word is value's inverse.
func word(kind string, b []byte) string {
	switch {
	case (kind == "ipv4_addr" || kind == "ipv6_addr") && (len(b) == 4 || len(b) == 16):
		a, _ := netip.AddrFromSlice(b)
		return a.String()
	case kind == "inet_service" && len(b) >= 2:
		return fmt.Sprint(binary.BigEndian.Uint16(b))
	case (kind == "icmp_type" || kind == "icmpv6_type") && len(b) >= 1:
		return fmt.Sprint(b[0])
	case kind == "ifname":
		return string(bytes.TrimRight(b, "\x00"))
	case kind == "classid" && len(b) == 4:
		return firewall.ClassIDText(binary.NativeEndian.Uint32(b))
	}
	return fmt.Sprintf("0x%x", b)
}

// width is how many bytes a value of kind has.
func width(kind string) int { return int(types[kind].Bytes) }

// interval is the first and last value of a range or network.
func interval(kind, text string) (low, high []byte, err error) {
	if p, perr := netip.ParsePrefix(text); perr == nil {
		if p.Addr().Is4() != (kind == "ipv4_addr") {
			return nil, nil, fmt.Errorf("%q is not of type %s", text, kind)
		}
		low = p.Masked().Addr().AsSlice()
		high = slices.Clone(low)
		for i := p.Bits(); i < len(high)*8; i++ {
			high[i/8] |= 0x80 >> (i % 8)
		}
		return low, high, nil
	}
	first, last, ok := strings.Cut(text, "-")
	if !ok {
		last = first
	}
	if low, err = value(kind, first); err != nil {
		return nil, nil, err
	}
	high, err = value(kind, last)
	return low, high, err
}

// next is b plus one; false where there is none.
func next(b []byte) ([]byte, bool) {
	out := slices.Clone(b)
	for i := len(out) - 1; i >= 0; i-- {
		out[i]++
		if out[i] != 0 {
			return out, true
		}
	}
	return nil, false
}

// previous is b less one.
func previous(b []byte) []byte {
	out := slices.Clone(b)
	for i := len(out) - 1; i >= 0; i-- {
		out[i]--
		if out[i] != 0xff {
			break
		}
	}
	return out
}

func decodeElements(s firewall.Set, elems []nftables.SetElement) ([]firewall.Element, error) {
	if s.Interval {
		return decodeIntervals(s.Type, elems), nil
	}
	var out []firewall.Element
	for _, el := range elems {
		key, ok := decodeKey(s.Type, el.Key)
		if !ok { // a stranger's set: shown, never equal
			return []firewall.Element{{Key: fmt.Sprintf("0x%x", el.Key)}}, nil
		}
		e := firewall.Element{Key: key}
		if s.Data != "" {
			e.Value = word(s.Data, el.Val)
		}
		out = append(out, e)
	}
	return out, nil
}

// decodeIntervals puts starts and ends together again. The kernel gives them in any order.
func decodeIntervals(kind string, elems []nftables.SetElement) []firewall.Element {
	slices.SortStableFunc(elems, endsFirst)
	var out []firewall.Element
	var low []byte
	for _, e := range elems {
		switch {
		case !e.IntervalEnd:
			if low != nil {
				out = append(out, firewall.Element{Key: rangeText(kind, low, previous(e.Key))})
			}
			low = e.Key
		case low != nil: // nft also writes an end before the first start: it closes nothing
			out = append(out, firewall.Element{Key: rangeText(kind, low, previous(e.Key))})
			low = nil
		}
	}
	if low != nil {
		out = append(out, firewall.Element{Key: rangeText(kind, low, bytes.Repeat([]byte{0xff}, len(low)))})
	}
	return out
}

// rangeText says a range as a network where it is one.
func rangeText(kind string, low, high []byte) string {
	if kind == "ipv4_addr" || kind == "ipv6_addr" {
		a, _ := netip.AddrFromSlice(low)
		for bits := 0; bits <= a.BitLen(); bits++ {
			p := netip.PrefixFrom(a, bits)
			if p.Masked() != p {
				continue
			}
			if _, last, err := interval(kind, p.String()); err == nil && bytes.Equal(last, high) {
				return firewall.PrefixText(p)
			}
		}
	}
	if bytes.Equal(low, high) {
		return word(kind, low)
	}
	return word(kind, low) + "-" + word(kind, high)
}
