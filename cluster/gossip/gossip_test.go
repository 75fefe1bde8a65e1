package gossip

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

func TestDeathAndReturn(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fast)
	all := f.grow(5)
	poked, cancel := all[0].Changes()
	defer cancel()
	all[4].kill()
	took := f.await("death is seen", func() bool { return f.all(1, Dead) })
	t.Logf("death seen by all after %v", took)
	select {
	case <-poked:
	case <-time.After(10 * time.Second):
		t.Error("no change was announced")
	}
	m, _ := all[0].Member("n5")
	if all[0].Alive("id-5") || m.State != Dead || time.Since(m.Since) > 20*time.Second {
		t.Errorf("the dead member is %+v", m)
	}
	f.start(5, nil)
	f.await("return is seen", func() bool { return f.all(5, Alive) })
}

func TestRestartIsNoDeath(t *testing.T) {
	t.Parallel()
	f := newFleet(t, forbearing(10))
	all := f.grow(4)
	w := watchStates(all[0], "n4")
	all[3].kill()
	time.Sleep(2 * fast.Probe) // well within the time a suspect has
	f.start(4, func(c *Config) { c.Tags.Version = "v2" })
	f.await("the new process is known", func() bool { m, _ := all[0].Member("n4"); return m.Tags.Version == "v2" })
	f.await("the old process is given up", func() bool { return all[0].runs("n4") == 1 })
	if seen := w(); len(seen) != 1 || seen[0] != Alive {
		t.Errorf("n4 was seen as %v", seen)
	}
}

func TestLeave(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fast)
	all := f.grow(4)
	w := watchStates(all[0], "n4")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := all[3].Leave(ctx); err != nil {
		t.Fatal(err)
	}
	f.await("goodbye is heard", func() bool {
		return all[0].state("n4") == Left && all[1].state("n4") == Left && all[2].state("n4") == Left
	})
	// It runs on, long after memberlist has forgotten that it was a member.
	time.Sleep(fast.GossipDead + 20*fast.Probe)
	all[3].SetTags(func(t *Tags) { t.Trust = 77 })
	time.Sleep(10 * fast.Probe)
	if err := all[3].Leave(ctx); err != nil {
		t.Errorf("leaving twice: %v", err)
	}
	if m, _ := all[0].Member("n4"); m.State != Left || m.Tags.Trust == 77 {
		t.Errorf("one that has left is %+v", m)
	}
	all[3].kill()
	if err := all[3].Leave(ctx); err == nil {
		t.Error("a member that does not run left")
	}
	time.Sleep(10 * fast.Probe)
	if seen := w(); len(seen) != 2 || seen[1] != Left {
		t.Errorf("n4 was seen as %v", seen)
	}
	all[0].Forget("n1") // itself: no
	all[0].Forget("n2") // alive: no
	all[0].Forget("n4")
	if n := len(all[0].Members()); n != 3 {
		t.Errorf("%d members after Forget", n)
	}
	f.start(4, nil)
	f.await("it is back", func() bool { return f.all(4, Alive) })
}

// watchStates records the states of a member as one sees them.
func watchStates(r *runner, name string) func() []State {
	poked, cancel := r.Changes()
	var mu sync.Mutex
	states := []State{r.state(name)}
	done := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-poked:
			case <-stop:
				return
			}
			mu.Lock()
			if s := r.state(name); s != states[len(states)-1] {
				states = append(states, s)
			}
			mu.Unlock()
		}
	}()
	return func() []State {
		cancel()
		close(stop)
		<-done
		return states
	}
}

