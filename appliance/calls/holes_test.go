package calls

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/firewall"
	"ringway/firewall/nft"
	"ringway/sip/dialog"
	"ringway/sip/relay"
)

// fakeSet is a set of the firewall.
type fakeSet struct {
	typ      string
	mu       sync.Mutex
	elements map[string]time.Duration
	full     bool
	refuses  string // an element
}

func (s *fakeSet) Add(_ context.Context, life time.Duration, keys ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full || slices.Contains(keys, s.refuses) {
		return errors.New("the set is full")
	}
	for _, k := range keys {
		s.elements[k] = life
	}
	return nil
}

func (s *fakeSet) Delete(_ context.Context, keys ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		delete(s.elements, k)
	}
	return nil
}

func (s *fakeSet) AddKeys(ctx context.Context, life time.Duration, keys []nft.Key) error {
	return s.Add(ctx, life, s.text(keys)...)
}

func (s *fakeSet) DropKeys(keys []nft.Key) { _ = s.Delete(context.Background(), s.text(keys)...) }

func (s *fakeSet) text(keys []nft.Key) (words []string) {
	for _, k := range keys {
		words = append(words, k.Text(s.typ))
	}
	return words
}

func (s *fakeSet) Clear(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.elements)
	return nil
}

func (s *fakeSet) Elements() map[string]time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]time.Time{}
	for k, life := range s.elements {
		all[k] = time.Unix(0, 0).Add(life)
	}
	return all
}

func (s *fakeSet) keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.elements))
}

// branch is a box with two LANs and two sites.
type branch struct {
	*holes
	sets map[string]*fakeSet
}

func newBranch() *branch {
	b := &branch{sets: map[string]*fakeSet{}}
	networks := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("2001:db8::/64")}
	for _, d := range firewall.HoleSets("calls", 1, 1, time.Minute, networks) {
		b.sets[d.Name] = &fakeSet{typ: d.Type, elements: map[string]time.Duration{}}
	}
	b.holes = newHoles(func(name string) (Set, bool) { s, ok := b.sets[name]; return s, ok })
	net := netip.MustParsePrefix
	b.follow(world{
		own:       []netip.Prefix{net("10.1.10.0/24"), net("10.1.20.0/24"), net("2001:db8:1:10::/64")},
		voice:     []netip.Prefix{net("10.1.10.0/24"), net("2001:db8:1:10::/64")},
		addresses: []netip.Addr{netip.MustParseAddr("10.1.10.1"), netip.MustParseAddr("10.1.20.1")},
		sites: [][]netip.Prefix{
			{net("10.2.10.0/24"), net("10.2.20.0/24"), net("2001:db8:2:10::/64")},
			{net("10.3.10.0/24")},
		},
	})
	return b
}

func hops(a, b string) [2]netip.Addr {
	return [2]netip.Addr{netip.MustParseAddr(a), netip.MustParseAddr(b)}
}

func flow(from, to string) dialog.Flow {
	return dialog.NewFlow(netip.MustParseAddr(from), netip.MustParseAddrPort(to), false)
}

func asked(hop, to string) dialog.Flow {
	return dialog.FlowAsked(netip.MustParseAddr(hop), netip.MustParseAddrPort(to), false)
}

var phoneAndPBX = hops("10.1.10.9", "10.2.20.5")

// A call from its offer to its end: each hole is open as long as the call needs it.
func TestHolesFollowACall(t *testing.T) {
	b := newBranch()
	offer := asked("10.2.20.5", "10.1.10.9:4000")
	require.NoError(t, b.change(t.Context(), []relay.Change{{Hops: phoneAndPBX, Open: []dialog.Flow{offer}}}, false))
	assert.Equal(t, []string{"10.2.10.0 . 10.1.10.9 . 4000", "10.2.20.0 . 10.1.10.9 . 4000"},
		b.sets["media4_24"].keys(), "from any network of the site that was asked")

	in, out := flow("10.3.10.7", "10.1.10.9:4000"), flow("10.1.10.9", "10.3.10.7:6000")
	require.NoError(t, b.change(t.Context(), []relay.Change{
		{Hops: phoneAndPBX, Open: []dialog.Flow{in, out}, Close: []dialog.Flow{offer}},
	}, false))
	assert.Empty(t, b.sets["media4_24"].keys())
	assert.Equal(t, []string{"10.1.10.9 . 10.3.10.7 . 6000", "10.3.10.7 . 10.1.10.9 . 4000"},
		b.sets["media4"].keys(), "media of a third site, whose PBX is elsewhere")

	require.NoError(t, b.change(t.Context(), []relay.Change{{Hops: phoneAndPBX, Close: []dialog.Flow{in, out}}}, false))
	assert.Empty(t, b.sets["media4"].keys())
	flows, open, refused := b.state()
	assert.Zero(t, flows+open)
	assert.Empty(t, refused)
	assert.Empty(t, b.phones)
}

