package rtnl

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"

	"ringway/routing"
)

// Before Linux 5.18 an address does not say who added it.
func TestUntaggedAddresses(t *testing.T) {
	at := func(device, p string, protocol uint8) routing.Address {
		return routing.Address{Device: device, Prefix: netip.MustParsePrefix(p), Protocol: protocol}
	}
	ours := untagged(routing.Scope(
		routing.State{Addresses: []routing.Address{at("wan0", "192.0.2.1/24", 82), at("wan0", "192.0.2.2/24", 82)}},
		routing.State{Addresses: []routing.Address{at("wan0", "192.0.2.2/24", 0), at("wan0", "192.0.2.3/24", 0)}}))
	assert.True(t, ours(at("wan0", "192.0.2.1/24", 0)))
	assert.False(t, ours(at("wan0", "192.0.2.2/24", 0)), "it was there before the start")
	assert.False(t, ours(at("wan0", "192.0.2.3/24", 0)))
	assert.False(t, ours(at("wan1", "192.0.2.1/24", 0)))
}
