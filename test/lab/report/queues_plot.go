package report

import (
	"cmp"
	"fmt"
	"image/color"
	"io"
	"math"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"ringway/quality/figures"
)

// QueuePicture shows what each queue sends and holds over time: a column for each path, with the figures of
// its queues below.
type QueuePicture struct {
	Title     string
	Below     []string // under the title: what was run, and where
	Direction string   // figures.AToB, figures.BToA
	Paths     []QueuePath
}

// QueuePath is a path's queues in one or more runs, beside each other on the time axis.
type QueuePath struct {
	Name  string
	Link  uint64 // bit/s of the bottleneck, to be drawn as a line; 0: none
	Parts []QueuePart
}

// QueuePart is one run.
type QueuePart struct {
	Name    string // of the run, where there are several; otherwise its phases are named
	Quiet   bool   // its figures are not below the picture: nothing filled the link
	*Queues        // nil: nothing was read
}

// NewQueuePicture shows a lab's report. It returns false if there is nothing to show.
func NewQueuePicture(r Report) (QueuePicture, bool) {
	p := QueuePicture{
		Title:     "Where packets wait",
		Direction: figures.AToB,
		Below:     []string{scenarioLine(r.Scenario) + ". From A to B", figures.MachineLine(r.Machine), WaitLegend},
	}
	for _, path := range r.Paths {
		if path.Queues != nil {
			p.Paths = append(
				p.Paths,
				QueuePath{Name: path.Name, Link: r.Scenario.WANBits, Parts: []QueuePart{{Queues: path.Queues}}},
			)
		}
	}
	return p, len(p.Paths) > 0
}

// WaitLegend explains how a backlog is converted to a time.
const WaitLegend = "Waiting: the backlog at the class's guaranteed rate, before the tunnel and at the " +
	"provider at the link's. Bars on top: packets dropped"

// Measures of the picture.
const (
	queueColumn  = 13.5 * vg.Centimeter
	queueColumns = 2 // beside each other; more paths go in the next row
	queueHead    = 2.9 * vg.Centimeter
	queueRates   = 4.3 * vg.Centimeter
	queueWaits   = 5.1 * vg.Centimeter
	queueLine    = 13 * vg.Inch / 72 // of the table
	queueLeft    = 1.5 * vg.Centimeter
)

// queueStyles separate queues by colour, and in grey by their dashes. Later ones are drawn on top: a thin
// line over a broad one.
var queueStyles = []struct {
	place, class string
	line         draw.LineStyle
}{
	{
		AtFlows,
		"data",
		draw.LineStyle{Color: color.RGBA{0xe6, 0x9f, 0x00, 0xff}, Width: 2.2, Dashes: []vg.Length{12, 2.5, 2.5, 2.5}},
	},
	{AtEdge, "media", draw.LineStyle{Color: ringwayColour, Width: 3.2}},
	{AtEdge, "", draw.LineStyle{Color: color.RGBA{0xcc, 0x79, 0xa7, 0xff}, Width: 2.2}},
	{AtEdge, "data", draw.LineStyle{Color: baselineColour, Width: 1.6, Dashes: []vg.Length{7, 2.5}}},
	{
		AtEdge,
		"signalling",
		draw.LineStyle{Color: color.RGBA{0x00, 0x9e, 0x73, 0xff}, Width: 1.8, Dashes: []vg.Length{1.8, 3.2}},
	},
	{
		AtEdge,
		"background",
		draw.LineStyle{Color: color.RGBA{0xcc, 0x79, 0xa7, 0xff}, Width: 1.4, Dashes: []vg.Length{6, 2, 1.5, 2}},
	},
	{AtProvider, "", draw.LineStyle{Color: ink, Width: 1}},
}

// queueRow is one queue of a path over all parts.
type queueRow struct {
	name         string
	style, order int // in queueStyles, in the table
	local        bool
	place        string
	rates, waits []plotter.XYs // one a part
	drops        []float64     // when some were
	loaded       []float64     // waits that count for the table
	dropped      float64
}

// queueColumnData is a path, ready to be drawn.
type queueColumnData struct {
	QueuePath
	rows           []queueRow
	marks          []Phase // on the joint axis
	low, high      float64
	fast, longWait float64
}

// Save draws into a file whose name ends in .png or .svg.
func (q QueuePicture) Save(path string) error { return save(path, q.Write) }

