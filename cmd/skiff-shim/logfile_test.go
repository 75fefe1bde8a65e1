//go:build cgo

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLogFileLines(t *testing.T) {
	p := filepath.Join(t.TempDir(), "sub", "log")
	l, err := openLog(p)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs logLine
	long := strings.Repeat("x", maxLogLine)
	for _, piece := range []string{"a", "b\nc", "\n", "\n", long[:5], long, long[:maxLogLine-5], "\n", "rest"} {
		l.write("stdout", &out, []byte(piece))
		l.write("stderr", &errs, []byte("e\n"))
	}
	l.end("stdout", &out)
	l.end("stderr", &errs)
	l.close()
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(b)) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if rest != "stderr F e" {
			got = append(got, strings.Replace(rest, long, "LONG", 1))
		}
	}
	want := "stdout F ab|stdout F c|stdout F |stdout P LONG|stdout P LONG|stdout F |stdout P rest"
	if strings.Join(got, "|") != want {
		t.Errorf("%q\nwant %q", got, want)
	}
}

// A full disk loses output; the container must not notice, and the log must
// not glue lines together afterwards.
func TestLogFileFullDisk(t *testing.T) {
	l, err := openLog("/dev/full")
	if err != nil {
		t.Fatal(err)
	}
	var line logLine
	l.write("stdout", &line, []byte("lost\n"))
	p := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(p, []byte("half a li"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l.f, err = os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0); err != nil {
		t.Fatal(err)
	}
	l.torn = true // as after a short write
	l.write("stdout", &line, []byte("there\n"))
	l.close()
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(string(b), "\n"); len(lines) != 3 || lines[0] != "half a li" || !strings.HasSuffix(lines[1], " stdout F there") {
		t.Errorf("%q", b)
	}
	l.write("stdout", &line, []byte("after the end\n")) // nothing to write to any more
}
