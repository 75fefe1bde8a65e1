package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// suite is an e2e.test program. It is told by its documented flags only.
type suite struct {
	program    string
	kubeconfig string
}

// test is one of its tests.
type test struct {
	Name string
	// Area is the first text that names it, without labels.
	Area   string
	Serial bool
	Slow   bool
}

// The part of ginkgo's JSON report that is read here.
type suiteReport struct {
	SpecReports []specReport
}

type specReport struct {
	ContainerHierarchyTexts    []string
	ContainerHierarchyLabels   [][]string
	LeafNodeType               string
	LeafNodeText               string
	LeafNodeLabels             []string
	State                      string
	RunTime                    time.Duration
	Failure                    failure
	CapturedGinkgoWriterOutput string
	CapturedStdOutErr          string
}

type failure struct {
	Message  string
	Location struct {
		FileName   string
		LineNumber int
	}
}

func (r *specReport) name() string {
	return strings.Join(append(slices.Clone(r.ContainerHierarchyTexts), r.LeafNodeText), " ")
}

func (r *specReport) labels() []string {
	return append(slices.Concat(r.ContainerHierarchyLabels...), r.LeafNodeLabels...)
}

// marks are what the framework adds to the texts of labelled tests.
var marks = regexp.MustCompile(`\s*\[(?:NodeConformance|Conformance|Serial|Slow|Disruptive|LinuxOnly|Alpha|Beta|Feature[^\]]*|Environment[^\]]*|MinimumKubeletVersion[^\]]*)\]`)

func (r *specReport) test() test {
	labels := r.labels()
	t := test{Name: r.name(), Serial: slices.Contains(labels, "Serial") || slices.Contains(labels, "Disruptive"), Slow: slices.Contains(labels, "Slow")}
	if len(r.ContainerHierarchyTexts) > 0 {
		t.Area = strings.TrimSpace(marks.ReplaceAllString(r.ContainerHierarchyTexts[0], ""))
	}
	return t
}

// list gives the tests of the suite, of a label filter if filtered.
func (s *suite) list(ctx context.Context, filter string, filtered bool) ([]test, error) {
	dir, err := os.MkdirTemp("", "skiff-conformance-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	args := []string{"--ginkgo.dry-run"}
	if filtered {
		args = append(args, "--ginkgo.label-filter="+filter)
	}
	reports, out, err := s.run(ctx, filepath.Join(dir, "report.json"), nil, args...)
	if err != nil {
		return nil, fmt.Errorf("list the tests of %s: %w\n%s", s.program, err, lastLines(out, 10))
	}
	var tests []test
	for i := range reports {
		if r := &reports[i]; r.LeafNodeType == "It" && r.State == "passed" {
			tests = append(tests, r.test())
		}
	}
	slices.SortFunc(tests, func(a, b test) int { return strings.Compare(a.Name, b.Name) })
	// Two tests of one name cannot be told apart, they are run as one.
	return slices.CompactFunc(tests, func(a, b test) bool { return a.Name == b.Name }), nil
}

// run runs the program. An error means that it gave no report; failed tests are
// in it. tee, when given, gets what the program prints.
func (s *suite) run(ctx context.Context, report string, tee *os.File, args ...string) (reports []specReport, output []byte, err error) {
	args = append([]string{"--ginkgo.json-report=" + report, "--ginkgo.no-color", "--ginkgo.silence-skips", "--ginkgo.succinct",
		"--provider=skeleton", "--disable-log-dump"}, args...)
	cmd := exec.CommandContext(ctx, s.program, args...)
	// A process that is interrupted deletes the namespaces that it made.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = time.Minute
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's ^C is for us
	cmd.Dir = filepath.Dir(report)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if tee != nil {
		cmd.Stdout, cmd.Stderr = tee, tee
	}
	runErr := cmd.Run()
	b, err := os.ReadFile(report)
	if err != nil {
		return nil, out.Bytes(), errors.Join(runErr, errors.New("it wrote no report"))
	}
	var suites []suiteReport
	if err := json.Unmarshal(b, &suites); err != nil {
		return nil, out.Bytes(), fmt.Errorf("its report: %w", err)
	}
	for _, s := range suites {
		reports = append(reports, s.SpecReports...)
	}
	return reports, out.Bytes(), nil
}

// images gives the references of the images that the tests use.
func (s *suite) images(ctx context.Context) ([]string, error) {
	out, err := exec.CommandContext(ctx, s.program, "--list-images").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list-images: %w", s.program, err)
	}
	return strings.Fields(string(out)), nil
}

func lastLines(b []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// choose applies the list of names and the expressions.
func choose(tests []test, o options) ([]test, error) {
	if o.tests != "" {
		b, err := os.ReadFile(o.tests)
		if err != nil {
			return nil, fmt.Errorf("-tests: %w", err)
		}
		wanted := map[string]bool{}
		for line := range strings.Lines(string(b)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				wanted[line] = true
			}
		}
		tests = slices.DeleteFunc(tests, func(t test) bool { return !wanted[t.Name] })
		for _, t := range tests {
			delete(wanted, t.Name)
		}
		for name := range wanted {
			return nil, fmt.Errorf("-tests: %s: the program has no test %q", o.tests, name)
		}
	}
	tests = slices.DeleteFunc(tests, func(t test) bool {
		return !o.focusRE.MatchString(t.Name) || o.skipRE != nil && o.skipRE.MatchString(t.Name)
	})
	if len(tests) == 0 {
		return nil, errors.New("no test is left by -filter, -focus, -skip and -tests")
	}
	return tests, nil
}
