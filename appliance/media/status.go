package media

import (
	"encoding/hex"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"ringway/sip/relay"
	"ringway/srtp/keys"
	"ringway/srtp/plane"
)

// Status is the component's section of the status.
type Status struct {
	Wanted  bool `json:"wanted"`
	Running bool `json:"running"`
	plane.Status
	Refused uint64 `json:"refused"` // pairs that the media plane did not take
}

// Status says how media that is re-keyed is.
func (m *Media) Status() fmt.Stringer {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := Status{Wanted: m.wanted != nil, Running: m.running.Load(), Status: m.stats, Refused: m.refused}
	if !st.Running {
		st.Status = plane.Status{}
	}
	st.Legs = slices.Clone(st.Legs)
	if st.Legs == nil {
		st.Legs = []plane.LegStats{}
	}
	return st
}

// String is one line for people.
func (s Status) String() string {
	switch {
	case !s.Wanted:
		return "Re-keyed media: off"
	case !s.Running:
		return "Re-keyed media: the media process does not run"
	}
	kinds := map[plane.Keying]int{}
	rotations, dropped := uint64(0), uint64(0)
	for i := range s.Legs {
		kinds[s.Legs[i].Keying]++
		rotations += s.Legs[i].Rotations
	}
	for _, n := range s.Drops {
		dropped += n
	}
	var legs []string
	for _, k := range []plane.Keying{plane.Clear, plane.SDES, plane.DTLS, plane.Channel} {
		if n := kinds[k]; n > 0 {
			legs = append(legs, fmt.Sprintf("%d %s", n, k))
		}
	}
	text := fmt.Sprintf("Re-keyed media: %d streams", s.Pairs)
	if len(legs) > 0 {
		text += " (legs: " + strings.Join(legs, ", ") + ")"
	}
	return text + fmt.Sprintf("; %d packets dropped, %d keys replaced by others", dropped, rotations)
}

func mkiOf(text string) (m keys.MKI, ok bool) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(m) {
		return m, false
	}
	return keys.MKI(b), true
}

// sameRelay says whether the relay of signalling has nothing to be told.
func sameRelay(a, b *relay.Media) bool { return reflect.DeepEqual(a, b) }