// Write draws as png or svg.
func (q QueuePicture) Write(w io.Writer, format string) error {
	columns := q.columns()
	lines := 0
	for _, c := range columns {
		lines = max(lines, len(c.rows))
	}
	across := min(max(len(columns), 1), queueColumns)
	down := (len(columns) + queueColumns - 1) / queueColumns
	block := queueRates + queueWaits + vg.Length(lines+1)*queueLine + vg.Points(44)
	width, height := vg.Length(across)*queueColumn, queueHead+vg.Length(down)*block
	return render(w, format, width, height, func(c draw.Canvas) error {
		c.SetColor(color.White)
		c.Fill(c.Rectangle.Path())
		headline(c, q.Title, q.Below)
		fast, wait := 0.0, 0.0
		for _, d := range columns {
			fast, wait = max(fast, d.fast), max(wait, d.longWait)
		}
		for i, d := range columns {
			x, y := c.Min.X+vg.Length(i%queueColumns)*queueColumn, c.Max.Y-queueHead-vg.Length(i/queueColumns)*block
			part := draw.Canvas{
				Canvas:    c.Canvas,
				Rectangle: vg.Rectangle{Min: vg.Point{X: x, Y: y - block}, Max: vg.Point{X: x + queueColumn, Y: y}},
			}
			if err := d.draw(part, fast, wait); err != nil {
				return err
			}
		}
		return nil
	})
}

func headline(c draw.Canvas, title string, below []string) {
	style := draw.TextStyle{Color: ink, Font: sans(14, true), Handler: plot.DefaultTextHandler, YAlign: draw.YTop}
	at := vg.Point{X: c.Min.X + vg.Points(12), Y: c.Max.Y - vg.Points(10)}
	c.FillText(style, at, title)
	style.Font, style.Color = sans(9.5, false), grey
	at.Y -= vg.Points(20)
	for _, l := range below {
		c.FillText(style, at, l)
		at.Y -= vg.Points(13)
	}
}

// columns joins each path's parts on one time axis.
func (q QueuePicture) columns() (out []queueColumnData) {
	for _, p := range q.Paths {
		d := queueColumnData{QueuePath: p, fast: float64(p.Link) / 1e6}
		offset := 0.0
		for i, part := range p.Parts {
			if part.Queues == nil || len(part.Seconds) == 0 {
				continue
			}
			first, last := part.Seconds[0], part.Seconds[len(part.Seconds)-1]
			if len(p.Parts) > 1 {
				if i > 0 {
					offset = d.high + part.Interval - first
				} else {
					offset = -first
				}
				d.marks = append(d.marks, Phase{part.Name, first + offset})
			} else {
				d.marks = append(d.marks, part.Phases...)
			}
			d.low, d.high = min(d.low, first+offset), max(d.high, last+offset)
			for _, s := range part.Series {
				if s.Direction == q.Direction {
					d.row(p.Name, s).add(part, s, offset)
				}
			}
		}
		for i := range d.rows {
			for j := range d.rows[i].waits {
				for k := range d.rows[i].waits[j] {
					d.longWait = max(d.longWait, d.rows[i].waits[j][k].Y)
				}
			}
			for j := range d.rows[i].rates {
				for k := range d.rows[i].rates[j] {
					d.fast = max(d.fast, d.rows[i].rates[j][k].Y)
				}
			}
		}
		slices.SortStableFunc(d.rows, func(a, b queueRow) int { return cmp.Compare(a.order, b.order) })
		out = append(out, d)
	}
	return out
}

// row finds or creates the row of a series.
func (d *queueColumnData) row(path string, s QueueSeries) *queueRow {
	r := queueRow{name: s.Class, place: s.Place, local: s.Site == "local"}
	r.style = slices.IndexFunc(queueStyles, func(q struct {
		place, class string
		line         draw.LineStyle
	}) bool {
		return q.place == s.Place && q.class == s.Class
	})
	r.order = map[string]int{"media": 0, "signalling": 1, "data": 2, "background": 3}[s.Class]
	switch s.Place {
	case AtFlows:
		r.name, r.order = s.Class+", before its tunnel", 4
	case AtProvider:
		r.name, r.order = "the provider's FIFO", 5
	case AtEdge:
		switch {
		case s.Class == "":
			r.name = path + " at the edge"
		case r.local:
			r.name, r.order = s.Class+", to no site", r.order+10
		}
	}
	for i := range d.rows {
		if d.rows[i].name == r.name {
			return &d.rows[i]
		}
	}
	d.rows = append(d.rows, r)
	return &d.rows[len(d.rows)-1]
}