// A PBX beside the phones may send from any other network of this box: what comes from the phone's own network takes
// no way through the box.
func TestNoHoleInsideOneNetwork(t *testing.T) {
	b := newBranch()
	offer := asked("10.1.20.5", "10.1.10.9:4000")
	change := relay.Change{Hops: hops("10.1.10.9", "10.1.20.5"), Open: []dialog.Flow{offer}}
	require.NoError(t, b.change(t.Context(), []relay.Change{change}, false))
	assert.Equal(t, []string{"10.1.20.0 . 10.1.10.9 . 4000"}, b.sets["media4_24"].keys())
	require.NoError(t, b.change(t.Context(), []relay.Change{{Hops: change.Hops, Close: change.Open}}, false))
	assert.Empty(t, b.sets["media4_24"].keys())
}

// RTP and RTCP on one port, or one medium in two dialogs, are one hole, which closes with the last of them.
func TestAHoleOfTwoFlows(t *testing.T) {
	b := newBranch()
	rtp := flow("10.2.20.5", "10.1.10.9:4000")
	rtcp := dialog.NewFlow(rtp.From(), rtp.To(), true)
	change := func(open, closed []dialog.Flow) {
		require.NoError(t, b.change(t.Context(), []relay.Change{{Hops: phoneAndPBX, Open: open, Close: closed}}, false))
	}
	change([]dialog.Flow{rtp, rtcp}, nil)
	change(nil, []dialog.Flow{rtp})
	assert.Len(t, b.sets["media4"].keys(), 1)
	change(nil, []dialog.Flow{rtcp})
	assert.Empty(t, b.sets["media4"].keys())
}

// What a crafted session description asks for.
func TestWhatACallMayNotOpen(t *testing.T) {
	cloud := hops("10.1.10.9", "198.51.100.20")
	for _, c := range []struct {
		name string
		hops [2]netip.Addr
		flow dialog.Flow
		why  string
	}{
		{"a service", phoneAndPBX, flow("10.2.20.5", "10.1.20.7:53"), refusedPort},
		{"this box", phoneAndPBX, flow("10.2.20.5", "10.1.10.1:4000"), refusedAddress},
		{"all addresses", phoneAndPBX, flow("10.2.20.5", "0.0.0.0:4000"), refusedAddress},
		{"multicast", phoneAndPBX, flow("10.1.10.9", "224.0.1.75:4000"), refusedAddress},
		{"all hosts of a LAN", phoneAndPBX, flow("10.2.20.5", "10.1.10.255:4000"), refusedAddress},
		{"all hosts of a LAN, in the old form", phoneAndPBX, flow("10.2.20.5", "10.1.10.0:4000"), refusedAddress},
		{"loopback", phoneAndPBX, flow("10.2.20.5", "127.0.0.1:4000"), refusedAddress},
		{"another family", phoneAndPBX, flow("10.2.20.5", "[2001:db8:1:10::9]:4000"), refusedAddress},
		{"a private network that nobody knows", phoneAndPBX, flow("10.1.10.9", "192.168.7.7:4000"), refusedAddress},
		{"a mapped address", cloud, flow("::ffff:198.51.100.20", "[::ffff:203.0.113.1]:4000"), refusedAddress},
		{"the internet, in a call with a site", phoneAndPBX, flow("10.1.10.9", "198.51.100.20:4000"), refusedNetwork},
		{"a site, in a call with the internet", cloud, flow("10.1.10.9", "10.2.10.7:4000"), refusedNetwork},
	} {
		b := newBranch()
		require.NoError(t, b.change(t.Context(), []relay.Change{{Hops: c.hops, Open: []dialog.Flow{c.flow}}}, false), c.name)
		_, open, refused := b.state()
		assert.Zero(t, open, c.name)
		assert.Equal(t, map[string]uint64{c.why: 1}, refused, c.name)
	}

	b := newBranch()
	require.NoError(t, b.change(t.Context(), []relay.Change{{Hops: cloud, Open: []dialog.Flow{
		flow("10.1.10.9", "198.51.100.77:4000"), asked("198.51.100.20", "10.1.10.9:4000"),
	}}}, false))
	assert.Equal(t, []string{"10.1.10.9 . 198.51.100.77 . 4000", "198.51.100.20 . 10.1.10.9 . 4000"},
		b.sets["media4"].keys(), "a cloud PBX has media servers; what it was asked for comes from itself")
}

