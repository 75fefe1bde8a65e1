package fleet

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"
)

// Sample is what the process holds at one time, after garbage collection.
type Sample struct {
	Goroutines int    `json:"goroutines"`
	Heap       uint64 `json:"heapBytes"`
	Files      int    `json:"files"` // open file descriptors
}

func (s Sample) String() string {
	return fmt.Sprintf("%d goroutines, %.0f MiB of heap, %d file descriptors", s.Goroutines, float64(s.Heap)/(1<<20), s.Files)
}

func sample() (Sample, error) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	files, err := os.ReadDir("/proc/self/fd")
	return Sample{Goroutines: runtime.NumGoroutine(), Heap: m.HeapAlloc, Files: len(files)}, err
}

// grown names what is more than it was, beyond what the time of day explains.
func (s Sample) grown(from Sample) (out []string) {
	if limit := from.Goroutines + from.Goroutines/20 + 50; s.Goroutines > limit {
		out = append(out, fmt.Sprintf("goroutines: %d, were %d", s.Goroutines, from.Goroutines))
	}
	if limit := from.Heap + from.Heap/4 + 32<<20; s.Heap > limit {
		out = append(out, fmt.Sprintf("heap: %d MiB, was %d MiB", s.Heap>>20, from.Heap>>20))
	}
	if limit := from.Files + from.Files/20 + 20; s.Files > limit {
		out = append(out, fmt.Sprintf("file descriptors: %d, were %d", s.Files, from.Files))
	}
	return out
}

// settled waits until the process shrinks no more, and returns the last sample.
func settled(limit time.Duration) (Sample, error) {
	last, err := sample()
	for end := time.Now().Add(limit); err == nil && time.Now().Before(end); {
		time.Sleep(2 * time.Second)
		var now Sample
		if now, err = sample(); err == nil && now.Goroutines >= last.Goroutines && now.Files >= last.Files && now.Heap > last.Heap-last.Heap/50 {
			return now, nil
		}
		last = now
	}
	return last, err
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // it has no other failure than a wrong argument
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func encodeJSON(v any) ([]byte, error)    { return json.Marshal(v) }
func decodeJSON(b []byte, into any) error { return json.Unmarshal(b, into) }
