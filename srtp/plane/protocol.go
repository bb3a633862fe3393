package plane

import (
	"time"

	"ringway/process"
	"ringway/srtp/keys"
	"ringway/srtp/media"
	"ringway/srtp/stream"
	"ringway/srtp/suite"
)

// The requests of the process. Framing, hello, the handing back of descriptors and the end are package process's. Keys
// are never in JSON: their bytes are beside it, in the order of the keys in it.
const (
	// ProtocolMajor changes when requests change their meaning: a process of another one is replaced, and what it has
	// is lost.
	ProtocolMajor = 1
	// ProtocolMinor changes when a request is added.
	ProtocolMinor = 0
)

// Requests.
const (
	typeStart  = "start"  // forward, with this book; once
	typeSet    = "set"    // a Pair
	typeRemove = "remove" // a pair
	typeKeys   = "keys"   // an action of the key channel
	typeStatus = "status"
	typePing   = "ping"   // do the forwarding threads answer
	typeExport = "export" // the book, with keys
	typeStop   = "stop"   // seal nothing any more, and export
)

// Events.
const (
	eventChanged = "changed" // how far keys were used
	eventDTLS    = "dtls"    // what has become of an association
	eventMoved   = "moved"   // a leg has learned an address
	eventBeat    = "beat"    // everything up to now was told
)

type (
	startRequest struct {
		Threads     int   `json:"threads,omitempty"`     // of each side; 0: as many as it takes
		Certificate int   `json:"certificate,omitempty"` // bytes of PEM before the keys; 0: no DTLS
		State       state `json:"state"`
	}
	startAnswer struct {
		Lost []uint64 `json:"lost,omitempty"` // pairs that could not be taken up
	}
	setRequest struct {
		Pair Pair `json:"pair"`
	}
	removeRequest struct {
		Pair uint64 `json:"pair"`
	}
	// action is keys.Action. Drop and Stop have no secret.
	action struct {
		Kind  keys.ActionKind `json:"kind"`
		Leg   keys.Leg        `json:"leg"`
		Key   Key             `json:"key"`
		Fresh bool            `json:"fresh,omitempty"`
	}
	changedEvents struct {
		Changed []changedEvent `json:"changed"`
	}
	changedEvent struct {
		Leg   uint64          `json:"leg"`
		Sent  *stream.Account `json:"sent,omitempty"`
		Heard []stream.Heard  `json:"heard,omitempty"`
	}
	dtlsEvent struct {
		Leg   uint64 `json:"leg"`
		Epoch uint32 `json:"epoch"`
		// Suite is that of the keys, which are beside the event: to send with, and to receive with. Without one it failed.
		Suite       suite.Suite `json:"suite,omitempty"`
		Failure     string      `json:"failure,omitempty"`
		Fingerprint bool        `json:"fingerprint,omitempty"`
		Closed      bool        `json:"closed,omitempty"`
	}
	movedEvent struct {
		media.Learned
	}
	beatEvent struct {
		At time.Duration `json:"at"` // since boot
	}
)

func (a *action) keys() []*Key {
	if a.Kind == keys.Hold || a.Kind == keys.Use {
		return []*Key{&a.Key}
	}
	return nil
}

// about is what the process says of itself in hello, beside what every process does.
type about struct {
	Running     bool   `json:"running"`
	Pairs       int    `json:"pairs"`
	Certificate string `json:"certificate,omitempty"` // its fingerprint
	// Unlocked is why its memory may be swapped out; empty: it may not.
	Unlocked string `json:"unlocked,omitempty"`
}

// Names of descriptors, by side and family.
var (
	fileIn  = [2][2]string{{"in4-lan", "in6-lan"}, {"in4-tunnel", "in6-tunnel"}}
	fileOut = [2][2]string{{"out4-lan", "out6-lan"}, {"out4-tunnel", "out6-tunnel"}}
)

const envPrefix = "RINGWAY_MEDIA"

// The user that the process runs as: the package makes it; the number is the fallback.
const (
	user   = "ringway-media"
	userID = 61804
)

func kindOf(args, env []string) process.Kind {
	return process.Kind{
		Name: "media", Protocol: process.Protocol{Major: ProtocolMajor, Minor: ProtocolMinor},
		Args: args, EnvPrefix: envPrefix, Env: env, User: user, UserID: userID,
	}
}
