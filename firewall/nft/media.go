package nft

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"ringway/firewall"
)

// MediaFlow is one direction of a flow that looks like media and is not in that class, or is dropped.
type MediaFlow struct {
	firewall.MediaFlow
	Dropped bool
	Packets uint64 // since it was first seen; it is forgotten when it pauses
}

// MediaFlows reads what the table noted of such flows; none where there is no table, or none of its sets.
func MediaFlows() ([]MediaFlow, error) {
	c, err := open()
	if err != nil {
		return nil, err
	}
	defer c.CloseLasting()

	var flows []MediaFlow
	for _, name := range firewall.MediaFlowSets() {
		elements, err := c.GetSetElements(&nftables.Set{Table: table(), Name: name})
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list elements of set %s: %w", name, err)
		}
		for _, e := range elements {
			f, ok := firewall.ParseMediaFlow(e.Key)
			if !ok || e.Counter == nil {
				continue
			}
			flows = append(flows, MediaFlow{
				MediaFlow: f, Dropped: strings.HasPrefix(name, firewall.SetDroppedMedia), Packets: e.Counter.Packets,
			})
		}
	}
	return flows, nil
}
