package unmarked

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/firewall"
	"ringway/firewall/nft"
)

var networks = places{
	{netip.MustParsePrefix("10.1.10.0/24"), place{voice, "voice0"}},
	{netip.MustParsePrefix("10.1.20.0/24"), place{data, "data0"}},
	{netip.MustParsePrefix("10.2.10.0/24"), place{voice, "site munich"}},
	{netip.MustParsePrefix("10.2.20.0/24"), place{data, "site munich"}},
	{netip.MustParsePrefix("10.4.0.0/16"), place{flat, "site cologne"}},
}

var start = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// steps has a tracker read flows every five seconds; each sends so many packets in each of the steps.
type steps struct {
	tracker
	now  time.Time
	sums map[firewall.MediaFlow]uint64
	mode config.SIPMode
}

func newSteps() *steps {
	return &steps{now: start, sums: map[firewall.MediaFlow]uint64{}, mode: config.SIPOff}
}

type sending struct {
	from, to string
	ssrc     uint32
	dropped  bool
	packets  []uint64 // by step
}

func (s *steps) run(all ...sending) {
	for i := range all[0].packets {
		s.now = s.now.Add(interval)
		var read []nft.MediaFlow
		for _, f := range all {
			k := firewall.MediaFlow{
				From: netip.MustParseAddrPort(f.from), To: netip.MustParseAddrPort(f.to), SSRC: f.ssrc,
			}
			s.sums[k] += f.packets[i]
			read = append(read, nft.MediaFlow{MediaFlow: k, Packets: s.sums[k]})
			if f.dropped {
				read = append(read, nft.MediaFlow{MediaFlow: k, Packets: s.sums[k], Dropped: true})
			}
		}
		s.look(s.now, read, networks, s.mode)
	}
}

func TestAConstantRateIsACall(t *testing.T) {
	call := func(packets ...uint64) sending {
		return sending{from: "10.1.10.2:6000", to: "10.2.10.2:6002", ssrc: 7, packets: packets}
	}
	for name, c := range map[string]struct {
		packets []uint64
		found   bool
	}{
		"50 a second":                {[]uint64{10, 250, 250}, true},
		"100 a second":               {[]uint64{10, 500, 500}, true},
		"10 a second":                {[]uint64{10, 50, 50}, true},
		"from the second words on":   {[]uint64{250, 100, 0, 250, 250}, true},
		"too short":                  {[]uint64{250, 250}, false},
		"slow, as keepalives are":    {[]uint64{10, 20, 20, 20}, false},
		"fast, as a transfer is":     {[]uint64{10, 2500, 2500, 2500}, false},
		"changing, as a game's does": {[]uint64{10, 100, 250, 100, 250, 60}, false},
	} {
		s := newSteps()
		s.run(call(c.packets...))
		assert.Equal(t, c.found, len(s.flows) == 1, name)
	}

	// What only looks like RTP has another source in every packet.
	s, all := newSteps(), []sending{}
	for i := range uint32(200) {
		all = append(all, sending{from: "10.1.10.2:6000", to: "10.2.10.2:6002", ssrc: i, packets: []uint64{1, 1, 1}})
	}
	s.run(all...)
	assert.Empty(t, s.flows)
}

func TestFlowsHaveNamesAndCures(t *testing.T) {
	steady := []uint64{250, 250, 250}
	s := newSteps()
	s.run(
		sending{from: "10.1.10.2:6000", to: "10.2.10.2:6002", ssrc: 1, packets: steady},
		sending{from: "10.2.10.2:6002", to: "10.1.10.2:6000", ssrc: 2, packets: steady},
	)
	require.Len(t, s.list(), 1)
	f := s.list()[0]
	assert.Equal(t, "10.1.10.2:6000 (voice0) and 10.2.10.2:6002 (site munich), 50 packets a second each way, "+
		"in class data", f.String())
	assert.Equal(t, start.Add(3*interval), f.Last)

	for _, c := range []struct {
		from, to string
		dropped  bool
		mode     config.SIPMode
		cure     string
	}{
		{"10.1.10.2:1", "192.0.2.9:2", false, config.SIPOff, "have 10.1.10.2 mark media with EF (DSCP 46), or set " +
			"sip.mode: observe, or list the UDP ports of its media in classes[media].ports"},
		{"10.1.20.2:1", "10.1.10.2:2", false, config.SIPOff, "have 10.1.10.2 mark media with EF (DSCP 46), or set " +
			"sip.mode: observe, or list the UDP ports of its media in classes[media].ports"},
		{"10.4.0.2:1", "10.1.20.2:2", false, config.SIPObserve, "have 10.4.0.2 mark media with EF (DSCP 46), or have its " +
			"signalling read (sip.ports, sip.servers, sip.tls), or list the UDP ports of its media in classes[media].ports"},
		{"10.1.10.2:1", "10.1.20.2:2", true, config.SIPOff, "set sip.mode: observe, or list the UDP ports of its media in " +
			"classes[media].ports"},
		{"10.1.20.2:1", "10.2.20.2:2", false, config.SIPOff, "set sip.mode: observe"},
	} {
		s := newSteps()
		s.mode = c.mode
		s.run(sending{from: c.from, to: c.to, dropped: c.dropped, packets: steady})
		require.Len(t, s.list(), 1, "%s %s", c.from, c.to)
		f := s.list()[0]
		assert.Equal(t, c.cure, f.Cure)
		assert.Equal(t, c.dropped, f.Dropped)
		assert.False(t, f.BothWays)
	}
}

