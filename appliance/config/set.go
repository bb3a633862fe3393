package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// SetValues changes values in the text of a config and leaves the rest of it, comments too, as it is. A key
// is a path as problems print it: site, wan[wan0].uplink, sites[munich].public_key; elements of lists are
// meant by name, by interface (voice0, lan0.20) or by number from 0. An empty value deletes the key, and `""`
// (with the quotes) sets an empty text; a value that starts with [ or { is a list or mapping. A last step of
// [+] appends an element. Elements of tunnels and classes, and the mapping control, are made where they are
// not there yet. The result is not checked: Parse does that.
func SetValues(data []byte, values map[string]string) ([]byte, error) {
	doc, second, err := parseTree(data)
	switch {
	case err != nil:
		return nil, fmt.Errorf("set values: %w", err)
	case second > 0 || doc == nil || len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode:
		return nil, errors.New("set values: the text is not one mapping")
	}
	// What elements are meant by changes last, so that every path speaks of the text as it was.
	paths := slices.SortedFunc(maps.Keys(values), func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
	})
	for _, path := range paths {
		if err := setValue(doc.Content[0], path, values[path]); err != nil {
			return nil, fmt.Errorf("set %s: %w", path, err)
		}
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(doc), enc.Close()); err != nil {
		return nil, fmt.Errorf("set values: %w", err)
	}
	return out.Bytes(), nil
}

func rank(path string) int {
	switch path[strings.LastIndexByte(path, '.')+1:] {
	case "name", "interface", "vlan":
		return 1
	}
	return 0
}

var stepForm = regexp.MustCompile(`^([a-z0-9_]+)(?:\[([^\]]+)\])?(?:\.|$)`)

func setValue(n *yaml.Node, path, value string) error {
	for rest := path; ; {
		m := stepForm.FindStringSubmatch(rest)
		if m == nil {
			return errors.New("not a path (allowed: like wan[wan0].uplink)")
		}
		rest = rest[len(m[0]):]
		key, element := m[1], m[2]
		switch {
		case rest == "" && element == "":
			return setKey(n, key, value)
		case rest == "":
			return setElement(n, key, element, value)
		case element == "":
			child := child(n, key)
			if child == nil {
				child = &yaml.Node{Kind: yaml.MappingNode}
				n.Content = append(n.Content, word(key), child)
			}
			if child.Kind != yaml.MappingNode {
				return fmt.Errorf("%s is %s", key, kind(child))
			}
			n = child
		default:
			next, err := descend(n, key, element)
			if err != nil {
				return err
			}
			n = next
		}
	}
}

// descend finds the element of the list key, or makes it where its name alone says what it is.
func descend(n *yaml.Node, key, element string) (*yaml.Node, error) {
	l := child(n, key)
	if l != nil && l.Kind == yaml.SequenceNode {
		if i := find(l, element); i >= 0 {
			return l.Content[i], nil
		}
	}
	if key != "tunnels" && key != "classes" {
		return nil, fmt.Errorf("there is no %s[%s]", key, element)
	}
	if l == nil {
		l = &yaml.Node{Kind: yaml.SequenceNode}
		n.Content = append(n.Content, word(key), l)
	}
	if l.Kind != yaml.SequenceNode {
		return nil, fmt.Errorf("%s is %s", key, kind(l))
	}
	e := &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{word("name"), word(element)}}
	l.Content = append(l.Content, e)
	return e, nil
}

func find(l *yaml.Node, element string) int {
	for i, e := range l.Content {
		if e.Kind == yaml.MappingNode && label(e, i) == element {
			return i
		}
	}
	if i, err := strconv.Atoi(element); err == nil && i >= 0 && i < len(l.Content) &&
		l.Content[i].Kind == yaml.MappingNode {
		return i
	}
	return -1
}

func child(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func setKey(n *yaml.Node, key, value string) error {
	at := -1
	for i := 0; i+1 < len(n.Content) && at < 0; i += 2 {
		if n.Content[i].Value == key {
			at = i
		}
	}
	if value == "" {
		if at >= 0 {
			n.Content = slices.Delete(n.Content, at, at+2)
		}
		return nil
	}
	v, err := valueNode(value)
	if err != nil {
		return err
	}
	if at < 0 {
		n.Content = append(n.Content, word(key), v)
		return nil
	}
	old := n.Content[at+1]
	v.LineComment, v.HeadComment, v.FootComment = old.LineComment, old.HeadComment, old.FootComment
	n.Content[at+1] = v
	return nil
}

// setElement deletes or appends an element.
func setElement(n *yaml.Node, key, element, value string) error {
	l := child(n, key)
	if l == nil || l.Kind != yaml.SequenceNode {
		return fmt.Errorf("there is no list %s", key)
	}
	if element == "+" {
		v, err := valueNode(value)
		if err != nil {
			return err
		}
		l.Content = append(l.Content, v)
		return nil
	}
	i := find(l, element)
	switch {
	case value != "":
		return errors.New("an element can be deleted or, by [+], appended")
	case i < 0:
		return fmt.Errorf("there is no %s[%s]", key, element)
	}
	l.Content = slices.Delete(l.Content, i, i+1)
	return nil
}

func word(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }

func valueNode(value string) (*yaml.Node, error) {
	if value == `""` {
		return &yaml.Node{Kind: yaml.ScalarNode, Style: yaml.DoubleQuotedStyle}, nil
	}
	if !strings.HasPrefix(value, "[") && !strings.HasPrefix(value, "{") {
		// Without a tag the encoder writes the text as it is, and quotes what would read as something else.
		return &yaml.Node{Kind: yaml.ScalarNode, Value: value}, nil
	}
	doc, _, err := parseTree([]byte(value))
	if err != nil {
		return nil, err
	}
	return doc.Content[0], nil
}
