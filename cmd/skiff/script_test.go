package main

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"skiff": main})
}

// TestScripts runs command lines as a user would type them.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Condition: func(cond string) (bool, error) {
			return cond == "root" && os.Geteuid() == 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"wrong": wrong, "makesnap": makeSnapshot, "cut": cutFile},
		Setup: func(e *testscript.Env) error {
			e.Setenv("SKIFF_DATA_DIR", e.WorkDir+"/data")
			return nil
		},
	})
}

// wrong runs a command line that must end as one that is used wrongly.
func wrong(ts *testscript.TestScript, _ bool, args []string) {
	var exit *exec.ExitError
	if err := ts.Exec(args[0], args[1:]...); !errors.As(err, &exit) || exit.ExitCode() != exitUsage {
		ts.Fatalf("%v ended with %v, not with exit code %d", args, err, exitUsage)
	}
}
