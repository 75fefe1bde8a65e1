package fleet

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Sample is what the process holds at one time, after garbage collection.
type Sample struct {
	Goroutines int    `json:"goroutines"`
	Heap       uint64 `json:"heapBytes"`
	// Files are open file descriptors but for both ends of connections to the API,
	// which are counted apart: an agent has one to each server that it had to do
	// with, so their number says where leaders were.
	Files int `json:"files"`
	Conns int `json:"apiConnections"`
}

func (s Sample) String() string {
	return fmt.Sprintf("%d goroutines, %.0f MiB of heap, %d file descriptors and %d connections to the API", s.Goroutines, float64(s.Heap)/(1<<20), s.Files, s.Conns)
}

func sample() (s Sample, err error) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	s.Goroutines, s.Heap = runtime.NumGoroutine(), m.HeapAlloc
	api, err := apiSockets()
	if err != nil {
		return s, err
	}
	files, err := os.ReadDir("/proc/self/fd")
	ends := 0
	for _, f := range files {
		target, err := os.Readlink("/proc/self/fd/" + f.Name())
		if err != nil {
			continue // the one that reads the directory
		}
		if api[target] {
			ends++
		} else {
			s.Files++
		}
	}
	s.Conns = (ends + 1) / 2
	return s, err
}

// apiSockets are the connections with the API's port at one end, as their file
// descriptors name them.
func apiSockets() (map[string]bool, error) {
	out := map[string]bool{}
	port := fmt.Sprintf(":%04X", apiPort)
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(b)) {
			// sl local remote state queues timer retransmits uid timeout inode; 0A listens
			f := strings.Fields(line)
			if len(f) > 9 && f[3] != "0A" && (strings.HasSuffix(f[1], port) || strings.HasSuffix(f[2], port)) {
				out["socket:["+f[9]+"]"] = true
			}
		}
	}
	return out, nil
}

const perConn = 5 // goroutines of a connection, at both ends

// grown names what is more than it was. An agent may have a connection to each
// server, and one that is just being replaced. Slack is how much the heap may grow
// for reasons that have an end.
func (s Sample) grown(from Sample, conns int, slack uint64) (out []string) {
	if limit := from.Goroutines + from.Goroutines/20 + 50 + perConn*max(0, s.Conns-from.Conns); s.Goroutines > limit {
		out = append(out, fmt.Sprintf("goroutines: %d, were %d", s.Goroutines, from.Goroutines))
	}
	if limit := from.Heap + from.Heap/5 + slack; s.Heap > limit {
		out = append(out, fmt.Sprintf("heap: %d MiB, was %d MiB", s.Heap>>20, from.Heap>>20))
	}
	if limit := from.Files + from.Files/20 + 10; s.Files > limit {
		out = append(out, fmt.Sprintf("file descriptors: %d, were %d", s.Files, from.Files))
	}
	if limit := conns + conns/10 + 10; s.Conns > limit {
		out = append(out, fmt.Sprintf("connections to the API: %d, at most %d are of use", s.Conns, conns))
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
