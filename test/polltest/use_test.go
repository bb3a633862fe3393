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
// and their kin, and no goroutine that a test starts calls require or t.Fatal, nor a function of its package that does.
func TestNothingEndsATestFromAnotherGoroutine(t *testing.T) {
	const root = "../.."
	set, folders, files := token.NewFileSet(), map[string][]*ast.File{}, 0
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" || filepath.Base(path) == "polltest_test.go" {
			return err
		}
		files++
		f, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		folders[filepath.Dir(path)] = append(folders[filepath.Dir(path)], f)
		return err
	}))
	require.Greater(t, files, 300, "too few files were found")
	for _, folder := range folders {
		for _, found := range findings(set, folder) {
			assert.Fail(t, strings.TrimPrefix(found, root+"/"))
		}
	}
}

// The check finds what it is for, and nothing else.
func TestWhatEndsATestFromAnotherGoroutine(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{`require.Eventually(t, ok, limit, tick)`, "x:2: require.Eventually"},
		{`assert.EventuallyWithT(t, ok, limit, tick)`, "x:2: assert.EventuallyWithT"},
		{`assert.Never(t, ok, limit, tick)`, "x:2: assert.Never"},
		{"go func() {\nrequire.NoError(t, err)\n}()", "x:3: require.NoError"},
		{"tasks.Go(func() {\nt.Fatal(err)\n})", "x:3: t.Fatal"},
		{"go func() {\nfor {\nf := func() { r.t.FailNow() }; f()\n}\n}()", "x:4: r.t.FailNow"},
		{"go func() {\nassert.NoError(t, err)\nt.Error(err)\n}()", ""},
		{"defer func() { require.NoError(t, err) }()", ""},
		{"polltest.Require(t, func() bool { t.Fatal(); return true })", ""},
		{"go func() {\nhelp(t)\n}()\n}\nfunc help(t *testing.T) { other() }\nfunc other() { require.True(t, ok)", "x:3: help"},
		{"go func() {\nr.help()\n}()\n}\nfunc (r *rig) help() { r.t.FailNow()", "x:3: r.help"},
		{"go func() {\nr.help()\n}()\n}\nfunc help() { t.FailNow()", ""},
		{"go func() {\nhelp()\n}()\n}\nfunc help() { go func() { run(t) }()", ""},
		{"go func() { t.Run(name, func(t *testing.T) { t.Fatal() }) }()", ""},
	} {
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, "x", "package x; func _() {\n"+c.body+"\n}", parser.SkipObjectResolution)
		require.NoError(t, err)
		found := strings.Join(findings(set, []*ast.File{f}), "\n")
		if c.want == "" {
			assert.Empty(t, found, c.body)
			continue
		}
		assert.True(t, strings.HasPrefix(found, c.want+": "), "%s: %q", c.body, found)
	}
}

// findings are the calls of a folder's files that end a test from another goroutine, or have a condition do it.
func findings(set *token.FileSet, files []*ast.File) (all []string) {
	say := func(c *ast.CallExpr, instead string) {
		at := set.Position(c.Pos())
		on, name := method(c)
		all = append(all, fmt.Sprintf("%s:%d: %s: %s", at.Filename, at.Line, strings.TrimPrefix(on+"."+name, "."), instead))
	}
	enders := enders(files)
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			if c, ok := n.(*ast.CallExpr); ok {
				on, name := method(c)
				if (on == "assert" || on == "require") &&
					(strings.HasPrefix(name, "Eventually") || strings.HasPrefix(name, "Never")) {
					say(c, "use polltest, which looks in the test's own goroutine")
				}
			}
			if body := started(n); body != nil {
				for _, c := range ending(body, enders) {
					say(c, "this goroutine is not the test's: use assert or t.Error, or hand the error over")
				}
			}
			return true
		})
	}
	return all
}

// ending are the calls below a node that end a test: by their name, or by that of a function of the folder that does.
func ending(node ast.Node, enders map[string]bool) (all []*ast.CallExpr) {
	ast.Inspect(node, func(n ast.Node) bool {
		if body := started(n); body != nil && n != node {
			return false // another goroutine, which is looked at by itself
		}
		c, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		on, name := method(c)
		switch {
		case name == "Run":
			return false // a test of its own, with a goroutine of its own
		case on == "cmd":
			return true // os/exec's
		}
		ends := []string{"FailNow", "Fatal", "Fatalf", "Skip", "Skipf", "SkipNow"}
		isTest := on == "t" || on == "tb" || on == "b" || strings.HasSuffix(on, ".t")
		if on == "require" || isTest && slices.Contains(ends, name) || enders[called(c)] {
			all = append(all, c)
		}
		return true
	})
	return all
}

// enders are the functions of a folder that end a test, also by calling another of them: by their names, those of
// methods with a dot before. Of a method only the name is known where it is called, so it has to be the only one.
func enders(files []*ast.File) map[string]bool {
	declared, names := map[string]int{}, map[string]bool{}
	each := func(f func(name string, body *ast.BlockStmt)) {
		for _, file := range files {
			for _, d := range file.Decls {
				if x, ok := d.(*ast.FuncDecl); ok && x.Body != nil {
					name := x.Name.Name
					if x.Recv != nil {
						name = "." + name
					}
					f(name, x.Body)
				}
			}
		}
	}
	each(func(name string, _ *ast.BlockStmt) { declared[name]++ })
	for more := true; more; {
		more = false
		each(func(name string, body *ast.BlockStmt) {
			if declared[name] == 1 && !names[name] && len(ending(body, names)) > 0 {
				names[name], more = true, true
			}
		})
	}
	return names
}

// method is what a call is called on, as it is written, and the name.
func method(c *ast.CallExpr) (on, name string) {
	if f, ok := c.Fun.(*ast.Ident); ok {
		return "", f.Name
	}
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

// called is the name of what a call calls, with a dot before that of a method.
func called(c *ast.CallExpr) string {
	_, name := method(c)
	if _, plain := c.Fun.(*ast.Ident); plain {
		return name
	}
	return "." + name
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
