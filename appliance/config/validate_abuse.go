package config

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"ringway/sip/abuse"
)

// Bounds of limits on abuse. Package abuse has the same; here each has its line in the file.
const (
	maxAbuseCount  = 1000
	maxAbuseWindow = 24 * time.Hour
	maxBan         = 24 * time.Hour // an element of the firewall's set lives no longer
	maxTollAbroad  = 31 * 24 * time.Hour
	maxTollDigits  = 15 // ITU-T E.164, section 6
)

// abuseLimits reads what is abuse. What is not set is as package abuse has it.
func (c *checker) abuseLimits(r rawSIP) abuse.Limits {
	l := abuse.Defaults()
	b := r.Bounds
	l.Scan = c.abuseRule(b.Scan, l.Scan)
	l.Guess = c.abuseRule(b.Guess, l.Guess)
	l.Malformed = c.abuseRule(b.Malformed, l.Malformed)
	l.Flood.Dropped = c.abuseRule(b.Flood, l.Flood.Dropped)
	slow := &l.Flood.Throttled
	slow.PerSecond = float64(c.integer(b.Throttled.PerSecond, int(slow.PerSecond), 1, maxMessageLimit))
	slow.Burst = c.integer(b.Throttled.Burst, slow.Burst, 1, maxMessageLimit)
	l.Grace = c.duration(b.Grace, l.Grace, 100*time.Millisecond, 32*time.Second, 100*time.Millisecond,
		"100ms to 32s, in steps of 100ms")
	c.toll(r.Toll, &l)
	return l
}

// abuseRule reads how often something may happen. A default gives way to what is set beside it.
func (c *checker) abuseRule(r rawAbuseRule, def abuse.Rule) abuse.Rule {
	seconds := func(s scalar, def, high time.Duration, allowed string) time.Duration {
		return c.duration(s, def, time.Second, high, time.Second, allowed)
	}
	out := abuse.Rule{Block: c.integer(r.Block, def.Block, 0, maxAbuseCount)}
	warn := def.Warn
	if out.Block > 0 {
		warn = min(warn, out.Block)
	}
	out.Warn = c.integer(r.Warn, warn, 0, maxAbuseCount)
	if out.Block > 0 && out.Warn > out.Block {
		c.wrong(r.Warn.at, "%d is above block, %d (allowed: 0 to %d)", out.Warn, out.Block, out.Block)
	}
	out.Within = seconds(r.Within, def.Within, maxAbuseWindow, "1s to 24h, whole seconds")
	out.Ban = seconds(r.Ban, def.Ban, maxBan, "1s to 24h, whole seconds")
	longest := out.Ban
	if def.MaxBan > def.Ban {
		longest = max(def.MaxBan, out.Ban)
	}
	out.MaxBan = seconds(r.MaxBan, longest, maxBan, "1s to 24h, whole seconds")
	if out.MaxBan < out.Ban {
		c.wrong(r.MaxBan.at, "%v is below ban, %v (allowed: %v to 24h)", out.MaxBan, out.Ban, out.Ban)
	}
	return out
}

// toll reads what is toll fraud.
func (c *checker) toll(r rawToll, l *abuse.Limits) {
	for _, x := range []struct {
		raw rawTollLevels
		out *abuse.TollRule
	}{{r.Phones, &l.Phones}, {r.PBX, &l.PBX}} {
		x.out.Warn = c.tollLimits(x.raw.Warn, x.out.Warn)
		x.out.Block = c.tollLimits(x.raw.Block, x.out.Block)
	}
	if r.International.set {
		l.Numbers.International = c.dialled(r.International, digits(1, 6, "00"))
	}
	if r.Line.ok() {
		if err := digits(0, 3, "0")(r.Line.text); err != nil {
			c.wrong(r.Line.at, "%v", err)
		} else {
			l.Numbers.Line = r.Line.text
		}
	}
	l.Numbers.Internal = c.integer(r.Extensions, l.Numbers.Internal, 0, maxTollDigits)
	l.Premium = c.dialled(r.Premium, digits(1, maxTollDigits, "49900"))
	c.hours(r.Hours, &l.Hours)
	if r.Days.set {
		l.Hours.Days = c.days(r.Days)
	}
}

func (c *checker) tollLimits(r rawTollLimits, def abuse.Toll) abuse.Toll {
	return abuse.Toll{
		PerMinute: c.integer(r.PerMinute, def.PerMinute, 0, maxAbuseCount),
		AtOnce:    c.integer(r.AtOnce, def.AtOnce, 0, maxAbuseCount),
		Abroad: c.duration(r.Abroad, def.Abroad, 0, maxTollAbroad, time.Minute,
			"1m to 744h, whole minutes, or 0s for no limit"),
		OutOfHours: c.yesNo(r.OutOfHours, def.OutOfHours),
		Premium:    c.yesNo(r.Premium, def.Premium),
	}
}

// digits is a check of texts that are so many digits.
func digits(low, high int, example string) func(string) error {
	return func(s string) error {
		if len(s) < low || len(s) > high || strings.Trim(s, "0123456789") != "" {
			return fmt.Errorf("%s is not %d to %d digits (allowed: like %q, in quotes)", show(s), low, high, example)
		}
		return nil
	}
}

var hoursForm = regexp.MustCompile(`^([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})$`)

// hours reads the hours of work of one day.
func (c *checker) hours(s scalar, out *abuse.Hours) {
	if !s.ok() {
		return
	}
	var at [2]time.Duration
	m := hoursForm.FindStringSubmatch(s.text)
	ok := m != nil
	for i := 0; ok && i < 2; i++ {
		hour, _ := strconv.Atoi(m[1+2*i])
		minute, _ := strconv.Atoi(m[2+2*i])
		at[i] = time.Duration(hour)*time.Hour + time.Duration(minute)*time.Minute
		ok = minute < 60 && at[i] <= 24*time.Hour
	}
	if !ok || at[0] >= at[1] {
		c.wrong(s.at, "%s is not a time of day to a later one (allowed: like 06:00-22:00, 00:00-24:00 for all day)",
			show(s.text))
		return
	}
	out.From, out.To = at[0], at[1]
}

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"} // as time.Weekday counts

// days reads days of work.
func (c *checker) days(l scalars) (out [7]bool) {
	for _, s := range l.items {
		day := c.choice(s, "", weekdays...)
		for i, name := range weekdays {
			if name == day && out[i] {
				c.wrong(s.at, "%s is given twice (allowed: once)", day)
			}
			out[i] = out[i] || name == day
		}
	}
	return out
}

// tollNotes says where limits that refuse calls refuse none.
func (c *checker) tollNotes(r rawToll, cfg *Config) {
	blocks := cfg.SIP.Mode == SIPEnforce && cfg.SIP.Abuse == "block"
	l := &cfg.SIP.AbuseLimits
	for _, x := range []struct {
		block abuse.Toll
		raw   rawTollLevels
	}{{l.Phones.Block, r.Phones}, {l.PBX.Block, r.PBX}} {
		switch {
		case x.block == (abuse.Toll{}):
		case !blocks:
			c.warn(x.raw.Block.at, "refuses no call: that needs sip.mode: enforce and sip.abuse: block")
		case x.block.Premium && len(l.Premium) == 0:
			c.warn(x.raw.Block.Premium.at, "refuses no call: sip.toll.premium lists no number")
		}
	}
}
