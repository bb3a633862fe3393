package abuse

import (
	"net/netip"
	"time"
)

// Kind is what was seen.
type Kind uint8

// Kinds.
const (
	None Kind = iota
	Scan
	Guess
	Flooding
	Malformed
	DigestLeak
	TollRate
	TollAtOnce
	TollAbroad
	TollHours
	TollPremium

	kinds // how many there are
)

var kindNames = [kinds]string{
	None: "", Scan: "scan", Guess: "password_guessing", Flooding: "flood", Malformed: "malformed",
	DigestLeak: "digest_leak", TollRate: "toll_rate", TollAtOnce: "toll_at_once", TollAbroad: "toll_abroad",
	TollHours: "toll_out_of_hours", TollPremium: "toll_premium",
}

// String is k as metrics and `ringway bans` show it.
func (k Kind) String() string { return kindNames[k] }

// Kinds are all but None.
func Kinds() (all []Kind) {
	for k := None + 1; k < kinds; k++ {
		all = append(all, k)
	}
	return all
}

// Level says which limit was passed.
type Level uint8

// Levels.
const (
	Warn Level = iota
	Block
)

var levelNames = [...]string{"warn", "block"}

func (l Level) String() string { return levelNames[l] }

// Action is what to do.
type Action uint8

// Actions.
const (
	// Alarm: tell the operator. Nothing is done about the source.
	Alarm Action = iota
	// Throttle: what is above the rate is dropped, by Result.
	Throttle
	// Ban: nothing of the source passes for Event.For.
	Ban
	// Refuse: a new call is refused, by Result.
	Refuse
)

var actionNames = [...]string{"alarm", "throttle", "ban", "refuse"}

func (a Action) String() string { return actionNames[a] }

// Event is something to be reported, and perhaps done.
type Event struct {
	At     time.Time
	Source netip.Addr // of the packets; never an address in From or Contact
	User   string     // for toll fraud: who called, not masked; else empty
	Kind   Kind
	Level  Level
	Action Action
	For    time.Duration // of a ban or a throttle; 0: until it ends by itself
	// InRelay: the ban must not be the kernel's. It is one of a phone, which may have to make an emergency
	// call, or of a source with a call in progress: Result tells what passes. Otherwise it belongs into the
	// kernel's set of bans as well.
	InRelay bool
	Text    string // for people; without numbers and names
}

// Verdict is what happens to a message.
type Verdict uint8

// Verdicts.
const (
	Pass Verdict = iota
	Drop
	Reject // a request that starts a call, with 403
)

// Result is what a message led to.
type Result struct {
	Verdict Verdict
	Why     Kind    // if it does not pass
	Events  []Event // valid until the next call of the Watch
}
