package unmarked

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/firewall"
	"ringway/firewall/nft"
)

// A codec sends 10 to 100 packets a second (frames of 100 to 10 ms), most of them 50, and always as many: two readings
// in a row that differ by a third at most are a call's. Silence suppression pauses a flow, and it is found in the next
// words that last for two readings.
const (
	minRate = 9
	maxRate = 110
)

const (
	interval = 5 * time.Second
	kept     = time.Hour        // how long a flow is listed after its last packets
	shown    = 10 * time.Minute // how long it is a problem
	maxFlows = 64               // that are listed; beyond it the oldest gives way
)

// Flow is a flow that looks like media of a call, and is not treated as that.
type Flow struct {
	From        netip.AddrPort `json:"from"` // who sent first
	To          netip.AddrPort `json:"to"`
	FromNetwork string         `json:"from_network"` // a LAN's interface, site NAME, or internet
	ToNetwork   string         `json:"to_network"`
	PerSecond   float64        `json:"packets_per_second"` // of one direction
	BothWays    bool           `json:"both_ways"`
	Dropped     bool           `json:"dropped"` // by the policy between voice and data networks; else it is in class data
	First       time.Time      `json:"first"`
	Last        time.Time      `json:"last"`
	Cure        string         `json:"cure"`

	from, to place
}

// ends identifies a flow, whichever direction was found first.
type ends struct{ from, to netip.AddrPort }

// sample is what was read of one direction before.
type sample struct {
	packets uint64
	rate    float64 // 0: not known
}

// tracker finds flows in what the firewall counts. It has no clock and no kernel.
type tracker struct {
	before map[firewall.MediaFlow]sample
	at     time.Time
	flows  map[ends]*Flow
	number uint64 // of flows that were found
	missed uint64 // of these, those that gave way to later ones
}

// look compares a reading with the one before.
func (t *tracker) look(now time.Time, read []nft.MediaFlow, networks places, mode config.SIPMode) {
	elapsed := now.Sub(t.at).Seconds()
	after := map[firewall.MediaFlow]sample{}
	if t.flows == nil {
		t.flows = map[ends]*Flow{}
	}
	// What is dropped was in class data on its way there, and is in both sets.
	slices.SortStableFunc(read, func(a, b nft.MediaFlow) int { return cmp.Compare(truth(b.Dropped), truth(a.Dropped)) })
	for _, f := range read {
		if _, twice := after[f.MediaFlow]; twice {
			continue
		}
		s := sample{packets: f.Packets}
		if last, known := t.before[f.MediaFlow]; known && f.Packets > last.packets && elapsed > 0 {
			s.rate = float64(f.Packets-last.packets) / elapsed
			if steady(last.rate, s.rate) {
				t.found(now, f, s.rate, networks, mode)
			}
		}
		after[f.MediaFlow] = s
	}
	t.before, t.at = after, now

	for k, f := range t.flows {
		if now.Sub(f.Last) > kept {
			delete(t.flows, k)
		}
	}
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

// steady says whether two rates are those of one codec.
func steady(a, b float64) bool {
	return min(a, b) >= minRate && max(a, b) <= maxRate && max(a, b) <= min(a, b)*4/3
}

func (t *tracker) found(now time.Time, f nft.MediaFlow, rate float64, networks places, mode config.SIPMode) {
	if back := t.flows[ends{f.To, f.From}]; back != nil {
		back.BothWays, back.Last, back.Dropped = true, now, back.Dropped || f.Dropped
		back.Cure = cure(back.from, back.to, back, mode)
		return
	}
	k := ends{f.From, f.To}
	flow := t.flows[k]
	if flow == nil {
		flow = &Flow{From: f.From, To: f.To, First: now}
		t.makeRoom()
		t.flows[k] = flow
		t.number++
	}
	flow.PerSecond, flow.Last, flow.Dropped = rate, now, f.Dropped
	flow.from, flow.to = networks.of(f.From.Addr()), networks.of(f.To.Addr())
	flow.FromNetwork, flow.ToNetwork = flow.from.name, flow.to.name
	flow.Cure = cure(flow.from, flow.to, flow, mode)
}

// makeRoom lets the flow that was seen longest ago give way.
func (t *tracker) makeRoom() {
	if len(t.flows) < maxFlows {
		return
	}
	list := t.list()
	oldest := list[len(list)-1]
	delete(t.flows, ends{oldest.From, oldest.To})
	t.missed++
}

// list is the flows, the latest first.
func (t *tracker) list() []Flow {
	out := make([]Flow, 0, len(t.flows))
	for _, f := range t.flows {
		out = append(out, *f)
	}
	slices.SortFunc(out, func(a, b Flow) int {
		return cmp.Or(b.Last.Compare(a.Last), b.First.Compare(a.First), a.From.Compare(b.From), a.To.Compare(b.To))
	})
	return out
}

// cure says what makes media of a flow, in the order of least effort.
func cure(from, to place, f *Flow, mode config.SIPMode) string {
	read := "set sip.mode: observe"
	if mode != config.SIPOff {
		read = "have its signalling read (sip.ports, sip.servers, sip.tls)"
	}
	ports := "list the UDP ports of its media in classes[media].ports"
	switch {
	case f.Dropped:
		return read + ", or " + ports
	case from.kind == data && to.kind == data:
		return read // ports count towards voice networks alone
	case from.kind == voice || from.kind == flat:
		return fmt.Sprintf("have %s mark media with EF (DSCP 46), or %s, or %s", f.From.Addr(), read, ports)
	case to.kind == voice || to.kind == flat:
		return fmt.Sprintf("have %s mark media with EF (DSCP 46), or %s, or %s", f.To.Addr(), read, ports)
	}
	return read
}

// String is a flow in words.
func (f Flow) String() string {
	ways, what := "one way", "in class data"
	if f.BothWays {
		ways = "each way"
	}
	if f.Dropped {
		what = "dropped"
	}
	return fmt.Sprintf("%s (%s) and %s (%s), %.0f packets a second %s, %s",
		f.From, f.FromNetwork, f.To, f.ToNetwork, f.PerSecond, ways, what)
}

// problems are the flows of the last minutes, one for each pair of networks.
func (t *tracker) problems(now time.Time) (out []problem.Problem) {
	type pair struct {
		networks string
		dropped  bool
	}
	number, first := map[pair]int{}, map[pair]Flow{}
	var order []pair
	for _, f := range t.list() {
		if now.Sub(f.Last) > shown {
			continue
		}
		p := pair{min(f.FromNetwork, f.ToNetwork) + ", " + max(f.FromNetwork, f.ToNetwork), f.Dropped}
		if number[p]++; number[p] == 1 {
			order, first[p] = append(order, p), f
		}
	}
	slices.SortFunc(order, func(a, b pair) int {
		return cmp.Or(cmp.Compare(a.networks, b.networks), cmp.Compare(truth(b.dropped), truth(a.dropped)))
	})
	for _, p := range order {
		f, text := first[p], "a call's media is not treated as that: "
		if number[p] > 1 {
			text = fmt.Sprintf("media of %d calls is not treated as that, the latest: ", number[p])
		}
		subject := p.networks
		if p.dropped {
			subject += ", dropped"
		}
		out = append(out, problem.Problem{
			Subject: subject, Severity: problem.Warning, Text: text + f.String(),
			Since: f.First, Action: f.Cure + " (docs/media.md)",
		})
	}
	return out
}
