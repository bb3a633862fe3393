// Package words tests the text of the repository: banned words and the length of lines, in Go, documents, configs and
// scripts. It has no code of its own.
package words

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	root       = "../.."
	maxColumns = 120 // aim for 110; a tab counts as one
	maxLines   = 60  // of a function; longer ones are reported, not refused
)

var update = flag.Bool("update", false, "drop the folders that have become clean from exceptions.txt")

// file is a text file of the repository.
type file struct {
	path string // below the root
	text string
}

func (f file) folder() string { return filepath.Dir(f.path) }

// files reads the text files that people write: no testdata that a program wrote, no module sums, no pictures.
func files(t *testing.T) (all []file) {
	t.Helper()
	extensions := []string{".go", ".md", ".yaml", ".txtar", ".sh", ".8", ".xml", ".html", ".service", ".sysusers", ".list"}
	names := []string{"Makefile", ".ci/run"}
	skipped := []string{".git", "bin", "dist", "lab-out", "bench-out", "test/words"}

	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if slices.Contains(skipped, rel) {
				return filepath.SkipDir
			}
			return nil
		}
		if !slices.Contains(extensions, filepath.Ext(rel)) && !slices.Contains(names, rel) {
			return nil
		}
		text, err := os.ReadFile(path)
		all = append(all, file{rel, string(text)})
		return err
	})

	require.NoError(t, err)
	require.Greater(t, len(all), 300, "too few files were found")
	return all
}

// ban is one line of banned.txt.
type ban struct {
	pattern *regexp.Regexp
	instead string
	except  *regexp.Regexp // a match inside a match of this one is allowed; may be nil
}

func bans(t *testing.T) (all []ban) {
	t.Helper()
	for _, line := range dataLines(t, "banned.txt") {
		fields := strings.Split(line, " => ")
		require.GreaterOrEqual(t, len(fields), 2, "banned.txt: %q is not PATTERN => INSTEAD", line)

		instead, except, excepted := strings.Cut(fields[1], " unless ")
		b := ban{pattern: regexp.MustCompile("(?i)" + fields[0]), instead: instead}
		if excepted {
			b.except = regexp.MustCompile("(?i)" + except)
		}
		all = append(all, b)
	}
	return all
}

// dataLines reads the lines of a data file that are neither empty nor comments.
func dataLines(t *testing.T, name string) (lines []string) {
	t.Helper()
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines
}

// exceptions are the folders that a check does not hold for yet, by check.
type exceptions map[string][]string

func readExceptions(t *testing.T) exceptions {
	t.Helper()
	e := exceptions{}
	for _, line := range dataLines(t, "exceptions.txt") {
		check, folder, ok := strings.Cut(line, " ")
		require.True(t, ok, "exceptions.txt: %q is not CHECK FOLDER", line)
		e[check] = append(e[check], folder)
	}
	return e
}

// verdict fails for findings outside the excepted folders and logs how many are left inside them. With -update it
// rewrites exceptions.txt without the folders that are clean.
func verdict(t *testing.T, check string, findings map[string][]string) {
	t.Helper()
	e := readExceptions(t)
	for _, folder := range slices.Sorted(maps.Keys(findings)) {
		found := findings[folder]
		if slices.Contains(e[check], folder) {
			t.Logf("%s: %d in %s, which is excepted", check, len(found), folder)
			continue
		}
		assert.Fail(t, fmt.Sprintf("%s in %s", check, folder), "%s", strings.Join(found, "\n"))
	}
	if !*update {
		return
	}

	e[check] = slices.DeleteFunc(e[check], func(folder string) bool { return len(findings[folder]) == 0 })
	var text strings.Builder
	for _, check := range slices.Sorted(maps.Keys(e)) {
		slices.Sort(e[check])
		for _, folder := range slices.Compact(e[check]) {
			fmt.Fprintf(&text, "%s %s\n", check, folder)
		}
	}
	require.NoError(t, os.WriteFile("exceptions.txt", []byte(text.String()), 0o644))
}

// flat is a text without line ends, indentation and comment markers, so that a phrase is found across lines.
type flat struct {
	text   string
	starts []int // where each line starts in text
}

func flatten(text string) flat {
	var f flat
	var b strings.Builder
	for line := range strings.Lines(text) {
		f.starts = append(f.starts, b.Len())
		line = strings.TrimSpace(line)
		for _, marker := range []string{"//", "#", ">", "*"} {
			line = strings.TrimPrefix(line, marker)
		}
		b.WriteString(strings.TrimSpace(line) + " ")
	}
	f.text = b.String()
	return f
}

