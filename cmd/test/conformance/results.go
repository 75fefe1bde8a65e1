package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// result is how one test ended.
type result struct {
	Name    string  `json:"name"`
	Area    string  `json:"area"`
	State   string  `json:"state"` // passed, failed or skipped
	Seconds float64 `json:"seconds"`
	Cause   string  `json:"cause,omitempty"` // of a failure, or why the test did not want to run
	Log     string  `json:"log,omitempty"`   // of the process that ran it
}

const (
	passed  = "passed"
	failed  = "failed"
	skipped = "skipped"
)

// resultOf reads a report; log is the file of its process.
func resultOf(r *specReport, log string) result {
	t := r.test()
	out := result{Name: t.Name, Area: t.Area, State: failed, Seconds: r.RunTime.Seconds(), Log: log}
	switch r.State {
	case passed, skipped:
		out.State = r.State
	}
	if out.State != passed {
		out.Cause = cause(r)
	}
	return out
}

// cause is a failure in one line: what is said first, and where.
func cause(r *specReport) string {
	const most = 300
	var parts []string
	size := 0
	for line := range strings.Lines(r.Failure.Message) {
		if line = strings.Join(strings.Fields(line), " "); line != "" && size < most {
			parts = append(parts, line)
			size += len(line)
		}
	}
	text := strings.Join(parts, " | ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	if text == "" {
		text = r.State
	}
	if f := r.Failure.Location.FileName; f != "" && r.State != skipped {
		if i := strings.Index(f, "/test/e2e/"); i >= 0 {
			f = f[i+1:]
		}
		text += fmt.Sprintf(" (%s:%d)", f, r.Failure.Location.LineNumber)
	}
	return text
}

// header is the first line of the file: what the results are about.
type header struct {
	E2E   string    `json:"e2e"`
	Size  int64     `json:"e2eSize"`
	Began time.Time `json:"began"`
}

// results is the file of what has ended. A later line of a name replaces an
// earlier one.
type results struct {
	path string

	mu    sync.Mutex
	f     *os.File
	known map[string]result
	took  map[string]float64 // seconds in an earlier run
}

func openResults(o options, s *suite) (*results, error) {
	st, err := os.Stat(s.program)
	if err != nil {
		return nil, err
	}
	r := &results{path: filepath.Join(o.out, "results.jsonl"), known: map[string]result{}, took: map[string]float64{}}
	want := header{E2E: s.program, Size: st.Size(), Began: time.Now().UTC().Truncate(time.Second)}
	fresh := !o.resume && !o.failed && !o.report
	err = r.read(want)
	for name, t := range r.known {
		r.took[name] = t.Seconds
	}
	switch {
	case fresh: // an old file is good for the times, if it is good at all
		r.known = map[string]result{}
	case errors.Is(err, fs.ErrNotExist):
		fresh = true
	case err != nil:
		return nil, err
	}
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if fresh {
		flags |= os.O_TRUNC
	}
	if r.f, err = os.OpenFile(r.path, flags, 0o644); err != nil {
		return nil, err
	}
	if fresh {
		return r, r.line(want)
	}
	return r, nil
}

func (r *results) read(want header) error {
	f, err := os.Open(r.path)
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	in.Buffer(nil, 1<<20)
	var have header
	for n := 0; in.Scan(); n++ {
		var t result
		if n == 0 {
			err = json.Unmarshal(in.Bytes(), &have)
		} else if err = json.Unmarshal(in.Bytes(), &t); err == nil {
			r.known[t.Name] = t
		}
		if err != nil {
			return fmt.Errorf("%s: line %d: %w; run without -resume to begin anew", r.path, n+1, err)
		}
	}
	if have.Size != want.Size {
		return fmt.Errorf("%s holds the results of another program (%s): run without -resume to begin anew", r.path, have.E2E)
	}
	return in.Err()
}

func (r *results) line(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = r.f.Write(append(b, '\n'))
	return err
}

func (r *results) add(list ...result) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range list {
		r.known[t.Name] = t
		if err := r.line(t); err != nil {
			return err
		}
	}
	return nil
}

func (r *results) close() error { return r.f.Close() }

// without gives the tests that have no result, or none that counts.
func (r *results) without(tests []test, again bool) []test {
	return slices.DeleteFunc(slices.Clone(tests), func(t test) bool {
		have, ok := r.known[t.Name]
		return ok && !(again && have.State == failed)
	})
}

// of gives the results that there are, in the order of tests.
func (r *results) of(tests []test) (out []result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range tests {
		if have, ok := r.known[t.Name]; ok {
			out = append(out, have)
		}
	}
	return out
}
