package message

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// torture are RFC 4475's messages, byte for byte, by the names that the RFC gives them, and one of sipgo's
// (test).
func torture(t testing.TB) map[string][]byte {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/emiago/sipgo").Output()
	require.NoError(t, err)
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "sip/testdata/torture/*/*.dat"))
	require.NoError(t, err)
	all := map[string][]byte{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		all[strings.TrimSuffix(filepath.Base(f), ".dat")] = b
	}
	require.Len(t, all, 50)
	return all
}

// Every one of RFC 4475's valid messages is read, and so are those whose fault is of no interest to us.
func TestTortureMessages(t *testing.T) {
	odd := map[string]Reason{
		"baddn":      HeadersUnended, // the file lacks the empty line
		"badvers":    OtherVersion,
		"bigcode":    BadStartLine,
		"clerr":      BodyCut,
		"insuf":      MissingHeader,
		"lwsruri":    LooseStartLine,
		"lwsstart":   LooseStartLine,
		"mcl01":      RepeatedContentLength,
		"mismatch01": BadCSeq,
		"mismatch02": BadCSeq,
		"multi01":    RepeatedCSeq,
		"ncl":        BadContentLength,
		"quotbal":    BadAddress,
		"scalar02":   BadCSeq,
		"scalarlg":   BadCSeq,
		"test":       BadStartLine,
		"trws":       LooseStartLine,
	}
	for name, b := range torture(t) {
		var m Message
		assert.Equal(t, odd[name].String(), m.Scan(b).String(), name)
	}
}
