package cluster

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster/membership"
)

// noPlace can't be reached.
type noPlace struct{ tries chan struct{} }

var errNoPlace = errors.New("connection refused")

func (noPlace) String() string { return "s3://bucket/prefix" }
func (n noPlace) List(context.Context) ([]backup.Entry, error) {
	n.tries <- struct{}{}
	return nil, errNoPlace
}
func (noPlace) Open(context.Context, string) (io.ReadCloser, backup.Entry, error) {
	return nil, backup.Entry{}, errNoPlace
}
func (noPlace) Create(context.Context, string, io.Reader) error { return errNoPlace }
func (noPlace) Remove(context.Context, string) error            { return errNoPlace }

func TestScheduledSnapshots(t *testing.T) {
	c := testConfig(t.TempDir())
	s := startServer(t, c)
	id := s.Status(t.Context()).Raft.ClusterID
	if st := s.Status(t.Context()).Snapshots; len(st) != 1 || st[0].Schedule != membership.SnapshotsOff || st[0].Places != nil {
		t.Errorf("without a schedule: %+v", st)
	}
	s.stop()

	// The last one was saved two days ago.
	dir := filepath.Join(c.DataDir, "snapshots")
	old := backup.Name{Cluster: id, At: time.Now().Add(-48 * time.Hour), Revision: 1}.String()
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, old), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	cron, err := backup.ParseCron(backup.DefaultSchedule)
	if err != nil {
		t.Fatal(err)
	}
	remote := noPlace{make(chan struct{}, 100)}
	c.GossipPort = freePort()
	c.Snapshots = &Snapshots{Cron: cron, Remote: remote, Retention: backup.Retention{Keep: 1}, Soon: 100 * time.Millisecond}
	s = startServer(t, c)
	var local, elsewhere backup.PlaceStatus
	eventually(t, "a snapshot and a failure", func() (bool, error) {
		st := s.Status(t.Context()).Snapshots
		if len(st) != 1 || len(st[0].Places) != 2 {
			return false, nil
		}
		local, elsewhere = st[0].Places[0], st[0].Places[1]
		return local.Last != nil && local.Last.Name != old && elsewhere.Error != "", nil
	})
	info, err := backup.Status(filepath.Join(dir, local.Last.Name))
	if err != nil || info.ClusterID != id || info.Revision != local.Last.Revision {
		t.Errorf("%+v, %v; status %+v", info, err, local.Last)
	}
	eventually(t, "the old one to go", func() (bool, error) {
		left, err := os.ReadDir(dir)
		return len(left) == 1, err
	})
	if !strings.Contains(strings.Join(s.Status(t.Context()).Warnings, "\n"), "s3://bucket/prefix failed") {
		t.Errorf("warnings %v", s.Status(t.Context()).Warnings)
	}
	eventually(t, "one event about it", func() (bool, error) {
		list, err := s.client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{FieldSelector: "reason=" + SnapshotFailed})
		if err != nil || len(list.Items) != 1 {
			return false, err
		}
		e := list.Items[0]
		return e.InvolvedObject.Name == "kube-system" && strings.Contains(e.Message, "connection refused") && e.Count == 1, nil
	})
	metrics, err := s.client.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`skiff_snapshot_last_success_timestamp_seconds{place="dir"} 1`, `skiff_snapshot_last_size_bytes{place="dir"} `,
		`skiff_snapshot_last_duration_seconds{place="dir"} `, `skiff_snapshot_failures_total{place="dir"} 0`, `skiff_snapshot_failures_total{place="s3"} `} {
		if !strings.Contains(string(metrics), want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	if n := len(remote.tries); n == 0 {
		t.Error("the place was not tried")
	}
}
