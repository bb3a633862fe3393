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

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Curve is a distribution of delays with a name.
type Curve struct {
	Name   string
	Delays []time.Duration
}

// CurveKind is how Curves draws distributions.
type CurveKind string

// The kinds.
const (
	// delay over the share of packets, each nine as wide as the other (as HdrHistogram plots)
	ByPercentile CurveKind = "percentiles"
	Cumulative   CurveKind = "cdf" // share of packets over the delay
)

// Curves is a picture of several distributions in one panel.
type Curves struct {
	Kind   CurveKind
	Title  string
	Below  []string // under the title: what was run, and where
	Curves []Curve
}

// Colours that colour-blind readers can distinguish (Okabe, Ito); the first is Ringway's in every picture.
var curveColours = []color.RGBA{
	ringwayColour,
	baselineColour,
	{0x00, 0x9e, 0x73, 0xff},
	{0xcc, 0x79, 0xa7, 0xff},
	{0x56, 0xb4, 0xe9, 0xff},
	{0x33, 0x33, 0x33, 0xff},
	{0xe6, 0x9f, 0x00, 0xff},
}

const (
	curveWidth, curveHeight = 22 * vg.Centimeter, 12 * vg.Centimeter
	curveHead               = 1.9 * vg.Centimeter
	curveNames              = 4.6 * vg.Centimeter // beside the panel: inside they would hide a curve
)

// Save draws into a file whose name ends in .png or .svg.
func (c Curves) Save(path string) error { return save(path, c.Write) }

// Write draws as png or svg.
func (c Curves) Write(w io.Writer, format string) error {
	return render(w, format, curveWidth, curveHeight, c.draw)
}

// save writes a picture into a file, in the format that the file's name ends in.
func save(path string, write func(w io.Writer, format string) error) (err error) {
	format := strings.TrimPrefix(strings.ToLower(filepath.Ext(path)), ".")
	if format != "png" && format != "svg" {
		return fmt.Errorf("%s: %w", path, ErrPlotFormat)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	if err := write(w, format); err != nil {
		return fmt.Errorf("draw %s: %w", path, err)
	}
	return w.Flush()
}

// render draws on a canvas of that size, as png or svg.
func render(w io.Writer, format string, width, height vg.Length, picture func(draw.Canvas) error) error {
	if format == "png" {
		canvas := vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(plotDPI))
		if err := picture(draw.New(canvas)); err != nil {
			return err
		}
		_, err := vgimg.PngCanvas{Canvas: canvas}.WriteTo(w)
		return err
	}
	canvas := vgsvg.New(width, height)
	if err := picture(draw.New(canvas)); err != nil {
		return err
	}
	_, err := canvas.WriteTo(w)
	return err
}

func (c Curves) draw(canvas draw.Canvas) error {
	canvas.SetColor(color.White)
	canvas.Fill(canvas.Rectangle.Path())
	p, names := panel(), legendStyle()
	low, high, far := math.Inf(1), 0.0, 0.0
	lines := make([]plotter.XYs, len(c.Curves))
	for i, curve := range c.Curves {
		if len(curve.Delays) == 0 {
			continue
		}
		sorted := slices.Sorted(slices.Values(curve.Delays))
		low, high = min(low, micros(sorted[0])), max(high, micros(sorted[len(sorted)-1]))
		if lines[i] = cumulate(sorted); c.Kind == ByPercentile {
			lines[i] = percentileCurve(sorted)
		}
		far = max(far, lines[i][len(lines[i])-1].X)
	}
	if high == 0 {
		low, high, far = 10, 10_000, 3
	}
	if c.Kind == ByPercentile {
		p.X.Label.Text, p.Y.Label.Text = "share of packets that took no longer, %", "one-way delay"
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.TickerFunc(delayTicks)
		p.Y.Min, p.Y.Max = roundDown(low), roundUp(high)
		p.X.Tick.Marker = plot.TickerFunc(percentileTicks)
		p.X.Min, p.X.Max = 0, far
	} else {
		p.X.Label.Text, p.Y.Label.Text = "one-way delay", "share of packets that took no longer"
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.TickerFunc(delayTicks)
		p.X.Min, p.X.Max = roundDown(low), roundUp(high)
		p.Y.Min, p.Y.Max = 0, 1
		p.Y.Tick.Marker = plot.TickerFunc(shareTicks)
	}
	for i, points := range lines {
		if len(points) == 0 {
			continue
		}
		line, err := plotter.NewLine(points)
		if err != nil {
			return err
		}
		line.LineStyle = draw.LineStyle{Color: curveColours[i%len(curveColours)], Width: vg.Points(1.6)}
		p.Add(line)
		names.Add(" "+c.Curves[i].Name, line)
	}
	style := draw.TextStyle{Color: ink, Font: sans(13, true), Handler: plot.DefaultTextHandler, YAlign: draw.YTop}
	at := vg.Point{X: canvas.Min.X + vg.Points(12), Y: canvas.Max.Y - vg.Points(9)}
	canvas.FillText(style, at, c.Title)
	style.Font, style.Color = sans(8.5, false), grey
	at.Y -= vg.Points(19)
	for _, l := range c.Below {
		canvas.FillText(style, at, l)
		at.Y -= vg.Points(12)
	}
	below := draw.Crop(canvas, vg.Points(8), -curveNames, vg.Points(6), -curveHead)
	p.Draw(below)
	names.Draw(draw.Crop(canvas, curveWidth-curveNames+vg.Points(10), 0, 0, -curveHead))
	return nil
}

// cumulate is the CDF of sorted delays: its steps where the eye can still see them.
func cumulate(sorted []time.Duration) plotter.XYs {
	n := float64(len(sorted))
	points := plotter.XYs{{X: micros(sorted[0]), Y: 0}}
	for i, d := range sorted {
		share := float64(i+1) / n
		last := points[len(points)-1]
		if i == len(sorted)-1 || share-last.Y >= 0.002 || micros(d)/last.X >= 1.02 {
			points = append(points, plotter.XY{X: micros(d), Y: share})
		}
	}
	return points
}

func shareTicks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for i := range 6 {
		v := low + (high-low)*float64(i)/5
		ticks = append(ticks, plot.Tick{Value: v, Label: fmt.Sprintf("%.0f %%", 100*v)})
	}
	return ticks
}
