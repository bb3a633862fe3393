package path

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// sizeNet is a far end that answers probes, and the path to it.
type sizeNet struct {
	z     Sizes
	now   int64
	takes func(source netip.Addr) int // bytes that pass
	own   int                         // that this machine sends at all
	lost  func() bool
	delay time.Duration // there and back
	seen  SizesSeen
	mute  bool

	flights   []sizeFlight
	long      int // probes that were sent
	short     int
	found     []int // as Least changed
	foundAt   []int64
	mostAtOne int // long ones in a look
	longest   int
}

type sizeFlight struct {
	at    int64
	stamp uint64
}

func newSizeNet(remote string, takes int) *sizeNet {
	n := &sizeNet{
		now: int64(time.Hour), own: 1500, delay: 30 * time.Millisecond, lost: func() bool { return false },
		takes: func(netip.Addr) int { return takes },
	}
	n.seen = SizesSeen{Remote: netip.MustParseAddr(remote), Session: true, May: func() bool { return true }}
	n.z.Probe(n.now, 1500)
	return n
}

func (n *sizeNet) run(d time.Duration) {
	const step = int64(100 * time.Millisecond)
	for until := n.now + int64(d); n.now < until; n.now += step {
		var later []sizeFlight
		for _, f := range n.flights {
			if f.at <= n.now {
				n.z.Answer(f.at, f.stamp)
			} else {
				later = append(later, f)
			}
		}
		n.flights = later
		long := 0
		for _, p := range n.z.Look(n.now, n.seen) {
			if p.Size > 0 {
				n.long++
				long++
				n.longest = max(n.longest, p.Size)
			} else {
				n.short++
			}
			switch {
			case p.Size > n.own:
				n.z.Refused(n.now, p.Stamp)
			case p.Size > n.takes(p.Source), n.mute, n.lost():
			default:
				n.flights = append(n.flights, sizeFlight{n.now + int64(n.delay), p.Stamp})
			}
		}
		n.mostAtOne = max(n.mostAtOne, long)
		if l := n.z.Least(); len(n.found) == 0 && l > 0 || len(n.found) > 0 && n.found[len(n.found)-1] != l {
			n.found, n.foundAt = append(n.found, l), append(n.foundAt, n.now)
		}
	}
}

const far4, far6 = "203.0.113.9", "2001:db8::9"

// Of every path what is found is what it takes, to 16 bytes, and it is found within seconds, in one step.
func TestWhatAPathTakesIsFound(t *testing.T) {
	for _, remote := range []string{far4, far6} {
		for takes := 600; takes <= 1600; takes += 7 {
			n := newSizeNet(remote, takes)
			n.run(10 * time.Second)
			want := min(1500, sizeOffset+(takes-sizeOffset)/16*16)
			switch {
			case takes >= 1500:
				want = 1500
			case remote == far6:
				want = max(want, 1280)
			default:
				want = max(want, leastSize)
			}
			require.Equal(t, []int{want}, n.found, "%s takes %d", remote, takes)
			require.LessOrEqual(t, n.mostAtOne, 1)
		}
	}
	n := newSizeNet(far6, 1400)
	n.run(10 * time.Second)
	assert.Less(t, time.Duration(n.foundAt[0]-int64(time.Hour)), 4*time.Second)
	assert.LessOrEqual(t, n.long, 17)
}

// A path that takes the longest costs one packet, and one every ten minutes.
func TestAWidePathCostsAPacketInTenMinutes(t *testing.T) {
	n := newSizeNet(far4, 1500)
	n.seen.Knows = true
	n.run(time.Minute)
	assert.Equal(t, 1, n.long)
	n.run(time.Hour)
	assert.Equal(t, 7, n.long)
	assert.Equal(t, 7, n.short)
	assert.Equal(t, []int{1500}, n.found)
}

