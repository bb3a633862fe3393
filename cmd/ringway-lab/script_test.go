package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// Scripts know this program by both its names: `ringway` is how ringway itself starts it.
func TestMain(m *testing.M) {
	main := func(name string) func() {
		return func() { os.Exit(run(name, os.Args[1:])) }
	}
	testscript.Main(m, map[string]func(){"ringway": main("ringway"), "ringway-lab": main("ringway-lab")})
}

// The command line as a user sees it. The scripts build no network.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		RequireUniqueNames: true,
		UpdateScripts:      os.Getenv("UPDATE") != "",
		Setup: func(e *testscript.Env) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			e.Setenv("PROGRAM", self)
			// `setpriv` to an unprivileged user has to reach the program and the files.
			programs := filepath.SplitList(e.Getenv("PATH"))[0] // where testscript links the commands above
			for _, dir := range []string{e.WorkDir, filepath.Dir(e.WorkDir), filepath.Dir(programs), programs} {
				if err := os.Chmod(dir, 0o755); err != nil {
					return err
				}
			}
			return nil
		},
		Condition: func(cond string) (bool, error) { return cond == "root" && os.Geteuid() == 0, nil },
	})
}
