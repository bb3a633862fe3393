package config

import (
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// KnownKeys lists every key that the decoder takes: wan, wan[].interface, control.group.
func KnownKeys() []string {
	var keys []string
	var walk func(t reflect.Type, path string)
	walk = func(t reflect.Type, path string) {
		for f := range t.Fields() {
			tag := f.Tag.Get("yaml")
			if tag == "" {
				continue
			}
			key := join(path, tag)
			keys = append(keys, key)
			switch {
			case strings.HasPrefix(f.Type.Name(), "list["):
				items, _ := f.Type.FieldByName("items")
				walk(items.Type.Elem(), key+"[]")
			case strings.HasPrefix(f.Type.Name(), "raw"):
				walk(f.Type, key)
			}
		}
	}
	walk(reflect.TypeFor[rawFile](), "")
	return keys
}

// WrittenKeys lists the keys that a text holds, in the form of KnownKeys.
func WrittenKeys(data []byte) (map[string]bool, error) {
	doc, _, err := parseTree(data)
	if err != nil {
		return nil, err
	}
	keys := map[string]bool{}
	var walk func(n *yaml.Node, path string)
	walk = func(n *yaml.Node, path string) {
		switch n.Kind {
		case yaml.SequenceNode:
			for _, e := range n.Content {
				walk(e, path+"[]")
			}
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				key := join(path, n.Content[i].Value)
				keys[key] = true
				walk(n.Content[i+1], key)
			}
		}
	}
	walk(doc.Content[0], "")
	return keys, nil
}
