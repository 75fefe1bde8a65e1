package gossip

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const childEnv = "SKIFF_TEST_GOSSIP_NET"

// TestMain is also the main of the process that TestStoppedObserver stops.
func TestMain(m *testing.M) {
	var net [2]byte
	if n, _ := fmt.Sscanf(os.Getenv(childEnv), "%d.%d", &net[0], &net[1]); n == 2 {
		child(net)
		return
	}
	_ = flag.Set("test.parallel", "8") // they wait, mostly
	code := m.Run()
	var leak error
	for range 5 { // a probe under way ends when its time is over
		if leak = goleak.Find(); leak == nil {
			break
		}
	}
	if code == 0 && leak != nil {
		fmt.Fprintln(os.Stderr, leak)
		code = 1
	}
	os.Exit(code)
}

// child is member n1 of a fleet of the parent. It prints every change of a
// state, until its input ends.
func child(net [2]byte) {
	f := &fleet{timing: forbearing(3), net: net, port: 7001}
	cfg := f.config(1)
	cfg.Seeds = func() []string { return []string{fmt.Sprintf("%s:%d", f.addr(2), f.port)} }
	cfg.Logger = slog.New(slog.DiscardHandler)
	g, err := New(cfg)
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = bufio.NewReader(os.Stdin).ReadByte()
		cancel()
	}()
	poked, _ := g.Changes()
	go func() {
		seen := map[string]State{}
		for range poked {
			for _, m := range g.Members() {
				if seen[m.Name] != m.State {
					seen[m.Name] = m.State
					fmt.Println(m.Name, m.State)
				}
			}
		}
	}()
	if err := g.Run(ctx); err != nil {
		panic(err)
	}
}

// A process that is stopped and goes on has missed everything: it must see
// nobody die, though all its probes have failed and its timers have run out.
func TestStoppedObserver(t *testing.T) {
	t.Parallel()
	f := newFleet(t, forbearing(3)) // this process may be slow, too
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d.%d", childEnv, f.net[0], f.net[1]))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var lines []string
	var wg sync.WaitGroup
	wg.Go(func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			mu.Lock()
			lines = append(lines, s.Text())
			mu.Unlock()
		}
	})
	said := func(line string) bool { mu.Lock(); defer mu.Unlock(); return slices.Contains(lines, line) }
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGCONT)
		in.Close()
		wg.Wait()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}()
	for i := 2; i <= 5; i++ {
		f.start(i, nil)
	}
	f.await("all see all", func() bool { return f.all(5, Alive) && said("n5 alive") })
	for range 2 {
		if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		f.await("the stopped one is dead", func() bool { return f.all(1, Dead) })
		time.Sleep(1200 * time.Millisecond)
		if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		f.await("it lives", func() bool { return f.all(5, Alive) })
	}
	f.members[0].kill()
	f.await("it sees a real death", func() bool { return said("n2 dead") })
	mu.Lock()
	defer mu.Unlock()
	for _, line := range lines {
		if strings.HasSuffix(line, " dead") && line != "n2 dead" {
			t.Errorf("it saw: %s", line)
		}
	}
}
