package eviction

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

const mi = 1 << 20

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name                       string
		hard, soft, grace, reclaim []string
		want                       string // of the thresholds, or of the error
	}{
		{name: "none"},
		{name: "defaults", hard: DefaultHard, want: "memory.available<104857600 nodefs.available<10% nodefs.inodesFree<5% imagefs.available<15% imagefs.inodesFree<5% pid.available<10% allocatableMemory.available<104857600"},
		{name: "soft", soft: []string{"nodefs.available<20%"}, grace: []string{"nodefs.available=1m30s"}, reclaim: []string{"nodefs.available=1Gi"}, want: "nodefs.available<20% for 1m30s +1073741824"},
		{name: "off", hard: []string{"memory.available<0%", "pid.available<100%", "nodefs.available<1Gi"}, want: "nodefs.available<1073741824"},
		{name: "unknown", hard: []string{"memory.avail<1Gi"}, want: `--eviction-hard "memory.avail<1Gi": no signal "memory.avail", there are memory.available, nodefs.available`},
		{name: "internal", hard: []string{"allocatableMemory.available<1Gi"}, want: "no signal"},
		{name: "as a map gives it", soft: []string{"nodefs.available=20%"}, grace: []string{"nodefs.available=1m"}, want: "nodefs.available<20% for 1m0s"},
		{name: "no operator", hard: []string{"memory.available>1Gi"}, want: `--eviction-hard "memory.available>1Gi": want SIGNAL<VALUE`},
		{name: "bad value", hard: []string{"memory.available<lots"}, want: `"lots" is no quantity`},
		{name: "zero", hard: []string{"memory.available<0"}, want: "want a quantity above 0"},
		{name: "negative", hard: []string{"memory.available<-1Gi"}, want: "no quantity"},
		{name: "percentage", hard: []string{"nodefs.available<110%"}, want: "no percentage from 0% to 100%"},
		{name: "not a number", hard: []string{"nodefs.available<NaN%"}, want: "no percentage"},
		{name: "twice", hard: []string{"nodefs.available<1%", "nodefs.available<2%"}, want: "nodefs.available is given twice"},
		{name: "soft without grace", soft: []string{"nodefs.available<20%"}, want: "--eviction-soft nodefs.available: give its grace period too"},
		{name: "grace without soft", grace: []string{"nodefs.available=1m"}, want: "--eviction-soft has no threshold"},
		{name: "bad grace", soft: []string{"nodefs.available<20%"}, grace: []string{"nodefs.available=soon"}, want: "--eviction-soft-grace-period \"nodefs.available=soon\""},
		{name: "zero grace", soft: []string{"nodefs.available<20%"}, grace: []string{"nodefs.available=0s"}, want: "want a duration above 0"},
		{name: "bad reclaim", hard: []string{"nodefs.available<20%"}, reclaim: []string{"nodefs.available=x"}, want: "--eviction-minimum-reclaim"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			list, err := Parse(tc.hard, tc.soft, tc.grace, tc.reclaim)
			if err != nil {
				if tc.want == "" || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error %q, want %q", err, tc.want)
				}
				return
			}
			var got []string
			for _, th := range list {
				s := string(th.Signal) + "<" + text(th.Value)
				if !th.Hard() {
					s += " for " + th.Grace.String()
				}
				if th.Reclaim != (Value{}) {
					s += " +" + text(th.Reclaim)
				}
				got = append(got, s)
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("%q, want %q", strings.Join(got, " "), tc.want)
			}
		})
	}
}

func text(v Value) string {
	if v.Quantity != 0 {
		return fmt.Sprint(v.Quantity)
	}
	return fmt.Sprintf("%.0f%%", v.Part*100)
}

// step is one look at a node of 1000 Mi of memory and a disk of 1000 Mi.
type step struct {
	after        time.Duration
	memory, disk int64 // available, Mi
	conditions   string
	starved      string
	again        time.Duration // at most
}

