package plane

import (
	"encoding/binary"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/boottime"
	"ringway/process"
	"ringway/srtp/dtls"
	"ringway/srtp/keys"
	"ringway/srtp/media"
	"ringway/srtp/stream"
)

// mustSet sets a pair of the book's own generation, and commits it.
func (b *book) mustSet(t *testing.T, p Pair) {
	t.Helper()
	p.Generation = b.generation
	c, err := b.set(&p)
	require.NoError(t, err)
	c.commit(b)
}

func (b *book) mustAct(t *testing.T, kind keys.ActionKind, number byte, fresh bool) effect {
	t.Helper()
	c, e, err := b.act(actionOf(kind, number, fresh))
	require.NoError(t, err)
	c.commit(b)
	return e
}

func actionOf(kind keys.ActionKind, number byte, fresh bool) *action {
	return &action{Kind: kind, Leg: keys.Leg{1}, Key: keyOf(number, 0, 0, 0, number), Fresh: fresh}
}

func channelPair() Pair {
	l := farLeg()
	l.Keying, l.Channel = Channel, keys.Leg{1}
	return Pair{ID: 1, Legs: [2]Leg{phoneLeg(), l}}
}

func accountOf(n uint64) stream.Account {
	return stream.Account{Sources: []stream.Sent{{SSRC: 7, Index: n, HasRTP: true}}}
}

// A stream goes on while its epoch is the same. With another one it begins with another key, or not at all.
func TestAStreamGoesOnWhileItsEpochIsTheSame(t *testing.T) {
	b := newBook()
	p := sdesPair(keyOf(1), keyOf(2))
	b.mustSet(t, p)
	out, in := b.legs[2].out, b.legs[2].in
	require.True(t, b.sent(2, accountOf(5)))
	b.mustSet(t, p)
	assert.Same(t, out, b.legs[2].out)
	assert.Same(t, in, b.legs[2].in)
	assert.Equal(t, accountOf(5), b.legs[2].out.Sent)

	refused := func(p Pair, why string) {
		t.Helper()
		before, p2 := b.state(), p
		p2.Generation = b.generation
		_, err := b.set(&p2)
		require.ErrorContains(t, err, why)
		assert.Equal(t, before, b.state(), "nothing has changed")
		assert.Same(t, out, b.legs[2].out)
		assert.Equal(t, keyOf(1), b.legs[2].out.Keys[0])
	}
	again := sdesPair(keyOf(1), keyOf(2))
	again.Legs[1].Send.Epoch = 9
	refused(again, "was used before")
	refused(sdesPair(keyOf(3), keyOf(2)), "epoch 1 has other keys")

	next := sdesPair(keyOf(3), keyOf(4))
	next.Legs[1].Send.Epoch, next.Legs[1].Receive.Epoch = 3, 4
	b.mustSet(t, next)
	assert.NotSame(t, out, b.legs[2].out)
	assert.Empty(t, b.legs[2].out.Sent.Sources)
	assert.Equal(t, make([]byte, 16), out.Keys[0].Master, "it is overwritten")

	// The pair ends: with the same call and epoch, another one goes on; else the key is not taken.
	require.True(t, b.sent(2, accountOf(6)))
	require.True(t, b.heard(2, []stream.Heard{{SSRC: 8, Index: 4, HasRTP: true}}))
	b.remove(1).commit(b)
	again = sdesPair(keyOf(3), keyOf(4))
	again.Generation = b.generation
	for range 2 {
		_, err := b.set(&again)
		assert.ErrorContains(t, err, "was used before")
		again.Legs[1].Send.Epoch, again.Legs[1].Call = 3, 1 // another call
	}
	next.ID, next.Legs[0].ID, next.Legs[1].ID, next.Generation = 2, 30, 31, b.generation
	c, err := b.set(&next)
	require.NoError(t, err)
	c.undo()
	b.mustSet(t, next)
	assert.Equal(t, accountOf(6), b.legs[31].out.Sent)
	assert.Equal(t, []stream.Heard{{SSRC: 8, Index: 4, HasRTP: true}}, b.legs[31].in.Heard)
	b.given()
	assert.Equal(t, accountOf(6).Advanced(), b.legs[31].out.Sent)
	two := next
	two.ID, two.Legs[0].ID, two.Legs[1].ID = 3, 40, 41
	_, err = b.set(&two)
	assert.ErrorContains(t, err, "was used before", "one pair at a time has it")
}

