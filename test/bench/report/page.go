package report

import (
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"ringway/quality/figures"
	lab "ringway/test/lab/report"
)

// Save writes the plots of every load (PNG and SVG), and one page that holds them, the tables and how to
// repeat the run, into dir. It returns the page's path.
func Save(dir string, j Jitter, delays []Delays) (page string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make a folder for the plots: %w", err)
	}
	pictures := map[string]template.HTML{}
	for _, l := range j.Loads {
		for _, kind := range []lab.CurveKind{lab.ByPercentile, lab.Cumulative} {
			name := fmt.Sprintf("load-%d-%s", l.LoadPercent, kind)
			if pictures[name], err = picture(dir, name, curves(j, l, kind, delays)); err != nil {
				return "", err
			}
		}
	}
	page = filepath.Join(dir, "jitter.html")
	text, err := Page(j, pictures)
	if err != nil {
		return "", err
	}
	return page, os.WriteFile(page, text, 0o644)
}

// curves are all paths under one load; of each the direction with the greater p99.9, as in the table.
func curves(j Jitter, l Load, kind lab.CurveKind, delays []Delays) lab.Curves {
	c := lab.Curves{Kind: kind, Title: fmt.Sprintf("Voice beside a load of %d %%", l.LoadPercent),
		Below: []string{settingsLine(j.Settings), machineLine(j.Machine)}}
	for _, p := range l.Paths {
		worse := worse(p.Voice)
		for _, d := range delays {
			if d.LoadPercent == l.LoadPercent && d.Path == p.Name && d.Direction == worse {
				c.Curves = append(c.Curves, lab.Curve{Name: p.Name, Delays: d.Delays})
			}
		}
	}
	return c
}

// worse names the direction with the greater p99.9.
func worse(v lab.Voice) string {
	return slices.MaxFunc(
		v.Directions,
		func(a, b figures.Direction) int { return cmp.Compare(a.Delay.P999, b.Delay.P999) },
	).Name
}

// drawing is what the lab's report draws.
type drawing interface {
	Save(path string) error
	Write(w io.Writer, format string) error
}

// picture saves a drawing into dir as PNG and SVG, and gives it for a page.
func picture(dir, name string, c drawing) (template.HTML, error) {
	for _, ext := range []string{".png", ".svg"} {
		if err := c.Save(filepath.Join(dir, name+ext)); err != nil {
			return "", err
		}
	}
	var b bytes.Buffer
	if err := c.Write(&b, "svg"); err != nil {
		return "", err
	}
	return inline(b.String()), nil
}

// inline is an SVG that a page can contain: without what belongs to a file.
func inline(svg string) template.HTML {
	if i := strings.Index(svg, "<svg"); i >= 0 {
		svg = svg[i:]
	}
	return template.HTML(svg) // our own drawing; names in it are escaped by the canvas
}

var (
	//go:embed page.html
	pageText string
	//go:embed style.html
	styleText string // of every page
)

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"us": figures.Duration, "against": func(p Path, what string) string {
		return against(p, func(r Ratio) float64 {
			if what == "p50" {
				return r.P50
			}
			return r.PDV
		})
	},
	"lost": lost, "mos": func(v float64) string { return fmt.Sprintf("%.2f", v) },
	"mbit":    func(v float64) string { return fmt.Sprintf("%.0f", v) },
	"percent": func(v float64) string { return fmt.Sprintf("%.1f %%", 100*v) },
}).Parse(pageText + styleText))

// Page is the whole report as one HTML page that refers to nothing outside itself.
func Page(j Jitter, pictures map[string]template.HTML) ([]byte, error) {
	type load struct {
		Load
		Line             string
		Percentiles, CDF template.HTML
	}
	data := struct {
		Jitter
		Machine  string
		What     string
		Wake     [][]string
		Programs []string
		Warnings []string
		Legend   string
		Loads    []load
	}{Jitter: j, Machine: machineLine(j.Machine), What: settingsLine(j.Settings), Wake: wakeRows(j),
		Programs: programs(j), Warnings: Warnings(j), Legend: legend}
	for _, l := range j.Loads {
		name := fmt.Sprintf("load-%d-", l.LoadPercent)
		data.Loads = append(
			data.Loads,
			load{l, loadLine(j, l), pictures[name+string(lab.ByPercentile)], pictures[name+string(lab.Cumulative)]},
		)
	}
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, data); err != nil {
		return nil, fmt.Errorf("write the page: %w", err)
	}
	return b.Bytes(), nil
}