// line returns the line number of an offset.
func (f flat) line(offset int) int {
	return sort.Search(len(f.starts), func(i int) bool { return f.starts[i] > offset })
}

// find returns the places where b is violated.
func (b ban) find(f flat) (at [][]int) {
	allowed := [][]int{}
	if b.except != nil {
		allowed = b.except.FindAllStringIndex(f.text, -1)
	}
	for _, m := range b.pattern.FindAllStringIndex(f.text, -1) {
		inside := func(a []int) bool { return a[0] <= m[0] && m[1] <= a[1] }
		if !slices.ContainsFunc(allowed, inside) {
			at = append(at, m)
		}
	}
	return at
}

func TestBannedWords(t *testing.T) {
	all := bans(t)
	findings := map[string][]string{}
	for _, file := range files(t) {
		f := flatten(file.text)
		for _, b := range all {
			for _, m := range b.find(f) {
				finding := fmt.Sprintf("%s:%d: %q: %s", file.path, f.line(m[0]), f.text[m[0]:m[1]], b.instead)
				findings[file.folder()] = append(findings[file.folder()], finding)
			}
		}
	}
	verdict(t, "words", findings)
}

func TestABanHoldsAcrossLinesAndKnowsItsExceptions(t *testing.T) {
	f := flatten("package a\n\n// One phone gone\n// mad, and an Émigré.\nvar inFlightMost = 1\n")
	mad := ban{pattern: regexp.MustCompile(`(?i)gone mad`)}
	require.Len(t, mad.find(f), 1)
	assert.Equal(t, 3, f.line(mad.find(f)[0][0]))

	most := ban{pattern: regexp.MustCompile(`\b\w+Most\b`)}
	require.Len(t, most.find(f), 1)
	assert.Equal(t, 5, f.line(most.find(f)[0][0]))
	most.except = regexp.MustCompile(`inFlightMost`)
	assert.Empty(t, most.find(f))
}

// rawLines returns the lines that belong to raw strings of several lines in a Go file.
func rawLines(text string) map[int]bool {
	lines := map[int]bool{}
	set := token.NewFileSet()
	f := set.AddFile("", -1, len(text))
	var s scanner.Scanner
	s.Init(f, []byte(text), nil, 0)
	for {
		pos, kind, literal := s.Scan()
		if kind == token.EOF {
			return lines
		}
		if kind == token.STRING && literal[0] == '`' {
			first := f.Line(pos)
			for i := range strings.Count(literal, "\n") + 1 {
				lines[first+i] = true
			}
		}
	}
}

// tableRow matches a row of a composite literal in Go, or of a table in Markdown.
var tableRow = regexp.MustCompile(`^\s*(\{.*\},|[^ ]+:\s*\{.*\},|\|.*)\s*(//.*)?$`)

func TestLinesAreShort(t *testing.T) {
	findings := map[string][]string{}
	total, long := 0, 0
	for _, file := range files(t) {
		extension := filepath.Ext(file.path)
		if extension != ".go" && extension != ".md" && extension != ".sh" {
			continue
		}
		raw := map[int]bool{}
		if extension == ".go" {
			raw = rawLines(file.text)
		}

		number := 0
		for line := range strings.Lines(file.text) {
			number++
			total++
			columns := len([]rune(strings.TrimSuffix(line, "\n")))
			if columns > 110 {
				long++
			}
			if columns <= maxColumns || raw[number] || strings.Contains(line, "://") || tableRow.MatchString(line) {
				continue
			}
			finding := fmt.Sprintf("%s:%d: %d columns (at most %d, aim for 110)", file.path, number, columns, maxColumns)
			findings[file.folder()] = append(findings[file.folder()], finding)
		}
	}
	t.Logf("%d of %d lines are above 110 columns", long, total)
	verdict(t, "lines", findings)
}

// TestReportLongFunctions refuses nothing: `go test -v ./test/words` lists what is worth splitting.
func TestReportLongFunctions(t *testing.T) {
	type function struct {
		lines int
		name  string
	}
	var long []function
	for _, file := range files(t) {
		if filepath.Ext(file.path) != ".go" || strings.HasSuffix(file.path, "_test.go") {
			continue
		}
		set := token.NewFileSet()
		parsed, err := parser.ParseFile(set, file.path, file.text, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, d := range parsed.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			lines := set.Position(f.End()).Line - set.Position(f.Pos()).Line + 1
			if lines > maxLines {
				long = append(long, function{lines, file.path + " " + f.Name.Name})
			}
		}
	}
	slices.SortFunc(long, func(a, b function) int { return b.lines - a.lines })
	for _, f := range long {
		t.Logf("%d lines: %s", f.lines, f.name)
	}
}
