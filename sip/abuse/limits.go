package abuse

import (
	"errors"
	"fmt"
	"time"
)

// Rule is how often something may happen, and what follows.
type Rule struct {
	Warn   int           // so many within Within are reported; 0: never
	Block  int           // so many within Within are acted on; 0: never
	Within time.Duration // counted backwards from each
	Ban    time.Duration // the first one
	MaxBan time.Duration // each further ban is twice as long, up to this; Ban: they do not grow
}

// Rate is a token bucket of messages.
type Rate struct {
	PerSecond float64
	Burst     int
}

// Flood bounds the messages of a source. What is above is dropped.
type Flood struct {
	Phone     Rate // a phone, and anybody who is not configured
	Peer      Rate // a PBX, a trunk, the far site
	Throttled Rate // a source that has earned a ban and must not be banned; and calls in progress of one that is
	Dropped   Rule // of messages above the rate
}

// Toll bounds the outside calls of one user. Zero: no bound.
type Toll struct {
	PerMinute  int           // new calls
	AtOnce     int           // to one foreign prefix
	Abroad     time.Duration // of calls to foreign numbers in a day
	OutOfHours bool          // no calls to foreign numbers outside Hours
	Premium    bool          // no calls to Limits.Premium
}

// TollRule is what is reported, and what new calls are refused for.
type TollRule struct{ Warn, Block Toll }

// Hours are the hours of work, by the local clock, from midnight. A call abroad at another time is out of hours.
type Hours struct {
	From, To time.Duration
	Days     [7]bool // by time.Weekday
}

// Limits are all limits.
type Limits struct {
	Scan      Rule // distinct users, or distinct targets, that were refused
	Guess     Rule // refusals of requests with credentials
	Malformed Rule // messages that were refused as they cannot be framed
	Flood     Flood
	// Grace is how long a challenge may wait for credentials, and a request to a strange target for its answer,
	// before it counts as refused.
	Grace time.Duration

	Phones   TollRule // for each user of a phone
	PBX      TollRule // for each user that a PBX names towards a trunk; never blocks more than asked
	Numbers  Numbers
	Premium  []string // prefixes, with country code and without plus: 49900
	Hours    Hours
	Location *time.Location `json:"-"` // of Hours, and of the day that Toll.Abroad is counted in; nil: UTC

	MaxSources int // that are remembered; twice as many in all, see sources
	MaxUsers   int
	MaxCalls   int
}

// Defaults are those of docs/threats.md. The source of each is beside it.
func Defaults() Limits {
	const day = 24 * time.Hour
	warn := Toll{PerMinute: 5, AtOnce: 3, Abroad: time.Hour, OutOfHours: true, Premium: true} // Yeastar: 5 a minute
	pbx := Toll{PerMinute: 30, AtOnce: 10, Abroad: 10 * time.Hour, OutOfHours: true, Premium: true}
	return Limits{
		Scan:  Rule{Warn: 5, Block: 10, Within: time.Minute, Ban: 10 * time.Minute, MaxBan: 10 * time.Minute},
		Guess: Rule{Warn: 5, Block: 10, Within: 10 * time.Minute, Ban: 10 * time.Minute, MaxBan: day}, // fail2ban: 5-10
		// AudioCodes: 25 in 30 s.
		Malformed: Rule{Warn: 5, Block: 20, Within: 30 * time.Second, Ban: time.Minute, MaxBan: time.Minute},
		Flood: Flood{
			Phone:     Rate{PerSecond: 10, Burst: 40},
			Peer:      Rate{PerSecond: 200, Burst: 400},
			Throttled: Rate{PerSecond: 1, Burst: 10},
			// Kamailio's pike bans for 300 s.
			Dropped: Rule{Warn: 1, Block: 600, Within: time.Minute, Ban: 5 * time.Minute, MaxBan: 5 * time.Minute},
		},
		Grace:   4 * time.Second, // a challenge is answered within a round trip; T2 of RFC 3261 is as long
		Phones:  TollRule{Warn: warn},
		PBX:     TollRule{Warn: pbx},
		Numbers: Numbers{International: []string{"00"}, Internal: 5},
		Hours: Hours{
			From: 6 * time.Hour,
			To:   22 * time.Hour,
			Days: [7]bool{time.Sunday: false, 1: true, 2: true, 3: true, 4: true, 5: true, time.Saturday: true},
		},
		MaxSources: 8192,
		MaxUsers:   4096,
		MaxCalls:   16384,
	}
}

