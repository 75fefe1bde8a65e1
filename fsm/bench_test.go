package fsm

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/hashicorp/raft"
)

// BenchmarkApply applies entries of 64 puts of 1 KiB.
func BenchmarkApply(b *testing.B) {
	value := string(bytes.Repeat([]byte("v"), 1024))
	var logs []*raft.Log
	for i := range 100 {
		var cmds []Command
		for j := range 64 {
			cmds = append(cmds, put(fmt.Sprintf("/registry/things/%03d/%03d", j, i), value, Any))
		}
		logs = append(logs, &raft.Log{Term: 1, Data: entry(b, cmds...)})
	}
	f := newFSM()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		l := *logs[i%len(logs)]
		l.Index = uint64(i + 1)
		f.Apply(&l)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/put")
}

// filled is a state of 100,000 objects of 1 KiB.
func filled(b *testing.B) *FSM {
	f := newFSM()
	value := string(bytes.Repeat([]byte("v"), 1024))
	for i := range 1000 {
		var cmds []Command
		for j := range 100 {
			cmds = append(cmds, put(fmt.Sprintf("/registry/things/ns%02d/%04d", j, i), value, 0))
		}
		apply(b, f, uint64(i+1), cmds...)
	}
	return f
}

func BenchmarkSnapshot(b *testing.B) {
	f := filled(b)
	for b.Loop() {
		if err := f.Capture().Write(b.Context(), io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRestore(b *testing.B) {
	s := snapshot(b, filled(b))
	b.SetBytes(int64(len(s)))
	for b.Loop() {
		if err := newFSM().Restore(io.NopCloser(bytes.NewReader(s))); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCheck is what the verification of a snapshot costs at a start.
func BenchmarkCheck(b *testing.B) {
	s := snapshot(b, filled(b))
	b.SetBytes(int64(len(s)))
	for b.Loop() {
		if err := Check(bytes.NewReader(s)); err != nil {
			b.Fatal(err)
		}
	}
}
