package dhcp

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"ringway/boottime"
	"ringway/durable"
)

// memory is the file in which the last lease outlives the daemon.
type memory struct {
	Lease Lease  `json:"lease"`
	ACK   []byte `json:"ack"`
	// The age of a lease is measured by the clock since boot: the wall clock of a machine without a clock
	// battery jumps.
	Boot      string        `json:"boot"`
	SinceBoot time.Duration `json:"since_boot_ns"` // when it was granted
}

// LastLease returns the lease in the file. It is still held (ok) if it was granted to the interface since the
// machine booted and has not expired: a daemon that starts again must not remove its address from the WAN.
func LastLease(file, iface string) (l Lease, ok bool) {
	l, ok, _ = recall(file, iface)
	return l, ok
}

// recall is LastLease, but also returns a lease that may only be asked for again (held false, err nil).
func recall(file, iface string) (l Lease, held bool, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Lease{}, false, err
	}

	var m memory
	if err := json.Unmarshal(b, &m); err != nil {
		return Lease{}, false, fmt.Errorf("read the last lease in %s: %w", file, err)
	}
	ack, err := dhcpv4.FromBytes(m.ACK)
	if err != nil || m.Lease.Interface != iface {
		return Lease{}, false, fmt.Errorf("the last lease in %s is not one for %s", file, iface)
	}

	boot, err := boottime.ID()
	sameBoot := err == nil && m.Boot == boot
	given := time.Now()
	if sameBoot {
		given = given.Add(m.SinceBoot - boottime.Now())
	}
	if l, err = leaseOf(iface, ack, given, maxHold); err != nil {
		return Lease{}, false, fmt.Errorf("the last lease in %s: %w", file, err)
	}
	return l, sameBoot && time.Now().Before(l.Expiry), nil
}

func remember(file string, l Lease) error {
	if file == "" {
		return nil
	}
	boot, err := boottime.ID()
	if err != nil {
		return fmt.Errorf("save the lease: %w", err)
	}
	given := boottime.Now() - time.Since(l.given)
	b, err := json.Marshal(memory{Lease: l, ACK: l.ack.ToBytes(), Boot: boot, SinceBoot: given})
	if err != nil {
		return err
	}
	if err := durable.WriteFile(file, b, 0o600); err != nil {
		return fmt.Errorf("save the lease: %w", err)
	}
	return nil
}
