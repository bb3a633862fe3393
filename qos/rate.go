package qos

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// BitRate is a rate in bits a second. Netlink's own API mixes bits and bytes a second
// without a word; the conversion stands in qos/tc and nowhere else.
type BitRate uint64

// Decimal multiples, as network equipment counts.
const (
	Kbit BitRate = 1e3
	Mbit BitRate = 1e6
	Gbit BitRate = 1e9
)

// ParseBitRate reads 512kbit, 20mbit, 1gbit, 1.5mbit (any case) or a bare number of bits a second.
func ParseBitRate(s string) (BitRate, error) {
	bad := fmt.Errorf("%q is no rate (allowed: 64kbit to 100gbit, like 20mbit or 1.5mbit)", s)
	num, mult := strings.ToLower(strings.TrimSpace(s)), BitRate(1)
	for _, u := range []struct {
		suffix string
		mult   BitRate
	}{{"kbit", Kbit}, {"mbit", Mbit}, {"gbit", Gbit}, {"bit", 1}} {
		if n, ok := strings.CutSuffix(num, u.suffix); ok {
			num, mult = n, u.mult
			break
		}
	}
	f, err := strconv.ParseFloat(num, 64)
	if err != nil || !(f > 0) || strings.ContainsAny(num, "xpeinEXPIN_+-") {
		return 0, bad
	}
	r := f*float64(mult) + 0.5
	if r < float64(64*Kbit) || r > float64(100*Gbit) {
		return 0, bad
	}
	return BitRate(r), nil
}

// String prints the shortest exact form: 20mbit, 1500kbit.
func (r BitRate) String() string {
	switch {
	case r == 0:
		return "0bit"
	case r%Gbit == 0:
		return fmt.Sprintf("%dgbit", r/Gbit)
	case r%Mbit == 0:
		return fmt.Sprintf("%dmbit", r/Mbit)
	case r%Kbit == 0:
		return fmt.Sprintf("%dkbit", r/Kbit)
	}
	return fmt.Sprintf("%dbit", uint64(r))
}

// About is for a glance: three digits, like 17.1mbit.
func (r BitRate) About() string {
	v, unit := float64(r), "bit"
	for _, u := range []string{"kbit", "mbit", "gbit"} {
		if v < 999.5 {
			break
		}
		v, unit = v/1000, u
	}
	digits := 0
	if unit != "bit" && v < 99.95 {
		digits = 1
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + unit
}

// Percent is p hundredths of r.
func (r BitRate) Percent(p int) BitRate { return r * BitRate(p) / 100 }

// Bytes is how many bytes r carries in d.
func (r BitRate) Bytes(d time.Duration) ByteCount {
	return ByteCount(float64(r) / 8 * d.Seconds())
}

// Serialization is how long n bytes occupy a link of rate r.
func (r BitRate) Serialization(n ByteCount) time.Duration {
	if r == 0 {
		return 0
	}
	return time.Duration(float64(n) * 8 / float64(r) * float64(time.Second))
}

// ByteCount counts bytes.
type ByteCount uint64