func TestAddressChange(t *testing.T) {
	t.Parallel()
	f := newFleet(t, forbearing(10))
	all := f.grow(4)
	w := watchStates(all[0], "n4")
	all[3].kill()
	moved := func(to byte) func(*Config) { return func(c *Config) { c.Bind = f.addr(int(to)) } }
	at := func(to byte) func() bool {
		return func() bool {
			for _, r := range f.running() {
				if m, _ := r.Member("n4"); m.Addr != f.addr(int(to)) || m.State != Alive {
					return false
				}
			}
			return true
		}
	}
	again := f.start(4, moved(104)) // while the others hold it for alive
	f.await("the new address of a live member", at(104))
	f.await("the old process is given up", func() bool { return all[0].runs("n4") == 1 })
	if seen := w(); len(seen) != 1 || !at(104)() {
		t.Errorf("n4 was seen as %v", seen)
	}
	again.kill()
	f.await("death", func() bool { return f.all(1, Dead) })
	f.start(4, moved(105))
	f.await("the new address of a dead member", at(105))
}

func TestNameConflict(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fast)
	all := f.grow(3)
	type pair struct{ existing, other Member }
	var heard atomic.Pointer[pair]
	second := f.start(9, func(c *Config) {
		c.Name, c.Tags.ID = "n3", "id-second"
		c.Conflict = func(existing, other Member) { heard.Store(&pair{existing, other}) }
	})
	f.await("the conflict is reported", func() bool {
		return heard.Load() != nil && all[0].logs.count("two live members have one name")+all[1].logs.count("two live members have one name") > 0
	})
	if h := heard.Load(); h.existing.Tags.ID != "id-second" || h.other.Tags.ID != "id-3" {
		t.Errorf("the second one heard %+v", h)
	}
	for range 20 {
		time.Sleep(fast.Probe)
		if m, _ := all[0].Member("n3"); m.Tags.ID != "id-3" || m.State != Alive {
			t.Fatalf("n3 is %+v", m)
		}
	}
	if n := all[0].logs.count("two live members have one name"); n > 1 {
		t.Errorf("said %d times", n)
	}
	all[2].kill()
	f.await("the name of a dead member is free", func() bool { return all[0].Alive("id-second") && all[1].Alive("id-second") })
	if all[0].Alive("id-3") || second.count(Alive) != 3 {
		t.Errorf("members %+v", second.Members())
	}
}

func TestCloneIsReported(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fast)
	var heard atomic.Bool
	f.start(1, func(c *Config) {
		c.Conflict = func(existing, other Member) {
			heard.Store(existing.Tags.ID == other.Tags.ID && existing.Addr != other.Addr)
		}
	})
	f.start(2, nil)
	f.start(3, nil)
	f.await("all see all", func() bool { return f.all(3, Alive) })
	f.start(3, func(c *Config) { c.Bind = f.addr(30) })
	f.await("the clone is reported", heard.Load)
}

func TestForeignClusterIsRefused(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fast)
	all := f.grow(3)
	var strangers []*runner
	for i := 11; i <= 12; i++ {
		strangers = append(strangers, f.start(i, func(c *Config) {
			c.Tags.ClusterID = "other"
			own := c.Seeds
			c.Seeds = func() []string { return append(own(), netip.AddrPortFrom(f.addr(11), f.port).String()) }
		}))
	}
	f.await("the strangers meet", func() bool { return strangers[0].count(Alive) == 2 && strangers[1].count(Alive) == 2 })
	f.await("they are noticed", func() bool { return all[0].logs.count("another cluster") > 0 })
	time.Sleep(20 * fast.Probe)
	for _, r := range f.running() {
		if n := len(r.Members()); n > 3 || r.cfg.Tags.ClusterID == "other" && n != 2 {
			t.Errorf("%s sees %d members", r.cfg.Name, n)
		}
	}
	if n := all[0].logs.count("another cluster"); n > 3 {
		t.Errorf("said %d times", n)
	}
}