func (r *queueRow) add(part QueuePart, s QueueSeries, offset float64) {
	var rates, waits plotter.XYs
	for i, t := range part.Seconds {
		at := t + offset
		if len(s.Bits) > 0 {
			rates = append(rates, plotter.XY{X: at, Y: s.Bits[i] / 1e6})
		}
		waits = append(waits, plotter.XY{X: at, Y: s.Wait[i]})
		if s.Drops[i] > 0 {
			r.drops = append(r.drops, at)
		}
		if !part.Quiet && t >= 0 {
			r.loaded = append(r.loaded, s.Wait[i])
			r.dropped += s.Drops[i]
		}
	}
	r.rates, r.waits = append(r.rates, rates), append(r.waits, waits)
}

func (d queueColumnData) draw(c draw.Canvas, fast, wait float64) error {
	rates, waits := panel(), panel()
	rates.Y.Label.Text, waits.Y.Label.Text, waits.X.Label.Text = "sent, Mbit/s", "waiting, ms", "time, s"
	top := roundUp(max(wait, 1)) * 1.001
	if top > 1.9*wait && wait > 1 { // 110 ms need no axis of 200
		top = 1.25 * wait
	}
	rates.Y.Max, waits.Y.Max = 1.12*max(fast, 0.1), 1.14*top
	for _, p := range []*plot.Plot{rates, waits} {
		p.Y.Min = -0.02 * p.Y.Max // what lies at 0 is not hidden by the axis
		p.X.Min, p.X.Max = d.low, max(d.high, d.low+1)
		p.X.Tick.Marker, p.Y.Tick.Marker = plot.TickerFunc(secondTicksFrom), plot.TickerFunc(evenTicks)
		for _, m := range d.marks {
			if m.From > d.low {
				if err := stroke(p, draw.LineStyle{Color: grey, Width: 0.7, Dashes: []vg.Length{2, 2}},
					plotter.XYs{{X: m.From, Y: p.Y.Min}, {X: m.From, Y: p.Y.Max}}); err != nil {
					return err
				}
			}
		}
	}
	if d.Link > 0 {
		link := float64(d.Link) / 1e6
		if err := stroke(rates, draw.LineStyle{Color: grey, Width: 0.7},
			plotter.XYs{{X: d.low, Y: link}, {X: d.high, Y: link}}); err != nil {
			return err
		}
	}
	for i, s := range queueStyles { // in the order in which they hide each other least
		for _, r := range d.rows {
			if r.style != i {
				continue
			}
			for _, x := range []struct {
				p     *plot.Plot
				lines []plotter.XYs
			}{{rates, r.rates}, {waits, r.waits}} {
				for _, l := range x.lines {
					if len(l) > 0 {
						if err := stroke(x.p, r.line(s.line), l); err != nil {
							return err
						}
					}
				}
			}
		}
	}
	rates.X.Tick.Marker = plot.TickerFunc(unlabelled(secondTicksFrom))

	above := draw.Crop(c, vg.Points(8), -vg.Points(10), 0, -vg.Points(20))
	above.Min.Y = above.Max.Y - queueRates - queueWaits
	sizes := []vg.Length{queueRates, queueWaits}
	canvases := [2]draw.Canvas{above, above}
	canvases[0].Min.Y = above.Max.Y - sizes[0]
	canvases[1].Max.Y = canvases[0].Min.Y - vg.Points(2)
	title := draw.TextStyle{Color: ink, Font: sans(11, true), Handler: plot.DefaultTextHandler}
	small := draw.TextStyle{Color: grey, Font: sans(8, false), Handler: plot.DefaultTextHandler}
	for i, p := range []*plot.Plot{rates, waits} {
		// Both frames begin and end at the same place, whatever is beside them.
		for range 3 {
			area := p.DataCanvas(canvases[i])
			canvases[i].Min.X += above.Min.X + queueLeft - area.Min.X
			canvases[i].Max.X += above.Max.X - vg.Points(6) - area.Max.X
		}
		p.Draw(canvases[i])
		area := p.DataCanvas(canvases[i])
		toX, toY := p.Transforms(&area)
		if p == waits {
			d.drops(c, toX, area.Max.Y)
			continue
		}
		c.FillText(title, vg.Point{X: area.Min.X, Y: area.Max.Y + vg.Points(14)}, name(d.Name))
		for j, m := range d.marks {
			at := vg.Point{X: max(toX(m.From), area.Min.X), Y: area.Max.Y + vg.Points(3)}
			style, end := small, area.Max.X
			if j+1 < len(d.marks) {
				end = toX(d.marks[j+1].From) - vg.Points(4)
			}
			if end-at.X < style.Width(m.Name) { // then it ends there; to the left there is room
				style.XAlign, at.X = draw.XRight, end
			}
			c.FillText(style, at, m.Name)
		}
		if d.Link > 0 {
			middle := small
			middle.XAlign = draw.XCenter
			c.FillText(
				middle,
				vg.Point{X: (area.Min.X + area.Max.X) / 2, Y: toY(float64(d.Link)/1e6) + vg.Points(2)},
				"the link",
			)
		}
	}
	d.table(c, canvases[1].Min.Y-vg.Points(8))
	return nil
}