// problems collects what is wrong.
type problems []error

func (p *problems) check(ok bool, key string, value any, allowed string) {
	if !ok {
		*p = append(*p, fmt.Errorf("%s: %v (allowed %s)", key, value, allowed))
	}
}

// Validate returns all that is wrong with l, one problem a line.
func (l *Limits) Validate() error {
	var p problems
	l.Scan.validate(&p, "scan")
	l.Guess.validate(&p, "guess")
	l.Malformed.validate(&p, "malformed")
	l.Flood.Phone.validate(&p, "flood.phone")
	l.Flood.Peer.validate(&p, "flood.peer")
	l.Flood.Throttled.validate(&p, "flood.throttled")
	l.Flood.Dropped.validate(&p, "flood.dropped")
	p.check(l.Grace >= 100*time.Millisecond && l.Grace <= 32*time.Second, "grace", l.Grace, "100ms-32s")
	l.Phones.validate(&p, "phones")
	l.PBX.validate(&p, "pbx")
	l.Numbers.validate(&p)
	for _, prefix := range l.Premium {
		p.check(isDigits(prefix) && len(prefix) <= maxDigits, "premium", prefix, "1-15 digits")
	}
	h := l.Hours
	ordered := h.From >= 0 && h.From <= h.To && h.To <= 24*time.Hour
	p.check(ordered, "hours", fmt.Sprintf("%v-%v", h.From, h.To), "0s-24h0m0s, from before to")
	p.check(l.MaxSources >= 16 && l.MaxSources <= 1<<20, "max_sources", l.MaxSources, "16-1048576")
	p.check(l.MaxUsers >= 16 && l.MaxUsers <= 1<<20, "max_users", l.MaxUsers, "16-1048576")
	p.check(l.MaxCalls >= 16 && l.MaxCalls <= 1<<20, "max_calls", l.MaxCalls, "16-1048576")
	return errors.Join(p...)
}

// maxCount bounds Warn and Block: each event within a window is remembered.
const maxCount = 1000

func (r *Rule) validate(p *problems, key string) {
	const maxBan = 7 * 24 * time.Hour
	p.check(r.Warn >= 0 && r.Warn <= maxCount, key+".warn", r.Warn, "0-1000")
	p.check(r.Block >= 0 && r.Block <= maxCount, key+".block", r.Block, "0-1000")
	if r.Block > 0 {
		p.check(r.Warn <= r.Block, key+".warn", r.Warn, fmt.Sprintf("0-%d, not above block", r.Block))
	}
	p.check(r.Within >= time.Second && r.Within <= 24*time.Hour, key+".within", r.Within, "1s-24h0m0s")
	p.check(r.Ban >= time.Second && r.Ban <= maxBan, key+".ban", r.Ban, "1s-168h0m0s")
	p.check(r.MaxBan >= r.Ban && r.MaxBan <= maxBan, key+".max_ban", r.MaxBan, "ban-168h0m0s")
}

func (r *Rate) validate(p *problems, key string) {
	p.check(r.PerSecond >= 0.1 && r.PerSecond <= 100_000, key+".per_second", r.PerSecond, "0.1-100000")
	p.check(r.Burst >= 1 && r.Burst <= 1_000_000, key+".burst", r.Burst, "1-1000000")
}

func (t *TollRule) validate(p *problems, key string) {
	t.Warn.validate(p, key+".warn")
	t.Block.validate(p, key+".block")
}

func (t *Toll) validate(p *problems, key string) {
	p.check(t.PerMinute >= 0 && t.PerMinute <= maxCount, key+".per_minute", t.PerMinute, "0-1000")
	p.check(t.AtOnce >= 0 && t.AtOnce <= maxCount, key+".at_once", t.AtOnce, "0-1000")
	p.check(t.Abroad >= 0 && t.Abroad <= 31*24*time.Hour, key+".abroad", t.Abroad, "0s-744h0m0s")
}