func TestPartitionHealsAfterBothSidesGaveUp(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fast)
	all := f.grow(7)
	for _, oneWay := range []bool{false, true} {
		f.partition(all[:4], all[4:], oneWay)
		if oneWay {
			// Pings of one side are lost, answers to those of the other as well: both see deaths.
			time.Sleep(20 * fast.Probe)
		} else {
			f.await("each side holds the other for dead", func() bool {
				for i, r := range all {
					if i < 4 && r.count(Dead) != 3 || i >= 4 && r.count(Dead) != 4 {
						return false
					}
				}
				return true
			})
			time.Sleep(2 * fast.GossipDead) // memberlist has forgotten them by now
		}
		f.heal()
		t.Logf("healed after %v", f.await("all see all", func() bool { return f.all(7, Alive) }))
	}
}

func TestSeedsAreAskedUntilOneAnswers(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fast)
	late := f.start(2, func(c *Config) {
		own := c.Seeds
		c.Seeds = func() []string { return append([]string{"no address", "127.77.255.254:1"}, own()...) }
	})
	f.await("it complains", func() bool { return late.logs.count("not of the form") == 1 })
	f.start(1, nil)
	f.await("they meet", func() bool { return f.all(2, Alive) })
	if n := late.logs.count("not of the form"); n != 1 {
		t.Errorf("complained %d times", n)
	}
}

func TestKeysRotate(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fast)
	all := f.grow(4)
	w := watchStates(all[0], "n2")
	key3 := append(key2[:31:31], 9)
	for _, keys := range [][][]byte{{key1, key2, key3}, {key2, key1, key3}, {key2}} {
		for _, r := range all {
			if err := r.SetKeys(keys); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * fast.Probe)
	}
	if seen := w(); len(seen) != 1 {
		t.Errorf("n2 was seen as %v", seen)
	}
	if n := len(all[0].keyring.GetKeys()); n != 1 {
		t.Errorf("%d keys are installed", n)
	}
	for _, bad := range [][][]byte{nil, {key1[:16]}} {
		if err := all[0].SetKeys(bad); err == nil {
			t.Errorf("keys %v were taken", bad)
		}
	}
	// One that has only the old key is out, and says so once.
	if err := all[3].SetKeys([][]byte{key1}); err != nil {
		t.Fatal(err)
	}
	f.await("it is out", func() bool { return all[0].state("n4") == Dead && all[3].count(Dead) == 3 })
	time.Sleep(20 * fast.Probe)
	if n := all[3].logs.count("not ours") + all[3].logs.count("not encrypted with our key"); n < 1 || n > 6 {
		t.Errorf("it said so %d times", n) // once for each of the others and kind of message
	}
	if err := all[3].SetKeys([][]byte{key2}); err != nil {
		t.Fatal(err)
	}
	f.await("it is back", func() bool { return f.all(4, Alive) })
}

func TestTagsTravel(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fast)
	all := f.grow(3)
	tags := func(i int) Tags { m, _ := all[i].Member("n3"); return m.Tags }
	all[2].SetTags(func(t *Tags) { t.Trust, t.APIPort, t.ID = 7, 6443, "not changed by this" })
	f.await("new tags", func() bool { return tags(0).Trust == 7 && tags(1).Trust == 7 })
	if got := tags(0); got.ID != "id-3" || got.APIPort != 6443 || got.Role != RoleServer {
		t.Errorf("tags %+v", got)
	}
	// Load is told in steps, and not at every step.
	poked, cancel := all[0].Changes()
	defer cancel()
	begin, seen := time.Now(), map[uint8]bool{}
	for time.Since(begin) < 5*fast.LoadEvery {
		for load := range uint8(100) {
			all[2].SetTags(func(t *Tags) { t.Load = load })
		}
		select {
		case <-poked:
			seen[tags(0).Load] = true
		case <-time.After(time.Millisecond):
		}
	}
	if len(seen) > 8 {
		t.Errorf("loads %v", seen)
	}
	all[2].SetTags(func(t *Tags) { t.Load = 44 })
	f.await("the last load", func() bool { return tags(0).Load == 40 && all[2].Self().Tags.Load == 40 })
	all[2].SetTags(func(t *Tags) { t.Version = strings.Repeat("x", 256) })
	if all[2].logs.count("tags are not changed") != 1 || all[2].Self().Tags.Version != "v1" {
		t.Error("tags that do not fit were taken")
	}
}