// What is remembered of keys is bounded.
func TestKeysThatAreOutOfUseAreBounded(t *testing.T) {
	u := newUsed()
	direction := func(n int) *direction {
		k := keyOf(1)
		binary.BigEndian.PutUint64(k.Master, uint64(n))
		return &direction{Keying: SDES, Epoch: 1, Keys: []Key{k}, Sent: accountOf(uint64(n))}
	}
	for n := range maxRetired + 10 {
		d := direction(n)
		_, ok := u.take(d)
		require.True(t, ok)
		u.park(d)
	}
	assert.Len(t, u.order, maxRetired)
	assert.Len(t, u.parked, maxRetired)
	was, ok := u.take(direction(maxRetired + 9))
	require.True(t, ok)
	assert.Equal(t, accountOf(maxRetired+9), was.Sent)
	_, ok = u.take(direction(100))
	assert.False(t, ok, "it was used, and how far is not known any more")
}

// A change that is undone leaves nothing behind, and its keys may be used.
func TestAChangeIsUndone(t *testing.T) {
	b := newBook()
	empty := b.state()
	p := sdesPair(keyOf(1), keyOf(2))
	p.Generation = b.generation
	c, err := b.set(&p)
	require.NoError(t, err)
	c.undo()
	assert.Equal(t, empty, b.state())
	b.mustSet(t, p)

	before := b.state()
	out := b.legs[2].out
	branch := sdesPair(keyOf(1), keyOf(2))
	branch.ID, branch.Legs[0].ID, branch.Generation = 2, 3, b.generation
	c, err = b.set(&branch)
	require.NoError(t, err)
	assert.Same(t, out, b.legs[2].out, "the leg goes on in another pair")
	assert.NotContains(t, b.pairs, uint64(1))
	c.undo()
	assert.Equal(t, before, b.state())

	ch := channelPair()
	ch.ID, ch.Legs[0].ID, ch.Legs[1].ID = 5, 50, 51
	b.mustSet(t, ch)
	b.mustAct(t, keys.Hold, 3, true)
	b.mustAct(t, keys.Use, 4, true)
	for _, a := range []*action{
		actionOf(keys.Hold, 5, false), actionOf(keys.Hold, 5, true),
		actionOf(keys.Use, 6, false), actionOf(keys.Use, 6, true),
		actionOf(keys.Drop, 3, false), actionOf(keys.Stop, 4, false),
	} {
		before, err := json.Marshal(b.state())
		require.NoError(t, err)
		legOut, legIn := b.legs[51].out, b.legs[51].in
		c, e, err := b.act(a)
		require.NoError(t, err)
		assert.NotEqual(t, effectNone, e)
		c.undo()
		after, err := json.Marshal(b.state())
		require.NoError(t, err)
		assert.JSONEq(t, string(before), string(after))
		assert.Same(t, legOut, b.legs[51].out)
		assert.Same(t, legIn, b.legs[51].in)
		assert.Equal(t, keyOf(3, 0, 0, 0, 3), legIn.Keys[0])
	}
}

