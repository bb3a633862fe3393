package calls

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/wanted"
	"ringway/firewall"
	"ringway/sip/call"
	"ringway/sip/ladder"
	"ringway/sip/privacy"
	"ringway/sip/record"
	"ringway/sip/relay"
)

// expireEvery is how often records that are too old are removed.
const expireEvery = time.Hour

// useRecords has records of calls kept as the config wants it. The files stay while nothing reads signalling.
func (c *Calls) useRecords(cfg config.Records) error {
	limits := record.Defaults()
	limits.Keep = cfg.Keep
	policy, err := privacy.ParsePolicy(cfg.Privacy)
	if err != nil {
		return err
	}
	disk, err := record.OpenDir(c.o.RecordDir)
	if err != nil {
		return fmt.Errorf("open the records of calls: %w", err)
	}
	log, err := record.Open(disk, limits, policy)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.records, c.recordsOf = log, cfg
	return nil
}

// hasRecords reports whether records were kept once: those that are too old are removed while none are written, too.
func (c *Calls) hasRecords() bool {
	_, err := os.Stat(c.o.RecordDir)
	return err == nil
}

// recordLog is where records go; nil: nowhere yet.
func (c *Calls) recordLog() *record.Log {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.records
}

// expireRecords removes what is too old.
func (c *Calls) expireRecords() {
	log := c.recordLog()
	if log == nil {
		return
	}
	if err := log.Expire(time.Now()); err != nil {
		c.log.Warn("old records of calls are not removed", "error", err)
	}
}

// takeReports writes the records of calls that have ended, says what was seen of abuse, and carries bans out.
func (c *Calls) takeReports(reports []relay.Report, records []relay.Ended) {
	if log := c.recordLog(); log != nil && len(records) > 0 {
		c.measure(context.Background())
		c.write(log, records)
	}
	for _, r := range reports {
		if log, unsaid := c.countReport(r); log {
			c.log.Warn("abuse of signalling", "source", r.Source, "kind", r.Kind, "level", r.Level, "action", r.Action,
				"for", r.For, "what", r.Text[:min(len(r.Text), maxText)], "not_logged_before", unsaid)
		}
		if r.Action == actionBan && !r.InRelay && c.bansHold() && c.holes.mayBan(r.Source) {
			c.ban(r)
		}
	}
}

func (c *Calls) write(log *record.Log, records []relay.Ended) {
	all := make([]record.Record, len(records))
	for i, r := range records {
		r.Sent, r.Received = c.meter.of(r.Media[:min(len(r.Media), call.MaxMedia)], r.Began, r.Ended, r.Codec)
		all[i] = r.Record
	}
	if err := log.Append(time.Now(), all...); err != nil {
		c.log.Warn("records of calls are lost", "error", err)
	}
}

// What a stranger can cause, and what a process that was taken over can say, is bounded.
const (
	maxKinds = 32 // that are counted apart
	// maxBanKinds is as many as both families' sets have elements.
	maxBanKinds = 2 * wanted.MaxBans
	maxKind     = 32  // bytes of a kind
	maxText     = 256 // bytes of a report in the log
	maxPerTime  = 60  // reports in the log in each quotaTime
	quotaTime   = time.Minute
)

// quota counts what is logged.
type quota struct {
	began          time.Time
	logged, unsaid int
}

// take reports whether one more may be logged, and how many were not since the last one.
func (q *quota) take(now time.Time) (ok bool, unsaid int) {
	if now.Sub(q.began) >= quotaTime {
		q.began, q.logged = now, 0
	}
	if q.logged == maxPerTime {
		q.unsaid++
		return false, 0
	}
	unsaid, q.unsaid = q.unsaid, 0
	q.logged++
	return true, unsaid
}

// countReport counts a report, and says whether it is to be logged.
func (c *Calls) countReport(r relay.Report) (log bool, unsaid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reported == nil {
		c.reported = map[string]uint64{}
	}
	kind := r.Kind
	if _, known := c.reported[kind]; !known && len(c.reported) >= maxKinds {
		kind = "other"
	}
	c.reported[kind]++
	return c.said.take(time.Now())
}

// bansHold reports whether sources may be banned.
func (c *Calls) bansHold() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cfg.Mode == config.SIPEnforce && c.cfg.Abuse == relay.AbuseBlock
}

// liftBans has the firewall drop nothing of banned sources any more where sources are no longer to be banned.
func (c *Calls) liftBans() {
	if c.bansHold() {
		return
	}
	for _, family := range families4And6 {
		set, _ := firewall.Ban(family)
		c.clear(set)
	}
}

func (c *Calls) ban(r relay.Report) {
	source := r.Source.Unmap()
	set, key := firewall.Ban(source)
	s, ok := c.o.Sets(set)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), bypassPatience)
	defer cancel()
	if err := s.Add(ctx, r.For, key); err != nil {
		c.log.Warn("a source is not banned by the firewall", "source", source, "error", err)
	}
	c.noteBan(source, r.Kind[:min(len(r.Kind), maxKind)])
}

