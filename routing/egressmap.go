package routing

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// EgressText is a map from skb->priority to the priority in a VLAN tag in the form of Link.EgressMap. What is mapped to
// 0 is left out: the kernel does not list it either.
func EgressText(m map[uint32]uint32) string {
	var pairs []string
	for _, from := range slices.Sorted(maps.Keys(m)) {
		if m[from] != 0 {
			pairs = append(pairs, fmt.Sprintf("%d:%d", from, m[from]))
		}
	}
	return strings.Join(pairs, " ")
}

// ParseEgress reads what EgressText and Diff write. Pairs that are none are left out.
func ParseEgress(text string) map[uint32]uint32 {
	m := map[uint32]uint32{}
	for pair := range strings.FieldsSeq(text) {
		a, b, _ := strings.Cut(pair, ":")
		from, err := strconv.ParseUint(a, 10, 32)
		to, terr := strconv.ParseUint(b, 10, 3)
		if err == nil && terr == nil {
			m[uint32(from)] = uint32(to)
		}
	}
	return m
}

// egressChange lists the pairs that lead from have to want. The kernel forgets none: it sets it to 0.
func egressChange(want, have string) string {
	wanted, observed := ParseEgress(want), ParseEgress(have)
	var pairs []string
	for from := range observed {
		if _, ok := wanted[from]; !ok {
			wanted[from] = 0
		}
	}
	for _, from := range slices.Sorted(maps.Keys(wanted)) {
		if wanted[from] != observed[from] {
			pairs = append(pairs, fmt.Sprintf("%d:%d", from, wanted[from]))
		}
	}
	return strings.Join(pairs, " ")
}