// A link in the middle becomes smaller while long packets are sent: that is found within seconds, in one step. When it
// takes more again it is found at the next attempt, ten minutes later.
func TestABlackHoleIsLeftInOneStep(t *testing.T) {
	for _, c := range []struct {
		calls  bool
		within time.Duration
	}{{false, usedEvery + 5*time.Second}, {true, calledEvery + 5*time.Second}} {
		takes := 1500
		n := newSizeNet(far6, 0)
		n.takes = func(netip.Addr) int { return takes }
		n.seen.Calls = c.calls
		send := func(d time.Duration) {
			for range d / time.Second {
				n.z.Used(n.now, n.seen)
				n.run(time.Second)
			}
		}
		send(5 * time.Minute)
		require.Equal(t, []int{1500}, n.found)
		takes = 1400
		at := n.now
		send(c.within + time.Second)
		require.Equal(t, []int{1500, 1392}, n.found)
		assert.Less(t, time.Duration(n.foundAt[1]-at), c.within)

		takes = 1500
		at = n.now
		n.run(sizesEvery + 10*time.Second)
		require.Equal(t, []int{1500, 1392, 1500}, n.found)
		assert.Greater(t, time.Duration(n.foundAt[2]-at), sizesEvery/2, "not at once")
	}
}

// At rest nothing is found out sooner than with the next confirmation, and then without anybody's hint.
func TestABlackHoleAtRest(t *testing.T) {
	takes := 1500
	n := newSizeNet(far6, 0)
	n.takes = func(netip.Addr) int { return takes }
	n.run(time.Minute)
	takes = 1280
	n.run(sizesEvery)
	assert.Equal(t, []int{1500, 1280}, n.found)
}

// A little more is found, too, where all would be too much.
func TestALittleMoreIsFound(t *testing.T) {
	takes := 1300
	n := newSizeNet(far4, 0)
	n.takes = func(netip.Addr) int { return takes }
	n.run(time.Minute)
	takes = 1460
	n.run(sizesEvery)
	assert.Equal(t, []int{1296, 1456}, n.found)
}

// A path that takes long packets only now and then is raised more and more rarely.
func TestAPathThatChangesIsRaisedRarely(t *testing.T) {
	n := newSizeNet(far6, 0)
	n.takes = func(netip.Addr) int { // five minutes so, five minutes so, and out of step with the attempts
		if n.now/int64(311*time.Second)%2 == 0 {
			return 1500
		}
		return 1400
	}
	for range 8 * 60 {
		n.z.Used(n.now, n.seen)
		n.run(time.Minute)
	}
	assert.Less(t, len(n.found), 24, "changes in eight hours: %v", n.found)
	assert.Greater(t, len(n.found), 4)
}

// Loss is no evidence about lengths: neither little, nor much, nor all of it.
func TestLossIsNoBlackHole(t *testing.T) {
	for _, percent := range []int{1, 5, 20} {
		r := rand.New(rand.NewPCG(7, uint64(percent)))
		wrong := 0
		for range 50 {
			n := newSizeNet(far4, 1500)
			n.run(time.Minute)
			n.found = []int{1500}
			n.lost = func() bool { return r.IntN(100) < percent }
			n.run(30 * time.Minute)
			wrong += len(n.found) - 1
		}
		assert.LessOrEqual(t, wrong, percent*percent*percent/8000, "%d %%", percent)
	}

	n := newSizeNet(far4, 1500)
	n.run(time.Minute)
	n.mute = true
	n.run(2 * time.Hour)
	assert.Equal(t, []int{1500}, n.found)
	n.mute = false
	n.run(2 * sizesEvery)
	assert.Equal(t, []int{1500}, n.found)
}

// A far end that is no Ringway answers nothing: three short packets, and one every ten minutes, never a long one.
func TestAStockFarEndGetsNoLongPacket(t *testing.T) {
	n := newSizeNet(far4, 1500)
	n.mute = true
	n.run(time.Minute)
	assert.Equal(t, 3, n.short)
	n.run(time.Hour)
	assert.Equal(t, 9, n.short)
	assert.Zero(t, n.long)
	assert.Empty(t, n.found)

	n.mute = false
	n.run(sizesEvery)
	assert.Equal(t, []int{1500}, n.found, "it was upgraded")
	n.mute = true
	n.run(time.Hour)
	before := n.long
	n.run(time.Hour)
	assert.Equal(t, before, n.long, "it is stock again")
}

// Without a session, or where somebody has set the MTU, nothing is sent.
func TestNothingIsProbedUnasked(t *testing.T) {
	n := newSizeNet(far4, 1500)
	n.seen.Session = false
	n.run(time.Hour)
	assert.Zero(t, n.short+n.long)
	n.seen.Session = true
	n.run(time.Minute)
	assert.Equal(t, []int{1500}, n.found)
	n.z.Probe(n.now, 0)
	n.short, n.long = 0, 0
	n.run(time.Hour)
	assert.Zero(t, n.short+n.long)
	assert.Zero(t, n.z.Least())
}

