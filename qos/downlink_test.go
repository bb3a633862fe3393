package qos

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestEveryLANHoldsWhatComesInAndNothingElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		downs, links := Downlinks(in), 0
		for _, l := range Want(in).Links {
			if l.root().Handle != lanQdisc {
				continue
			}
			links++
			require.Contains(t, in.LANs, l.Interface)
			classes, queues, handles := map[Handle]HTBClass{}, map[Handle]bool{}, map[Handle]bool{}
			for _, c := range l.Classes {
				classes[c.Handle] = c
				require.True(t, lanClass(c.Handle))
				require.Equal(t, c.Rate, c.Ceil, "nobody borrows: prio alone orders")
				require.Zero(t, uint64(c.Rate)%8)
			}
			for _, q := range l.Qdiscs {
				queues[q.Parent], handles[q.Handle] = true, true
			}
			require.Len(t, handles, len(l.Qdiscs), "no two have one handle")
			require.Len(t, classes, 2+len(downs))
			require.Equal(
				t,
				restClass,
				lanQdisc|Handle(l.Qdiscs[0].HTB.Default),
				"what was not steered has no limit",
			)
			var names []string
			for _, w := range in.WANs {
				names = append(names, w.Interface)
			}
			places := DownlinkPlaces(names)
			for _, d := range downs {
				c := classes[Handle(d.ClassID)]
				require.Equal(t, Place{d.WAN, ClassDownlink}, places[c.Handle])
				require.Equal(t, d.Rate, c.Rate)
				require.Positive(t, c.Rate)
				line := d.wan.Shape(d.wan.Downlink, d.wan.Margin)
				require.LessOrEqual(t, c.Rate, line)
				if c.Rate > 8*Kbit { // the least
					require.LessOrEqual(t, c.Rate+Rate(line, in.Classes, Media), line, "media's share stays free")
				}
				require.Greater(t, c.Prio, classes[restClass].Prio)
			}
			require.Greater(t, classes[restClass].Prio, classes[callsClass].Prio)
			for h := range classes {
				require.True(t, queues[h], "%s is bounded", h)
			}
		}
		if len(downs) == 0 {
			require.Zero(t, links)
		} else {
			require.Equal(t, len(in.LANs), links)
		}
	})
}

func TestWhatComesInIsShapedWhereItIsKnown(t *testing.T) {
	in := Input{
		WANs: []Egress{
			{Interface: "wan0", Line: Line{Uplink: Mbit}},
			{Interface: "wan1", Line: Line{Downlink: 10 * Mbit}},
		},
		LANs:     []string{"lan0"},
		Classes:  reference(),
		Features: AssumedFeatures(),
	}
	downs := Downlinks(in)
	require.Len(t, downs, 1, "wan1, whether its uplink is known or not")
	assert.Equal(t, uint32(0x20020), downs[0].ClassID)
	assert.Equal(t, 7*Mbit, downs[0].Rate)
	assert.Equal(t, []string{"lan0", "wan0"}, Want(in).Interfaces())

	none := in
	none.LANs = nil
	assert.Empty(t, Downlinks(none))
	none = in
	none.Features.HTB = false
	assert.Empty(t, Want(none).Links)
}

// The two trees are told from one another, and from what somebody made that looks much the same.
func TestALANsTreeIsTold(t *testing.T) {
	in := Input{
		WANs:     []Egress{{Interface: "wan0", Line: Line{Downlink: 10 * Mbit}}},
		LANs:     []string{"lan0"},
		Classes:  reference(),
		Features: AssumedFeatures(),
	}
	l := Want(in).Links[0]
	assert.Empty(t, l.Theirs())
	l.Classes[0].Handle = lanQdisc | 0x99
	assert.Equal(t, "htb 2:", l.Theirs())
	l = Want(in).Links[0]
	l.Qdiscs[0].HTB = &HTB{Default: 0x30}
	assert.Equal(t, "htb 2:", l.Theirs())
}
