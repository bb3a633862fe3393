// Package metered counts what WANs carry whose volume counts, over restarts and reboots, and says when a month's budget
// is nearly used up. What such a line may carry is the firewall's.
package metered

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/exposition"
	"ringway/appliance/problem"
	"ringway/appliance/status"
	"ringway/boottime"
	"ringway/durable"
	"ringway/routing/rtnl"
)

// Name is the component's name, and that of its section of the status.
const Name = "metered"

const (
	readInterval = 10 * time.Second
	// saveInterval is how often the file is written at most while little is carried: flash wears out. What was carried
	// since then is lost with the power.
	saveInterval = time.Hour
	// saveShare is the part of a budget, in percent, after which it is written all the same; saveBytes without a budget.
	saveShare = 1
	saveBytes = 50_000_000
	// warnShare is the part of a budget, in percent, from which there is a problem.
	warnShare = 80
)

// Meter is the component.
type Meter struct {
	file string
	log  *slog.Logger
	boot string

	mu      sync.Mutex // guards what follows
	lines   []line     // in the config's order
	usage   map[string]Usage
	unsaved error
	saved   map[string]uint64 // what the file says
	savedAt time.Time
}

type line struct {
	name string
	config.Volume
}

// New returns the component, which keeps what it counts in a file.
func New(file string, log *slog.Logger) *Meter {
	return &Meter{file: file, log: log, usage: map[string]Usage{}, saved: map[string]uint64{}}
}

// Name is the component's name.
func (m *Meter) Name() string { return Name }

// Follow takes up which lines are metered. What was counted of others is kept: they may come back.
func (m *Meter) Follow(cfg *config.Config) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lines = nil
	for _, w := range cfg.WANs {
		if w.Volume != nil {
			m.lines = append(m.lines, line{w.Interface, *w.Volume})
		}
	}
}

// Run counts until ctx ends, and then writes the file.
func (m *Meter) Run(ctx context.Context, ready func()) error {
	boot, err := boottime.ID()
	if err != nil {
		return err
	}
	m.boot = boot
	m.load()
	m.read(time.Now())
	ready()
	tick := time.NewTicker(readInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			m.read(time.Now())
			m.save(time.Now(), true)
			return nil
		case <-tick.C:
			m.read(time.Now())
			m.save(time.Now(), false)
		}
	}
}

func (m *Meter) load() {
	m.mu.Lock()
	defer m.mu.Unlock()
	text, err := os.ReadFile(m.file)
	if err != nil {
		return // nothing was metered yet
	}
	usage := map[string]Usage{}
	if err := json.Unmarshal(text, &usage); err != nil {
		m.log.Error("cannot read what metered lines have carried this month; counting begins again",
			"file", m.file, "error", err)
		return
	}
	m.usage = usage
	for name, u := range usage {
		m.saved[name] = u.Bytes
	}
}

// read takes a reading of each line.
func (m *Meter) read(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.lines {
		v, ok, err := rtnl.VolumeOf(l.name)
		if err != nil {
			m.log.Warn("cannot count what a metered line carries, will retry", "error", err)
		}
		if ok && err == nil {
			m.usage[l.name] = m.usage[l.name].count(now, l.FromDay, m.boot, v)
		}
	}
}

// save writes the file if that is worth it; always: if anything has changed.
func (m *Meter) save(now time.Time, always bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	changed, due := false, false
	for _, l := range m.lines {
		used, saved := m.usage[l.name].Bytes, m.saved[l.name]
		if used == saved {
			continue
		}
		changed = true
		step := uint64(saveBytes)
		if l.Budget > 0 {
			step = l.Budget / 100 * saveShare
		}
		due = due || used < saved || used-saved >= step
	}
	if !changed || !always && !due && now.Sub(m.savedAt).Abs() < saveInterval {
		return
	}
	text, err := json.Marshal(m.usage)
	if err == nil {
		err = durable.WriteFile(m.file, text, 0o600)
	}
	if err != nil && m.unsaved == nil {
		m.log.Error("cannot keep what metered lines have carried, will retry", "error", err)
	}
	m.savedAt = now
	if m.unsaved = err; err != nil {
		return
	}
	for name, u := range m.usage {
		m.saved[name] = u.Bytes
	}
}

