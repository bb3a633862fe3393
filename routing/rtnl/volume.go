package rtnl

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// Volume is what a network device has carried since it was made.
type Volume struct {
	Index int    // of the device: another one, and it was made again
	Bytes uint64 // received and sent
}

// VolumeOf reads the counters of a device; ok is false where there is none of that name.
func VolumeOf(name string) (v Volume, ok bool, err error) {
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
		return v, false, nil
	case err != nil:
		return v, false, fmt.Errorf("read the counters of %s: %w", name, err)
	}
	a := link.Attrs()
	v.Index = a.Index
	if a.Statistics != nil {
		v.Bytes = a.Statistics.RxBytes + a.Statistics.TxBytes
	}
	return v, true, nil
}