// drops marks when packets were dropped, a row a queue, under top.
func (d queueColumnData) drops(c draw.Canvas, toX func(float64) vg.Length, top vg.Length) {
	for _, r := range d.rows {
		if len(r.drops) == 0 {
			continue
		}
		style := draw.LineStyle{Color: queueStyles[r.style].line.Color, Width: vg.Points(0.8)}
		for _, t := range r.drops {
			c.StrokeLine2(style, toX(t), top-vg.Points(6), toX(t), top-vg.Points(1))
		}
		top -= vg.Points(7)
	}
}

// table names the lines and gives their figures.
func (d queueColumnData) table(c draw.Canvas, y vg.Length) {
	left, text := c.Min.X+vg.Points(12), draw.TextStyle{
		Color:   ink,
		Font:    sans(9, false),
		Handler: plot.DefaultTextHandler,
		YAlign:  draw.YCenter,
	}
	number, head := text, text
	number.XAlign = draw.XRight
	head.Color, head.XAlign = grey, draw.XRight
	right := [3]vg.Length{c.Min.X + 8.2*vg.Centimeter, c.Min.X + 10.2*vg.Centimeter, c.Max.X - vg.Points(16)}
	y -= queueLine / 2
	for i, h := range []string{"waiting: median", "most", "packets dropped"} {
		c.FillText(head, vg.Point{X: right[i], Y: y}, h)
	}
	for _, r := range d.rows {
		y -= queueLine
		c.StrokeLine2(r.line(queueStyles[r.style].line), left, y, left+vg.Points(30), y)
		c.FillText(text, vg.Point{X: left + vg.Points(37), Y: y}, r.name)
		slices.Sort(r.loaded)
		cells := [3]string{"-", "-", "-"}
		if n := len(r.loaded); n > 0 {
			cells = [3]string{millis(r.loaded[n/2]), millis(r.loaded[n-1]), figures.Thousands(int(r.dropped))}
		}
		for i, cell := range cells {
			c.FillText(number, vg.Point{X: right[i], Y: y}, cell)
		}
	}
}

// line is the row's; what goes to no site is drawn thinner.
func (r queueRow) line(s draw.LineStyle) draw.LineStyle {
	if r.local {
		s.Width /= 2
	}
	return s
}

func stroke(p *plot.Plot, style draw.LineStyle, points plotter.XYs) error {
	l, err := plotter.NewLine(points)
	if err != nil {
		return err
	}
	l.LineStyle = style
	p.Add(l)
	return nil
}

// name is a path's as a title.
func name(path string) string {
	switch path {
	case "none":
		return "No queues at the edge"
	case "fq_codel", "cake": // tc's words
		return path
	}
	return title(path)
}

func millis(ms float64) string {
	switch {
	case ms == 0:
		return "0"
	case ms < 10:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// secondTicksFrom divides an axis that may begin before 0 into round parts.
func secondTicksFrom(low, high float64) (ticks []plot.Tick) {
	step := roundUp((high - low) / 8)
	for i := math.Ceil(low/step - 1e-9); i*step <= high*(1+1e-9); i++ {
		ticks = append(
			ticks,
			plot.Tick{Value: i * step, Label: fmt.Sprintf("%g", math.Round(i*step*1000)/1000+0)},
		) // and -0 is 0
	}
	return ticks
}

// evenTicks are four to eight from 0 up.
func evenTicks(_, high float64) (ticks []plot.Tick) { return secondTicks(0, high) }

func unlabelled(t plot.TickerFunc) plot.TickerFunc {
	return func(low, high float64) []plot.Tick {
		ticks := t(low, high)
		for i := range ticks {
			ticks[i].Label = ""
		}
		return ticks
	}
}
