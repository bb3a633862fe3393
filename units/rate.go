package units

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// BitRate is a rate in bits per second. The netlink API mixes bits and bytes per second without saying so;
// only the adapters convert.
type BitRate uint64

// Decimal multiples, as network equipment counts.
const (
	Kbit BitRate = 1e3
	Mbit BitRate = 1e6
	Gbit BitRate = 1e9
)

// The range that ParseBitRate accepts.
const (
	minParsed = 64 * Kbit
	maxParsed = 100 * Gbit
)

var rateUnits = []struct {
	suffix     string
	multiplier BitRate
}{{"kbit", Kbit}, {"mbit", Mbit}, {"gbit", Gbit}, {"bit", 1}}

// ParseBitRate reads 512kbit, 20mbit, 1gbit, 1.5mbit (in upper or lower case) or a plain number of bits per
// second.
func ParseBitRate(s string) (BitRate, error) {
	invalid := fmt.Errorf("%q is not a rate (allowed: 64kbit to 100gbit, for example 20mbit or 1.5mbit)", s)

	number, multiplier := strings.ToLower(strings.TrimSpace(s)), BitRate(1)
	for _, u := range rateUnits {
		if n, ok := strings.CutSuffix(number, u.suffix); ok {
			number, multiplier = n, u.multiplier
			break
		}
	}

	// ParseFloat also takes hexadecimal, exponents, infinities and underscores.
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || !(f > 0) || strings.ContainsAny(number, "xpein_+-") {
		return 0, invalid
	}

	rate := math.Round(f * float64(multiplier))
	if rate < float64(minParsed) || rate > float64(maxParsed) {
		return 0, invalid
	}
	return BitRate(rate), nil
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

// About prints three significant digits, for example 17.1mbit.
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

// Percent is p percent of r.
func (r BitRate) Percent(p int) BitRate { return r * BitRate(p) / 100 }

// Bytes is how many bytes r carries in d.
func (r BitRate) Bytes(d time.Duration) ByteCount {
	return ByteCount(float64(r) / 8 * d.Seconds())
}

// Serialization is how long n bytes occupy a link of rate r. It is 0 if r is 0.
func (r BitRate) Serialization(n ByteCount) time.Duration {
	if r == 0 {
		return 0
	}
	return time.Duration(float64(n) * 8 / float64(r) * float64(time.Second))
}
