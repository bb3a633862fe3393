package report

import (
	"bufio"
	"errors"
	"fmt"
	"image/color"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	xfont "golang.org/x/image/font"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"

	"ringway/quality/figures"
)

// Size of the picture.
const (
	plotWidth, plotHeight = 27 * vg.Centimeter, 12.5 * vg.Centimeter
	plotDPI               = 150
	head                  = 2.75 * vg.Centimeter // titles, scenario and machine
	timeCells, delayCells = 420, 180             // finer than this, points hide each other: only one is drawn
)

// Colours that colour-blind readers can distinguish (Okabe, Ito).
var (
	ringwayColour  = color.RGBA{0x00, 0x72, 0xb2, 0xff}
	baselineColour = color.RGBA{0xd5, 0x5e, 0x00, 0xff}
	otherColours   = []color.RGBA{{0x00, 0x9e, 0x73, 0xff}, {0xcc, 0x79, 0xa7, 0xff}, {0x56, 0xb4, 0xe9, 0xff}}
	ink            = color.RGBA{0x22, 0x22, 0x22, 0xff}
	faint          = color.RGBA{0xdc, 0xdc, 0xdc, 0xff}
	grey           = color.RGBA{0x66, 0x66, 0x66, 0xff}
)

// ErrPlotFormat: the file's name ends in neither .png nor .svg.
var ErrPlotFormat = errors.New("a plot must be a .png or a .svg file")

// Plot draws delay by percentile (left) and delay over time with the packets lost (right), every path and
// direction in both, and writes it to path as PNG or SVG by its extension.
func Plot(path string, r Report, series []Series) (err error) {
	var canvas vg.CanvasSizer
	var write func(io.Writer) error
	switch strings.ToLower(filepath.Ext(path)) {
	case ".png":
		c := vgimg.NewWith(vgimg.UseWH(plotWidth, plotHeight), vgimg.UseDPI(plotDPI))
		canvas, write = c, func(w io.Writer) error { _, err := vgimg.PngCanvas{Canvas: c}.WriteTo(w); return err }
	case ".svg":
		c := vgsvg.New(plotWidth, plotHeight)
		canvas, write = c, func(w io.Writer) error { _, err := c.WriteTo(w); return err }
	default:
		return fmt.Errorf("%s: %w", path, ErrPlotFormat)
	}
	if err := drawAll(draw.New(canvas), r, series); err != nil {
		return fmt.Errorf("draw %s: %w", path, err)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	if err := write(w); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return w.Flush()
}

func drawAll(c draw.Canvas, r Report, series []Series) error {
	c.SetColor(color.White)
	c.Fill(c.Rectangle.Path())

	byPercentile, overTime := panel(), panel()
	byPercentile.X.Label.Text = "share of packets that took no longer"
	byPercentile.Y.Label.Text = "one-way delay"
	overTime.X.Label.Text = "time, s"
	low, high, end := extent(series)
	for _, p := range []*plot.Plot{byPercentile, overTime} {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.TickerFunc(delayTicks)
		p.Y.Min, p.Y.Max = low, high
	}
	overTime.X.Min, overTime.X.Max = 0, end*1.01
	overTime.X.Tick.Marker = plot.TickerFunc(secondTicks)
	byPercentile.X.Tick.Marker = plot.TickerFunc(percentileTicks)

	// The path with the greater delays first: what is drawn last lies on top, and there it hides least.
	order := slices.Clone(series)
	slices.SortStableFunc(order, func(a, b Series) int { return int(median(b) - median(a)) })
	for _, s := range order {
		// A row of its own for each path's losses, under the frame's top.
		row := slices.IndexFunc(r.Paths, func(p Path) bool { return p.Name == s.Path })
		at := math.Exp(math.Log(high) - math.Log(high/low)*(0.025+0.035*float64(max(0, row))))
		points, lost := thin(s, low, high, end, at)
		scatter, err := plotter.NewScatter(points)
		if err != nil {
			return err
		}
		shade := colourOf(s.Path, r)
		scatter.GlyphStyle = draw.GlyphStyle{Color: shade, Radius: vg.Points(0.9), Shape: draw.CircleGlyph{}}
		overTime.Add(scatter)
		if len(lost) > 0 {
			marks, err := plotter.NewScatter(lost)
			if err != nil {
				return err
			}
			marks.GlyphStyle = draw.GlyphStyle{Color: shade, Radius: vg.Points(4), Shape: bar{}}
			overTime.Add(marks)
		}
	}
	if err := markEvents(overTime, r.Events, low); err != nil {
		return err
	}
	names := legendStyle()
	for _, s := range series {
		curve := percentiles(s)
		if len(curve) == 0 {
			continue
		}
		line, err := plotter.NewLine(curve)
		if err != nil {
			return err
		}
		line.LineStyle = draw.LineStyle{Color: colourOf(s.Path, r), Width: vg.Points(1.8)}
		if s.Direction == figures.BToA {
			line.Dashes = []vg.Length{vg.Points(5), vg.Points(3)}
		}
		byPercentile.Add(line)
		names.Add(" "+legend(s), line)
		byPercentile.X.Max = max(byPercentile.X.Max, curve[len(curve)-1].X)
	}
	byPercentile.X.Min = 0
	if math.IsInf(byPercentile.X.Max, 0) { // nothing arrived at all
		byPercentile.X.Max = 3
	}

	heading(c, r)
	names.Draw(draw.Crop(c, c.Max.X-c.Min.X-vg.Points(150), 0, 0, -vg.Points(10)))
	below := draw.Crop(c, vg.Points(8), -vg.Points(12), vg.Points(6), -head)
	tiles := draw.Tiles{Rows: 1, Cols: 2, PadX: vg.Points(14)}
	canvases := plot.Align([][]*plot.Plot{{byPercentile, overTime}}, tiles, below)
	style := draw.TextStyle{Color: ink, Font: sans(11, true), Handler: plot.DefaultTextHandler}
	for i, p := range []*plot.Plot{byPercentile, overTime} {
		p.Draw(canvases[0][i])
		area := p.DataCanvas(canvases[0][i])
		name := [...]string{"How long packets took", "When they took how long, and (bars on top) were lost"}[i]
		c.FillText(style, vg.Point{X: area.Min.X, Y: area.Max.Y + vg.Points(9)}, name)
	}
	return nil
}

func sans(size float64, bold bool) font.Font {
	f := font.Font{Typeface: "Liberation", Variant: "Sans", Size: vg.Points(size)}
	if bold {
		f.Weight = xfont.WeightBold
	}
	return f
}

func panel() *plot.Plot {
	p := plot.New()
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		a.Label.TextStyle.Font, a.Label.TextStyle.Color = sans(9.5, false), ink
		a.Tick.Label.Font, a.Tick.Label.Color = sans(9, false), ink
		a.Tick.LineStyle.Color, a.LineStyle.Color = grey, grey
		a.Label.Padding, a.Padding = vg.Points(4), 0
	}
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = faint, faint
	p.Add(grid)
	return p
}

