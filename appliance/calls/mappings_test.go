package calls

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"ringway/sip/registrar"
)

// Of the registrations, those over UDP with a server in the internet need a mapping, as long as they are in force.
func TestWhichMappingsAreKept(t *testing.T) {
	c := &Calls{holes: newBranch().holes}
	binding := func(phone, server string, over registrar.Transport, expires time.Duration) registrar.Binding {
		return registrar.Binding{
			Phone: netip.MustParseAddrPort(phone), PBX: netip.MustParseAddrPort(server), Transport: over,
			Expires: time.Now().Add(expires),
		}
	}
	const phone, cloud = "10.1.10.9:5060", "198.51.100.20:5060"
	all := c.mappings([]registrar.Binding{
		binding(phone, cloud, registrar.UDP, time.Hour),
		binding(phone, cloud, registrar.UDP, time.Minute), // another address of record of the same phone
		binding("10.1.10.10:5060", cloud, registrar.TCP, time.Hour),
		binding("10.1.10.11:5060", cloud, registrar.UDP, -time.Minute),
		binding("10.1.10.12:5060", "10.2.20.5:5060", registrar.UDP, time.Hour), // at a site
	}, registrar.UDP)
	assert.Equal(t, []mapping{{netip.MustParseAddrPort(phone), netip.MustParseAddrPort(cloud)}}, all)

	assert.Empty(t, c.lostMappings())
	c.unmapped = map[mapping]bool{{}: true, all[0]: true}
	assert.Contains(t, c.lostMappings()[0].Text, "gone: 2.")
}
