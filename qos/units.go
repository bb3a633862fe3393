package qos

import "ringway/units"

// Short names of the units that this package calculates with.
type (
	BitRate   = units.BitRate
	ByteCount = units.ByteCount
)

const (
	Kbit = units.Kbit
	Mbit = units.Mbit
	Gbit = units.Gbit
)
