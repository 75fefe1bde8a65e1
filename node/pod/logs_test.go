package pod

import (
	"os"
	"path/filepath"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// TestLogsMove: the node gets another log directory. A pod that runs keeps its folder
// through restarts and is found there, one that comes later is shown to collectors.
func TestLogsMove(t *testing.T) {
	w := newWorld(t)
	w.add(w.pod("a"))
	a := w.await("a", "ready", isReady)
	w.stop()
	w.logDir = filepath.Join(w.dir, "log", "pods")
	links := filepath.Join(w.dir, "log", "containers")
	w.start([]*v1.Pod{a})
	w.add(w.pod("b"))
	b := w.await("b", "ready", isReady)

	restarted := func(p *v1.Pod) bool { return isReady(p) && p.Status.ContainerStatuses[0].RestartCount == 1 }
	logsOf := func(name string) (newest, before string) {
		v, err := w.m.Find("default", name, "")
		if err != nil {
			t.Fatal(err)
		}
		return v.Containers["c"].LogPath, v.Containers["c"].PrevLog
	}
	w.rt.box("uid-a").exit("c", 1)
	a = w.await("a", "restarted", restarted)
	folder := filepath.Join(w.dir, "logs", logBase(a), "c")
	if newest, before := logsOf("a"); newest != filepath.Join(folder, "1.log") || before != filepath.Join(folder, "0.log") {
		t.Errorf("the logs of the pod that ran are %s and %s, want them in %s", newest, before, folder)
	}
	log := filepath.Join(w.logDir, logBase(b), "c", "0.log")
	if newest, _ := logsOf("b"); newest != log {
		t.Errorf("the log of the new pod is %s, want %s", newest, log)
	}
	link := filepath.Join(links, "b_default_c-"+w.rt.box("uid-b").Containers()[0].ID+".log")
	leads := func() {
		t.Helper()
		if to, err := os.Readlink(link); err != nil || to != log {
			t.Errorf("%s leads to %q (%v), want %s", link, to, err, log)
		}
	}
	leads()
	if names, err := os.ReadDir(links); err != nil || len(names) != 1 {
		t.Errorf("%d links, %v: want that of the new pod", len(names), err)
	}

	// skiff is killed before it has made the link, and the directory changes back.
	w.stop()
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	w.logDir = ""
	w.start([]*v1.Pod{a, w.get("b")})
	w.eventually("the link is back", func() bool { _, err := os.Lstat(link); return err == nil })
	leads()
	w.remove("a", 0)
	w.m.Remove(a.UID)
	w.eventually("a is gone", func() bool { return missingFile(filepath.Dir(folder)) })
	if missingFile(log) || missingFile(link) {
		t.Error("another pod's log is gone with it")
	}

	w.stop() // b is deleted meanwhile
	w.start(nil)
	w.eventually("nothing of b is left", func() bool {
		return missingFile(link) && missingFile(filepath.Dir(filepath.Dir(log))) && missingFile(filepath.Join(w.dir, "log-folders", "uid-b"))
	})
}

// TestLogsGoWithThePod removes what a pod has outside of the data directory.
func TestLogsGoWithThePod(t *testing.T) {
	w := newWorld(t)
	w.stop()
	w.logDir = filepath.Join(w.dir, "log", "pods")
	w.start(nil)
	w.add(w.pod("a"))
	p := w.await("a", "ready", isReady)
	link := filepath.Join(w.dir, "log", "containers", "a_default_c-"+w.rt.box("uid-a").Containers()[0].ID+".log")
	if missingFile(link) {
		t.Fatalf("no %s", link)
	}
	w.remove("a", 0)
	w.m.Remove(p.UID)
	w.eventually("nothing is left", func() bool {
		return missingFile(link) && missingFile(filepath.Join(w.logDir, logBase(p))) && missingFile(filepath.Join(w.dir, "log-folders", "uid-a"))
	})
}

func missingFile(path string) bool {
	_, err := os.Lstat(path)
	return os.IsNotExist(err)
}
