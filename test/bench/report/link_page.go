package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"os"
	"path/filepath"
	"slices"

	"ringway/quality/figures"
	lab "ringway/test/lab/report"
)

//go:embed link.html
var linkPageText string

var linkPageTemplate = template.Must(template.New("link").Parse(linkPageText + styleText))

// queues are those of the first round, its loads beside each other on the time axis.
func (r LinkRate) queues(below ...string) (lab.QueuePicture, bool) {
	q := lab.QueuePicture{
		Title:     "Where packets wait on " + r.Rate + ", from A to B",
		Direction: figures.AToB,
		Below:     append(below, lab.WaitLegend),
	}
	for _, load := range r.Loads {
		if len(load.Rounds) == 0 {
			continue
		}
		for _, p := range load.Rounds[0].Paths {
			if p.Queues == nil {
				continue
			}
			i := slices.IndexFunc(q.Paths, func(known lab.QueuePath) bool { return known.Name == p.Name })
			if i < 0 {
				i, q.Paths = len(q.Paths), append(q.Paths, lab.QueuePath{Name: p.Name, Link: r.Bits})
			}
			name := map[string]string{Alone: "voice alone", TCP: "TCP both ways",
				UDP: "UDP flood both ways"}[load.Scenario.Bulk]
			q.Paths[i].Parts = append(
				q.Paths[i].Parts,
				lab.QueuePart{Name: name, Quiet: load.Scenario.Bulk == Alone, Queues: p.Queues},
			)
		}
	}
	return q, len(q.Paths) > 0
}

// SaveLink writes a plot of every rate and load, and of every rate's queues (PNG and SVG), and one page that
// holds them, the tables and how to repeat the run, into dir. It returns the page's path.
func SaveLink(dir string, l Link, delays []LinkDelays) (page string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make a folder for the plots: %w", err)
	}
	type rate struct {
		Line     string
		Rows     [][]string
		Pictures []template.HTML
	}
	data := struct {
		Link
		What, Machine, Legend string
		Warnings              []string
		Goals                 [][]string
		Rates                 []rate
	}{Link: l, What: linkLine(l.Settings), Machine: figures.MachineLine(l.Machine),
		Legend: linkLegend(l.Settings), Warnings: LinkWarnings(l)}
	for _, v := range l.Verdicts {
		data.Goals = append(data.Goals, v.row())
	}
	for _, r := range l.Rates {
		one := rate{Line: r.line(), Rows: r.rows()}
		for _, load := range r.Loads {
			c := lab.Curves{
				Kind:  lab.ByPercentile,
				Title: fmt.Sprintf("Voice on %s, load %s", r.Rate, load.Scenario.Bulk),
				Below: []string{data.What, data.Machine},
			}
			for _, p := range load.Paths {
				dir := worse(p.Voice)
				for _, d := range delays {
					if d.Rate == r.Rate && d.Load == load.Scenario.Bulk && d.Path == p.Name && d.Direction == dir {
						c.Curves = append(c.Curves, lab.Curve{Name: p.Name, Delays: d.Delays})
					}
				}
			}
			svg, err := picture(dir, fmt.Sprintf("link-%s-%s", r.Rate, load.Scenario.Bulk), c)
			if err != nil {
				return "", err
			}
			one.Pictures = append(one.Pictures, svg)
		}
		if q, ok := r.queues(data.What, data.Machine); ok {
			svg, err := picture(dir, fmt.Sprintf("link-%s-queues", r.Rate), q)
			if err != nil {
				return "", err
			}
			one.Pictures = append(one.Pictures, svg)
		}
		data.Rates = append(data.Rates, one)
	}
	var b bytes.Buffer
	if err := linkPageTemplate.Execute(&b, data); err != nil {
		return "", fmt.Errorf("write the page: %w", err)
	}
	page = filepath.Join(dir, "link.html")
	return page, os.WriteFile(page, b.Bytes(), 0o644)
}
