//go:build linux

package e2e

import (
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A plot shows curves over the time in minutes.
type plot struct {
	title  string
	curves []curve
	marks  []float64 // ticks at the upper edge
}

type curve struct {
	name string
	x, y []float64
}

var colours = []color.RGBA{
	{0x1f, 0x77, 0xb4, 0xff},
	{0xff, 0x7f, 0x0e, 0xff},
	{0x2c, 0xa0, 0x2c, 0xff},
	{0xd6, 0x27, 0x28, 0xff},
	{0x94, 0x67, 0xbd, 0xff},
	{0x7f, 0x7f, 0x7f, 0xff},
}

var (
	black = color.RGBA{0, 0, 0, 0xff}
	faint = color.RGBA{0xdd, 0xdd, 0xdd, 0xff}
)

// write makes a PNG file.
func (p *plot) write(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := png.Encode(f, p.draw()); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

// frame is where the curves are, in a picture of 1280 by 560.
var frame = image.Rect(110, 50, 1080, 510)

func (p *plot) draw() *canvas {
	c := &canvas{image.NewRGBA(image.Rect(0, 0, 1280, 560))}
	draw.Draw(c, c.Bounds(), image.White, image.Point{}, draw.Src)
	var right, top float64
	for _, k := range p.curves {
		for i := range k.x {
			right, top = max(right, k.x[i]), max(top, k.y[i])
		}
	}
	stepX, stepY := roundStep(right), roundStep(top)
	right, top = max(right, stepX/100), stepY*max(1, math.Ceil(top/stepY))
	place := func(x, y float64) (int, int) {
		return frame.Min.X + int(x/right*float64(frame.Dx())), frame.Max.Y - int(max(y, 0)/top*float64(frame.Dy()))
	}
	c.text(frame.Min.X, 16, p.title, black)
	for i := 0.0; i*stepY <= top*1.001; i++ {
		_, y := place(0, i*stepY)
		c.line(frame.Min.X, y, frame.Max.X, y, faint)
		label := axisLabel(i * stepY)
		c.text(frame.Min.X-10-widthOf(label), y-letterHeight, label, black)
	}
	for i := 0.0; i*stepX <= right; i++ {
		x, _ := place(i*stepX, 0)
		c.line(x, frame.Min.Y, x, frame.Max.Y, faint)
		label := axisLabel(i * stepX)
		c.text(x-widthOf(label)/2, frame.Max.Y+10, label, black)
	}
	c.text(frame.Max.X+20, frame.Max.Y+10, "MINUTES", black)
	for _, at := range p.marks {
		x, _ := place(at, 0)
		c.line(x, frame.Min.Y-8, x, frame.Min.Y, black)
	}
	c.line(frame.Min.X, frame.Min.Y, frame.Min.X, frame.Max.Y, black)
	c.line(frame.Min.X, frame.Max.Y, frame.Max.X, frame.Max.Y, black)
	for i, k := range p.curves {
		colour := colours[i%len(colours)]
		for j := range k.x {
			x, y := place(k.x[j], k.y[j])
			if j > 0 {
				fromX, fromY := place(k.x[j-1], k.y[j-1])
				c.line(fromX, fromY, x, y, colour)
			}
		}
		y := frame.Min.Y + 10 + 28*i
		for thick := range 5 {
			c.line(frame.Max.X+20, y+thick, frame.Max.X+40, y+thick, colour)
		}
		c.text(frame.Max.X+50, y-4, k.name, colour)
	}
	return c
}

// roundStep is a round number that makes about six steps to the top.
func roundStep(top float64) float64 {
	if top <= 0 {
		return 1
	}
	decade := math.Pow(10, math.Floor(math.Log10(top/6)))
	for _, n := range []float64{1, 2, 5} {
		if top/(n*decade) <= 8 {
			return n * decade
		}
	}
	return 10 * decade
}

func axisLabel(v float64) string { return strconv.FormatFloat(v, 'f', -1, 32) }

// A canvas can be written on.
type canvas struct{ *image.RGBA }

func (c *canvas) line(x0, y0, x1, y1 int, colour color.RGBA) {
	steps := max(x1-x0, x0-x1, y1-y0, y0-y1, 1)
	for i := range steps + 1 {
		c.SetRGBA(x0+(x1-x0)*i/steps, y0+(y1-y0)*i/steps, colour)
	}
}

// Letters are drawn with dots of 2 by 2.
const (
	letterWidth  = 2 * 6
	letterHeight = 7
)

func widthOf(text string) int { return letterWidth * len(text) }

func (c *canvas) text(x, y int, text string, colour color.RGBA) {
	for _, r := range strings.ToUpper(text) {
		for _, dot := range alphabet[r] {
			draw.Draw(c, image.Rect(0, 0, 2, 2).Add(dot.Mul(2)).Add(image.Pt(x, y)), image.NewUniform(colour), image.Point{}, draw.Src)
		}
		x += letterWidth
	}
}

// alphabet holds the dots of each letter.
var alphabet = func() map[rune][]image.Point {
	dots := make(map[rune][]image.Point)
	lines := strings.Split(strings.Trim(letters, "\n"), "\n")
	for top := 0; top < len(lines); top += 1 + letterHeight {
		for left := 0; left < len(lines[top]); left += 6 {
			letter := rune(lines[top][left])
			for y := range letterHeight {
				for x, line := 0, lines[top+1+y]; x < 5 && left+x < len(line); x++ {
					if line[left+x] == '#' {
						dots[letter] = append(dots[letter], image.Pt(x, y))
					}
				}
			}
		}
	}
	return dots
}()

// letters are what a plot is labelled with: a line of names, and below each the letter.
const letters = `
0     1     2     3     4     5     6     7     8     9     A     B     C     D
 ###    #    ###  #####    #  #####   ##  #####  ###   ###   ###  ####   ###  ###
#   #  ##   #   #    #    ##  #      #        # #   # #   # #   # #   # #   # #  #
#  ##   #       #   #    # #  ####  #        #  #   # #   # #   # #   # #     #   #
# # #   #      #     #  #  #      # ####    #    ###   #### #   # ####  #     #   #
##  #   #     #       # #####     # #   #  #    #   #     # ##### #   # #     #   #
#   #   #    #    #   #    #  #   # #   #  #    #   #    #  #   # #   # #   # #  #
 ###   ###  #####  ###     #   ###   ###   #     ###   ##   #   # ####   ###  ###
E     F     G     H     I     J     K     L     M     N     O     P     Q     R
##### #####  ###  #   #  ###    ### #   # #     #   # #   #  ###  ####   ###  ####
#     #     #   # #   #   #      #  #  #  #     ## ## #   # #   # #   # #   # #   #
#     #     #     #   #   #      #  # #   #     # # # ##  # #   # #   # #   # #   #
####  ####  # ### #####   #      #  ##    #     # # # # # # #   # ####  #   # ####
#     #     #   # #   #   #      #  # #   #     #   # #  ## #   # #     # # # # #
#     #     #   # #   #   #   #  #  #  #  #     #   # #   # #   # #     #  #  #  #
##### #      #### #   #  ###   ##   #   # ##### #   # #   #  ###  #      ## # #   #
S     T     U     V     W     X     Y     Z     .     ,     /     -     %
 #### ##### #   # #   # #   # #   # #   # #####                         ##
#       #   #   # #   # #   # #   # #   #     #                 #       ##  #
#       #   #   # #   # #   #  # #  #   #    #                 #           #
 ###    #   #   # #   # # # #   #    # #    #                 #   #####   #
    #   #   #   # #   # # # #  # #    #    #           ##    #           #
    #   #   #   #  # #  # # # #   #   #   #      ##     #   #           #  ##
####    #    ###    #    # #  #   #   #   #####  ##    #                   ##
`

// TestPlot draws a curve and finds it where it must be.
func TestPlot(t *testing.T) {
	t.Parallel()
	for _, letter := range "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,/-%" {
		if n := len(alphabet[letter]); n < 3 || n > 25 {
			t.Errorf("the letter %c has %d dots", letter, n)
		}
	}
	p := plot{title: "RSS, MiB", marks: []float64{3}, curves: []curve{{name: "one", x: []float64{0, 5, 10}, y: []float64{4, 4, 8}}}}
	name := filepath.Join(t.TempDir(), "plot.png")
	if err := p.write(name); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	picture, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	middle := frame.Max.Y - frame.Dy()/2
	for _, at := range []image.Point{{frame.Min.X + frame.Dx()/4, middle}, {frame.Min.X + frame.Dx()*3/4, middle - frame.Dy()/4}, {frame.Max.X, frame.Min.Y}} {
		found := false
		for y := at.Y - 1; y <= at.Y+1; y++ {
			found = found || color.RGBAModel.Convert(picture.At(at.X, y)) == colours[0]
		}
		if !found {
			t.Errorf("the curve is not at %v", at)
		}
	}
}