func TestDecide(t *testing.T) {
	cfg := func(hard, soft, grace, reclaim string) Config {
		list := func(s string) []string { return strings.Fields(s) }
		th, err := Parse(list(hard), list(soft), list(grace), list(reclaim))
		if err != nil {
			t.Fatal(err)
		}
		return Config{Thresholds: th, Transition: time.Minute}
	}
	const sec = time.Second
	for _, tc := range []struct {
		name  string
		cfg   Config
		steps []step
	}{
		{"plenty", cfg("memory.available<100Mi nodefs.available<10%", "", "", ""), []step{
			{0, 900, 900, "", "", 10 * sec},
			{10 * sec, 900, 900, "", "", 10 * sec},
		}},
		{"memory, and the condition stays for the transition period", cfg("memory.available<100Mi", "", "", ""), []step{
			{0, 900, 900, "", "", 10 * sec},
			{10 * sec, 99, 900, "MemoryPressure", "memory.available", sec},
			{sec, 500, 900, "MemoryPressure", "", 10 * sec},
			{58 * sec, 500, 900, "MemoryPressure", "", 2 * sec},
			{2 * sec, 500, 900, "", "", 10 * sec},
		}},
		{"both: memory first", cfg("nodefs.available<10% memory.available<100Mi", "", "", ""), []step{
			{0, 50, 50, "DiskPressure MemoryPressure", "memory.available nodefs.available", sec},
		}},
		{"soft: the condition at once, action after the grace period", cfg("", "nodefs.available<20%", "nodefs.available=30s", ""), []step{
			{0, 900, 150, "DiskPressure", "", 30 * sec},
			{20 * sec, 900, 150, "DiskPressure", "", 10 * sec},
			{10 * sec, 900, 150, "DiskPressure", "nodefs.available", sec},
			{sec, 900, 300, "DiskPressure", "", 10 * sec},
			{sec, 900, 150, "DiskPressure", "", 30 * sec}, // its time begins anew
		}},
		{"hard before soft", cfg("nodefs.available<10%", "memory.available<500Mi", "memory.available=1s", ""), []step{
			{0, 400, 50, "DiskPressure MemoryPressure", "nodefs.available", sec},
			{sec, 400, 50, "DiskPressure MemoryPressure", "nodefs.available memory.available", sec},
		}},
		{"minimum reclaim", cfg("nodefs.available<10%", "", "", "nodefs.available=100Mi"), []step{
			{0, 900, 150, "", "", 10 * sec}, // only after it was met
			{sec, 900, 99, "DiskPressure", "nodefs.available", sec},
			{sec, 900, 150, "DiskPressure", "nodefs.available", sec},
			{sec, 900, 201, "DiskPressure", "", 10 * sec},
			{sec, 900, 150, "DiskPressure", "", 10 * sec},
		}},
		{"looks sooner when it goes fast", cfg("memory.available<100Mi", "", "", ""), []step{
			{0, 900, 900, "", "", 10 * sec},
			{sec, 500, 900, "", "", 500 * time.Millisecond}, // 400 in a second, 400 left
		}},
		{"looks sooner when it is near", cfg("memory.available<100Mi", "", "", ""), []step{
			{0, 130, 900, "", "", sec},
		}},
		{"a signal that cannot be measured", cfg("imagefs.available<15%", "", "", ""), []step{
			{0, 900, 900, "", "", 10 * sec},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var s State
			now := time.Now()
			for i, st := range tc.steps {
				now = now.Add(st.after)
				obs := Observations{MemoryAvailable: {st.memory * mi, 1000 * mi}, NodeFsAvailable: {st.disk * mi, 1000 * mi}}
				var d Decision
				s, d = tc.cfg.Decide(s, now, obs)
				var conds, starved []string
				for _, c := range d.Conditions {
					conds = append(conds, string(c))
				}
				for _, th := range d.Starved {
					starved = append(starved, string(th.Signal))
				}
				if got := strings.Join(conds, " "); got != st.conditions {
					t.Errorf("step %d: conditions %q, want %q", i, got, st.conditions)
				}
				if got := strings.Join(starved, " "); got != st.starved {
					t.Errorf("step %d: starved of %q, want %q", i, got, st.starved)
				}
				if d.Again <= 0 || d.Again > st.again {
					t.Errorf("step %d: looks again after %s, want at most %s", i, d.Again, st.again)
				}
			}
		})
	}
}

func TestRelieved(t *testing.T) {
	list, err := Parse([]string{"nodefs.available<10%"}, nil, nil, []string{"nodefs.available=5%"})
	if err != nil {
		t.Fatal(err)
	}
	for free, want := range map[int64]bool{99: false, 120: false, 150: true} {
		if got := Relieved(list, Observations{NodeFsAvailable: {free, 1000}}); got != want {
			t.Errorf("%d of 1000 free: %v", free, got)
		}
	}
}

