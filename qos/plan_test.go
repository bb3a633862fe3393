package qos

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func reference() []Class {
	return []Class{
		{Name: Media, Share: 30, Limit: 20 * time.Millisecond},
		{Name: Signalling, Share: 10, Limit: 100 * time.Millisecond},
		{Name: Data, Share: 50, Limit: 50 * time.Millisecond},
		{Name: Background, Share: 5, Limit: 200 * time.Millisecond},
	}
}

func TestPlanAsTCWords(t *testing.T) {
	for _, rate := range []BitRate{Mbit, 20 * Mbit, Gbit} {
		t.Run(rate.String(), func(t *testing.T) {
			in := Input{
				WANs: []WAN{
					{Interface: "wan0", Uplink: rate, Margin: 3, MTU: 1500},
					{Interface: "wan1", Uplink: 0, Margin: 3, MTU: 1500},
				},
				Classes: reference(), Features: AssumedFeatures(),
			}
			golden, err := os.ReadFile("testdata/plan-" + rate.String() + ".txt")
			require.NoError(t, err)
			assert.Equal(t, string(golden), strings.Join(Want(in).Text(), "\n")+"\n")
		})
	}
}

func TestOverheadAndFeatures(t *testing.T) {
	in := Input{
		WANs:    []WAN{{Interface: "wan0", Uplink: 10 * Mbit, Overhead: 24, MPU: 84, MTU: 1492}},
		Classes: reference(), Features: Features{HTB: true, BFIFO: true},
	}
	text := strings.Join(Want(in).Text(), "\n")
	assert.Contains(t, text, "class add dev wan0 parent 1:1 classid 1:30 htb rate 5mbit ceil 10mbit burst 1510 cburst 1510 prio 2 quantum 1510 overhead 24 mpu 84")
	assert.Contains(t, text, "qdisc add dev wan0 parent 1:30 handle 30: bfifo limit 31250")
	assert.Len(t, in.Features.Missing(), 2)

	in.Features.HTB = false
	assert.Empty(t, Want(in).Links, "nothing is shaped without HTB")
	assert.Empty(t, Priorities(in))
	assert.Contains(t, in.Features.Missing()[0], "no WAN is shaped")
}

func TestPrioritiesNameTheTree(t *testing.T) {
	in := Input{
		WANs:    []WAN{{Interface: "wan0", Uplink: Mbit}, {Interface: "wan1"}},
		Classes: reference(), Features: AssumedFeatures(),
	}
	assert.Equal(t, []Priority{
		{"wan0", Media, 0x10010}, {"wan0", Signalling, 0x10020}, {"wan0", Data, 0x10030}, {"wan0", Background, 0x10040},
	}, Priorities(in))
	handles := map[Handle]bool{}
	for _, c := range Want(in).Links[0].Classes {
		handles[c.Handle] = true
	}
	for _, p := range Priorities(in) {
		assert.True(t, handles[Handle(p.ClassID)])
		name, ok := ClassOf(Handle(p.ClassID))
		assert.True(t, ok)
		assert.Equal(t, p.Class, name)
	}
	assert.Zero(t, ClassID("other"))
}

// drawInput draws plans beyond what the config's check lets through, too.
func drawInput(t *rapid.T) Input {
	in := Input{Features: Features{HTB: true, TBF: rapid.Bool().Draw(t, "tbf"), BFIFO: true}}
	for _, n := range ClassNames {
		in.Classes = append(in.Classes, Class{
			Name: n, Share: rapid.IntRange(0, 95).Draw(t, "share"),
			Limit: time.Duration(rapid.IntRange(1, 1000).Draw(t, "limit")) * time.Millisecond,
		})
	}
	for _, name := range []string{"wan0", "wan1", "wan2"} {
		if rapid.Bool().Draw(t, name) {
			in.WANs = append(in.WANs, WAN{
				Interface: name, Uplink: BitRate(rapid.Uint64Range(uint64(64*Kbit), uint64(100*Gbit)).Draw(t, "uplink")),
				Margin: rapid.IntRange(0, 50).Draw(t, "margin"), Overhead: rapid.IntRange(0, 60).Draw(t, "overhead"),
				MPU: rapid.IntRange(0, 96).Draw(t, "mpu"), MTU: rapid.SampledFrom([]int{0, 576, 1280, 1492, 1500, 9000}).Draw(t, "mtu"),
			})
		}
	}
	return in
}

func TestEveryPlanKeepsToWhatHTBDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		for _, l := range Want(in).Links {
			classes := map[Handle]HTBClass{}
			sum := BitRate(0)
			for _, c := range l.Classes {
				classes[c.Handle] = c
				if c.Parent == rootClass {
					sum += c.Rate
				}
			}
			parent := classes[rootClass]
			require.Equal(t, parent.Rate, parent.Ceil)
			require.LessOrEqual(t, sum, parent.Rate, "green leaves never exceed the parent")
			media := classes[Handle(ClassID(Media))]
			require.Equal(t, media.Rate, media.Ceil, "media is held to its budget")
			for i, n := range ClassNames {
				c := classes[Handle(ClassID(n))]
				require.Equal(t, uint32(i), c.Prio)
				require.LessOrEqual(t, c.Rate, c.Ceil)
				require.LessOrEqual(t, c.Ceil, parent.Ceil)
				require.Positive(t, c.Rate)
				require.GreaterOrEqual(t, c.Burst, c.Quantum, "a packet of any size fits")
				require.Zero(t, uint64(c.Rate)%8, "the kernel keeps whole bytes a second")
			}
			require.Contains(t, classes, rootQdisc|Handle(l.Qdiscs[0].HTB.Default), "what has no class goes to one that is there")
			require.Len(t, l.Qdiscs, 1+len(ClassNames), "every leaf is bounded")
		}
	})
}

func TestMoreUplinkIsNeverLessOfAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
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
	for _, rate := range []BitRate{500 * Kbit, Mbit, 2 * Mbit, 5 * Mbit, 10 * Mbit, 20 * Mbit, 100 * Mbit, Gbit, 10 * Gbit} {
		in := Input{WANs: []WAN{{Interface: "wan0", Uplink: rate, Margin: 3, MTU: 1500}}, Classes: reference(), Features: AssumedFeatures()}
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
	assert.Equal(t, Path{TUNPackets: 1000, TUNGSOBytes: 65536, SendBuffer: 7340032}, p, "unknown uplink: as wireguard-go has it")
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
	other := Want(Input{WANs: []WAN{{Interface: "wan0", Uplink: Mbit}}, Classes: reference(), Features: AssumedFeatures()})
	other.Links[0].Classes[4].Handle = 0x10099
	assert.Equal(t, other.Canonical(), other.Foreign())
	assert.Equal(t, []string{"wan0"}, other.Interfaces())
}
