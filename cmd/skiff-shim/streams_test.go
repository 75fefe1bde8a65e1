//go:build cgo

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What a container has written is logged, though the log is slow and a process
// that left the container holds its streams open.
func TestFinishCopiesWhatIsThere(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	path := filepath.Join(t.TempDir(), "log")
	log, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	s := &streams{logFile: log, outputs: []*os.File{r}}
	const lines = 6000 // more than is read at a time, less than a pipe holds
	log.mu.Lock()      // a disk that takes its time
	s.copyOutput()
	if _, err := w.WriteString(strings.Repeat("123456789\n", lines)); err != nil {
		t.Fatal(err)
	}
	go func() {
		<-time.After(100 * time.Millisecond)
		log.mu.Unlock()
	}()
	s.finish(10 * time.Millisecond)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(b, []byte(" stdout F 123456789\n")); n != lines {
		t.Errorf("%d of %d lines are logged", n, lines)
	}
}
