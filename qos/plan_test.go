package qos

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "rewrite the golden plans")

func reference() []Class {
	return []Class{
		{Name: Media, Share: 30, Limit: 20 * time.Millisecond},
		{Name: Signalling, Share: 10, Limit: 100 * time.Millisecond},
		{Name: Data, Share: 50, Limit: 50 * time.Millisecond},
		{Name: Background, Share: 5, Limit: 200 * time.Millisecond},
	}
}

var golden = map[string]func(*Input){
	"1mbit":  func(in *Input) { in.WANs[0].Uplink = Mbit },
	"20mbit": func(*Input) {},
	"1gbit":  func(in *Input) { in.WANs[0].Uplink = Gbit },
	"branch": func(in *Input) { in.Sites = []Site{{Name: "hub"}} },
	"hub": func(in *Input) {
		in.WANs[0].Uplink = 100 * Mbit
		in.Sites = []Site{{"berlin", 20 * Mbit}, {"munich", 0}, {"bremen", 2 * Mbit}}
	},
	"atm": func(in *Input) {
		in.WANs[0].LinkLayer, _ = ParseLink("pppoa-vcmux")
		in.Sites = []Site{{"munich", 5 * Mbit}}
	},
	"fq_codel": func(in *Input) { in.Features.FQCoDel = true; in.Sites = []Site{{"munich", 5 * Mbit}} },
	"downlink": func(in *Input) {
		in.LANs = []string{"lan1", "lan0", "lan0"}
		in.WANs[0].Downlink = 50 * Mbit
		in.WANs = append(
			in.WANs,
			Egress{Interface: "lte0", Line: Line{Downlink: 2 * Mbit, Margin: 10, LinkLayer: LinkLayer{24, 84, NoCells}}},
		)
		in.Features.FQCoDel = true
	},
	"cake": func(in *Input) { in.Features.Cake = true; in.Features.TBF = false },
}

func TestPlanAsTCWords(t *testing.T) {
	for name, change := range golden {
		t.Run(name, func(t *testing.T) {
			in := Input{
				WANs: []Egress{
					{Interface: "wan0", Line: Line{Uplink: 20 * Mbit, Margin: 3}, MTU: 1500},
					{Interface: "wan1", Line: Line{Uplink: 0, Margin: 3}, MTU: 1500},
				},
				Classes: reference(), Features: AssumedFeatures(),
			}
			change(&in)
			text := strings.Join(Want(in).Text(), "\n") + "\n"
			file := "testdata/plan-" + name + ".txt"
			if *update {
				require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
			}
			golden, err := os.ReadFile(file)
			require.NoError(t, err)
			assert.Equal(t, string(golden), text)
		})
	}
}

func TestOverheadAndFeatures(t *testing.T) {
	in := Input{
		WANs: []Egress{
			{Interface: "wan0", Line: Line{Uplink: 10 * Mbit, LinkLayer: LinkLayer{Overhead: 24, MPU: 84}}, MTU: 1492},
		},
		Classes: reference(), Features: Features{HTB: true, BFIFO: true},
	}
	text := strings.Join(Want(in).Text(), "\n")
	assert.Contains(
		t,
		text,
		"class add dev wan0 parent 1:2 classid 1:30 htb rate 5mbit ceil 10mbit burst 625 cburst 625 prio 2 "+
			"quantum 1510 overhead 24 mpu 84",
	)
	assert.Contains(t, text, "qdisc add dev wan0 parent 1:30 handle 30: bfifo limit 31250")
	assert.Len(t, in.Features.Missing(), 2)

	in.Features.HTB = false
	assert.Empty(t, Want(in).Links, "nothing is shaped without HTB")
	assert.Empty(t, Priorities(in))
	assert.Contains(t, in.Features.Missing()[0], "no WAN is shaped")
}