// families4And6 choose the set of bans of each family.
var families4And6 = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}

// Bans are the bans and throttles that are in force: those that the process knows, and those of the firewall, which
// outlive the process that asked for them.
func (c *Calls) Bans(ctx context.Context) (all []relay.Standing, err error) {
	if c.relay.PID() != 0 {
		if all, err = c.relay.Bans(ctx); err != nil {
			return nil, err
		}
	}
	known := map[netip.Addr]bool{}
	for _, b := range all {
		known[b.Source] = known[b.Source] || b.Action == actionBan
	}
	for _, family := range families4And6 {
		for key, until := range c.banned(family) {
			source, err := netip.ParseAddr(key)
			if err != nil || known[source] {
				continue
			}
			all = append(all, relay.Standing{Source: source, Kind: c.bannedFor(source), Action: actionBan, Until: until})
		}
	}
	slices.SortStableFunc(all, func(a, b relay.Standing) int { return a.Source.Compare(b.Source) })
	return all, nil
}

// actionBan is what the process calls a ban.
const actionBan = "ban"

// banned are the addresses of a family that the firewall bans.
func (c *Calls) banned(family netip.Addr) map[string]time.Time {
	set, _ := firewall.Ban(family)
	if s, ok := c.o.Sets(set); ok {
		return s.Elements()
	}
	return nil
}

// bannedFor is what the firewall bans an address for; empty if an earlier daemon had it banned.
func (c *Calls) bannedFor(source netip.Addr) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.banKinds[source]
}

// noteBan remembers what the firewall bans an address for.
func (c *Calls) noteBan(source netip.Addr, kind string) {
	var in map[netip.Addr]bool // that are banned; nil: all fit
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.banKinds == nil {
		c.banKinds = map[netip.Addr]string{}
	}
	if len(c.banKinds) >= maxBanKinds {
		in = map[netip.Addr]bool{}
		for _, family := range families4And6 {
			for key := range c.banned(family) {
				if a, err := netip.ParseAddr(key); err == nil {
					in[a] = true
				}
			}
		}
		maps.DeleteFunc(c.banKinds, func(a netip.Addr, _ string) bool { return !in[a] })
	}
	if len(c.banKinds) < maxBanKinds {
		c.banKinds[source] = kind
	}
}

// Unban lifts the bans of an address.
func (c *Calls) Unban(ctx context.Context, source netip.Addr) error {
	var found bool
	var err error
	if c.relay.PID() != 0 {
		found, err = c.relay.Unban(ctx, source)
	}
	set, key := firewall.Ban(source)
	if s, ok := c.o.Sets(set); ok {
		_, banned := s.Elements()[key]
		found = found || banned
		err = errors.Join(err, s.Delete(ctx, key))
	}
	if err == nil && !found {
		return fmt.Errorf("%s is not banned (ringway bans lists who is)", source)
	}
	return err
}

// Ladder is what is kept of a call's messages, and what its media went through, as long as the call is listed.
func (c *Calls) Ladder(ctx context.Context, id string) (*ladder.View, error) {
	v, err := c.relay.Ladder(ctx, id)
	if err != nil {
		return v, err
	}
	if v == nil {
		return nil, fmt.Errorf("no messages of call %s are kept (ringway calls lists the calls)", id)
	}
	all, err := c.Calls(ctx)
	if err != nil {
		c.log.Warn("quality of a call is not shown", "error", err)
	}
	v.Sent, v.Received = measuredOf(all, id)
	return v, nil
}

// measuredOf is what media of a leg went through, or of the first leg of a call that was measured.
func measuredOf(all []call.Call, id string) (sent, received *call.Quality) {
	for i := range all {
		if x := &all[i]; (x.ID == id || x.CallID == id) && (x.Sent != nil || x.Received != nil) {
			return x.Sent, x.Received
		}
	}
	return nil, nil
}

// Records are the records of calls that were under way at some time from from to to, and that a phone took part in,
// if it is valid.
func (c *Calls) Records(from, to time.Time, phone netip.Addr) ([]record.Record, error) {
	log := c.recordLog()
	if log == nil {
		return nil, errors.New("no records of calls are kept (sip.mode: off)")
	}
	return log.Find(time.Now(), func(r *record.Record) bool {
		return r.Overlaps(from, to) && (!phone.IsValid() || r.Of(phone))
	})
}

// Forget removes what is kept of a number, in memory and in the records.
func (c *Calls) Forget(ctx context.Context, number string, masked bool) (record.Forgotten, error) {
	var err error
	if c.relay.PID() != 0 { // without a process there is nothing in memory
		err = c.relay.Forget(ctx, number)
	}
	var f record.Forgotten
	if log := c.recordLog(); log != nil {
		var failed error
		f, failed = log.Forget(number, masked)
		err = errors.Join(err, failed)
	}
	return f, err
}
