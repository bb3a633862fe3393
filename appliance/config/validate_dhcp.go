package config

import (
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
)

const (
	maxDHCPOption  = 255  // bytes of one option's value (RFC 2132, section 2)
	maxDHCPOptions = 1000 // bytes of all values: a message is not fragmented
	hexPrefix      = "hex:"
)

// ownDHCPOptions are what the client itself decides: what it asks for, which address and which server, and how long
// and of which kind a message is. 82 is a relay agent's.
var ownDHCPOptions = []int{50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 82}

func (c *checker) dhcpOptions(r rawWAN, w *WAN) {
	l := r.DHCPOptions
	if len(l.items) > 0 && !w.DHCP {
		c.wrong(l.at, "is set, but the WAN's address is not dhcp (allowed: only with address dhcp)")
		return
	}

	total := 0
	for _, s := range l.items {
		o, ok := c.dhcpOption(s)
		switch {
		case !ok:
			continue
		case slices.ContainsFunc(w.DHCPOptions, func(k DHCPOption) bool { return k.Code == o.Code }):
			c.wrong(s.at, "option %d is given twice (allowed: each option once)", o.Code)
			continue
		}
		total += len(o.Value)
		w.DHCPOptions = append(w.DHCPOptions, o)
	}
	if total > maxDHCPOptions {
		c.wrong(l.at, "has values of %d bytes together (allowed: up to %d)", total, maxDHCPOptions)
	}
}

// dhcpOption reads a code and a value: text, or bytes in hexadecimal. The value may be a password (option 90), so no
// error shows it.
func (c *checker) dhcpOption(s scalar) (o DHCPOption, ok bool) {
	if !s.ok() {
		return o, false
	}
	number, text, found := strings.Cut(s.text, "=")
	code, err := strconv.Atoi(number)
	switch {
	case !found || err != nil || !decimal.MatchString(number):
		c.wrong(s.at, "is not an option with a value (allowed: like 60=text or 61=hex:01a4ff)")
		return o, false
	case code < 1 || code > 254 || slices.Contains(ownDHCPOptions, code):
		c.wrong(s.at, "option %d is not one that may be set (allowed: 1-254 without 50-59 and 82, which the DHCP "+
			"client decides about)", code)
		return o, false
	}

	value := []byte(text)
	if digits, isHex := strings.CutPrefix(text, hexPrefix); isHex {
		if value, err = hex.DecodeString(strings.ReplaceAll(digits, ":", "")); err != nil {
			c.wrong(s.at, "the value of option %d is not hexadecimal (allowed: bytes like hex:01a4ff or hex:01:a4:ff)",
				code)
			return o, false
		}
	}
	if len(value) == 0 || len(value) > maxDHCPOption {
		c.wrong(s.at, "the value of option %d has %d bytes (allowed: 1-%d)", code, len(value), maxDHCPOption)
		return o, false
	}
	return DHCPOption{Code: uint8(code), Value: value}, true
}