// A PBX beside the phone that is called, and a caller at another site: of the leg between PBX and phone, both hops are
// here, and its media is not.
func TestACallThatAProxyHerePassesOn(t *testing.T) {
	media := []dialog.Flow{flow("10.2.10.7", "10.1.10.9:4000"), flow("10.1.10.9", "10.2.10.7:6000")}
	want := []string{"10.1.10.9 . 10.2.10.7 . 6000", "10.2.10.7 . 10.1.10.9 . 4000"}
	near := hops("10.1.20.5", "10.1.10.9")

	b := newBranch()
	far := netip.MustParseAddr("10.2.10.7")
	require.NoError(t, b.change(t.Context(), []relay.Change{{Hops: near, Via: []netip.Addr{far}, Open: media}}, false))
	assert.Equal(t, want, b.sets["media4"].keys(), "the other leg of the call has a hop there")

	b = newBranch()
	require.NoError(t, b.change(t.Context(), []relay.Change{{Hops: near, Open: media}}, false))
	assert.Empty(t, b.sets["media4"].keys(), "no leg of the call has")
	require.NoError(t, b.change(t.Context(), []relay.Change{{Hops: hops("10.2.10.7", "10.1.20.5"), Open: media}}, false))
	assert.Equal(t, want, b.sets["media4"].keys(), "the leg of another call, which needs the same, has")
	require.NoError(t, b.change(t.Context(), []relay.Change{{Hops: near, Close: media}}, false))
	assert.Empty(t, b.sets["media4"].keys())
}

// One phone cannot take all holes.
func TestHolesOfOnePhone(t *testing.T) {
	b := newBranch()
	for i := range maxHolesOf + 50 {
		f := flow("10.2.20.5", fmt.Sprintf("10.1.10.9:%d", 10000+i))
		require.NoError(t, b.change(t.Context(), []relay.Change{{Hops: phoneAndPBX, Open: []dialog.Flow{f}}}, false))
	}
	_, open, refused := b.state()
	assert.Equal(t, maxHolesOf, open)
	assert.EqualValues(t, 50, refused[refusedPhone])
	other := relay.Change{Hops: hops("10.1.10.10", "10.2.20.5"), Open: []dialog.Flow{flow("10.2.20.5", "10.1.10.10:4000")}}
	require.NoError(t, b.change(t.Context(), []relay.Change{other}, false))
	assert.Contains(t, b.sets["media4"].keys(), "10.2.20.5 . 10.1.10.10 . 4000")
}

// A new relay says which flows there are: others are closed, and elements that the kernel lost come back.
func TestTheWhole(t *testing.T) {
	b := newBranch()
	stays, goes := flow("10.2.20.5", "10.1.10.9:4000"), flow("10.2.20.5", "10.1.10.9:4002")
	open := []relay.Change{{Hops: phoneAndPBX, Open: []dialog.Flow{stays, goes}}}
	require.NoError(t, b.change(t.Context(), open, false))
	require.NoError(t, b.sets["media4"].Clear(t.Context()))

	require.NoError(t, b.change(t.Context(), []relay.Change{{Hops: phoneAndPBX, Open: []dialog.Flow{stays}}}, true))
	assert.Equal(t, []string{"10.2.20.5 . 10.1.10.9 . 4000"}, b.sets["media4"].keys())
	flows, holes, _ := b.state()
	assert.Equal(t, [2]int{1, 1}, [2]int{flows, holes})
	require.NoError(t, b.change(t.Context(), nil, true))
	assert.Empty(t, b.sets["media4"].keys())
}

// A set without room costs the flows that did not fit, and no others.
func TestAFullSet(t *testing.T) {
	b := newBranch()
	first, second := flow("10.2.20.5", "10.1.10.9:4000"), flow("10.2.20.5", "10.1.10.9:4002")
	require.NoError(t, b.change(t.Context(), []relay.Change{{Hops: phoneAndPBX, Open: []dialog.Flow{first}}}, false))
	b.sets["media4"].full = true
	require.Error(t, b.change(t.Context(), []relay.Change{{Hops: phoneAndPBX, Open: []dialog.Flow{second}}}, false))
	b.sets["media4"].full = false
	require.NoError(t, b.refresh())
	assert.Equal(t, []string{"10.2.20.5 . 10.1.10.9 . 4000"}, b.sets["media4"].keys())
	_, _, refused := b.state()
	assert.EqualValues(t, 1, refused[refusedFull])
}