// A process that was stopped must not believe what it concludes when it goes on.
func TestDeathsAreNotBelievedAfterAGap(t *testing.T) {
	t.Parallel()
	slow := fast
	slow.Calm = 3 * time.Second
	f := newFleet(t, slow)
	all := f.grow(4)
	time.Sleep(1200*time.Millisecond - time.Since(all[0].begin))
	all[0].lastTick.Store(1) // as if it had not run since New
	f.await("the gap is noticed", func() bool { return all[0].Score() == worstScore-1 })
	all[3].kill()
	f.await("others see the death", func() bool { return all[1].state("n4") == Dead })
	if !all[0].calm() && all[0].state("n4") != Alive {
		t.Error("a death was believed")
	}
	f.await("it is believed later", func() bool { return all[0].state("n4") == Dead })
	if at := time.Duration(all[0].calmAt.Load()); time.Since(all[0].begin) < at {
		t.Error("it was believed too early")
	}
	if all[0].logs.count("did not run for a while") == 0 {
		t.Error("nothing was said of the gap")
	}
}

// A death that the others report is not believed while the member answers.
func TestReportedDeathIsVerified(t *testing.T) {
	t.Parallel()
	patient := fast
	patient.Patience = time.Second
	f := newFleet(t, patient)
	all := f.grow(3)
	w := watchStates(all[0], "n3")
	report := func() { delegate{all[0].Gossip}.NotifyLeave(&memberlist.Node{Name: all[2].node}) }
	report()
	time.Sleep(10 * fast.Probe)
	if all[0].state("n3") != Alive || len(all[0].doubted()) != 1 {
		t.Errorf("n3 is %s, though it answers", all[0].state("n3"))
	}
	all[2].kill()
	f.await("it is believed when it answers no longer", func() bool { return all[0].state("n3") == Dead })
	if seen := w(); len(seen) != 2 {
		t.Errorf("n3 was seen as %v", seen)
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	good := func() Config {
		return Config{Name: "n", Bind: netip.MustParseAddr("127.0.0.1"), Keys: [][]byte{key1}, Logger: slog.New(slog.DiscardHandler),
			Tags: Tags{ID: "i", Role: RoleServer, ClusterID: "c"}}
	}
	for _, tc := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Name = "a/b" }, "Name"},
		{func(c *Config) { c.Name = "" }, "Name"},
		{func(c *Config) { c.Tags.ID = "" }, "Tags.ID"},
		{func(c *Config) { c.Tags.ClusterID = "" }, "Tags.ClusterID"},
		{func(c *Config) { c.Tags.Role = "boss" }, "boss"},
		{func(c *Config) { c.Tags.Version = strings.Repeat("v", 600) }, "bytes"},
		{func(c *Config) { c.Tags.ID, c.Tags.ClusterID = strings.Repeat("v", 255), strings.Repeat("v", 255) }, "512"},
		{func(c *Config) { c.Bind = netip.IPv4Unspecified() }, "Advertise"},
		{func(c *Config) { c.Keys = nil }, "keys"},
		{func(c *Config) { c.Keys = [][]byte{key1, {1}} }, "key 2"},
		{func(c *Config) { c.Logger = nil }, "Logger"},
		{func(c *Config) { c.Bind, c.Port = netip.MustParseAddr("192.0.2.1"), 1 }, "listen"},
	} {
		c := good()
		tc.change(&c)
		if g, err := New(c); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("error %v does not name %s", err, tc.want)
			if g != nil {
				g.Close()
			}
		}
	}
	g, err := New(good())
	if err != nil {
		t.Fatal(err)
	}
	if m := g.Members(); len(m) != 1 || m[0].State != Alive || m[0].Port == 0 || m[0] != g.Self() {
		t.Errorf("members before Run: %+v", m)
	}
	g.Close()
	g.Close()
}
