package bench

import (
	"fmt"
	"math"
)

// search finds the highest rate that loses nothing (RFC 2544, section 26.1): it steps up or down by growth from first until one
// rate holds and one does not, then halves what lies between, on a logarithmic scale, until that is the resolution.
type search struct {
	first, least, most float64 // packets a second
	growth             float64 // above 1
	resolution         float64 // of the result, as a share
}

// verdict is what one rate did.
type verdict int

const (
	held    verdict = iota // everything arrived
	lossy                  // something did not
	unsent                 // the tester itself could not send at this rate
	unknown                // no trial was made
)

// found is a search's end.
type found struct {
	rate  float64 // 0: even the least was lossy
	above verdict // why the next higher rate is none: lossy, unsent, or unknown where the most that was allowed held
}

// run tries rates until it knows. try is told the rate.
func (s search) run(try func(rate float64) (verdict, error)) (found, error) {
	if s.growth <= 1 || s.resolution <= 0 || s.least <= 0 || s.most < s.least {
		return found{}, fmt.Errorf("search between %.0f and %.0f packets a second by %.2f to %.4f", s.least, s.most, s.growth, s.resolution)
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
	if err := look(min(s.most, max(s.least, s.first))); err != nil {
		return found{}, err
	}
	step := s.growth
	for bad == 0 && good < s.most {
		if err := look(min(s.most, good*step)); err != nil {
			return found{}, err
		}
		step *= s.growth // a bad guess is left behind quickly
	}
	for good == 0 && bad > s.least {
		if err := look(max(s.least, bad/step)); err != nil {
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