// Media that was seen, in whichever direction, keeps its call.
func TestWhichFlowsHaveMedia(t *testing.T) {
	b := newBranch()
	in, out := flow("10.2.20.5", "10.1.10.9:4000"), flow("10.1.10.9", "10.2.20.5:6000")
	require.NoError(t, b.change(t.Context(), []relay.Change{{Hops: phoneAndPBX, Open: []dialog.Flow{in, out}}}, false))
	seen := b.seen(func(yield func(from, to netip.AddrPort)) {
		yield(netip.MustParseAddrPort("10.2.20.5:7777"), netip.MustParseAddrPort("10.1.10.9:4000"))
		yield(netip.MustParseAddrPort("10.2.20.6:7777"), netip.MustParseAddrPort("10.2.20.5:6000"))
	})
	assert.Equal(t, []dialog.Flow{in}, seen)
}

// One element that a set cannot have costs the calls of the others nothing, now and when they are refreshed.
func TestAnElementThatIsRefusedIsAlone(t *testing.T) {
	b := newBranch()
	b.sets["media4"].refuses = "10.2.20.5 . 10.1.10.9 . 4002"
	var flows []dialog.Flow
	for port := 4000; port < 4010; port += 2 {
		flows = append(flows, flow("10.2.20.5", fmt.Sprintf("10.1.10.9:%d", port)))
	}
	change := []relay.Change{{Hops: phoneAndPBX, Open: flows}}
	require.Error(t, b.change(t.Context(), change, true))
	assert.Len(t, b.sets["media4"].keys(), 4)
	require.NoError(t, b.change(t.Context(), change, true), "the relay is not told at once again: it tells the whole then")
	require.NoError(t, b.sets["media4"].Clear(t.Context()))
	require.NoError(t, b.refresh())
	assert.Len(t, b.sets["media4"].keys(), 4)
	_, open, refused := b.state()
	assert.Equal(t, 4, open)
	assert.EqualValues(t, 2, refused[refusedFull])
}

// A PBX among the phones has as many calls as phones together.
func TestHolesOfAPBXAmongThePhones(t *testing.T) {
	b := newBranch()
	pbx := netip.MustParseAddr("10.1.10.5")
	b.world.servers = []netip.Addr{pbx}
	c := relay.Change{Hops: hops("10.1.10.5", "10.2.10.9")}
	for i := range 2 * maxHolesOf {
		c.Open = append(c.Open, flow("10.2.10.9", fmt.Sprintf("10.1.10.5:%d", 10000+i)))
	}
	require.NoError(t, b.change(t.Context(), []relay.Change{c}, false))
	_, open, _ := b.state()
	assert.Equal(t, 2*maxHolesOf, open)

	b = newBranch() // a process that was taken over cannot hide whose holes they are behind other hops
	c = relay.Change{Hops: hops("10.1.20.5", "10.2.20.5")}
	for i := range 2 * maxHolesOf {
		c.Open = append(c.Open, flow("10.2.20.5", fmt.Sprintf("10.1.10.9:%d", 10000+i)))
	}
	require.NoError(t, b.change(t.Context(), []relay.Change{c}, false))
	_, open, _ = b.state()
	assert.Equal(t, maxHolesOf, open)
}

// A network that the config no longer has is closed with the next whole.
func TestAnotherConfigClosesWhatItDoesNotAllow(t *testing.T) {
	b := newBranch()
	all := []relay.Change{{Hops: hops("10.1.10.9", "10.3.10.7"), Open: []dialog.Flow{flow("10.3.10.7", "10.1.10.9:4000")}}}
	require.NoError(t, b.change(t.Context(), all, false))
	w := b.world
	w.sites = w.sites[:1]
	b.follow(w)
	require.NoError(t, b.change(t.Context(), all, true))
	assert.Empty(t, b.sets["media4"].keys())
}

// Whom the firewall may ban, whatever a report says.
func TestWhoMayBeBanned(t *testing.T) {
	b := newBranch()
	b.world.servers = []netip.Addr{netip.MustParseAddr("198.51.100.20")}
	for a, may := range map[string]bool{
		"203.0.113.66": true, "192.168.1.66": true,
		"10.1.10.9": false, "10.1.20.5": false, "10.2.20.5": false, "::ffff:10.2.20.5": false, "198.51.100.20": false,
		"10.1.10.1": false, "0.0.0.0": false, "2001:db8:2:10::7": false,
	} {
		assert.Equal(t, may, b.mayBan(netip.MustParseAddr(a)), a)
	}
	assert.False(t, b.mayBan(netip.Addr{}))
}