func aPod(name string, priority int32, requests string) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.PodSpec{Priority: ptr.To(priority), Containers: []v1.Container{{Name: "c"}}}}
	if requests != "" {
		q := resource.MustParse(requests)
		p.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceMemory: q, v1.ResourceEphemeralStorage: q}
	}
	return p
}

func TestRank(t *testing.T) {
	use := func(name string, priority int32, requests string, f func(*Pod)) Pod {
		p := Pod{Pod: aPod(name, priority, requests), Measured: true, Containers: []Container{{Name: "c"}}}
		f(&p)
		return p
	}
	memory := func(n int64) func(*Pod) { return func(p *Pod) { p.Memory = n * mi } }
	procs := func(n int64) func(*Pod) { return func(p *Pod) { p.Processes = n } }
	files := func(root, logs, vols Files) func(*Pod) {
		return func(p *Pod) { p.Containers[0].Root, p.Containers[0].Logs, p.Volumes = root, logs, vols }
	}
	for _, tc := range []struct {
		name     string
		sig      Signal
		separate bool
		pods     []Pod
		want     string
	}{
		{"over its request, then priority, then by how much", MemoryAvailable, false, []Pod{
			use("within", 0, "500Mi", memory(400)), use("important", 10, "100Mi", memory(900)),
			use("little", 0, "100Mi", memory(150)), use("much", 0, "100Mi", memory(300)), use("best-effort", 0, "", memory(250)),
		}, "best-effort much little important within"},
		{"not measured goes first", MemoryAvailable, false, []Pod{
			use("a", 0, "", memory(900)), {Pod: aPod("unknown", 100, "")},
		}, "unknown a"},
		{"processes: priority, then number", PIDAvailable, false, []Pod{
			use("bomb", 5, "", procs(9000)), use("small", 0, "", procs(3)), use("large", 0, "", procs(70)),
		}, "large small bomb"},
		{"disk: all of it", NodeFsAvailable, false, []Pod{
			use("logs", 0, "", files(Files{}, Files{Bytes: 40 * mi}, Files{})), use("root", 0, "", files(Files{Bytes: 50 * mi}, Files{}, Files{})),
			use("volume", 0, "", files(Files{}, Files{}, Files{Bytes: 60 * mi})), use("asked", 0, "1Gi", files(Files{Bytes: 900 * mi}, Files{}, Files{})),
		}, "volume root logs asked"},
		{"separate images: the node's disk has logs and volumes", NodeFsAvailable, true, []Pod{
			use("logs", 0, "", files(Files{}, Files{Bytes: 40 * mi}, Files{})), use("root", 0, "", files(Files{Bytes: 50 * mi}, Files{}, Files{})),
			use("volume", 0, "", files(Files{}, Files{}, Files{Bytes: 60 * mi})),
		}, "volume logs root"},
		{"separate images: theirs has the writable layers", ImageFsAvailable, true, []Pod{
			use("volume", 0, "", files(Files{}, Files{}, Files{Bytes: 60 * mi})), use("root", 0, "", files(Files{Bytes: 50 * mi}, Files{}, Files{})),
		}, "root volume"},
		{"inodes", NodeFsInodesFree, false, []Pod{
			use("big", 0, "", files(Files{Bytes: 500 * mi, Inodes: 3}, Files{}, Files{})), use("many", 0, "1Gi", files(Files{Bytes: mi, Inodes: 9000}, Files{}, Files{})),
		}, "many big"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for range 3 { // whatever the order before
				Rank(tc.sig, tc.separate, tc.pods)
				var got []string
				for _, p := range tc.pods {
					got = append(got, p.Pod.Name)
				}
				if strings.Join(got, " ") != tc.want {
					t.Errorf("%q, want %q", strings.Join(got, " "), tc.want)
				}
				slices.Reverse(tc.pods)
			}
		})
	}
}

