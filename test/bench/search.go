package bench

import (
	"fmt"
	"math"
)

// search finds the highest rate without loss (RFC 2544, section 26.1): from first it steps up or down by
// growth until one rate holds and one does not, then bisects on a logarithmic scale down to the resolution.
type search struct {
	first, min, max float64 // packets a second
	growth          float64 // above 1
	resolution      float64 // of the result, as a share
}

// verdict is the result of a trial at one rate.
type verdict int

const (
	held    verdict = iota // everything arrived
	lossy                  // something did not
	unsent                 // the tester could not send at this rate
	unknown                // no trial was made
)

// found is a search's end.
type found struct {
	rate  float64 // 0: even the minimum was lossy
	above verdict // result of the next higher rate: lossy, unsent, or unknown where the maximum held
}

// run tries rates until the search is done.
func (s search) run(try func(rate float64) (verdict, error)) (found, error) {
	if s.growth <= 1 || s.resolution <= 0 || s.min <= 0 || s.max < s.min {
		return found{}, fmt.Errorf(
			"search between %.0f and %.0f packets a second by %.2f to %.4f",
			s.min,
			s.max,
			s.growth,
			s.resolution,
		)
	}
	good, bad, above := 0.0, 0.0, unknown
	look := func(rate float64) error {
		v, err := try(rate)
		switch {
		case err != nil:
		case v == held:
			good = rate
		default:
			bad, above = rate, v
		}
		return err
	}
	if err := look(min(s.max, max(s.min, s.first))); err != nil {
		return found{}, err
	}
	step := s.growth
	for bad == 0 && good < s.max {
		if err := look(min(s.max, good*step)); err != nil {
			return found{}, err
		}
		step *= s.growth // a bad guess is left behind quickly
	}
	for good == 0 && bad > s.min {
		if err := look(max(s.min, bad/step)); err != nil {
			return found{}, err
		}
		step *= s.growth
	}
	for good > 0 && bad > 0 && bad/good > 1+s.resolution {
		if err := look(math.Sqrt(good * bad)); err != nil {
			return found{}, err
		}
	}
	return found{rate: good, above: above}, nil
}