// What the actions of the key channel do.
func TestActionsOfTheKeyChannel(t *testing.T) {
	b := newBook()
	assert.Equal(t, effectNone, b.mustAct(t, keys.Hold, 1, true), "no pair")
	assert.Equal(t, effectNone, b.mustAct(t, keys.Use, 2, true))
	b.mustSet(t, channelPair())
	leg := b.legs[2]
	assert.Equal(t, keyOf(2, 0, 0, 0, 2), leg.out.Keys[0])

	assert.Equal(t, effectNone, b.mustAct(t, keys.Hold, 1, true), "it is so already")
	assert.Equal(t, effectNone, b.mustAct(t, keys.Use, 2, false))
	assert.Equal(t, effectAdd, b.mustAct(t, keys.Hold, 3, false))
	assert.Len(t, leg.in.Keys, 2)
	out := leg.out
	require.True(t, b.sent(2, accountOf(8)))
	assert.Equal(t, effectUse, b.mustAct(t, keys.Use, 4, false))
	assert.Same(t, out, leg.out)
	assert.Equal(t, accountOf(8), leg.out.Sent, "indices go on")
	assert.Equal(t, effectDrop, b.mustAct(t, keys.Drop, 1, false))
	assert.Equal(t, effectNone, b.mustAct(t, keys.Drop, 1, false))
	assert.Equal(t, effectOther, b.mustAct(t, keys.Drop, 3, false), "the last one")
	assert.Nil(t, leg.in)
	assert.Equal(t, effectOther, b.mustAct(t, keys.Use, 5, true))
	assert.Empty(t, leg.out.Sent.Sources, "indices begin again")
	_, _, err := b.act(actionOf(keys.Use, 4, true))
	assert.ErrorContains(t, err, "was used before")

	// A key that is spent has a successor that goes on.
	require.True(t, b.sent(2, accountOf(9)))
	b.remove(1).commit(b)
	p := channelPair()
	p.Generation = b.generation
	_, err = b.set(&p)
	assert.ErrorContains(t, err, "was used by a pair that has ended")
	b.mustAct(t, keys.Use, 6, false)
	b.given()
	assert.Equal(t, accountOf(9).Advanced(), b.channels[keys.Leg{1}].out.Sent)
	b.mustSet(t, p)
	assert.Equal(t, effectOther, b.mustAct(t, keys.Stop, 6, false))
	b.remove(1).commit(b)
	assert.Empty(t, b.channels)
}

// Keys of an association are those of the leg until another one has some.
func TestAnAssociationReplacesTheKeysOfTheOneBefore(t *testing.T) {
	b := newBook()
	pem, err := dtls.NewCertificate()
	require.NoError(t, err)
	certificate, err := dtls.ParseCertificate(pem)
	require.NoError(t, err)
	pair := func(epoch uint32) Pair {
		l := farLeg()
		l.Keying = DTLS
		l.Association = &Association{
			Epoch: epoch, Role: dtls.Server, Fingerprints: []string{certificate.Fingerprint(nil).String()},
		}
		return Pair{ID: 1, Legs: [2]Leg{phoneLeg(), l}}
	}
	establish := func(epoch uint32, send, receive byte) error {
		out, in := keyOf(send), keyOf(receive)
		c, err := b.establish(2, epoch, &out, &in)
		if err == nil {
			c.commit(b)
		}
		return err
	}
	b.mustSet(t, pair(1))
	assert.Nil(t, b.legs[2].out)
	require.NoError(t, establish(1, 1, 2))
	assert.True(t, b.legs[2].established())
	first := b.legs[2].out
	b.mustSet(t, pair(2))
	assert.Same(t, first, b.legs[2].out)
	assert.False(t, b.legs[2].established())
	assert.ErrorContains(t, establish(1, 3, 4), "no such association", "it was on its way")
	require.NoError(t, establish(2, 3, 4))
	assert.Equal(t, keyOf(3), b.legs[2].out.Keys[0])
	assert.Equal(t, make([]byte, 16), first.Keys[0].Master)
}

