package consensus

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/fsm"
)

// killDirEnv makes the test binary a server on that data dir, under load.
const killDirEnv = "SKIFF_CONSENSUS_KILL_DIR"

func TestMain(m *testing.M) {
	if os.Getenv(killDirEnv) == "" {
		// They wait for each other's timeouts and need little of a processor.
		if err := flag.Set("test.parallel", "4"); err != nil {
			panic(err)
		}
		os.Exit(m.Run())
	}
	// The testing package is needed for the helpers only: run one test as main.
	os.Args = []string{os.Args[0], "-test.run=^TestKillChild$", "-test.timeout=5m"}
	os.Exit(m.Run())
}

const killWriters = 16

// TestKillChild is the process that is killed. It prints what it finds when it
// starts, and every write once it was acknowledged:
//
//	state REVISION
//	found KEY COUNTER MODREVISION
//	ready
//	acked KEY COUNTER REVISION
func TestKillChild(t *testing.T) {
	dir := os.Getenv(killDirEnv)
	if dir == "" {
		return // it is the body of TestKill's child process, and nothing by itself
	}
	signal.Ignore(syscall.SIGPIPE)
	l := listen(t, "127.0.0.1:0")
	m := start(t, Config{
		NodeID: "a", DataDir: dir, Listener: l, SnapshotEntries: 300,
		Bootstrap: []Server{{ID: "a", Addr: l.Addr().String()}},
	})
	m.awaitReady(t)
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		if _, err := fmt.Fprintf(os.Stdout, format+"\n", args...); err != nil {
			os.Exit(3) // the parent is gone
		}
	}
	v := m.config.FSM.Store().View()
	say("state %d", v.Revision())
	for w := range killWriters {
		if kv, ok := v.Get(fmt.Sprintf("/w%d", w)); ok {
			say("found %s %s %d", kv.Key, counterOf(kv.Value), kv.ModRevision)
		}
	}
	say("ready")
	var wg sync.WaitGroup
	for w := range killWriters {
		wg.Go(func() {
			key := fmt.Sprintf("/w%d", w)
			i, rev := 0, int64(0)
			if kv, ok := v.Get(key); ok {
				fmt.Sscan(counterOf(kv.Value), &i)
				rev = kv.ModRevision
			}
			for {
				i++
				value := fmt.Sprintf("%d %s", i, strings.Repeat("x", 500))
				r, err := m.Propose(context.Background(), fsm.One(fsm.Op{Type: fsm.Put, Key: key, Value: []byte(value), Expect: rev}))
				if err != nil || r.Err != nil {
					say("failed %s %v %v", key, err, r.Err)
					return
				}
				rev = r.Revision
				say("acked %s %d %d", key, i, rev)
			}
		})
	}
	wg.Wait()
}

func counterOf(value []byte) string {
	c, _, _ := strings.Cut(string(value), " ")
	return c
}

// TestKill kills a server under load again and again, at any moment, and checks
// each time that it still has every write it acknowledged and that its revision
// has not gone back. SKIFF_KILL_ROUNDS sets how often; the long form is 100.
func TestKill(t *testing.T) {
	rounds := 5
	if s := os.Getenv("SKIFF_KILL_ROUNDS"); s != "" {
		if _, err := fmt.Sscan(s, &rounds); err != nil {
			t.Fatalf("SKIFF_KILL_ROUNDS=%s: %v", s, err)
		}
	}
	runKills(t, rounds)
}

// ledger is what the parent knows of a key.
type ledger struct {
	counter  int
	revision int64
	sought   bool // a restarted server has not said yet that it has it
}

func runKills(t *testing.T, rounds int) {
	dir := t.TempDir()
	known := map[string]ledger{}
	revision, total := int64(0), 0
	for round := range rounds {
		// Some are killed while they start or replay, most under load.
		acks := rand.IntN(1500)
		if round%10 == 9 {
			acks = -1 - rand.IntN(8) // after so many milliseconds
		}
		acked := killOnce(t, dir, acks, known, &revision)
		total += acked
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	if total < rounds*100 {
		t.Errorf("only %d writes in %d rounds", total, rounds)
	}
	t.Logf("%d kills, %d acknowledged writes, revision %d", rounds, total, revision)
}

// killOnce runs the server until it has acknowledged so many writes (or for -n
// milliseconds), kills it, and returns the number of acknowledgements.
func killOnce(t *testing.T, dir string, acks int, known map[string]ledger, revision *int64) (acked int) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killDirEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() { _ = cmd.Process.Kill() }
	watchdog := time.AfterFunc(30*time.Second, func() {
		t.Error("the server hangs")
		kill()
	})
	defer watchdog.Stop()
	if acks < 0 {
		time.AfterFunc(time.Duration(-acks)*time.Millisecond, kill)
	}
	// What it said before it died is in the pipe, and is read to its end.
	for lines := bufio.NewReader(out); ; {
		line, err := lines.ReadString('\n')
		if err == io.EOF {
			break // a last line without its end was cut off
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(line, "acked ") {
			acked++
		}
		check(t, line, known, revision)
		if acks >= 0 && acked == acks+1 {
			kill()
		}
	}
	kill()
	_ = cmd.Wait()
	return acked
}

// check compares one line of the server with what is known, and learns from it.
func check(t *testing.T, line string, known map[string]ledger, revision *int64) {
	t.Helper()
	var what, key string
	var l ledger
	switch {
	case strings.HasPrefix(line, "state "):
		var rev int64
		fmt.Sscan(line, &what, &rev)
		if rev < *revision {
			t.Errorf("revision %d after the restart, %d was acknowledged", rev, *revision)
		}
		for k := range known { // each must be found in what follows
			l := known[k]
			l.sought = true
			known[k] = l
		}
	case strings.HasPrefix(line, "found "):
		fmt.Sscan(line, &what, &key, &l.counter, &l.revision)
		k := known[key]
		// One write more may have been made and not acknowledged.
		same, next := l.counter == k.counter && l.revision == k.revision, l.counter == k.counter+1 && l.revision > k.revision
		if !same && !next {
			t.Errorf("%s: found write %d at revision %d, acknowledged was %d at %d", key, l.counter, l.revision, k.counter, k.revision)
		}
		known[key] = l
		*revision = max(*revision, l.revision)
	case line == "ready\n":
		for key, l := range known {
			if l.sought {
				t.Errorf("%s: not found, acknowledged was write %d", key, l.counter)
			}
		}
	case strings.HasPrefix(line, "acked "):
		fmt.Sscan(line, &what, &key, &l.counter, &l.revision)
		if k := known[key]; l.counter != k.counter+1 || l.revision <= k.revision {
			t.Errorf("%s: acknowledged %+v after %+v", key, l, k)
		}
		known[key] = l
		*revision = max(*revision, l.revision)
	default:
		t.Errorf("the server says: %s", line)
	}
}
