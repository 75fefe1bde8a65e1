// Command conformance runs upstream's e2e tests against a cluster of skiff and
// prints, for each area, how many passed and why the others did not. The user
// brings the e2e.test program of a Kubernetes release, and agnhost's if its image
// shall be made here.
//
// The tests run in processes of a few tests each, several at a time, on one
// cluster; those marked Serial come last, one after the other. Each result is
// kept in a line of results.jsonl as soon as its process has ended, so that a run
// that was interrupted goes on with -resume.
//
// Limits: tests of cloud providers, CSI drivers and of nodes reached by SSH are
// skipped or fail, as on any cluster without them. Needs root for the cluster.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"
	"time"
)

// options of a run; see the flags.
type options struct {
	e2e, agnhost, images   string
	out                    string
	filter, focus, skip    string
	tests                  string
	shards, chunk          int
	limit                  time.Duration
	resume, failed         bool
	list, report           bool
	cluster                clusterOptions
	focusRE, skipRE        *regexp.Regexp
	binary, kubeconfigPath string
}

const defaultFilter = "(sig-node || sig-storage) && (Conformance || NodeConformance)"

// shardsOfCPU: tests mostly wait. Measured with 306 of them: a process takes 2 s of
// CPU to start, a test 2 s with all that the cluster does for it, and lasts 27 s.
// So eight for each processor keep it busy for less than a half.
const shardsOfCPU = 8

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("conformance", flag.ContinueOnError)
	f.StringVar(&o.e2e, "e2e", "", "the e2e.test program (required)")
	f.StringVar(&o.binary, "skiff", "bin/skiff", "the skiff to test")
	f.StringVar(&o.agnhost, "agnhost", "", "program of the agnhost images; default: agnhost beside e2e.test, if it is there")
	f.StringVar(&o.images, "images", "", "folder of further image archives (*.tar); they are taken before those that can be made here")
	f.StringVar(&o.out, "out", "bench/conformance", "folder for results, logs and the cluster")
	f.StringVar(&o.filter, "filter", defaultFilter, "which tests, by their labels (ginkgo's label filter)")
	f.StringVar(&o.focus, "focus", "", "of these only tests whose name matches this expression")
	f.StringVar(&o.skip, "skip", "", "leave out tests whose name matches this expression")
	f.StringVar(&o.tests, "tests", "", "file with the names of the tests to run, one a line; -filter does not count then")
	f.IntVar(&o.shards, "shards", shardsOfCPU*runtime.NumCPU(), "processes at a time, of some 120 MiB each")
	f.IntVar(&o.chunk, "chunk", 4, "tests for one process at most")
	f.DurationVar(&o.limit, "limit", 40*time.Minute, "for one process")
	f.BoolVar(&o.resume, "resume", false, "keep the results of the last run and run what has none")
	f.BoolVar(&o.failed, "failed", false, "like -resume, and run again what has failed")
	f.BoolVar(&o.list, "list", false, "only print the names of the tests")
	f.BoolVar(&o.report, "report", false, "only print the table of the results that there are")
	f.StringVar(&o.kubeconfigPath, "kubeconfig", "", "run against this cluster in place of one that is made; it needs the images itself")
	f.IntVar(&o.cluster.servers, "servers", 1, "servers of the cluster")
	f.IntVar(&o.cluster.agents, "agents", 1, "agents of the cluster")
	f.StringVar(&o.cluster.subnet, "subnet", "", "/24 range of the nodes; default: one of 10.188.0.0/16")
	f.BoolVar(&o.cluster.keep, "keep", false, "leave the cluster running at the end")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("%s: there are only flags", f.Arg(0))
	case o.e2e == "":
		return o, errors.New("-e2e: the path of an e2e.test program is needed (go test -c k8s.io/kubernetes/test/e2e, or a release's kubernetes-test archive)")
	case o.shards < 1 || o.chunk < 1:
		return o, errors.New("-shards and -chunk: want at least 1")
	case o.cluster.servers < 1 || o.cluster.agents < 0:
		return o, errors.New("-servers: want at least 1; -agents: want 0 or more")
	}
	if o.focusRE, err = regexp.Compile(o.focus); err != nil {
		return o, fmt.Errorf("-focus: %w", err)
	}
	if o.skip != "" {
		if o.skipRE, err = regexp.Compile(o.skip); err != nil {
			return o, fmt.Errorf("-skip: %w", err)
		}
	}
	if o.agnhost == "" {
		if beside := filepath.Join(filepath.Dir(o.e2e), "agnhost"); isProgram(beside) == nil {
			o.agnhost = beside
		}
	}
	for name, p := range map[string]*string{"-e2e": &o.e2e, "-agnhost": &o.agnhost} {
		if *p == "" {
			continue
		}
		if err := isProgram(*p); err != nil {
			return o, fmt.Errorf("%s: %w", name, err)
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return o, err
		}
	}
	for _, p := range []*string{&o.out, &o.images, &o.kubeconfigPath, &o.binary} {
		if *p == "" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return o, err
		}
	}
	return o, nil
}

func isProgram(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.IsDir() || st.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is no program", path)
	}
	return nil
}

func main() {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance: "+err.Error())
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	all, err := run(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance: "+err.Error())
	}
	if err != nil || !all {
		os.Exit(1)
	}
}

// run says whether every test that ran has passed.
func run(ctx context.Context, o options) (passed bool, err error) {
	s := &suite{program: o.e2e}
	tests, err := s.list(ctx, o.filter, o.tests == "")
	if err != nil {
		return false, err
	}
	if tests, err = choose(tests, o); err != nil {
		return false, err
	}
	if o.list {
		for _, t := range tests {
			fmt.Println(t.Name)
		}
		return true, nil
	}
	if err := os.MkdirAll(filepath.Join(o.out, "logs"), 0o755); err != nil {
		return false, err
	}
	results, err := openResults(o, s)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, results.close()) }()
	if o.report {
		return printTable(os.Stdout, results.of(tests), len(tests)), nil
	}
	left := results.without(tests, o.failed)
	fmt.Printf("%d tests, %d of them to run\n", len(tests), len(left))
	if len(left) > 0 {
		if err := runOnCluster(ctx, o, s, left, results); err != nil {
			return false, err
		}
	}
	passed = printTable(os.Stdout, results.of(tests), len(tests))
	fmt.Println("results:", results.path)
	return passed, ctx.Err()
}

func runOnCluster(ctx context.Context, o options, s *suite, tests []test, results *results) (err error) {
	s.kubeconfig = o.kubeconfigPath
	if s.kubeconfig == "" {
		c, err := startCluster(ctx, o, s)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.stop()) }()
		s.kubeconfig = c.kubeconfig
	}
	return runAll(ctx, o, s, tests, results)
}
