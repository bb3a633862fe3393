package dhcp6

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"

	"github.com/insomniacslk/dhcp/dhcpv6"

	"ringway/boottime"
	"ringway/durable"
)

// memory is the file in which a lease outlives the daemon. Its times count for as long as the machine runs: after a
// boot nobody knows how much of them is left.
type memory struct {
	Boot  string `json:"boot"`
	Lease Lease  `json:"lease"`
}

// Last returns the lease in the file as far as it is still held: a daemon that starts again must not take the networks
// of its LANs away.
func Last(file, iface string) Lease {
	l, held, err := recall(file, iface)
	if err != nil || !held {
		return Lease{}
	}
	return l
}

// recall is Last, but also returns a lease that may only be asked for again (held false).
func recall(file, iface string) (l Lease, held bool, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Lease{}, false, err
	}
	var m memory
	if err := json.Unmarshal(b, &m); err != nil || m.Lease.Interface != iface {
		return Lease{}, false, fmt.Errorf("the last lease in %s is not one for %s", file, iface)
	}
	if boot, err := boottime.ID(); err != nil || m.Boot != boot {
		return m.Lease, false, nil
	}
	l = m.Lease.At(boottime.Now())
	return l, !l.Empty(), nil
}

func remember(file string, l Lease) error {
	if file == "" {
		return nil
	}
	boot, err := boottime.ID()
	if err != nil {
		return fmt.Errorf("save the lease: %w", err)
	}
	b, err := json.Marshal(memory{Boot: boot, Lease: l})
	if err != nil {
		return err
	}
	if err := durable.WriteFile(file, b, 0o600); err != nil {
		return fmt.Errorf("save the lease: %w", err)
	}
	return nil
}

func forget(file string) {
	if file != "" {
		_ = os.Remove(file)
	}
}

// LoadDUID returns the identifier of this machine towards servers, a UUID (RFC 6355) that is made once and kept in the
// file: with another one, a server would delegate another prefix.
func LoadDUID(file string) (dhcpv6.DUID, error) {
	b, err := os.ReadFile(file)
	if err == nil && len(b) == 16 {
		return &dhcpv6.DUIDUUID{UUID: [16]byte(b)}, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the DHCPv6 identifier: %w", err)
	}
	var uuid [16]byte
	_, _ = rand.Read(uuid[:])                               // never fails
	uuid[6], uuid[8] = uuid[6]&0x0f|0x40, uuid[8]&0x3f|0x80 // RFC 9562, version 4
	if err := durable.WriteFile(file, uuid[:], 0o600); err != nil {
		return nil, fmt.Errorf("keep the DHCPv6 identifier: %w", err)
	}
	return &dhcpv6.DUIDUUID{UUID: uuid}, nil
}

// iaidOf is the same for an interface whatever else there is (RFC 8415, section 12).
func iaidOf(iface string) (id [4]byte) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(iface))
	binary.BigEndian.PutUint32(id[:], h.Sum32())
	return id
}