// The other half gets the same book. What a process cannot have is not taken.
func TestABookGoesToTheOtherHalf(t *testing.T) {
	b := newBook()
	b.mustSet(t, sdesPair(keyOf(1), keyOf(2)))
	b.sent(2, accountOf(3))
	b.heard(2, []stream.Heard{{SSRC: 8, Index: 4, HasRTP: true}})
	b.legs[2].learned = media.Learned{Leg: 2, RTP: farAt}
	ch := channelPair()
	ch.ID, ch.Legs[0].ID, ch.Legs[1].ID = 5, 50, 51
	b.mustSet(t, ch)
	b.mustAct(t, keys.Use, 3, true)
	b.mustAct(t, keys.Hold, 4, true)
	b.mustAct(t, keys.Hold, 5, false)
	b.mustAct(t, keys.Use, 6, false)

	transfer := func(change func(s *state)) (*book, error) {
		st := b.state()
		text, err := json.Marshal(st)
		require.NoError(t, err)
		secrets := packKeys(nil, st.keys())
		var got state
		require.NoError(t, json.Unmarshal(text, &got))
		require.NoError(t, unpackKeys(secrets, got.keys()))
		change(&got)
		return bookOf(&got)
	}
	next, err := transfer(func(*state) {})
	require.NoError(t, err)
	assert.Equal(t, b.state(), next.state())
	assert.Same(t, next.channels[keys.Leg{1}].out, next.legs[51].out)
	p := sdesPair(keyOf(3), keyOf(9))
	p.ID, p.Legs[0].ID, p.Legs[1].ID, p.Generation = 8, 80, 81, b.generation
	_, err = next.set(&p)
	assert.ErrorContains(t, err, "was used before", "it remembers keys that are out of use")

	for name, change := range map[string]func(s *state){
		"a pair twice":  func(s *state) { s.Pairs = append(s.Pairs, s.Pairs[0]) },
		"no keys":       func(s *state) { s.Pairs[0].Legs[1].Out.Keys = nil },
		"a key twice":   func(s *state) { s.Pairs[0].Legs[1].Out.Keys = s.Channels[0].Out.Keys },
		"keys of clear": func(s *state) { s.Pairs[0].Legs[0].In = s.Pairs[0].Legs[1].In },
		"no channel":    func(s *state) { s.Channels = nil },
		"a bad leg":     func(s *state) { s.Pairs[0].Legs[0].DSCP = 64 },
		"a key that is out of use": func(s *state) {
			s.Used = append(s.Used, parked{Key: digestOf(&s.Pairs[0].Legs[1].Out.Keys[0])})
		},
		"a long account": func(s *state) {
			s.Pairs[0].Legs[1].Out.Sent.Sources = make([]stream.Sent, maxAccount+1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := transfer(change)
			assert.Error(t, err)
		})
	}
}

// A process that told nothing for long before it ended may have used its keys further than what the next one skips.
// Legs that can have been sent so much are sent nothing more under them.
func TestKeysOfWhichTooLittleIsKnownAreNotUsed(t *testing.T) {
	for name, x := range map[string]struct {
		silence time.Duration
		packets int // that the other leg may send in a second
		silent  int
	}{
		"it has just told":      {0, 1000, 0},
		"not long, few packets": {5 * time.Second, 50, 0},
		"long":                  {60 * time.Second, 50, 1},
		"many packets":          {5 * time.Second, 1000, 1},
		"none has run":          {-1, 1000, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := New(Config{
				RunDir: t.TempDir(), Open: func() ([]process.File, error) { return nil, nil }, Program: "/bin/true",
			})
			require.NoError(t, err)
			defer s.close()
			p := sdesPair(keyOf(1), keyOf(2))
			p.Legs[0].Quota.Packets = x.packets
			s.book.mustSet(t, p)
			s.beat = boottime.Now() - x.silence
			if x.silence < 0 {
				s.beat = 0
			}
			s.silenceLocked()
			assert.Equal(t, x.silent, s.alarm.Silent)
			assert.Equal(t, x.silent == 1, s.book.legs[2].out == nil)
			p.Generation = s.book.generation
			_, err = s.book.set(&p)
			assert.Equal(t, x.silent == 1, err != nil, "a refresh does not bring the key back")
		})
	}
}

// A leg between boxes can get another key: who agrees them is told, and with the next one media goes on.
func TestLegsOfChannelsGetAnotherKey(t *testing.T) {
	var spent []keys.Leg
	s, err := New(Config{
		RunDir: t.TempDir(), Open: func() ([]process.File, error) { return nil, nil }, Program: "/bin/true",
		Spent: func(all []keys.Leg) { spent = append(spent, all...) },
	})
	require.NoError(t, err)
	defer s.close()
	p := channelPair()
	for i := range p.Legs {
		p.Legs[i].Quota.Packets = 1000
	}
	s.book.mustSet(t, p)
	s.book.mustAct(t, keys.Use, 4, true)
	i := slices.IndexFunc(p.Legs[:], func(l Leg) bool { return l.Keying == Channel })
	leg := s.book.legs[p.Legs[i].ID]
	require.NotNil(t, leg.out)

	s.beat = boottime.Now() - time.Minute
	s.silenceLocked()
	assert.Equal(t, []keys.Leg{p.Legs[i].Channel}, spent)
	assert.Nil(t, leg.out)
	s.book.mustAct(t, keys.Use, 4, false)
	assert.Nil(t, leg.out, "the same key does not come back")
	s.book.mustAct(t, keys.Use, 6, false)
	require.NotNil(t, leg.out)
	assert.False(t, leg.out.Spent)
	assert.True(t, leg.out.resumed, "indices go on")
}
