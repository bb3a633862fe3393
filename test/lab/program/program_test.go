package program

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// build builds a program that prints its version.
func build(t *testing.T, flags ...string) string {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	require.NoError(
		t,
		os.WriteFile(source, []byte("package main\n\nfunc main() { println(); print(\"\") }\n"), 0o644),
	)
	file := filepath.Join(dir, "ringway")
	out, err := exec.Command("go", append(append([]string{"build", "-o", file}, flags...), source)...).
		CombinedOutput()
	require.NoError(t, err, "%s", out)
	return file
}

func TestBuildIDIsWhatTheGoToolPrints(t *testing.T) {
	file := build(t, "-ldflags", "-s -w")
	want, err := exec.Command("go", "tool", "buildid", file).Output()
	require.NoError(t, err)
	got, err := buildID(file)
	require.NoError(t, err)
	assert.Equal(t, strings.TrimSpace(string(want)), got)
	assert.NotEmpty(t, got)
}

func TestABuildWithoutIDIsIdentifiedByItsContents(t *testing.T) {
	file := build(t, "-ldflags", "-buildid=")
	got, err := buildID(file)
	require.NoError(t, err)
	sum, err := exec.Command("sha256sum", file).Output()
	require.NoError(t, err)
	assert.Equal(t, "sha256:"+strings.Fields(string(sum))[0], got)
}

func TestIdentifyAsksTheProgram(t *testing.T) {
	script := filepath.Join(t.TempDir(), "ringway")
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\necho 1.2.3\n"), 0o755))
	version, err := versionOf(t.Context(), script)
	require.NoError(t, err)
	assert.Equal(t, "1.2.3", version)
	_, err = Identify(t.Context(), script)
	assert.ErrorContains(t, err, "read the build ID of "+script)
	_, err = Identify(t.Context(), filepath.Join(t.TempDir(), "none"))
	assert.ErrorContains(t, err, "ask ")
}

// Beside this test there is no ringway.
func TestFindSaysWhereItLooked(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	_, err = Find("")
	assert.EqualError(t, err, "find the program ringway: "+filepath.Join(filepath.Dir(self), "ringway")+
		" is missing (install the package ringway, or run `make build`)")
}