func TestPrioritiesNameTheTree(t *testing.T) {
	in := Input{
		WANs:    []Egress{{Interface: "wan0", Line: Line{Uplink: Mbit}}, {Interface: "wan1"}},
		Classes: reference(), Features: AssumedFeatures(),
	}
	assert.Equal(t, []Priority{
		{
			"wan0",
			Media,
			0x10010,
		}, {"wan0", Signalling, 0x10020}, {"wan0", Data, 0x10030}, {"wan0", Background, 0x10040},
	}, Priorities(in))
	handles := map[Handle]bool{}
	for _, c := range Want(in).Links[0].Classes {
		handles[c.Handle] = true
	}
	for _, p := range Priorities(in) {
		assert.True(t, handles[Handle(p.ClassID)])
		assert.Equal(t, Place{Local, p.Class}, Places(nil)[Handle(p.ClassID)])
	}
	assert.Zero(t, ClassID("other"))
}

// drawInput draws plans beyond what the config's check lets through, too.
func drawInput(t *rapid.T) Input {
	in := Input{Features: Features{HTB: true, TBF: rapid.Bool().Draw(t, "tbf"), BFIFO: true,
		FQCoDel: rapid.Bool().Draw(t, "fq_codel"), Cake: rapid.Bool().Draw(t, "cake")}}
	for _, n := range ClassNames {
		in.Classes = append(in.Classes, Class{
			Name: n, Share: rapid.IntRange(0, 95).Draw(t, "share"),
			Limit: time.Duration(rapid.IntRange(1, 1000).Draw(t, "limit")) * time.Millisecond,
		})
	}
	for _, name := range []string{"wan0", "wan1", "wan2"} {
		if rapid.Bool().Draw(t, name) {
			in.WANs = append(in.WANs, Egress{
				Interface: name,
				Line: Line{
					Uplink: BitRate(rapid.Uint64Range(uint64(64*Kbit), uint64(100*Gbit)).Draw(t, "uplink")),
					Margin: rapid.IntRange(0, 50).Draw(t, "margin"), LinkLayer: drawLink(t),
				},
				MTU: rapid.SampledFrom([]int{0, 576, 1280, 1492, 1500, 9000}).Draw(t, "mtu"),
			})
			if w := &in.WANs[len(in.WANs)-1]; rapid.Bool().Draw(t, "is shaped inwards") {
				w.Downlink = BitRate(rapid.Uint64Range(uint64(64*Kbit), uint64(100*Gbit)).Draw(t, "downlink"))
			}
		}
	}
	for _, name := range []string{"lan0", "lan1"} {
		if rapid.Bool().Draw(t, name) {
			in.LANs = append(in.LANs, name)
		}
	}
	for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(0, 60), 0, 30, rapid.ID[int]).Draw(t, "sites") {
		s := Site{Name: fmt.Sprintf("site-%d", n)}
		if rapid.Bool().Draw(t, "has a downlink") {
			s.Downlink = BitRate(rapid.Uint64Range(uint64(64*Kbit), uint64(10*Gbit)).Draw(t, "downlink"))
		}
		in.Sites = append(in.Sites, s)
	}
	return in
}

// ofWANs leaves the trees of LANs out.
func ofWANs(s State) []Link {
	return slices.DeleteFunc(s.Links, func(l Link) bool { return l.root().Handle == lanQdisc })
}

func drawLink(t *rapid.T) LinkLayer {
	return LinkLayer{rapid.IntRange(-14, 60).Draw(t, "overhead"), rapid.IntRange(0, 96).Draw(t, "mpu"),
		rapid.SampledFrom([]Cells{NoCells, ATM, PTM}).Draw(t, "cells")}
}

func TestEveryPlanKeepsToWhatHTBDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		for _, l := range ofWANs(Want(in)) {
			classes, sum := map[Handle]HTBClass{}, map[Handle]BitRate{}
			for _, c := range l.Classes {
				classes[c.Handle] = c
				sum[c.Parent] += c.Rate
			}
			require.Len(t, classes, 1+5*(1+len(in.Sites)), "no two have one handle")
			root := classes[rootClass]
			require.Equal(t, root.Rate, root.Ceil)
			queues, handles := map[Handle]bool{}, map[Handle]bool{}
			for _, q := range l.Qdiscs {
				queues[q.Parent], handles[q.Handle] = true, true
			}
			require.Len(t, handles, len(l.Qdiscs), "no two have one handle")
			for h, c := range classes {
				require.LessOrEqual(t, sum[h], c.Rate, "%s: leaves within their rates never exceed the parent", h)
				require.LessOrEqual(t, c.Rate, c.Ceil)
				require.LessOrEqual(t, c.Ceil, root.Ceil)
				require.Positive(t, c.Rate)
				require.Zero(t, uint64(c.Rate)%8, "the kernel keeps whole bytes a second")
				name, leaf := leafClass(h)
				if name != Media { // and one packet after it is all that leaves at once, however short packets are made
					require.Positive(t, c.CBurst)
					most := burstTime
					switch {
					case c.Ceil < root.Ceil:
						most = slowSite
					case root.Ceil.Serialization(c.Quantum) > burstTime:
						most = slowBurst
					}
					require.LessOrEqual(t, c.Ceil.Serialization(min(c.Burst, c.CBurst)), most, "%s", h)
				}
				require.NotEqual(t, leaf, innerClass(h))
				if !leaf {
					continue
				}
				require.True(t, queues[h], "%s is bounded", h)
				require.Equal(t, uint32(slices.Index(ClassNames, name)), c.Prio)
				up := classes[c.Parent]
				require.LessOrEqual(t, c.Ceil, up.Ceil)
				media := classes[c.Parent+1]
				if c.Parent == localClass {
					media = classes[Handle(ClassID(Media))]
				}
				if media.Burst == tokenBurst {
					require.LessOrEqual(t, c.Rate, max(root.Rate/tokenPart, 8), "nobody has more than a token")
				} else {
					require.Equal(t, media.Rate, media.Ceil, "media has all of its budget and no more")
				}
			}
			require.Contains(
				t,
				classes,
				rootQdisc|Handle(l.Qdiscs[0].HTB.Default),
				"what has no class goes to one that is there",
			)
		}
	})
}

// Every class is where a priority leads to, and the names for status are the same places.
func TestEveryLeafIsReached(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		var names []string
		for _, s := range in.Sites {
			names = append(names, s.Name)
		}
		places := Places(names)
		for _, l := range ofWANs(Want(in)) {
			reached := map[Handle]Place{}
			for _, p := range Priorities(in) {
				if p.WAN == l.Interface {
					reached[Handle(p.ClassID)] = Place{Local, p.Class}
				}
			}
			for _, p := range SitePriorities(in) {
				reached[Handle(p.ClassID)] = Place{p.Site, p.Class}
			}
			require.Equal(t, places, reached)
			leaves := 0
			for _, c := range l.Classes {
				if _, leaf := leafClass(c.Handle); leaf {
					leaves++
					require.Contains(t, reached, c.Handle)
				}
			}
			require.Equal(t, leaves, len(reached))
		}
	})
}

// Whoever comes, goes or changes touches no other site's classes, unless all budgets begin to fit, or
// not to.
func TestSitesAreApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		in.WANs = []Egress{
			{
				Interface: "wan0",
				Line:      Line{Uplink: BitRate(rapid.Uint64Range(uint64(Mbit), uint64(Gbit)).Draw(t, "uplink"))},
			},
		}
		in.LANs = nil
		before := Want(in)
		changed := Site{
			Name:     "site-changed",
			Downlink: BitRate(rapid.Uint64Range(uint64(64*Kbit), uint64(Gbit)).Draw(t, "downlink")),
		}
		in.Sites = append(in.Sites, changed)
		with := Want(in)
		tokens := func(s State) bool { return s.Links[0].Classes[1].Burst == tokenBurst }
		if len(in.Sites) == 1 || tokens(before) != tokens(with) {
			return
		}
		mine := slotsOf(in.Sites)[changed.Name]
		other, all := slotsOf(in.Sites[:len(in.Sites)-1]), slotsOf(in.Sites)
		for n, h := range other {
			if all[n] != h { // it had to yield, which is rare
				return
			}
		}
		for _, c := range append(Diff(with, before), Diff(before, with)...) {
			at := c.Class
			if at == nil {
				continue
			}
			require.Equal(t, mine, at.Handle&^(slotNumbers-1), "%s", c)
		}
	})
}

