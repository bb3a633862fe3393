package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"go.yaml.in/yaml/v3"

	"ringway/appliance/secrets"
	"ringway/tunnel"
)

// maxFile bounds what is read. A hub with a thousand sites needs a third of it.
const maxFile = 1 << 20

// Option changes how a file is checked.
type Option func(*options)

type options struct {
	keys secrets.Files
	skip bool   // key files are not looked at
	name string // of the file in problems; empty: the path
}

// Named calls the file name in problems: for a text that was read elsewhere and is checked for the path it
// will have.
func Named(name string) Option {
	return func(o *options) { o.name = name }
}

// WithRoot looks for key files below dir, as if dir were /. Config.KeyFile stays as the file says it.
func WithRoot(dir string) Option {
	return func(o *options) { o.keys = secrets.Below(dir) }
}

// WithoutKeyFiles leaves key files alone: for a file that is written on one machine for another.
func WithoutKeyFiles() Option {
	return func(o *options) { o.skip = true }
}

// Load reads and checks the file at path. Its error is Problems.
func Load(path string, opts ...Option) (*Config, error) {
	data, err := Read(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, data, opts...)
}

// Read reads the file at path without checking what it says. Its error is Problems.
func Read(path string) ([]byte, error) {
	data, err := read(path)
	if err != nil {
		return nil, Problems{{File: path, Message: err.Error()}}
	}
	return data, nil
}

// read takes regular files only, so that a pipe or a device given by mistake cannot hang or fill the memory.
func read(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", reason(err))
	}
	if !fi.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", reason(err))
	}
	defer func() { _ = f.Close() }() // read only: nothing is lost
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", reason(err))
	}
	return data, nil
}

// reason drops the operation and path that os puts before an error: the problem names the file already.
func reason(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// Parse checks data as the content of the file at path: relative key files are looked for beside it.
// Its error is Problems.
func Parse(path string, data []byte, opts ...Option) (*Config, error) {
	_, cfg, err := parse(path, data, opts)
	return cfg, err
}

func parse(path string, data []byte, opts []Option) (*checker, *Config, error) {
	o := options{keys: secrets.Below("")}
	for _, opt := range opts {
		opt(&o)
	}
	abs, err := filepath.Abs(path)
	if err != nil { // only without a working directory
		abs = filepath.Clean("/" + path)
	}
	c := &checker{file: cmp.Or(o.name, path), dir: filepath.Dir(abs), options: o,
		secrets: secrets.Keys{Preshared: map[string]tunnel.PresharedKey{}}}

	doc := c.tree(data)
	if doc == nil {
		return c, nil, Problems(sorted(c.problems))
	}
	var raw rawFile
	if !c.decode(doc, &raw) {
		return c, nil, Problems(sorted(c.problems))
	}
	cfg := c.validate(&raw)
	if len(c.problems) > 0 {
		return c, nil, Problems(sorted(c.problems))
	}
	cfg.Path = abs
	cfg.Warnings = sorted(c.warnings)
	return c, cfg, nil
}

// tree parses data into YAML's node tree: it keeps positions and the words as they were written (0123 is not
// 83). nil means that problems say why there is no tree.
func (c *checker) tree(data []byte) *yaml.Node {
	if len(data) > maxFile {
		c.add(0, "", "is too large (allowed: up to 1 MiB)")
		return nil
	}
	doc, second, err := parseTree(data)
	switch {
	case err != nil:
		line, msg := yamlError(err)
		c.add(line, "", "%s", msg)
		return nil
	case second > 0:
		c.add(second, "", "a second document starts here (allowed: one document, no ---)")
		return nil
	case doc == nil || len(doc.Content) == 0 || isNull(doc.Content[0]):
		c.add(0, "", "is empty (a minimal config has site, wan, voice and sites; see minimal.yaml)")
		return nil
	}
	return doc.Content[0]
}

// parseTree resolves nothing: an alias stays one node, so that aliases of aliases cost no more than their text.
// second is the line of a second document, 0 for none.
func parseTree(b []byte) (doc *yaml.Node, second int, err error) {
	// The library turns its own failures into errors and lets every other panic through: a file must not
	// be able to take the daemon down at reload.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: cannot be parsed: %v", r)
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(b))
	doc = &yaml.Node{}
	if err := dec.Decode(doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, 0, nil
		}
		return nil, 0, err
	}
	var next yaml.Node
	switch err := dec.Decode(&next); {
	case errors.Is(err, io.EOF):
		return doc, 0, nil
	case err != nil:
		return nil, 0, err
	}
	return doc, max(next.Line, 1), nil
}

var yamlErrorForm = regexp.MustCompile(`(?s)^yaml: (?:line (\d+): )?(.*)$`)

// parserError is what the library's parser says, not its scanner: it counts lines from 0, and means the start
// of what it was reading.
var parserError = regexp.MustCompile(`^did not find expected ('-' indicator|key$|node content|',' or|<)`)

// yamlError splits the library's text into line and message. Its messages hold no value of the file but the
// name of an anchor.
func yamlError(err error) (int, string) {
	m := yamlErrorForm.FindStringSubmatch(err.Error())
	if m == nil {
		return 0, "not YAML: " + plain(err.Error())
	}
	line, _ := strconv.Atoi(m[1]) // empty: 0, the file as a whole
	if parserError.MatchString(m[2]) {
		return line + 1, "not YAML: " + plain(
			m[2],
		) + " here or below (is the indentation right, is every bracket closed?)"
	}
	return line, "not YAML: " + plain(m[2])
}