// The legend is beside the title: inside a panel it would hide packets.
func legendStyle() plot.Legend {
	l := plot.NewLegend()
	l.TextStyle.Font, l.TextStyle.Color = sans(9.5, false), ink
	l.Top, l.Left = true, true
	l.ThumbnailWidth, l.Padding = vg.Points(26), vg.Points(2.5)
	return l
}

func heading(c draw.Canvas, r Report) {
	style := draw.TextStyle{Color: ink, Font: sans(14, true), Handler: plot.DefaultTextHandler, YAlign: draw.YTop}
	top := vg.Point{X: c.Min.X + vg.Points(12), Y: c.Max.Y - vg.Points(10)}
	c.FillText(style, top, "Voice from phone to phone")
	style.Font, style.Color = sans(9.5, false), grey
	top.Y -= vg.Points(20)
	c.FillText(style, top, scenarioLine(r.Scenario))
	top.Y -= vg.Points(13)
	c.FillText(style, top, figures.MachineLine(r.Machine))
}

func colourOf(path string, r Report) color.RGBA {
	switch path {
	case "ringway":
		return ringwayColour
	case "baseline":
		return baselineColour
	}
	i := slices.IndexFunc(r.Paths, func(p Path) bool { return p.Name == path })
	return otherColours[max(0, i)%len(otherColours)]
}

func legend(s Series) string {
	switch s.Direction {
	case figures.AToB:
		return title(s.Path) + ", A to B"
	case figures.BToA:
		return title(s.Path) + ", B to A"
	}
	return title(s.Path)
}

// extent gives the bounds of the delay axis, in microseconds on a grid of 1, 2, 5, and of the time axis in
// seconds.
func extent(series []Series) (low, high, end float64) {
	low, high = math.Inf(1), 0
	for _, s := range series {
		for _, p := range s.Points {
			end = max(end, p.At.Seconds())
			if !p.Lost {
				low, high = min(low, micros(p.Delay)), max(high, micros(p.Delay))
			}
		}
	}
	if high == 0 {
		return 10, 10000, max(end, 1)
	}
	// Room above, for the lost packets and the legend.
	return roundDown(low), roundUp(high * 1.8), max(end, 1)
}

func micros(d time.Duration) float64 { return max(1, float64(d)/float64(time.Microsecond)) }

var steps = []float64{1, 2, 5, 10}