// What a small branch with one hub had before there were sites in the tree, it has still.
func TestOneHubLosesNothing(t *testing.T) {
	in := Input{
		WANs:     []Egress{{Interface: "wan0", Line: Line{Uplink: 20 * Mbit, Margin: 3}}},
		Classes:  reference(),
		Features: AssumedFeatures(),
	}
	alone := Want(in).Links[0]
	in.Sites = []Site{{Name: "hub"}}
	tree := Want(in).Links[0]
	class := func(l Link, h Handle) HTBClass {
		i := slices.IndexFunc(l.Classes, func(c HTBClass) bool { return c.Handle == h })
		return l.Classes[i]
	}
	leaf := func(l Link, h Handle) Qdisc {
		i := slices.IndexFunc(l.Qdiscs, func(q Qdisc) bool { return q.Parent == h })
		return l.Qdiscs[i]
	}
	for i, n := range ClassNames {
		was, h := class(alone, Handle(ClassID(n))), slotsOf(in.Sites)["hub"]+1+Handle(i)
		is := class(tree, h)
		assert.Equal(t, was.Ceil, is.Ceil)
		assert.Equal(t, was.CBurst, is.CBurst)
		assert.Equal(t, leaf(alone, was.Handle).TBF, leaf(tree, h).TBF, "the bound in time, and with it PathBounds")
		if n == Media {
			assert.Equal(t, was.Rate, is.Rate, "the budget")
			assert.Equal(t, was.Burst, is.Burst)
			assert.Equal(t, was.Rate, class(tree, Handle(ClassID(n))).Rate, "also what goes to no site")
		}
	}
}

// As many sites as a config may have, on lines from the slowest on.
func TestAsManySitesAsThereMayBe(t *testing.T) {
	in := Input{Classes: reference(), Features: AssumedFeatures()}
	for i := range MaxSites {
		in.Sites = append(in.Sites, Site{Name: fmt.Sprintf("branch-%d", i), Downlink: Mbit})
	}
	for _, rate := range []BitRate{64 * Kbit, Mbit, 100 * Mbit, 100 * Gbit} {
		in.WANs = []Egress{{Interface: "wan0", Line: Line{Uplink: rate, Margin: 30}}}
		sum := map[Handle]BitRate{}
		l := Want(in).Links[0]
		for _, c := range l.Classes {
			sum[c.Parent] += c.Rate
		}
		for _, c := range l.Classes {
			require.LessOrEqual(t, sum[c.Handle], c.Rate, "%s %s", rate, c.Handle)
		}
		b := VoiceBudgets(in.WANs[0].Line, in.Sites, in.Classes)
		assert.Equal(t, rate == 100*Gbit, b.Reserved, "%s", rate)
		assert.Len(t, b.Sites, MaxSites)
	}
	in.Sites = in.Sites[:1]
	assert.Equal(
		t,
		Budgets{Local: 6 * Mbit, Pool: 7 * Mbit, Sites: map[string]BitRate{"branch-0": 300 * Kbit}, Reserved: true},
		VoiceBudgets(Line{Uplink: 20 * Mbit}, in.Sites, in.Classes),
	)
}

func TestSlotsStayWhenSitesComeAndGo(t *testing.T) {
	var sites []Site
	for i := range MaxSites {
		sites = append(sites, Site{Name: fmt.Sprintf("branch-%d", i)})
	}
	all := slotsOf(sites)
	seen := map[Handle]bool{}
	for _, h := range all {
		require.True(t, innerClass(h))
		require.False(t, seen[h])
		seen[h] = true
	}
	moved, before := 0, slotsOf(sites[:500])
	for i := range sites[:500] {
		less := slotsOf(slices.Concat(sites[:i], sites[i+1:500]))
		for _, s := range sites[:500] {
			if h, there := less[s.Name]; there && h != before[s.Name] {
				moved++
			}
		}
		if i == 50 {
			break
		}
	}
	assert.LessOrEqual(t, moved, 5, "of 50 changes")
}

func TestMoreUplinkIsNeverLessOfAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		in.Sites = nil // a site's part is rounded
		less := Want(in)
		for i := range in.WANs {
			in.WANs[i].Uplink += BitRate(rapid.Uint64Range(0, uint64(Gbit)).Draw(t, "more"))
		}
		for i, l := range Want(in).Links {
			for j, c := range l.Classes {
				o := less.Links[i].Classes[j]
				require.GreaterOrEqual(t, c.Rate, o.Rate)
				require.GreaterOrEqual(t, c.Ceil, o.Ceil)
				require.GreaterOrEqual(t, c.Burst, o.Burst)
			}
		}
	})
}

func TestSegmentRateTellsTheBurst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := ByteCount(rapid.Uint64Range(64, 65554).Draw(t, "burst"))
		got, ok := SegmentBurst(SegmentRate(b))
		require.True(t, ok)
		require.Equal(t, b, got)
	})
	_, ok := SegmentBurst(7 * Mbit)
	assert.False(t, ok)
}

func TestPathIsBoundedTogether(t *testing.T) {
	for _, rate := range []BitRate{500 * Kbit, Mbit, 2 * Mbit, 5 * Mbit, 10 * Mbit, 20 * Mbit, 100 * Mbit, Gbit,
		10 * Gbit} {
		in := Input{
			WANs:     []Egress{{Interface: "wan0", Line: Line{Uplink: rate, Margin: 3}, MTU: 1500}},
			Classes:  reference(),
			Features: AssumedFeatures(),
		}
		tree, shaped := Want(in).Links[0], in.WANs[0].Shaped()
		for _, c := range reference()[:3] { // no tunnel is made for background
			p := PathBounds(shaped, c, 1500)
			own := Rate(shaped, reference(), c.Name)
			bound := max(4*c.Limit, own.Serialization(13*WireFrame(1500)))
			assert.LessOrEqual(t, p.Total, bound, "%s %s", rate, c.Name)
			assert.LessOrEqual(t, p.Alone, p.Total)
			for _, q := range tree.Qdiscs {
				if q.Parent == Handle(ClassID(c.Name)) {
					assert.EqualValues(t, q.TBF.Limit, p.LeafBytes, "the leaf that the plan makes")
				}
			}
			if c.Name == Data {
				inFlight := 2 * p.SendBuffer / truesizeFull * int(WireFrame(1500))
				assert.Less(t, inFlight, p.LeafBytes, "%s: the socket waits before the leaf drops", rate)
				assert.GreaterOrEqual(t, 2*p.SendBuffer, 2*truesizeFull, "%s: one on the wire, one behind it", rate)
				if rate <= 20*Mbit {
					assert.EqualValues(t, WireFrame(1500), p.TUNGSOBytes, "%s: no super-packets on a slow link", rate)
				}
			}
		}
	}
	p := PathBounds(0, reference()[2], 1500)
	assert.Equal(
		t,
		Path{TUNPackets: 1000, TUNGSOBytes: 65536, SendBuffer: 7340032},
		p,
		"unknown uplink: as wireguard-go has it",
	)
}

func TestHandles(t *testing.T) {
	for h, s := range map[Handle]string{RootHandle: "root", 0x10000: "1:", 0x10010: "1:10", 0xabcd0000: "abcd:"} {
		b, err := h.MarshalText()
		require.NoError(t, err)
		assert.Equal(t, s, string(b))
		var got Handle
		require.NoError(t, got.UnmarshalText(b))
		assert.Equal(t, h, got)
	}
	var h Handle
	assert.EqualError(t, h.UnmarshalText([]byte("10")), `"10" is no handle (root, 1: or 1:10)`)
	assert.Error(t, h.UnmarshalText([]byte("1:zz")))
}

func TestOwnTreeIsNotTakenForSomebodys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Want(drawInput(t))
		for _, l := range s.Foreign().Links {
			require.Equal(t, Link{Interface: l.Interface}, l)
		}
	})
	other := Want(
		Input{
			WANs:     []Egress{{Interface: "wan0", Line: Line{Uplink: Mbit}}},
			Classes:  reference(),
			Features: AssumedFeatures(),
		},
	)
	other.Links[0].Classes[4].Handle = 0x10099
	assert.Equal(t, other.Canonical(), other.Foreign())
	assert.Equal(t, []string{"wan0"}, other.Interfaces())
}
