package lab

import (
	"context"
	"fmt"

	"ringway/qos"
	"ringway/test/lab/bulk"
)

// floodRate is the rate of a UDP flood where the WAN has no rate to double.
const floodRate = 50 * qos.Mbit

// RunningBulk is bulk traffic from pc-a to pc-b.
type RunningBulk = bulk.Running

// StartBulk starts bulk traffic and returns once it has run for three seconds.
func (p *Pair) StartBulk(ctx context.Context, kind Bulk) (*RunningBulk, error) {
	o := bulk.Options{To: p.Address(PCB), UDP: kind == BulkUDP}
	if o.UDP {
		if o.Rate = 2 * p.lab.Options.WAN; o.Rate == 0 {
			o.Rate = floodRate
		}
	}
	b, err := bulk.Start(ctx, p.Host(PCA), p.Host(PCB), o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.Name, err)
	}
	return b, nil
}