// Each line has its own length; all are kept to the shortest, also of a line that has just gone.
func TestEachLineHasItsOwn(t *testing.T) {
	one, two := netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("192.0.2.2")
	n := newSizeNet(far4, 0)
	n.seen.Sources, n.seen.Source = []netip.Addr{one, two}, one
	n.takes = func(a netip.Addr) int {
		if a == two {
			return 1400
		}
		return 1500
	}
	n.run(10 * time.Second)
	assert.Equal(t, 1500, n.z.Of(one))
	assert.Equal(t, 1392, n.z.Of(two))
	assert.Equal(t, 1392, n.z.Least())
	n.longest = 0
	for range 60 {
		n.z.Used(n.now, n.seen)
		n.run(time.Second)
	}
	assert.Equal(t, 1392, n.longest, "what nobody sends is not confirmed")
	assert.Equal(t, 1500, n.z.Of(one))

	n.seen.Sources = []netip.Addr{one, netip.MustParseAddr("192.0.2.3")}
	n.run(time.Minute)
	assert.Equal(t, 1392, n.z.Least(), "it may come back at any moment")
	n.run(sizeKept)
	assert.Equal(t, 1500, n.z.Least())
}

// The far end is elsewhere: what is known may be wrong, in both directions.
func TestAFarEndThatMovesIsProbedAgain(t *testing.T) {
	takes := 1500
	n := newSizeNet(far4, 0)
	n.takes = func(netip.Addr) int { return takes }
	n.run(time.Minute)
	takes, n.seen.Remote = 1400, netip.MustParseAddr("203.0.113.77")
	n.run(5 * time.Second)
	assert.Equal(t, []int{1500, 1392}, n.found)
	takes, n.seen.Remote = 1500, netip.MustParseAddr("203.0.113.9")
	n.run(usedEvery + 5*time.Second)
	assert.Equal(t, []int{1500, 1392, 1500}, n.found)

	before := n.long
	for i := range 600 { // to and fro, ten times a second
		n.seen.Remote = netip.MustParseAddr(fmt.Sprintf("203.0.113.%d", 9+i%2))
		n.run(100 * time.Millisecond)
	}
	assert.LessOrEqual(t, n.long-before, 8)
}

// The line of this machine takes less than others: no packet has to be lost to find that out. When it takes more, that
// is found at once.
func TestThisMachinesOwnLine(t *testing.T) {
	n := newSizeNet(far4, 1500)
	n.own = 1400
	n.run(2 * time.Second)
	assert.Equal(t, []int{1392}, n.found)
	n.z.Probe(n.now, 1392)
	n.run(time.Minute)
	n.own = 1500
	n.z.Probe(n.now, 1500)
	n.run(2 * time.Second)
	assert.Equal(t, []int{1392, 1500}, n.found)
}

// Long packets that may not be sent now are sent later.
func TestPacketsThatAreTooLongWaitForTheirTurn(t *testing.T) {
	n := newSizeNet(far4, 1400)
	may := false
	n.seen.May = func() bool { return may }
	n.run(time.Minute)
	assert.Zero(t, n.long)
	may = true
	n.run(10 * time.Second)
	assert.Equal(t, []int{1392}, n.found)
}

// Answers that nobody asked for, or that come twice, change nothing.
func FuzzSizes(f *testing.F) {
	f.Add(uint16(1400), []byte{0, 1, 2, 250, 7})
	f.Fuzz(func(t *testing.T, takes uint16, what []byte) {
		n := newSizeNet(far6, int(takes))
		for i, b := range what {
			switch b % 5 {
			case 0:
				n.z.Answer(n.now, n.z.stamp-uint64(b/5))
			case 1:
				n.z.Refused(n.now, n.z.stamp-uint64(b/5))
			case 2:
				n.z.Used(n.now, n.seen)
			case 3:
				n.seen.Remote = netip.AddrFrom16([16]byte{0x20, 1, 15: b})
			case 4:
				n.run(time.Duration(b) * 200 * time.Millisecond)
			}
			if least := n.z.Least(); least != 0 && (least < 1280 || least > 1500) {
				t.Fatalf("%d bytes after step %d", least, i)
			}
		}
	})
}