// Problems lists the budgets that are nearly used up.
func (m *Meter) Problems() (all []problem.Problem) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unsaved != nil {
		all = append(all, problem.Problem{
			Severity: problem.Warning, Text: m.unsaved.Error(),
			Action: "make room on the disk: what metered lines have carried is lost at a restart",
		})
	}
	for _, l := range m.statusLocked() {
		p := problem.Problem{Subject: l.Interface, Severity: problem.Warning}
		since := l.Start.Local().Format(time.DateOnly)
		switch {
		case l.Budget == 0 || percent(l) < warnShare:
			continue
		case percent(l) >= 100:
			p.Severity = problem.Critical
			p.Text = fmt.Sprintf("the budget of %s is used up, since %s", volume(l.Budget), since)
			p.Action = "buy volume or raise wan[].metered.budget: calls go on, and the provider may charge for them " +
				"or slow them down"
		default:
			p.Text = fmt.Sprintf("%d %% and more of the budget of %s is used up, since %s", warnShare, volume(l.Budget),
				since)
			p.Action = "find out why calls take this line (`ringway paths`), or raise wan[].metered.budget"
		}
		all = append(all, p)
	}
	return all
}

// Status are the metered lines, in the order of the config. Fields are added, never renamed.
type Status []Line

// Line is what a metered WAN has carried this month.
type Line struct {
	Interface string    `json:"interface"`
	Start     time.Time `json:"start"`        // of the month; zero: the interface was not there yet
	Used      uint64    `json:"used_bytes"`   // received and sent
	Budget    uint64    `json:"budget_bytes"` // 0: not known
}

// Status is the section of the status.
func (m *Meter) Status() fmt.Stringer {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.statusLocked()
}

func (m *Meter) statusLocked() (s Status) {
	for _, l := range m.lines {
		u := m.usage[l.name]
		s = append(s, Line{Interface: l.name, Start: u.Start, Used: u.Bytes, Budget: l.Budget})
	}
	return s
}

func percent(l Line) uint64 { return l.Used / max(l.Budget/100, 1) }

// String is a line of the status.
func (s Status) String() string {
	var all []string
	for _, l := range s {
		text := l.Interface + " " + volume(l.Used)
		if l.Budget > 0 {
			text += fmt.Sprintf(" of %s (%d %%)", volume(l.Budget), percent(l))
		}
		if !l.Start.IsZero() {
			text += " since " + l.Start.Local().Format(time.DateOnly)
		}
		all = append(all, text)
	}
	if len(all) == 0 {
		return ""
	}
	return "Metered WANs, calls only: " + strings.Join(all, ", ")
}

// volume is a number of bytes in powers of 1000.
func volume(n uint64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	x, i := float64(n), 0
	for ; x >= 1000 && i < len(units)-1; i++ {
		x /= 1000
	}
	if i == 0 || x == float64(uint64(x)) {
		return fmt.Sprintf("%.0f %s", x, units[i])
	}
	return fmt.Sprintf("%.1f %s", x, units[i])
}

var (
	families exposition.Families

	used = families.Gauge("ringway_wan_metered_used_bytes",
		"Bytes received and sent by the metered WAN this month.", "wan")
	began = families.Gauge("ringway_wan_metered_start_timestamp_seconds",
		"When the month of the metered WAN's budget began, Unix time.", "wan")
	budget = families.Gauge("ringway_wan_metered_budget_bytes",
		"Bytes a month that the metered WAN may carry. Absent where that is not known.", "wan")
)

// Families are the metrics of metered lines.
func (m *Meter) Families() exposition.Families { return families }

// Collect shows the section of the status.
func (m *Meter) Collect(st status.Status, to exposition.Sink) {
	lines, _ := status.Section[Status](st, Name)
	for _, l := range lines {
		to.Put(used, float64(l.Used), l.Interface)
		if !l.Start.IsZero() {
			to.Put(began, exposition.Time(l.Start), l.Interface)
		}
		if l.Budget > 0 {
			to.Put(budget, float64(l.Budget), l.Interface)
		}
	}
}
