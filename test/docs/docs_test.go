// Package docs compares the documents with the repository: what they link to and what they name has to exist. It has no
// code of its own.
package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const root = "../.."

// documents are the pages that describe the present state. CHANGELOG.md may name what is gone.
func documents(t *testing.T) map[string]string {
	t.Helper()
	pages := map[string]string{}

	for _, pattern := range []string{"README.md", "docs/*.md", "docs/*/*.md"} {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		require.NoError(t, err)

		for _, path := range paths {
			text, err := os.ReadFile(path)
			require.NoError(t, err)

			rel, err := filepath.Rel(root, path)
			require.NoError(t, err)
			pages[rel] = string(text)
		}
	}

	require.Greater(t, len(pages), 10, "too few documents found to hold anything")

	return pages
}

// sources maps each package folder to the text of its Go files, tests included.
func sources(t *testing.T) map[string]string {
	t.Helper()
	packages := map[string]string{}

	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}

		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}

		folder, err := filepath.Rel(root, filepath.Dir(path))
		packages[folder] += string(text)

		return err
	})
	require.NoError(t, err)
	require.Greater(t, len(packages), 20, "too few packages found to hold anything")

	return packages
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	code    = regexp.MustCompile("`[^`\n]+`")
)

// anchor is the fragment that GitHub gives a heading.
func anchor(title string) string {
	title = strings.ToLower(strings.TrimSpace(title))
	title = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(title, "")

	return strings.ReplaceAll(title, " ", "-")
}

func TestLinksLeadSomewhere(t *testing.T) {
	pages := documents(t)

	for name, text := range pages {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, fragment, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}

			file := name
			if target != "" {
				file = filepath.Join(filepath.Dir(name), target)
			}

			_, err := os.Stat(filepath.Join(root, file))
			if !assert.NoError(t, err, "%s links to %s", name, m[1]) || fragment == "" {
				continue
			}

			var anchors []string
			for _, h := range heading.FindAllStringSubmatch(pages[file], -1) {
				anchors = append(anchors, anchor(h[1]))
			}
			assert.Contains(t, anchors, fragment, "%s links to %s", name, m[1])
		}
	}
}

func TestEveryPageIsLinked(t *testing.T) {
	pages := documents(t)
	linked := map[string]bool{"README.md": true}

	for name, text := range pages {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, _, _ := strings.Cut(m[1], "#")
			linked[filepath.Join(filepath.Dir(name), target)] = true
		}
	}

	for name := range pages {
		assert.True(t, linked[name], "no page links to %s", name)
	}
}

var (
	testName  = regexp.MustCompile(`\b(?:Test|Benchmark|Fuzz)[A-Z]\w+`)
	goFile    = regexp.MustCompile(`\b[\w/.-]+\.go\b`)
	qualified = regexp.MustCompile(`\b([a-z]\w*)\.([A-Z]\w*)\b`)
)

func TestNamedTestsExist(t *testing.T) {
	var all strings.Builder
	for _, text := range sources(t) {
		all.WriteString(text)
	}
	everything := all.String()

	for name, text := range documents(t) {
		for _, test := range testName.FindAllString(text, -1) {
			assert.Contains(t, everything, "func "+test, "%s names %s, which no package has", name, test)
		}
	}
}

func TestNamedFilesExist(t *testing.T) {
	packages := sources(t)

	for name, text := range documents(t) {
		for _, span := range code.FindAllString(text, -1) {
			for _, file := range goFile.FindAllString(span, -1) {
				found := false
				for folder := range packages {
					_, err := os.Stat(filepath.Join(root, folder, file))
					found = found || err == nil
				}
				_, err := os.Stat(filepath.Join(root, file))
				assert.True(t, found || err == nil, "%s names %s, which does not exist", name, file)
			}
		}
	}
}

// A name such as `qos.Want` in a document has to be a word of that package's code.
func TestNamedIdentifiersExist(t *testing.T) {
	packages := sources(t)
	byBase := map[string]string{}
	for folder, text := range packages {
		byBase[filepath.Base(folder)] += text
	}

	word := func(text, name string) bool {
		return regexp.MustCompile(`\b` + regexp.QuoteMeta(name) + `\b`).MatchString(text)
	}

	for name, text := range documents(t) {
		for _, span := range code.FindAllString(text, -1) {
			for _, m := range qualified.FindAllStringSubmatch(span, -1) {
				text, isPackage := byBase[m[1]]
				if !isPackage || strings.Contains(span, "/") || isFile(m[0]) {
					continue
				}
				assert.True(t, word(text, m[2]), "%s names %s, which package %s does not have", name, m[0], m[1])
			}
		}
	}
}

func isFile(name string) bool {
	switch filepath.Ext(name) {
	case ".go", ".md", ".yaml", ".json", ".sock", ".service", ".html", ".png", ".svg", ".sh", ".key", ".pid":
		return true
	}

	return false
}
