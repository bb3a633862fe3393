package plane

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	"ringway/srtp/stream"
)

// digest stands for a key without telling it.
type digest [16]byte

func digestOf(k *Key) (d digest) {
	h := sha256.New()
	h.Write([]byte("srtp key"))
	h.Write(k.Master)
	h.Write(k.Salt)
	copy(d[:], h.Sum(nil))
	return d
}

// MarshalText writes hexadecimal digits.
func (d digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText reads them.
func (d *digest) UnmarshalText(text []byte) error {
	if len(text) != 2*len(d) {
		return fmt.Errorf("a digest of %d digits", len(text))
	}
	_, err := hex.Decode(d[:], text)
	return err
}

const (
	// maxRetired is how many keys that are out of use are remembered: those of some hours.
	maxRetired = 8192
	// maxParked is how many of them a stream may go on with.
	maxParked = 256
)

// parked is a stream that is in no pair. With its key, which is not kept, another pair goes on with it: where the
// branch of a fork has ended, or pairs were joined.
type parked struct {
	Key   digest         `json:"key"`
	Call  uint64         `json:"call,omitempty"`
	Epoch uint32         `json:"epoch,omitempty"`
	Over  bool           `json:"over,omitempty"` // no stream goes on with it
	Sent  stream.Account `json:"sent,omitzero"`
	Heard []stream.Heard `json:"heard,omitempty"`
}

// used is every key of one kind, to send with or to receive with.
type used struct {
	live   map[digest]struct{} // those to send with
	parked map[digest]*parked
	order  []digest // of parked, the oldest first
}

func newUsed() used { return used{live: map[digest]struct{}{}, parked: map[digest]*parked{}} }

// take notes that a direction is sent with its key. was is what it goes on from. It is not ok where the key is in use,
// or was, and this is another stream: its indices would begin again.
func (u *used) take(d *direction) (was *parked, ok bool) {
	k := digestOf(&d.Keys[0])
	if _, is := u.live[k]; is {
		return nil, false
	}
	if was = u.parked[k]; was != nil && !was.of(d) {
		return nil, false
	}
	u.live[k] = struct{}{}
	u.forget(k)
	return was, true
}

// of says whether the direction is the same stream.
func (p *parked) of(d *direction) bool {
	return !p.Over && d.Keying == SDES && p.Call == d.Call && p.Epoch == d.Epoch
}

// giveBack undoes take.
func (u *used) giveBack(d *direction, was *parked) {
	delete(u.live, digestOf(&d.Keys[0]))
	if was != nil {
		u.put(was)
	}
}

// find returns what a direction that receives goes on from, or nil.
func (u *used) find(d *direction) *parked {
	if p := u.parked[digestOf(&d.Keys[0])]; p != nil && p.of(d) {
		return p
	}
	return nil
}

// park takes a direction out of use.
func (u *used) park(d *direction) {
	p := &parked{
		Key: digestOf(&d.Keys[0]), Call: d.Call, Epoch: d.Epoch, Over: d.Keying != SDES || d.Spent,
		Sent: d.Sent, Heard: d.Heard,
	}
	delete(u.live, p.Key)
	u.put(p)
}

func (u *used) put(p *parked) {
	if u.parked[p.Key] != nil {
		u.forget(p.Key)
	}
	if p.Over {
		p.Sent, p.Heard = stream.Account{}, nil
	}
	u.parked[p.Key] = p
	u.order = append(u.order, p.Key)
	if n := len(u.order) - maxParked; n > 0 {
		old := u.parked[u.order[n-1]]
		old.Over, old.Sent, old.Heard = true, stream.Account{}, nil
	}
	if len(u.order) > maxRetired {
		u.forget(u.order[0])
	}
}

func (u *used) forget(k digest) {
	if u.parked[k] != nil {
		delete(u.parked, k)
		u.order = slices.DeleteFunc(u.order, func(o digest) bool { return o == k })
	}
}

// all are the parked ones, the oldest first.
func (u *used) all() (all []parked) {
	for _, k := range u.order {
		all = append(all, *u.parked[k])
	}
	return all
}