func TestProblemsAreOneForEachPairOfNetworks(t *testing.T) {
	steady := []uint64{250, 250, 250}
	s := newSteps()
	s.run(
		sending{from: "10.1.10.2:6000", to: "10.2.10.2:6002", ssrc: 1, packets: steady},
		sending{from: "10.2.10.3:6002", to: "10.1.10.3:6000", ssrc: 2, packets: steady},
		sending{from: "10.1.10.2:6010", to: "10.1.20.2:6012", ssrc: 3, packets: steady, dropped: true},
	)
	var words []string
	for _, p := range s.problems(s.now) {
		words = append(words, p.String())
	}
	assert.Equal(t, []string{
		"data0, voice0, dropped: a call's media is not treated as that: 10.1.10.2:6010 (voice0) and 10.1.20.2:6012 " +
			"(data0), 50 packets a second one way, dropped; set sip.mode: observe, or list the UDP ports of its media in " +
			"classes[media].ports (docs/media.md)",
		"site munich, voice0: media of 2 calls is not treated as that, the latest: 10.1.10.2:6000 (voice0) and " +
			"10.2.10.2:6002 (site munich), 50 packets a second one way, in class data; have 10.1.10.2 mark media with EF " +
			"(DSCP 46), or set sip.mode: observe, or list the UDP ports of its media in classes[media].ports (docs/media.md)",
	}, words)
	assert.Empty(t, s.problems(s.now.Add(shown+time.Second)), "a call that was fixed is no problem for long")
	s.look(s.now.Add(kept), nil, networks, config.SIPOff)
	assert.Len(t, s.flows, 3, "but listed")
	s.look(s.now.Add(kept+time.Second), nil, networks, config.SIPOff)
	assert.Empty(t, s.flows)
}

func TestFlowsAreBounded(t *testing.T) {
	s, all := newSteps(), []sending{}
	for i := range 2 * maxFlows {
		all = append(all, sending{
			from: fmt.Sprintf("10.1.10.2:%d", 10000+i), to: "10.2.10.2:6002", packets: []uint64{250, 250, 250},
		})
	}
	s.run(all...)
	assert.Len(t, s.flows, maxFlows)
	assert.Equal(t, uint64(maxFlows), s.missed)
}

func TestTheFinder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		u := New(slog.New(slog.NewTextHandler(&log, nil)))
		var packets uint64
		var broken atomic.Bool
		u.read = func() ([]nft.MediaFlow, error) {
			if broken.Load() {
				return nil, errors.New("list elements")
			}
			packets += 250
			return []nft.MediaFlow{{MediaFlow: firewall.MediaFlow{
				From: netip.MustParseAddrPort("10.1.10.2:6000"), To: netip.MustParseAddrPort("10.2.10.2:6002"),
			}, Packets: packets}}, nil
		}
		assert.Empty(t, u.Status().String(), "nothing to say")
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- u.Run(ctx, func() {}) }()

		time.Sleep(4 * interval) //nolint:forbidigo // fake time
		synctest.Wait()
		assert.Len(t, u.Problems(), 1)
		assert.Contains(t, u.Status().String(), "1 flows in the last hour, the latest 10.1.10.2:6000")
		assert.Equal(t, 1, strings.Count(log.String(), "level=WARN"), log.String())

		broken.Store(true)
		time.Sleep(interval) //nolint:forbidigo // fake time
		synctest.Wait()
		assert.Len(t, u.Problems(), 2)
		stop()
		require.NoError(t, <-done)
	})
}

func TestPlacesOfAConfig(t *testing.T) {
	cfg, err := config.Parse("box.yaml", []byte(`site: berlin
wan: [{interface: wan0, address: 198.51.100.2/24, gateway: 198.51.100.1}]
voice: [{interface: voice0, address: 10.1.10.1/24}]
data: [{interface: data0, address: 10.1.20.1/24}]
sites:
  - {name: munich, public_key: EXAMPLE+munich+EXAMPLE+munich+EXAMPLE+muniA=, voice_networks: 10.2.10.0/24,
     data_networks: 10.2.20.0/24}
  - {name: cologne, public_key: EXAMPLE+cologne+EXAMPLE+cologne+EXAMPLE+coA=, tunnels: data, networks: 10.4.0.0/16}
`), config.WithoutKeyFiles())
	require.NoError(t, err)
	all := placesOf(cfg)
	for address, want := range map[string]place{
		"10.1.10.2": {voice, "voice0"}, "10.1.20.2": {data, "data0"}, "10.2.10.2": {voice, "site munich"},
		"10.2.20.2": {data, "site munich"}, "10.4.9.2": {flat, "site cologne"}, "192.0.2.1": {internet, "internet"},
		"2001:db8::1": {internet, "internet"},
	} {
		assert.Equal(t, want, all.of(netip.MustParseAddr(address)), address)
	}
}
