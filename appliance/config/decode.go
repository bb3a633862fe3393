package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode"

	"github.com/agnivade/levenshtein"
	"go.yaml.in/yaml/v3"

	"ringway/appliance/secrets"
)

// Bounds on lists, so that no file makes the checks slow. A hub's site list is the longest there is.
const (
	maxItems = 1024 // of a list of mappings
	maxWords = 128  // of a list of values
)

// checker walks one file and collects what is wrong with it.
type checker struct {
	options
	file     string // as the caller named it
	dir      string // absolute, of the file
	problems []Problem
	warnings []Problem
	secrets  secrets.Keys
	unread   []error // key files that this user may not read
}

func (c *checker) add(line int, key, format string, args ...any) {
	c.problems = append(
		c.problems,
		Problem{File: c.file, Line: line, Key: key, Message: fmt.Sprintf(format, args...)},
	)
}

func (c *checker) wrong(a at, format string, args ...any) { c.add(a.line, a.key, format, args...) }

func (c *checker) warn(a at, format string, args ...any) {
	c.warnings = append(
		c.warnings,
		Problem{File: c.file, Line: a.line, Key: a.key, Message: fmt.Sprintf(format, args...)},
	)
}

// decode fills raw from the tree. The tree is only descended as far as raw's types go, so that nesting
// cannot exhaust the stack.
func (c *checker) decode(n *yaml.Node, raw *rawFile) bool {
	return c.mapping(n, "", reflect.ValueOf(raw).Elem())
}

// mapping fills the struct out from n.
func (c *checker) mapping(n *yaml.Node, path string, out reflect.Value) bool {
	if !c.plainNode(n, path) {
		return false
	}
	if n.Kind != yaml.MappingNode {
		c.add(n.Line, path, "is %s (allowed: keys with values)", kind(n))
		return false
	}
	out.Addr().Interface().(placed).place(at{n.Line, path})
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			c.add(k.Line, path, "a key is %s (allowed: a word)", kind(k))
			continue
		}
		key := join(path, plain(k.Value))
		field := fieldOf(out, k.Value)
		if !field.IsValid() {
			c.add(k.Line, key, "unknown key (%s)", nearest(k.Value, keysOf(out.Type())))
			continue
		}
		if first, dup := seen[k.Value]; dup {
			c.add(k.Line, key, "given twice (first on line %d)", first)
			continue
		}
		seen[k.Value] = k.Line
		c.value(v, at{k.Line, key}, field)
	}
	return true
}

// placed is every raw mapping: it knows where it stands.
type placed interface{ place(at) }

func (a *at) place(p at) { *a = p }

// filler is a list of mappings.
type filler interface {
	fill(c *checker, v *yaml.Node, pos at)
}

// value fills one field.
func (c *checker) value(v *yaml.Node, pos at, field reflect.Value) {
	switch f := field.Addr().Interface().(type) {
	case *scalar:
		*f = c.scalar(v, pos)
	case *scalars:
		*f = c.scalars(v, pos)
	case filler:
		f.fill(c, v, pos)
	default:
		c.mapping(v, pos.key, field)
	}
}

func (l *list[T]) fill(c *checker, v *yaml.Node, pos at) {
	l.at, l.set = pos, true
	if !c.sequence(v, pos.key, maxItems) {
		l.bad = true
		return
	}
	for i, e := range v.Content {
		var item T
		if c.mapping(e, fmt.Sprintf("%s[%s]", pos.key, label(e, i)), reflect.ValueOf(&item).Elem()) {
			l.items = append(l.items, item)
		} else {
			l.bad = true
		}
	}
}

func (c *checker) scalar(v *yaml.Node, pos at) scalar {
	s := scalar{at: pos, set: true, text: v.Value}
	if v.Line > 0 {
		s.line = v.Line
	}
	switch {
	case !c.plainNode(v, pos.key):
		s.bad = true
	case v.Kind != yaml.ScalarNode:
		c.add(s.line, s.key, "is %s (allowed: one value)", kind(v))
		s.bad = true
	case isNull(v):
		c.add(s.line, s.key, "has no value (omit the key to use the default)")
		s.bad = true
	case strings.ContainsFunc(v.Value, unicode.IsControl):
		c.add(s.line, s.key, "contains a line break or a control character (allowed: printable text)")
		s.bad = true
	}
	return s
}

