package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/manualtest"
)

// The man page has every command and every flag, and no other.
func TestManualIsInStepWithTheCommands(t *testing.T) {
	page, err := os.ReadFile("../../docs/ringway.8")
	require.NoError(t, err)
	missing, unknown := manualtest.Compare(rootCommand(), string(page))
	assert.Empty(t, missing, "not in docs/ringway.8")
	assert.Empty(t, unknown, "only in docs/ringway.8")
}