func roundDown(v float64) float64 {
	decade := math.Pow(10, math.Floor(math.Log10(v)))
	best := decade
	for _, s := range steps {
		if s*decade <= v {
			best = s * decade
		}
	}
	return best
}

func roundUp(v float64) float64 {
	decade := math.Pow(10, math.Floor(math.Log10(v)))
	for _, s := range steps {
		if s*decade >= v {
			return s * decade
		}
	}
	return 10 * decade
}

func delayTicks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	wide := high/low > 2000 // with more than three decades, 1 and 10 are enough
	for decade := math.Pow(10, math.Floor(math.Log10(low))); decade <= high; decade *= 10 {
		for _, s := range []float64{1, 2, 3, 4, 5, 6, 7, 8, 9} {
			v := s * decade
			if v < low*0.999 || v > high*1.001 {
				continue
			}
			label := ""
			if s == 1 || (!wide && (s == 2 || s == 5)) {
				label = shortDuration(v)
			}
			ticks = append(ticks, plot.Tick{Value: v, Label: label})
		}
	}
	return ticks
}

// secondTicks divides the run into four to eight round parts.
func secondTicks(low, high float64) []plot.Tick {
	step := roundUp((high - low) / 8)
	var ticks []plot.Tick
	for i := 0; float64(i)*step <= high; i++ {
		ticks = append(
			ticks,
			plot.Tick{Value: float64(i) * step, Label: fmt.Sprintf("%g", math.Round(float64(i)*step*1000)/1000)},
		)
	}
	return ticks
}

// bar marks a lost packet.
type bar struct{}

// DrawGlyph draws an upright stroke.
func (bar) DrawGlyph(c *draw.Canvas, s draw.GlyphStyle, at vg.Point) {
	c.StrokeLine2(draw.LineStyle{Color: s.Color, Width: vg.Points(0.8)}, at.X, at.Y-s.Radius, at.X, at.Y+s.Radius)
}

func shortDuration(us float64) string {
	switch {
	case us < 999:
		return fmt.Sprintf("%.0f µs", us)
	case us < 999e3:
		return fmt.Sprintf("%.0f ms", us/1e3)
	}
	return fmt.Sprintf("%.0f s", us/1e6)
}

// The percentile axis is logarithmic in the share of packets that were later: each nine has the same width.
func nines(share float64) float64 { return -math.Log10(1 - share) }

func percentileTicks(_, high float64) []plot.Tick {
	var ticks []plot.Tick
	for _, t := range []struct {
		share float64
		label string
	}{{0, "0 %"}, {0.5, "50"}, {0.9, "90"}, {0.99, "99"}, {0.999, "99.9"}, {0.9999, "99.99"}, {0.99999, "99.999"}} {
		if v := nines(t.share); v <= high+1e-9 {
			ticks = append(ticks, plot.Tick{Value: v, Label: t.label})
		}
	}
	return ticks
}

// percentiles is the curve of a series: its steps where the eye can still see them.
func percentiles(s Series) plotter.XYs {
	delays := make([]time.Duration, 0, len(s.Points))
	for _, p := range s.Points {
		if !p.Lost {
			delays = append(delays, p.Delay)
		}
	}
	slices.Sort(delays)
	return percentileCurve(delays)
}

// percentileCurve draws sorted delays over the nines.
func percentileCurve(sorted []time.Duration) plotter.XYs {
	n := float64(len(sorted))
	var curve plotter.XYs
	lastX := math.Inf(-1)
	for i, d := range sorted {
		x := nines(float64(i) / n)
		if x-lastX >= 0.005 || i == len(sorted)-1 {
			curve = append(curve, plotter.XY{X: x, Y: micros(d)})
			lastX = x
		}
	}
	return curve
}

func median(s Series) time.Duration {
	var delays []time.Duration
	for _, p := range s.Points {
		if !p.Lost {
			delays = append(delays, p.Delay)
		}
	}
	if len(delays) == 0 {
		return 0
	}
	slices.Sort(delays)
	return delays[len(delays)/2]
}

// thin keeps one point of each cell that the picture can show, so that a long run's SVG stays small.
func thin(s Series, low, high, end, lostAt float64) (points, lost plotter.XYs) {
	type cell struct{ x, y int }
	seen := map[cell]bool{}
	for _, p := range s.Points {
		t := p.At.Seconds()
		if t < 0 {
			continue
		}
		at := cell{x: int(t / end * timeCells), y: -1}
		if !p.Lost {
			at.y = int(math.Log(micros(p.Delay)/low) / math.Log(high/low) * delayCells)
		}
		if seen[at] {
			continue
		}
		seen[at] = true
		if p.Lost {
			lost = append(lost, plotter.XY{X: t, Y: lostAt})
		} else {
			points = append(points, plotter.XY{X: t, Y: micros(p.Delay)})
		}
	}
	return points, lost
}