// scalars reads a list, or a single value as a list of one.
func (c *checker) scalars(v *yaml.Node, pos at) scalars {
	out := scalars{at: pos, set: true}
	if v.Kind == yaml.ScalarNode && !isNull(v) {
		s := c.scalar(v, pos)
		out.items, out.bad = []scalar{s}, s.bad
		return out
	}
	if v.Kind == yaml.MappingNode {
		c.wrong(pos, "is a mapping (allowed: one value or a list)")
		out.bad = true
		return out
	}
	if !c.sequence(v, pos.key, maxWords) {
		out.bad = true
		return out
	}
	for _, e := range v.Content {
		s := c.scalar(e, at{e.Line, pos.key})
		out.items = append(out.items, s)
		out.bad = out.bad || s.bad
	}
	return out
}

// sequence says whether v is a list of at most limit elements.
func (c *checker) sequence(v *yaml.Node, key string, limit int) bool {
	switch {
	case !c.plainNode(v, key):
		return false
	case isNull(v):
		c.add(v.Line, key, "has no value (write [] for an empty list, or omit the key)")
		return false
	case v.Kind != yaml.SequenceNode:
		c.add(v.Line, key, "is %s (allowed: a list)", kind(v))
		return false
	case len(v.Content) > limit:
		c.add(v.Line, key, "has %d elements (allowed: up to %d)", len(v.Content), limit)
		return false
	}
	return true
}

// plainNode refuses what makes a config hard to read for a person and easy to misuse: aliases, anchors, tags.
func (c *checker) plainNode(n *yaml.Node, key string) bool {
	switch {
	case n.Kind == yaml.AliasNode:
		c.add(n.Line, key, "is an alias (allowed: the value itself, written out)")
		return false
	case n.Anchor != "":
		c.add(n.Line, key, "has an anchor (allowed: values without & and *)")
		return false
	case n.Style&yaml.TaggedStyle != 0:
		c.add(n.Line, key, "has a tag (allowed: values without !)")
		return false
	}
	return true
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	if isNull(n) {
		return "empty"
	}
	return "a single value"
}

// label names a list's element in messages as a person would: by its name or interface, else by its number.
func label(n *yaml.Node, i int) string {
	name, vlan := "", ""
	if n.Kind == yaml.MappingNode {
		for j := 0; j+1 < len(n.Content); j += 2 {
			v := n.Content[j+1]
			if v.Kind != yaml.ScalarNode {
				continue
			}
			switch n.Content[j].Value {
			case "name", "interface":
				if name == "" || n.Content[j].Value == "name" {
					name = v.Value
				}
			case "vlan":
				vlan = "." + v.Value
			}
		}
	}
	if name == "" || len(name)+len(vlan) > 63 || strings.ContainsFunc(name+vlan, func(r rune) bool {
		return r > unicode.MaxASCII || !(unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("-_.", r))
	}) || keyLike.MatchString(name) {
		return strconv.Itoa(i)
	}
	return name + vlan
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// nearest names the known key that was probably meant, or all of them.
func nearest(word string, known []string) string {
	best, distance := "", 3 // more than two typing errors are another word
	if len(word) <= 40 {
		lower := strings.ReplaceAll(strings.ToLower(word), "-", "_")
		for _, k := range known {
			if d := levenshtein.ComputeDistance(lower, k); d < distance && 2*d < len(k) {
				best, distance = k, d
			}
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	return "allowed: " + strings.Join(known, ", ")
}

// keysOf lists the keys of a raw struct in its order.
func keysOf(t reflect.Type) []string {
	var keys []string
	for f := range t.Fields() {
		if k := f.Tag.Get("yaml"); k != "" {
			keys = append(keys, k)
		}
	}
	return keys
}

func fieldOf(out reflect.Value, key string) reflect.Value {
	for i := range out.NumField() {
		if t := out.Type().Field(i).Tag.Get("yaml"); t == key && t != "" {
			return out.Field(i)
		}
	}
	return reflect.Value{}
}
