package polltest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Only the goroutine of a test can end it (testing.T's FailNow). So nothing here waits with testify's Eventually, Never
// and their kin, and no goroutine that a test starts calls require or t.Fatal.
func TestNothingEndsATestFromAnotherGoroutine(t *testing.T) {
	const root = "../.."
	files := 0
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" {
			return err
		}
		files++
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, found := range findings(set, f) {
			assert.Fail(t, strings.TrimPrefix(found, root+"/"))
		}
		return nil
	}))
	require.Greater(t, files, 300, "too few files were found")
}

// The check finds what it is for, and nothing else.
func TestWhatEndsATestFromAnotherGoroutine(t *testing.T) {
	for body, want := range map[string]string{
		`require.Eventually(t, ok, limit, tick)`:                         "x:2: require.Eventually",
		`assert.EventuallyWithT(t, ok, limit, tick)`:                     "x:2: assert.EventuallyWithT",
		`assert.Never(t, ok, limit, tick)`:                               "x:2: assert.Never",
		"go func() {\nrequire.NoError(t, err)\n}()":                      "x:3: require.NoError",
		"tasks.Go(func() {\nt.Fatal(err)\n})":                            "x:3: t.Fatal",
		"go func() {\nfor {\nf := func() { r.t.FailNow() }; f()\n}\n}()": "x:4: r.t.FailNow",
		"go func() {\nassert.NoError(t, err)\nt.Error(err)\n}()":         "",
		"defer func() { require.NoError(t, err) }()":                     "",
		"polltest.Require(t, func() bool { t.Fatal(); return true })":    "",
		"go func() { t.Run(name, func(t *testing.T) { t.Fatal() }) }()":  "",
	} {
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, "x", "package x; func _() {\n"+body+"\n}", parser.SkipObjectResolution)
		require.NoError(t, err)
		found := strings.Join(findings(set, f), "\n")
		if want == "" {
			assert.Empty(t, found, body)
			continue
		}
		assert.True(t, strings.HasPrefix(found, want+": "), "%s: %q", body, found)
	}
}

// findings are the calls of a file that end a test from another goroutine, or have a condition do it.
func findings(set *token.FileSet, f *ast.File) (all []string) {
	say := func(c *ast.CallExpr, on, name, instead string) {
		at := set.Position(c.Pos())
		all = append(all, fmt.Sprintf("%s:%d: %s.%s: %s", at.Filename, at.Line, on, name, instead))
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if c, ok := n.(*ast.CallExpr); ok {
			on, name := method(c)
			if (on == "assert" || on == "require") &&
				(strings.HasPrefix(name, "Eventually") || strings.HasPrefix(name, "Never")) {
				say(c, on, name, "use polltest, which looks in the test's own goroutine")
			}
		}
		body := started(n)
		if body == nil {
			return true
		}
		ast.Inspect(body, func(n ast.Node) bool {
			c, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			on, name := method(c)
			if name == "Run" {
				return false // a test of its own, with a goroutine of its own
			}
			ends := []string{"FailNow", "Fatal", "Fatalf", "Skip", "Skipf", "SkipNow"}
			if on == "require" || (on == "t" || strings.HasSuffix(on, ".t")) && slices.Contains(ends, name) {
				say(c, on, name, "this goroutine is not the test's: use assert or t.Error, or hand the error over")
			}
			return true
		})
		return true
	})
	return all
}

// method is what a call is called on, as it is written, and the name.
func method(c *ast.CallExpr) (on, name string) {
	s, ok := c.Fun.(*ast.SelectorExpr)
	if !ok {
		return "", ""
	}
	switch x := s.X.(type) {
	case *ast.Ident:
		return x.Name, s.Sel.Name
	case *ast.SelectorExpr:
		if of, ok := x.X.(*ast.Ident); ok {
			return of.Name + "." + x.Sel.Name, s.Sel.Name
		}
	}
	return "", s.Sel.Name
}

// started is the function that a statement or call starts a goroutine with, if it is written there: go func() {…}() and
// x.Go(func() {…}).
func started(n ast.Node) *ast.FuncLit {
	var f ast.Expr
	switch x := n.(type) {
	case *ast.GoStmt:
		f = x.Call.Fun
	case *ast.CallExpr:
		if _, name := method(x); name == "Go" && len(x.Args) == 1 {
			f = x.Args[0]
		}
	}
	body, _ := f.(*ast.FuncLit)
	return body
}
