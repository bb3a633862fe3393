package offer

import (
	"slices"

	"ringway/srtp/sdes"
)

// Secrets are the keys that a call has now, by where they are in memory.
func (c *Call) Secrets() map[*byte][]byte {
	all := map[*byte][]byte{}
	keys := func(keys []sdes.Key) {
		for _, k := range keys {
			all[&k.Master[0]], all[&k.Salt[0]] = k.Master, k.Salt
		}
	}
	legs := func(legs [2][]leg) {
		for e := range legs {
			for i := range legs[e] {
				l := &legs[e][i]
				keys(l.send)
				keys(l.receive)
				for _, a := range slices.Concat(l.lines, l.again) {
					keys(a.Keys)
				}
			}
		}
	}
	each := func(b *branch) {
		legs(b.legs)
		if b.before != nil {
			legs(b.before.legs)
		}
	}
	for _, b := range c.branches {
		each(b)
	}
	if c.initial != nil {
		each(c.initial)
	}
	return all
}
