package report

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"ringway/quality/figures"
)

// writeEvents prints what each event cost the worst call of each path, and what each line carried.
func writeEvents(w io.Writer, r Report) {
	if len(r.Events) > 0 {
		table := [][]string{{"Event: the worst call"}}
		for _, p := range r.Paths {
			table[0] = append(table[0], title(p.Name))
		}
		for i, e := range r.Events {
			cells := []string{fmt.Sprintf("%6.1f s  %s", e.At, e.What)}
			for _, p := range r.Paths {
				cells = append(cells, p.Gaps[i].text())
			}
			table = append(table, cells)
		}
		writeCells(w, table)
	}
	var table [][]string
	for _, p := range r.Paths {
		for i, l := range p.Lines {
			if i == len(table) {
				table = append(table, []string{l.Line + ": sent, received"})
			}
			table[i] = append(table[i],
				fmt.Sprintf("%.2f, %.2f MB", float64(l.Sent)/1e6, float64(l.Received)/1e6))
		}
	}
	if len(table) > 0 {
		head := []string{"Berlin's lines"}
		for _, p := range r.Paths {
			head = append(head, title(p.Name))
		}
		writeCells(w, append([][]string{head}, table...))
	}
}

// text is a gap in words: how long a phone heard nothing, what was lost, and for how long after the event.
func (g Gap) text() string {
	if g.Lost == 0 {
		return fmt.Sprintf("%.0f ms, 0 lost", g.Longest)
	}
	return fmt.Sprintf("%s, %d lost until %s", figures.Duration(g.Longest*1e3), g.Lost, figures.Duration(g.LostUntil*1e3))
}

// writeCells prints a table, the first column to the left; a row may have fewer cells than the first.
func writeCells(w io.Writer, table [][]string) {
	widths := make([]int, len(table[0]))
	for _, cells := range table {
		for i, c := range cells {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	for _, cells := range table {
		var b strings.Builder
		for i, c := range cells {
			space := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c))
			if i == 0 {
				b.WriteString(c + space)
			} else {
				b.WriteString("  " + space + c)
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
	fmt.Fprintln(w)
}

func lines(n int) string {
	if n == 1 {
		return "1 line"
	}
	return fmt.Sprintf("%d lines", n)
}

// markEvents draws an upright line at each event, with its words.
func markEvents(p *plot.Plot, events []Event, low float64) error {
	for _, e := range events {
		at, err := plotter.NewLine(plotter.XYs{{X: e.At, Y: p.Y.Min}, {X: e.At, Y: p.Y.Max}})
		if err != nil {
			return err
		}
		at.LineStyle = draw.LineStyle{Color: grey, Width: vg.Points(0.8), Dashes: []vg.Length{vg.Points(3), vg.Points(2)}}
		words, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: e.At, Y: low}}, Labels: []string{e.What}})
		if err != nil {
			return err
		}
		words.TextStyle[0].Font, words.TextStyle[0].Color = sans(8, false), grey
		words.TextStyle[0].Rotation = 1.5707963267948966 // upwards, beside its line
		words.Offset = vg.Point{X: -vg.Points(2), Y: vg.Points(4)}
		p.Add(at, words)
	}
	return nil
}
