package stamp

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Reasons lists every constant of its type: one that is forgotten there would have no counter before it
// occurs, and none in a graph.
func TestReasonsAreAll(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "sessions.go", nil, 0)
	require.NoError(t, err)
	var all []Reason
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := v.Type.(*ast.Ident); ok && typ.Name == "Reason" {
			text, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			require.NoError(t, err)
			all = append(all, Reason(text))
		}
		return true
	})
	require.GreaterOrEqual(t, len(all), 9)
	assert.ElementsMatch(t, all, Reasons)
}
