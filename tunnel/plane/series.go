package plane

import (
	"context"
	"fmt"

	"ringway/process"
	"ringway/tunnel"
)

// minorSeries is the first protocol with series of media.
const minorSeries = 5

// meter is an engine that counts media by flow.
type meter interface {
	Series(from int) (tunnel.SeriesPage, error)
}

type seriesRequest struct {
	From int `json:"from,omitempty"`
}

func (s *server) handleSeries(e Engine, m *process.Message) (process.Reply, error) {
	x, ok := e.(meter)
	if !ok {
		return process.Reply{}, fmt.Errorf("request %q: the engine %s counts no media (only %s does)",
			m.Type, e.Status().Engine, tunnel.EngineRealtime)
	}
	var q seriesRequest
	if err := m.Decode(&q); err != nil {
		return process.Reply{}, err
	}
	page, err := x.Series(q.From)
	return process.Reply{Body: page}, err
}

// A plane that was taken over is not asked to go on forever, nor believed more than an engine has: two tables of
// 16384.
const (
	maxPages   = 128
	maxOfPlane = 4 * tunnel.MaxSeries
)

// Series are the series of media that had packets lately. beyond is how many packets were not counted.
func (s *Supervisor) Series(ctx context.Context) (all []tunnel.SeriesStatus, beyond uint64, err error) {
	cur := s.current()
	if cur == nil {
		return nil, 0, fmt.Errorf("plane %s is not running", s.cfg.Class)
	}
	if cur.Hello.Minor < minorSeries {
		return nil, 0, fmt.Errorf(
			"plane %s is of an older release, which counts no media (ringway upgrade-planes replaces it)", s.cfg.Class)
	}
	for from, n := 0, 0; n < maxPages; n++ {
		var page tunnel.SeriesPage
		if err := cur.Ask(ctx, process.Request{Type: typeSeries, Body: seriesRequest{From: from}}, &page); err != nil {
			return nil, 0, err
		}
		if len(all)+len(page.Series) > maxOfPlane {
			return nil, 0, fmt.Errorf("plane %s tells of more than %d series of media", s.cfg.Class, maxOfPlane)
		}
		all = append(all, page.Series...)
		beyond += page.Beyond
		if from = page.Next; from == 0 {
			break
		}
	}
	return all, beyond, nil
}
