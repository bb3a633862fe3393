package appliance

import (
	"context"
	"slices"
	"time"

	"ringway/appliance/problem"
	"ringway/firewall"
	"ringway/firewall/nft"
)

// chainsInterval is how often other programs' chains are looked at without a notice: notices may get lost, and not
// every change that matters causes one.
const chainsInterval = time.Minute

// watchChains keeps the problems about other programs' nftables chains up to date.
func (d *Daemon) watchChains(ctx context.Context, ready func()) error {
	changed := make(chan error, 1)
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	listening := make(chan struct{})
	go func() {
		changed <- nft.WatchOthers(watching, func() { close(listening) }, d.lookAtChains)
	}()
	select {
	case <-listening:
		d.lookAtChains()
		ready()
	case err := <-changed:
		return err
	}

	tick := time.NewTicker(chainsInterval)
	defer tick.Stop()
	for {
		select {
		case err := <-changed:
			return err
		case <-tick.C:
			d.lookAtChains()
		}
	}
}

// lookAtChains reads the chains of other programs that may drop packets, for status and plans.
func (d *Daemon) lookAtChains() {
	chains, err := nft.Others()

	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.log.Warn("cannot read other programs' nftables chains, will retry", "error", err)
		return
	}
	d.facts.OtherChains = chains
	d.logNews(d.own.firewall.Replace(otherChains(chains)))
}

// otherChains are the problems about them.
func otherChains(chains []firewall.OtherChain) (out []problem.Problem) {
	for _, c := range slices.Clone(chains) {
		out = append(out, problem.Problem{
			Subject: c.Subject(), Severity: problem.Warning, Text: c.Text(), Action: c.Action(),
		})
	}
	return out
}
