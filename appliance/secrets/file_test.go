package secrets

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestKeyFilesAreNamedNotQuoted(t *testing.T) {
	const text = "c2VjcmV0IHRoYXQgaXMgdG9vIHNob3J0"
	path := filepath.Join(t.TempDir(), "private.key")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))

	_, err := ReadPrivate(Below(""), path)
	require.EqualError(t, err, path+" holds no key: 24 bytes (a key is 44 characters, 32 bytes)")
	_, err = ReadPreshared(Below(filepath.Dir(path)), "private.key")
	require.Error(t, err)
	assert.NotContains(t, err.Error(), text)
}
