package keys_test

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/keys"
	"ringway/srtp/stream"
	"ringway/srtp/suite"
)

// box is one end: an exchange, and srtp/stream as its media plane.
type box struct {
	t        *testing.T
	x        *keys.Exchange
	messages [][]byte

	sender   *stream.Sender
	using    keys.MKI
	told     uint64 // packets sent that the exchange knows of
	receiver *stream.Receiver
	holding  map[keys.MKI]*stream.Key
	opened   map[keys.MKI]uint64 // of them, that the exchange knows of
	most     int                 // keys held at once
}

func newBox(t *testing.T, every time.Duration) *box {
	x, err := keys.New(keys.Config{Every: every}, 0)
	require.NoError(t, err)
	return &box{t: t, x: x, holding: map[keys.MKI]*stream.Key{}, opened: map[keys.MKI]uint64{}}
}

// carry does what the exchange asks the media plane for.
func (b *box) carry(now int64) {
	for _, a := range b.x.Actions() {
		switch a.Kind {
		case keys.Hold:
			k := b.key(a)
			if a.Fresh {
				b.receiver = stream.NewReceiver(k)
			} else {
				require.NoError(b.t, b.receiver.Add(k))
			}
			b.holding[a.Key.MKI] = k
			b.most = max(b.most, len(b.holding))
			b.x.Held(a.Leg, a.Key.MKI, now)
		case keys.Drop:
			b.receiver.Drop(a.Key.MKI[:])
			delete(b.holding, a.Key.MKI)
		case keys.Use:
			if a.Fresh {
				b.sender = stream.NewSender(b.key(a))
			} else {
				b.sender.Use(b.key(a)).Wipe()
			}
			b.using, b.told = a.Key.MKI, 0
			b.x.Sent(a.Leg, a.Key.MKI, 0, now)
		case keys.Stop:
			b.sender = nil
		}
	}
	b.messages = append(b.messages, b.x.Messages()...)
}

func (b *box) key(a keys.Action) *stream.Key {
	k, err := stream.NewKey(a.Key.Suite, a.Key.Master(), a.Key.Salt(), a.Key.MKI[:], a.Lifetime)
	require.NoError(b.t, err)
	a.Key.Wipe()
	return k
}

// report tells the exchange what was sent and opened since.
func (b *box) report(leg keys.Leg, now int64) {
	if b.sender != nil {
		b.x.Sent(leg, b.using, b.sender.Key().Sealed()-b.told, now)
		b.told = b.sender.Key().Sealed()
	}
	for mki, k := range b.holding {
		if more := k.Opened() - b.opened[mki]; more > 0 {
			b.opened[mki] += more
			b.x.Opened(leg, mki, more, now)
		}
	}
}

// exchange passes messages until there are none.
func exchange(t *testing.T, now int64, boxes ...*box) {
	for busy := true; busy; {
		busy = false
		for i, b := range boxes {
			b.carry(now)
			for _, m := range b.messages {
				require.NoError(t, boxes[1-i].x.Receive(m, now))
				busy = true
			}
			b.messages = nil
		}
	}
}

// onItsWay is a packet between the boxes.
type onItsWay struct {
	to      *box
	arrives int64
	number  uint64
	sealed  []byte
}

// TestAHundredRotations: two ends send to each other at 20 packets a second for some two hours, over a line that loses
// 5 % and brings packets late by up to 3 s, so that their order changes. Every key changes 100 times, numbers wrap, and
// each packet that arrives is opened, once, and is what was sent.
func TestAHundredRotations(t *testing.T) {
	const every, step = keys.MinEvery, time.Second / 20
	chance := rand.New(rand.NewPCG(12, 34)) //nolint:gosec // a line that repeats
	boxes := []*box{newBox(t, every), newBox(t, every)}
	leg := keys.Leg{1}
	now := int64(time.Hour)
	for _, b := range boxes {
		b.x.Connected(now)
		require.NoError(t, b.x.Begin(leg, suite.AEADAES128GCM, now))
	}
	exchange(t, now, boxes...)

	var line []onItsWay
	sent, arrived, refused, wraps := uint64(0), 0, 0, 0
	last := [2]uint16{}
	rotations := func() uint64 {
		return min(boxes[0].x.Counters().Rotations, boxes[1].x.Counters().Rotations)
	}
	out := make([]byte, 256)
	for ; rotations() < 100; now += int64(step) {
		for i, b := range boxes {
			p := make([]byte, 12+16, 12+16+64)
			p[0] = 0x80
			binary.BigEndian.PutUint16(p[2:], uint16(sent/2))
			binary.BigEndian.PutUint32(p[8:], uint32(i))
			binary.BigEndian.PutUint64(p[12:], sent)
			sealed, err := b.sender.Seal(make([]byte, len(p)+64), p, now)
			require.NoError(t, err)
			if seq := binary.BigEndian.Uint16(sealed[2:]); seq < last[i] {
				wraps++
				last[i] = seq
			} else {
				last[i] = seq
			}
			if chance.IntN(20) != 0 {
				late := chance.Int64N(int64(50 * time.Millisecond))
				if chance.IntN(50) == 0 {
					late = chance.Int64N(int64(3 * time.Second))
				}
				line = append(line, onItsWay{to: boxes[1-i], arrives: now + late, number: sent, sealed: sealed})
			}
			sent++
		}
		rest := line[:0]
		for _, p := range line {
			if p.arrives > now {
				rest = append(rest, p)
				continue
			}
			opened, err := p.to.receiver.Open(out, p.sealed, now)
			arrived++
			if err != nil || binary.BigEndian.Uint64(opened[12:]) != p.number {
				refused++
			}
			if _, err := p.to.receiver.Open(out, p.sealed, now); !errors.Is(err, stream.ErrReplayed) {
				assert.Fail(t, "opened twice", "%v", err)
			}
		}
		line = rest
		if sent%40 == 0 {
			for _, b := range boxes {
				b.report(leg, now)
				b.x.Tick(now)
			}
		}
		exchange(t, now, boxes...)
	}
	assert.Zero(t, refused)
	assert.Greater(t, arrived, int(sent)*9/10)
	assert.GreaterOrEqual(t, wraps, 4, "numbers went over 65535 in each direction")
	for _, b := range boxes {
		assert.Equal(t, 2, b.most, "keys held at once")
		assert.Empty(t, b.x.Problems(now))
	}
}