func TestMessage(t *testing.T) {
	list, err := Parse([]string{"memory.available<100Mi", "nodefs.available<10%", "pid.available<10%"}, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	obs := Observations{MemoryAvailable: {50 * mi, 1000 * mi}, NodeFsAvailable: {5 * mi, 1000 * mi}, PIDAvailable: {3, 1000}}
	p := Pod{Pod: aPod("web", 0, "100Mi"), Measured: true, Memory: 300 * mi,
		Containers: []Container{{Name: "c", Memory: 200 * mi, Root: Files{Bytes: 150 * mi}, Logs: Files{Bytes: 10 * mi}}, {Name: "d", Memory: mi}}}
	for i, want := range []string{
		"The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using 200Mi, request is 100Mi, has larger consumption of memory. Container d was using 1Mi, request is 0, has larger consumption of memory. ",
		"The node was low on resource: ephemeral-storage. Threshold quantity: 100Mi, available: 5Mi. Container c was using 160Mi, request is 100Mi, has larger consumption of ephemeral-storage. ",
		"The node was low on resource: pids. Threshold quantity: 100, available: 3. ",
	} {
		got, notes := Message(list[i], list, obs, p)
		if got != want {
			t.Errorf("%q\nwant\n%q", got, want)
		}
		if notes["starved_resource"] != string(list[i].Signal.Resource()) {
			t.Errorf("notes %v", notes)
		}
	}
	p.Pod.Spec.Resources = &v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceMemory: resource.MustParse("250Mi")}}
	if got, notes := Message(list[0], list, obs, p); !strings.Contains(got, "Pod web was using 300Mi, request is 250Mi, has larger consumption of memory. ") || notes["offending_containers"] != "c,d" {
		t.Errorf("%q %v", got, notes)
	}
}

func TestGrace(t *testing.T) {
	p := aPod("p", 0, "")
	c := Config{MaxPodGrace: 60}
	hard, soft := Threshold{Signal: MemoryAvailable}, Threshold{Signal: MemoryAvailable, Grace: time.Second}
	if got := c.Grace(hard, p); got != 1 {
		t.Errorf("hard: %d", got)
	}
	if got := c.Grace(soft, p); got != 60 {
		t.Errorf("soft: %d", got)
	}
	p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](5)
	if got := c.Grace(soft, p); got != 5 {
		t.Errorf("soft, and the pod asks for 5: %d", got)
	}
}

func TestObserve(t *testing.T) {
	proc := t.TempDir()
	for name, text := range map[string]string{
		"meminfo": "MemTotal:       2048 kB\nMemFree:  100 kB\nMemAvailable:    512 kB\n",
		"loadavg": "0.10 0.20 0.30 1/234 5678\n", "sys/kernel/pid_max": "32768\n", "sys/kernel/threads-max": "1000\n",
	} {
		path := filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := Sources{NodeDir: "/node", ImageDir: "/images", Proc: proc, Pods: func() (int64, int64, error) { return 700, 600, nil },
		statfs: func(dir string, fs *unix.Statfs_t) error {
			*fs = unix.Statfs_t{Bsize: 4096, Blocks: 100, Bavail: 10, Files: 50, Ffree: 5}
			if dir == "/images" {
				fs.Files, fs.Ffree = 0, 0 // as btrfs says
			}
			return nil
		}}
	got, err := s.Observe()
	if err != nil {
		t.Fatal(err)
	}
	want := Observations{MemoryAvailable: {512 << 10, 2 << 20}, PodsMemory: {0, 600}, NodeFsAvailable: {40960, 409600}, NodeFsInodesFree: {5, 50},
		ImageFsAvailable: {40960, 409600}, PIDAvailable: {766, 1000}}
	if len(got) != len(want) {
		t.Errorf("%v, want %v", got, want)
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: %v, want %v", k, got[k], v)
		}
	}
	if err := os.Remove(filepath.Join(proc, "loadavg")); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Observe(); err == nil || len(got) != len(want)-1 {
		t.Errorf("one source fails: %v, %v; want the others and an error", got, err)
	}
	real := Sources{NodeDir: t.TempDir(), ImageDir: t.TempDir()}
	if got, err := real.Observe(); err != nil || got[MemoryAvailable].Available <= 0 || got[PIDAvailable].Available <= 0 {
		t.Errorf("on this machine: %v, %v", got, err)
	}
	if real.Separate() {
		t.Error("two directories on one disk are taken for two disks")
	}
}

func BenchmarkObserve(b *testing.B) {
	s := Sources{NodeDir: b.TempDir(), ImageDir: b.TempDir()}
	for b.Loop() {
		if _, err := s.Observe(); err != nil {
			b.Fatal(err)
		}
	}
}
