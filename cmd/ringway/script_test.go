package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ringway": func() {
		settingsFile = os.Getenv("SETTINGS_FILE")
		os.Exit(run(os.Args[1:]))
	}})
}

// The command line as a user sees it. Each script in testdata/script is one session; `ringway` there is this
// program, $CONFIGS the shipped config files. The scripts touch no network but those that they unshare.
func TestScripts(t *testing.T) {
	configs, err := filepath.Abs("../../configs")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		RequireUniqueNames: true,
		UpdateScripts:      os.Getenv("UPDATE") != "",
		Setup: func(e *testscript.Env) error {
			e.Setenv("CONFIGS", configs)
			e.Setenv("SETTINGS_FILE", filepath.Join(e.WorkDir, "cli.yaml")) // in place of settings.File
			if e.Getenv("GOCOVERDIR") != "" {                               // go test -cover: other users run the program, too
				covered := filepath.Join(e.WorkDir, ".cover")
				if err := os.Mkdir(covered, 0o777); err != nil {
					return err
				}
				if err := os.Chmod(covered, 0o777); err != nil {
					return err
				}
				e.Setenv("GOCOVERDIR", covered)
			}
			program, err := os.Executable()
			if err != nil {
				return err
			}
			e.Setenv("PROGRAM", program)
			// `setpriv` to a user without rights has to get at the program and at the files.
			for _, dir := range []string{e.WorkDir, filepath.Dir(e.WorkDir), filepath.Dir(programs(e)), programs(e)} {
				if err := os.Chmod(dir, 0o755); err != nil {
					return err
				}
			}
			return nil
		},
		Condition: func(cond string) (bool, error) { return cond == "root" && os.Geteuid() == 0, nil },
	})
}

// programs is the folder in which testscript shows this program as ringway: the first of PATH.
func programs(e *testscript.Env) string { return filepath.SplitList(e.Getenv("PATH"))[0] }
