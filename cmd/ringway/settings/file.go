package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v3"
)

// Problem is one mistake in a source.
type Problem struct{ Where, Text string }

// Problems are all mistakes of all sources, each on a line.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.Where + ": " + one.Text
	}
	return strings.Join(lines, "\n")
}

func (p *Problems) add(where, format string, args ...any) {
	*p = append(*p, Problem{where, fmt.Sprintf(format, args...)})
}

// entry is a key's value in the file, with its line.
type entry struct {
	value string
	line  int
}

// maxFile bounds what is read: the settings take a few hundred bytes.
const maxFile = 64 << 10

// readFile reads cli.yaml, where it exists.
func readFile(name string, uid int, problems *Problems) map[string]entry {
	if name == "" {
		return nil
	}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		problems.add(name, "%v", errors.Unwrap(err))
		return nil
	}
	defer f.Close()

	if err := checkOwner(f, uid); err != nil {
		problems.add(name, "%v", err)
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		problems.add(name, "%v", errors.Unwrap(err))
		return nil
	}
	if len(text) > maxFile {
		problems.add(name, "is larger than %d bytes", maxFile)
		return nil
	}
	return parse(name, text, problems)
}

// checkOwner refuses a file that another user could change: he would choose which socket root talks to, and
// which config root runs. The open file is checked, so it cannot be exchanged in between.
func checkOwner(f *os.File, uid int) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return errors.New("is not a regular file")
	}
	if owner := int(st.Sys().(*syscall.Stat_t).Uid); owner != 0 && owner != uid {
		return fmt.Errorf("belongs to user %d, but must belong to root or to you (chown root %s)", owner, f.Name())
	}
	if mode := st.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("mode %#o lets other users write it (chmod go-w %s)", mode, f.Name())
	}
	return nil
}

var atLine = regexp.MustCompile(`^yaml: line (\d+): (.*)$`)

// parse reads one flat mapping of strings. The node tree has the positions, which viper would lose.
func parse(name string, text []byte, problems *Problems) map[string]entry {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF): // empty, or comments alone
		return nil
	case err != nil:
		addSyntax(name, err, problems)
		return nil
	}
	if dec.Decode(new(yaml.Node)) != io.EOF {
		problems.add(name, "has more than one document")
		return nil
	}

	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		problems.add(at(name, root), "must be keys and values, not %s", describe(root))
		return nil
	}
	out := map[string]entry{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		parseEntry(name, root.Content[i], root.Content[i+1], out, problems)
	}
	return out
}

func parseEntry(name string, key, value *yaml.Node, out map[string]entry, problems *Problems) {
	s, ok := find(key.Value, setting.name)
	if key.Kind != yaml.ScalarNode || !ok {
		problems.add(at(name, key), "unknown key %q%s", key.Value, hint(key.Value, setting.name))
		return
	}
	if first, twice := out[s.key]; twice {
		problems.add(at(name, key), "%s: is given twice, first on line %d", s.key, first.line)
		return
	}
	if value.Kind != yaml.ScalarNode || value.ShortTag() != "!!str" {
		problems.add(at(name, value), "%s: must be a string, not %s", s.key, describe(value))
		return
	}
	if err := s.check(value.Value); err != nil {
		problems.add(at(name, value), "%s: %v", s.key, err)
		return
	}
	out[s.key] = entry{value.Value, value.Line}
}

func at(name string, n *yaml.Node) string { return name + ":" + strconv.Itoa(n.Line) }

// addSyntax puts the line that yaml names where the other problems have it.
func addSyntax(name string, err error, problems *Problems) {
	if m := atLine.FindStringSubmatch(err.Error()); m != nil {
		problems.add(name+":"+m[1], "%s", m[2])
		return
	}
	problems.add(name, "%s", strings.TrimPrefix(err.Error(), "yaml: "))
}

// describe names what a node is.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "keys and values"
	case yaml.AliasNode:
		return "an alias"
	}
	switch n.ShortTag() {
	case "!!int":
		return "the integer " + n.Value
	case "!!float":
		return "the number " + n.Value
	case "!!bool":
		return "the boolean " + n.Value
	case "!!null":
		return "nothing"
	case "!!str":
		return "text"
	}
	return "a value of type " + n.ShortTag()
}
